"""What must be equal in all processes of a cluster (EX-11)."""

import platform
from collections.abc import Mapping

from spark_ft.closures import CLOUDPICKLE_VERSION
from spark_ft.protocol.codec import WIRE_VERSION

VERSION = "0.1.0"


def versions() -> dict[str, str]:
    """Interpreter (pickled code is bound to its minor version), engine, pickles of functions, wire."""
    major, minor, _ = platform.python_version_tuple()
    return {
        "python": f"{major}.{minor}",
        "spark_ft": VERSION,
        "cloudpickle": CLOUDPICKLE_VERSION,
        "wire": str(WIRE_VERSION),
    }


def mismatch(theirs: Mapping[str, str]) -> str:
    """What keeps us from working with a process of these versions; '' for nothing."""
    for part, ours in versions().items():
        if theirs.get(part) != ours:
            return f"VERSION_MISMATCH: {part} is {theirs.get(part, 'unknown')} there and {ours} here"
    return ""
