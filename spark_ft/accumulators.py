"""Accumulators: written to by tasks, read by the driver.

    driver: Accumulator --pickle--> (id, zero, param) --task--> _TaskAccumulator
    task:   begin_task(); user code adds; take_updates() -> ((id, pickled), ...) -> TaskEnd
    driver: merge(updates): one addInPlace per update

* An update reaches the driver once per successful task; the scheduler decides which ends count.
* A task's object lives as long as the functions that refer to it.  It belongs to the thread that
  unpickled it, so a slot's thread must load the functions that it runs.
* A user's ``addInPlace`` that raises in ``merge`` costs its own accumulator that one update,
  no other accumulator anything, and never the driver's thread (DR-12).
"""

from __future__ import annotations

import copy
import itertools
import logging
import threading
import weakref
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from spark_ft import closures
from spark_ft.errors import PySparkRuntimeError

__all__ = ["Accumulator", "AccumulatorParam"]

T = TypeVar("T")
U = TypeVar("U", int, float, complex)

_log = logging.getLogger("spark_ft.accumulators")
_ids = itertools.count()  # never used again within a process, whatever context asks
_on_driver: weakref.WeakValueDictionary[int, Accumulator[Any]] = weakref.WeakValueDictionary()


class _InTask(threading.local):
    """What one slot's thread knows of the accumulators of the functions it has loaded."""

    def __init__(self) -> None:
        self.known: weakref.WeakValueDictionary[int, _TaskAccumulator[Any]] = weakref.WeakValueDictionary()
        self.held: list[_TaskAccumulator[Any]] = []  # unpickled by the running task: kept until it ends
        self.running = False


_in_task = _InTask()


class AccumulatorParam(Generic[T]):
    """How values of one type are added up.  No abstract class, as it is none in PySpark: a program's own may
    lack a method that it never comes to."""

    def zero(self, value: T) -> T:
        """A neutral value like ``value``, e.g. a zero vector of the same length."""
        raise NotImplementedError

    def addInPlace(self, value1: T, value2: T) -> T:
        """The sum; may be ``value1``, changed."""
        raise NotImplementedError


class AddingAccumulatorParam(AccumulatorParam[U]):
    """Adds by ``+=``, from a given zero."""

    def __init__(self, zero_value: U) -> None:
        self.zero_value: U = zero_value

    def zero(self, value: U) -> U:
        return self.zero_value

    def addInPlace(self, value1: U, value2: U) -> U:
        value1 += value2
        return value1


INT_ACCUMULATOR_PARAM: AddingAccumulatorParam[int] = AddingAccumulatorParam(0)
FLOAT_ACCUMULATOR_PARAM: AddingAccumulatorParam[float] = AddingAccumulatorParam(0.0)
COMPLEX_ACCUMULATOR_PARAM: AddingAccumulatorParam[complex] = AddingAccumulatorParam(0j)


def default_param(value: object) -> AccumulatorParam[Any]:
    """The param for a plain number; TypeError for anything else."""
    if isinstance(value, int):
        return INT_ACCUMULATOR_PARAM
    if isinstance(value, float):
        return FLOAT_ACCUMULATOR_PARAM
    if isinstance(value, complex):
        return COMPLEX_ACCUMULATOR_PARAM
    raise TypeError(f"No default accumulator param for type {type(value)}")


class Accumulator(Generic[T]):
    """A shared variable that tasks can only add to, and only the driver can read.

    Made by ``SparkContext.accumulator``.
    """

    def __init__(
        self, aid: int, value: T, accum_param: AccumulatorParam[T], declared: int | None = None
    ) -> None:
        self.aid = aid
        self.accum_param = accum_param
        self._declared = aid if declared is None else declared  # which of its context's it is
        self._value = value
        self._lock = threading.Lock()  # a program's add against the driver's merge

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.aid, self.accum_param.zero(self._value), self.accum_param)

    def __fingerprint__(self) -> object:
        """What tasks get of it, under a number that is the same in every run."""
        return self._declared, self.accum_param.zero(self._value), self.accum_param

    @property
    def value(self) -> T:
        """The sum so far; readable on the driver only."""
        return self._value

    @value.setter
    def value(self, value: T) -> None:
        self._value = value

    def add(self, term: T) -> None:
        """Add a term to the sum."""
        if (mine := type(self).add) is not Accumulator.add:
            return mine(self, term)  # a bound method travels with this function: foreach(counter.add)
        with self._lock:
            self._value = self.accum_param.addInPlace(self._value, term)

    def __iadd__(self, term: T) -> Accumulator[T]:
        self.add(term)
        return self

    def __str__(self) -> str:
        return str(self._value)

    def __repr__(self) -> str:
        return f"Accumulator<id={self.aid}, value={self._value}>"


class _TaskAccumulator(Accumulator[T]):
    """The write-only end of an accumulator, in a task; ``_touched`` once the task has added to it."""

    def __init__(self, aid: int, zero: T, accum_param: AccumulatorParam[T]) -> None:
        self.aid = aid
        self.accum_param = accum_param
        self._zero = zero
        self.reset()

    def reset(self) -> None:
        """Forget what was added."""
        self._value = copy.deepcopy(self._zero)
        self._touched = False

    def taken(self) -> bool:
        """Is there anything to tell the driver?"""
        return self._touched

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.aid, self._zero, self.accum_param)

    @property
    def value(self) -> T:
        raise _not_accessible(self.aid)

    @value.setter
    def value(self, value: T) -> None:
        raise _not_accessible(self.aid)

    def add(self, term: T) -> None:
        self._touched = True
        self._value = self.accum_param.addInPlace(self._value, term)

    def __iadd__(self, term: T) -> Accumulator[T]:
        self.add(term)
        return self


class _TaskNumber(_TaskAccumulator[Any]):
    """The same for plain numbers: one addition and nothing else, since programs count records by it."""

    def taken(self) -> bool:
        return self._value is not self._zero

    def reset(self) -> None:
        self._value = self._zero

    def add(self, term: Any) -> None:
        self._value += term

    def __iadd__(self, term: Any) -> Accumulator[Any]:
        self._value += term
        return self


def _not_accessible(aid: int) -> PySparkRuntimeError:
    return PySparkRuntimeError(
        errorClass="VALUE_NOT_ACCESSIBLE", messageParameters={"value": f"Accumulator<id={aid}>.value"}
    )


def _unpickle(aid: int, zero: Any, accum_param: AccumulatorParam[Any]) -> Accumulator[Any]:
    """The one object for this id: the driver's own on the driver, else this thread's."""
    here = _on_driver.get(aid)
    if here is not None and not _in_task.running:
        return here
    mine = _in_task.known.get(aid)
    if mine is None:
        kind = _TaskNumber if type(accum_param) is AddingAccumulatorParam else _TaskAccumulator
        mine = kind(aid, zero, accum_param)
        _in_task.known[aid] = mine
    _in_task.held.append(mine)
    return mine


# --- Task side ------------------------------------------------------------------------------


def begin_task() -> None:
    """Called by a slot before a task: whatever an earlier, failed one has added is forgotten."""
    state = _in_task
    state.running = True
    state.held.clear()
    for accumulator in list(state.known.values()):
        accumulator.reset()


def take_updates() -> tuple[tuple[int, bytes], ...]:
    """What the task has added, by ascending id, as (id, pickled sum); ends the task's span.

    Raises whatever pickling a user's value raises: the task has failed then.
    """
    state = _in_task
    state.running = False
    try:
        return tuple(
            (aid, closures.dumps(accumulator._value))
            for aid, accumulator in sorted(state.known.items())
            if accumulator.taken()
        )
    finally:
        state.held.clear()


# --- Driver side ----------------------------------------------------------------------------


def new_accumulator(
    value: T, accum_param: AccumulatorParam[T] | None = None, declared: int | None = None
) -> Accumulator[T]:
    """A registered accumulator, the ``declared``th of its context (below 0: none of the program's).
    TypeError when the type has no param of its own."""
    param = default_param(value) if accum_param is None else accum_param
    accumulator = Accumulator(next(_ids), value, param, declared)
    _on_driver[accumulator.aid] = accumulator
    return accumulator


def merge(updates: Iterable[tuple[int, bytes]]) -> list[tuple[int, Exception]]:
    """Add updates of one task; answers those that failed, which are logged too.

    An update for an accumulator that the program has dropped is nobody's, and ignored.
    """
    failed: list[tuple[int, Exception]] = []
    for aid, payload in updates:
        accumulator = _on_driver.get(aid)
        if accumulator is None:
            continue
        try:
            accumulator.add(closures.loads(payload))
        except Exception as error:  # user's addInPlace or unpickling: it may raise anything, we go on
            _log.error("accumulator=%d merge failed", aid, exc_info=error)
            failed.append((aid, error))
    return failed
