"""What work is called in every life of an application: jobs, shuffles, outputs; and what is drawn."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from operator import add
from pathlib import Path
from typing import Any

import pytest

from spark_ft import SparkConf, SparkContext, TaskContext
from spark_ft.storage.outputs import published
from tests.cluster import faultlib


class Abandoned(Exception):
    """How a life ends that another one shall go on from."""


@pytest.fixture
def live(scratch: Path, tmp_path: Path) -> Callable[..., Any]:
    """``live(body)``: what ``body(sc)`` gives in a life of an application; ``good``: whether it ends well."""

    def run(body: Callable[[SparkContext], Any], app: str = "named", good: bool = False) -> Any:
        conf = SparkConf(loadDefaults=False).setMaster("local[1]").set("spark.app.id", app)
        conf.set("spark.local.dir", str(scratch)).set("spark.eventLog.dir", str(tmp_path))
        try:
            with SparkContext(conf=conf) as sc:
                answer = body(sc)
                if not good:
                    raise Abandoned
        except Abandoned:
            pass
        return answer

    return run


def keys(sc: SparkContext) -> list[list[str]]:
    """Of the map tasks and result tasks of three jobs, the last two of which are equal."""

    def named(records: Any) -> list[tuple[str, int]]:
        context = TaskContext.get()
        assert context is not None
        return [(context.idempotencyKey(), record) for record in records]

    shuffled = sc.parallelize([1, 2], 2).mapPartitions(named).reduceByKey(add, 1)
    first = shuffled.keys().collect()
    return [
        sorted(first),
        *(sc.parallelize([1, 2], 2).mapPartitions(named).keys().collect() for _ in range(2)),
    ]


def test_TK_14_a_task_has_one_name_in_every_life_of_its_application(live: Callable[..., Any]) -> None:
    first, second = live(keys), live(keys, good=True)
    assert first == second
    assert len({key for job in first for key in job}) == 6, "equal jobs are two"
    later = live(keys, good=True)
    assert not {key for job in later for key in job} & {key for job in first for key in job}


def draws(sc: SparkContext) -> list[list[int]]:
    rdd = sc.parallelize(range(1000), 1)
    return [rdd.sample(False, 0.5).collect(), rdd.takeSample(True, 20), rdd.randomSplit([1, 1])[0].collect()]


def test_DR_7_what_is_drawn_without_a_seed_is_drawn_again_in_the_next_life(live: Callable[..., Any]) -> None:
    first, second = live(draws), live(draws, good=True)
    assert first == second
    assert live(draws, good=True) != first, "and anew for another application of that name"


_SAVE = """
import os, sys, time
from spark_ft import SparkConf, SparkContext, failpoints
scratch, marks, target, step = sys.argv[1:5]
failpoints.arm(step)
conf = SparkConf(loadDefaults=False).setMaster("local[1]").set("spark.app.id", "saves")
conf.set("spark.local.dir", scratch).set("spark.eventLog.enabled", "false")

def marked(index, records):
    open(f"{marks}/{index}@{time.monotonic_ns()}", "w").close()
    return records

with SparkContext(conf=conf) as sc:
    rdd = sc.parallelize(range(6), 2).mapPartitionsWithIndex(marked)
    rdd.saveAsTextFile(target)
    rdd.saveAsTextFile(target + "-again")
"""


@pytest.mark.parametrize("step", ["save.after_manifest", "save.after_publish"])
def test_OUT_3_the_next_life_gets_on_with_what_was_decided(scratch: Path, tmp_path: Path, step: str) -> None:
    target, marks = tmp_path / "out" / "of", tmp_path / "marks"
    marks.mkdir()

    def life(armed: str) -> subprocess.CompletedProcess[str]:
        command = faultlib.python("-c", _SAVE, str(scratch), str(marks), str(target), armed)
        return subprocess.run(**command, capture_output=True, text=True, timeout=60)

    assert life(f"{step}=kill@1").returncode == -signal.SIGKILL
    assert len(list(marks.iterdir())) == 2, "both tasks of the first output"
    ended = life("")
    assert ended.returncode == 0, ended.stderr
    for each in (target, Path(f"{target}-again")):
        manifest = published(str(each))
        assert manifest is not None
        assert [(each / part).read_text() for part in manifest.parts] == ["0\n1\n2\n", "3\n4\n5\n"]
    assert len(list(marks.iterdir())) == 4, "nothing that was decided is done again"
    assert sorted(os.listdir(target.parent)) == ["of", "of-again"]
    third = life("")
    assert "FileAlreadyExists" in third.stderr, "another application is told what is there"
    for kept in scratch.glob("spark_ft-apps-*"):  # of that one, which has ended by an error
        shutil.rmtree(kept)


_PLAIN = """
import sys
from spark_ft import SparkConf, SparkContext
conf = SparkConf(loadDefaults=False).setMaster("local[1]").set("spark.local.dir", sys.argv[1])
with SparkContext(conf=conf.set("spark.eventLog.enabled", "false")) as sc:
    assert sc.parallelize(range(9), 2).map(lambda x: (x, 1)).reduceByKey(max).count() == 9
print([name for name in sys.modules if name.startswith("spark_ft.lineage.")])
"""


def test_a_program_without_an_id_never_loads_what_makes_fingerprints(scratch: Path) -> None:
    command = faultlib.python("-c", _PLAIN, str(scratch))
    loaded = subprocess.run(**command, capture_output=True, text=True, check=True).stdout
    assert "lineage.node" in loaded
    assert not [name for name in ("fingerprint", "anatomy", "canonical", "packages") if name in loaded]
