"""Whether the manager is there is said as it is (CM-1)."""

from __future__ import annotations

import pytest

from spark_ft.ids import Incarnation
from spark_ft.protocol.effects import Event, PeerGone, PeerHeard, PeerSilent, Received, ResourcesGranted
from spark_ft.protocol.messages import AppRegistered, Goodbye
from tests.builders import Stand

FIRST, SECOND = Incarnation("manager-1"), Incarnation("manager-2")


def managed(*events: Event) -> Stand:
    stand = Stand(executors=1)
    stand.do(ResourcesGranted(1, FIRST))
    for event in events:
        stand.do(event)
    return stand


def test_CM_1_a_silent_manager_that_is_heard_again_is_back() -> None:
    stand = managed(PeerSilent(FIRST, 10.0), PeerHeard(FIRST))
    assert stand.kinds()["manager_lost"] == stand.kinds()["manager_back"] == 1


@pytest.mark.parametrize("end", [PeerGone(FIRST, "its process has ended"), Received(FIRST, Goodbye("stop"))])
def test_CM_1_what_a_manager_said_before_its_end_does_not_bring_it_back(end: Event) -> None:
    stand = managed(end, Received(FIRST, AppRegistered({})), PeerHeard(FIRST))
    assert stand.kinds()["manager_lost"] == 1 and not stand.kinds()["manager_back"]
    stand.do(ResourcesGranted(1, SECOND))
    stand.do(Received(SECOND, AppRegistered({})))
    assert stand.kinds()["manager_back"] == 1
