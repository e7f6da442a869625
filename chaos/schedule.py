"""seed -> what is run, with which options, and which faults come when.

Everything here is a pure function of a seed and of the names that are asked for.  A live run repeats the
choices, not the interleaving; the simulator repeats both.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from chaos.nemesis import Fault, Kind
from chaos.nemesis.registry import NEMESES, kind_of
from chaos.workloads.registry import SWEPT, WORKLOADS

CALM_S = 0.3  # at the beginning
EVERY_S = 1.5  # between faults, on average
OVER_S = 3.0  # a fault may last so much longer than the time of faults

MASTERS = (
    "local-cluster[2,1,512]",
    "local-cluster[3,1,512]",
    "local-cluster[2,2,1024]",
    "local[2]",
    "local[3]",
)
QUICK = {  # a silent peer is lost within a short run
    "spark.ft.lease": "2.4s",
    "spark.network.timeout": "3s",
    "spark.executor.heartbeatInterval": "300ms",
    "spark.ft.fetch.timeout": "1500ms",
    "spark.ft.launchTimeout": "1500ms",
}
SWARM: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("", {}),
    ("quick", QUICK),
    ("quick", QUICK),
    ("no speculation", {"spark.speculation": "false"}),
    ("no prefetch", {"spark.ft.task.prefetch": "0"}),
    ("small memory", {"spark.python.worker.memory": "1m", "spark.ft.result.inlineSize": "512b"}),
    ("small segments", {"spark.ft.store.segmentSize": "1m", "spark.ft.store.transactionSize": "64k"}),
    ("fair", {"spark.scheduler.mode": "FAIR"}),
)


@dataclass(frozen=True)
class Options:
    """All that one run is made from."""

    seed: int
    workload: str
    nemeses: tuple[str, ...]
    master: str
    seconds: float  # of faults; then they are healed and the workload ends
    scale: float = 1.0
    conf: Mapping[str, str] = field(default_factory=dict)
    every_s: float = EVERY_S  # between faults, on average
    about: str = ""  # what was drawn beside the names
    program: tuple[str, ...] = ()  # a user's own program with its arguments, instead of a workload

    @property
    def managed(self) -> bool:
        return self.master.startswith("local-cluster")

    def rng(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that one more draw here changes nothing there."""
        return random.Random(f"{self.seed}/{purpose}")


def swept(seed: int, seconds: float, nemeses: Sequence[str] = (), workloads: Sequence[str] = ()) -> Options:
    """The options of one run of a sweep: workloads take turns, so do nemeses; the rest is drawn.

    Any stretch of seeds as long as both lists' product has every pair of them.
    """
    works, breakers = list(workloads or SWEPT), list(nemeses or NEMESES)
    rng = random.Random(f"{seed}/options")
    workload = works[seed % len(works)]
    first = breakers[(seed // len(works) + seed % len(works)) % len(breakers)]
    chosen = [first]
    if rng.random() < 0.5:
        chosen.append(rng.choice(breakers))
    managed = any(all(kind.managed for kind in NEMESES[name].kinds) for name in chosen)
    about, conf = rng.choice(SWARM)
    master = rng.choice([master for master in MASTERS if not managed or master.startswith("local-cluster")])
    unique = tuple(dict.fromkeys(chosen))
    return Options(
        seed, workload, unique, master, seconds, rng.choice([0.5, 1.0, 1.0, 1.5]), conf, about=about
    )


def draw(options: Options) -> list[Fault]:
    """The faults of a run, in the order of their times."""
    rng = options.rng("schedule")
    kinds = [
        (name, kind)
        for name in options.nemeses
        for kind in NEMESES[name].kinds
        if options.managed or not kind.managed
    ]
    faults: list[Fault] = []
    counts: dict[tuple[str, str], int] = {}
    at_s = CALM_S + rng.uniform(0.0, min(1.0, options.every_s))
    while kinds and at_s < options.seconds:
        left = [(n, k) for n, k in kinds if not k.most or counts.get((n, k.name), 0) < k.most]
        if not left:
            break
        name, kind = rng.choices(left, [k.weight for _, k in left])[0]
        counts[(name, kind.name)] = counts.get((name, kind.name), 0) + 1
        drawn = fault(len(faults), name, kind, at_s, rng)
        faults.append(replace(drawn, until_s=min(drawn.until_s, round(options.seconds + OVER_S, 3))))
        at_s += rng.expovariate(1.0 / options.every_s)
    return faults


def fault(number: int, nemesis: str, kind: Kind, at_s: float, rng: random.Random) -> Fault:
    until_s = at_s + (rng.uniform(*kind.lasts_s) if kind.lasts_s[1] else 0.0)
    return Fault(number, nemesis, kind.name, round(at_s, 3), round(until_s, 3), rng.randrange(1 << 30))


def given(texts: Sequence[str], rng: random.Random) -> list[Fault]:
    """``nemesis.kind@at`` and ``nemesis.kind@at-until``.  Raises ValueError that names what is wrong."""
    faults = []
    for number, text in enumerate(texts):
        name, at, times = text.partition("@")
        nemesis, dot, kind = name.partition(".")
        if not (at and dot) or nemesis not in NEMESES or kind not in {k.name for k in NEMESES[nemesis].kinds}:
            raise ValueError(f"{text!r}: expected nemesis.kind@seconds or nemesis.kind@seconds-seconds")
        start, dash, end = times.partition("-")
        made = fault(number, nemesis, kind_of(nemesis, kind), float(start), rng)
        until_s = float(end) if dash else made.until_s
        faults.append(Fault(number, nemesis, kind, float(start), until_s, made.seed))
    return sorted(faults, key=lambda each: each.at_s)


def params(options: Options, number: int) -> dict[str, Any]:
    """What the workload does in its round of this number."""
    return WORKLOADS[options.workload].params(options.rng(f"round {number}"), options.scale)
