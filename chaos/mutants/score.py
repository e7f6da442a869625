"""All mutants, some at a time, and the table of seeds to the kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass

from chaos.mutants.mutant import Mutant


@dataclass(frozen=True)
class Score:
    """What became of one mutant.  ``seed`` is None for a survivor; ``tried`` counts the last seed too."""

    mutant: Mutant
    seed: int | None
    tried: int
    how: str
    cpu_s: float

    @property
    def killed(self) -> bool:
        return self.seed is not None


def score(mutant: Mutant, first: int, last: int) -> Score:
    """Hunt one mutant in a process of its own.

    Raises:
        MutantError: its place is not in the core any more.
        RuntimeError: the process itself failed, which says nothing about the mutant.
    """
    mutant.source()
    ended = _hunt(mutant, first, last)
    if ended.returncode:
        if ended.returncode < 0 or not _raised_by_core(ended.stderr, mutant):
            raise RuntimeError(
                f"the hunt for {mutant.name} failed ({ended.returncode}):\n{ended.stderr[-2000:]}"
            )
        last_line = ended.stderr.strip().rpartition("\n")[2]
        return Score(mutant, first, 1, f"the core does not load: {last_line}", 0.0)
    found = Score(mutant, **json.loads(ended.stdout.splitlines()[-1]))
    if found.seed is not None and (control := _hunt(None, found.seed, found.seed + 1)).returncode == 0:
        healthy = json.loads(control.stdout.splitlines()[-1])
        if healthy["seed"] is not None:
            raise RuntimeError(
                f"seed {found.seed} shows something without any mutant: {healthy['how']}; mend that first"
            )
    return found


def _hunt(mutant: Mutant | None, first: int, last: int) -> subprocess.CompletedProcess[str]:
    asked = {"mutant": None if mutant is None else asdict(mutant), "first": first, "last": last}
    command = [sys.executable, "-m", "chaos.mutants.hunt"]
    return subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)


def _raised_by_core(stderr: str, mutant: Mutant) -> bool:
    return f"<mutant {mutant.name}>" in stderr


def scores(
    mutants: Sequence[Mutant],
    first: int,
    last: int,
    jobs: int,
    told: Callable[[Score], None] = lambda _: None,
) -> list[Score]:
    """Every mutant's score, in the order given; ``told`` hears of each as it is known."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(score, mutant, first, last): mutant.name for mutant in mutants}
        found: dict[str, Score] = {}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            told(found[futures[future]])
    return [found[mutant.name] for mutant in mutants]


def table(found: Sequence[Score]) -> Iterator[str]:
    """The table in Markdown: hardest to find last."""
    yield "| mutant | what is taken out | seeds to the kill | shown by |"
    yield "|---|---|---|---|"
    for each in sorted(found, key=lambda s: (not s.killed, s.tried, s.mutant.name)):
        tried = f"{each.tried:,}" if each.killed else f"**survived {each.tried:,}**"
        guards = each.mutant.guards
        if guards == "drawn":
            guards = f"`{each.mutant.new.splitlines()[-1].strip()}`"
        yield f"| {each.mutant.name} | {_cell(guards)} | {tried} | {_cell(each.how)} |"


def _cell(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else ""
    return line.replace("|", "\\|")[:140]
