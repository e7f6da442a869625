"""The environment behind a store: one opener, no use after fork, refusals instead of crashes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spark_ft import failpoints
from spark_ft.errors import BlockCorrupt, BlockMissing, StorageError, StoreFull
from spark_ft.storage import filesystem, lmdb_env
from spark_ft.storage.lmdb_env import SegmentFull


@pytest.fixture
def segment(tmp_path: Path):
    segment = lmdb_env.create_segment(tmp_path / "seg", 1 << 20, sync=False)
    yield segment
    segment.close()


def reopened(segment: lmdb_env.Segment) -> lmdb_env.Segment:
    segment.close()
    return lmdb_env.open_segment(segment.path)


def test_what_was_written_is_read_back_by_another_opener(segment) -> None:
    segment.write([(b"a1", b"x"), (b"a2", b"y" * 5000), (b"b", b"z")])
    reader = reopened(segment)
    assert reader.get(b"a2") == b"y" * 5000 and reader.get(b"c") is None
    assert reader.keys(b"a") == [b"a1", b"a2"]


def test_ST_13_a_path_is_opened_once_in_a_process_whatever_it_is_called(segment, tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to(segment.path)
    assert lmdb_env.open_segment(segment.path) is segment
    assert lmdb_env.open_segment(tmp_path / "other") is segment


def test_ST_2_a_transaction_that_does_not_fit_leaves_nothing_behind(segment) -> None:
    with pytest.raises(SegmentFull):
        segment.write([(b"k%d" % i, b"x" * 100_000) for i in range(20)])
    assert segment.keys(b"k") == []
    segment.write([(b"k", b"small")])
    assert segment.get(b"k") == b"small"


def test_ST_9_a_truncated_file_is_refused_before_it_is_mapped(segment) -> None:
    segment.write([(b"k", b"x" * 50_000)])
    segment.close()
    data = segment.path / "data.mdb"
    whole = data.read_bytes()
    for size in (0, 100, 4096, 8192, len(whole) - 4096):
        data.write_bytes(whole[:size])
        with pytest.raises(BlockCorrupt):
            lmdb_env.open_segment(segment.path)


def test_a_segment_of_another_format_is_refused_by_name(segment) -> None:
    segment.write([(lmdb_env.FORMAT_KEY, b"spark_ft store 999")])
    with pytest.raises(StorageError, match=r"STORE_FORMAT.*999"):
        reopened(segment)


def test_a_missing_segment_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BlockMissing):
        lmdb_env.open_segment(tmp_path / "nothing")


def test_ST_11_a_store_without_its_lock_file_is_still_readable(segment) -> None:
    segment.write([(b"k", b"v")])
    (segment.path / "lock.mdb").unlink()
    assert reopened(segment).get(b"k") == b"v"


def test_ST_12_a_fork_child_cannot_use_and_not_harm_what_its_parent_has_open(segment) -> None:
    segment.write([(b"k", b"v")])
    child = os.fork()
    if child == 0:
        refused = 0
        for use in (lambda: segment.get(b"k"), lambda: lmdb_env.open_segment(segment.path)):
            try:
                use()
            except StorageError:
                refused += 1
        segment.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    segment.write([(b"k2", b"v2")])
    assert segment.get(b"k2") == b"v2"


def test_a_reader_of_an_unlinked_file_is_closed_by_the_sweep(segment) -> None:
    reader = reopened(segment)
    lmdb_env.sweep()
    assert reader.is_open
    (segment.path / "data.mdb").unlink()
    lmdb_env.sweep()
    assert not reader.is_open


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )


STALE_READER = """
import os, sys
from pathlib import Path
from spark_ft.storage import lmdb_env
lmdb_env.open_segment(Path(sys.argv[1])).read(lambda get: os.kill(os.getpid(), 9))
"""


def test_ST_5_slots_of_killed_readers_are_freed(segment) -> None:
    assert run_python(STALE_READER, str(segment.path)).returncode == -9
    assert segment.reader_check() == 1
    assert segment.reader_check() == 0


FILL = """
import sys
from pathlib import Path
from spark_ft.errors import StoreFull
from spark_ft.storage import lmdb_env
root = Path(sys.argv[1])
segment = lmdb_env.create_segment(root / "seg", 64 << 20, sync=False)
(root / "ballast").write_bytes(b"x" * (3 << 20))
segment.write([(b"before", b"x" * 1000)])
try:
    for i in range(20):
        segment.write([(b"k%02d" % i, b"x" * (1 << 20))])
except StoreFull as full:
    print("full", full.needed_bytes, full.free_bytes < 2 << 20)
(root / "ballast").unlink()
segment.write([(b"after", b"y" * (1 << 20))])
print(segment.get(b"before") == b"x" * 1000, len(segment.get(b"after")))
"""


def on_a_small_disk(program: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program on a disk of 8 MiB that nobody else sees."""
    mount = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=8m none "$1" && shift && exec "$@"', "sh"]
    try:
        allowed = subprocess.run([*mount, str(directory), "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("mounting a small file system takes privileges")
    command = [*mount, str(directory), sys.executable, "-c", program, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_ST_1_no_room_on_the_disk_is_store_full_and_the_store_goes_on_when_there_is(tmp_path: Path) -> None:
    done = on_a_small_disk(FILL, tmp_path)
    assert done.stdout.splitlines() == ["full 1048576 True", "True 1048576"], done.stderr


CREATE = """
import os, sys
from pathlib import Path
from spark_ft.errors import StoreFull
from spark_ft.storage import lmdb_env
root = Path(sys.argv[1])
disk = os.statvfs(root)
(root / "ballast").write_bytes(b"x" * disk.f_bavail * disk.f_frsize)
made = 0
for pages in range(16):
    os.truncate(root / "ballast", (disk.f_bavail - pages) * disk.f_frsize)
    try:
        segment = lmdb_env.create_segment(root / f"seg-{pages}", 1 << 20, sync=False)
        segment.get(b"key")
        made += 1
        segment.close()
        (segment.path / "data.mdb").unlink()
        (segment.path / "lock.mdb").unlink()
        segment.path.rmdir()
    except StoreFull:
        assert not (root / f"seg-{pages}").exists()
        assert os.statvfs(root).f_bavail == pages, "what is not there takes no room"
print(made)
"""


def test_ST_1_a_segment_is_made_or_not_on_a_disk_with_few_pages_left_and_nobody_dies(tmp_path: Path) -> None:
    done = on_a_small_disk(CREATE, tmp_path)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    assert 1 <= int(done.stdout) <= 6  # eight pages of locks, two heads, a leaf


def test_store_full_tells_what_was_needed_and_what_is_free() -> None:
    full = filesystem.os_error(OSError(28, "No space left on device"), Path("/tmp/x"), 77)
    assert isinstance(full, StoreFull)
    assert full.needed_bytes == 77 and full.free_bytes > 0


MOUNTS = """/dev/sda / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
tmpfs /home/me/local\\040disk tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/tmp/x", True), ("/home/me/x", False), ("/homely", True), ("/home/me/local disk/x", True)],
)
def test_ST_16_a_network_file_system_is_refused_by_name(path: str, allowed: bool) -> None:
    if allowed:
        filesystem.check_file_system(Path(path), MOUNTS)
    else:
        with pytest.raises(StorageError, match=r"STORE_UNSUPPORTED_FS.*nfs4"):
            filesystem.check_file_system(Path(path), MOUNTS)


NO_ROOM = """
import resource, sys
from pathlib import Path
from spark_ft.storage import lmdb_env

segment = lmdb_env.create_segment(Path(sys.argv[1]), 1 << 28, sync=False)
segment.write([(b"k", b"value")])
segment.close()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 27), resource.RLIM_INFINITY))
try:
    lmdb_env.open_segment(segment.path)
except MemoryError as error:
    print("no memory:", error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(lmdb_env.open_segment(segment.path).get(b"k"))
"""


def test_MEM_6_no_room_to_map_a_file_is_no_damage_of_the_file(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", NO_ROOM, str(tmp_path / "seg")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    lines = told.stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("no memory:"), told.stdout + told.stderr
    assert lines[1] == "b'value'"


def closed_segment(path: Path) -> Path:
    made = lmdb_env.create_segment(path, 1 << 20, sync=False)
    made.write([(b"k", path.name.encode())])
    made.close()
    lmdb_env.mark_closed(path)
    return path


@pytest.mark.parametrize("name", ["lock.mdb", "data.mdb"])
@pytest.mark.parametrize("when", ["while it is read", "while it is opened"])
def test_ST_2_a_file_of_a_segment_may_have_the_lock_inode_of_one_that_is_unlinked_but_still_read(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, kept = closed_segment(tmp_path / "old"), tmp_path / "kept"
    os.link(old / "lock.mdb", kept)  # or its inode might go to anybody
    if when == "while it is opened":
        opened = lmdb_env._open_readonly

        def unlinked(path: Path, map_bytes: int) -> object:
            try:
                return opened(path, map_bytes)
            finally:
                shutil.rmtree(path)

        with monkeypatch.context() as patched:
            patched.setattr(lmdb_env, "_open_readonly", unlinked)
            assert lmdb_env.open_segment(old).get(b"k") == b"old"
    else:
        assert lmdb_env.open_segment(old).get(b"k") == b"old"
        shutil.rmtree(old)
    new = closed_segment(tmp_path / "new")
    shutil.copyfile(new / name, kept)  # another file's content, the same inode
    os.replace(kept, new / name)
    assert lmdb_env.open_segment(new).get(b"k") == b"new"
    assert lmdb_env.take_over(new).get(b"k") == b"new"


@pytest.mark.parametrize("left", [0, 2, 3])
def test_ST_9_a_file_that_shrinks_under_its_readers_is_corrupt_and_kills_nobody(tmp_path, left):
    path = tmp_path / "seg-00000"
    writer = lmdb_env.create_segment(path, 1 << 20, sync=False)
    try:
        writer.write([(b"key", os.urandom(100_000))])
        assert writer.is_in_place
        os.truncate(path / "data.mdb", left * 4096)
        assert not writer.is_in_place, "its writer goes on elsewhere"
        with pytest.raises(BlockCorrupt, match="of at least"):
            writer.get(b"key")
        with pytest.raises(BlockCorrupt, match="of at least"):
            writer.keys(b"k")
    finally:
        writer.close()


def test_ST_16_whoever_knows_better_may_have_a_store_anywhere(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(filesystem, "_NETWORK_FILE_SYSTEMS", {kind for _, _, kind in mounts()})
    with pytest.raises(StorageError, match=r"STORE_UNSUPPORTED_FS.*spark.ft.store.anyFileSystem"):
        lmdb_env.create_segment(tmp_path / "refused", 1 << 20, sync=False)
    assert not (tmp_path / "refused").exists()
    lmdb_env.create_segment(tmp_path / "seg", 1 << 20, sync=False, any_file_system=True).close()


def mounts() -> list[list[str]]:
    return [line.split(" ")[:3] for line in Path("/proc/self/mounts").read_text().splitlines()]


GROW = """
import sys
import lmdb

env = lmdb.open(sys.argv[1], map_size=64 << 20, max_readers=510)
with env.begin(write=True) as txn:
    txn.put(b"large", bytes(8 << 20))
"""


def test_ST_3_a_reader_whose_map_has_become_too_small_maps_it_anew(segment) -> None:
    segment.write([(b"key", b"value")])
    reader = reopened(segment)
    assert reader.get(b"key") == b"value"
    subprocess.run([sys.executable, "-c", GROW, str(segment.path)], check=True, timeout=30)
    large = reader.get(b"large")
    assert large is not None and len(large) == 8 << 20
    assert reader.get(b"key") == b"value"


def test_ST_11_where_no_store_can_be_made_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"STORE_NOT_WRITABLE.*Not a directory"):
        lmdb_env.create_segment(tmp_path / "file" / "seg", 1 << 20, sync=False)


@pytest.fixture
def armed():
    yield failpoints.arm
    failpoints.arm("")


def test_ST_14_a_disk_that_fails_is_damage_to_its_reader_and_an_error_of_the_store_to_its_writer(
    segment, armed
) -> None:
    segment.write([(b"key", b"value")])
    armed("store.read=io@1,store.write=io@1")
    with pytest.raises(BlockCorrupt, match="Input/output error"):
        segment.get(b"key")
    with pytest.raises(StorageError, match=r"STORAGE_ERROR.*Input/output error"):
        segment.write([(b"other", b"value")])
    assert segment.get(b"key") == b"value" and segment.get(b"other") is None


FEW_FILES = """
import os, resource, sys
from pathlib import Path
from spark_ft.errors import HostExhausted
from spark_ft.storage import lmdb_env

lmdb_env.create_segment(Path(sys.argv[1]) / "old", 1 << 20, sync=False).close()
first = os.dup(0)  # the lowest that is free
os.close(first)
for allowed in range(3):  # files that may still be opened
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + allowed, most))
    for call in (
        lambda: lmdb_env.open_segment(Path(sys.argv[1]) / "old"),
        lambda: lmdb_env.create_segment(Path(sys.argv[1]) / f"new-{allowed}", 1 << 20, sync=False),
    ):
        try:
            call().close()
            print("had")
        except HostExhausted:
            print("none")
"""


def test_WK_9_a_file_that_may_not_be_opened_proves_nothing_against_a_store(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FEW_FILES, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) <= {"none", "had"} and ran.stdout.split().count("none") >= 3
