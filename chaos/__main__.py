"""``python -m chaos``: break things on purpose, and see whether the answers stay right."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from chaos.live import cli as live
from chaos.mutants import cli as mutants
from chaos.sim import cli as sim


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    # Each adds its commands, with the function that carries one out as ``call``.
    for module in (live, sim, mutants):
        module.add_commands(commands)
    given = parser.parse_args(arguments)
    return int(given.call(given))


if __name__ == "__main__":
    sys.exit(main())
