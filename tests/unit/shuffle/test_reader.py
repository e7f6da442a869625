"""One reduce partition of every map output, in map order, or the evidence why not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spark_ft import rows
from spark_ft.errors import BlockMissing, FetchError
from spark_ft.ids import Fingerprint, Generation, HostId, ShuffleId, TaskId
from spark_ft.protocol.messages import MapOutputs
from spark_ft.shuffle.reader import ShuffleReader
from spark_ft.storage import layout, lmdb_env
from spark_ft.storage.blocks import OutputKey, StoreReader, StoreWriter, serve
from spark_ft.transport.blocks import RemoteFetch

NEAR, FAR = HostId("near"), HostId("far")
PRINT = Fingerprint(b"p" * 16)


class DirectClient:
    """Stands for a BlockClient: asks the other side's answers without a wire between."""

    def __init__(self, readers: dict[HostId, StoreReader]) -> None:
        self.readers = readers
        self.failing: dict[int, str] = {}
        self.pieces_of: Any = lambda pieces: pieces

    def fetch(self, requests: Any) -> Any:
        for index, (host, request) in enumerate(requests):
            if index in self.failing:
                raise RemoteFetch(index, self.failing[index], "as told")
            try:
                for piece in self.pieces_of(serve(self.readers[host], host)(request)):
                    yield index, piece
            except BlockMissing as error:
                raise RemoteFetch(index, "missing", str(error)) from error


class World:
    """Map outputs on two hosts, seen by a reducer on the near one."""

    def __init__(self, tmp_path: Path) -> None:
        self.roots = {host: tmp_path / host for host in (NEAR, FAR)}
        self.stores = {
            host: StoreWriter(
                root / "stores" / f"x-{host}", host, segment_bytes=8 << 20, transaction_bytes=1 << 20
            )
            for host, root in self.roots.items()
        }
        self.client = DirectClient({host: StoreReader({host: root}) for host, root in self.roots.items()})
        self.reader = ShuffleReader(
            StoreReader({NEAR: self.roots[NEAR]}),
            lambda: self.client,
            {NEAR},  # type: ignore[arg-type,return-value]
        )

    def put(self, host: HostId, map_index: int, generation: int = 1) -> Any:
        key = self.key(map_index, generation)
        output = self.stores[host].begin(ShuffleId(1), key, 2)
        for part in range(3):
            output.append(0, rows.encode_pairs([map_index], [part]), 1)
        return output.commit()

    def key(self, map_index: int, generation: int = 1) -> OutputKey:
        return OutputKey(PRINT, Generation(generation), map_index, TaskId(map_index))

    def read(self, *statuses: Any, index: int = 0) -> list[Any]:
        outputs = MapOutputs(ShuffleId(1), Generation(1), 1, PRINT, tuple(statuses))
        return [record for batch in self.reader.pairs(outputs, index) for record in batch]

    def failure(self, *statuses: Any) -> Any:
        with pytest.raises(FetchError) as caught:
            self.read(*statuses)
        return caught.value.failed


@pytest.fixture
def world(tmp_path: Path):
    world = World(tmp_path)
    yield world
    for store in world.stores.values():
        store.close()


def test_records_come_in_map_order_wherever_they_are(world: World) -> None:
    statuses = [world.put(host, i) for i, host in enumerate([FAR, NEAR, FAR, FAR, NEAR])]
    expected = [(i, part) for i in range(5) for part in range(3)]
    assert world.read(*statuses) == world.read(*reversed(statuses)) == expected
    assert world.read(*statuses, index=1) == []


@pytest.mark.parametrize("host", [NEAR, FAR])
def test_BL_1_a_missing_output_names_itself_alone(world: World, host: HostId) -> None:
    statuses = [world.put(host, i) for i in range(3)]
    segment = lmdb_env.open_segment(layout.segment_path(world.stores[host].path, 0))
    segment.write(delete_prefixes=[b"m" + world.key(1).pack()])
    failed = world.failure(*statuses)
    assert (failed.map_index, failed.host, failed.evidence) == (1, host, "missing")
    assert (failed.shuffle, failed.generation, failed.store) == (1, 1, f"x-{host}")
    assert failed.others == ()


@pytest.mark.parametrize("host", [NEAR, FAR])
def test_BL_9_the_first_missing_output_brings_word_of_all_others_in_its_store(
    world: World, host: HostId
) -> None:
    statuses = [world.put(host if i % 2 else FAR, i) for i in range(8)]
    segment = lmdb_env.open_segment(layout.segment_path(world.stores[host].path, 0))
    for lost in (3, 5, 7):
        segment.write(delete_prefixes=[b"m" + world.key(lost).pack()])
    failed = world.failure(*statuses)
    assert (failed.map_index, failed.attempt, failed.evidence) == (3, 3, "missing")
    assert failed.others == (5, 7)


def test_BL_3_a_corrupt_output_on_the_own_host_is_told_with_its_evidence(world: World) -> None:
    statuses = [world.put(NEAR, i) for i in range(2)]
    segment = lmdb_env.open_segment(layout.segment_path(world.stores[NEAR].path, 0))
    (chunk,) = segment.keys(b"c" + world.key(1).pack())
    value = bytearray(segment.get(chunk) or b"")
    value[-1] ^= 1
    segment.write([(chunk, bytes(value))])
    failed = world.failure(*statuses)
    assert (failed.map_index, failed.evidence) == (1, "corrupt")


def test_BL_3_a_byte_that_flips_on_the_way_is_told_too(world: World) -> None:
    status = world.put(FAR, 0)

    def flipped(pieces: Any) -> Any:
        head, *rest = pieces
        yield head
        for piece in rest:
            yield piece[:-1] + bytes([piece[-1] ^ 1])

    world.client.pieces_of = flipped
    assert world.failure(status).evidence == "corrupt"


@pytest.mark.parametrize("evidence", ["refused", "timeout", "incomplete", "expired"])
def test_a_fetch_that_fails_names_the_output_that_was_asked_for(world: World, evidence: str) -> None:
    statuses = [world.put(host, i) for i, host in enumerate([NEAR, FAR, NEAR, FAR])]
    world.client.failing = {1: evidence}
    failed = world.failure(*statuses)
    assert (failed.map_index, failed.host, failed.evidence) == (3, FAR, evidence)


def test_BL_15_an_output_dropped_on_purpose_is_expired_and_never_empty(world: World) -> None:
    status = world.put(NEAR, 0)
    world.stores[NEAR].drop([PRINT])
    layout.mark_expired(world.roots[NEAR], [PRINT])
    assert world.failure(status).evidence == "expired"


def test_BL_5_outputs_of_another_generation_are_refused(world: World) -> None:
    assert world.failure(world.put(NEAR, 0), world.put(NEAR, 1, generation=2)).map_index == 1


def test_without_a_way_to_other_hosts_a_far_output_is_refused(world: World) -> None:
    world.reader = ShuffleReader(StoreReader({NEAR: world.roots[NEAR]}), None, {NEAR})
    assert world.failure(world.put(FAR, 0)).evidence == "refused"


# --- Copies ---


def test_WK_2_the_copy_on_this_host_is_read_and_not_asked_for_elsewhere(world: World) -> None:
    far, near = [world.put(FAR, 0), world.put(FAR, 1)], world.put(NEAR, 1)
    outputs = MapOutputs(ShuffleId(1), Generation(1), 1, PRINT, tuple(far), (near,))
    world.client.failing[1] = "refused"
    records = [record for batch in world.reader.pairs(outputs, 0) for record in batch]
    assert records == [(index, part) for index in range(2) for part in range(3)]


def test_NET_8_what_one_host_does_not_give_is_read_from_the_next_for_a_while(tmp_path: Path) -> None:
    world = World(tmp_path)
    third = HostId("third")
    root = tmp_path / third
    world.stores[third] = StoreWriter(
        root / "stores" / "x-third", third, segment_bytes=8 << 20, transaction_bytes=1 << 20
    )
    world.client.readers[third] = StoreReader({third: root})
    asked: list[HostId] = []
    fetch = world.client.fetch

    def cut(requests: Any) -> Any:
        asked.extend(host for host, _ in requests)
        for index, (host, _) in enumerate(requests):
            if host == FAR:
                yield from fetch(requests[:index])
                raise RemoteFetch(index, "timeout", "nothing came")
        yield from fetch(requests)

    world.client.fetch = cut  # type: ignore[method-assign]
    first = [world.put(third, 0), world.put(FAR, 1), world.put(NEAR, 2), world.put(FAR, 3)]
    copies = (world.put(third, 1), world.put(third, 3))
    outputs = MapOutputs(ShuffleId(1), Generation(1), 1, PRINT, tuple(first), copies)
    expected = [(index, part) for index in range(4) for part in range(3)]
    for _ in range(2):
        assert [record for batch in world.reader.pairs(outputs, 0) for record in batch] == expected
    assert asked == [third, FAR, FAR, *[third] * 5], "the second time nobody asks in vain"
    lone = MapOutputs(ShuffleId(1), Generation(1), 1, PRINT, tuple(first))
    with pytest.raises(FetchError) as caught:
        list(world.reader.pairs(lone, 0))
    assert (caught.value.failed.map_index, caught.value.failed.evidence) == (1, "timeout")
    for store in world.stores.values():
        store.close()


def test_NET_8_when_no_place_gives_it_that_is_told_and_each_was_asked_once(world: World) -> None:
    places = [replace(world.put(FAR, 0), host=HostId(host)) for host in ("one", "two", "three")]
    outputs = MapOutputs(ShuffleId(1), Generation(1), 1, PRINT, (places[0],), tuple(places[1:]))
    asked: list[HostId] = []

    def cut(requests: Any) -> Any:
        asked.extend(host for host, _ in requests)
        assert len(asked) < 20, "asked for ever"
        raise RemoteFetch(0, "refused", "nobody listens")
        yield

    world.client.fetch = cut  # type: ignore[method-assign]
    told = []
    for _ in range(3):
        with pytest.raises(FetchError) as caught:
            list(world.reader.pairs(outputs, 0))
        told.append(caught.value.failed.host)
    assert all(sorted(asked[at : at + 3]) == ["one", "three", "two"] for at in (0, 3, 6)) and len(asked) == 9
    assert set(told) == {"one", "two", "three"}, "in the end the driver knows of all of them"


def test_BL_3_damage_is_told_and_not_passed_over_though_there_is_a_copy(world: World) -> None:
    far, near = world.put(FAR, 0), world.put(NEAR, 0)
    outputs = MapOutputs(ShuffleId(1), Generation(1), 1, PRINT, (near,), (far,))
    path = world.roots[NEAR] / "stores" / near.store
    lmdb_env.sweep()
    assert path.is_dir()
    world.stores[NEAR].drop_output(world.key(0))
    with pytest.raises(FetchError) as caught:
        list(world.reader.pairs(outputs, 0))
    assert (caught.value.failed.host, caught.value.failed.evidence) == (NEAR, "missing")
