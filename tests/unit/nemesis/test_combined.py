"""Packages are written out as faults that a schedule takes, the same from the same seed."""

import random

import pytest

from chaos import schedule
from chaos.nemesis.combined import PACKAGES, written_out
from chaos.nemesis.registry import kind_of


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_is_a_schedule_of_known_kinds_that_heals(name: str) -> None:
    texts = written_out([f"{name}@2"], random.Random(1))
    faults = schedule.given(texts, random.Random(1))
    package = PACKAGES[name]
    assert len(faults) == sum(step.times for step in package.steps)
    assert all(fault.at_s >= 2.0 for fault in faults)
    for fault in faults:
        kind = kind_of(fault.nemesis, fault.kind)
        assert (fault.until_s > fault.at_s) == bool(kind.lasts_s[1]), f"{fault}: what lasts is healed"
        assert package.managed or not kind.managed, f"{fault} needs a manager"
    assert len({(fault.nemesis, fault.kind) for fault in faults}) > 1 or name == "storm"


def test_what_is_no_package_stays_and_a_seed_gives_the_same_again() -> None:
    texts = ["pause.short@1-2", "bad-day@3", "disk.flip@9"]
    drawn = [written_out(texts, random.Random(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] == texts[0] and drawn[0][-1] == texts[-1]
