"""A job of three stages and sixty tasks; its driver is killed after each of its scheduler's events in turn.

    python -m tests.cluster.resume_table            every event: a table
    python -m tests.cluster.resume_table 7 19 40    after these events

Each row: after which event the driver was killed, what was committed by then, what the next life of the
driver started, how many of these had been committed (none may), and the seconds from its first line to the
answer.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import faultlib

ANSWER = "[(0, 22288), (1, 22400), (2, 18912), (3, 19008), (4, 19104), (5, 19200)] 400"
ALL = frozenset((stage, partition) for stage in range(3) for partition in range(20))

_PROGRAM = """
import os, sys, time
began = time.monotonic()
from spark_ft import SparkConf, SparkContext, failpoints

scratch, events, master, after = sys.argv[1:5]
conf = SparkConf(loadDefaults=False).setMaster(master).set("spark.app.id", "table")
conf.set("spark.local.dir", scratch).set("spark.eventLog.dir", events)
if int(after):
    failpoints.arm(f"host.event=kill@{after}")  # in the driver's process alone
with SparkContext(conf=conf) as sc:
    seen = sc.accumulator(0)

    def count(x):
        seen.add(1)
        return x % 50, x

    pairs = sc.parallelize(range(400), 20).map(count).reduceByKey(lambda a, b: a + b, 20)
    sums = pairs.map(lambda kv: (kv[0] % 8, kv[1])).reduceByKey(lambda a, b: a + b, 20)
    kept = sums.filter(lambda kv: kv[0] < 6).map(lambda kv: (kv[0], kv[1] * 2))
    print(sorted(kept.collect()), seen.value, round(time.monotonic() - began, 3), flush=True)
"""


@dataclass(frozen=True)
class Row:
    """What one kill has shown.  ``again``: tasks that were committed and started all the same."""

    after: int
    killed: bool
    committed: frozenset[faultlib.Place]
    started: frozenset[faultlib.Place]
    answer: str
    seconds: float

    @property
    def again(self) -> frozenset[faultlib.Place]:
        return self.committed & self.started

    @property
    def is_right(self) -> bool:
        """The answer, and of what was not committed each task, of what was none."""
        rest = ALL - self.committed if self.killed else frozenset()
        return self.answer == ANSWER and self.started == rest


def try_event(scratch: Path, after: int, master: str) -> Row:
    """Two lives of the program: the first is killed after so many events, if it has as many."""
    first, events = _life(scratch, "first", after, master)
    killed = first.returncode == -9
    if not killed:
        assert first.returncode == 0, first.stderr
        return Row(after, False, frozenset(), frozenset(), *_answer(first))
    faultlib.wait_until(lambda: not faultlib.processes_that_mention(scratch), 10, "its processes to end")
    committed = frozenset(_committed(scratch))
    second, events = _life(scratch, "second", 0, master)
    assert second.returncode == 0, second.stderr
    started = frozenset(faultlib.starts_per_partition(events))
    return Row(after, True, committed, started, *_answer(second))


def _life(
    scratch: Path, name: str, after: int, master: str
) -> tuple[subprocess.CompletedProcess[str], list[faultlib.Event]]:
    log = scratch / name
    log.mkdir()
    command = faultlib.python("-c", _PROGRAM, str(scratch), str(log), master, str(after))
    done = subprocess.run(**command, capture_output=True, text=True, timeout=120)
    lines = [line for path in log.glob("*.jsonl*") for line in path.read_bytes().splitlines()]
    shutil.rmtree(log)
    return done, [json.loads(line) for line in lines if line.endswith(b"}")]


def _answer(done: subprocess.CompletedProcess[str]) -> tuple[str, float]:
    answer, _, seconds = done.stdout.strip().rpartition(" ")
    return answer, float(seconds or 0)


def _committed(scratch: Path) -> Iterator[faultlib.Place]:
    """(stage, partition) of every task whose output has a manifest, or whose result was kept.  Shuffles and
    the stages that write them have the same numbers here."""
    for root in scratch.glob("spark_ft-apps-*/table/hosts/*"):
        for store in (root / "stores").iterdir():
            yield from ((s.shuffle, s.map_index) for s in faultlib.outputs_in(root, root.name, store.name))
    for results in scratch.glob("spark_ft-apps-*/table/journal/results"):
        from spark_ft.driver.journal import Results
        from spark_ft.ids import Incarnation

        with tempfile.TemporaryDirectory(prefix="sft-") as copy:  # no environment twice in a process
            shutil.copytree(results, Path(copy, "results"))
            kept = Results(Path(copy, "results"), Incarnation("driver-0"), 1 << 30, lambda actions: None)
            yield from ((2, partition) for rows in kept.index().values() for partition in rows)
            kept.close()


def main() -> None:
    """The table; ends with an error when some row is wrong."""
    chosen = [int(text) for text in sys.argv[1:]] or range(1, 100_000)
    wrong: list[int] = []
    slowest = 0.0
    print("event  committed  started  again  seconds  answer")
    for after in chosen:
        scratch = faultlib.short_directory()
        began = time.monotonic()
        row = try_event(scratch, after, "local-cluster[2,1,256]")
        shutil.rmtree(scratch, ignore_errors=True)
        said = "right" if row.answer == ANSWER else row.answer
        counts = f"{len(row.committed):9}  {len(row.started):7}  {len(row.again):5}"
        took = f"({time.monotonic() - began:.1f} s)"
        print(f"{after:5}  {counts}  {row.seconds:7.2f}  {said}  {took}", flush=True)
        slowest = max(slowest, row.seconds)
        wrong += [] if row.is_right else [after]
        if not row.killed:
            print(f"no more events. {len(wrong)} rows wrong {wrong}; slowest resume {slowest:.2f} s")
            break
    sys.exit(bool(wrong))


if __name__ == "__main__":
    if re.search("[^0-9]", "".join(sys.argv[1:])):
        sys.exit(__doc__)
    main()
