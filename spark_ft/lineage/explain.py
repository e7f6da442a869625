"""A fingerprint told to people: which node, which function, which variable, hashed how or why not.

    (2) Shuffled[3]  5b0c93e1
      class spark_ft.lineage.wide.Shuffled, of spark_ft  ...
    |  (4) Elementwise[1]  differs each time
         function: function <lambda> at line 3, by its code  differs each time
           variable lock: _thread.lock  differs each time: it cannot be taken apart (...)

Two of these, of two runs, compared line by line say where the runs part.
"""

from __future__ import annotations

import builtins
from typing import Any

from spark_ft.lineage.canonical import ATOMS, Canon, Part
from spark_ft.lineage.dependency import ShuffleDependency
from spark_ft.lineage.fingerprint import Fingerprints, expand_all
from spark_ft.lineage.node import Node

_DIGITS = 8
_CHILDREN_MAX = 50
_OBVIOUS = frozenset({"class", "made by", "metaclass"})  # told only where they are the reason


def explain(target: Node, fingerprints: Fingerprints) -> str:
    """The lineage of ``target``, one node and one part a line, each shown once.  Raises JobError when an
    input is missing."""
    canon = Canon(expand_all, remember=True)
    canon.digest(target)
    assert canon.parts is not None
    found = fingerprints.node(target)
    lines = [
        "Safe: another run of this program finds its data." if not found.unsafe else
        "Differs in every run, so nothing made from it is used again:",
        *(f"  {reason}" for reason in found.unsafe),
    ]  # fmt: skip
    shown: set[int] = set()
    stack: list[tuple[int, int, str, Any]] = [(0, 0, "", target)]  # shuffles above, depth below, name, object
    while stack:
        level, depth, name, value = stack.pop()
        part = canon.parts.get(id(value))
        again = id(value) in shown
        line = _line(canon, part, name, value, again)
        lines.append(f"{' |  ' * level}{'  ' * depth}{line}")
        if part is None or again:
            continue
        shown.add(id(value))
        below = _children(canon, part)
        if isinstance(value, (Node, ShuffleDependency)):
            parents = [each for each in below if isinstance(each[1], (Node, ShuffleDependency))]
            below = [each for each in below if not isinstance(each[1], (Node, ShuffleDependency))]
            wide = isinstance(value, ShuffleDependency)
            stack += [(level + wide, 0, "", each) for _, each in reversed(parents)]
        stack += [(level, depth + 1, inner, each) for inner, each in reversed(below)]
    return "\n".join(lines)


def _line(canon: Canon, part: Part | None, name: str, value: Any, again: bool) -> str:
    head = f"{name}: " if name else ""
    if part is None:
        text = repr(value)
        return f"{head}{text if len(text) <= 60 else text[:57] + '...'}"
    if again:
        return f"{head}{part.how}  (as above)"
    if part.unsafe:
        return f"{head}{part.how}  differs each time: {part.unsafe}"
    state = "differs each time" if canon.reasons(value) else canon.digest(value).hex()[:_DIGITS]
    return f"{head}{part.how}  {state}"


def _children(canon: Canon, part: Part) -> list[tuple[str, Any]]:
    """Of named parts all that says something; of the items of a collection those that are the reason."""
    if part.names:
        pairs = zip(part.names, part.children, strict=True)
        shown = ((n, v) for n, v in pairs if v is not None and v is not False and not _is_builtin(v))
        return [(n, v) for n, v in shown if n not in _OBVIOUS or canon.reasons(v) or _is_users(canon, v)]
    items = [(f"[{i}]", v) for i, v in enumerate(part.children) if type(v) not in ATOMS and canon.reasons(v)]
    return items[:_CHILDREN_MAX]


def _is_builtin(value: Any) -> bool:
    return getattr(value, "__module__", None) == "builtins" and vars(builtins).get(value.__name__) is value


def _is_users(canon: Canon, value: Any) -> bool:
    """A class that is told by its parts rather than by its name."""
    assert canon.parts is not None
    known = canon.parts.get(id(value))
    return known is not None and bool(known.children) and isinstance(value, type)
