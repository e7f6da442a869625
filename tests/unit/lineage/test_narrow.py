"""Fusion of element-wise operations, and the narrow node kinds one by one."""

import operator
from itertools import chain, count, islice

import pytest

from spark_ft import closures
from spark_ft.errors import PySparkRuntimeError
from spark_ft.lineage import narrow
from spark_ft.lineage.dependency import served
from spark_ft.lineage.narrow import (
    FILTER,
    FLAT_MAP,
    FLAT_MAP_VALUES,
    FUSED_OPS_MAX,
    KEY_BY,
    KEYS,
    MAP,
    MAP_VALUES,
    VALUES,
    Elementwise,
    MapPartitions,
    first,
    fuse,
    second,
)
from spark_ft.lineage.shape import shape_of
from spark_ft.storagelevel import StorageLevel
from tests.unit.rdd.inprocess import InProcess, Slices

OPS = [
    (MAP, lambda x: x + 1),
    (FILTER, lambda x: x % 3),
    (FLAT_MAP, lambda x: range(x % 4)),
    (KEY_BY, lambda x: x * 2),
    (MAP_VALUES, lambda v: v - 1),
    (FLAT_MAP_VALUES, lambda v: [v, v]),
]
EXPECTED = [(y * 2, v) for x in range(20) if (x + 1) % 3 for y in range((x + 1) % 4) for v in [y - 1, y - 1]]
PADDING = [(MAP, lambda x: x)] * FUSED_OPS_MAX


def stop(*args):
    raise StopIteration


@pytest.mark.parametrize("ops", [OPS, PADDING + OPS, OPS + PADDING])
def test_short_and_long_runs_give_the_same_records(ops):
    assert list(fuse(ops, iter(range(20)))) == EXPECTED


@pytest.mark.parametrize("padding", [[], PADDING])
def test_keys_and_values_take_the_items_of_a_pair(padding):
    assert list(fuse([*padding, (KEYS, first)], [(1, 2)])) == [1]
    assert list(fuse([*padding, (VALUES, second)], [(1, 2)])) == [2]


def test_a_run_keeps_its_meaning_when_its_ops_have_been_pickled():
    shipped = closures.loads(closures.dumps(PADDING + OPS))
    assert list(fuse(shipped, iter(range(20)))) == EXPECTED


@pytest.mark.parametrize("kind", [MAP, FILTER, FLAT_MAP, KEY_BY, MAP_VALUES, FLAT_MAP_VALUES])
@pytest.mark.parametrize("padding", [[], PADDING])
def test_stop_iteration_from_a_user_function_is_an_error_and_not_the_end(kind, padding):
    def stop_at_the_third(value, calls=count()):  # noqa: B008  one counter a test case is wanted
        if value == 3:
            raise StopIteration
        return (value,)

    records = fuse(
        [*padding, (kind, stop_at_the_third)], [(n, n) if "Values" in kind else n for n in (1, 2, 3)]
    )
    assert len(list(islice(records, 2))) == 2
    with pytest.raises(
        PySparkRuntimeError, match="Caught StopIteration thrown from user's code; failing the"
    ):
        list(records)


def test_stop_iteration_on_the_very_last_record_is_an_error_too():
    with pytest.raises(PySparkRuntimeError, match="Caught StopIteration"):
        list(fuse([(MAP, stop)], [1]))


def test_leaving_a_run_early_is_no_error():
    assert list(islice(fuse(OPS, count()), 2)) == EXPECTED[:2]


def test_fusing_pulls_nothing_before_it_is_asked():
    for ops in (OPS, PADDING + OPS):
        fuse(ops, (pytest.fail("pulled") for _ in range(1)))


@pytest.mark.parametrize("operation", [(MAP, lambda x: x + 1), (FLAT_MAP, lambda x: (x + 1,))])
def test_ten_thousand_operations_in_a_row_need_no_stack(operation):
    assert list(fuse([operation] * 10_000, [0, 1])) == [10_000, 10_001]


def test_a_lineage_of_ten_thousand_maps_is_built_planned_and_run():
    rdd = InProcess().parallelize(range(4), 2)
    for _ in range(10_000):
        rdd = rdd.map(lambda x: x + 1)
    assert len(shape_of(rdd._node).nodes) == 10_001
    assert rdd.collect() == [10_000, 10_001, 10_002, 10_003]


def test_an_error_of_the_user_passes_through_unchanged():
    with pytest.raises(ZeroDivisionError):
        list(fuse([(MAP, lambda x: 1 // x)], [1, 0]))


# --- Node kinds ---


@pytest.fixture
def session():
    return InProcess()


def computed(node, partition, *inputs, env=None):
    return node.compute(partition, [iter(records) for records in inputs], env)


def test_the_function_of_a_partition_is_called_only_when_its_first_record_is_asked_for(session):
    calls = []
    node = MapPartitions(session.new_node_id(), Slices(0, range(4), 2), lambda p, it: calls.append(p) or it)
    records = computed(node, 1, [5, 6])
    assert calls == []
    assert list(records) == [5, 6]
    assert calls == [1]


def test_a_partition_function_that_answers_none_is_a_type_error(session):
    node = MapPartitions(session.new_node_id(), Slices(0, range(4), 2), lambda p, it: None)
    with pytest.raises(TypeError):
        list(computed(node, 0, [1]))


def test_a_partition_function_that_asks_an_empty_partition_for_a_record_fails(session):
    node = MapPartitions(session.new_node_id(), Slices(0, range(4), 2), lambda p, it: [next(it)])
    with pytest.raises(PySparkRuntimeError, match="Caught StopIteration"):
        list(computed(node, 0, []))


def test_partition_functions_stream(session):
    node = MapPartitions(session.new_node_id(), Slices(0, range(4), 2), lambda p, it: (x * 2 for x in it))
    assert list(islice(node.compute(0, [count()], None), 3)) == [0, 2, 4]


def test_union_maps_each_partition_to_one_parent(session):
    a, b = Slices(0, [1, 2, 3], 3), Slices(1, [4, 5], 2)
    union = narrow.Union(session.new_node_id(), [a, b])
    assert union.partition_count == 5
    parents = [
        [(d.parent.id, p) for d in union.dependencies for p in d.mapping.parents(index)] for index in range(5)
    ]
    assert parents == [[(0, 0)], [(0, 1)], [(0, 2)], [(1, 0)], [(1, 1)]]


def none_of(session):
    """A source without a partition."""
    source = Slices(session.new_node_id(), [], 1)
    source.slices = []
    return source


def test_unions_of_unions_are_planned_as_one_save_where_one_is_persisted(session):
    a, b, c, d = (Slices(session.new_node_id(), [i, i], 2) for i in range(4))
    empty = none_of(session)
    inner = narrow.Union(session.new_node_id(), [a, empty, b])
    kept = narrow.Union(session.new_node_id(), [inner, c])
    outer = narrow.Union(session.new_node_id(), [kept, d, kept])

    def needs(node):
        every = range(node.partition_count)
        return [(found.parent, p) for i in every for found, p in served(node.unfolded(), i)]

    flat = [(node, p) for node in (a, b, c) for p in range(2)]
    assert needs(outer) == [*flat, (d, 0), (d, 1), *flat]
    kept.storage = StorageLevel.DISK_ONLY
    assert needs(outer) == [*[(kept, p) for p in range(6)], (d, 0), (d, 1), *[(kept, p) for p in range(6)]]
    assert needs(kept) == flat


def test_empty_unions_that_share_their_parents_cost_nothing(session):
    node = none_of(session)
    for _ in range(100):
        node = narrow.Union(session.new_node_id(), [node, node])
    assert node.unfolded() == ()


@pytest.mark.parametrize(
    ("have", "want", "sizes"), [(8, 3, [2, 3, 3]), (4, 4, [1] * 4), (3, 8, [1] * 3), (5, 1, [5]), (0, 2, [])]
)
def test_coalesce_cuts_the_partitions_into_even_groups_and_never_grows(session, have, want, sizes):
    source = Slices(0, range(have), max(have, 1))
    source.slices = source.slices[:have]
    node = narrow.Coalesced(session.new_node_id(), source, want)
    mapping = node.dependencies[0].mapping
    groups = [list(mapping.parents(p)) for p in range(node.partition_count)]
    assert [len(group) for group in groups] == sizes
    assert list(chain.from_iterable(groups)) == list(range(have))


@pytest.mark.parametrize(("left", "right"), [([1, 2], [1]), ([1], [1, 2]), ([], [1]), ([1], [])])
def test_zip_of_partitions_of_unequal_lengths_fails_the_task(session, left, right):
    node = narrow.Zipped(session.new_node_id(), Slices(0, left, 1), Slices(1, right, 1))
    with pytest.raises(ValueError, match="Can only zip RDDs with same number of elements in each partition"):
        list(computed(node, 0, left, right))
    assert list(computed(node, 0, [1, 2], "ab")) == [(1, "a"), (2, "b")]


def test_cartesian_goes_by_left_partition_first_and_replays_the_right_one(session):
    node = narrow.Cartesian(session.new_node_id(), Slices(0, [1, 2], 2), Slices(1, "abc", 3))
    assert node.partition_count == 6
    left, right = (d.mapping for d in node.dependencies)
    assert [(*left.parents(p), *right.parents(p)) for p in range(6)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert list(computed(node, 0, [1, 2], "ab", env=session)) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_a_source_that_cannot_tell_its_partitions_yet_raises_only_when_asked(session):
    class Missing(Slices):
        @property
        def partition_count(self):
            raise FileNotFoundError("not there")

    node = Elementwise(session.new_node_id(), Missing(0, [], 1), MAP, operator.neg)
    with pytest.raises(FileNotFoundError):
        _ = node.partition_count


def test_a_checkpoint_point_passes_records_on_and_then_takes_a_readers_place(session):
    source, reader = Slices(0, [1, 2], 2), Slices(1, [1, 2], 2)
    point = narrow.CheckpointPoint(session.new_node_id(), source, rdd_id=7)
    below = Elementwise(session.new_node_id(), point, MAP, operator.neg)
    point.settle("file:/x/rdd-7", reader)
    assert point.file == "file:/x/rdd-7"
    assert source.id not in shape_of(below).nodes
    assert list(session.records(below, 1)) == [-2]


def test_every_node_kind_can_be_shipped(session):
    a, b = Slices(0, [1, 2], 2), Slices(1, [1, 2], 2)
    kinds = [
        Elementwise(2, a, MAP, operator.neg),
        MapPartitions(3, a, lambda p, it: it),
        narrow.CheckpointPoint(4, a, 0),
        narrow.Union(5, [a, b]),
        narrow.Coalesced(6, a, 1),
        narrow.Zipped(7, a, b),
        narrow.Cartesian(8, a, b),
    ]
    for node in kinds:
        copy = node.ship()
        copy.dependencies = ()
        assert type(closures.loads(closures.dumps(copy))) is type(node)
