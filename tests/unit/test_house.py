"""The house keeps its floors, its doors and its size: this file reads the source tree with ``ast``.

*Floors.*  A module imports only from lower floors or from its own room.  An import inside a function
counts like any other: it is most often a cycle in disguise.  Modules of floor 0 may know each
other; the few pairs of neighbours on a higher floor that may are named, with the reason, in
NEIGHBOURS.  No two modules, on whatever floor, import each other in a circle.  An import under
``if TYPE_CHECKING`` makes no edge at run time, so it may also point to
the two rooms that only hold vocabulary (VOCABULARY); to nothing else.

*Doors.*  Each way out of the process (sockets, stores, pickles of functions, other processes,
the environment, time, chance) has one module; DOORS says which, and for each exception why.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "spark_ft"
LINES_MAX = 600

# --- The tables ------------------------------------------------------------------------------

FLOORS: dict[int, str] = {
    0: "ids errors settings clock failpoints records interrupts"
    " conf storagelevel statcounter resultiterable resource codecs filesystems",
    1: "history lineage protocol closures rows log accumulators broadcast taskcontext files profiler"
    " serializers badrecords",
    2: "scheduler storage transport",
    3: "shuffle",
    4: "executor cluster",
    5: "driver",
    6: "rdd status listener",
    7: "context",
    8: "streaming util observe daemons applications",
    9: "__init__ submit",
    10: "shell __main__",
}
ROOM_FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms.split()}

NEIGHBOURS: dict[tuple[str, str], str] = {
    ("accumulators", "closures"): "updates travel pickled, by value where need be",
    ("badrecords", "accumulators"): "counts of finished tasks, once: what an accumulator does",
    ("broadcast", "closures"): "a value that plain pickle refuses goes by value, as a function does",
    ("broadcast", "protocol"): "a broadcast holds the reference to its block",
    ("closures", "lineage"): "a stage's functions travel as the nodes that hold them",
    ("cluster", "executor"): "a worker's warm process has executors' modules imported before it forks them",
    ("context", "__init__"): "a context asks its own package for its version",
    ("files", "protocol"): "a shipped file is a reference to its block",
    ("lineage", "protocol"): "a source of stored slices holds references to blocks",
    ("lineage", "rows"): "slices of a collection are batches of records",
    ("protocol", "lineage"): "effects carry the shape of a lineage",
    ("rows", "closures"): "a record that plain pickle refuses goes by value, as a function does",
    ("serializers", "closures"): "PySpark's serializers over the one way to pickle",
}

VOCABULARY = {
    "protocol": "names and plain data that errors and lineage mention in annotations",
    "lineage": "node and dependency name each other",
}


@dataclass(frozen=True)
class Door:
    """``names``: dotted names, or prefixes ending in a dot, that only ``rooms`` may use."""

    what: str
    names: tuple[str, ...]
    rooms: dict[str, str]  # path below spark_ft (a trailing slash means the whole room) -> why
    except_names: tuple[str, ...] = ()


DOORS = (
    Door("ZeroMQ", ("zmq", "zmq."), {"transport/": "the door"}),
    Door("LMDB", ("lmdb", "lmdb."), {"storage/lmdb_env.py": "the door"}),
    Door("fsspec", ("fsspec", "fsspec."), {"filesystems.py": "the door"}),
    Door("cloudpickle", ("cloudpickle", "cloudpickle."), {"closures.py": "the door"}),
    Door(
        "processes and signals",
        (
            "subprocess", "subprocess.", "multiprocessing", "multiprocessing.", "signal", "signal.",
            "pty", "pty.", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.system", "os.popen",
            "os.exec", "os.execv", "os.execve", "os.execvp", "os.spawnv", "os.posix_spawn",
            "os.wait", "os.waitpid", "os.waitid", "os.wait4", "os.pidfd_open", "os.setsid", "os._exit",
        ),
        {
            "cluster/processes.py": "the door",
            "executor/": "the SIGINT that breaks its own task off, and its own end",
            "failpoints.py": "a failpoint kills or stops its own process",
            "interrupts.py": "what a task's SIGINT means",
            "lineage/narrow.py": "pipe() runs the user's command, which is what it is for",
            "rdd/transform.py": "pipe() runs the user's command, which is what it is for",
        },
    ),
    Door(
        "environment variables",
        ("os.environ", "os.environ.", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"),
        {
            "settings.py": "the door",
            "cluster/processes.py": "a child's environment is set when it is spawned",
            "lineage/partitioner.py": "whether the hash seed is fixed decides whether a hash may be used",
        },
    ),
    Door(
        "time",
        ("time", "time.", "datetime", "datetime."),
        {"clock.py": "the door"},
    ),
    Door(
        "chance",
        (
            "random.", "numpy.random", "numpy.random.", "secrets", "secrets.",
            "os.urandom", "uuid.uuid1", "uuid.uuid4",
        ),
        {
            "ids.py": "an identity must be new even when everything else is seeded",
            "driver/driver.py": "the token that keeps strangers out is no chance",
        },
        except_names=("random.Random",),
    ),
)  # fmt: skip

# --- Reading the tree --------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    module: str  # dotted, absolute
    line: int
    typing_only: bool


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(), str(path)) for path in sources()}


TREES = trees()


def room_of(path: Path) -> str:
    """The top-level name a module belongs to: its package, or its own name."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def module_name(path: Path) -> str:
    parts = ["spark_ft", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def prefixes(module: str) -> Iterator[str]:
    """The module itself, then what it may be a name in, longest first."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        yield ".".join(parts[:length])


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def imports(path: Path, tree: ast.Module) -> Iterator[Import]:
    """Every import of a module, at any depth, as absolute dotted names of what it brings in."""
    package = ["spark_ft", *path.relative_to(PACKAGE).parts[:-1]]
    stack: list[tuple[ast.AST, bool]] = [(tree, False)]
    while stack:
        node, typing_only = stack.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, typing_only)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, typing_only)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            stack += [(child, True) for child in node.body]
            stack += [(child, typing_only) for child in node.orelse]
            continue
        stack += [(child, typing_only) for child in ast.iter_child_nodes(node)]


def used_names(path: Path, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dotted names of other modules that a module touches: imports, and attributes of imported names."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for found in imports(path, tree):
        yield found.module, found.line
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            parts = [node.attr]
            below = node.value
            while isinstance(below, ast.Attribute):
                parts.append(below.attr)
                below = below.value
            if isinstance(below, ast.Name) and below.id in aliases:
                yield ".".join([aliases[below.id], *reversed(parts)]), node.lineno


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def floor_of(room: str) -> int:
    assert room in ROOM_FLOOR, f"spark_ft/{room} stands on no floor: give it one in FLOORS"
    return ROOM_FLOOR[room]


def floor_violations(path: Path, tree: ast.Module) -> Iterator[str]:
    here = room_of(path)
    for found in imports(path, tree):
        parts = found.module.split(".")
        if parts[0] != "spark_ft":
            continue
        there = parts[1] if len(parts) > 1 and parts[1] in ROOM_FLOOR else "__init__"
        if there == here or floor_of(there) < floor_of(here) or floor_of(there) == 0 == floor_of(here):
            continue
        if (here, there) in NEIGHBOURS or (found.typing_only and there in VOCABULARY):
            continue
        yield (
            f"{where(path, found.line)}: {here} (floor {floor_of(here)}) imports {found.module} "
            f"(floor {floor_of(there)}); name a Protocol here and have it handed in"
        )


def door_violations(path: Path, tree: ast.Module) -> Iterator[str]:
    inside = path.relative_to(PACKAGE).as_posix()
    for door in DOORS:
        if any(inside == room or (room.endswith("/") and inside.startswith(room)) for room in door.rooms):
            continue
        seen = set()
        for name, line in used_names(path, tree):
            hit = any(
                name == banned or (banned.endswith(".") and name.startswith(banned)) for banned in door.names
            )
            if not hit or (line, door.what) in seen:
                continue
            if any(name == free or name.startswith(free + ".") for free in door.except_names):
                continue
            seen.add((line, door.what))
            yield f"{where(path, line)}: {name} is behind the door {door.what!r}: {next(iter(door.rooms))}"


# --- The rules ---------------------------------------------------------------------------------


def test_every_room_stands_on_a_floor():
    assert {room_of(path) for path in TREES} <= set(ROOM_FLOOR)


def test_a_module_imports_only_from_lower_floors_or_its_own_room():
    passed = [line for path, tree in TREES.items() for line in floor_violations(path, tree)]
    assert not passed, "\n".join(passed)


def test_no_modules_import_each_other_in_a_circle():
    """Rooms on one floor may know each other both ways; two modules never, deferred imports included."""
    names = {module_name(path): path for path in TREES}
    edges: dict[str, set[str]] = {name: set() for name in names}
    for name, path in names.items():
        for found in imports(path, TREES[path]):
            there = next((part for part in prefixes(found.module) if part in names), None)
            if there is not None and there not in (name, "spark_ft") and not found.typing_only:
                edges[name].add(there)
    left = set(edges)
    while leaves := {name for name in left if not edges[name] & left}:
        left -= leaves
    while roots := {name for name in left if not any(name in edges[other] for other in left)}:
        left -= roots
    assert not left, f"modules that import each other in a circle: {sorted(left)}"


def test_every_pair_of_neighbours_is_needed():
    used = {
        (room_of(path), (found.module.split(".") + ["__init__"])[1])
        for path, tree in TREES.items()
        for found in imports(path, tree)
        if found.module.split(".")[0] == "spark_ft"
    }
    assert set(NEIGHBOURS) - used == set()


def test_only_its_own_door_leads_out_of_the_process():
    passed = [line for path, tree in TREES.items() for line in door_violations(path, tree)]
    assert not passed, "\n".join(passed)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_has_one_reason_and_at_most_600_lines(path: Path):
    lines = len(path.read_text().splitlines())
    assert lines <= LINES_MAX, f"{where(path, lines)}: {lines} lines are more than one reason"


def test_every_module_says_what_it_is_for():
    silent = [where(path, 1) for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_nothing_is_left_for_later():
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    left = [
        f"{where(path, number)}: {line.strip()}"
        for path in TREES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert left == []


def test_not_implemented_is_raised_only_where_pyspark_does():
    left = []
    for path, tree in TREES.items():
        allowed = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and node.name == "AccumulatorParam"
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None and id(node) not in allowed:
                raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                if isinstance(raised, ast.Name) and raised.id == "NotImplementedError":
                    left.append(where(path, node.lineno))
    assert left == []


def test_an_except_that_catches_everything_says_why_it_may():
    silent = []
    for path, tree in TREES.items():
        lines = path.read_text().splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(
                kind is None or (isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException"))
                for kind in kinds
            )
            near = lines[node.lineno - 2 : node.body[0].lineno]
            if broad and not any("#" in line for line in near):
                silent.append(where(path, node.lineno))
    assert silent == []


# --- The rules themselves can fail --------------------------------------------------------------


def tree_of(source: str) -> ast.Module:
    return ast.parse(source)


def test_a_deferred_import_of_a_higher_floor_is_found():
    source = "def f():\n    from spark_ft.context import SparkContext\n"
    assert len(list(floor_violations(PACKAGE / "scheduler" / "core.py", tree_of(source)))) == 1


def test_a_neighbour_on_the_same_floor_is_found():
    source = "import spark_ft.transport.link\n"
    assert len(list(floor_violations(PACKAGE / "storage" / "blocks.py", tree_of(source)))) == 1


def test_a_relative_import_is_found():
    source = "from ..driver import driver\n"
    assert len(list(floor_violations(PACKAGE / "shuffle" / "reader.py", tree_of(source)))) == 1


def test_a_typing_only_import_may_point_to_vocabulary_and_to_nothing_else():
    source = "if TYPE_CHECKING:\n    from spark_ft.protocol.messages import FetchFailed\n"
    assert list(floor_violations(PACKAGE / "errors.py", tree_of(source))) == []
    source = "if TYPE_CHECKING:\n    from spark_ft.driver.driver import Driver\n"
    assert len(list(floor_violations(PACKAGE / "errors.py", tree_of(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import zmq\n",
        "from zmq import Context\n",
        "def f():\n    import lmdb\n",
        "import os\nos.kill(1, 9)\n",
        "from os import kill\n",
        "import os as system\nsystem.environ['X']\n",
        "import time as t\nt.sleep(1)\n",
        "import random\nrandom.random()\n",
        "from random import shuffle\n",
    ],
)
def test_a_door_that_is_passed_is_found(source: str):
    assert list(door_violations(PACKAGE / "scheduler" / "core.py", tree_of(source)))


def test_a_seeded_generator_is_free_to_use():
    source = "import random\nfrom random import Random\nrandom.Random(1)\nRandom(2)\n"
    assert list(door_violations(PACKAGE / "rdd" / "transform.py", tree_of(source))) == []
