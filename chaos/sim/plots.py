"""Faults that are made of several: each brings about what chance alone would seldom.

long_call     an executor's code holds the GIL in one C call: it says nothing, and computes
stillborn     an executor ends before its hello, which is under way for long, has been heard
late_answer   what the driver answers to an executor is late; then one of them is not heard any more
lose_read     what a reader has just read is lost: an output, or all that its writer has written
gray          an executor is slow again and again, and well again later
memory        a task runs out of memory, and says so, or the kernel does (MEM-1)
dirty         a task leaves a thread behind in its process (TK-7)
sick          on an executor, or a host, tasks fail that succeed elsewhere; later it is well again (EX-14)
leave         an executor, or a host, is asked to leave in order
"""

from __future__ import annotations

from random import Random

from chaos.sim.executor import Executor
from chaos.sim.faults import Nemesis
from chaos.sim.network import ALIVE, Noise, Process
from spark_ft.protocol.effects import Decommission, LeaveWanted


class Plots(Nemesis):
    """All decisions, simple and composed."""

    def _long_call(self, rng: Random) -> bool:
        executor = self._executor(rng)
        if executor is None or not executor.stop():
            return False
        executor.in_call = True
        lost_s = self.world.options.settings.lost_after_s
        self.world.clock.after(rng.choice([1.0, lost_s, lost_s * 2, lost_s * 3]), self._go_on, executor)
        return True

    def _stillborn(self, rng: Random) -> None:
        noise_s = rng.choice([0.5, 2.0])

        def strike(process: Process | None) -> None:
            assert isinstance(process, Executor)
            self._make_noise("stillborn", Noise(frozenset([process.me]), delay_s=noise_s), 4.0)
            self.world.clock.after(0.01, lambda _: process.end(0, 9))

        self.world.traps.setdefault("born", []).append(strike)
        self._kill_executor(rng)

    def _late_answer(self, rng: Random) -> None:
        executor = self._executor(rng)
        if executor is None:
            return
        settings = self.world.options.settings
        wait_s = settings.heartbeat_interval_s * rng.choice([1.5, 2.5])
        self._make_noise("late_answer", Noise(frozenset([executor.me]), delay_s=3.0), wait_s)
        there, back = (executor.me, self.world.driver.me), (self.world.driver.me, executor.me)
        ways = rng.choice([[there], [back], [there, back]])

        def cut(_: None) -> None:
            if not self.world.healed:
                self._hold("late_answer", ways, settings.lost_after_s * 2)

        self.world.clock.after(wait_s, cut)

    def _lose_read(self, rng: Random) -> None:
        whole, draw, patience = rng.random() < 0.5, rng.getrandbits(32), rng.choice([0, 20])
        traps = self.world.traps

        def strike(process: Process | None) -> None:
            nonlocal patience
            assert isinstance(process, Executor) and process.last_read is not None
            run, again = process.last_read, Random(draw)
            if not run.fresh and patience:  # rather one that will keep what it makes of it
                patience -= 1
                self.world.clock.after(0.0, lambda _: traps.setdefault("read", []).append(strike))
                return
            places = [status for outputs in run.outputs.values() for status in outputs.statuses]
            status = again.choice(places)
            store = self.world.disk(status.host).stores.get(status.store)
            if store is None or status.attempt not in store.outputs:
                self.idle["lose_read"] += 1
                return
            if whole:
                store.outputs.clear()
            else:
                del store.outputs[status.attempt]
            run.planned_s *= again.choice([1.0, 3.0, 10.0])  # it takes its time over what it has read
            self.took["lose_read"] += 1

        traps.setdefault("read", []).append(strike)

    def _gray(self, rng: Random) -> bool:
        executor, slow = self._executor(rng), self.world.slow
        if executor is not None:
            slow[executor.me] = rng.choice([10.0, 30.0])
            self.world.clock.after(rng.choice([5.0, 15.0]), lambda _: slow.pop(executor.me, None))
        return executor is not None

    def _memory(self, rng: Random) -> None:
        self._fated(rng.choice(["kernel", "memory"]), rng.choice([1, 2]))

    def _dirty(self, rng: Random) -> None:
        self._fated("dirty", rng.choice([1, 3]))

    def _sick(self, rng: Random) -> None:
        executor, sick = self._executor(rng), self.world.sick
        if executor is not None:
            where = executor.machine if rng.random() < 0.3 else executor.me
            sick.add(where)
            self.world.clock.after(rng.choice([2.0, 8.0, 20.0, 20.0]), lambda _: sick.discard(where))

    def settled(self) -> None:
        super().settled()
        self.took["memory"] += self.world.struck["kernel"] + self.world.struck["memory"]
        self.took["sick"] += self.world.struck["sick"]
        self.took["dirty"] += self.world.struck["dirty"]

    def _leave(self, rng: Random) -> bool:
        within_s = rng.choice([1.0, 5.0, 20.0])
        executor, host = self._executor(rng), self._host(rng)
        if self.world.driver.state != ALIVE or executor is None:
            return False
        how = rng.randrange(3)
        if how == 0:
            self.world.driver.post(Decommission(host, within_s))
        else:
            leaver: Process = executor if how == 1 else self.world.workers[host]
            leaver.post(LeaveWanted(within_s))
        return True
