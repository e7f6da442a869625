"""What a faulty network does to messages: rules, and the judge that applies them.  Pure: no clock, no I/O.

A rule names a direction (who sends, who receives), what it does there and how often.  Names are patterns
over what a process is called: its role (``executor``), its incarnation (``executor-9f…``) and its host
(``host-0``); ``executor|worker`` means either.  Rules are tried in order; the first that hits a
message decides what becomes of it.  Chance comes from a generator per rule, seeded.

    on messages      drop, delay, duplicate, reorder, corrupt, truncate
    on the stream    hold (nothing moves, nothing is lost: a cable pulled out and put in again later),
                     throttle (so many bytes a second)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

ON_MESSAGES = ("drop", "delay", "duplicate", "reorder", "corrupt", "truncate")
ON_STREAMS = ("hold", "throttle")


@dataclass(frozen=True)
class Rule:
    """``source`` and ``target`` are the sending and the receiving process, whoever dialled.
    ``messages``: only those that say one of these (zmtp.labels); empty: all.  ``nth``: only the n-th
    that matches.  ``most``: so many times at most; 0: always."""

    action: str
    source: str = "*"
    target: str = "*"
    plane: str = "*"  # control or data
    messages: tuple[str, ...] = ()
    probability: float = 1.0
    nth: int = 0
    most: int = 0
    delay_s: tuple[float, float] = (0.0, 0.0)
    window: int = 50  # of reorder
    bytes_per_s: float = 0.0  # of throttle
    seed: int = 0

    def __post_init__(self) -> None:
        if self.action not in ON_MESSAGES + ON_STREAMS:
            raise ValueError(f"a network does not know how to {self.action}")
        if self.action == "throttle" and self.bytes_per_s <= 0:
            raise ValueError("throttle needs bytes_per_s")

    def concerns(self, source: Iterable[str], target: Iterable[str], plane: str) -> bool:
        """Whether this is its direction."""
        return (
            fnmatchcase(plane, self.plane)
            and _is_one_of(source, self.source)
            and _is_one_of(target, self.target)
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Rule:
        known = {each.name for each in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in row.items() if name in known}
        for name in ("messages", "delay_s"):  # JSON has no tuples
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)


def both_ways(action: str, one: str, other: str, **how: Any) -> list[Rule]:
    """The same rule in both directions."""
    return [Rule(action, one, other, **how), Rule(action, other, one, **how)]


def _is_one_of(names: Iterable[str], pattern: str) -> bool:
    patterns = pattern.split("|")
    return any(fnmatchcase(name, each) for name in names for each in patterns)


@dataclass
class Tally:
    """What one rule has done: the evidence that a fault took effect."""

    seen: int = 0  # messages that it could have touched
    touched: int = 0
    touched_bytes: int = 0
    labels: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "labels": dict(self.labels)}


class Judge:
    """The rules in force, their generators and their tallies."""

    def __init__(self, rules: Sequence[Rule] = ()) -> None:
        self.rules = list(rules)
        self.tallies = [Tally() for _ in rules]
        self._rngs = [random.Random(f"{number}/{rule.seed}") for number, rule in enumerate(rules)]

    def stream(self, action: str, source: Sequence[str], target: Sequence[str], plane: str) -> int:
        """The number of the first rule of this action on this direction, or -1."""
        for number, rule in enumerate(self.rules):
            if rule.action == action and rule.concerns(source, target, plane):
                return number
        return -1

    def message(
        self,
        source: Sequence[str],
        target: Sequence[str],
        plane: str,
        said: Callable[[], tuple[str, ...]],
        size_bytes: int,
    ) -> int:
        """The number of the rule that hits this message, or -1.  ``said`` is asked only when needed."""
        for number, rule in enumerate(self.rules):
            if rule.action in ON_STREAMS or not rule.concerns(source, target, plane):
                continue
            if rule.messages and not set(rule.messages) & set(said()):
                continue
            tally = self.tallies[number]
            tally.seen += 1
            if rule.nth and tally.seen != rule.nth:
                continue
            if rule.most and tally.touched >= rule.most:
                continue
            if rule.probability < 1 and self._rngs[number].random() >= rule.probability:
                continue
            tally.touched += 1
            tally.touched_bytes += size_bytes
            tally.labels.update(said() or ("?",))
            return number
        return -1

    def delay_s(self, number: int) -> float:
        return self._rngs[number].uniform(*self.rules[number].delay_s)

    def shuffle(self, number: int, items: list[Any]) -> None:
        self._rngs[number].shuffle(items)

    def corrupted(self, number: int, parts: list[bytes]) -> list[bytes]:
        """The message with one bit changed (``corrupt``), or with its last part cut short (``truncate``)."""
        rng, parts = self._rngs[number], list(parts)
        if self.rules[number].action == "truncate":
            parts[-1] = parts[-1][: rng.randrange(len(parts[-1]) or 1)]
            return parts
        at = rng.randrange(sum(map(len, parts)) or 1)
        for index, part in enumerate(parts):
            if at < len(part):
                changed = bytearray(part)
                changed[at] ^= 1 << rng.randrange(8)
                parts[index] = bytes(changed)
                break
            at -= len(part)
        return parts
