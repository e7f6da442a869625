"""``python -m chaos mutants``: would the simulator notice if a guard were missing?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from chaos.mutants.draw import drawn
from chaos.mutants.guards import GUARDS
from chaos.mutants.score import Score, scores, table


@click.command()
@click.option(
    "--seeds", "last", default=10_000, show_default=True, help="Seeds that each mutant may survive at most."
)
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--only", multiple=True, help="Names of mutants; all when none is given.")
@click.option(
    "--drawn", "drawn_count", default=10, show_default=True, help="Mutants drawn besides the listed ones."
)
@click.option("--draw-seed", default=1, show_default=True, help="Which are drawn.")
@click.option("--jobs", default=2, show_default=True, help="Processes at a time.")
@click.option(
    "--table", "table_path", type=click.Path(path_type=Path), help="Write the table there, in Markdown."
)
def mutants(
    last: int,
    first: int,
    only: tuple[str, ...],
    drawn_count: int,
    draw_seed: int,
    jobs: int,
    table_path: Path | None,
) -> None:
    """Take every guard of the cores out, one at a time, and run seeds until the simulator shows it."""
    everything = [*GUARDS, *drawn(drawn_count, draw_seed)]
    wanted = [mutant for mutant in everything if not only or mutant.name in only]
    unknown = set(only) - {mutant.name for mutant in wanted}
    if unknown:
        raise click.UsageError(
            f"there is no mutant {', '.join(sorted(unknown))}; the names are in chaos/mutants/guards.py"
        )

    def told(found: Score) -> None:
        end = (
            f"seed {found.seed} after {found.tried:,}: {found.how[:160]}"
            if found.killed
            else f"SURVIVED {found.tried:,} seeds"
        )
        click.echo(f"{found.mutant.name:<32} {found.cpu_s:7.1f} s  {end}")

    found = scores(wanted, first, first + last, jobs, told)
    survivors = [each.mutant.name for each in found if not each.killed]
    text = "\n".join(table(found))
    click.echo(f"\n{text}\n\n{len(found) - len(survivors)} of {len(found)} found")
    if table_path is not None:
        table_path.write_text(text + "\n")
    if survivors:
        click.echo(f"survivors: {', '.join(survivors)}")
        sys.exit(1)
