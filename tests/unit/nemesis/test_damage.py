"""What the disk nemesis does to a file, and nothing else."""

import random
from pathlib import Path

import pytest

from chaos.nemesis import disk
from chaos.nemesis.registry import NEMESES

PAGES = 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "seg-00000" / "data.mdb"
    path.parent.mkdir()
    path.write_bytes(random.Random(1).randbytes(PAGES * disk.PAGE_BYTES))
    return path


def changed(before: bytes, after: bytes) -> list[int]:
    return [at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]


@pytest.mark.parametrize("seed", range(10))
def test_single_bits_of_data_pages_are_flipped(file: Path, seed: int) -> None:
    before = file.read_bytes()
    offsets = disk.flip_bits(file, random.Random(seed), 5)
    after = file.read_bytes()
    assert changed(before, after) == sorted(set(offsets)) or len(set(offsets)) < 5
    assert all((before[at] ^ after[at]).bit_count() <= 1 for at in set(offsets))
    assert min(offsets) >= 2 * disk.PAGE_BYTES


def test_whole_pages_are_zeroed(file: Path) -> None:
    before = file.read_bytes()
    pages = disk.zero_pages(file, random.Random(1), 3)
    after = file.read_bytes()
    assert len(pages) == 3 and 0 not in pages and 1 not in pages
    assert {at // disk.PAGE_BYTES for at in changed(before, after)} == set(pages)
    assert all(not any(after[p * disk.PAGE_BYTES : (p + 1) * disk.PAGE_BYTES]) for p in pages)


def test_a_file_is_cut_at_a_page(file: Path) -> None:
    before = file.read_bytes()
    gone = disk.cut_short(file, random.Random(3))
    after = file.read_bytes()
    assert gone > 0 and len(after) == len(before) - gone and len(after) % disk.PAGE_BYTES == 0
    assert before.startswith(after)


def test_an_empty_file_has_nothing_to_damage(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    path.write_bytes(bytes(2 * disk.PAGE_BYTES))
    assert disk.flip_bits(path, random.Random(1)) == [] == disk.zero_pages(path, random.Random(1))


def test_every_kind_of_fault_can_be_told_from_the_others_and_names_its_rows() -> None:
    for name, nemesis in NEMESES.items():
        assert name == nemesis.name and nemesis.kinds
        assert len({kind.name for kind in nemesis.kinds}) == len(nemesis.kinds)
        assert all(kind.rows for kind in nemesis.kinds), name
