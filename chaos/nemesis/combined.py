"""Faults that belong together: packages with their schedule and their healing end.

One fault is easy; engines break on pairs, and on a second one in the middle of the recovery from the first.
A package says which kinds come at which times after its own beginning, and how long they last.  Written out,
it is a list of ordinary faults, as ``--faults`` takes them: ``power-cut@2`` is short for all of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """``kind`` (nemesis.kind) after so many seconds, for so long (0: done at once), again and again."""

    kind: str
    after_s: float = 0.0
    lasts_s: float = 0.0
    times: int = 1
    every_s: float = 0.0
    jitter_s: float = 0.1  # each time is as much later, at most


@dataclass(frozen=True)
class Package:
    about: str
    steps: tuple[Step, ...]
    managed: bool = False  # needs more than one host


PACKAGES: dict[str, Package] = {
    "storm": Package(
        "Two executors die every second.",
        (Step("kill-pairs.pair", times=10, every_s=1.0),),
    ),
    "zombie": Package(
        "An executor is given up while it stands still, others die meanwhile, and it wakes up.",
        (Step("pause.long", lasts_s=5.0), Step("kill-executor.one", 1.0, times=3, every_s=1.0)),
    ),
    "leaving-for-nowhere": Package(
        "A host is asked to leave, and whoever takes its data over dies.",
        (
            Step("decommission.host"),
            Step("kill-worker.one", 0.05),
            Step("kill-executor.one", 0.15, times=2, every_s=0.3),
        ),
        managed=True,
    ),
    "second-blow": Package(
        "A host dies, and executors die in every step of the recovery.",
        (Step("kill-host.one"), Step("kill-executor.one", 0.3, times=6, every_s=0.35)),
        managed=True,
    ),
    "rebuild-without-memory": Package(
        "Outputs are lost, and whoever builds them again gets no more memory.",
        (Step("disk.delete-store"), Step("memory.no-more", 0.2, 1.5), Step("disk.flip", 1.0)),
    ),
    "sleepy-driver": Package(
        "Executors die while the driver stands still; it hears of everything at once.",
        (Step("pause-driver.stall", lasts_s=4.0), Step("kill-executor.one", 1.0, times=3, every_s=0.8)),
    ),
    "split-brain": Package(
        "A host is cut off until it is given up, its successors lose outputs, the cut heals.",
        (Step("network.cut-host", lasts_s=5.0), Step("disk.zero", 2.0), Step("kill-executor.one", 4.0)),
        managed=True,
    ),
    "bad-line": Package(
        "Messages are lost, doubled and late at the same time, and an executor dies.",
        (
            Step("network.drop", lasts_s=4.0),
            Step("network.twice", lasts_s=4.0),
            Step("network.late", lasts_s=4.0),
            Step("kill-executor.one", 2.0),
        ),
    ),
    "bad-day": Package(
        "Somebody kills processes, deletes directories and changes files as he likes.",
        (
            Step("kill-executor.one", times=3, every_s=1.5, jitter_s=1.0),
            Step("kill-worker.one", 1.0, jitter_s=2.0),
            Step("disk.flip", 0.5, times=2, every_s=2.0, jitter_s=1.0),
            Step("disk.delete", 2.0, jitter_s=2.0),
            Step("network.drop", 1.0, 2.0),
            Step("clock.jump", 0.5, 4.0),
        ),
        managed=True,
    ),
}


def written_out(texts: Sequence[str], rng: random.Random) -> list[str]:
    """Each ``package@at`` as its faults, ``nemesis.kind@at`` and ``nemesis.kind@at-until``; others as they
    are."""
    out: list[str] = []
    for text in texts:
        name, _, at = text.partition("@")
        package = PACKAGES.get(name)
        if package is None:
            out.append(text)
            continue
        for step in package.steps:
            for number in range(step.times):
                at_s = float(at) + step.after_s + number * step.every_s + rng.uniform(0.0, step.jitter_s)
                until = f"-{at_s + step.lasts_s:.2f}" if step.lasts_s else ""
                out.append(f"{step.kind}@{at_s:.2f}{until}")
    return out
