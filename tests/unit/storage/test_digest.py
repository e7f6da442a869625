"""What a persisted partition holds, in 64 bits (BL-12)."""

import random
from collections import namedtuple
from typing import Any

import pytest

from spark_ft.storage.digest import UNKNOWN, Digest

Point = namedtuple("Point", "x y")


def digest(records: list[Any], batch: int = 100) -> int:
    made = Digest()
    for start in range(0, len(records), batch):
        made.add(records[start : start + batch])
    return made.value()


PLAIN: list[Any] = [(i, str(i), [i / 3, None], {"k": b"v"}) for i in range(1000)]


def test_BL_12_equal_plain_records_have_one_digest_however_they_are_batched() -> None:
    again = [(i, "".join(str(i)), [i / 3, None], {"".join("k"): b"v"}) for i in range(1000)]
    assert digest(PLAIN, 1000) == digest(PLAIN, 7) == digest(again, 100) > 0


@pytest.mark.parametrize("at", [0, 1, 63, 500, 999])
def test_BL_12_one_plain_record_that_differs_shows_wherever_it_is(at: int) -> None:
    changed = [*PLAIN]
    changed[at] = (*changed[at][:1], "other", *changed[at][2:])
    assert digest(changed) != digest(PLAIN)
    assert digest(PLAIN[:-1]) != digest(PLAIN)


def test_BL_12_other_records_are_looked_at_in_places_and_counted() -> None:
    points = [Point(i, random.Random(i).random()) for i in range(1000)]
    again = [Point(i, random.Random(i).random()) for i in range(1000)]
    drawn = [Point(i, random.random()) for i in range(1000)]
    assert digest(points) == digest(again) > 0
    assert len({digest(points), digest(drawn), digest(points[:999])}) == 3


def test_BL_12_what_cannot_be_told_is_unknown() -> None:
    assert digest([lambda: None]) == UNKNOWN
