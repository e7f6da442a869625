"""``python -m chaos mutants``: would the simulator notice if a guard were missing?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from chaos.mutants.draw import drawn
from chaos.mutants.guards import GUARDS
from chaos.mutants.score import Score, scores, table

TABLE = "<!-- table -->"  # what follows it in a page is written anew


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of ``python -m chaos``."""
    parser = commands.add_parser("mutants", help="take guards of the cores out and see the simulator notice")
    add = parser.add_argument
    add("--seeds", type=int, default=10_000, help="seeds that a mutant may survive at most (default 10000)")
    add("--first", type=int, default=0, help="the first seed (default 0)")
    add("--only", nargs="+", default=[], metavar="NAME", help="these mutants (default: all)")
    add("--drawn", type=int, default=10, help="mutants drawn besides the listed ones (default 10)")
    add("--draw-seed", type=int, default=1, help="which ones are drawn (default 1)")
    add("--jobs", type=int, default=2, help="processes at a time (default 2)")
    add("--table", type=Path, help=f"write the table there, in place of what follows {TABLE}")
    parser.set_defaults(call=run)


def run(given: argparse.Namespace) -> int:
    """Take every guard of the cores out, one at a time, and run seeds until the simulator shows it."""
    everything = [*GUARDS, *drawn(given.drawn, given.draw_seed)]
    wanted = [mutant for mutant in everything if not given.only or mutant.name in given.only]
    unknown = set(given.only) - {mutant.name for mutant in wanted}
    if unknown:
        names = ", ".join(sorted(unknown))
        print(f"there is no mutant {names}; the names are in chaos/mutants/guards.py", file=sys.stderr)
        return 2

    found = scores(wanted, given.first, given.first + given.seeds, given.jobs, _tell)
    survivors = [each.mutant.name for each in found if not each.killed]
    text = "\n".join(table(found))
    print(f"\n{text}\n\n{len(found) - len(survivors)} of {len(found)} found")
    if given.table is not None:
        head = given.table.read_text().partition(TABLE)[0] if given.table.exists() else ""
        given.table.write_text(f"{head}{TABLE}\n\n{text}\n")
    if survivors:
        print(f"survivors: {', '.join(survivors)}")
    return 1 if survivors else 0


def _tell(found: Score) -> None:
    end = f"seed {found.seed} after {found.tried:,}: {found.how[:160]}"
    if not found.killed:
        end = f"SURVIVED {found.tried:,} seeds"
    print(f"{found.mutant.name:<32} {found.cpu_s:7.1f} s  {end}", flush=True)
