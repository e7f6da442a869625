"""Kills writers of stores at random moments, and looks at what they leave (ST-7).

    python writer_kills.py DIRECTORY COUNT SEED      prints kills=… committed=… torn=…

Each writer is a fork of this process, in which no store is open then.  It writes outputs of several
chunks and says each one that is committed through a pipe.  After its death every output that it
has said must be there and verify to the last byte, at most one more may be, and the writer's lock
must be free at once.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from spark_ft import failpoints, rows
from spark_ft.ids import Fingerprint, Generation, HostId, ShuffleId, TaskId
from spark_ft.storage import layout, lmdb_env
from spark_ft.storage.blocks import OutputKey, StoreReader, StoreWriter
from tests.cluster import faultlib

HOST = HostId("host-0")
LOCK_S = 1.0
REDUCERS = 5
SEGMENT_BYTES = 1 << 20


def write(root: Path, name: str, pipe: int, seed: int) -> None:
    """Write outputs until the kill comes."""
    rng = random.Random(seed)
    os.write(pipe, b"here")
    store = StoreWriter(root / "stores" / name, HOST, segment_bytes=SEGMENT_BYTES, transaction_bytes=64 << 10)
    for number in range(1 << 30):
        key = OutputKey(Fingerprint(bytes(16)), Generation(0), number, TaskId(number))
        output = store.begin(ShuffleId(1), key, REDUCERS)
        for reducer in range(REDUCERS):
            batch = rows.encode([rng.randbytes(rng.randrange(40_000))])
            output.append(reducer, batch, 1)
        if rng.random() < 0.1:
            output.abort()
            continue
        output.commit()
        os.write(pipe, number.to_bytes(4, "little"))


def look(root: Path, name: str, said: set[int]) -> tuple[int, int]:
    """(outputs there, whether one was in the making).  Asserts what must hold."""
    store = root / "stores" / name
    numbers = layout.segment_numbers(store)
    if not numbers:
        assert not said
        return 0, 0
    reader = StoreReader({HOST: root})
    listed = {status.map_index for status in reader.outputs(HOST, name)}
    whole = {status.map_index for status in reader.outputs(HOST, name, deep=True)}
    assert listed == whole, f"{listed - whole} do not verify"
    assert said <= whole, f"{said - whole} were called committed and are gone"
    assert len(whole - said) <= 1, f"{whole - said} are there, but at most one was not yet told"
    torn = 0
    for number in numbers:
        path = layout.segment_path(store, number)
        if not (path / "data.mdb").exists() or (path / "data.mdb").stat().st_size == 0:
            continue  # killed while it was being made
        try:
            segment = lmdb_env.open_segment(path)
        except Exception:  # the same, a moment later
            assert number == numbers[-1]
            continue
        live = {b"m" + OutputKey(Fingerprint(bytes(16)), Generation(0), n, TaskId(n)).pack() for n in whole}
        torn += bool(layout.garbage_in(segment, live))
        began_s = time.monotonic()
        successor = lmdb_env.take_over(path)
        try:
            successor.write([(b"after", b"the kill")])
            assert successor.get(b"after") == b"the kill"
        except lmdb_env.SegmentFull:
            assert (path / "data.mdb").stat().st_size > SEGMENT_BYTES // 2
        assert time.monotonic() - began_s < LOCK_S, "the dead writer's lock was not free"
        successor.close()
    return len(whole), int(torn > 0)


def in_a_process(directory: Path, count: int, seed: int) -> dict[str, int]:
    """Run this file; what it has printed.  Raises AssertionError with its traceback."""
    command = faultlib.python(__file__, str(directory), str(count), str(seed))
    done = subprocess.run(**command, capture_output=True, text=True, timeout=60 + count / 5)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: int(number) for name, number in (word.split("=") for word in done.stdout.split())}


def main() -> None:
    root, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    kills = committed = torn = 0
    for number in range(count):
        ours, theirs = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(ours)
            failpoints.arm("")
            write(root, f"w{number}", theirs, rng.randrange(1 << 30))
        os.close(theirs)
        assert os.read(ours, 4) == b"here"
        data, outputs = b"", rng.randrange(4)
        while len(data) < 4 * outputs:  # so many and a little more, however busy the machine is
            data += os.read(ours, 4 * outputs - len(data))
        time.sleep(rng.random() * 0.003)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        with os.fdopen(ours, "rb") as pipe:
            data += pipe.read()
        said = {int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)}
        found, was_torn = look(root, f"w{number}", said)
        committed, torn = committed + found, torn + was_torn
        shutil.rmtree(root / "stores" / f"w{number}", ignore_errors=True)
        lmdb_env.sweep()
    print(f"kills={kills} committed={committed} torn={torn}")


if __name__ == "__main__":
    main()
