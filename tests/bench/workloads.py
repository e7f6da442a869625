"""Twenty workloads for any engine that speaks PySpark's RDD API; the engine is handed in as a module.

A workload is a function of a live context, a ``Meter`` and its sizes.  Inside ``meter.timed()`` is what
counts; making inputs and checking answers stays outside, except where making them is the point.  Every
answer is checked against one that is known by construction, so a fast wrong engine fails.  No
workload asks for the same thing twice, so that nothing can be answered from an earlier action, but for
those that say so (``cache``, ``broadcast``).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import add
from types import ModuleType
from typing import Any

from text import facts_of

MB = 1_000_000


class WrongAnswerError(AssertionError):
    """The engine's answer is not the one known by construction."""


def expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise WrongAnswerError(f"{got!r} is not {wanted!r}")


class Meter:
    """Figures of one run.  ``wall_s`` is the one to compare; ``cpu_s`` is of the whole process tree."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, name: str = "wall_s") -> Iterator[None]:
        cpu, begun = tree_cpu_s(), time.perf_counter()
        yield
        self.figures[name] = time.perf_counter() - begun
        if name == "wall_s":
            self.figures["cpu_s"] = tree_cpu_s() - cpu

    def rate(self, name: str, amount: float) -> None:
        self.figures[name] = amount / self.figures["wall_s"]

    def median_ms(self, name: str, function: Callable[[], object], times: int) -> None:
        took = []
        for _ in range(times):
            begun = time.perf_counter()
            function()
            took.append(time.perf_counter() - begun)
        self.figures[name] = statistics.median(took) * 1000


def tree_cpu_s() -> float:
    """CPU seconds of this process and its descendants, those already reaped by them included."""
    import psutil

    spent = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            spent += times.user + times.system + times.children_user + times.children_system
    return spent


@dataclass(frozen=True)
class Scaled:
    """A size that ``--scale`` multiplies, never below ``least``."""

    full: int
    least: int = 1

    def at(self, scale: float) -> int:
        return max(self.least, round(self.full * scale))


Function = Callable[..., None]
WORKLOADS: dict[str, tuple[Function, dict[str, Any]]] = {}


def workload(**sizes: int | Scaled) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        WORKLOADS[function.__name__] = (function, sizes)
        return function

    return register


def sizes_at(name: str, scale: float) -> dict[str, int]:
    return {
        key: size.at(scale) if isinstance(size, Scaled) else size for key, size in WORKLOADS[name][1].items()
    }


def connect(engine: ModuleType, cores: int, conf: dict[str, str]) -> Any:
    settings = engine.SparkConf().setMaster(f"local[{cores}]").setAppName("bench")
    for key, value in conf.items():
        settings.set(key, value)
    sc = engine.SparkContext(conf=settings)
    sc.setLogLevel("ERROR")
    return sc


def warm_up(sc: Any, cores: int) -> None:
    """A first answer, so that every worker is there."""
    expect(sc.parallelize(range(cores), cores).count(), cores)


def startup(engine_name: str, cores: int, conf: dict[str, str]) -> dict[str, float]:
    """From import to the answer of a first small job, and the end; in an idle fresh process."""
    begun = time.perf_counter()
    engine = importlib.import_module(engine_name)
    sc = connect(engine, cores, conf)
    up = time.perf_counter()
    warm_up(sc, cores)
    answered = time.perf_counter()
    sc.stop()
    return {
        "wall_s": answered - begun,
        "context_s": up - begun,
        "first_job_s": answered - up,
        "stop_s": time.perf_counter() - answered,
    }


# --- The scheduler -------------------------------------------------------------------------------


@workload(tasks=Scaled(2000, 20))
def empty_tasks(sc: Any, meter: Meter, tasks: int) -> None:
    """Tasks with nothing to do: the cost of one."""
    with meter.timed():
        sc.parallelize(range(tasks), tasks).foreach(lambda _: None)
    meter.rate("tasks_per_s", tasks)


@workload(jobs=Scaled(200, 5))
def tiny_jobs(sc: Any, meter: Meter, jobs: int) -> None:
    """One-task jobs, one after the other: the latency of a job."""
    one = sc.parallelize([None], 1)
    with meter.timed():
        meter.median_ms("job_ms", one.count, jobs)


@workload(jobs=Scaled(50, 5))
def tiny_shuffles(sc: Any, meter: Meter, jobs: int) -> None:
    """Jobs of two tasks that write and two that read: the latency of a shuffle."""

    def job() -> None:
        pairs = sc.parallelize([("a", 1), ("b", 2), ("a", 3)], 2)
        expect(sorted(pairs.reduceByKey(add, 2).collect()), [("a", 4), ("b", 2)])

    with meter.timed():
        meter.median_ms("job_ms", job, jobs)


# --- Records, one by one ----------------------------------------------------------------------------


@workload(records=Scaled(30_000_000), partitions=8)
def narrow_chain(sc: Any, meter: Meter, records: int, partitions: int) -> None:
    """Three functions a record and a sum."""
    numbers = sc.parallelize(range(records), partitions)
    with meter.timed():
        total = numbers.map(lambda n: n + n).filter(lambda n: n % 3 == 0).map(lambda n: n + 1).sum()
    kept = range(0, records, 3)
    expect(total, 2 * sum(kept) + len(kept))
    meter.rate("records_per_s", records)


@workload(text_bytes=Scaled(300 * MB, 200_000))
def wordcount(sc: Any, meter: Meter, text_bytes: int, path: str) -> None:
    """The classic, over source text."""
    facts = facts_of(path)
    with meter.timed():
        words = sc.textFile(path).flatMap(lambda line: line.split())
        counts = dict(words.map(lambda word: (word, 1)).reduceByKey(add).collect())
    expect(len(counts), facts["distinct_words"])
    expect(sum(counts.values()), facts["words"])
    expect(counts["self"], facts["self"])
    meter.rate("mb_per_s", facts["bytes"] / MB)


@workload(text_bytes=Scaled(300 * MB, 200_000))
def count_lines(sc: Any, meter: Meter, text_bytes: int, path: str) -> None:
    """Reading text and little else."""
    facts = facts_of(path)
    with meter.timed():
        lines = sc.textFile(path).filter(lambda line: line is not None).count()
    expect(lines, facts["lines"])
    meter.rate("mb_per_s", facts["bytes"] / MB)


# --- Shuffles --------------------------------------------------------------------------------------------


@workload(records=Scaled(2_000_000, 1000), partitions=8)
def sort(sc: Any, meter: Meter, records: int, partitions: int) -> None:
    """A total order over records of a random number and 90 bytes, as TeraSort has them."""
    width = 90

    def make(index: int, numbers: Iterator[int]) -> Iterator[tuple[int, bytes]]:
        rng = random.Random(1000 + index)
        noise = rng.randbytes(MB)
        for _ in numbers:
            key = rng.getrandbits(60)
            at = key % (MB - width)
            yield key, noise[at : at + width]

    def summary(index: int, rows: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, ...]]:
        count = folded = 0
        low = high = -1
        for key, value in rows:
            if key < high or len(value) != width:
                raise AssertionError(f"partition {index} is out of order")
            low = key if count == 0 else low
            high, count, folded = key, count + 1, folded ^ key
        yield index, count, low, high, folded

    rows = sc.parallelize(range(records), partitions).mapPartitionsWithIndex(make)
    with meter.timed():
        parts = rows.sortByKey(numPartitions=partitions).mapPartitionsWithIndex(summary).collect()
    parts = [part for part in sorted(parts) if part[1]]
    expect(sum(part[1] for part in parts), records)
    expect([part[2:4] for part in parts], sorted(part[2:4] for part in parts))
    folded = 0
    for part in parts:
        folded ^= part[4]
    for index in range(partitions):
        size = len(range(records)[index * records // partitions : (index + 1) * records // partitions])
        for key, _ in make(index, iter(range(size))):
            folded ^= key
    expect(folded, 0)
    meter.rate("records_per_s", records)
    meter.rate("mb_per_s", records * (width + 8) / MB)


@workload(records=Scaled(4_000_000, 1000), keys=200_000, partitions=8)
def group_by_key(sc: Any, meter: Meter, records: int, keys: int, partitions: int) -> None:
    """Every record crosses the shuffle; the groups are counted where they are."""
    pairs = sc.parallelize(range(records), partitions).map(lambda n: (n % keys, n))

    def count(seen: tuple[int, int], group: tuple[int, Any]) -> tuple[int, int]:
        return seen[0] + 1, seen[1] + len(group[1])

    with meter.timed():
        found = pairs.groupByKey(partitions).aggregate((0, 0), count, lambda a, b: (a[0] + b[0], a[1] + b[1]))
    expect(tuple(found), (min(keys, records), records))
    meter.rate("records_per_s", records)


@workload(left=Scaled(1_000_000, 100), right=Scaled(500_000, 50), partitions=8)
def join(sc: Any, meter: Meter, left: int, right: int, partitions: int) -> None:
    """Orders meet their customers; each customer has two."""
    orders = sc.parallelize(range(left), partitions).map(lambda n: (n % right, n))
    customers = sc.parallelize(range(right), partitions).map(lambda n: (n, f"customer {n}"))
    with meter.timed():
        met = orders.join(customers, partitions).count()
    expect(met, left)
    meter.rate("records_per_s", left + right)


@workload(records=Scaled(4_000_000, 1000), values=500_000, partitions=8)
def distinct(sc: Any, meter: Meter, records: int, values: int, partitions: int) -> None:
    """Numbers, each of them eight times."""
    numbers = sc.parallelize(range(records), partitions).map(lambda n: n % values)
    with meter.timed():
        found = numbers.distinct(partitions).count()
    expect(found, min(values, records))
    meter.rate("records_per_s", records)


@workload(records=Scaled(16_000_000, 1000), keys=1000, partitions=8)
def aggregate_by_key(sc: Any, meter: Meter, records: int, keys: int, partitions: int) -> None:
    """Few keys, many records: combining before the shuffle."""
    pairs = sc.parallelize(range(records), partitions).map(lambda n: (n % keys, n))
    with meter.timed():
        sums = pairs.aggregateByKey(
            (0, 0),
            lambda seen, n: (seen[0] + n, seen[1] + 1),
            lambda a, b: (a[0] + b[0], a[1] + b[1]),
            partitions,
        ).collectAsMap()
    expect(len(sums), min(keys, records))
    expect(sum(total for total, _ in sums.values()), records * (records - 1) // 2)
    expect(sum(count for _, count in sums.values()), records)
    meter.rate("records_per_s", records)


@workload(records=Scaled(30_000_000, 1000), keys=1000, partitions=8)
def count_by_key(sc: Any, meter: Meter, records: int, keys: int, partitions: int) -> None:
    """Counted in the tasks, merged in the driver."""
    pairs = sc.parallelize(range(records), partitions).map(lambda n: (n % keys, None))
    with meter.timed():
        counts = pairs.countByKey()
    expect((len(counts), sum(counts.values())), (min(keys, records), records))
    meter.rate("records_per_s", records)


@workload(blobs=Scaled(16_384, 16), blob_bytes=65_536, partitions=8)
def shuffle_blobs(sc: Any, meter: Meter, blobs: int, blob_bytes: int, partitions: int) -> None:
    """Incompressible values of 64 KiB change places: the data plane."""

    def make(index: int, numbers: Iterator[int]) -> Iterator[bytes]:
        noise = random.Random(2000 + index).randbytes(blob_bytes * 8)
        for n in numbers:
            at = n * 4111 % (blob_bytes * 7)
            yield noise[at : at + blob_bytes]

    values = sc.parallelize(range(blobs), partitions).mapPartitionsWithIndex(make)
    with meter.timed():
        total = values.repartition(partitions).map(len).sum()
    expect(total, blobs * blob_bytes)
    meter.rate("mb_per_s", total / MB)


# --- Iteration over what is kept -----------------------------------------------------------------------


@workload(records=Scaled(6_000_000, 1000), partitions=8)
def cache(sc: Any, meter: Meter, records: int, partitions: int) -> None:
    """Count while the cache fills (first_s), then add up something of every record of it (wall_s)."""
    kept = sc.parallelize(range(records), partitions).map(lambda n: (n, str(n))).cache()
    with meter.timed("first_s"):
        expect(kept.count(), records)
    with meter.timed():
        total = kept.map(lambda pair: pair[0]).sum()
    expect(total, records * (records - 1) // 2)
    meter.rate("records_per_s", records)


@workload(pages=Scaled(100_000, 1000), links=5, iterations=10, partitions=4)
def pagerank(sc: Any, meter: Meter, pages: int, links: int, iterations: int, partitions: int) -> None:
    """PageRank where few pages have most of the links."""

    def out_links(page: int) -> list[tuple[int, int]]:
        rng = random.Random(page)
        return [(page, int(pages * rng.random() ** 3)) for _ in range(links)]

    def shares(item: tuple[int, tuple[list[int], float]]) -> list[tuple[int, float]]:
        _, (targets, rank) = item
        return [(target, rank / len(targets)) for target in targets]

    with meter.timed():
        graph = sc.parallelize(range(pages), partitions).flatMap(out_links)
        graph = graph.groupByKey(partitions).mapValues(list).cache()
        ranks = graph.mapValues(lambda _: 1.0)
        for _ in range(iterations):
            sent = graph.join(ranks, partitions).flatMap(shares)
            ranks = sent.reduceByKey(add, partitions).mapValues(lambda total: 0.15 + 0.85 * total)
        best = ranks.takeOrdered(3, key=lambda item: -item[1])
    expect(best[0][0], 0)
    expect(best[0][1] > best[1][1] > best[2][1] > 0.15, True)
    meter.figures["s_per_iteration"] = meter.figures["wall_s"] / iterations


@workload(points=Scaled(1_000_000, 8000), dimensions=20, clusters=10, iterations=10, partitions=8)
def kmeans(
    sc: Any, meter: Meter, points: int, dimensions: int, clusters: int, iterations: int, partitions: int
) -> None:
    """Lloyd's iterations over cached NumPy blocks, one job each."""
    import numpy as np

    each = points // partitions

    def block(index: int) -> Any:
        rng = np.random.default_rng(index)
        home = rng.integers(0, clusters, each)
        return rng.normal(size=(each, dimensions)) + 4.0 * home[:, None]

    def step(centres: Any) -> Callable[[Iterator[Any]], Iterator[Any]]:
        def assign(blocks: Iterator[Any]) -> Iterator[Any]:
            for rows in blocks:
                nearest = ((centres**2).sum(1) - 2 * (rows @ centres.T)).argmin(1)
                sums = np.stack([rows[nearest == c].sum(0) for c in range(clusters)])
                yield sums, np.bincount(nearest, minlength=clusters)

        return assign

    blocks = sc.parallelize(range(partitions), partitions).map(block).cache()
    with meter.timed("load_s"):
        expect(blocks.count(), partitions)
    centres = np.ones((clusters, dimensions)) * np.linspace(0, 4 * clusters, clusters)[:, None]
    with meter.timed():
        for _ in range(iterations):
            sums, sizes = blocks.mapPartitions(step(centres)).reduce(lambda a, b: (a[0] + b[0], a[1] + b[1]))
            centres = sums / np.maximum(sizes, 1)[:, None]
    expect(int(sizes.sum()), each * partitions)
    everything = sum(block(index).sum(0) for index in range(partitions))
    expect(bool(np.allclose(sums.sum(0), everything)), True)
    meter.figures["s_per_iteration"] = meter.figures["wall_s"] / iterations


@workload(points=Scaled(200_000, 16_000), dimensions=100, iterations=10, partitions=8)
def logreg(sc: Any, meter: Meter, points: int, dimensions: int, iterations: int, partitions: int) -> None:
    """Logistic regression by gradient descent over cached NumPy blocks."""
    import numpy as np

    each = points // partitions
    truth = np.random.default_rng(4321).normal(size=dimensions)

    def block(index: int) -> Any:
        rows = np.random.default_rng(index).normal(size=(each, dimensions))
        return rows, (rows @ truth > 0).astype(float)

    def gradient(weights: Any) -> Callable[[Iterator[Any]], Iterator[Any]]:
        def of(blocks: Iterator[Any]) -> Iterator[Any]:
            for rows, labels in blocks:
                yield rows.T @ (1 / (1 + np.exp(-(rows @ weights))) - labels)

        return of

    blocks = sc.parallelize(range(partitions), partitions).map(block).cache()
    with meter.timed("load_s"):
        expect(blocks.count(), partitions)
    weights = np.zeros(dimensions)
    with meter.timed():
        for _ in range(iterations):
            weights = weights - blocks.mapPartitions(gradient(weights)).reduce(add) * (10 / points)
    cosine = float(weights @ truth / np.linalg.norm(weights) / np.linalg.norm(truth))
    expect(cosine > 0.95, True)
    meter.figures["s_per_iteration"] = meter.figures["wall_s"] / iterations


# --- Shared variables ----------------------------------------------------------------------------------


@workload(value_bytes=Scaled(100 * MB, MB), tasks=8)
def broadcast(sc: Any, meter: Meter, value_bytes: int, tasks: int) -> None:
    """A large value is sent and seen by eight tasks; then by eight more (second_job_s)."""
    value = random.Random(77).randbytes(MB) * (value_bytes // MB)
    numbers = sc.parallelize(range(tasks), tasks)
    with meter.timed():
        with meter.timed("create_s"):
            shared = sc.broadcast(value)
        expect(numbers.map(lambda _: len(shared.value)).sum(), tasks * len(value))
    with meter.timed("second_job_s"):
        expect(numbers.map(lambda n: shared.value[n]).collect(), list(value[:tasks]))
    meter.rate("mb_per_s", len(value) / MB)


@workload(records=Scaled(10_000_000, 1000), partitions=8)
def accumulator(sc: Any, meter: Meter, records: int, partitions: int) -> None:
    """One addition a record."""
    total = sc.accumulator(0)
    with meter.timed():
        sc.parallelize(range(records), partitions).foreach(lambda _: total.add(1))
    expect(total.value, records)
    meter.rate("records_per_s", records)


def names() -> list[str]:
    return ["startup", *WORKLOADS]


def run_one(engine_name: str, name: str, cores: int, scale: float, conf: dict[str, str]) -> dict[str, float]:
    """One workload in this process, which must be a fresh one."""
    if name == "startup":
        return startup(engine_name, cores, conf)
    function, _ = WORKLOADS[name]
    sizes: dict[str, Any] = sizes_at(name, scale)
    if "text_bytes" in sizes:
        sizes["path"] = os.environ["BENCH_TEXT"]
    sc = connect(importlib.import_module(engine_name), cores, conf)
    warm_up(sc, cores)
    meter = Meter()
    function(sc, meter, **sizes)
    sc.stop()
    return meter.figures
