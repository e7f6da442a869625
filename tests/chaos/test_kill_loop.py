"""``make chaos``: jobs go on and on while executors are killed at random, and every answer is right.

SPARK_FT_CHAOS_S says for how long, SPARK_FT_CHAOS_SEED which kills; the seed is printed.  Real processes
and real time: a seed repeats the choices, not the interleaving.
"""

import os
import random
import time
from collections.abc import Callable
from operator import add
from typing import Any

import pytest

from tests.cluster import faultlib
from tests.cluster.conftest import nothing_is_left, scratch, start  # noqa: F401 - fixtures
from tests.oracle import OracleContext, same_bag


def slow(seconds: float) -> Callable[[Any], Any]:
    """A function that dawdles now and then, so that kills meet running tasks."""

    def dawdle(x: int) -> int:
        if x % 97 == 0:
            import time

            time.sleep(seconds)
        return x

    return dawdle


def aggregate(sc: Any, n: int) -> list[Any]:
    return (
        sc.parallelize(range(n), 8).map(slow(0.01)).map(lambda x: (x % 50, x)).reduceByKey(add, 5).collect()
    )


def order(sc: Any, n: int) -> list[Any]:
    return (
        sc.parallelize(range(n), 6)
        .map(slow(0.01))
        .map(lambda x: x * 7919 % 10_007)
        .sortBy(lambda x: x)
        .collect()
    )


def join(sc: Any, n: int) -> list[Any]:
    left = sc.parallelize(range(n), 6).map(slow(0.01)).map(lambda x: (x % 100, x))
    right = sc.parallelize(range(100), 3).map(lambda x: (x, -x))
    return left.join(right, 4).mapValues(sum).reduceByKey(add, 4).collect()


def iterate(sc: Any, n: int) -> list[Any]:
    numbers = sc.parallelize(range(n), 5).map(slow(0.01)).map(lambda x: (x % 20, x)).cache()
    total = numbers
    for _ in range(3):
        total = total.union(numbers).reduceByKey(add, 4)
    return total.collect()


JOBS = (aggregate, order, join, iterate)


@pytest.mark.chaos
def test_EX_5_answers_stay_right_while_executors_are_killed_again_and_again(start) -> None:  # noqa: F811
    seconds = float(os.environ.get("SPARK_FT_CHAOS_S") or 60)
    seed = int(os.environ.get("SPARK_FT_CHAOS_SEED") or time.time_ns() % 1_000_000)
    print(f"\nseed {seed}; again: make chaos SEED={seed}")
    running: faultlib.Running = start("local-cluster[3,1,512]")
    rng = random.Random(seed)
    killer = faultlib.RandomKiller(running, seed, most=10_000, pause_s=(0.5, 3.0))
    killer.start()
    end, jobs = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < end:
            job, n = rng.choice(JOBS), rng.choice([500, 2000, 6000])
            assert same_bag(job(running.sc, n), job(OracleContext(), n)), (
                f"{job.__name__} of {n}, seed {seed}"
            )
            jobs += 1
    finally:
        killer.done.set()
        killer.join()
    assert killer.killed, "nobody was killed: nothing is shown"
    lost = running.log.of("executor_lost")
    again = sum(faultlib.redone(running.events()).values())
    print(
        f"{jobs} jobs right; {len(killer.killed)} executors killed, {len(lost)} losses noted, "
        f"{again} tasks started again"
    )
