"""What is kept in memory stays what was computed, whatever its readers do to it (row TK-13)."""

import enum
from collections import namedtuple
from decimal import Decimal

import numpy as np
import pytest

from spark_ft.storage.kept import Kept

Point = namedtuple("Point", "name where")


class Colour(enum.Enum):
    RED = 1


class Box:
    def __init__(self, content):
        self.content = content

    def __eq__(self, other):
        return type(other) is Box and self.content == other.content

    __hash__ = None


class Counted(int):
    """An int with attributes: not to be taken for one."""


def kept(*batches: list) -> Kept:
    held = Kept()
    for batch in batches:
        held.add(batch)
    return held


PLAIN = [1, 2.5, 3j, True, None, "a", b"b", (1, ("x", None)), Point("p", (1, 2)), frozenset({1}), Decimal(3)]


def test_TK_13_immutable_records_are_held_as_they_are() -> None:
    for batch in ([*PLAIN], [(n, str(n)) for n in range(9)], [np.float64(2), (1, np.int8(3))]):
        held = kept(batch)
        assert all(one is other for one, other in zip(held, batch, strict=True))
        assert Kept().add(batch) == 0


def dirty(record) -> None:
    """Change whatever can be changed in a record."""
    match record:
        case dict():
            record["more"] = 1
        case list() | bytearray():
            record.append(1)
        case set():
            record.add("more")
        case tuple():
            for each in record:
                dirty(each)
        case Box() | Counted():
            record.content = "other"


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"a": 1}, lambda: [1], lambda: {1}, lambda: bytearray(b"x"), lambda: Box([1]),
        lambda: (1, [2]), lambda: Point("p", [1]), lambda: ((((1, {"deep": 1}),),),),
    ],
)  # fmt: skip
def test_TK_13_what_a_reader_changes_the_next_one_does_not_see(make) -> None:
    mine = [make(), 7, make()]
    held = kept(mine)
    for record in mine:  # by whoever has computed it
        dirty(record)
    first = list(held)
    assert first == [make(), 7, make()]
    for record in first:
        dirty(record)
    assert list(held) == [make(), 7, make()]


def test_TK_13_one_record_of_many_that_can_be_changed_is_seen() -> None:
    batch = [(n, "x") for n in range(5000)]
    batch[4321] = (4321, ["x"])
    held = kept(batch)
    list(held)[4321][1].append("y")
    assert list(held)[4321] == (4321, ["x"])


def test_TK_13_a_subclass_of_a_plain_type_is_not_taken_for_it() -> None:
    number = Counted(3)
    number.content = 1
    held = kept([number])
    next(iter(held)).content = 2
    assert next(iter(held)).content == 1 and number.content == 1


def test_TK_13_arrays_are_copied_once_and_cannot_be_written_into() -> None:
    mine, grid = np.arange(4.0), np.arange(12).reshape(3, 4)
    held = kept([mine, (1, mine), Point("p", grid[:, 1])])
    mine[0] = 99
    bare, (_, inside), point = held
    assert bare is inside and bare[0] == 0.0 and point.where.tolist() == [1, 5, 9]
    assert bare is next(iter(held)), "a read costs nothing"
    for array in (bare, point.where):
        with pytest.raises(ValueError, match="read-only"):
            array += 1
    bare.copy()[0] = 1


def test_TK_13_arrays_of_objects_and_in_other_records_are_each_readers_own() -> None:
    objects, grid = np.array([[1], {}], dtype=object), np.arange(4)
    held = kept([objects, {"grid": grid}])
    first = list(held)
    first[0][0] = "other"
    first[1]["grid"] = None
    grid[0] = 99
    again = list(held)
    assert again[0].tolist() == [[1], {}] and again[1]["grid"].tolist() == [0, 1, 2, 3]


def test_what_cannot_be_pickled_is_held_as_it_is() -> None:
    class Refuses:
        def __reduce__(self):
            raise OSError("no")

    record = Refuses()
    assert next(iter(kept([record]))) is record


def test_reading_and_draining() -> None:
    held = kept([1, 2], [{"a": 1}], [Colour.RED, 3])
    one, other = iter(held), iter(held)
    assert [next(one), *other, *one] == [1, 1, 2, {"a": 1}, Colour.RED, 3, 2, {"a": 1}, Colour.RED, 3]
    assert list(held.drain()) == [1, 2, {"a": 1}, Colour.RED, 3] and list(held) == []
