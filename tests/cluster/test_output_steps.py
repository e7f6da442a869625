"""A driver that saves is killed between any two of its steps: readers see all or nothing, and who comes
next gets on with it.  The driver is a process of its own with the real commit; its tasks run in it.
"""

import ast
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from spark_ft import failpoints
from spark_ft.errors import JobError
from spark_ft.filesystems import at
from spark_ft.ids import NodeId
from spark_ft.lineage import sources
from spark_ft.rdd.saving import write_text
from spark_ft.storage.outputs import save
from spark_ft.taskcontext import TaskContext
from tests.cluster import faultlib

PARTS = 3
POLL_S = 0.01
ROWS = [f"{part}.{row}" for part in range(PARTS) for row in range(4)]
pytestmark = pytest.mark.usefixtures("object_store")  # before it is counted what a test leaves behind
STEPS = [
    "save.begun", "save.before_manifest", "save.after_manifest", "save.part", "save.before_success",
    "save.before_publish", "save.after_publish",
]  # fmt: skip
DECIDED = STEPS[2:]  # what has happened counts from there on
TORN = JobError  # what a reader is told who sees nothing


@dataclass
class Place:
    """A target, and the directory that holds it and what is beside it."""

    target: str
    around: str

    def left(self) -> list[str]:
        """Every name around the target, but for itself."""
        files, path = at(self.around)
        return [name for name in files.names(path) if name != "out"]


@pytest.fixture(params=["local", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place(str(tmp_path / "out"), str(tmp_path))
    return in_store(request)


_buckets = itertools.count()


def in_store(request: pytest.FixtureRequest) -> Place:
    import s3fs

    bucket = f"steps-{next(_buckets)}"
    s3fs.S3FileSystem().mkdir(bucket)
    return Place(f"s3://{bucket}/out", f"s3://{bucket}")


def visible(target: str) -> list[str] | None:
    """The rows that a program reads there; None when it is told that there is nothing."""
    try:
        node = sources.TextFile(NodeId(1), target, 1)
        count = node.partition_count
    except TORN as error:
        assert error.getCondition() in ("INPUT_NOT_FOUND", "INPUT_INCOMPLETE")
        return None
    return [line for part in range(count) for line in node.compute(part, (), None)]  # type: ignore[arg-type]


def tasks(count_in: str) -> Callable[..., list[tuple[str, int, str]]]:
    """Runs the job in this process; leaves a file for each task that it starts."""

    def run(function: Callable[..., tuple[str, int, str]]) -> list[tuple[str, int, str]]:
        answers = []
        for part in range(PARTS):
            Path(count_in, f"{os.getpid()}-{part}").touch()
            TaskContext._set(TaskContext(0, part, 0, part))
            answers.append(function(part, (row for row in ROWS if row.startswith(f"{part}."))))
            TaskContext._set(None)
        return answers

    return run


def killed_at(step: str, place: Place, job: str, count_in: Path) -> None:
    """Save in a process of its own, which is killed at a step; nothing but a whole output shows meanwhile."""
    pid = os.fork()
    if pid == 0:
        try:
            failpoints.arm(f"{step}=kill@1")
            save(place.target, tasks(str(count_in)), write_text, job=job)
        finally:
            os._exit(70)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        assert visible(place.target) in (None, ROWS), step
        time.sleep(POLL_S)
    assert os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL, step
    assert (visible(place.target) == ROWS) == (step == "save.after_publish"), step


def save_watched(place: Place, job: str, count_in: Path) -> str:
    """Save, while another thread reads what is there; the condition of the error, if there was one."""
    seen: list[list[str] | None] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_S):
            seen.append(visible(place.target))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        save(place.target, tasks(str(count_in)), write_text, job=job)
    except JobError as error:
        return error.getCondition() or ""
    finally:
        ended.set()
        watcher.join()
        assert all(rows in (None, ROWS) for rows in seen)
    return ""


def assert_whole(place: Place) -> None:
    assert visible(place.target) == ROWS
    assert place.left() == []
    assert names(place) == ["_SUCCESS", *(f"part-{i:05d}" for i in range(PARTS))]


def places(home: Place, tmp_path: Path, count: int) -> Iterator[tuple[int, Place, Path]]:
    """Targets with nothing beside them, each with a directory to count the tasks in."""
    for number in range(count):
        around = f"{home.around}/at-{number}"
        folder = tmp_path / f"tasks-{number}"
        folder.mkdir()
        yield number, Place(f"{around}/out", around), folder


def steps_of(place: Place) -> list[str]:
    """A store's directory is published by ``_SUCCESS``, not by a rename."""
    return [step for step in STEPS if place.target.startswith("/") or step != "save.before_publish"]


def test_OUT_3_a_driver_killed_at_any_step_is_resumed_to_one_whole_output(place, tmp_path):
    steps = steps_of(place)
    for number, here, count in places(place, tmp_path, len(steps)):
        step = steps[number]
        killed_at(step, here, "one", count)
        first = len(os.listdir(count))
        assert save_watched(here, "one", count) == "", step
        again = len(os.listdir(count)) - first
        assert again == (0 if step in DECIDED else PARTS), f"{again} tasks were started again after {step}"
        assert_whole(here)
        assert save_watched(here, "another", count) == "TARGET_EXISTS"  # OUT-5
        assert_whole(here)


def names(place: Place) -> list[str]:
    files, path = at(place.target)
    return files.names(path)


def test_OUT_3_without_an_application_id_the_next_who_saves_there_finds_it_free_or_whole(place, tmp_path):
    stored = place.target.startswith("s3:")
    steps = ["save.before_manifest", "save.part"] if stored else steps_of(place)
    for number, here, count in places(place, tmp_path, len(steps)):
        step = steps[number]
        killed_at(step, here, "", count)
        whole = step == "save.after_publish" or (step in DECIDED and stored)
        assert save_watched(here, "", count) == ("TARGET_EXISTS" if whole else ""), step
        assert_whole(here)


def test_OUT_2_a_driver_that_stood_still_while_another_published_publishes_nothing(place, tmp_path):
    """The same action in two lives of its driver: the older stops at a step, the younger ends it."""
    steps = ["save.before_manifest", "save.after_manifest", "save.part"]
    for number, here, count in places(place, tmp_path, len(steps)):
        older = os.fork()
        if older == 0:
            status = 70
            try:
                failpoints.arm(f"{steps[number]}=pause@1")
                save(here.target, tasks(str(count)), write_text, job="one")
                status = 0
            finally:
                os._exit(status)
        assert os.WIFSTOPPED(os.waitpid(older, os.WUNTRACED)[1])
        assert save_watched(here, "one", count) == ""
        files, path = at(here.target)
        published = files.read(f"{path}/_SUCCESS")
        os.kill(older, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(older, 0)[1]) == 0, steps[number]
        assert files.read(f"{path}/_SUCCESS") == published
        assert_whole(here)


def test_OUT_2_of_two_lives_that_decide_the_first_decision_stands(place, tmp_path):
    """Both have run the job, with other rows; the one that decided stands still, the other goes on."""
    ((_, here, _),) = places(place, tmp_path, 1)

    def life(name: str, step: str) -> int:
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                failpoints.arm(f"{step}=pause@1")
                save(here.target, lambda function: [function(0, iter([name])), function(1, iter([name]))],
                     write_text, job="one")  # fmt: skip
                status = 0
            finally:
                os._exit(status)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        return pid

    late = life("late", "save.before_manifest")
    first = life("first", "save.after_manifest")
    ends = []
    for pid in (late, first):
        os.kill(pid, signal.SIGCONT)
        ends.append((os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), visible(here.target)))
    assert ends == [(0, ["first", "first"])] * 2
    assert here.left() == [] and names(here) == ["_SUCCESS", "part-00000", "part-00001"]


def test_OUT_6_what_a_zombie_writes_after_the_end_shows_nowhere(place, tmp_path):
    kept = []

    def run(function):
        kept.append(function)
        return tasks(str(tmp_path))(function)

    place = Place(f"{place.around}/at/out", f"{place.around}/at")
    save(place.target, run, write_text)
    try:
        kept[0](0, iter(["zombie"]))
    except FileNotFoundError:
        assert not place.target.startswith("s3:")
    assert visible(place.target) == ROWS and place.left() == []
    assert set(names(place)) - {"_temporary"} == {"_SUCCESS", *(f"part-{i:05d}" for i in range(PARTS))}


def test_OUT_5_what_is_there_is_refused_before_any_task(place, tmp_path):
    place = Place(f"{place.around}/at/out", f"{place.around}/at")
    files, path = at(place.target)
    if not place.target.startswith("s3:"):
        os.makedirs(path)
    files.write(f"{path}/part-00000", b"of somebody else\n")
    with pytest.raises(JobError, match="FileAlreadyExists"):
        save(place.target, tasks(str(tmp_path)), write_text)
    assert not list(tmp_path.glob("*-[0-9]")) and names(place) == ["part-00000"]


def test_OUT_2_OUT_4_an_attempt_dies_with_its_file_written_and_every_answer_comes_twice(
    start, place, tmp_path
) -> None:
    once = tmp_path / "killed"
    points = f"save.written=kill!{once},link.send.TaskUpdates=duplicate%1.0"
    running = start("local-cluster[2,1,512]", spark_ft_failpoints=points)
    place = Place(f"{place.around}/at/out", f"{place.around}/at")
    numbers = running.sc.parallelize(range(40), 8)
    numbers.map(lambda x: (x % 4, x)).groupByKey(4).flatMapValues(list).saveAsTextFile(place.target)
    assert once.exists() and running.log.wait_for("executor_lost")
    assert running.sc._driver._host.dropped["repeated"] >= 4, "hardly a message came twice"
    lines = running.sc.textFile(place.target).collect()
    assert sorted(map(ast.literal_eval, lines)) == sorted((x % 4, x) for x in range(40))
    assert place.left() == [] and names(place) == ["_SUCCESS", *(f"part-{i:05d}" for i in range(4))]
    faultlib.assert_r1(running.events())
    assert sum(faultlib.redone(running.events()).values()) == 1
