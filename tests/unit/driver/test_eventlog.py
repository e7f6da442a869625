"""The event log: bounded, rolled over, never in the job's way, and read around what is torn."""

import errno
import json
import logging
import os
import threading
from pathlib import Path

import pytest

from spark_ft.driver import eventlog, logfiles
from spark_ft.driver.eventlog import EventLog, open_event_log, own_directory
from spark_ft.driver.logfiles import LogWriter, Retention, collect
from spark_ft.errors import SettingsError
from spark_ft.history import files
from spark_ft.history.files import LogFiles, logs_in
from spark_ft.settings import Settings

PART = 4096
SMALL = Retention(part_bytes=PART, log_bytes=8 * PART)


def line(kind: str, size: int = 0, **fields: object) -> bytes:
    """A line of exactly ``size`` bytes (or as long as it is)."""
    text = json.dumps({"event": kind, "t_ms": 1, **fields}, separators=(",", ":"))
    if size:
        text = text[:-1] + ',"pad":"' + "x" * (size - len(text) - 10) + '"}'
        assert len(text) == size - 1
    return text.encode() + b"\n"


def kinds(log: LogFiles) -> list[str]:
    return [record["event"] for record in log.records()[0]]


def age(log: LogFiles, s: float) -> None:
    for path in log.all():
        if path.exists():
            at = path.stat().st_mtime - s
            os.utime(path, (at, at))


def ended_log(directory: Path, name: str, size: int = 100) -> LogFiles:
    writer = LogWriter(directory, name, Retention())
    writer.put([line("application_start", size, app=name)])
    writer.close()
    return LogFiles(writer.path)


# --- Lines ------------------------------------------------------------------------------------


def test_lines_come_in_the_order_of_writing_and_are_in_the_file_after_a_flush(tmp_path):
    log = EventLog(tmp_path, "app", Retention())
    for number in range(500):
        log.write("n", {"number": number, "set": {2, 1}, "bytes": b"\x01", "other": Path("x")})
    assert log.flush()
    found, torn = LogFiles(log.path).records()
    assert [record["number"] for record in found] == list(range(500)) and torn == 0
    assert found[0] | {"t_ms": 0} == {
        "event": "n", "t_ms": 0, "number": 0, "set": [1, 2], "bytes": "01", "other": "x"
    }  # fmt: skip
    log.close()


def test_what_was_written_before_close_is_in_the_file(tmp_path):
    log = EventLog(tmp_path, "app", Retention())
    for _ in range(1000):
        log.write("n", {})
    log.close()
    assert len(LogFiles(log.path).records()[0]) == 1000
    log.close()
    log.write("n", {})  # too late, and harmless


def test_two_threads_lose_and_tear_nothing(tmp_path):
    log = EventLog(tmp_path, "app", Retention())

    def write(name: str) -> None:
        for number in range(2000):
            log.write(name, {"number": number})

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    found, torn = LogFiles(log.path).records()
    assert torn == 0
    for name in "ab":
        assert [r["number"] for r in found if r["event"] == name] == list(range(2000))


def test_a_queue_that_is_full_costs_lines_and_says_how_many(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(LogWriter, "collect", lambda self: gate.wait())
    log = EventLog(tmp_path, "app", Retention(), capacity=10)
    for _ in range(25):
        log.write("n", {})
    gate.set()
    log.close()
    found = LogFiles(log.path).records()[0]
    assert [record["event"] for record in found] == ["n"] * 10 + ["log_gap"]
    assert found[-1]["records"] == 15


def test_a_torn_last_line_is_passed_over_and_a_line_in_the_middle_too(tmp_path):
    log = ended_log(tmp_path, "app")
    with log.path.open("ab") as out:
        out.write(b'{"event":"job_start","t_ms"\n[1,2]\n{"no":"event"}\n' + line("job_end") + b'{"event":"ta')
    assert kinds(log) == ["application_start", "job_end"]
    assert log.records()[1] == 4


def test_a_log_that_is_continued_after_a_torn_line_begins_a_new_one(tmp_path):
    log = ended_log(tmp_path, "app")
    with log.path.open("ab") as out:
        out.write(b'{"event":"ta')
    writer = LogWriter(tmp_path, "app", Retention())
    writer.put([line("application_start")])
    writer.close()
    assert kinds(log) == ["application_start"] * 2


def test_recoveries_are_lines_of_the_log(tmp_path):
    log = EventLog(tmp_path, "app", Retention())
    log.write("job_start", {"job": 0, "stages": [0]})
    log.write("stage_start", {"stage": 0, "attempt": 0})
    log.write("task_start", {"task": 0, "stage": 0, "partition": 4})
    log.write("executor_lost", {"executor": "e", "host": "h", "pid": 7, "why": "SIGKILL"})
    log.write("task_end", {"task": 0, "stage": 0, "partition": 4, "executor": "e", "reason": "ExecutorLost"})
    log.write("task_start", {"task": 1, "stage": 0, "partition": 4})
    log.write("task_end", {"task": 1, "stage": 0, "partition": 4, "executor": "f", "reason": "Success"})
    log.close()
    found = LogFiles(log.path).records()[0]
    start = next(r for r in found if r["event"] == "recovery_start")
    end = next(r for r in found if r["event"] == "recovery_end")
    assert start["cause"] == "executor_lost" and start["pid"] == 7 and start["tasks"] == [[0, 4]]
    assert end["redone"] == 1 and end["from_ms"] <= end["to_ms"]
    assert found[-1] is end


def test_a_note_that_lacks_its_fields_is_logged_all_the_same(tmp_path, caplog):
    log = EventLog(tmp_path, "app", Retention())
    log.write("task_end", {})
    log.write("n", {})
    log.close()
    assert kinds(LogFiles(log.path)) == ["task_end", "n"]


# --- Parts ------------------------------------------------------------------------------------


def test_a_part_takes_lines_up_to_exactly_its_size(tmp_path):
    writer = LogWriter(tmp_path, "app", SMALL)
    log = LogFiles(writer.path)
    writer.put([line("n", PART // 4)] * 4)
    assert log.path.stat().st_size == PART and log.parts() == []
    writer.put([line("n", 40)])
    assert [number for number, _ in log.parts()] == [1]
    assert log.part(1).stat().st_size == PART and log.path.stat().st_size == 40
    writer.put([line("n", PART - 40 + 1)])
    assert [number for number, _ in log.parts()] == [1, 2]
    assert log.part(2).stat().st_size == 40
    writer.close()


def test_a_line_that_is_longer_than_a_part_has_one_to_itself(tmp_path):
    writer = LogWriter(tmp_path, "app", SMALL)
    writer.put([line("a", 60), line("b", 2 * PART), line("c", 60)])
    assert kinds(LogFiles(writer.path)) == ["a", "b", "c"]
    assert LogFiles(writer.path).part(2).stat().st_size == 2 * PART
    writer.close()


def test_a_log_never_takes_more_than_it_may_and_keeps_what_must_outlast_it(tmp_path):
    writer = LogWriter(tmp_path, "app", SMALL)
    log = LogFiles(writer.path)
    writer.put([line("application_start", app="app")])
    for number in range(400):
        writer.put([line("recovery_end", recovery=number), line("task_start", 900, task=number)])
        assert log.size_bytes() <= SMALL.log_bytes
    writer.put([line("application_end")])
    writer.close()
    found, torn = log.records()
    assert torn == 0
    head, *rest = found
    assert head["event"] == "log_kept" and rest[0]["event"] == "application_start"
    assert rest[-1]["event"] == "application_end"
    recoveries = [record["recovery"] for record in rest if record["event"] == "recovery_end"]
    tasks = [record["task"] for record in rest if record["event"] == "task_start"]
    assert recoveries == list(range(recoveries[0], 400)), "the newest ones, each once and in order"
    assert tasks == list(range(tasks[0], 400)) and recoveries[0] < tasks[0]
    assert len(recoveries) + head["dropped"].get("recovery_end", 0) == 400
    assert len(tasks) + head["dropped"]["task_start"] == 400


def test_of_what_is_kept_recoveries_outlast_jobs_and_the_start_outlasts_all(tmp_path):
    writer = LogWriter(tmp_path, "app", SMALL)
    writer.put([line("application_start", app="app")])
    writer.put([line("recovery_end", recovery=number) for number in range(10)])
    for number in range(600):
        writer.put([line("job_start", 200, job=number)])
    found = LogFiles(writer.path).records()[0]
    assert found[1]["event"] == "application_start"
    assert [r["recovery"] for r in found if r["event"] == "recovery_end"] == list(range(10))
    assert found[0]["dropped"]["job_start"] > 0
    writer.close()


def test_nothing_is_doubled_or_lost_when_the_writer_is_killed_while_it_drops_a_part(tmp_path, monkeypatch):
    writer = LogWriter(tmp_path, "app", SMALL)
    log = LogFiles(writer.path)
    real = Path.unlink

    def killed(path: Path, missing_ok: bool = False) -> None:
        raise OSError("killed before the part was dropped")

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(OSError, match="killed"):
        for number in range(100):
            writer.put([line("job_start", 900, job=number)])
    monkeypatch.setattr(Path, "unlink", real)
    assert log.kept.exists() and log.part(1).exists(), "both hold the same lines"
    jobs = [record["job"] for record in log.records()[0] if record["event"] == "job_start"]
    assert jobs == list(range(len(jobs)))
    writer.close()


def test_a_writer_killed_in_a_roll_over_leaves_two_names_for_one_part(tmp_path):
    log = ended_log(tmp_path, "app")
    os.link(log.path, log.part(1))
    assert kinds(log) == ["application_start"]
    writer = LogWriter(tmp_path, "app", Retention())
    assert not log.part(1).exists()
    writer.close()
    assert kinds(log) == ["application_start"]


def test_without_rolling_a_log_ends_when_it_is_full(tmp_path, caplog):
    writer = LogWriter(tmp_path, "app", Retention(log_bytes=2 * PART, rolling=False))
    with caplog.at_level(logging.WARNING, "spark_ft"):
        for _ in range(10):
            writer.put([line("n", PART)])
    assert kinds(LogFiles(writer.path)) == ["n", "n", "log_full"]
    assert len([r for r in caplog.records if "is full" in r.message]) == 1
    writer.close()


# --- Disks that are full --------------------------------------------------------------------------


class FullDisk:
    """``os.write`` that has room for so many bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self.real = room, os.write
        monkeypatch.setattr(logfiles.os, "write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.real(fd, bytes(data)[: self.room])
        self.room -= written
        return written


def test_a_full_disk_costs_lines_is_said_once_and_the_gap_is_noted(tmp_path, monkeypatch, caplog):
    now = [0]
    monkeypatch.setattr(logfiles, "wall_ms", lambda: now[0])
    writer = LogWriter(tmp_path, "app", Retention())
    writer.put([line("a", 100)])
    disk = FullDisk(monkeypatch, 250)
    with caplog.at_level(logging.WARNING, "spark_ft"):
        writer.put([line("b", 100)] * 4)  # two and a half of them find room
        writer.put([line("c", 100)])
        now[0] += 6000
        writer.put([line("d", 100)])  # still full
    assert len([r for r in caplog.records if "will have gaps" in r.message]) == 1
    disk.room = 1 << 20
    writer.put([line("d", 100)])
    now[0] += 6000
    writer.put([line("e", 100)])
    writer.close()
    found, torn = LogFiles(writer.path).records()
    assert [record["event"] for record in found] == ["a", "b", "b", "log_gap", "e"]
    assert torn == 1 and found[3]["records"] == 5, "two of b, c, and d twice"


def test_a_full_disk_never_reaches_the_one_who_writes(tmp_path, monkeypatch):
    log = EventLog(tmp_path, "app", Retention())
    FullDisk(monkeypatch, 0)
    log.write("n", {})
    assert log.flush()
    log.write("n", {})
    log.close()
    assert kinds(LogFiles(log.path)) == []


def test_an_error_in_the_writers_thread_ends_the_log_and_nothing_else(tmp_path, monkeypatch, caplog):
    log = EventLog(tmp_path, "app", Retention())
    monkeypatch.setattr(log._files, "put", lambda lines: 1 / 0)
    log.write("n", {})
    assert log.flush(5.0), "nobody waits for a log that has ended"
    log.write("n", {})
    log.close()
    assert "ends here" in caplog.text


# --- Who writes it ----------------------------------------------------------------------------------


def test_a_log_is_live_while_its_writer_holds_it_also_after_it_rolled_over(tmp_path):
    writer = LogWriter(tmp_path, "app", SMALL)
    log = LogFiles(writer.path)
    assert log.is_live() and log.is_live()
    writer.put([line("n", PART), line("n", PART)])
    assert log.is_live()
    writer.close()
    assert not log.is_live()


def test_an_application_of_the_same_id_that_runs_too_gets_a_log_of_its_own(tmp_path):
    first = LogWriter(tmp_path, "app", Retention())
    second = LogWriter(tmp_path, "app", Retention())
    assert (first.path.name, second.path.name) == ("app.jsonl", "app_2.jsonl")
    first.close()
    third = LogWriter(tmp_path, "app", Retention())
    assert third.path == first.path, "one that has ended is continued"
    second.close()
    third.close()


def test_a_fork_of_the_driver_does_not_keep_the_log_locked(tmp_path):
    log = EventLog(tmp_path, "app", Retention())
    read, write = os.pipe()
    up, child_up = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(write)
        os.write(child_up, b"x")
        os.read(read, 1)  # until the parent is done with its questions
        os._exit(0)
    os.close(read)
    try:
        os.read(up, 1)
        log.write("n", {})
        log.close()
        assert not LogFiles(log.path).is_live(), "the child has let go of its copy"
        assert kinds(LogFiles(log.path)) == ["n"]
    finally:
        for fd in (write, up, child_up):
            os.close(fd)
        os.waitpid(pid, 0)


# --- Old logs ---------------------------------------------------------------------------------------


def test_ST_17_old_logs_go_by_age_number_and_total_the_oldest_first(tmp_path):
    logs = [ended_log(tmp_path, f"app-{number}", 1000) for number in range(6)]
    for number, log in enumerate(logs):
        age(log, 100 * (6 - number))
    assert collect(tmp_path, Retention(age_s=550, total_bytes=1 << 20)) == ["app-0"]
    assert collect(tmp_path, Retention(count=4)) == ["app-1"]
    assert collect(tmp_path, Retention(total_bytes=2500)) == ["app-3", "app-2"]
    assert [log.name for log in logs_in(tmp_path)] == ["app-5", "app-4"]


def test_ST_17_a_log_that_is_being_written_stays_however_old_it_is(tmp_path):
    writer = LogWriter(tmp_path, "live", SMALL)
    writer.put([line("n", PART)] * 3)
    log = LogFiles(writer.path)
    age(log, 1e6)
    assert collect(tmp_path, Retention(age_s=1, count=1, total_bytes=0)) == []
    assert len(log.records()[0]) == 3
    writer.close()
    assert collect(tmp_path, Retention(age_s=1, total_bytes=0)) == ["live"]
    assert list(tmp_path.iterdir()) == [], "all of its parts are gone"


def test_ST_17_contexts_in_a_row_look_at_all_logs_once_in_a_while(tmp_path, monkeypatch):
    collected, now_s = [], [1000.0]
    monkeypatch.setattr(logfiles, "perf_s", lambda: now_s[0])
    monkeypatch.setattr(logfiles, "collect", lambda directory, retention: collected.append(directory.name))
    for name in ("a", "a", "b", "a"):
        EventLog(tmp_path / name, "app", Retention(collects=True)).close()
    assert collected == ["a", "b"]
    now_s[0] += 61
    EventLog(tmp_path / "a", "app", Retention()).close()
    EventLog(tmp_path / "a", "app", Retention(collects=True)).close()
    assert collected == ["a", "b", "a"]


def test_ST_17_what_a_killed_collector_left_is_removed_later(tmp_path):
    log = ended_log(tmp_path, "app")
    os.link(log.path, log.part(3))
    log.kept.write_bytes(b"")
    log.path.unlink()
    collect(tmp_path, Retention())
    assert log.part(3).exists(), "its remover may still be at it"
    age(log, 100)
    collect(tmp_path, Retention())
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_left_alone(tmp_path):
    for name in ("notes.txt", "app.jsonl.bak", "app.jsonl.1x"):
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    ended_log(tmp_path, "app")
    collect(tmp_path, Retention(total_bytes=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.jsonl.1x", "app.jsonl.bak", "notes.txt"]


# --- Settings -----------------------------------------------------------------------------------------


def test_a_directory_that_was_given_is_cleaned_only_if_that_was_asked_for(tmp_path):
    old = ended_log(tmp_path, "old")
    age(old, 8 * 86400)
    for clean, stays in (("false", True), ("true", False)):
        conf = {"spark.eventLog.dir": str(tmp_path), "spark.history.fs.cleaner.enabled": clean}
        log = open_event_log(Settings.from_conf(conf), "new")
        assert log is not None
        log.flush()
        log.close()
        assert old.path.exists() is stays


def test_a_log_that_is_off_leaves_nothing(tmp_path):
    conf = {"spark.eventLog.enabled": "false", "spark.eventLog.dir": str(tmp_path / "x")}
    assert open_event_log(Settings.from_conf(conf), "app") is None
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_had_is_an_error_only_where_it_was_given(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"spark\.eventLog\.dir"):
        open_event_log(Settings.from_conf({"spark.eventLog.dir": str(tmp_path / "file")}), "app")
    monkeypatch.setattr(eventlog, "default_directory", lambda: tmp_path / "file")
    assert open_event_log(Settings(), "app") is None
    assert "there will be no event log" in caplog.text


def test_the_default_directory_is_ours_alone_or_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(eventlog, "default_directory", lambda: tmp_path / "events")
    assert own_directory().stat().st_mode & 0o777 == 0o700
    (tmp_path / "events").chmod(0o777)
    with pytest.raises(OSError, match="this user alone"):
        own_directory()
    (tmp_path / "events").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "events").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="this user alone"):
        own_directory()


def test_the_default_directory_is_not_taken_for_a_scratch_directory():
    from spark_ft.cluster.scratch import PREFIX

    assert not files.default_directory().name.startswith(PREFIX)
