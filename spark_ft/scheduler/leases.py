"""The driver's side of an executor's lease: does it hear us, and do we hear it?

    executor ──ExecutorBeat(n, acked)──> driver ──BeatAck(m)──> executor
              counts its lease from when                granted: the last beat that proved the
              it sent beat m                            way back; the driver counts from here

A lease needs the round trip (NET-7).  A beat *proves* it by confirming the answer that granted the
current lease; only such a beat is granted another.  Answers that are on their way for long, or lost
again and again, so lengthen nothing: every lease that the executor can ever have been given ends at
most ``lease_s`` after ``granted_s``, and it is given up later than that (S30).

Nobody is judged by silence alone, for a task that holds the GIL silences the healthiest process.  What
tells the two apart is its worker, which says how often the executor has spoken:

  it speaks, confirms nothing           it does not hear us
  its worker heard it speak, not we     we do not hear it
  neither speaks nor computes           it is stuck
"""

from __future__ import annotations

from spark_ft.settings import Settings

DEAF = "it does not hear the driver"  # what it was given last never reached it
UNHEARD = "the driver does not hear it"  # what it has may well be done


class Lease:
    """What one executor and its worker have said; all times are the turn's."""

    __slots__ = ("beat", "beat_s", "deaf_s", "granted", "granted_s", "unheard_s")

    def __init__(self, now_s: float) -> None:
        self.beat = 0  # the last one that we heard
        self.beat_s = now_s
        self.granted = 0  # the beat from whose sending the executor counts; 0: its hello
        self.granted_s = now_s
        self.deaf_s: float | None = None  # since when its beats prove nothing
        self.unheard_s: float | None = None  # since when it is known to say what we do not hear

    def heard(self, number: int, acked: int, now_s: float) -> int:
        """Beat ``number`` came, which confirms answers up to ``acked``; answers what to acknowledge."""
        self.beat, self.beat_s, self.unheard_s = max(self.beat, number), now_s, None
        if acked >= self.granted:
            self.granted, self.granted_s, self.deaf_s = number, now_s, None
        elif self.deaf_s is None:
            self.deaf_s = now_s
        return self.granted

    def vouched(self, number: int, now_s: float) -> None:
        """Its worker says that it has sent beat ``number``."""
        if number <= self.beat:
            self.unheard_s = None
        elif self.unheard_s is None:
            self.unheard_s = now_s

    def is_over(self, settings: Settings, now_s: float) -> bool:
        """Whether it cannot believe in its lease any more, by its own clock either."""
        return now_s - self.granted_s > settings.silence_s

    def cut(self, settings: Settings, now_s: float) -> str:
        """How the way between us is cut, so far as that is proved; '' as long as it is not."""
        patience_s = settings.launch_ack_s
        if self.deaf_s is not None and now_s - self.granted_s > patience_s >= now_s - self.beat_s:
            return DEAF
        unheard = self.unheard_s is not None and now_s - self.unheard_s > patience_s / 2
        if unheard and now_s - self.beat_s > patience_s:
            return UNHEARD
        return ""
