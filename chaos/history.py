"""What happened in one run, as JSON lines: written while it happens, read by the checkers afterwards.

    options   seed, workload, nemeses, master, settings, seconds
    schedule  each fault that was to come
    up        the application runs
    fault     what became of one: took_effect, evidence, rows, takes; once made, once more when healed
    event     a line of the application's event log, with ``seen_s`` of the harness's clock
    result    what a round observed, or its error
    late      how late the machine woke the harness: no bound on time can be kept better than that
    end       how the driver's process ended; hang: it did not, with stacks
    left      processes and files that were there after the end

All ``…_s`` are seconds on the harness's clock since the launch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos.nemesis import Fault, Invocation, Notice
from chaos.schedule import Options

NAME = "history.jsonl"


class Writer:
    """Appends records to a run's history; each line is whole."""

    def __init__(self, directory: Path) -> None:
        self._file = (directory / NAME).open("w", buffering=1)

    def write(self, record: str, **fields: Any) -> None:
        self._file.write(json.dumps({"record": record, **fields}, default=plain) + "\n")

    def close(self) -> None:
        self._file.close()


def plain(value: object) -> object:
    """What JSON has no word for."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.hex() if isinstance(value, bytes) else str(value)


@dataclass
class History:
    """A run as the checkers see it."""

    options: Options
    schedule: list[Fault] = field(default_factory=list)
    up_s: float | None = None
    faults: list[Invocation] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    results: list[Mapping[str, Any]] = field(default_factory=list)
    late: list[tuple[float, float]] = field(default_factory=list)
    end: Mapping[str, Any] | None = None
    left: Mapping[str, Any] | None = None
    trouble: list[str] = field(default_factory=list)  # of the harness itself

    def of(self, event: str) -> list[Mapping[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    def taken(self, by_s: float) -> frozenset[str]:
        """What faults may have taken from the application until then."""
        return frozenset().union(*(f.takes for f in self.faults if f.at_s <= by_s))

    def late_s(self, from_s: float, until_s: float) -> float:
        """How late the machine was at most in a stretch of time."""
        return max((late for at, late in self.late if at - late <= until_s and at >= from_s), default=0.0)

    def rows(self) -> dict[str, int]:
        """How often each row of the fault model was exercised, by the evidence."""
        counts: dict[str, int] = {}
        for invocation in self.faults:
            if invocation.took_effect:
                for row in invocation.rows:
                    counts[row] = counts.get(row, 0) + 1
        return counts


def record_of(invocation: Invocation) -> dict[str, Any]:
    """An invocation as plain values."""
    return asdict(invocation)


def invocation_of(record: Mapping[str, Any]) -> Invocation:
    fields = dict(record)
    fields["fault"] = Fault(**fields["fault"])
    for name in ("rows", "errors", "victims"):
        fields[name] = tuple(fields[name])
    fields["takes"] = frozenset(fields["takes"])
    fields["notices"] = tuple(
        Notice(tuple(notice["events"]), notice["match"], notice["within_s"]) for notice in fields["notices"]
    )
    return Invocation(**fields)


def options_of(record: Mapping[str, Any]) -> Options:
    fields = dict(record)
    return Options(**{**fields, "nemeses": tuple(fields["nemeses"]), "program": tuple(fields["program"])})


def read(directory: Path) -> History:
    """The history of a run.  Raises FileNotFoundError, and ValueError for one that has no beginning."""
    history: History | None = None
    faults: dict[int, Invocation] = {}
    for line in (directory / NAME).read_text().splitlines():
        record = json.loads(line)
        kind = record.pop("record")
        if kind == "options":
            history = History(options_of(record))
            continue
        if history is None:
            raise ValueError(f"{directory / NAME} does not begin with its options")
        match kind:
            case "schedule":
                history.schedule.append(Fault(**record))
            case "up":
                history.up_s = record["at_s"]
            case "fault":
                invocation = invocation_of(record)
                faults[invocation.fault.number] = invocation  # the healed one takes the place of the first
            case "event":
                history.events.append(record)
            case "result":
                history.results.append(record)
            case "late":
                history.late.append((record["at_s"], record["late_s"]))
            case "end":
                history.end = record
            case "left":
                history.left = record
            case "trouble":
                history.trouble.append(record["text"])
    if history is None:
        raise ValueError(f"{directory / NAME} is empty")
    history.faults = sorted(faults.values(), key=lambda each: each.at_s)
    return history
