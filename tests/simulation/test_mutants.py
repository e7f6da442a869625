"""The simulator notices a guard that is missing: five of docs/mutants.md, each within 200 seeds."""

import pytest

from chaos.mutants.guards import GUARDS
from chaos.mutants.score import score

QUICK = ("fence-on-loss", "killed-counts-not", "one-delivery", "adopt-committed", "every-end-is-told")


@pytest.mark.parametrize("mutant", [m for m in GUARDS if m.name in QUICK], ids=lambda mutant: mutant.name)
def test_a_guard_that_is_taken_out_is_missed_within_200_seeds(mutant):
    found = score(mutant, 0, 200)
    assert found.killed, f"{mutant.name} survived: {mutant.guards}"


def test_as_many_guards_are_taken_out_as_were_asked_for():
    assert len(GUARDS) >= 25 and len(QUICK) == len({m.name for m in GUARDS} & set(QUICK))
