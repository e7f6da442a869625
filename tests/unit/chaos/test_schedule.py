"""A seed gives the same run and the same faults every time; a history survives being written and read."""

import random
from dataclasses import asdict
from pathlib import Path

import pytest

from chaos import history as histories
from chaos import schedule
from chaos.nemesis.registry import NEMESES, kind_of, rows_within_reach
from chaos.workloads.registry import SWEPT, WORKLOADS
from tests.unit.chaos.histories import OPTIONS, fault, invocation


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    runs = [(schedule.swept(seed, 6.0), schedule.draw(schedule.swept(seed, 6.0))) for seed in range(60)]
    again = [(schedule.swept(seed, 6.0), schedule.draw(schedule.swept(seed, 6.0))) for seed in range(60)]
    assert runs == again
    assert len({tuple(map(str, faults)) for _, faults in runs}) > 50


def test_a_sweep_has_every_pair_of_workload_and_nemesis():
    count = len(SWEPT) * len(NEMESES)
    pairs = {(run.workload, run.nemeses[0]) for run in (schedule.swept(seed, 6.0) for seed in range(count))}
    assert len(pairs) == count


@pytest.mark.parametrize("seed", range(0, 300, 7))
def test_every_fault_of_a_schedule_can_be_made(seed: int):
    options = schedule.swept(seed, 6.0)
    faults = schedule.draw(options)
    assert [each.at_s for each in faults] == sorted(each.at_s for each in faults)
    for each in faults:
        kind = kind_of(each.nemesis, each.kind)
        assert options.managed or not kind.managed
        assert 0 < each.at_s < options.seconds
        assert each.at_s <= each.until_s <= options.seconds + schedule.OVER_S
        assert (each.until_s > each.at_s) == bool(kind.lasts_s[1])


def test_a_kind_comes_no_more_often_than_it_may():
    for name, cls in NEMESES.items():
        options = schedule.Options(1, "bank", (name,), "local-cluster[2,1,512]", 60.0, every_s=0.2)
        faults = schedule.draw(options)
        for kind in cls.kinds:
            count = sum(each.kind == kind.name for each in faults)
            assert not kind.most or count <= kind.most


def test_faults_that_are_given_are_read_and_bad_ones_named():
    faults = schedule.given(["pause.long@5-60", "kill-executor.one@2"], random.Random(1))
    assert [(each.kind, each.at_s, each.until_s) for each in faults] == [("one", 2, 2), ("long", 5, 60)]
    for bad in ("pause@5", "nobody.x@1", "pause.never@1", "pause.long"):
        with pytest.raises(ValueError, match="expected nemesis"):
            schedule.given([bad], random.Random(1))


def test_what_a_round_does_is_drawn_from_the_seed_and_its_number():
    for name in WORKLOADS:
        options = schedule.Options(5, name, (), "local[2]", 1.0)
        assert schedule.params(options, 3) == schedule.params(options, 3)
    options = schedule.Options(5, "bank", (), "local[2]", 1.0)
    assert schedule.params(options, 3) != schedule.params(options, 4)


def test_every_kind_names_its_rows_and_the_rows_are_in_order():
    for cls in NEMESES.values():
        assert cls.name and cls.kinds
        for kind in cls.kinds:
            assert kind.rows, f"{cls.name}.{kind.name} exercises nothing"
    assert rows_within_reach()


def test_a_history_is_read_as_it_was_written(tmp_path: Path):
    writer = histories.Writer(tmp_path)
    writer.write("options", **asdict(OPTIONS))
    writer.write("schedule", **asdict(fault()))
    writer.write("fault", **histories.record_of(invocation(took_effect=None)))
    writer.write("fault", **histories.record_of(invocation()))
    writer.write("event", event="task_start", kind="map", seen_s=1.0)
    writer.write("late", at_s=2.0, late_s=0.5)
    writer.write("end", at_s=9.0, status=0)
    writer.close()
    told = histories.read(tmp_path)
    assert told.options == OPTIONS and told.schedule == [fault()]
    assert told.faults == [invocation()]  # the later word counts
    assert told.events == [{"event": "task_start", "kind": "map", "seen_s": 1.0}]
    assert told.late_s(1.6, 3.0) == 0.5 and told.late_s(3.0, 4.0) == 0.0
    assert told.rows() == {"EX-1": 1}
