"""One manager of a work directory acts; another takes its place when it has ended, and never beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_ft.cluster.leadership import ENDED_S, LEASE_S, Leadership
from spark_ft.errors import ClusterError
from spark_ft.ids import HostId, Incarnation
from spark_ft.storage.lmdb_env import Segment

HOSTS = [HostId("host-0"), HostId("host-1")]


def begin(work_dir: Path, name: str = "manager-1") -> Leadership:
    leadership = Leadership(work_dir, Incarnation(name))
    assert leadership.owner_has_ended(0.0) and leadership.take()
    return leadership


class Other:
    """Another process's view of the same directory: an environment is opened once in a process."""

    CODE = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from spark_ft.cluster.leadership import Leadership\n"
        "it = Leadership(Path(sys.argv[1]), sys.argv[2])\n"
        "for line in sys.stdin:\n"
        "    name, *given = json.loads(line)\n"
        "    value = getattr(it, name)\n"
        "    print(json.dumps(value(*given) if callable(value) else value), flush=True)\n"
    )

    def __init__(self, work_dir: Path, name: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, str(work_dir), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def __call__(self, *words: object) -> object:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.kill()
        self.process.communicate(timeout=5)


def test_the_first_begins_at_epoch_one_and_knows_of_nobody(tmp_path: Path):
    leadership = begin(tmp_path)
    assert (leadership.epoch, leadership.awaited, leadership.knows_hosts) == (1, (), True)
    assert leadership.beat() and leadership.remember(HOSTS)
    leadership.resign()


def test_CM_1_the_next_one_is_of_a_later_epoch_and_awaits_the_hosts_of_the_one_before(tmp_path: Path):
    before = begin(tmp_path)
    assert before.remember(HOSTS)
    before.resign()
    after = begin(tmp_path, "manager-2")
    assert (after.epoch, after.awaited) == (2, tuple(HOSTS))
    after.resign()


def test_CM_4_an_owner_that_beats_is_left_alone_and_one_that_stands_still_is_followed_and_fenced(
    tmp_path: Path,
):
    with Other(tmp_path, "manager-1") as old:
        assert old("owner_has_ended", 0.0) and old("take") and old("beat")
        standby = Leadership(tmp_path, Incarnation("manager-2"))
        now_s = 0.0
        for _ in range(40):
            assert not standby.owner_has_ended(now_s)
            now_s += 0.5
            assert old("beat")
        assert not standby.owner_has_ended(now_s)
        assert not standby.owner_has_ended(now_s + LEASE_S - 0.1), "its process is there"
        assert standby.owner_has_ended(now_s + LEASE_S)
        assert standby.take() and standby.epoch == 2
        assert old("beat") is False and old("remember", ["host-9"]) is False, "it is fenced"
        assert standby.beat()
        standby.resign()


def test_CM_4_of_two_that_see_an_owner_end_one_follows(tmp_path: Path):
    begin(tmp_path).resign()
    with Other(tmp_path, "manager-2") as other:
        ours = Leadership(tmp_path, Incarnation("manager-3"))
        assert ours.owner_has_ended(0.0) and other("owner_has_ended", 0.0)
        assert other("take") is True and ours.take() is False
        assert other("epoch") == 2
        ours._segment.close()


def test_CM_1_an_owner_that_was_killed_is_followed_after_a_second(tmp_path: Path):
    with Other(tmp_path, "manager-1") as old:
        assert old("owner_has_ended", 0.0) and old("take") and old("remember", ["host-0"])
    after = Leadership(tmp_path, Incarnation("manager-2"))
    assert not after.owner_has_ended(10.0), "first it is listened to"
    assert not after.owner_has_ended(10.0 + ENDED_S - 0.1)
    assert after.owner_has_ended(10.0 + ENDED_S) and after.take()
    assert (after.epoch, after.awaited) == (2, ("host-0",))
    after.resign()


@pytest.mark.parametrize("damage", ["zeros", "short", "flips"])
def test_CM_5_a_damaged_state_is_put_aside_and_the_epoch_goes_on(tmp_path: Path, damage: str):
    before = begin(tmp_path)
    before.remember(HOSTS)
    before.resign()
    path = tmp_path / "state" / "data.mdb"
    content = path.read_bytes()
    match damage:
        case "zeros":
            path.write_bytes(bytes(len(content)))
        case "short":
            path.write_bytes(content[:4096])
        case _:
            path.write_bytes(bytes(byte ^ 0x55 for byte in content))
    after = begin(tmp_path, "manager-2")
    assert after.epoch == 2 and after.awaited == () and not after.knows_hosts
    assert len(list(tmp_path.glob("state.damaged-*"))) == 1
    assert after.remember(HOSTS) and after.beat()
    after.resign()


def test_CM_5_when_all_is_lost_the_epoch_is_later_than_any(tmp_path: Path):
    begin(tmp_path).resign()
    (tmp_path / "state" / "data.mdb").write_bytes(b"\0" * 8192)
    (tmp_path / "epoch").unlink()
    after = begin(tmp_path, "manager-2")
    assert after.epoch > 1_000_000_000
    after.resign()


def test_CM_5_a_disk_that_is_full_costs_what_is_remembered_and_nothing_else(tmp_path: Path, monkeypatch):
    from spark_ft.errors import StoreFull

    leadership = begin(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "write", lambda *_, **__: (_ for _ in ()).throw(StoreFull("no room", 1, 0)))
        assert leadership.remember(HOSTS) and leadership.beat(), "it is not fenced by that"
    leadership.resign()


def test_a_directory_that_cannot_be_had_is_refused_by_name(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ClusterError, match="cannot use the work directory"):
        Leadership(tmp_path / "file", Incarnation("manager-1"))
