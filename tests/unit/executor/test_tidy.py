"""What a task leaves behind, and what looking for it costs (TK-7)."""

import mmap
import os
import threading
from pathlib import Path

from spark_ft.executor.main import _anonymous_bytes
from spark_ft.executor.tidy import Tidy


def test_TK_7_directory_and_environment_are_put_back(tmp_path: Path) -> None:
    tidy, before = Tidy(), os.getcwd()
    os.chdir(tmp_path)
    os.environ["SPARK_FT_LEFT"] = "1"
    assert tidy.up() == ""
    assert os.getcwd() == before and "SPARK_FT_LEFT" not in os.environ


def test_TK_7_a_thread_that_goes_on_is_told_of_and_one_that_ends_is_not() -> None:
    tidy, end = Tidy(), threading.Event()
    for wait_s in (30.0, 0.01):
        thread = threading.Thread(target=end.wait, args=(wait_s,), name="left")
        thread.start()
        assert tidy.up() == ("1 thread(s): left" if wait_s > 1 else "")
        end.set()
        thread.join()
        end.clear()


def test_MEM_5_pages_of_mapped_files_do_not_count_as_a_processes_memory(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.write_bytes(os.urandom(1 << 20) * 64)
    before = _anonymous_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[i] for i in range(0, len(mapped), 4096)) > 0
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        assert resident > 64 << 20, "it is resident"
        assert _anonymous_bytes() - before < 8 << 20
