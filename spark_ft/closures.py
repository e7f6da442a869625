"""Functions and records to bytes and back: the one door to cloudpickle.

Two kinds of pickles leave a process.  *Records* are pickled by ``dumps``: in an executor with
plain pickle, at C speed, and with cloudpickle only where that fails.  *A stage's functions* are
pickled once per stage by ``dump_stage`` as a flat table of nodes, parents as indices, so that a
lineage 10,000 deep needs no recursion.

Classes that a program defines in ``__main__`` work everywhere.  Each stage brings them by value;
the executor hangs them into a stand-in ``__main__``, under the name they have in the driver.  So
plain pickle finds them by that name in any executor, and the driver, which unpickles by name too,
gets instances of its own classes back.
"""

from __future__ import annotations

import copy as copies
import functools
import io
import pickle
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import cloudpickle

from spark_ft.errors import PySparkException
from spark_ft.ids import Fingerprint, NodeId, ShuffleId
from spark_ft.lineage.dependency import Dependency, NarrowDependency, ShuffleDependency
from spark_ft.lineage.node import Node
from spark_ft.storagelevel import StorageLevel

CLOUDPICKLE_VERSION = str(cloudpickle.__version__)
_PROTOCOL = 5


class _Mode:
    main_is_ours = False  # True in executors: ``__main__`` is the stand-in


# --- Records -----------------------------------------------------------------------------


def dumps(obj: Any, take_buffer: Callable[[pickle.PickleBuffer], Any] | None = None) -> bytes:
    """Pickle records.  In the driver always by cloudpickle, because there plain pickle would name
    functions of ``__main__`` that no executor can look up.  ``take_buffer``: given large buffers, which are
    then not in the pickle."""
    if _Mode.main_is_ours:
        taken: list[pickle.PickleBuffer] = []
        try:
            payload = pickle.dumps(obj, _PROTOCOL, buffer_callback=taken.append if take_buffer else None)
        except (pickle.PicklingError, AttributeError, TypeError):
            pass  # a lambda, a local class …: by value
        else:
            for buffer in taken:
                take_buffer(buffer)  # type: ignore[misc]  # none were taken without it
            return payload
    return cast(bytes, cloudpickle.dumps(obj, _PROTOCOL, buffer_callback=take_buffer))


loads = pickle.loads


def install_main() -> None:
    """Put an empty stand-in for the driver's ``__main__`` into this process (executors only)."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    _Mode.main_is_ours = True


def _main_classes() -> bytes:
    """All classes of the driver's ``__main__`` that can be shipped, by value, as {name: class}."""
    main = sys.modules.get("__main__")
    found: dict[str, type] = {
        name: value
        for name, value in list(vars(main).items())
        if isinstance(value, type) and value.__module__ == "__main__" and value.__qualname__ == name
    }
    if not found or _Mode.main_is_ours:
        return b""
    try:
        return cast(bytes, cloudpickle.dumps(found, _PROTOCOL))
    except Exception:  # one bad class must not keep the others back: whatever its pickling raises
        shipped = {}
        for name, value in found.items():
            try:
                cloudpickle.dumps(value, _PROTOCOL)
            except Exception:  # noqa: S112, BLE001 - it is reported when a stage really uses it
                continue
            shipped[name] = value
        return cast(bytes, cloudpickle.dumps(shipped, _PROTOCOL))


# --- A stage's functions --------------------------------------------------------------------


@dataclass(slots=True)
class Stage:
    """What a task needs of its stage: the node to compute, and either the shuffle to write
    (``output``) or the function of (partition, iterator) whose answer is the result.  ``name`` is that of
    the job in every life of its application; empty where there is but one."""

    target: Node
    function: Callable[[int, Iterator[Any]], Any] | None
    output: ShuffleDependency | None
    name: bytes
    sources: list[Node | None]  # nodes that only hold data, each in its place among all


def dump_stage(
    target: Node,
    function: Callable[[int, Iterator[Any]], Any] | None,
    output: ShuffleDependency | None,
    name: bytes = b"",
) -> bytes:
    """Pickle a stage: the nodes that ``target`` reaches by narrow dependencies, flat.

    Raises pickle.PicklingError whose text names what could not be pickled and the path of
    variables that leads to it.
    """
    order: list[Node] = []
    index: dict[int, int] = {}
    stack: list[tuple[Node, bool]] = [(target, False)]
    while stack:
        node, done = stack.pop()
        if node.id in index:
            continue
        if done:
            index[node.id] = len(order)
            order.append(node)
            continue
        stack.append((node, True))
        stack.extend(
            (d.parent, False)
            for d in reversed(node.unfolded())
            if isinstance(d, NarrowDependency) and d.parent.id not in index
        )
    nodes = []
    links: list[tuple[tuple[Any, ...], ...]] = []
    for node in order:
        copy = node.ship()
        copy.dependencies = ()
        nodes.append(copy)
        links.append(
            tuple(
                (index[d.parent.id], d.mapping) if isinstance(d, NarrowDependency) else (_reduce_side(d),)
                for d in node.unfolded()
            )
        )
    sources = [copy if _only_data(node) else None for node, copy in zip(order, nodes, strict=True)]
    others = [None if _only_data(node) else copy for node, copy in zip(order, nodes, strict=True)]
    parts = (others, links, function, None if output is None else _map_side(output), name)
    try:
        data = cloudpickle.dumps(sources, _PROTOCOL)
        payload = cloudpickle.dumps(parts, _PROTOCOL)
    except PySparkException:
        raise  # a context or an RDD inside the closure: says so itself
    except Exception as error:  # user objects may raise anything while they are pickled
        raise _not_serializable(error, order, function, output) from error
    return pickle.dumps((_main_classes(), data, payload), _PROTOCOL)


def _only_data(node: Node) -> bool:
    """Whether this is a source of records: it holds slices or splits by the thousand, and no function."""
    return not node.dependencies and node.partitioner is None


def _reduce_side(dependency: ShuffleDependency) -> ShuffleDependency:
    """The dependency as a reader needs it: without its parent; the partition function stays behind."""
    from spark_ft.lineage.partitioner import Partitioner

    return ShuffleDependency(
        dependency.shuffle,
        None,
        Partitioner(dependency.partitioner.partition_count),
        dependency.fingerprint,
        dependency.aggregator,
        dependency.map_side_combine,
        dependency.group,
        dependency.ordering,
        dependency.map_count,
    )


def _map_side(dependency: ShuffleDependency) -> ShuffleDependency:
    return ShuffleDependency(
        dependency.shuffle,
        None,
        dependency.partitioner,
        dependency.fingerprint,
        dependency.aggregator,
        dependency.map_side_combine,
        dependency.group,
        dependency.ordering,
        dependency.map_count,
    )


def load_stage(blob: bytes, sources: list[Node | None] | None = None) -> Stage:
    """The inverse of ``dump_stage``, in an executor.  Raises whatever user code raises on import.

    ``sources`` of a stage that was loaded from the same blob are taken as they are."""
    classes, data, payload = pickle.loads(blob)
    if classes:
        main = sys.modules["__main__"]
        for name, value in pickle.loads(classes).items():
            setattr(main, name, value)
    if sources is None:
        sources = pickle.loads(data)
    others, links, function, output, name = pickle.loads(payload)
    nodes = [other or source for other, source in zip(others, sources, strict=True)]
    for node, link in zip(nodes, links, strict=True):
        dependencies: list[Dependency] = []
        for item in link:
            if len(item) == 1:
                dependencies.append(item[0])
            else:
                dependencies.append(NarrowDependency(nodes[item[0]], item[1]))
        node.dependencies = tuple(dependencies)
    return Stage(nodes[-1], function, output, name, sources)


# --- A whole lineage -------------------------------------------------------------------------


def dump_lineage(target: Node) -> bytes:
    """Pickle a lineage, shuffles included, to be built again in this application.  Flat, as a stage is.

    Raises whatever pickling the functions raises.
    """
    order: list[Node] = []
    index: dict[int, int] = {}
    stack: list[tuple[Node, bool]] = [(target, False)]
    while stack:
        node, done = stack.pop()
        if node.id in index:
            continue
        if done:
            index[node.id] = len(order)
            order.append(node)
            continue
        stack.append((node, True))
        stack.extend((d.parent, False) for d in reversed(node.dependencies) if d.parent is not None)
    nodes, links = [], []
    for node in order:
        copy = copies.copy(node)
        copy.dependencies = ()
        nodes.append(copy)
        links.append([_link(dependency, index) for dependency in node.dependencies])
    return cast(bytes, cloudpickle.dumps((nodes, links), _PROTOCOL))


def _link(dependency: Dependency, index: Mapping[int, int]) -> tuple[int, Any]:
    assert dependency.parent is not None
    if isinstance(dependency, NarrowDependency):
        return index[dependency.parent.id], dependency.mapping
    return index[dependency.parent.id], _map_side(dependency)


def load_lineage(
    data: bytes, new_node_id: Callable[[], NodeId], new_shuffle: Callable[[], tuple[ShuffleId, Fingerprint]]
) -> Node:
    """The inverse, with new ids: what the first one's ids stand for has been let go of.  Nothing of it is
    persisted.  Raises whatever user code raises when it is unpickled."""
    nodes, links = pickle.loads(data)
    for node, link in zip(nodes, links, strict=True):
        node.id, node.storage = new_node_id(), StorageLevel.NONE
        dependencies: list[Dependency] = []
        for parent, how in link:
            if isinstance(how, ShuffleDependency):
                how.shuffle, how.fingerprint = new_shuffle()
                how.parent, how.lineage = nodes[parent], None
                dependencies.append(how)
            else:
                dependencies.append(NarrowDependency(nodes[parent], how))
        node.dependencies = tuple(dependencies)
    return cast(Node, nodes[-1])


# --- Finding the culprit --------------------------------------------------------------------


def _not_serializable(
    error: Exception, nodes: list[Node], function: Any, output: ShuffleDependency | None
) -> pickle.PicklingError:
    text = f"Could not serialize object: {type(error).__name__}: {error}"
    suspects = [item for node in reversed(nodes) for item in _attributes(node)]
    suspects.append(("function", function))
    for shuffle in (*(d for node in nodes for d in node.dependencies), output):
        if isinstance(shuffle, ShuffleDependency):
            suspects += _attributes(shuffle.aggregator) + _attributes(shuffle.ordering)
            if shuffle is output:
                suspects.append(("the partition function", shuffle.partitioner.function))
    for name, value in suspects:
        if (path := _culprit(value, name)) is not None:
            return pickle.PicklingError(f"{text}\n[CLOSURE_NOT_SERIALIZABLE] it is reached by: {path}")
    return pickle.PicklingError(text)


def _attributes(obj: Any) -> list[tuple[str, Any]]:
    names: dict[str, None] = {}
    for cls in type(obj).__mro__:
        for name in getattr(cls, "__slots__", ()):
            names[name] = None
    names.update(dict.fromkeys(getattr(obj, "__dict__", {})))
    if isinstance(obj, Node) and obj.op is not None:
        return [(f"the function given to {obj.op[0]}", obj.op[1])]
    skipped = {"dependencies", "__weakref__", "__dict__"}
    return [(n, getattr(obj, n)) for n in names if n not in skipped and hasattr(obj, n)]


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.CloudPickler(io.BytesIO(), _PROTOCOL).dump(value)
    except Exception:  # whatever it raises, it does not pickle
        return False
    return True


def _culprit(value: Any, path: str, depth: int = 0) -> str | None:
    """The path to the innermost thing that does not pickle, or None when ``value`` does."""
    if _pickles(value):
        return None
    if depth < 8:
        for name, child in _children(value):
            if (found := _culprit(child, f"{path} -> {name}", depth + 1)) is not None:
                return found
    return f"{path} ({type(value).__module__}.{type(value).__qualname__})"


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.MethodType):
        yield "self", value.__self__
        value = value.__func__
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield f"variable {name!r}", cell.cell_contents
            except ValueError:  # an empty cell
                continue
        for name in value.__code__.co_names:
            if name in value.__globals__:
                yield f"global {name!r}", value.__globals__[name]
        yield from ((f"default {i}", d) for i, d in enumerate(value.__defaults__ or ()))
    elif isinstance(value, functools.partial):
        yield "function", value.func
        yield from ((f"argument {i}", item) for i, item in enumerate(value.args))
        yield from ((f"argument {key!r}", item) for key, item in value.keywords.items())
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", item) for key, item in list(value.items())[:1000])
    elif isinstance(value, (list, tuple, set, frozenset)):
        yield from ((f"[{i}]", item) for i, item in enumerate(list(value)[:1000]))
    elif not isinstance(value, (type, types.ModuleType)):
        yield from ((f"attribute {name!r}", item) for name, item in _attributes(value))
