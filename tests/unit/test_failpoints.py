"""Named faults: when they fire, and that they say so."""

import pytest

from spark_ft import failpoints


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


def test_a_point_that_is_not_armed_does_nothing():
    failpoints.arm("other=raise")
    assert failpoints.hit("here") == ""


def test_only_the_nth_hit_fires():
    failpoints.arm("here=drop@3")
    assert [failpoints.hit("here") for _ in range(4)] == ["", "", "drop", ""]


def test_a_probability_fires_the_same_hits_again_for_the_same_process():
    def hits(label):
        failpoints.arm("here=duplicate%0.5", label)
        return [failpoints.hit("here") for _ in range(100)]

    assert hits("a") == hits("a") != hits("b")
    assert 30 < hits("a").count("duplicate") < 70


def test_a_file_makes_it_fire_once_in_all(tmp_path):
    for _ in range(2):
        failpoints.arm(f"here=drop!{tmp_path}/once")
        found = failpoints.hit("here")
    assert found == ""
    assert (tmp_path / "once").exists()


def test_a_file_switches_it_on_and_off(tmp_path):
    failpoints.arm(f"here=delay~{tmp_path}/on")
    told = []
    for act in (None, (tmp_path / "on").touch, (tmp_path / "on").unlink):
        if act is not None:
            act()
        told.append(failpoints.hit("here"))
    assert told == ["", "delay", ""]


def test_what_has_fired_leaves_a_file(tmp_path):
    failpoints.arm(f"witness={tmp_path}, here=raise@2, there=drop")
    failpoints.hit("here")
    assert not list(tmp_path.iterdir())
    with pytest.raises(failpoints.FailpointError, match="here"):
        failpoints.hit("here")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="failpoint 'here' has unknown action 'explode'"):
        failpoints.arm("here=explode")
