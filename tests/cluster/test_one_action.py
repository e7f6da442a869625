"""How many files a reader opens to follow ``rdd.reduceByKey(add).collect()`` there and back.

A traced run answers it: ``sys.settrace`` in the thread of the driver that calls, and in the thread of
the executor that runs the tasks.  Whenever the action is handed on (lowered to a node, submitted,
run as a task, written, read, merged, answered), the files of the package on the call stack are those
that it has passed through to get there.  Helpers that a passed file calls and returns from (a codec,
a clock, a record's own methods) are not on that stack: one does not read them to follow the action.
"""

import builtins
import sys
from collections.abc import Callable, Iterable
from operator import add
from types import FrameType
from typing import Any

import pytest

FILES_MAX = 16

HAND_OFFS = {
    # driver: lowered, submitted, answered
    "Shuffled.__init__",
    "Driver.submit",
    "JobHandle.result",
    # executor: a task begins, a map output is written and published, one is read, an answer leaves
    "TaskRunner.run",
    "write_map_output",
    "OutputWriter.commit",
    "ShuffleReader.pairs",
    "StoreReader.slice",
    "TaskRunner._result",
}


def tracer(seen: set[str], reached: set[str]) -> Callable[[FrameType, str, Any], None]:
    def trace(frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code.co_qualname in HAND_OFFS:
            reached.add(frame.f_code.co_qualname)
            step: FrameType | None = frame
            while step is not None:
                _, found, name = step.f_code.co_filename.rpartition("/spark_ft/")
                if found:
                    seen.add(name)
                # What lies below a slot's loop is how the process was started, once, long before.
                step = None if step.f_code.co_qualname == "Slots.serve" else step.f_back

    return trace


def install(records: Iterable[Any]) -> list[None]:
    """In the executor: trace this thread from the next task on."""
    seen: set[str] = set()
    reached: set[str] = set()
    builtins._seen_by_trace = seen, reached  # type: ignore[attr-defined]  # outlives the task that made it
    sys.settrace(tracer(seen, reached))
    return []


def fetch(records: Iterable[Any]) -> list[tuple[set[str], set[str]]]:
    sys.settrace(None)
    return [builtins._seen_by_trace]  # type: ignore[attr-defined]


@pytest.fixture
def sc(start):
    return start("local[1]").sc


def test_an_action_passes_at_most_16_files_from_the_api_to_the_executor_and_back(sc, capsys):
    pairs = sc.parallelize([("a", 1), ("b", 2), ("a", 3)], 2)
    assert sorted(pairs.reduceByKey(add, 2).collect()) == [("a", 4), ("b", 2)]  # imports are done
    one = sc.parallelize([0], 1)
    one.mapPartitions(install).count()
    seen: set[str] = set()
    reached: set[str] = set()
    sys.settrace(tracer(seen, reached))
    try:
        answer = pairs.reduceByKey(add, 2).collect()
    finally:
        sys.settrace(None)
    assert sorted(answer) == [("a", 4), ("b", 2)]
    [(in_executor, reached_there)] = one.mapPartitions(fetch).collect()
    files = seen | in_executor
    with capsys.disabled():
        print(f"\n{len(files)} files: {', '.join(sorted(files))}")
    assert reached | reached_there == HAND_OFFS, "the trace missed a step"
    assert len(files) <= FILES_MAX
