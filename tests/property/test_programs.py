"""Random RDD programs give the oracle's answers, undisturbed and while executors are being killed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from spark_ft import SparkConf, SparkContext
from tests.cluster import faultlib
from tests.strategies import Program, programs

SIM = os.environ.get("HYPOTHESIS_PROFILE") == "sim"


@pytest.fixture
def calm() -> Iterator[SparkContext]:
    """One context for all examples: what one program leaves behind must not hurt the next."""
    conf = SparkConf(loadDefaults=False).setMaster("local[2]").setAppName("programs")
    with SparkContext(conf=conf) as sc:
        yield sc


@settings(suppress_health_check=list(HealthCheck))
@given(program=programs())
def test_a_random_program_gives_the_answers_of_plain_lists(calm: SparkContext, program: Program) -> None:
    program.check(calm)


@pytest.fixture
def hunted(tmp_path: Path) -> Iterator[tuple[faultlib.Running, faultlib.RandomKiller]]:
    scratch = faultlib.short_directory()
    running = faultlib.start_context(tmp_path, scratch, "local-cluster[2,1,512]")
    killer = faultlib.RandomKiller(running, seed=7, most=2000 if SIM else 60)
    killer.start()
    yield running, killer
    killer.done.set()
    killer.join()
    running.stop()
    shutil.rmtree(scratch, ignore_errors=True)
    print(len(killer.killed), "executors killed")
    assert killer.killed, "no executor was killed: nothing is shown"


@settings(max_examples=300 if SIM else 25, suppress_health_check=list(HealthCheck))
@given(program=programs(steps_max=6, actions_max=2, dawdle_s=0.05))
def test_EX_5_a_random_program_gives_them_while_executors_are_killed(
    hunted: tuple[faultlib.Running, faultlib.RandomKiller], program: Program
) -> None:
    running, _ = hunted
    program.check(running.sc)
