"""ManagerCore: events in, effects compared; no clock, no socket, no process."""

import random
from dataclasses import replace

import pytest

from spark_ft.cluster.manager import ManagerCore
from spark_ft.ids import AppId, HostId, Incarnation
from spark_ft.protocol.effects import (
    ClosePeer,
    Effect,
    Event,
    PeerGone,
    PeerHeard,
    PeerSilent,
    Received,
    Remember,
    Send,
    Tick,
    WatchProcess,
)
from spark_ft.protocol.messages import (
    AppRegistered,
    AppReleased,
    AppUnregistered,
    AssignExecutors,
    DriverChanged,
    Fenced,
    Message,
    RegisterApp,
    RegisterWorker,
    ReleaseApp,
    SubmitDriver,
    UnregisterApp,
    WorkerBeat,
    WorkerLost,
    WorkerRegistered,
)
from spark_ft.settings import Settings

SETTINGS = Settings()
DRIVER, OTHER = Incarnation("driver-1"), Incarnation("driver-2")
APP = AppId("app-1")


def worker(number: int) -> Incarnation:
    return Incarnation(f"worker-{number}")


class Driven:
    """A core and its time."""

    def __init__(self, workers: int = 0, cores: int = 2, awaited: tuple[str, ...] = ()) -> None:
        self.core = ManagerCore(Incarnation("manager-1"), SETTINGS, [HostId(host) for host in awaited])
        self.now_s = 100.0
        for number in range(workers):
            self.register(number, cores)

    def event(self, event: Event) -> list[Effect]:
        effects = self.core.handle(event, self.now_s)
        self.core.check_invariants()
        return effects

    def pass_until(self, until_s: float) -> list[Effect]:
        """Tick whenever it wants to be woken."""
        effects: list[Effect] = []
        while (wakeup_s := self.core.wakeup_s()) is not None and wakeup_s <= until_s:
            self.now_s = wakeup_s
            effects += self.event(Tick())
        self.now_s = until_s
        return effects

    def tell(self, sender: Incarnation, message: Message) -> list[Effect]:
        return self.event(Received(sender, message))

    def register(self, number: int, cores: int = 2, *held: tuple[AppId, Incarnation, int]) -> list[Effect]:
        kept = tuple((*row, 1, 1 << 30) for row in held)
        host, size_bytes = HostId(f"host-{number}"), cores << 30
        offer = RegisterWorker(worker(number), host, 50 + number, cores, size_bytes, kept)
        return self.tell(worker(number), offer)

    def app(self, executors: int = 0, driver: Incarnation = DRIVER, app: AppId = APP) -> list[Effect]:
        return self.tell(driver, RegisterApp(app, driver, "ipc://d", 77, executors, 1, 1 << 30, {}))


def assigned(effects: list[Effect]) -> dict[Incarnation, int]:
    return {
        e.to: e.message.count
        for e in effects
        if isinstance(e, Send) and isinstance(e.message, AssignExecutors)
    }


def told(effects: list[Effect], to: Incarnation) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send) and effect.to == to]


def granted(effects: list[Effect], driver: Incarnation = DRIVER) -> dict[Incarnation, int]:
    return [m for m in told(effects, driver) if isinstance(m, AppRegistered)][-1].granted


def test_executors_are_granted_in_turn_over_the_workers() -> None:
    driven = Driven(workers=3)
    effects = driven.app(executors=4)
    assert assigned(effects) == {worker(0): 2, worker(1): 1, worker(2): 1}
    assert granted(effects) == assigned(effects)


def test_nothing_beyond_cores_or_memory_is_granted() -> None:
    driven = Driven(workers=2, cores=2)
    assert granted(driven.app(executors=100)) == {worker(0): 2, worker(1): 2}
    assert granted(driven.app(driver=OTHER, app=AppId("app-2")), OTHER) == {}


def test_CM_7_registering_twice_is_answered_twice_and_grants_once() -> None:
    driven = Driven(workers=1)
    assert granted(driven.app(executors=1)) == {worker(0): 1}
    again = driven.app(executors=1)
    assert assigned(again) == {} and granted(again) == {worker(0): 1}
    effects = driven.register(0)
    assert told(effects, worker(0)) == [WorkerRegistered()]
    assert not any(isinstance(effect, WatchProcess) for effect in effects)


def test_a_worker_that_comes_later_is_granted_from_what_is_missing() -> None:
    driven = Driven(workers=1)
    driven.app(executors=3)
    effects = driven.register(1)
    assert assigned(effects) == {worker(1): 1}
    assert granted(effects) == {worker(0): 2, worker(1): 1}


def test_CM_8_an_application_that_gets_nothing_is_answered_all_the_same() -> None:
    assert granted(Driven().app(executors=3)) == {}


@pytest.mark.parametrize("silent", [False, True])
def test_a_lost_worker_is_told_of_fenced_and_replaced_from_what_is_free(silent: bool) -> None:
    driven = Driven(workers=2)
    driven.app(executors=2)
    if silent:
        effects = driven.pass_until(driven.now_s + SETTINGS.lost_after_s / 2)
        driven.tell(worker(1), WorkerBeat(1))
        assert not effects
        effects = driven.pass_until(100.0 + SETTINGS.silence_s)
    else:
        effects = driven.event(PeerGone(worker(0), "its process has ended"))
    assert any(isinstance(m, WorkerLost) and m.worker == worker(0) for m in told(effects, DRIVER))
    assert any(isinstance(e, ClosePeer) and e.peer == worker(0) and e.fence for e in effects)
    assert assigned(effects) == {} and granted(effects) == {worker(1): 1}
    driven.tell(worker(1), WorkerBeat(2))
    effects = driven.pass_until(driven.now_s + SETTINGS.worker_grace_s)
    assert granted(effects) == assigned(effects) == {worker(1): 2}, "no heir has come"


def test_CLK_4_a_manager_that_stood_still_gives_up_nobody_before_it_has_listened_anew() -> None:
    driven = Driven(workers=3)
    driven.app(executors=3)
    driven.pass_until(driven.now_s + 5.0)
    driven.now_s += 60.0
    assert driven.event(Tick()) == []
    assert driven.tell(worker(0), WorkerBeat(1)) == []
    woken_s = driven.now_s
    assert driven.pass_until(woken_s + SETTINGS.silence_s - 0.1) == []
    driven.tell(worker(0), WorkerBeat(2))
    effects = driven.pass_until(woken_s + SETTINGS.silence_s)
    assert {e.peer for e in effects if isinstance(e, ClosePeer)} == {worker(1), worker(2)}


@pytest.mark.parametrize("app_first", [False, True])
def test_CM_1_a_manager_takes_over_what_the_one_before_had_granted(app_first: bool) -> None:
    driven = Driven()
    effects: list[Effect] = []
    if app_first:
        effects += driven.app(executors=3)
    for number, count in ((0, 1), (1, 2)):
        held = ((APP, DRIVER, count, 1, 1 << 30), (AppId("app-9"), OTHER, 2, 1, 1 << 30))
        name = worker(number)
        effects += driven.tell(name, RegisterWorker(name, HostId(f"host-{number}"), 50, 4, 4 << 30, held))
    if not app_first:
        effects += driven.app(executors=3)
    assert granted(effects) == ({worker(0): 2, worker(1): 1} if app_first else {worker(0): 1, worker(1): 2})
    assert assigned(effects) == ({worker(0): 2, worker(1): 1} if app_first else {})


def test_an_application_is_unregistered_when_every_worker_has_answered_or_is_lost() -> None:
    driven = Driven(workers=2)
    driven.app(executors=2)
    effects = driven.tell(DRIVER, UnregisterApp(APP))
    assert told(effects, worker(0)) == [ReleaseApp(APP)] and told(effects, worker(1)) == [ReleaseApp(APP)]
    assert told(effects, DRIVER) == []
    assert told(driven.tell(worker(0), AppReleased(APP, worker(0))), DRIVER) == []
    assert told(driven.event(PeerGone(worker(1), "x")), DRIVER) == [AppUnregistered(APP)]
    assert told(driven.tell(DRIVER, UnregisterApp(APP)), DRIVER) == [AppUnregistered(APP)]


def test_what_an_application_had_is_granted_to_the_next() -> None:
    driven = Driven(workers=1)
    driven.app(executors=2)
    driven.app(executors=2, driver=OTHER, app=AppId("app-2"))
    driven.event(PeerGone(DRIVER, "its process has ended"))
    effects = driven.tell(worker(0), AppReleased(APP, worker(0)))
    assert told(effects, DRIVER) == []  # nobody is there to be told
    assert granted(effects, OTHER) == {worker(0): 2}


def test_DR_4_a_second_driver_of_an_application_fences_the_first() -> None:
    driven = Driven(workers=1)
    driven.app(executors=1)
    effects = driven.app(executors=1, driver=OTHER)
    assert isinstance(told(effects, DRIVER)[0], Fenced)
    assignments = [m for m in told(effects, worker(0)) if isinstance(m, AssignExecutors)]
    assert [m.driver for m in assignments] == [OTHER]


def test_an_application_that_comes_back_while_it_is_released_waits_for_that() -> None:
    driven = Driven(workers=1)
    driven.app(executors=1)
    driven.tell(DRIVER, UnregisterApp(APP))
    assert assigned(driven.app(executors=1, driver=OTHER)) == {}
    effects = driven.tell(worker(0), AppReleased(APP, worker(0)))
    assert told(effects, DRIVER) == [AppUnregistered(APP)]
    assert granted(effects, OTHER) == {worker(0): 1}


@pytest.mark.parametrize("seed", range(30))
def test_S12_books_balance_under_any_order_of_comings_and_goings(seed: int) -> None:
    rng = random.Random(seed)
    driven = Driven(awaited=("host-0", "host-9") if seed % 3 == 0 else ())
    for _ in range(200):
        driven.now_s += rng.random()
        number = rng.randrange(4)
        driver, app = Incarnation(f"driver-{rng.randrange(4)}"), AppId(f"app-{rng.randrange(3)}")
        match rng.randrange(6):
            case 0:
                held = [(app, driver, rng.randrange(3))] if rng.random() < 0.3 else []
                program = replace(PROGRAM, driver=f"submitted-{number}", supervise=rng.random() < 0.5)
                driven.tell(CLIENT, program)
                driven.register(number, rng.randrange(1, 5), *held)
            case 1:
                driven.event(PeerGone(worker(number), "x"))
            case 2:
                driven.app(rng.randrange(6), driver, app)
            case 3:
                driven.tell(driver, UnregisterApp(app))
            case 4:
                driven.tell(worker(number), AppReleased(app, worker(number), driver))
                ended = DriverChanged(f"submitted-{rng.randrange(4)}", rng.choice(("RUNNING", "FAILED")))
                driven.tell(worker(number), ended)
            case _:
                silence = rng.choice((PeerSilent(driver, 9.0), PeerHeard(driver), Tick()))
                driven.event(PeerGone(driver, "x") if rng.random() < 0.3 else silence)


# --- What was there before it ------------------------------------------------------------------------


def test_CM_2_what_a_worker_holds_for_who_has_not_come_yet_is_given_to_nobody_else() -> None:
    driven = Driven()
    driven.app(executors=2, driver=OTHER, app=AppId("app-2"))
    effects = driven.register(0, 2, (APP, DRIVER, 2))
    assert assigned(effects) == {}, "both cores are taken by what runs there"
    assert granted(driven.app(executors=2)) == {worker(0): 2}
    assert granted(driven.app(executors=2, driver=OTHER, app=AppId("app-2")), OTHER) == {}


def test_CM_2_it_is_free_when_the_worker_says_that_its_driver_has_ended() -> None:
    driven = Driven()
    driven.app(executors=2, driver=OTHER, app=AppId("app-2"))
    driven.register(0, 2, (APP, DRIVER, 2))
    effects = driven.tell(worker(0), AppReleased(APP, worker(0), DRIVER))
    assert granted(effects, OTHER) == {worker(0): 2}


def test_CM_2_a_manager_grants_nothing_new_before_all_have_said_what_they_hold() -> None:
    driven = Driven(awaited=("host-0", "host-1"))
    assert granted(driven.app(executors=2)) == {}
    assert assigned(driven.register(0, 2)) == {}, "what it asks for may run on the other"
    effects = driven.register(1, 2, (APP, DRIVER, 2))
    assert granted(effects) == {worker(1): 2} and assigned(effects) == {}


def test_CM_3_a_host_that_does_not_come_back_is_not_waited_for_longer_than_for_a_silent_one() -> None:
    driven = Driven(awaited=("host-0", "host-1"))
    driven.app(executors=2)
    driven.register(0, 2)
    began_s = driven.now_s
    for _ in range(10):
        assert assigned(driven.pass_until(driven.now_s + SETTINGS.silence_s / 10 - 0.01)) == {}
        driven.tell(worker(0), WorkerBeat(1))
    assert assigned(driven.pass_until(began_s + SETTINGS.silence_s + 0.01)) == {worker(0): 2}


def test_CM_5_hosts_with_a_worker_are_remembered_and_forgotten_when_that_is_lost() -> None:
    driven = Driven()
    assert [e for e in driven.register(1) if isinstance(e, Remember)] == [Remember((HostId("host-1"),))]
    effects = driven.register(0)
    assert [e for e in effects if isinstance(e, Remember)] == [Remember((HostId("host-0"), HostId("host-1")))]
    effects = driven.event(PeerGone(worker(1), "x"))
    assert [e for e in effects if isinstance(e, Remember)] == [Remember((HostId("host-0"),))]


def test_WK_1_a_worker_that_takes_over_a_host_proves_the_end_of_the_one_before() -> None:
    driven = Driven(workers=1)
    driven.app(executors=2)
    heir = Incarnation("worker-heir")
    effects = driven.tell(heir, RegisterWorker(heir, HostId("host-0"), 0, 2, 2 << 30))
    assert [m.worker for m in told(effects, DRIVER) if isinstance(m, WorkerLost)] == [worker(0)]
    assert granted(effects) == {heir: 2}


def test_WK_1_heirs_get_what_the_ones_before_them_had_whoever_comes_first() -> None:
    driven = Driven(workers=2)
    driven.app(executors=2)
    driven.app(executors=2, driver=OTHER, app=AppId("app-2"))
    for number in (0, 1):
        driven.event(PeerGone(worker(number), "killed"))
    for number in (1, 0):
        heir = Incarnation(f"worker-heir-{number}")
        effects = driven.tell(heir, RegisterWorker(heir, HostId(f"host-{number}"), 0, 2, 2 << 30))
        assert granted(effects)[heir] == granted(effects, OTHER)[heir] == 1


# --- Drivers on other machines ---------------------------------------------------------------------------


def test_a_worker_that_cannot_reach_a_driver_costs_it_that_workers_executors_alone() -> None:
    driven = Driven(workers=2, cores=1)
    driven.app(executors=2)
    effects = driven.tell(worker(0), AppReleased(APP, worker(0), DRIVER))
    assert granted(effects) == {worker(1): 1} and assigned(effects) == {}
    assert granted(driven.app(executors=1, driver=OTHER, app=AppId("app-2")), OTHER) == {worker(0): 1}


def test_a_worker_that_gave_an_application_up_is_asked_again_after_a_minute() -> None:
    driven = Driven(workers=1)
    driven.app(executors=1)
    driven.tell(worker(0), AppReleased(APP, worker(0), DRIVER))
    began_s, effects = driven.now_s, list[Effect]()
    while driven.now_s < began_s + 61.0:
        driven.tell(worker(0), WorkerBeat(1))
        effects += driven.pass_until(driven.now_s + 1.0)
    assert assigned(effects) == {worker(0): 1}


@pytest.mark.parametrize("silent_first", [False, True])
def test_a_driver_that_no_worker_can_reach_and_that_is_silent_has_ended(silent_first: bool) -> None:
    driven = Driven(workers=1)
    driven.app(executors=2)
    driven.app(executors=2, driver=OTHER, app=AppId("app-2"))
    events = [PeerSilent(DRIVER, 9.0), Received(worker(0), AppReleased(APP, worker(0), DRIVER))]
    effects = [e for event in (events if silent_first else events[::-1]) for e in driven.event(event)]
    assert ClosePeer(DRIVER, fence=False, why="its application has ended") in effects
    assert granted(effects, OTHER) == {worker(0): 2}
    assert granted(driven.app(executors=1)) == {}, "were it to come back, it would be another registration"


def test_a_silent_driver_is_given_nothing_new_until_it_is_heard() -> None:
    driven = Driven(workers=1)
    driven.app(executors=4)
    driven.event(PeerSilent(DRIVER, 9.0))
    assert assigned(driven.register(1)) == {}
    assert assigned(driven.event(PeerHeard(DRIVER))) == {worker(1): 2}


def test_UE_8_an_executor_of_several_cores_takes_so_many() -> None:
    driven = Driven(workers=1, cores=4)
    wish = RegisterApp(APP, DRIVER, "ipc://d", 77, 0, 1, 1 << 30, {}, cores=2)
    assert granted(driven.tell(DRIVER, wish)) == {worker(0): 2}


# --- Drivers that run within the cluster -------------------------------------------------------------------

CLIENT = Incarnation("submit-1")
PROGRAM = SubmitDriver("submitted-1", "a.py", (("a.py", b"x"),))


def states(effects: list[Effect], client: Incarnation = CLIENT) -> list[str]:
    return [m.state for m in told(effects, client) if isinstance(m, DriverChanged)]


def test_a_driver_runs_where_most_is_free_and_its_cores_are_nobody_elses() -> None:
    driven = Driven(workers=1, cores=2)
    driven.register(1, 3)
    effects = driven.tell(CLIENT, PROGRAM)
    assert told(effects, worker(1)) == [PROGRAM] and states(effects) == ["WAITING"]
    assert states(driven.tell(worker(1), DriverChanged("submitted-1", "RUNNING"))) == ["RUNNING"]
    assert granted(driven.app()) == {worker(0): 2, worker(1): 2}
    effects = driven.tell(worker(1), DriverChanged("submitted-1", "FINISHED"))
    assert states(effects) == ["FINISHED"] and granted(effects) == {worker(0): 2, worker(1): 3}
    assert driven.tell(worker(1), DriverChanged("submitted-1", "FINISHED")) == [], "told once"


def test_a_driver_that_finds_no_room_waits_and_goes_before_executors() -> None:
    driven = Driven(workers=1, cores=2)
    driven.app()
    assert states(driven.tell(CLIENT, PROGRAM)) == ["WAITING"]
    effects = driven.register(1, 1)
    assert told(effects, worker(1)) == [WorkerRegistered(), PROGRAM] and assigned(effects) == {}


def test_CM_7_a_driver_that_is_submitted_twice_runs_once() -> None:
    driven = Driven(workers=2)
    driven.tell(CLIENT, PROGRAM)
    effects = driven.tell(CLIENT, PROGRAM)
    assert states(effects) == ["RUNNING"] and told(effects, worker(0)) == told(effects, worker(1)) == []


@pytest.mark.parametrize("supervise", [False, True])
def test_a_driver_whose_host_is_lost_is_started_elsewhere_only_when_it_is_supervised(supervise: bool) -> None:
    driven = Driven(workers=1)
    program = replace(PROGRAM, supervise=supervise)
    driven.tell(CLIENT, program)
    driven.event(PeerGone(worker(0), "x"))
    driven.register(1)
    driven.tell(worker(1), WorkerBeat(1))
    assert driven.pass_until(driven.now_s + SETTINGS.worker_grace_s - 0.1) == [], "an heir may have it"
    driven.tell(worker(1), WorkerBeat(2))
    effects = driven.pass_until(driven.now_s + 0.2)
    assert states(effects) == (["WAITING"] if supervise else ["LOST"])
    assert told(effects, worker(1)) == ([program] if supervise else [])


def test_CM_1_another_manager_is_told_of_drivers_by_their_workers_and_runs_none_twice() -> None:
    driven = Driven()
    again = replace(PROGRAM, has_run=True)
    assert states(driven.tell(CLIENT, again)) == ["WAITING"]
    offer = RegisterWorker(worker(0), HostId("host-0"), 5, 2, 2 << 30, (), (PROGRAM,))
    assert told(driven.tell(worker(0), offer), worker(0)) == [WorkerRegistered()], "it runs there"
    assert states(driven.tell(CLIENT, again)) == ["RUNNING"]
    assert states(driven.tell(worker(0), DriverChanged("submitted-1", "FINISHED"))) == ["FINISHED"]


def test_CM_1_one_that_ended_while_there_was_no_manager_is_not_started_again() -> None:
    driven = Driven()
    driven.tell(CLIENT, replace(PROGRAM, has_run=True))
    assert told(driven.register(0), worker(0)) == [WorkerRegistered()]
    assert states(driven.tell(worker(0), DriverChanged("submitted-1", "FINISHED"))) == ["FINISHED"]
