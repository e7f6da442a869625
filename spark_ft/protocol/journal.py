"""What a driver's journal says, and what follows from it: records, and the state that they add up to.

A record is written and synced before the effect that it guards leaves the driver.  There are none of
launches, nor of map outputs: the stores' manifests tell of those (docs/resume.md).

Invariants (``replay``)
  * any prefix of the records gives a state that is true, only older: what is not told costs a recomputation.
  * epochs and generations only grow (S19).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from spark_ft.ids import ActionId, Fingerprint, Generation, Incarnation
from spark_ft.protocol.parts import InlineResult, StoredResult
from spark_ft.records import record

Updates = tuple[tuple[int, bytes], ...]  # (accumulator, pickled update)


@record
class EpochBegun:
    """A driver has taken the application over: whoever wrote before it is fenced."""

    epoch: int
    driver: Incarnation
    began_ms: int = 0


@record
class ActionFinished:
    """Every partition of an action has its result: it is answered by those that are kept.

    ``merged``: (shuffle, map index, updates) of accumulators that were handed out while it ran.  ``sources``:
    what the results were built from, as (shuffle, generation, digest of its outputs), for actions of several
    jobs, of which a later one must find the same.
    """

    action: ActionId
    name: str
    partition_count: int
    merged: tuple[tuple[Fingerprint, int, Updates], ...] = ()
    sources: tuple[tuple[Fingerprint, int, int], ...] = ()


@record
class ActionCancelled:
    """Nothing more of it is started.  Asked for again it goes on from what is finished."""

    action: ActionId
    why: str


@record
class GenerationBegun:
    """All outputs of older generations of this shuffle are void."""

    shuffle: Fingerprint
    generation: Generation


@record
class Dropped:
    """The data of these shuffles may be deleted from now on: nobody asks for them under this name again."""

    shuffles: tuple[Fingerprint, ...]


@record
class KeptResult:
    """One partition's result, with its accumulator updates, as it is kept beside the journal."""

    result: InlineResult | StoredResult
    updates: Updates = ()


Record = EpochBegun | ActionFinished | ActionCancelled | GenerationBegun | Dropped
KINDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (EpochBegun, ActionFinished, ActionCancelled, GenerationBegun, Dropped)
}


@dataclass(slots=True)
class Recovered:
    """What a driver knows of its earlier lives.  ``results``: of each action the partitions whose results are
    kept, each with the digest of what it was built from."""

    epoch: int = 0
    finished: dict[ActionId, ActionFinished] = field(default_factory=dict)
    generations: dict[Fingerprint, Generation] = field(default_factory=dict)
    dropped: set[Fingerprint] = field(default_factory=set)
    results: dict[ActionId, dict[int, int]] = field(default_factory=dict)


def replay(records: Iterable[Record], state: Recovered | None = None) -> Recovered:
    """The state after these records, in the order in which they were written."""
    known = state or Recovered()
    for each in records:
        match each:
            case EpochBegun(epoch):
                assert epoch > known.epoch
                known.epoch = epoch
            case ActionFinished(action):
                known.finished[action] = each
            case ActionCancelled():
                pass  # it is over with the driver that wrote it
            case GenerationBegun(shuffle, generation):
                assert generation > known.generations.get(shuffle, 0)
                known.generations[shuffle] = generation
            case Dropped(shuffles):
                known.dropped.update(shuffles)
            case _:
                assert_never(each)
    return known
