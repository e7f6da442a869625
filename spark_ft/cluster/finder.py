"""Who manages the cluster: asked at every address of the master URL, for as long as a process lives.

Workers and drivers know addresses; managers come and go there.  One that is found is believed until
another says that it is active under a later *epoch*: epochs only grow, so a manager that was replaced
and does not know it yet is followed by nobody (CM-4).  Nothing that runs waits for any of this (CM-1).
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

from spark_ft.clock import BootClock
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.executor.versions import mismatch, versions
from spark_ft.ids import Incarnation
from spark_ft.log import get_logger
from spark_ft.settings import Settings
from spark_ft.transport.greeting import Greeter
from spark_ft.transport.keys import Keys

ASK_INTERVAL_S = 0.5
ACTIVE, STANDBY = "active", "standby"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """The manager, and how many cores its workers have."""

    manager: Incarnation
    endpoint: str
    epoch: int
    cores: int


def parse_masters(url: str) -> tuple[str, ...]:
    """The addresses in ``spark://host:port[,host:port…]``.  Raises SettingsError."""
    found = re.fullmatch(r"spark://([^/\s]+)", url.strip())
    addresses = found[1].split(",") if found else []
    for address in addresses:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+:\d{1,5}", address):
            addresses = []
    if not addresses:
        raise SettingsError(
            f"Could not parse Master URL: '{url}'; expected spark://host:port, or "
            "spark://host:port,host:port where a standby is ready to take over"
        )
    return tuple(f"tcp://{address}" for address in addresses)


def cluster_token(settings: Settings) -> bytes:
    """What every frame of a cluster carries: another secret is another cluster."""
    return hashlib.blake2b(settings.secret.encode(), digest_size=16, person=b"spark_ft").digest()


class Finder:
    """See the module.  ``on_found`` gets each new manager, ``on_refused`` why we may not join; both in a
    thread of the finder's own."""

    def __init__(
        self,
        masters: tuple[str, ...],
        token: bytes,
        role: str,
        keys: Keys | None,
        on_found: Callable[[Found], None] = lambda found: None,
        on_refused: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.masters = masters
        self.found: Found | None = None
        self.refused = ""
        self._token, self._role, self._keys = token, role, keys
        self.on_found, self.on_refused = on_found, on_refused
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spark-ft-finder", daemon=True)
        self._thread.start()

    def first(self, timeout_s: float) -> Found:
        """The manager, waiting for one.  Raises ClusterError (VERSION_MISMATCH, MANAGER_NOT_FOUND)."""
        self._news.wait(timeout_s)
        if self.found is not None:
            return self.found
        if self.refused:
            raise ClusterError(self.refused, "VERSION_MISMATCH")
        raise ClusterError(
            f"no manager has answered at {', '.join(self.masters)} for {timeout_s:g} s: is one running there "
            "(`spark-ft manager`), under the same spark.authenticate.secret and keys?",
            "MANAGER_NOT_FOUND",
        )

    def stop(self) -> None:
        """Idempotent; safe in a forked child, where there is nothing to stop."""
        self._stopping.set()

    def _run(self) -> None:
        greeter = Greeter(self.masters, self._token, {"role": self._role, **versions()}, self._keys)
        clock = BootClock()
        try:
            while not self._stopping.is_set():
                greeter.ask()
                until_s = clock.now_s() + ASK_INTERVAL_S
                while (left_s := until_s - clock.now_s()) > 0 and not self._stopping.is_set():
                    for endpoint, words in greeter.answers(left_s):
                        self._heard(endpoint, words)
        except ClusterError as error:  # of our sockets: in a child of a fork, or for want of descriptors
            log.warning("asking for a manager: %s", error)
        finally:
            greeter.close()

    def _heard(self, endpoint: str, words: dict[str, str]) -> None:
        refused = words.get("refused", "") or mismatch(words)
        if refused:
            if refused != self.refused:
                self.refused = refused
                log.error("the manager at %s refuses us: %s", endpoint, refused)
                self.on_refused(refused)
            self._news.set()
            return
        if words.get("state") != ACTIVE:
            return
        epoch = int(words.get("epoch", "0"))
        if self.found is None or epoch > self.found.epoch:
            manager = Incarnation(words["me"])
            self.found = found = Found(manager, endpoint, epoch, int(words.get("cores", "0")))
            log.info("manager %s (epoch %d) at %s", manager, epoch, endpoint)
            self.on_found(found)
            self._news.set()
