"""One call of ``SchedulerCore.handle``: what time it is, and the effects so far.

The scheduler's parts share one ``Turn``, so that none of them hands a clock and a list around.
Time here is *awake* time: seconds of the host's clock less those during which the driver itself
was stalled (CLK-4).  A driver that sleeps for a minute has not been silent to anyone for a minute,
so every silence, back-off and patience of this core is measured in it.
"""

from __future__ import annotations

from spark_ft.ids import ActionId, Incarnation
from spark_ft.protocol.effects import Effect, Journal, Keep, KeptRow, Note, Send
from spark_ft.protocol.journal import Record
from spark_ft.protocol.messages import Message


class Turn:
    """``now_s`` never goes back; ``out`` is handed to the host at the end of the call.

    ``kept``: results to be kept for the driver's next life, by action.  ``records``: what has to be written
    before anything of this turn, or of a later one, is carried out.
    """

    __slots__ = ("kept", "now_s", "out", "records")

    def __init__(self) -> None:
        self.now_s = 0.0
        self.out: list[Effect] = []
        self.kept: dict[ActionId, list[KeptRow]] = {}
        self.records: list[Record] = []

    def send(self, to: Incarnation, message: Message) -> None:
        self.out.append(Send(to, message))

    def note(self, kind: str, /, **fields: object) -> None:
        self.out.append(Note(kind, fields))

    def taken(self) -> list[Effect]:
        """The effects of this call; the next one starts with none."""
        out, self.out = self.out, []
        if self.kept:
            out[:0] = [Keep(action, tuple(rows)) for action, rows in self.kept.items()]
            self.kept = {}
        if self.records:
            out = [Journal(tuple(self.records), tuple(out), hold=True)]
            self.records = []
        return out
