"""One digest for what a value is, whatever order or process it was met in.

A value is a graph: objects, each with a label and children (anatomy.py says which).  Two values get
one digest only when their graphs unfold to the same tree, and neither sharing, nor the order of a set,
nor the object at which a cycle was entered shows.  (A cycle and a copy of it that is unrolled once differ.)

    objects ── Tarjan's components, children first ──> one object: hash(label, digests of children)
                                                       a cycle: colours refined until no class splits

* Nothing recurses: a chain of a hundred thousand objects takes heap, no stack; time is linear in
  objects and references but for cycles, which take a round for each class they split into.
* What cannot be known gets a fresh random label.  It, and all that rests on it, differs from everything;
  ``reasons`` says why, with the path of names that led there.
* Digests are remembered by the address of an object, which is therefore kept alive: one ``Canon`` sees
  one moment of a program, and is dropped.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

from spark_ft.ids import drawn_fingerprint

DIGEST_BYTES = 16
DEPTH_MAX = 1_000_000  # objects inside objects: beyond it something makes new ones without end
_REFINE_MAX = 20_000_000  # references looked at for one cycle
_PLAIN_LEVELS = 8
_PLAIN_ITEMS_MAX = 1 << 20  # of one level of one chunk
_CHUNK = 4096
_MARSHAL = 2  # the last version of marshal that writes values only: no references, no interning

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented)})
_MARSHALLED = ATOMS - {type(NotImplemented)}
_NESTED = frozenset({list, tuple, dict})
_PLAIN = _MARSHALLED | _NESTED


class Part(NamedTuple):
    """One object taken apart: ``how`` for people, ``label`` for the hash, the objects it rests on.

    ``names`` of the children are part of the hash; without them the children count by position.
    """

    how: str
    label: bytes
    children: Sequence[Any] = ()
    names: Sequence[str] = ()
    ordered: bool = True
    unsafe: str = ""  # why it cannot be known
    known: bytes = b""  # its digest, where that is known from before,
    reasons: tuple[str, ...] = ()  # and why that is of no use


def digest_of(*parts: bytes | str) -> bytes:
    """Of a row of strings, each with its length and kind."""
    return blake2b(marshal.dumps(parts, _MARSHAL), digest_size=DIGEST_BYTES).digest()


def atom(value: Any) -> bytes:
    """A value of one of ATOMS, exactly."""
    if value is NotImplemented:
        return b"NotImplemented"
    return marshal.dumps(value, _MARSHAL)


def plain(value: Any) -> bytes | None:
    """The digest of a list, tuple or dict that holds nothing but atoms and the like, 8 levels deep at most;
    None for any other.  At C speed: some 50 ns an item."""
    items = value if type(value) is not dict else value.items()
    made = blake2b(digest_size=DIGEST_BYTES)
    made.update(f"{type(value).__name__} {len(value)}".encode())
    for chunk in _chunks(items):
        if not _is_plain(chunk):
            return None
        made.update(marshal.dumps(chunk, _MARSHAL))
    return made.digest()


def _chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK)):
        yield chunk


def _is_plain(level: list[Any]) -> bool:
    for _ in range(_PLAIN_LEVELS):
        kinds = set(map(type, level))
        if kinds <= _MARSHALLED:
            return True
        if not kinds <= _PLAIN:
            return False
        nested = [item for item in level if type(item) in _NESTED]
        if sum(map(len, nested)) > _PLAIN_ITEMS_MAX:
            return False
        level = []
        for item in nested:
            level.extend(item)
            if type(item) is dict:
                level.extend(item.values())
    return False


class _Open:
    """An object on the way: not all it rests on is known yet."""

    __slots__ = ("at", "index", "key", "low", "part")

    def __init__(self, key: int, part: Part, index: int) -> None:
        self.key = key
        self.part = part
        self.index = self.low = index
        self.at = 0  # the child that comes next


class Canon:
    """Digests of objects at one moment.  ``expand`` takes one object apart."""

    def __init__(self, expand: Callable[[Any], Part], remember: bool = False) -> None:
        self._expand = expand
        self.parts: dict[int, Part] | None = {} if remember else None  # by address
        self._done: dict[int, bytes] = {}
        self._alive: list[Any] = []
        self._reasons: dict[int, frozenset[str]] = {}

    def digest(self, root: Any) -> bytes:
        """16 bytes."""
        if type(root) in ATOMS:
            return digest_of(atom(root))
        if id(root) not in self._done:
            self._walk(root)
        return self._done[id(root)]

    def reasons(self, value: Any) -> tuple[str, ...]:
        """Why the digest of an object, that has one, differs from everything; empty when it does not."""
        return tuple(sorted(self._reasons.get(id(value), ())))

    def _walk(self, root: Any) -> None:
        done = self._done
        opened: dict[int, _Open] = {}
        unclosed: list[_Open] = []  # Tarjan's stack
        path: list[_Open] = []

        def enter(value: Any) -> None:
            part = self._expand(value) if len(path) < DEPTH_MAX else _TOO_DEEP
            self._alive.append(value)
            if self.parts is not None:
                self.parts[id(value)] = part
            one = _Open(id(value), part, len(opened))
            opened[one.key] = one
            unclosed.append(one)
            path.append(one)
            if part.unsafe:
                self._reasons[one.key] = frozenset((f"{_path_of(path)}: {part.unsafe}",))
            elif part.reasons:
                self._reasons[one.key] = frozenset(part.reasons)

        enter(root)
        while path:
            one = path[-1]
            children = one.part.children
            while one.at < len(children):
                child = children[one.at]
                one.at += 1
                if type(child) in ATOMS or id(child) in done:
                    continue
                known = opened.get(id(child))
                if known is None:
                    enter(child)
                    break
                one.low = min(one.low, known.index)
            else:
                path.pop()
                if path:
                    path[-1].low = min(path[-1].low, one.low)
                if one.low == one.index:
                    start = len(unclosed) - 1
                    while unclosed[start] is not one:
                        start -= 1
                    self._close(unclosed[start:])
                    del unclosed[start:]

    def _close(self, members: list[_Open]) -> None:
        """All that the members of a component rest on is known, but for one another."""
        inside = {one.key for one in members}
        if len(members) > 1 or any(id(child) in inside for child in members[0].part.children):
            self._close_cycle(members, inside)
        else:
            self._done[members[0].key] = _mixed(members[0].part, self._known)
        if self._reasons:
            keys = (key for one in members for key in (one.key, *map(id, one.part.children)))
            if reasons := frozenset().union(*(self._reasons.get(key, ()) for key in keys)):
                self._reasons.update(dict.fromkeys(inside, reasons))

    def _known(self, child: Any) -> bytes:
        return atom(child) if type(child) in ATOMS else self._done[id(child)]

    def _close_cycle(self, members: list[_Open], inside: set[int]) -> None:
        """Colours of members by their labels, then again and again by the colours of their children, until
        no class of equal ones splits.  The classes and what leads from one to another are then the same
        wherever the cycle is met; a member's digest is its class among all of them."""
        colours = dict.fromkeys(inside, b"")
        classes, looked_at = 0, 0

        def known(child: Any) -> bytes:
            if type(child) in ATOMS:
                return atom(child)
            return colours[id(child)] if id(child) in inside else self._done[id(child)]

        while True:
            found = {one.key: _mixed(one.part, known) for one in members}
            count = len(set(found.values()))
            looked_at += sum(len(one.part.children) for one in members)
            if looked_at > _REFINE_MAX:
                text = "a cyclic structure that is too large to be compared"
                self._reasons[members[0].key] = frozenset((text,))
                found = dict.fromkeys(inside, bytes(drawn_fingerprint()))
                break
            if count == classes:
                break
            colours, classes = found, count
        whole = digest_of(*sorted(set(found.values())))
        for one in members:
            self._done[one.key] = digest_of(b"cycle", found[one.key], whole)


def _mixed(part: Part, known: Callable[[Any], bytes]) -> bytes:
    if part.known:
        return part.known
    below = [known(child) for child in part.children]
    if not part.ordered:
        below.sort()
    label = bytes(drawn_fingerprint()) if part.unsafe else part.label
    whole = marshal.dumps((label, *part.names, None, *below), _MARSHAL)
    return blake2b(whole, digest_size=DIGEST_BYTES).digest()


def _path_of(path: list[_Open]) -> str:
    """The names from the last node of the lineage to the last object of ``path``."""
    names: list[str] = []
    for at in range(len(path) - 1, -1, -1):
        names.append(path[at].part.how)
        if not at or path[at].part.how.startswith("("):  # a node of a lineage, as explain prints it
            break
        above = path[at - 1].part
        if above.names:
            names.append(above.names[path[at - 1].at - 1])
    return " -> ".join(reversed(names))


_TOO_DEEP = Part("...", b"", unsafe=f"more than {DEPTH_MAX} objects inside one another")
