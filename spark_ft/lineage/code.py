"""What compiled code does, apart from where it was written.

The digest of a code object covers its instructions with the constants they load, nested code
included, its names and its arguments.  File and line numbers, docstrings and annotations are not in it,
nor is whether constants are shared: one source compiled twice, or moved, gives one digest.

``globals`` are what it reads of its module, and of modules how far: ``np.linalg.norm`` is the name
``np`` and the attributes that are asked of it one after the other.
"""

from __future__ import annotations

import dis
import inspect
from functools import lru_cache
from types import CodeType
from typing import Any, NamedTuple

from spark_ft.lineage.canonical import ATOMS, atom, digest_of

_ABSENT = frozenset({"CACHE", "EXTENDED_ARG", "NOP"})
_GLOBAL = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_ATTRIBUTE = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_CONSTANTS, _NAMES = frozenset(dis.hasconst), frozenset(dis.hasname)
_TOLD = frozenset({"__qualname__", "__doc__", "__firstlineno__"})  # of a class, to its own body
_FLAGS = (
    inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR
)  # fmt: skip

Chain = tuple[str, ...]  # a global's name and the attributes asked of it in a row


class Import(NamedTuple):
    """``from <name> import <names>`` inside a function, ``level`` dots up."""

    name: str
    names: Chain
    level: int


class Facts(NamedTuple):
    """``digest`` and what the code, nested code included, refers to beyond itself."""

    digest: bytes
    globals: tuple[Chain, ...]
    imports: tuple[Import, ...]


@lru_cache(maxsize=4096)
def facts(code: CodeType) -> Facts:
    """Some 2 us an instruction, once for each code object."""
    shown: list[bytes] = []
    used: set[Chain] = set()
    imports: set[Import] = set()
    chain: Chain = ()
    loaded: list[Any] = [None, None]  # the last two constants: an import's level and names
    for step in dis.get_instructions(code):
        name = step.opname
        if name in _ABSENT:
            continue
        if chain and name in _ATTRIBUTE:
            chain += (str(step.argval),)
        elif chain:
            used.add(chain)
            chain = ()
        if name in _GLOBAL:
            chain = (str(step.argval),)
        elif name == "IMPORT_NAME":
            names, level = loaded[1], loaded[0]
            level = level if type(level) is int else 0
            imports.add(Import(str(step.argval), names if type(names) is tuple else (), level))
        if name == "STORE_NAME" and step.argval in _TOLD and shown[-2:-1] == [b"LOAD_CONST"]:
            del shown[-2:]  # it says where the class stands, or what it is for
            continue
        shown.append(name.encode())
        if step.opcode in _CONSTANTS:
            loaded = [loaded[1], step.argval]
            shown.append(_constant(step.argval))
            if isinstance(step.argval, CodeType):
                inner = facts(step.argval)
                used.update(inner.globals)
                imports.update(inner.imports)
        elif step.opcode in _NAMES:
            shown.append(step.argrepr.encode())  # the name, and what else the instruction is to do with it
        else:
            if name == "LOAD_SMALL_INT":
                loaded = [loaded[1], step.argval]
            shown.append(b"" if step.arg is None else str(step.arg).encode())
    if chain:
        used.add(chain)
    shape = (
        code.co_name, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_argcount,
        code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS,
    )  # fmt: skip
    made = digest_of(b"code", atom(repr(shape)), code.co_exceptiontable, *shown)
    return Facts(made, tuple(sorted(used)), tuple(sorted(imports)))


def _constant(value: Any) -> bytes:
    """Constants of code: atoms, tuples and frozensets of them, slices, and code."""
    if type(value) in ATOMS:
        return atom(value)
    if isinstance(value, CodeType):
        return facts(value).digest
    if isinstance(value, tuple):
        return digest_of(b"tuple", *map(_constant, value))
    if isinstance(value, frozenset):
        return digest_of(b"frozenset", *sorted(map(_constant, value)))
    if isinstance(value, slice):
        return digest_of(b"slice", *map(_constant, (value.start, value.stop, value.step)))
    return digest_of(b"other", repr(value))
