"""What a stage's functions have captured is fresh for each attempt, whatever another made of it (TK-13).

    all that they reach cannot be changed     shared by one slot's attempts, while every name is bound
                                              to what it was bound to: compared before each of them
    a list, a dict, an object … among it      unpickled again for each attempt

Two things can be changed: *values*, and *bindings*, which is what a variable, a global or an attribute
names.  Values are looked at once, when a stage is loaded, and by exact type: of what is not known to be
immutable it is assumed that it changes.  Bindings are noted then and compared by identity before each
further attempt, so that ``global``, ``nonlocal``, ``setattr`` and ``exec`` need not be found in the code.
The first that has changed ends the sharing.

What comes by reference (importable modules with their functions and classes) is one in a process whatever
is done here, and is not looked into.  A class that comes by value stays one object too, so that records of
it stay its instances; unpickling sets its attributes again.
"""

from __future__ import annotations

import functools
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

from spark_ft import closures
from spark_ft.accumulators import Accumulator
from spark_ft.broadcast import Broadcast
from spark_ft.lineage.dependency import Groups, OneToOne, Quotient, Remainder, Span
from spark_ft.lineage.node import Node
from spark_ft.storage.kept import FIXED, is_fixed
from spark_ft.storagelevel import StorageLevel

_SLOT_DESCRIPTORS = (type(FunctionType.__code__), type(FunctionType.__dict__["__globals__"]))
_METHODS = (type(str.upper), type(int.__add__), type(dict.__dict__["fromkeys"]))
_MAPPINGS = (OneToOne, Span, Groups, Quotient, Remainder)
_LEAVES = FIXED | {re.Pattern, StorageLevel, *_METHODS, *_SLOT_DESCRIPTORS, *_MAPPINGS}
_CALLERS = (operator.itemgetter, operator.attrgetter, operator.methodcaller)
_WRAPPERS = (staticmethod, classmethod)
# Objects of these modules keep nothing from one task to the next, and user code does not write to them.
_ENGINE = tuple(
    f"spark_ft.{room}" for room in ("lineage.", "rdd.", "protocol.", "storagelevel", "badrecords")
)
# What a class says of itself, which nobody writes to.
_OF_CLASSES = frozenset({
    "__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slots__", "__match_args__",
    "__abstractmethods__", "_abc_impl", "__dataclass_fields__", "__dataclass_params__",
    "__static_attributes__", "__firstlineno__",
})  # fmt: skip
_NOTHING = object()  # in an empty cell


class Fresh:
    """One stage, for the attempts of one slot.  An attempt pays a fraction of a microsecond for each
    function and variable, or for loading the stage where something can be changed."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read  # the stage's bytes
        self._payload: bytes | None = None  # held where they are needed for each attempt
        self._sources: list[Node | None] | None = None
        self._stage: closures.Stage | None = None
        self._bindings: Bindings | None = None

    def stage(self) -> closures.Stage:
        """The stage as it was sent.  Raises what reading and ``load_stage`` raise."""
        if self._stage is not None and self._bindings is not None and self._bindings.hold():
            return self._stage
        if self._payload is not None:
            return closures.load_stage(self._payload, self._sources)
        payload = self._read()
        stage = closures.load_stage(payload)
        if self._stage is None:  # the first: later ones are no better
            self._bindings = bindings(stage)
            if self._bindings is not None:
                self._stage = stage
                return stage
        self._payload, self._stage, self._bindings = payload, None, None
        self._sources = stage.sources  # thousands of slices are not unpickled for each attempt
        return stage


class Bindings:
    """What names were bound to, of everything that is shared."""

    def __init__(self) -> None:
        self.names: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
        self.cells: list[tuple[CellType, Any]] = []
        self.functions: list[tuple[FunctionType, Any, Any, Any]] = []

    def hold(self) -> bool:
        """Whether each still names the very same object."""
        return (
            all(_content(cell) is content for cell, content in self.cells)
            and all(
                f.__code__ is code and f.__defaults__ is defaults and f.__kwdefaults__ is keywords
                for f, code, defaults, keywords in self.functions
            )
            and all(
                now.keys() == then.keys() and all(map(operator.is_, now.values(), then.values()))
                for now, then in self.names
            )
        )

    def note(self, names: Mapping[str, Any]) -> Iterable[Any]:
        """Answers what they name."""
        then = dict(names)
        self.names.append((names, then))
        return then.values()


def bindings(stage: closures.Stage) -> Bindings | None:
    """All names in what the stage's functions reach; None when a value among it can be changed.
    Costs about 1 us for each object that is not plainly immutable."""
    found = Bindings()
    seen: dict[int, Any] = {id(node): node for node in stage.sources}  # holds them: no id comes twice
    todo: list[Any] = [stage.target, stage.function, stage.output]
    while todo:
        value = todo.pop()
        kind = type(value)
        if kind in _LEAVES or id(value) in seen:
            continue
        seen[id(value)] = value
        below = _below(value, kind, found, seen)
        if below is None:
            return None
        todo.extend(below)
    return found


def _below(value: Any, kind: type, found: Bindings, seen: dict[int, Any]) -> Iterable[Any] | None:
    """What this reaches; None when it can be changed itself, or might be."""
    if kind is tuple or kind is frozenset:
        return () if set(map(type, value)) <= _LEAVES else value
    if (fields := _fields(kind)) is not None:
        return [getattr(value, name, None) for name in fields] + [*getattr(value, "__dict__", {}).values()]
    if kind is FunctionType:
        return () if _by_reference(value) else _of_function(value, found, seen)
    if kind is BuiltinFunctionType:  # bound to a module, to nothing, or to an object: ``a_set.add``
        return (value.__self__,)
    if issubclass(kind, type):
        return () if _by_reference(value) else _of_class(value, found)
    if kind is ModuleType:
        return () if sys.modules.get(value.__name__) is value else None
    if kind is MethodType:
        return value.__func__, value.__self__
    if kind is functools.partial:
        return value.func, *value.args, *value.keywords.values(), *found.note(value.__dict__)
    if kind in _CALLERS:
        made, args = value.__reduce__()
        return made, *args
    if kind in _WRAPPERS:
        return (value.__func__,)
    if kind is property:
        return value.fget, value.fset, value.fdel
    if issubclass(kind, (Accumulator, Broadcast)) and kind.__module__.startswith("spark_ft."):
        return ()  # handles: each has its own rules
    numpy = sys.modules.get("numpy")
    if is_fixed(kind, numpy) and (numpy is None or kind is not numpy.ndarray):
        return ()
    return None


def _by_reference(value: Any) -> bool:
    """Whether unpickling would give this very object: then it is shared in any case."""
    if value.__module__ == "__main__":
        return False  # a stand-in for the driver's, whose classes have come by value
    there: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        there = getattr(there, name, None)
    return there is value


def _of_function(function: FunctionType, found: Bindings, seen: dict[int, Any]) -> list[Any]:
    keywords = function.__kwdefaults__
    found.functions.append((function, function.__code__, function.__defaults__, keywords))
    below: list[Any] = [function.__defaults__, *found.note(function.__dict__)]
    if keywords:
        below += found.note(keywords)
    for cell in function.__closure__ or ():
        if id(cell) not in seen:
            seen[id(cell)] = cell
            content = _content(cell)
            found.cells.append((cell, content))
            if content is not _NOTHING:
                below.append(content)
    names = function.__globals__
    if id(names) not in seen:
        seen[id(names)] = names
        found.note(names)
        below += [value for name, value in names.items() if not name.startswith("__")]
    return below


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _NOTHING


def _of_class(cls: type, found: Bindings) -> list[Any] | None:
    if type(cls).__module__ not in ("builtins", "abc"):
        return None  # its metaclass may hold anything
    found.note(cls.__dict__)
    return [*cls.__bases__, *(value for name, value in cls.__dict__.items() if name not in _OF_CLASSES)]


@functools.cache
def _fields(kind: type) -> tuple[str, ...] | None:
    """The slots of one of the engine's kinds; None for all others."""
    if not kind.__module__.startswith(_ENGINE):
        return None
    slots = [cls.__dict__.get("__slots__", ()) for cls in kind.__mro__]
    names = {name for each in slots for name in ((each,) if isinstance(each, str) else each)}
    return tuple(sorted(names - {"__weakref__", "__dict__"}))
