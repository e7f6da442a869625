"""Small processes that hold or burn something for a while; each ends by itself, however its maker ends.

    python -m chaos.nemesis.helpers LIFE_S burn PROCESSOR
    python -m chaos.nemesis.helpers LIFE_S hold-readers SEGMENT      says how many slots it has got
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path


def burn(processor: int) -> None:
    """Keep one processor busy."""
    os.sched_setaffinity(0, {processor})
    while True:
        sum(range(10_000))


def hold_readers(segment: Path) -> None:
    """Open read transactions in an LMDB environment until there is no slot left, and keep them."""
    import lmdb

    environment = lmdb.open(str(segment), readonly=True, lock=True, max_readers=510, max_spare_txns=0)
    held = []
    try:
        while True:
            held.append(environment.begin())
    except lmdb.ReadersFullError:
        print(len(held), flush=True)
    sys.stdin.read()


def main(arguments: list[str]) -> None:
    life_s, what, argument = float(arguments[0]), arguments[1], arguments[2]

    def stop() -> None:
        time.sleep(life_s)
        os._exit(0)

    def orphaned() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=stop, daemon=True).start()
    if what == "burn":
        threading.Thread(target=orphaned, daemon=True).start()
        burn(int(argument))
    elif what == "hold-readers":
        hold_readers(Path(argument))


if __name__ == "__main__":
    main(sys.argv[1:])
