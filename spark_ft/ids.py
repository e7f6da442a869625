"""Names of things: every integer and string that identifies something has a type of its own.

Three words carry the safety of the whole engine and are explained here once:

*Incarnation*  one life of one process.  Drawn fresh when the process starts and never
    used again, so a message can be addressed to, and judged by, exactly that life.  An
    address, a port or a pid is never an identity: they all come back with other owners.
*Generation*  one consistent set of outputs of a shuffle.  It only grows; blocks of two
    generations never meet in one task.
*TaskId*  one attempt at one task.  It only grows within an application and is never used
    again, so that only an attempt the scheduler lists as running can change its state.
"""

import secrets
from typing import NewType

AppId = NewType("AppId", str)
Incarnation = NewType("Incarnation", str)  # role, dash, 16 hex digits
HostId = NewType("HostId", str)  # a set of processes that share a directory of stores

NodeId = NewType("NodeId", int)  # a lineage node; grows within a driver
ShuffleId = NewType("ShuffleId", int)  # a shuffle dependency; grows within a driver
JobId = NewType("JobId", int)  # grows within an application
StageId = NewType("StageId", int)  # grows within an application
TaskId = NewType("TaskId", int)  # one attempt; grows within an application
BlobId = NewType("BlobId", int)  # the pickled functions of one stage; grows within a driver
Generation = NewType("Generation", int)  # grows within a shuffle
Fingerprint = NewType("Fingerprint", bytes)  # 16 bytes that name data on disk
ActionId = NewType("ActionId", bytes)  # 16 bytes that name a job to every life of a driver; empty: to none

NO_ACTION = ActionId(b"")
DRIVER_HOST = HostId("driver")  # the driver's own stores; by path only where there is one host


def drawn_fingerprint() -> Fingerprint:
    """128 random bits: what nothing else is called."""
    return Fingerprint(secrets.token_bytes(16))


def new_incarnation(role: str) -> Incarnation:
    """A fresh identity for one process start: ``role`` and 64 random bits.

    Identity is the one place where the engine draws randomness of its own (here and above): two lives
    must differ even when they are started from the same seed.
    """
    return Incarnation(f"{role}-{secrets.token_hex(8)}")
