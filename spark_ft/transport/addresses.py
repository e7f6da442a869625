"""The addresses that a user gives the driver's sockets: checked before anything is started (NET-11).

    spark.driver.bindAddress   where they listen
    spark.driver.host          how others find them; the bind address when empty

Both may be names.  A name is asked for once, here, and what everybody is told is the address: no process of
the application waits for a name service afterwards.  With neither set nothing is asked: on one machine
sockets are files.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass

from spark_ft.errors import ClusterError
from spark_ft.settings import Settings
from spark_ft.transport.sockets import is_private

ANSWER_S = 4.0  # a name service; NET-11 allows 5 s in all
HOST, BIND = "spark.driver.host", "spark.driver.bindAddress"


@dataclass(frozen=True, slots=True)
class Addresses:
    """IPv4 addresses, or '' for both: ipc."""

    bind: str = ""
    host: str = ""

    @classmethod
    def of_driver(cls, settings: Settings, default: str = "", *, has_keys: bool = False) -> Addresses:
        """What these settings say, or ``default``, an address.  Raises ClusterError (BAD_BIND_ADDRESS) within
        5 s for a name that is not known, and for an address that others can reach, which takes keys."""
        given = settings.driver_bind or settings.driver_host or default
        if not given:
            return cls()
        key = BIND if settings.driver_bind else HOST
        bind = address_of(key, given)
        if not has_keys and not is_private(f"tcp://{bind}:*"):
            raise refusal(
                key,
                given,
                "other machines can reach it, which takes CURVE keys, and there are none; leave it "
                "unset, or take an address that is this machine's alone, such as 127.0.0.1",
            )
        return cls(bind, address_of(HOST, settings.driver_host) if settings.driver_host else bind)

    def endpoint(self, port: int = 0) -> str:
        """Where to bind, or ''."""
        return f"tcp://{self.bind}:{port or '*'}" if self.bind else ""

    def advertised(self, endpoint: str) -> str:
        """What others are told of a socket that is bound there.  ClusterError (BAD_BIND_ADDRESS) when it is
        not reached like that."""
        if not self.bind or not endpoint.startswith(f"tcp://{self.bind}:"):
            return endpoint
        port = int(endpoint.rpartition(":")[2])
        try:
            socket.create_connection((self.host, port), ANSWER_S).close()
        except OSError as error:
            raise refusal(
                HOST, self.host, f"leads nowhere ({error}): the driver listens at {self.bind}, port {port}"
            ) from error
        return f"tcp://{self.host}:{port}"


def address_of(key: str, name: str) -> str:
    """The IPv4 address of a name, within ``ANSWER_S``.  Raises ClusterError (BAD_BIND_ADDRESS)."""
    found: list[str] = []
    failed: list[str] = ["no answer from the name service"]

    def ask() -> None:
        try:
            found.extend(str(answer[4][0]) for answer in socket.getaddrinfo(name, None, socket.AF_INET))
        except (OSError, UnicodeError) as error:  # a label that is too long is a UnicodeError
            failed[0] = f"no IPv4 address: {error}"

    thread = threading.Thread(target=ask, name="spark-ft-name", daemon=True)  # nothing else ends a lookup
    thread.start()
    thread.join(ANSWER_S)
    if not found:
        raise refusal(key, name, failed[0])
    return found[0]


def refusal(key: str, value: str, why: str) -> ClusterError:
    return ClusterError(f"{key}={value}: {why}", "BAD_BIND_ADDRESS")
