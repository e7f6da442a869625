"""What breaks things: the vocabulary of faults, and the base of everything that makes one.

A nemesis knows some kinds of faults.  In one run it lives like this, all in the harness's process:

    prepare(launch)            before the application starts: settings, environment, directories
    setup(cluster)             it is up
    invoke(fault, …)           a fault of the schedule is due: make it, and say what was seen of it
    heal(invocation, …)        once for each invocation, when the fault's time is over or the run's is:
                               undo it, and complete the evidence
    teardown(cluster)          the application has ended; leave nothing behind, whatever failed before

An ``Invocation`` is a statement for the checkers: *did it take effect* (the pid is gone, the bytes are
others, so many messages were dropped), which rows of the fault model it exercised, and what it may have
taken from the application.  What nobody took may not be done again, so ``takes`` is narrow on
purpose: a killed executor takes processes, not outputs.

Rows are judged by what happened, not by what was meant: a killed executor that ran nothing has
not exercised EX-1.  A kind lists the rows that it can exercise; an invocation those that it has.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chaos.live.cluster import Cluster, Launch

# What a fault may take from an application.  The first three are reasons to run a task again.
PROCESS = "process"  # an executor, and with it the attempts that it was running and what it cached in memory
OUTPUTS = "outputs"  # map outputs, results and persisted blocks on disk: they may have to be built again
TASK = "task"  # attempts fail without their process ending: no memory, no disk, no connection
WORKER = "worker"  # a worker with all its executors; its outputs only if OUTPUTS is said too
TIME = "time"  # things are slow: twins of slow tasks, nothing else
MESSAGES = "messages"  # frames are lost, doubled or late: links make that good, nothing is done again
LEAVES = "leaves"  # processes go in order, when nothing is lost by it: no reason to do anything again
ALL = frozenset({PROCESS, OUTPUTS, TASK, WORKER, TIME, MESSAGES, LEAVES})


@dataclass(frozen=True)
class Kind:
    """A kind of fault that a nemesis knows."""

    name: str
    rows: tuple[str, ...]  # of the fault model, that it can exercise
    takes: frozenset[str] = frozenset()
    lasts_s: tuple[float, float] = (0.0, 0.0)  # a schedule draws from it; (0, 0): done at once
    errors: tuple[str, ...] = ()  # conditions that a job may end with because of it
    managed: bool = False  # needs local-cluster[…]: a manager, and more than one host
    most: int = 0  # times in one run; 0: as often as the schedule likes
    weight: float = 1.0  # how often a schedule picks it, beside the others


@dataclass(frozen=True)
class Fault:
    """One entry of a schedule."""

    number: int
    nemesis: str
    kind: str
    at_s: float  # since the application is up
    until_s: float  # when it is healed
    seed: int  # of the generator that ``invoke`` gets: same seed, same choices among the same things

    def __str__(self) -> str:
        lasts = f"-{self.until_s:.2f}" if self.until_s > self.at_s else ""
        return f"{self.nemesis}.{self.kind}@{self.at_s:.2f}{lasts}"


@dataclass(frozen=True)
class Notice:
    """The application must show one of these events, with these fields, within a time after the fault."""

    events: tuple[str, ...]
    match: Mapping[str, Any]
    within_s: float


@dataclass(frozen=True)
class Invocation:
    """What became of a fault.  ``took_effect`` None: nobody can tell."""

    fault: Fault
    took_effect: bool | None
    evidence: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values
    rows: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset()
    errors: tuple[str, ...] = ()
    victims: tuple[str, ...] = ()  # incarnations and hosts that alone it may have taken; none named: any
    notices: tuple[Notice, ...] = ()  # not asked when the fault is healed, or the run over, before its time
    at_s: float = 0.0  # when it was made, and when healed, on the harness's clock; the harness sets both
    healed_s: float | None = None


class Nemesis(ABC):
    """Base of every nemesis.  One object serves one run; state may be kept in it."""

    name = ""
    kinds: Sequence[Kind] = ()

    def kind(self, name: str) -> Kind:
        return next(kind for kind in self.kinds if kind.name == name)

    def prepare(self, launch: Launch, rng: random.Random) -> None:  # noqa: B027 - most need none
        """Before the application starts: what ``launch`` says may be changed here."""

    def setup(self, cluster: Cluster) -> None:  # noqa: B027 - as above
        """The application is up."""

    @abstractmethod
    def invoke(self, fault: Fault, cluster: Cluster, rng: random.Random) -> Invocation:
        """Make the fault, see whether it took effect, and answer at once (no longer than a second or two).

        Nobody to break just now (all executors are dead already, say) is no error: it took no effect.
        """

    def heal(self, invocation: Invocation, cluster: Cluster) -> Invocation:
        """Undo the fault; complete the evidence, and the rows that only the aftermath shows."""
        return invocation

    def teardown(self, cluster: Cluster) -> None:  # noqa: B027 - as above
        """The application has ended."""

    def made(
        self, fault: Fault, took_effect: bool | None, *rows: str, takes: frozenset[str] | None = None,
        errors: tuple[str, ...] | None = None, victims: Sequence[str] = (), notices: Sequence[Notice] = (),
        **evidence: Any,
    ) -> Invocation:  # fmt: skip
        """An invocation with what its kind says of it, unless said otherwise; without effect, nothing."""
        kind = self.kind(fault.kind)
        if took_effect is False:
            return Invocation(fault, False, evidence)
        return Invocation(
            fault,
            took_effect,
            evidence,
            rows,
            kind.takes if takes is None else takes,
            kind.errors if errors is None else errors,
            tuple(victims),
            tuple(notices),
        )
