"""Sources: collections are sliced as PySpark does, files are cut so that no line is lost or doubled."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import random
import sys
import zlib
from itertools import chain, pairwise
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_ft import rows
from spark_ft.errors import InputChanged, InputCorrupt, JobError
from spark_ft.ids import HostId, NodeId
from spark_ft.lineage import inputs, sources
from spark_ft.protocol.messages import BlockRef


class Blocks:
    """A driver's store, and the environment of a task that reads it."""

    def __init__(self):
        self.held = {}

    def put(self, kind, name, chunks):
        assert kind == "slice" and name not in self.held
        self.held[name] = b"".join(chunks)
        return BlockRef(HostId("driver"), "store", 0, name, len(self.held[name]))

    def read_block(self, block):
        return self.held[block.key]


def everything(node, env=None):
    return [list(node.compute(p, (), env)) for p in range(node.partition_count)]


def flat(parts):
    return list(chain.from_iterable(parts))


def sliced(data, count):
    blocks = Blocks()
    node = sources.parallel_collection(NodeId(1), data, count, blocks.put)
    shipped = pickle.loads(pickle.dumps(node.ship()))
    return everything(shipped, blocks)


# --- Collections ------------------------------------------------------------------------------


def test_a_range_is_cut_by_position():
    assert [len(part) for part in sliced(range(10), 4)] == [2, 3, 2, 3]
    assert sliced(range(10), 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_a_list_is_cut_in_whole_batches():
    assert [len(part) for part in sliced(list(range(10)), 4)] == [2, 2, 2, 4]


@pytest.mark.parametrize("data", [range(0), [], iter([])])
def test_nothing_still_has_all_its_slices(data):
    assert sliced(data, 3) == [[], [], []]


@given(st.integers(-50, 50), st.integers(-50, 50), st.sampled_from([-7, -1, 1, 2, 5]), st.integers(1, 9))
def test_slices_of_a_range_are_the_range(start, stop, step, count):
    data = range(start, stop, step)
    parts = sources.slice_range(data, count)
    assert len(parts) == count
    assert [x for part in parts for x in part] == list(data)


def test_a_range_longer_than_memory_stays_a_range():
    parts = sources.slice_range(range(1 << 70), 3)
    assert sum(part.stop - part.start for part in parts) == 1 << 70


@given(st.integers(0, 5000), st.integers(1, 40))
def test_slices_of_a_list_follow_the_rule_of_batches(size, count):
    batch = max(1, min(size // count, 1024))
    batches = [list(range(size))[i : i + batch] for i in range(0, size, batch)]
    m = len(batches)
    expected = [
        [x for b in batches[i * m // count : (i + 1) * m // count] for x in b] for i in range(count)
    ]
    bounds = sources.slice_bounds(size, count)
    assert [list(range(a, b)) for a, b in bounds] == expected


def test_any_iterable_will_do():
    assert flat(sliced({"a": 1, "b": 2}, 2)) == ["a", "b"]
    assert flat(sliced("xyz", 2)) == ["x", "y", "z"]
    assert flat(sliced((i for i in range(5)), 2)) == list(range(5))


def test_large_slices_become_blocks_and_small_ones_do_not():
    blocks = Blocks()
    small = sources.parallel_collection(NodeId(1), list(range(100)), 4, blocks.put)
    assert blocks.held == {} and len(pickle.dumps(small.slices)) < 4096
    data = [bytes([i]) * 3000 for i in range(200)]
    large = sources.parallel_collection(NodeId(2), data, 4, blocks.put)
    assert len(blocks.held) == 4 and len(pickle.dumps(large.slices)) < 4096
    assert flat(everything(large, blocks)) == data


def test_the_records_are_those_of_the_moment():
    data = [[1], [2]]
    blocks = Blocks()
    node = sources.parallel_collection(NodeId(1), data, 1, blocks.put)
    data[0].append(99)
    assert everything(node, blocks) == [[[1], [2]]]
    next(iter(node.compute(0, (), blocks))).append(7)
    assert everything(node, blocks) == [[[1], [2]]]


def test_zero_slices_fail_at_once_and_negative_ones_when_used():
    with pytest.raises(ZeroDivisionError):
        sliced([1], 0)
    node = sources.parallel_collection(NodeId(1), [1], -1, Blocks().put)
    with pytest.raises(JobError, match="Positive number of partitions required"):
        _ = node.partition_count


def test_what_does_not_pickle_is_a_pickling_error():
    with pytest.raises(pickle.PicklingError, match="Could not serialize object"):
        sliced([sys._getframe()], 1)


def test_empty_has_no_partitions():
    assert sources.Empty(NodeId(1)).partition_count == 0


# --- Text: any bytes, any split ---------------------------------------------------------------


def lines_of(data: bytes) -> list[bytes]:
    """The plain definition: cut at newlines, one carriage return before each goes with it."""
    parts = data.split(b"\n")
    last = parts.pop()
    return [part.removesuffix(b"\r") for part in parts] + ([last] if last else [])


def read(data: bytes, start: int, end: int, block: int) -> list[bytes]:
    file = io.BytesIO(data)
    file.seek(max(start - 1, 0))
    chunks = sources._whole_lines(lambda _: file.read(block), start, end)
    found = []
    for offset, chunk in chunks:
        assert data[offset : offset + len(chunk)] == chunk
        found += lines_of(chunk)
    return found


pieces = st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"\n\n", b"xyz", "é".encode()])
text = st.lists(pieces, max_size=30).map(b"".join)


@given(text, st.lists(st.integers(0, 60), max_size=6), st.integers(1, 9))
def test_every_line_is_in_exactly_one_split(data, cuts, block):
    edges = [0, *sorted(c for c in cuts if 0 < c < len(data)), len(data)]
    edges = sorted(set(edges)) if data else [0, 0]
    found = []
    for start, end in pairwise(edges):
        found += read(data, start, end, block)
    assert found == lines_of(data)


@given(text, st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_a_split_has_the_lines_that_start_in_it(data, start, length, block):
    start, end = min(start, len(data)), min(start + length, len(data))
    starts = [0] + [i + 1 for i, c in enumerate(data) if c == 10]
    expected = [
        line for at, line in zip(starts, lines_of(data), strict=False) if start <= at < end
    ]
    assert read(data, start, end, block) == expected


@given(st.integers(0, 300), st.integers(1, 12))
def test_splits_cover_a_file_once(size, minimum):
    file = inputs.InputFile("/x", size, 0)
    splits = inputs.cut([file], minimum)
    assert splits[0].start == 0 and splits[-1].end == size
    assert all(a.end == b.start for a, b in pairwise(splits))


def test_large_files_get_several_splits_of_at_most_32_mib():
    splits = inputs.cut([inputs.InputFile("/x", 100 << 20, 0)], 1)
    assert [s.end - s.start for s in splits] == [32 << 20, 32 << 20, 32 << 20, 4 << 20]


def text_file(path, minimum=2, unicode=True):
    return sources.TextFile(NodeId(1), str(path), minimum, unicode)


def all_lines(path, minimum=2, unicode=True):
    return flat(everything(text_file(path, minimum, unicode)))


def test_a_file_of_many_blocks_is_read_whole(tmp_path):
    rng = random.Random(7)
    data = b"".join(rng.randbytes(rng.randrange(200)).hex().encode() + b"\n" for _ in range(5000))
    (tmp_path / "f").write_bytes(data)
    for minimum in (1, 2, 7):
        node = text_file(tmp_path / "f", minimum)
        assert node.partition_count == minimum
        assert flat(everything(node)) == data.decode().splitlines()


def test_carriage_returns_go_only_before_a_newline(tmp_path):
    (tmp_path / "f").write_bytes(b"a\r\nb\rc\n\r\nd\r")
    assert all_lines(tmp_path / "f", 1) == ["a", "b\rc", "", "d\r"]
    assert all_lines(tmp_path / "f", 1, unicode=False) == [b"a", b"b\rc", b"", b"d\r"]


def test_other_line_separators_do_not_cut(tmp_path):
    (tmp_path / "f").write_text("a\x0bb\x0cc\x1cd\x85e\u2028f\n", newline="")
    assert all_lines(tmp_path / "f") == ["a\x0bb\x0cc\x1cd\x85e\u2028f"]


def test_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfa\nb\n")
    assert all_lines(tmp_path / "f", 1) == ["a", "b"]


def test_an_empty_file_has_one_empty_partition(tmp_path):
    (tmp_path / "f").touch()
    assert everything(text_file(tmp_path / "f")) == [[]]


@pytest.mark.parametrize(
    ("extension", "compress"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".deflate", zlib.compress),
     (".lzma", lambda d: lzma.compress(d, format=lzma.FORMAT_ALONE))],
)
def test_compressed_files_are_read_by_their_ending_in_one_partition(tmp_path, extension, compress):
    data = b"".join(b"line %d\n" % i for i in range(30000))
    (tmp_path / f"f{extension}").write_bytes(compress(data))
    node = text_file(tmp_path / f"f{extension}", 4)
    assert node.partition_count == 1
    assert flat(everything(node)) == data.decode().splitlines()
    (tmp_path / f"torn{extension}").write_bytes(compress(random.Random(1).randbytes(40000))[:-3000])
    with pytest.raises(InputCorrupt, match=f"torn{extension}: unreadable after byte"):
        all_lines(tmp_path / f"torn{extension}", unicode=False)


def test_gzip_members_one_after_the_other_are_all_read(tmp_path):
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    assert all_lines(tmp_path / "f.gz") == ["a", "b"]


def test_a_format_without_a_reader_is_refused(tmp_path):
    (tmp_path / "f.snappy").write_bytes(b"x\n")
    with pytest.raises(JobError, match="CODEC_NOT_AVAILABLE"):
        _ = text_file(tmp_path / "f.snappy").partition_count


def test_UE_2_bad_encoding_names_file_offset_and_partition(tmp_path):
    data = b"fine\r\n" * 20000 + b"bad \xff here\n"
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(InputCorrupt, match=rf"f: byte {data.index(0xFF)} is not UTF-8 .*; partition 0"):
        all_lines(tmp_path / "f", 1)
    assert len(all_lines(tmp_path / "f", 1, unicode=False)) == 20001


# --- Which files a path means -------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    for name in ("a.txt", "b.txt", "c.log", "_hidden", ".dot", "d/x", "d/_SUCCESS", "d/y"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{name}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.txt", ["a.txt"]),
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.log", ["c.log"]),
        ("[^ab].*", ["c.log"]),
        ("{a,c}.{txt,log}", ["a.txt", "c.log"]),
        ("d", ["d/x", "d/y"]),
        ("d/*", ["d/x", "d/y"]),
        ("b.txt,{root}/a.txt", ["b.txt", "a.txt"]),
        ("{{a,b}}.txt,{root}/c.log", ["a.txt", "b.txt", "c.log"]),
    ],
)
def test_paths_patterns_lists_and_directories(tree, pattern, expected):
    pattern = pattern.replace("{root}", str(tree)).replace("{{", "{").replace("}}", "}")
    assert all_lines(f"{tree}/{pattern}", 1) == expected


@pytest.mark.parametrize("prefix", ["file:", "file://", "file://localhost"])
def test_file_uris_are_paths(tree, prefix):
    assert all_lines(f"{prefix}{tree}/a.txt", 1) == ["a.txt"]


def test_UE_1_a_missing_path_is_told_when_it_is_used(tmp_path):
    node = text_file(tmp_path / "none")
    with pytest.raises(JobError, match=r"\[INPUT_NOT_FOUND\] Input path does not exist: file:.*none"):
        _ = node.partition_count
    with pytest.raises(JobError, match="matches 0 files"):
        _ = text_file(tmp_path / "*.none").partition_count


def test_a_directory_in_a_directory_is_not_a_file(tree):
    (tree / "d" / "deeper").mkdir()
    with pytest.raises(JobError, match="Not a file"):
        _ = text_file(tree / "d").partition_count


@pytest.mark.parametrize("change", ["vanish", "grow", "same size"])
def test_UE_1_a_file_that_changed_since_planning_is_an_error(tmp_path, change):
    path = tmp_path / "f"
    path.write_text("a\nb\n")
    node = text_file(path)
    assert node.partition_count == 2
    if change == "vanish":
        path.unlink()
    else:
        path.write_text("a\nb\nc\n" if change == "grow" else "x\ny\n")
        os.utime(path, ns=(1, 1))
    with pytest.raises(InputChanged, match="INPUT_CHANGED"):
        everything(node)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "f"
    path.write_text("line\n" * 100_000)
    lines = text_file(path, 1)
    assert lines.partition_count == 1
    records = lines.compute(0, (), None)
    next(records)
    with path.open("a") as file:
        file.write("more\n")
    with pytest.raises(InputChanged):
        list(records)


# --- Whole files, records, pickles ---------------------------------------------------------------


def test_whole_files_are_pairs_of_uri_and_content(tree):
    node = sources.WholeFiles(NodeId(1), f"{tree}/*.txt", 2, True, 4)
    assert flat(everything(node)) == [(f"file:{tree}/{n}", f"{n}\n") for n in ("a.txt", "b.txt")]
    node = sources.WholeFiles(NodeId(1), f"{tree}/*.txt", 2, None, 4)
    assert flat(everything(node)) == [(f"file:{tree}/{n}", f"{n}\n".encode()) for n in ("a.txt", "b.txt")]


def test_binary_files_are_not_decompressed_and_whole_text_files_are(tmp_path):
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"text"))
    whole = sources.WholeFiles(NodeId(1), str(tmp_path), 2, True, 4)
    raw = sources.WholeFiles(NodeId(1), str(tmp_path), 2, None, 4)
    assert everything(whole)[0][0][1] == "text"
    assert gzip.decompress(everything(raw)[0][0][1]) == b"text"


@given(length=st.integers(1, 40), count=st.integers(0, 50), minimum=st.integers(1, 7))
def test_fixed_records_are_cut_on_their_boundaries(tmp_path_factory, length, count, minimum):
    path = Path(tmp_path_factory.mktemp("records")) / "f"
    records = [bytes([i]) * length for i in range(count)]
    path.write_bytes(b"".join(records))
    assert flat(everything(sources.FixedRecords(NodeId(1), str(path), length, minimum))) == records


def test_a_length_that_does_not_divide_the_file_is_an_error(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    with pytest.raises(InputCorrupt, match="not a multiple"):
        everything(sources.FixedRecords(NodeId(1), str(tmp_path / "f"), 2, 1))


def batches(*parts):
    return b"".join(rows.encode(part) for part in parts)


def test_pickle_files_are_read_batch_by_batch(tmp_path):
    big = [random.Random(i).randbytes(1000) for i in range(300)]
    (tmp_path / "part-00000").write_bytes(batches([1, "x"], big, [None]))
    (tmp_path / "part-00001").touch()
    node = sources.PickleFile(NodeId(1), str(tmp_path))
    assert everything(node) == [[1, "x", *big, None], []]


def test_a_damaged_or_truncated_pickle_file_is_an_error(tmp_path):
    good = batches([1, 2, 3], ["y"])
    for name, data in (("torn", good[:-1]), ("flipped", good[:-1] + b"\0"), ("text", b"hello\n" * 20)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputCorrupt, match=f"{name}.*partition 0"):
            everything(sources.PickleFile(NodeId(1), str(tmp_path / name)))


class Tallied(dict):
    """What a permissive reader tells: place -> the most that was said of it."""

    def __call__(self, uri: str, start: int, count: int) -> None:
        assert count > self.get((uri, start), 0)
        self[uri, start] = count


def test_UE_2_a_permissive_reader_counts_lines_that_are_no_utf_8_and_gives_the_rest(tmp_path):
    lines = [b"line %d" % i for i in range(30_000)]
    for number in (0, 17_000, 17_001, 29_999):
        lines[number] += b"\xff\xe2\x82"
    (tmp_path / "text").write_bytes(b"\n".join(lines))
    bad = Tallied()
    node = sources.TextFile(NodeId(1), str(tmp_path / "text"), 4, bad=bad)
    expected = [line.decode(errors="replace") for line in lines]
    assert flat(everything(node)) == expected
    assert sum(bad.values()) == 4 and {uri for uri, _ in bad} == {f"file:{tmp_path}/text"}


def test_UE_2_a_permissive_reader_takes_what_can_be_read_of_a_broken_archive(tmp_path):
    whole = gzip.compress(b"".join(b"%d\n" % random.Random(i).getrandbits(64) for i in range(20_000)))
    (tmp_path / "a.gz").write_bytes(whole[: len(whole) // 2])
    bad = Tallied()
    read = flat(everything(sources.TextFile(NodeId(1), str(tmp_path), 1, bad=bad)))
    assert read == [str(random.Random(i).getrandbits(64)) for i in range(len(read))] and len(read) > 5_000
    assert bad == {(f"file:{tmp_path}/a.gz", 0): 1}
    with pytest.raises(InputCorrupt):
        everything(sources.TextFile(NodeId(1), str(tmp_path), 1))


def test_UE_2_permissive_whole_files_and_records(tmp_path):
    for name, content in (("a", b"fine"), ("b", b"\xff"), ("c.gz", gzip.compress(b"x" * 999)[:20])):
        (tmp_path / name).write_bytes(content)
    bad = Tallied()
    files = sources.WholeFiles(NodeId(1), str(tmp_path), 1, True, 1, bad)
    uri = f"file:{tmp_path}/"
    assert flat(everything(files)) == [(uri + "a", "fine"), (uri + "b", "\ufffd")]
    assert bad == {(uri + "b", 0): 1, (uri + "c.gz", 0): 1}
    for minimum in (1, 3):
        bad = Tallied()
        records = sources.FixedRecords(NodeId(1), str(tmp_path / "a"), 3, minimum, bad)
        assert flat(everything(records)) == [b"fin"] and sum(bad.values()) == 1


def test_remote_files_are_found_and_read():
    memory = fsspec.filesystem("memory")
    memory.pipe("/in/a", b"x\ny\n")
    memory.pipe("/in/_b", b"no\n")
    try:
        assert all_lines("memory://in") == ["x", "y"]
        with pytest.raises(JobError, match="INPUT_NOT_FOUND"):
            all_lines("memory://none")
    finally:
        memory.rm("/in", recursive=True)
