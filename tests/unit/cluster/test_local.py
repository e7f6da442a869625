"""Which processes a master URL asks for."""

import os

import pytest

from spark_ft.cluster.local import Layout, parse_master
from spark_ft.errors import SettingsError
from spark_ft.settings import Settings

GIB = 1 << 30


def layout(master: str, **conf: str) -> Layout:
    return parse_master(Settings.from_conf({"spark.master": master, **conf}))


@pytest.mark.parametrize(
    ("master", "expected"),
    [
        ("local", Layout(1, 1, 1, GIB, False, 1)),
        ("local[3]", Layout(1, 3, 1, GIB, False, 1)),
        ("local[ 3 , 4 ]", Layout(1, 3, 1, GIB, False, 4)),
        ("local[*]", Layout(1, len(os.sched_getaffinity(0)), 1, GIB, False, 1)),
        ("local-cluster[2,2,1024]", Layout(2, 2, 1, 512 << 20, True, 4)),
    ],
)
def test_a_master_names_its_processes(master: str, expected: Layout) -> None:
    assert layout(master) == expected


def test_executor_cores_make_fewer_executors_with_more_slots() -> None:
    cores = {"spark.executor.cores": "2"}
    assert layout("local[4]", **cores) == Layout(1, 2, 2, GIB, False, 1)
    assert layout("local-cluster[1,4,1024]", **cores) == Layout(1, 2, 2, 512 << 20, True, 4)


@pytest.mark.parametrize(
    "master", ["", "lokal[2]", "local[0]", "local[-1]", "local[2", "local[2,0]", "local-cluster[1,2]", "yarn"]
)
def test_a_bad_master_is_refused_by_name(master: str) -> None:
    with pytest.raises(SettingsError, match="Could not parse Master URL") as caught:
        layout(master)
    assert repr(master) in str(caught.value)
    assert isinstance(caught.value, ValueError)
