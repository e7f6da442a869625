"""Scratch directories: private, held while in use, collected when nobody holds them."""

import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from spark_ft.cluster.scratch import Scratch, collect_leftovers
from spark_ft.errors import ClusterError
from spark_ft.ids import AppId, HostId


def test_a_directory_is_private_and_named_after_its_application(tmp_path: Path) -> None:
    scratch = Scratch.create(str(tmp_path / "deep" / "er"), AppId("my app/../1"))
    assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
    assert scratch.path.name.startswith("spark-ft-my_app_.._1-")
    assert scratch.path.parent == tmp_path / "deep" / "er"
    assert scratch.host_root(HostId("host-0")) == scratch.path / "hosts" / "host-0"
    assert scratch.host_root(HostId("driver")) == scratch.path / "driver"
    scratch.remove()
    scratch.remove()
    assert list((tmp_path / "deep" / "er").iterdir()) == []


def test_a_place_where_none_can_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match="scratch"):
        Scratch.create(str(tmp_path / "file"), AppId("a"))


def test_ST_15_of_several_places_the_first_that_can_be_used_is(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    full, good = tmp_path / "full", tmp_path / "good"
    usage, none = shutil.disk_usage, SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: none if path == full else usage(path))
    several = f"{tmp_path}/file,{full},{good},{tmp_path}/other"
    scratch = Scratch.create(several, AppId("a"))
    assert scratch.path.parent == good and list(full.iterdir()) == []
    scratch.remove()
    with pytest.raises(ClusterError, match=r"file.*full"):
        Scratch.create(f"{tmp_path}/file,{full}", AppId("a"))


def test_ST_17_what_nobody_holds_is_collected_and_what_anybody_holds_is_not(tmp_path: Path) -> None:
    owner = Scratch.create(str(tmp_path), AppId("a"))
    (owner.path / "hosts" / "host-0" / "stores").mkdir(parents=True)
    worker = Scratch.join(owner.path)
    assert collect_leftovers(tmp_path) == []
    owner.close()  # the driver is gone, a worker still lives
    assert collect_leftovers(tmp_path) == []
    worker.close()
    assert collect_leftovers(tmp_path) == [owner.path]
    assert list(tmp_path.iterdir()) == []


def test_ST_17_other_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spark-ft-mine").mkdir()  # no lock file: not one of ours
    (tmp_path / "other").mkdir()
    assert collect_leftovers(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_a_directory_that_is_gone_cannot_be_joined(tmp_path: Path) -> None:
    scratch = Scratch.create(str(tmp_path), AppId("a"))
    scratch.remove()
    with pytest.raises(ClusterError, match="gone"):
        Scratch.join(scratch.path)


def test_addresses_are_ipc_unless_the_path_is_too_long(tmp_path: Path) -> None:
    short = Path("/tmp") / f"sft-{os.getpid()}"
    scratch = Scratch.create(str(short), AppId("a"))
    assert scratch.endpoint("driver") == f"ipc://{scratch.path}/c/driver"
    scratch.remove()
    shutil.rmtree(short)
    deep = Scratch.create(str(tmp_path / ("x" * 100)), AppId("a"))
    assert deep.endpoint("driver") == "tcp://127.0.0.1:*"
    deep.remove()


def test_ST_12_a_forked_child_cannot_remove_its_parents_directory(tmp_path: Path) -> None:
    scratch = Scratch.create(str(tmp_path), AppId("a"))
    child = os.fork()
    if child == 0:
        scratch.remove()
        os._exit(0)
    os.waitpid(child, 0)
    assert (scratch.path / "owner.lock").exists()
    scratch.remove()
