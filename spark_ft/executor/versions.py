"""What must be equal in the driver and its executors (EX-11)."""

import platform

from spark_ft.protocol.codec import WIRE_VERSION

VERSION = "0.1.0"


def versions() -> dict[str, str]:
    """Interpreter (pickled code is bound to its minor version), engine and wire."""
    major, minor, _ = platform.python_version_tuple()
    return {"python": f"{major}.{minor}", "spark_ft": VERSION, "wire": str(WIRE_VERSION)}
