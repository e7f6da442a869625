"""A program that lives long: the same small jobs again and again, and what the application holds meanwhile.

``python -m tests.cluster.long_lived 5000`` runs so many jobs, tells what was held on the way, and fails when
it has grown; ``make long`` does that.  tests/cluster/test_long_lived.py runs a shorter one.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from operator import add
from pathlib import Path

import psutil

from spark_ft import SparkConf, SparkContext, StorageLevel

JOBS_A_ROUND = 9  # on average
MASTER = "local-cluster[2,1,512]"


def settings(base: Path) -> SparkConf:
    """Small segments, logs and memories of what was: their bounds are met early."""
    conf = SparkConf(loadDefaults=False).setMaster(MASTER).setAppName("long-lived")
    conf.set("spark.local.dir", str(base)).set("spark.eventLog.dir", str(base / "events"))
    conf.set("spark.ft.store.segmentSize", "8m").set("spark.ft.store.transactionSize", "2m")
    conf.set("spark.ft.eventLog.maxSize", "256k").set("spark.eventLog.rolling.maxFileSize", "64k")
    conf.set("spark.ui.retainedJobs", "50").set("spark.ui.retainedStages", "50")
    conf.set("spark.ft.store.gcInterval", "200ms")
    return conf.set("spark.cleaner.referenceTracking.cleanCheckpoints", "true")


def one_round(sc: SparkContext, number: int) -> None:
    """Shuffles, broadcasts, persisted RDDs, checkpoints, collections in blocks, results by the store: what it
    makes it also lets go of, by name or with the last reference."""
    table = sc.broadcast({"number": number, "rows": list(range(2000))})
    pairs = sc.parallelize(range(200), 4).map(lambda x: (x % 7, x + table.value["number"]))
    assert pairs.reduceByKey(add, 3).count() == 7
    level = (StorageLevel.MEMORY_AND_DISK, StorageLevel.DISK_ONLY, StorageLevel.MEMORY_ONLY)[number % 3]
    kept = pairs.values().persist(level)
    assert kept.count() == 200 and kept.max() == 199 + number
    if number % 2:
        kept.unpersist()
    saved = pairs.mapValues(str)
    saved.checkpoint()
    assert saved.count() == 200 and len(saved.lookup(3)) == 29
    blocks = sc.parallelize([bytes(100_000)] * 2, 2)
    assert sum(map(len, blocks.collect())) == 200_000
    assert len(pairs.sortByKey().take(3)) == 3
    counter = sc.accumulator(0)
    sc.parallelize([1, 2], 2).foreach(counter.add)
    assert counter.value == 3
    if number % 3 == 0:
        table.destroy()


@dataclass(frozen=True)
class Held:
    """By all processes of the application, and on the disk."""

    memory_bytes: int  # of their own: what is shared with others or mapped from files counts not
    descriptors: int
    threads: int
    files: int
    disk_bytes: int

    @classmethod
    def now(cls, base: Path) -> Held:
        gc.collect()
        memory = descriptors = threads = files = disk = 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                memory += process.memory_full_info().uss
                descriptors += process.num_fds()
                threads += process.num_threads()
            except psutil.Error:  # a probe that has just ended
                continue
        for folder, _, names in os.walk(base):
            for name in names:
                try:
                    disk += os.stat(os.path.join(folder, name)).st_blocks * 512
                except FileNotFoundError:  # dropped just now
                    continue
                files += 1
        return cls(memory, descriptors, threads, files, disk)

    def __str__(self) -> str:
        return (
            f"{self.memory_bytes >> 10} KiB of memory, {self.descriptors} descriptors, {self.threads} threads"
            f", {self.files} files of {self.disk_bytes >> 10} KiB"
        )


def least(looks: list[Held]) -> Held:
    """Field by field: what is there but for a moment is not held."""
    return Held(*(min(getattr(look, name) for look in looks) for name in Held.__dataclass_fields__))


def live(base: Path, rounds: int, tell: Callable[[str], None] = lambda _: None) -> tuple[Held, Held]:
    """What is held around a third of the rounds, and what at their end."""
    (base / "events").mkdir()
    looks: dict[int, Held] = {}
    with SparkContext(conf=settings(base)) as sc:
        sc.setCheckpointDir(str(base / "checkpoints"))
        for number in range(1, rounds + 1):
            one_round(sc, number)
            near = number in (rounds // 3, rounds)
            if near or number % max(rounds // 12, 1) == 0:
                looks[number] = Held.now(base)
                tell(f"{number * JOBS_A_ROUND:6d} jobs: {looks[number]}")
        early = [look for number, look in looks.items() if rounds // 3 <= number <= rounds // 2]
        late = [look for number, look in looks.items() if number > rounds - rounds // 5]
    return least(early), least(late)


def grown(early: Held, late: Held, jobs: int) -> list[str]:
    """What has grown that should not; some bytes a job are allowed for free lists that have yet to settle."""
    bounds = {
        "memory_bytes": (2 << 20) + 200 * jobs,
        "descriptors": 12,  # a segment that rolls just then
        "threads": 3,
        "files": 12,
        "disk_bytes": (512 << 10) + 64 * jobs,
    }
    found = {name: getattr(late, name) - getattr(early, name) for name in bounds}
    return [f"{name}: {more} more" for name, more in found.items() if more > bounds[name]]


def main() -> None:
    rounds = int(sys.argv[1]) // JOBS_A_ROUND
    with tempfile.TemporaryDirectory(prefix="sft-") as base:
        early, late = live(Path(base), rounds, print)
    print(f"then  {early}\nnow   {late}")
    if too_much := grown(early, late, rounds * JOBS_A_ROUND):
        sys.exit("grown: " + "; ".join(too_much))


if __name__ == "__main__":
    main()
