"""Named places where a test may make a real fault happen; all of them off by default.

``hit(name)`` costs one truth test while nothing is armed.  An armed point runs its action
on the chosen hits: ``kill`` (SIGKILL to this very process), ``pause`` (SIGSTOP to this
very process), ``raise`` (``FailpointError``), ``memory`` (``MemoryError``), ``io`` (``OSError``
with EIO, as of a failing disk), ``delay`` (a fifth of a second), or, for places that pass
messages, ``drop`` and ``duplicate``, which ``hit`` answers and the caller carries out.

A description is ``name=action`` or ``name=action@N`` (only the N-th hit, counted from 1, in
this process) or ``name=action%P`` (with probability P, from a generator seeded with the
description and the process's label), several separated by commas.
A file beside it can make a point fire once in a whole cluster: ``name=kill!PATH``
acts only for the first process to create PATH; ``name=delay~PATH`` acts while PATH is
there.  ``witness=DIR`` makes every process leave a
file named after each point that has fired, so that a test can tell that its fault took effect.
"""

import errno
import os
import random
import signal
from dataclasses import dataclass


class FailpointError(RuntimeError):
    """Raised by a failpoint armed with ``raise``."""


@dataclass
class _Point:
    action: str
    nth: int = 0
    probability: float = 0.0
    once_file: str = ""
    while_file: str = ""
    hits: int = 0
    rng: random.Random | None = None


_armed: dict[str, _Point] = {}
_WITNESS = "witness"


def arm(description: str, label: str = "") -> None:
    """Replace what is armed in this process by ``description``; an empty one disarms all."""
    points = parse(description, label)
    _armed.clear()
    _armed.update(points)


def parse(description: str, label: str = "") -> dict[str, _Point]:
    """The points of a description by name.  Raises ValueError for one that cannot be read."""
    points: dict[str, _Point] = {}
    for item in filter(None, (part.strip() for part in description.split(","))):
        name, _, action = item.partition("=")
        point = _Point(action)
        if name == _WITNESS:
            points[name] = point
            continue
        if "~" in action:
            point.action, _, point.while_file = action.partition("~")
        elif "!" in action:
            point.action, _, point.once_file = action.partition("!")
        elif "@" in action:
            point.action, _, nth = action.partition("@")
            point.nth = int(nth)
        elif "%" in action:
            point.action, _, probability = action.partition("%")
            point.probability = float(probability)
            point.rng = random.Random(f"{item}|{label}")
        if point.action not in ("kill", "pause", "raise", "memory", "io", "delay", "drop", "duplicate"):
            raise ValueError(f"failpoint {name!r} has unknown action {point.action!r}")
        points[name] = point
    return points


def hit(name: str) -> str:
    """Pass the place ``name``: '' when nothing happens, else the action for the caller."""
    if not _armed:
        return ""
    point = _armed.get(name)
    if point is None:
        return ""
    if point.while_file and not os.path.exists(point.while_file):
        return ""
    point.hits += 1
    if point.nth and point.hits != point.nth:
        return ""
    if point.rng is not None and point.rng.random() >= point.probability:
        return ""
    if point.once_file:
        try:
            os.close(os.open(point.once_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return ""
    if witness := _armed.get(_WITNESS):
        with open(f"{witness.action}/{name}", "a"):
            pass
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "pause":
        os.kill(os.getpid(), signal.SIGSTOP)
        signal.sigtimedwait((), 0.02)  # another thread may have taken the signal: this one stops here, too
    elif point.action == "delay":
        signal.sigtimedwait((), 0.2)
    elif point.action == "memory":
        raise MemoryError(name)
    elif point.action == "io":
        raise OSError(errno.EIO, os.strerror(errno.EIO), name)
    elif point.action == "raise":
        raise FailpointError(name)
    return point.action
