"""Who manages a cluster: addresses are read, later epochs followed, other versions refused by name."""

from __future__ import annotations

import pytest

from spark_ft.cluster.finder import Finder, Found, cluster_token, parse_masters
from spark_ft.errors import ClusterError, SettingsError
from spark_ft.executor.versions import mismatch, versions
from spark_ft.settings import Settings


def answer(manager: str, epoch: int, **more: str) -> dict[str, str]:
    words = {"me": manager, "state": "active", "epoch": str(epoch), "cores": "4", "refused": ""}
    return {**words, **versions(), **more}


@pytest.fixture
def heard():
    """(a finder whose thread hears nobody, what it found)"""
    found: list[Found] = []
    finder = Finder(("tcp://127.0.0.1:1",), bytes(16), "worker", None, found.append)
    yield finder, found
    finder.stop()


def test_a_master_url_has_one_address_or_several():
    assert parse_masters("spark://a.example:7077") == ("tcp://a.example:7077",)
    assert parse_masters(" spark://127.0.0.1:1,b:2 ") == ("tcp://127.0.0.1:1", "tcp://b:2")


@pytest.mark.parametrize("url", ["spark://", "spark://host", "spark://host:port", "spark://a:1,", "a:1"])
def test_a_master_url_that_cannot_be_read_is_refused_by_name(url):
    with pytest.raises(SettingsError, match="Could not parse Master URL"):
        parse_masters(url)


def test_CM_4_a_manager_of_an_earlier_epoch_is_followed_by_nobody(heard):
    finder, found = heard
    finder._heard("tcp://a:1", answer("manager-1", 7))
    finder._heard("tcp://b:1", answer("manager-0", 6))
    finder._heard("tcp://b:1", answer("manager-2", 7))
    assert [(f.manager, f.epoch) for f in found] == [("manager-1", 7)]
    finder._heard("tcp://b:1", answer("manager-3", 8))
    assert finder.found == Found("manager-3", "tcp://b:1", 8, 4)
    assert finder.first(0.0) == finder.found


def test_a_manager_that_is_not_active_is_not_followed(heard):
    finder, found = heard
    finder._heard("tcp://a:1", answer("manager-1", 7, state="standby"))
    assert not found and finder.found is None


@pytest.mark.parametrize("part", ["python", "spark_ft", "cloudpickle", "wire"])
def test_EX_11_each_part_of_a_version_is_compared(heard, part):
    assert mismatch(versions()) == ""
    finder, found = heard
    finder._heard("tcp://a:1", answer("manager-1", 7, **{part: "0.0"}))
    assert not found
    with pytest.raises(ClusterError, match=f"VERSION_MISMATCH.*{part} is 0.0 there and"):
        finder.first(0.0)


def test_the_secret_makes_the_token():
    tokens = {cluster_token(Settings(secret=secret)) for secret in ("", "one", "two")}
    assert len(tokens) == 3 and all(len(token) == 16 for token in tokens)
