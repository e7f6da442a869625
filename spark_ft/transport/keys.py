"""The key pair of a cluster: who holds it may take part, and nobody else reads along.

    spark-ft keys DIRECTORY   ──>   DIRECTORY/cluster.public   DIRECTORY/cluster.secret

One pair for all processes of a cluster, carried to each machine by its operator.  Every socket that is bound
proves by it who it is, and lets in only whoever proves the same (CurveZMQ: keys on Curve25519, fresh ones
for each connection).  Why one pair: docs/decisions/0022-one-key-pair-for-a-cluster.md.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import zmq

from spark_ft.errors import ClusterError

PUBLIC, SECRET = "cluster.public", "cluster.secret"
_KEY_CHARACTERS = 40  # Z85


@dataclass(frozen=True, slots=True)
class Keys:
    """Both in Z85, 40 characters; the secret one is never shown."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"Keys({self.public})"

    @classmethod
    def draw(cls) -> Keys:
        public, secret = zmq.curve_keypair()
        return cls(public.decode("ascii"), secret.decode("ascii"))

    @classmethod
    def load(cls, directory: str) -> Keys | None:
        """Those in a directory that ``write`` made; None for ''.  Raises ClusterError (BAD_KEYS)."""
        if not directory:
            return None
        found = []
        for name in (PUBLIC, SECRET):
            path = Path(directory) / name
            try:
                if name == SECRET and path.stat().st_mode & 0o077:
                    raise _bad(path, "others than its owner may read it; chmod 600, or make new keys")
                text = path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeError) as error:
                raise _bad(path, f"{error}; `spark-ft keys {directory}` makes them") from None
            if len(text) != _KEY_CHARACTERS:
                raise _bad(path, "this is no key")
            found.append(text)
        keys = cls(*found)
        try:
            matches = zmq.curve_public(keys.secret.encode()).decode("ascii") == keys.public
        except (zmq.ZMQError, ValueError):
            matches = False
        if not matches:
            raise _bad(Path(directory), f"{PUBLIC} and {SECRET} are not a pair")
        return keys

    def write(self, directory: Path) -> None:
        """Into a directory of mode 0700, readable by its owner alone.  Raises ClusterError (BAD_KEYS) when
        there are keys, which are never overwritten."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name, text in ((SECRET, self.secret), (PUBLIC, self.public)):
                fd = os.open(directory / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
                with os.fdopen(fd, "w", encoding="ascii") as file:
                    file.write(f"{text}\n")
        except FileExistsError:
            raise _bad(directory, "there are keys; remove them, or choose another directory") from None
        except OSError as error:
            raise _bad(directory, str(error)) from None


def _bad(path: Path, why: str) -> ClusterError:
    return ClusterError(f"{path}: {why}", "BAD_KEYS")
