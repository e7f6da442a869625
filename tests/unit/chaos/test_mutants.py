"""Mutants: every guard still stands where the list says, and a mutated core is really what runs."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from chaos.mutants.draw import MODULES, conditions, drawn
from chaos.mutants.guards import GUARDS
from chaos.mutants.mutant import Mutant, MutantError, module_path
from chaos.mutants.score import Score, table

ORDER = next(mutant for mutant in GUARDS if mutant.name == "link-order")


@pytest.mark.parametrize("mutant", GUARDS, ids=lambda mutant: mutant.name)
def test_the_place_of_every_guard_is_found_and_what_replaces_it_compiles(mutant):
    assert mutant.source() != module_path(mutant.module).read_text()


def test_no_two_mutants_are_the_same():
    assert len({mutant.name for mutant in GUARDS}) == len(GUARDS)
    assert len({mutant.source() for mutant in GUARDS}) == len(GUARDS)


def test_a_guard_that_has_moved_is_told_by_name():
    moved = replace(ORDER, old="if there_is_no_such_line:")
    with pytest.raises(MutantError, match=r"link-order.*stands 0 times.*guards\.py"):
        moved.source()
    with pytest.raises(MutantError, match=r"no single Link\.nothing"):
        replace(ORDER, function="Link.nothing").source()


def test_only_the_named_function_is_changed():
    text, mutated = module_path(ORDER.module).read_text(), ORDER.source()
    pairs = zip(text.splitlines(), mutated.splitlines(), strict=True)
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    assert [before.strip() for before, _ in changed] == [ORDER.old]


def test_conditions_of_all_cores_can_be_turned_round():
    everything = [mutant for module in MODULES for mutant in conditions(module)]
    assert len(everything) > 200
    for mutant in everything[::10]:
        assert mutant.source() != module_path(mutant.module).read_text()


def test_what_only_words_something_is_not_turned_round():
    assert not [m for m in conditions("spark_ft.scheduler.ends") if m.function in ("_text", "_poison")]
    assert not [m for m in conditions("spark_ft.scheduler.ends") if m.new.endswith("not (traceback)")]


def test_the_same_seed_draws_the_same_mutants_and_another_one_others():
    assert drawn(10, 1) == drawn(10, 1)
    assert drawn(10, 1) != drawn(10, 2)
    assert len({mutant.name for mutant in drawn(10, 1)}) == 10


def test_a_process_that_installs_a_mutant_runs_it_and_no_other_process_does():
    program = (
        "import json, sys\n"
        "from chaos.mutants.hunt import install\n"
        "from chaos.mutants.mutant import Mutant\n"
        "if sys.argv[1] == 'mutant': install(Mutant(**json.load(sys.stdin)))\n"
        "from spark_ft.transport.link import Link\n"
        "link = Link(0.0)\n"
        "print([len(link.receive(seq, 0, b'x', 0.0)) for seq in (2, 1)])\n"
    )

    def run(what: str) -> str:
        asked = json.dumps(asdict(ORDER))
        command = [sys.executable, "-c", program, what]
        return subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout.strip()

    assert run("none") == "[0, 2]"
    assert run("mutant") == "[1, 0]"  # the second frame overtakes the first, which is then lost


def test_the_table_lists_survivors_last_and_says_so():
    killed = Score(ORDER, 41, 42, "S3: delivered twice", 0.5)
    survivor = Score(Mutant("m", "a.b", "f", "x", "not (x)", "drawn"), None, 10_000, "", 99.0)
    rows = list(table([survivor, killed]))
    assert rows[2].startswith("| link-order |") and "| 42 |" in rows[2] and "delivered twice" in rows[2]
    assert "**survived 10,000**" in rows[3] and "`not (x)`" in rows[3]
