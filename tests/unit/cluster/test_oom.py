"""Kills for memory are told from others by what the kernel counts (MEM-1)."""

from pathlib import Path

from spark_ft.cluster.oom import OomCounters, _own_files


def test_MEM_1_a_kill_that_a_counter_tells_of_is_put_down_to_one_end(tmp_path: Path) -> None:
    machine, group = tmp_path / "vmstat", tmp_path / "memory.events"
    machine.write_text("nr_free_pages 5\noom_kill 3\n")
    group.write_text("low 0\noom 1\noom_kill 1\noom_group_kill 0\n")
    counters = OomCounters([machine, group, tmp_path / "none"])
    assert not counters.told_of_a_kill(), "kills before our time are not ours"
    machine.write_text("nr_free_pages 5\noom_kill 4\n")
    group.write_text("low 0\noom 2\noom_kill 2\noom_group_kill 0\n")
    assert counters.told_of_a_kill()
    assert not counters.told_of_a_kill(), "both counters told of the same kill"
    group.write_text("low 0\noom 4\noom_kill 4\noom_group_kill 0\n")
    assert counters.told_of_a_kill() and counters.told_of_a_kill() and not counters.told_of_a_kill()


def test_MEM_1_the_machines_own_counter_is_among_those_that_are_read() -> None:
    assert Path("/proc/vmstat") in list(_own_files())
    assert any(line.startswith("oom_kill ") for line in Path("/proc/vmstat").read_text().splitlines())
