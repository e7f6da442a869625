"""The live harness on real clusters: a few seeds of a sweep, a run that must fail, a program of one's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from chaos import checkers, history
from chaos.live import sweep
from chaos.live.runner import run
from chaos.nemesis import Fault, Kind, Nemesis
from chaos.nemesis.registry import NEMESES
from chaos.schedule import Options, given
from chaos.workloads import Params
from chaos.workloads.aggregates import Bank
from chaos.workloads.registry import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 3.0


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chaos", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=150,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def told(findings: list[checkers.Finding]) -> str:
    return "\n".join(f"{each.checker} {each.verdict} {each.says}" for each in findings)


def test_UE_9_EX_1_EX_5_EX_9_EX_13_seeds_of_a_sweep_are_right_and_a_stopped_sweep_goes_on(tmp_path: Path):
    breakers = ["kill-executor", "pause", "disk", "decommission"]
    two = sweep.sweep(range(2), tmp_path, SECONDS, breakers, ())
    four = sweep.sweep(range(4), tmp_path, SECONDS, breakers, ())
    assert [each["verdict"] for each in four] == ["true"] * 4, "\n".join(map(sweep.line_of, four))
    assert four[:2] == two  # they were done before: nothing of it was done again
    assert sum(sum(each["faults"].values()) for each in four) >= 4
    assert len({each["workload"] for each in four}) == 4
    assert four[3]["rows"]["EX-13"] >= 1, "whoever was asked to leave has left"
    with pytest.raises(ValueError, match="another sweep"):
        sweep.sweep([0], tmp_path, SECONDS + 1, breakers, ())


def test_ST_1_ST_2_maps_that_are_full_and_a_disk_that_fills_up_cost_tries_and_nothing_else(tmp_path: Path):
    options = Options(11, "parcels", (), "local-cluster[2,1,512]", 4.0)
    texts = ["map-full.rolls@0.5-4", "small-disk.tmpfs@0.6-2", "small-disk.tmpfs@2.2-4"]
    findings = run(options, tmp_path / "run", given(texts, options.rng("given")))
    assert checkers.composed(findings) == checkers.TRUE, told(findings)
    happened = history.read(tmp_path / "run")
    rolls, *disks = sorted(happened.faults, key=lambda each: each.fault.number)
    assert rolls.rows == ("ST-2",) and rolls.evidence["rolled"] >= 10
    if any("nothing may be mounted" not in str(each.evidence.get("why")) for each in disks):
        assert any(each.rows == ("ST-1",) for each in disks), disks
        assert "STORAGE_FULL" in next(each for each in disks if each.rows).evidence["says"][0]
    assert not [result for result in happened.results if "error" in result], "the other host has room"
    assert not [line for line in Path("/proc/mounts").read_text().splitlines() if str(tmp_path) in line]


class Greedy(Bank):
    """A bank that loses one record of those that it is asked for."""

    name = "greedy"

    def run(self, sc: object, params: Params, directory: Path) -> object:
        observed = super().run(sc, params, directory)
        observed["balances"].pop()
        return observed


class Denied(Nemesis):
    """Kills an executor and denies it."""

    name = "denied"
    kinds = (Kind("kill", ("EX-1",)),)

    def invoke(self, fault, cluster, rng):
        victim = cluster.executors()[0]
        cluster.signal(victim, 9)
        return self.made(fault, True, "EX-1")


def test_a_loss_that_no_fault_admits_to_is_false(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(NEMESES, "denied", Denied)
    options = Options(1, "bank", (), "local-cluster[2,1,512]", 1.5)
    findings = run(options, tmp_path / "run", [Fault(0, "denied", "kill", 0.8, 0.8, 1)])
    verdicts = {each.checker: each.verdict for each in findings}
    assert verdicts["losses"] == checkers.FALSE, told(findings)
    assert verdicts["answer"] == checkers.TRUE, told(findings)
    assert checkers.composed(findings) == checkers.FALSE


def test_a_record_that_is_missing_shows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(WORKLOADS, "greedy", Greedy())
    from spark_ft import SparkConf, SparkContext

    greedy = WORKLOADS["greedy"]
    params = greedy.params(Options(1, "greedy", (), "local[1]", 1.0).rng("x"), 0.1)
    with SparkContext(conf=SparkConf(loadDefaults=False).setMaster("local[1]").setAppName("x")) as sc:
        assert greedy.check(params, greedy.run(sc, params, Path("/nowhere")))


PROGRAM = """
import sys, time
from operator import add
from spark_ft import SparkContext

def slow(records):
    time.sleep(0.3)
    return records

with SparkContext(appName="mine") as sc:
    for _ in range(3):
        sums = sc.parallelize(range(500), 6).mapPartitions(slow).map(lambda x: (x % 7, x)).reduceByKey(add)
        print(sorted(sums.collect()), sys.argv[1])
"""


def test_a_program_of_ones_own_prints_the_same_under_faults(tmp_path: Path):
    (tmp_path / "job.py").write_text(PROGRAM)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    ran = chaos(
        "run", "--program", f"{tmp_path / 'job.py'} words", "--nemesis", "kill-executor", "--every", "0.6",
        "--seed", "3", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    happened = history.read(tmp_path / "run")
    (result,) = happened.results
    assert result["printed"] == result["expected"] and len(result["printed"]) == 3
    assert sum(bool(each.took_effect) for each in happened.faults) >= 1
    assert "<svg" in (tmp_path / "run" / "report.html").read_text()
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before


def test_the_command_line_lists_and_refuses(tmp_path: Path):
    listed = chaos("list").stdout
    assert all(name in listed for name in [*WORKLOADS, *NEMESES])
    refused = chaos("run", "--workload", "nothing")
    assert refused.returncode != 0 and "wordcount" in refused.stderr


def test_a_history_can_be_judged_again(tmp_path: Path):
    options = Options(2, "broadcast", ("kill-executor",), "local[2]", 1.0, 0.5)
    run(options, tmp_path / "run")
    judged = chaos("replay", "--judge", str(tmp_path / "run"))
    assert "answer" in judged.stdout, judged.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / history.NAME).read_text().splitlines()]
    assert {"options", "up", "event", "result", "end", "left"} <= {record["record"] for record in records}
