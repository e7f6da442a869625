"""Events and effects of a standing cluster: what a manager keeps, and drivers that workers run."""

from __future__ import annotations

from spark_ft.ids import HostId
from spark_ft.protocol.messages import SubmitDriver
from spark_ft.records import record


@record
class DriverRan:
    """A driver that was submitted runs here, or has ended (see DriverChanged).  ``submitted``: one that the
    worker before us has started, and that lives."""

    driver: str
    state: str
    text: str = ""
    submitted: SubmitDriver | None = None


@record
class RunDriver:
    """Run a program that was submitted; tell of it by ``DriverRan``."""

    submitted: SubmitDriver


@record
class Remember:
    """Write down, for a manager that comes after this one, which hosts have a worker."""

    hosts: tuple[HostId, ...]
