"""Listeners: told in order, each in a thread of its own; those that raise or block harm nobody."""

import logging
import threading

import pytest

from spark_ft import listener as listeners
from spark_ft.errors import SettingsError
from spark_ft.listener import ListenerBus, SparkListener, load_listeners


class Recorder(SparkListener):
    """Keeps every event with the callback it came by."""

    def __init__(self):
        self.seen = []
        for name in listeners._CALLBACKS:
            setattr(self, name, lambda event, name=name: self.seen.append((name, event)))

    @property
    def names(self):
        return [name for name, _ in self.seen]


class Gate(SparkListener):
    """Blocks in its first callback until it is opened."""

    def __init__(self):
        self.entered, self.open, self.seen = threading.Event(), threading.Event(), []

    def onOtherEvent(self, event):
        self.entered.set()
        self.open.wait(10)
        self.seen.append(event.kind)


@pytest.fixture
def bus():
    bus = ListenerBus(capacity=100)
    yield bus
    bus.stop(5.0)


TASK = {"task": 3, "stage": 1, "partition": 2, "attempt": 0, "executor": "e"}


def test_events_come_as_sparks_with_what_the_notes_say(bus):
    heard = Recorder()
    bus.add(heard)
    bus.note("application_start", {"app": "a", "name": "n"})
    bus.note("executor_added", {"executor": "e", "host": "h", "pid": 7, "slots": 1})
    bus.note("job_start", {"job": 0, "name": "j", "group": "g", "tags": ["t"], "stages": [1]})
    stage = {"stage": 1, "attempt": 0}
    bus.note("stage_start", stage | {"name": "s", "tasks": 4, "parents": [0], "kind": "map"})
    more = {"stage_attempt": 0, "host": "h", "speculative": False, "kind": "map"}
    bus.note("task_start", TASK | more)
    bus.note("task_end", TASK | {"reason": "UserError", "text": "boom", "run_s": 0.5})
    bus.note("stage_end", stage | {"ok": True})
    bus.note("job_end", {"job": 0, "ok": False, "condition": "TASK_FAILED"})
    bus.note("executor_lost", {"executor": "e", "why": "SIGKILL"})
    bus.note("cached", {"node": 5, "partition": 1, "executor": "e", "size_bytes": 10, "disk": False})
    bus.note("rollback", {"shuffle": 1})
    bus.note("application_end", {"app": "a"})
    bus.stop(5.0)
    assert heard.names == [
        "onApplicationStart", "onExecutorAdded", "onJobStart", "onStageSubmitted", "onTaskStart",
        "onTaskEnd", "onStageCompleted", "onJobEnd", "onExecutorRemoved", "onBlockUpdated",
        "onOtherEvent", "onApplicationEnd",
    ]  # fmt: skip
    events = dict(heard.seen)
    assert events["onExecutorAdded"].executorInfo.pid == 7
    assert events["onJobStart"].stageIds == [1] and events["onJobStart"].jobTags == ["t"]
    end = events["onTaskEnd"]
    assert (end.stageId, end.taskType) == (1, "ShuffleMapTask")
    assert (end.reason, end.errorMessage) == ("UserError", "boom")
    assert (end.taskInfo.index, end.taskInfo.host) == (2, "h") and end.taskInfo.launchTime > 0
    info = events["onStageCompleted"].stageInfo
    assert info.numTasks == 4 and info.completionTime >= info.submissionTime
    assert events["onJobEnd"].jobResult == "TASK_FAILED"
    assert events["onBlockUpdated"].blockId == "rdd_5_1" and events["onBlockUpdated"].inMemory
    assert events["onOtherEvent"].kind == "rollback" and events["onOtherEvent"].fields == {"shuffle": 1}


def test_the_end_of_an_attempt_that_never_began_is_not_told(bus):
    heard = Recorder()
    bus.add(heard)
    bus.note("task_end", TASK | {"reason": "Killed", "run_s": 0.0})
    bus.stop(5.0)
    assert heard.names == []


def test_events_come_in_order(bus):
    heard = Recorder()
    bus.add(heard)
    for number in range(90):
        bus.note("x", {"number": number})
    bus.stop(5.0)
    assert [event.fields["number"] for _, event in heard.seen] == list(range(90))


def test_DR_12_a_listener_that_raises_is_told_the_next_event_and_it_is_said(bus, caplog):
    class Bad(SparkListener):
        count = 0

        def onOtherEvent(self, event):
            self.count += 1
            raise (ValueError("boom") if self.count < 3 else SystemExit(1))

    bad, good = Bad(), Recorder()
    bus.add(bad)
    bus.add(good)
    with caplog.at_level(logging.WARNING, "spark_ft"):
        for _ in range(4):
            bus.note("x", {})
        bus.stop(5.0)
    assert bad.count == 4 and len(good.seen) == 4
    assert "boom" in caplog.text and "4 callback(s) raised" in caplog.text


def test_DR_12_a_listener_that_blocks_keeps_nobody_waiting_and_what_it_misses_is_said(caplog):
    bus = ListenerBus(capacity=10)
    stuck, good = Gate(), Recorder()
    bus.add(stuck)
    bus.add(good)
    with caplog.at_level(logging.WARNING, "spark_ft"):
        bus.note("first", {})
        assert stuck.entered.wait(5)
        for number in range(15):
            bus.note("x", {"number": number})
            deadline = threading.Event()
            while len(good.seen) < number + 2 and not deadline.wait(0.001):
                pass
        bus.stop(0.05)
    assert len(good.seen) == 16, "the other one missed nothing"
    assert "lags behind" in caplog.text and "5 event(s) dropped" in caplog.text
    assert "is in onOtherEvent and ends with 10 event(s) not told" in caplog.text
    stuck.open.set()


def test_DR_12_a_callback_that_takes_long_is_said_once_while_it_does(bus, caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(listeners, "perf_s", lambda: now[0])
    stuck = Gate()
    bus.add(stuck)
    with caplog.at_level(logging.WARNING, "spark_ft"):
        bus.note("first", {})
        assert stuck.entered.wait(5)
        now[0] = 6.0
        for _ in range(3):
            bus.note("x", {})
        assert caplog.text.count("has been in onOtherEvent for more than 5 s") == 1
        stuck.open.set()
        bus.stop(5.0)
    assert len([r for r in caplog.records if "Gate" in r.getMessage()]) == 1


def test_stop_tells_what_is_queued_and_ends_the_threads(bus):
    slow = Gate()
    bus.add(slow)
    for _ in range(5):
        bus.note("x", {})
    slow.open.set()
    bus.stop(5.0)
    assert slow.seen == ["x"] * 5
    assert not [t for t in threading.enumerate() if t.name == "spark-ft-listener-Gate"]
    bus.note("late", {})
    bus.stop(5.0)
    assert slow.seen == ["x"] * 5


def test_a_listener_may_stop_the_bus_from_its_own_callback(bus):
    done = threading.Event()

    class Stopper(SparkListener):
        def onOtherEvent(self, event):
            bus.stop(5.0)
            done.set()

    bus.add(Stopper())
    bus.note("x", {})
    assert done.wait(2)


def test_a_listener_that_is_removed_is_told_no_more(bus):
    heard = Recorder()
    bus.add(heard)
    bus.remove(heard)
    bus.note("x", {})
    bus.stop(5.0)
    assert heard.names == []


@pytest.mark.parametrize("what", [object(), 1, "x", SparkListener])
def test_what_is_no_listener_is_refused(bus, what):
    with pytest.raises(TypeError, match="is no listener"):
        bus.add(what)


# --- spark.extraListeners ---------------------------------------------------------------------------------


class Plain(SparkListener):
    pass


class WithConf(SparkListener):
    def __init__(self, conf):
        self.conf = conf


class Broken(SparkListener):
    def __init__(self):
        raise RuntimeError("no such luck")


def test_listeners_are_made_by_name_with_the_conf_where_they_take_it():
    plain, with_conf = load_listeners(f"{__name__}.Plain, {__name__}.WithConf", "the conf")
    assert type(plain).__name__ == "Plain" and with_conf.conf == "the conf"
    assert load_listeners("", None) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Plain", "package.module.Class"),
        ("no_such_module.Class", "no_such_module"),
        (f"{__name__}.Nothing", "Nothing"),
        (f"{__name__}.Broken", "no such luck"),
    ],
)
def test_a_listener_that_cannot_be_made_is_named(name, said):
    with pytest.raises(SettingsError, match=r"spark\.extraListeners.*" + said):
        load_listeners(name, None)
