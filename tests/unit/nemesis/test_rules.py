"""Rules of the faulty network: whom they concern, how often they hit, the same again from the same seed."""

import pytest

from chaos.nemesis.rules import Judge, Rule, both_ways

EXECUTOR = ("executor", "executor-9f01", "host-0")
DRIVER = ("driver", "driver-77aa")


def hits(judge: Judge, count: int, said: tuple[str, ...] = ("Beat",)) -> list[int]:
    return [judge.message(EXECUTOR, DRIVER, "control", lambda: said, 100) for _ in range(count)]


@pytest.mark.parametrize("source", ["executor", "executor-9f*", "host-0", "worker|executor", "*"])
def test_a_process_is_meant_by_its_role_its_incarnation_or_its_host(source: str) -> None:
    assert hits(Judge([Rule("drop", source, "driver")]), 1) == [0]


@pytest.mark.parametrize(
    "rule",
    [Rule("drop", "host-1"), Rule("drop", "driver", "executor"), Rule("drop", plane="data"), Rule("hold")],
)
def test_other_processes_directions_and_planes_are_left_alone(rule: Rule) -> None:
    assert hits(Judge([rule]), 3) == [-1, -1, -1]


def test_exactly_the_nth_message_of_a_type_is_hit() -> None:
    judge = Judge([Rule("drop", messages=("Hello",), nth=2)])
    assert hits(judge, 2, ("Beat",)) == [-1, -1]
    assert hits(judge, 3, ("Beat", "Hello")) == [-1, 0, -1]
    tally = judge.tallies[0]
    assert (tally.seen, tally.touched, tally.touched_bytes) == (3, 1, 100)
    assert tally.as_json()["labels"] == {"Beat": 1, "Hello": 1}


def test_no_more_than_so_many_are_hit() -> None:
    assert hits(Judge([Rule("drop", most=2)]), 4) == [0, 0, -1, -1]


def test_the_first_rule_that_hits_decides() -> None:
    judge = Judge([Rule("drop", most=1), Rule("duplicate")])
    assert hits(judge, 3) == [0, 1, 1]


def test_chance_is_the_same_again_from_the_same_seed() -> None:
    def drawn(seed: int) -> list[int]:
        return hits(Judge([Rule("drop", probability=0.3, seed=seed)]), 200)

    assert drawn(1) == drawn(1) != drawn(2)
    assert 30 < drawn(1).count(0) < 90


def test_streams_are_held_in_the_direction_that_the_rule_names() -> None:
    judge = Judge([Rule("hold", "driver", "executor")])
    assert judge.stream("hold", DRIVER, EXECUTOR, "control") == 0
    assert judge.stream("hold", EXECUTOR, DRIVER, "control") == -1
    cut = Judge(both_ways("hold", "driver", "host-0"))
    assert cut.stream("hold", DRIVER, EXECUTOR, "data") >= 0 <= cut.stream("hold", EXECUTOR, DRIVER, "data")


def test_corruption_changes_one_bit_and_truncation_only_shortens() -> None:
    parts = [b"head", b"x" * 1000]
    changed = Judge([Rule("corrupt")]).corrupted(0, parts)
    before, after = b"".join(parts), b"".join(changed)
    assert [len(part) for part in changed] == [4, 1000]
    assert sum((a ^ b).bit_count() for a, b in zip(before, after, strict=True)) == 1
    short = Judge([Rule("truncate")]).corrupted(0, parts)
    assert short[0] == b"head" and len(short[1]) < 1000


def test_a_rule_travels_as_json() -> None:
    rule = Rule("delay", "executor", messages=("Beat",), delay_s=(0.1, 0.2), seed=4)
    assert Rule.from_json(rule.as_json() | {"delay_s": [0.1, 0.2], "messages": ["Beat"]}) == rule


@pytest.mark.parametrize("wrong", [{"action": "explode"}, {"action": "throttle"}])
def test_a_rule_that_says_nothing_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        Rule(**wrong)
