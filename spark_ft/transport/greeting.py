"""The first words between processes that know of each other no more than an address.

    asker ── MAGIC, token, {role, versions …} ──> whoever is bound there
          <── MAGIC, token, {me, versions, epoch …, refused} ──

A link is addressed to an incarnation; who has just been started knows a host and a port.  So it asks who
is there, outside every link and in a format that no version changes (JSON), so that two versions can tell
each other that they are two (EX-11).  A greeting changes nothing in whom it reaches: it may come twice,
late or never, and is asked again until it is answered.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from spark_ft.transport.frames import TOKEN_BYTES
from spark_ft.transport.keys import Keys
from spark_ft.transport.sockets import Net, Socket, Waiter

Words = Mapping[str, str]
Answer = Callable[[Words], Words]

MAGIC = b"SpHi"
_BYTES_MAX = 4096


def pack(token: bytes, words: Words) -> bytes:
    return MAGIC + token + json.dumps(dict(words)).encode()


def unpack(frame: bytes, token: bytes) -> dict[str, str] | None:
    """The words, or None for what is no greeting of our cluster."""
    if not frame.startswith(MAGIC + token) or len(frame) > _BYTES_MAX:
        return None
    try:
        words = json.loads(frame[len(MAGIC) + TOKEN_BYTES :])
    except ValueError:
        return None
    if not isinstance(words, dict):
        return None
    return {str(key): str(value) for key, value in words.items()}


def is_foreign(frame: bytes, token: bytes) -> bool:
    """A greeting, but of another cluster: its secret differs from ours."""
    return frame.startswith(MAGIC) and frame[len(MAGIC) :][:TOKEN_BYTES] != token


class Greeter:
    """Asks at several addresses; to be used by one thread."""

    def __init__(
        self, endpoints: Sequence[str], token: bytes, words: Words, keys: Keys | None = None
    ) -> None:
        self._token, self._frame = token, pack(token, words)
        self._net = Net(keys)
        self._waiter = Waiter()
        self._sockets: list[Socket] = []
        for endpoint in endpoints:
            socket = self._net.dealer("", endpoint, _BYTES_MAX, hwm=2)  # where nobody listens, words are lost
            self._sockets.append(socket)
            self._waiter.add(socket)

    def ask(self) -> None:
        for socket in self._sockets:
            socket.send(self._frame)

    def answers(self, timeout_s: float) -> list[tuple[str, dict[str, str]]]:
        """(endpoint, words) of those who have answered, waiting for the first at most ``timeout_s``."""
        found = []
        for source in self._waiter.wait(timeout_s):
            while isinstance(source, Socket) and (parts := source.receive()) is not None:
                words = unpack(parts[-1], self._token)
                if words is not None:
                    found.append((source.endpoint, words))
        return found

    def close(self) -> None:
        self._net.close()
