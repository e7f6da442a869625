"""``python -m chaos sim``: many seeds and their figures, or one seed and its history.

python -m chaos sim --seeds 10000            ten thousand fresh histories
python -m chaos sim --seeds 500:600 -j 2     these, on two cores
python -m chaos sim --seed 77                one history, told; a failure of it, shrunk
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from chaos.sim.clock import cpu_s
from chaos.sim.run import STEPS_MAX, Outcome, Violation
from chaos.sim.scenarios import SCENARIOS
from chaos.sim.shrink import shrink

_CHUNK = 50  # seeds that one task of a pool plays


@dataclass
class Sums:
    """What many histories add up to."""

    histories: int = 0
    steps: list[int] = field(default_factory=list)
    took: list[int] = field(default_factory=list)  # faults that took effect
    virtual_s: list[float] = field(default_factory=list)
    healing_s: list[float] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    violations: list[tuple[int, Violation]] = field(default_factory=list)
    cpu_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.histories += 1
        self.steps.append(outcome.steps)
        self.took.append(outcome.fault_count)
        self.virtual_s.append(outcome.virtual_s)
        self.healing_s.append(outcome.healing_s)
        self.faults.update(outcome.faults)
        self.jobs.update(outcome.jobs)
        self.marks.update(outcome.marks)
        self.violations += [(outcome.seed, violation) for violation in outcome.violations]

    def join(self, other: Sums) -> None:
        self.histories += other.histories
        self.cpu_s += other.cpu_s
        for ours, theirs in (
            (self.steps, other.steps), (self.took, other.took), (self.virtual_s, other.virtual_s),
            (self.healing_s, other.healing_s), (self.violations, other.violations),
        ):  # fmt: skip
            ours += theirs  # type: ignore[arg-type,operator]
        for mine, its in ((self.faults, other.faults), (self.jobs, other.jobs), (self.marks, other.marks)):
            mine.update(its)

    def text(self) -> str:
        total = sum(self.steps)
        rate = total / self.cpu_s if self.cpu_s else 0.0
        lines = [
            f"{self.histories} histories, {total} checked steps in {self.cpu_s:.1f} s of CPU: {rate:.0f}/s",
            f"steps            {_spread(self.steps)}",
            f"faults that took {_spread(self.took)}",
            f"virtual seconds  {_spread(self.virtual_s)}",
            f"healing seconds  {_spread(self.healing_s)}",
            f"jobs             {_counts(self.jobs)}",
            f"faults           {_counts(_titled(self.faults))}",
            f"recoveries       {_counts(Counter({mark: self.marks[mark] for mark in _RECOVERIES}))}",
        ]
        return "\n".join(lines)


def _spread(numbers: list[int] | list[float]) -> str:
    found = sorted(numbers)
    if not found:
        return "-"
    at = {name: found[min(len(found) - 1, int(part * len(found)))] for name, part in _PARTS.items()}
    return "  ".join(f"{name} {number:.0f}" for name, number in at.items())


# Notes of the driver that tell of recoveries.
_RECOVERIES = (
    "executor_lost", "worker_lost", "output_lost", "output_adopted", "output_copied", "fetch_failed",
    "block_lost", "rollback", "results_withdrawn", "result_lost", "speculation", "stalled_task_killed",
    "segment_lost", "store_quarantined", "executor_cut_off", "driver_stalled", "executor_adopted",
    "may_leave", "task_out_of_memory", "quarantine", "executor_excluded", "probe_failed",
    "executor_readmitted", "probe_awaited", "gang_broken", "barrier_passed",
)  # fmt: skip
# Rows of docs/fault-model.md that a kind of fault plays.
_ROWS = {
    "kill_executor": "EX-1", "own_death": "TK-5", "zombie": "EX-7", "hang": "EX-9", "long_call": "EX-9",
    "gray": "EX-10", "slow_host": "EX-10", "bad_starts": "EX-12", "leave": "EX-13", "sick": "EX-14",
    "deaf_task": "EX-15", "dirty": "TK-7", "not_loadable": "TK-9", "memory": "MEM-1", "lose_output": "BL-1",
    "rot_output": "BL-3", "tear_output": "BL-4", "rot_segment": "ST-10", "evict": "BL-11",
    "rot_block": "BL-11", "lose_host": "WK-2", "kill_worker": "WK-1", "reboot_host": "WK-3",
    "torn_at_reboot": "ST-8", "kill_manager": "CM-1", "stop_manager": "CM-1",
    "stall_driver": "CLK-4", "late_answer": "NET-7", "noise": "NET-1 NET-2 NET-3",
}  # fmt: skip
_PARTS = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1.0}


def _titled(faults: Counter[str]) -> Counter[str]:
    named = {kind: f"{kind} ({_ROWS[kind]})" if kind in _ROWS else kind for kind in faults}
    return Counter({named[kind]: count for kind, count in faults.items() if count})


def _counts(counter: Counter[str]) -> str:
    return "  ".join(f"{name} {count}" for name, count in counter.most_common())


def play(seeds: Iterable[int], steps_max: int = STEPS_MAX, scenario: str = "") -> Sums:
    """Histories one after the other."""
    sums, begun_s = Sums(), cpu_s()
    for seed in seeds:
        sums.add(SCENARIOS[scenario](seed, steps_max=steps_max))
    sums.cpu_s = cpu_s() - begun_s
    return sums


def play_all(
    seeds: range, jobs: int = 1, keep_going: bool = False, steps_max: int = STEPS_MAX, scenario: str = ""
) -> Iterator[Sums]:
    """The sums of chunks of ``seeds``, on ``jobs`` cores, in order; up to the first bad one unless told."""
    chunks = [seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            sums = play(chunk, steps_max, scenario)
            yield sums
            if sums.violations and not keep_going:
                return
        return
    with ProcessPoolExecutor(jobs) as pool:
        for sums in pool.map(partial(play, steps_max=steps_max, scenario=scenario), chunks):
            yield sums
            if sums.violations and not keep_going:
                pool.shutdown(cancel_futures=True)
                return


def seeds_of(text: str) -> range:
    """``A:B``, or a count of fresh ones from a base that is printed."""
    if ":" in text:
        first, last = text.split(":")
        return range(int(first), int(last))
    base = random.SystemRandom().randrange(1 << 40)
    return range(base, base + int(text))


def replay_command(seed: int, scenario: str = "") -> str:
    return f"python -m chaos sim {f'--scenario {scenario} ' if scenario else ''}--seed {seed}"


def explain(seed: int, violation: Violation, kept: list[str], scenario: str = "") -> str:
    """A failure as people need it: what, where, the decisions that suffice, and how to see it again."""
    lines = [
        f"VIOLATION of {violation.id} in the history of seed {seed}",
        f"  {violation.text}",
        f"  at step {violation.step}, {violation.at_s:.3f} virtual seconds",
        *([violation.trace] if violation.trace else []),
        f"  decisions that suffice ({len(kept)}):",
        *[f"    {decision}" for decision in kept],
        f"  again: {replay_command(seed, scenario)}",
    ]
    return "\n".join(lines)


def add_commands(commands: Any) -> None:
    """Add ``sim`` to ``python -m chaos``."""
    parser = commands.add_parser("sim", help="simulate histories of the real cores and check every step")
    parser.add_argument("--seed", type=int, help="play one history and tell it")
    parser.add_argument("--seeds", type=seeds_of, default="1000", help="COUNT fresh seeds, or a range A:B")
    parser.add_argument(
        "--scenario", choices=list(SCENARIOS), default="", help="a history told to go one way"
    )
    parser.add_argument("--steps", type=int, default=STEPS_MAX, help="a history of more has not ended (L1)")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="cores to use")
    parser.add_argument("--log", type=Path, help="with --seed: write the whole history there")
    parser.add_argument("--no-shrink", action="store_true", help="do not look for the decisions that suffice")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.set_defaults(call=sim)


def sim(given: argparse.Namespace) -> int:
    """What the command does; 1 when an invariant was broken."""
    if given.seed is not None:
        return _one(given)
    print(f"seeds {given.seeds.start}:{given.seeds.stop}, {given.jobs} core(s)", flush=True)
    whole = Sums()
    for sums in play_all(given.seeds, given.jobs, given.keep_going, given.steps, given.scenario):
        whole.join(sums)
    print(whole.text())
    told: set[str] = set()
    for seed, violation in whole.violations:
        if violation.id not in told:
            told.add(violation.id)
            print(_explained(given, seed, violation))
    if whole.violations:
        print(f"{len(whole.violations)} of {whole.histories} histories broke an invariant")
    return int(bool(whole.violations))


def _explained(given: argparse.Namespace, seed: int, violation: Violation) -> str:
    play_again = partial(SCENARIOS[given.scenario], seed, steps_max=given.steps)
    kept = play_again().decisions if given.no_shrink else shrink(play_again, violation.id)
    return explain(seed, violation, [str(decision) for decision in kept], given.scenario)


def _one(given: argparse.Namespace) -> int:
    outcome = SCENARIOS[given.scenario](given.seed, log=True, steps_max=given.steps)
    if given.log is not None:
        given.log.write_text("\n".join(outcome.log) + "\n")
    for decision in outcome.decisions:
        print(decision)
    sums = Sums()
    sums.add(outcome)
    print(sums.text())
    print(f"history {outcome.digest}")
    for violation in outcome.violations:
        print(_explained(given, given.seed, violation))
    return int(bool(outcome.violations))
