"""Fingerprints: equal exactly where programs are the same, in every process."""

import dataclasses
import importlib
import itertools
import os
import random
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spark_ft.lineage import sources
from spark_ft.lineage.anatomy import expand
from spark_ft.lineage.canonical import Canon, Part
from spark_ft.lineage.fingerprint import Fingerprints
from spark_ft.rdd import RDD
from tests.unit.rdd.inprocess import InProcess

ROOT = Path(__file__).resolve().parents[2]

# --- Values ---------------------------------------------------------------------------------------

atoms = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
    | st.complex_numbers(allow_nan=False, allow_infinity=False)  # their repr is no literal
)  # fmt: skip
hashable = st.recursive(
    atoms, lambda v: st.lists(v, max_size=3).map(tuple) | st.frozensets(v, max_size=4), max_leaves=6
)
values = st.recursive(
    hashable | st.sets(hashable, max_size=5),
    lambda v: (
        st.lists(v, max_size=4)
        | st.lists(v, max_size=3).map(tuple)
        | st.dictionaries(hashable, v, max_size=4)
    ),
    max_leaves=12,
)


def digest(value: object) -> bytes:
    canon = Canon(expand)
    made = canon.digest(value)
    assert not canon.reasons(value)
    return made


def spelled(value: object) -> object:
    """A value as something whose equality is that of types and contents, to the last bit."""
    kind = type(value).__name__
    if isinstance(value, float):
        return kind, struct.pack("<d", value)
    if isinstance(value, complex):
        return kind, struct.pack("<dd", value.real, value.imag)
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(spelled, value))
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(map(spelled, value))
    if isinstance(value, dict):
        return kind, tuple((spelled(k), spelled(v)) for k, v in value.items())
    return kind, value


@given(values, values)
def test_digests_are_equal_where_types_and_contents_are(one: object, two: object) -> None:
    assert (digest(one) == digest(two)) == (spelled(one) == spelled(two))


class Child:
    """A Python of another hash seed that tells the digests of what it is given."""

    CODE = """
        import sys
        from spark_ft.lineage.anatomy import expand
        from spark_ft.lineage.canonical import Canon
        nan, inf = float("nan"), float("inf")
        for line in sys.stdin:
            print(Canon(expand).digest(eval(line)).hex(), flush=True)
    """

    def __init__(self, seed: str, *flags: str) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, *flags, "-c", textwrap.dedent(self.CODE)],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, text: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def children() -> Iterator[list[Child]]:
    started = [Child("1"), Child("2", "-O"), Child("random", "-OO")]
    yield started
    for child in started:
        child.process.communicate("")


@given(values)
def test_processes_of_other_hash_seeds_agree(children: list[Child], value: object) -> None:
    text = ascii(value)
    told = {child.ask(text) for child in children}
    told.add(digest(eval(text, {"nan": float("nan"), "inf": float("inf")})).hex())  # noqa: S307 - our own text
    assert len(told) == 1


# --- Graphs with cycles -----------------------------------------------------------------------------


class Vertex:
    def __init__(self, label: int, ordered: bool) -> None:
        self.label, self.ordered = label, ordered
        self.below: list[Vertex] = []


def part(vertex: Vertex) -> Part:
    return Part("", bytes([vertex.label, vertex.ordered]), vertex.below, ordered=vertex.ordered)


@st.composite
def graphs(draw: st.DrawFn) -> list[Vertex]:
    size = draw(st.integers(1, 6))
    made = [Vertex(draw(st.integers(0, 1)), draw(st.booleans())) for _ in range(size)]
    for vertex in made:
        vertex.below = [made[i] for i in draw(st.lists(st.integers(0, size - 1), max_size=3))]
    return made


def unfolded(vertices: list[Vertex], depth: int) -> dict[Vertex, object]:
    """The tree below each vertex down to ``depth``, by name: the definition that Canon must meet."""
    names: dict[object, int] = {}
    seen: dict[Vertex, object] = dict.fromkeys(vertices, 0)
    for _ in range(depth):
        trees = {}
        for vertex in vertices:
            below = [seen[other] for other in vertex.below]
            trees[vertex] = (vertex.label, vertex.ordered, tuple(below if vertex.ordered else sorted(below)))
        seen = {vertex: names.setdefault(tree, len(names) + 1) for vertex, tree in trees.items()}
    return seen


@given(graphs(), graphs())
def test_graphs_have_one_digest_only_where_they_unfold_to_one_tree(
    one: list[Vertex], two: list[Vertex]
) -> None:
    every = one + two
    trees = unfolded(every, len(every) + 1)
    digests = {vertex: Canon(part).digest(vertex) for vertex in every}
    together = Canon(part)
    for vertex in every:
        assert together.digest(vertex) == digests[vertex], "what was met before does not show"
    for left, right in itertools.combinations(every, 2):
        assert trees[left] == trees[right] or digests[left] != digests[right]
        if not (cyclic(left) or cyclic(right)):
            assert (digests[left] == digests[right]) == (trees[left] == trees[right])


def reached(vertex: Vertex) -> set[Vertex]:
    found: set[Vertex] = set()
    stack = [*vertex.below]
    while stack:
        if (one := stack.pop()) not in found:
            found.add(one)
            stack += one.below
    return found


def cyclic(vertex: Vertex) -> bool:
    """Does it lie on a cycle, or above one?"""
    return any(one in reached(one) for one in {vertex} | reached(vertex))


def copied(vertex: Vertex, known: dict[Vertex, Vertex], shuffle: random.Random) -> Vertex:
    """The same graph again; what rests on no cycle is shared no more, sets are in another order."""
    if vertex in known:
        return known[vertex]
    made = Vertex(vertex.label, vertex.ordered)
    if cyclic(vertex):
        known[vertex] = made
    made.below = [copied(one, known, shuffle) for one in vertex.below]
    if not vertex.ordered:
        shuffle.shuffle(made.below)
    return made


@given(graphs(), st.randoms(use_true_random=False))
def test_a_graph_that_is_built_again_has_the_same_digest(vertices: list[Vertex], rng: random.Random) -> None:
    for vertex in vertices:
        assert Canon(part).digest(copied(vertex, {}, rng)) == Canon(part).digest(vertex)


# --- Programs -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a program says; each of these alone makes it another one."""

    constant: int = 1
    captured: int = 1
    default: int = 1
    keyword: int = 1
    a_global: int = 1
    in_a_list: int = 1
    helper: int = 1
    nested: int = 1
    local_class: int = 1
    nested_global: int = 1
    nested_import: int = 1
    attribute_name: int = 1
    of_self: int = 1
    comprehended: int = 1
    member: int = 1
    method: int = 1
    parent_method: int = 1
    imported: int = 1
    imported_global: int = 1
    imported_deeper: int = 1
    imported_inside: int = 1
    imported_late: int = 1
    attribute_of_module: int = 1
    partial: int = 1
    decorated: int = 1
    partitions: int = 2
    reducers: int = 2
    records: int = 5


MAIN = """
import functools
import {m}
from {m} import outer as taken

LIMIT = {f.a_global}
INNER = {f.nested_global}
TABLE = [0, {{"k": ({f.in_a_list},)}}]

def helper(x):
    return (lambda y: y + {f.helper})(x)

class Base:
    def scale(self):
        return {f.parent_method}

class Model(Base):
    FACTOR = {f.member}

    def __init__(self, weight):
        self.weight = weight

    def apply(self, x):
        return x * self.FACTOR + {f.method} + super().scale()

def counted(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args) + {f.decorated}
    return wrapper

@counted
def shift(x, by={f.default}, *, more={f.keyword}):
    return x + by + more + LIMIT + TABLE[1]["k"][0]

def late(x):
    from {m}_late import late
    return late(x)

def key(x, base):
    return x % base

def build(numbers):
    captured, model = {f.captured}, Model({f.of_self})

    def step(x):
        def inner(y):
            from {m}_nested import nested
            return nested(y - {f.nested} + INNER).a{f.attribute_name}
        class Local:
            weight = {f.local_class}

        return inner(x) + Local.weight + captured + {f.constant} + sum([z * {f.comprehended} for z in (1, 2)])

    mapped = numbers(range({f.records}), {f.partitions}).map(step).map(helper).map(shift).map(model.apply)
    mapped = mapped.map(taken).map(lambda x: {m}.deeper.inner(x) + {m}.SETTING).map(late)
    keyed = mapped.keyBy(functools.partial(key, base={f.partial} + 5))
    return keyed.reduceByKey(lambda a, b: a + b, {f.reducers})
"""

MODULE = """
import {m}_deep as deeper

BASE = {f.imported_global}
SETTING = {f.attribute_of_module}

def outer(x):
    return inside(x) + {f.imported} + BASE

def inside(x):
    return x + {f.imported_inside}
"""
DEEP = """
def inner(x):
    return x + {f.imported_deeper}
"""
NESTED = """
def nested(x):
    return x + {f.nested_import}
"""
LATE = """
def late(x):
    return x + {f.imported_late}
"""


def numbers(data: range, count: int) -> RDD[int]:
    session = InProcess()
    return RDD(session, sources.parallel_collection(session.new_node_id(), list(data), count, None))


class Written:
    """A program on disk, imported as an interpreter would."""

    def __init__(self, folder: Path, name: str = "fp_helpers") -> None:
        self.folder, self.name = folder, name

    def write(self, facts: Facts, changes: Iterable[Callable[[str], str]] = ()) -> str:
        """Its modules; answers the text of its main file."""
        texts = {"": MODULE, "_deep": DEEP, "_late": LATE, "_nested": NESTED, None: MAIN}
        for suffix, template in texts.items():
            text = template.format(m=self.name, f=facts)
            for change in changes:
                if suffix not in ("_late", "_nested") or change not in NOT_OF_WHOLE_MODULES:
                    text = change(text)
            if suffix is None:
                return text
            (self.folder / f"{self.name}{suffix}.py").write_text(text)
        raise AssertionError

    def fingerprint(self, main: str, file: str = "main.py", optimize: int = 0) -> str:
        for name in [name for name in sys.modules if name.startswith(self.name)]:
            del sys.modules[name]
        importlib.invalidate_caches()
        namespace = {"__name__": "__main__"}
        exec(compile(main, file, "exec", optimize=optimize), namespace)  # noqa: S102 - the program under test
        found = Fingerprints().node(namespace["build"](numbers)._node)  # type: ignore[operator]
        assert found.unsafe == ()
        return found.digest.hex()

    def of(self, facts: Facts) -> str:
        return self.fingerprint(self.write(facts))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # sources change faster than times of change
    return Written(tmp_path)


@given(
    field=st.sampled_from([field.name for field in dataclasses.fields(Facts)]),
    pair=st.lists(st.integers(2, 20), min_size=2, max_size=2, unique=True),
)
def test_DR_5_any_other_fact_makes_another_program(written: Written, field: str, pair: list[int]) -> None:
    one, two = (dataclasses.replace(Facts(), **{field: value}) for value in pair)
    assert written.of(one) != written.of(two)
    assert written.of(one) == written.of(one)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Facts)])
def test_DR_5_each_fact_counts(written: Written, field: str) -> None:
    assert written.of(dataclasses.replace(Facts(), **{field: 7})) != written.of(Facts())


def commented(text: str) -> str:
    return (
        "\n".join(line + "  # a remark" if line.endswith(":") else line for line in text.splitlines()) + "\n"
    )


def spaced(text: str) -> str:
    return "# a head\n\n\n" + text.replace("\ndef ", "\n\n\n# of a function\ndef ").replace(
        "\nclass ", "\n\n\nclass "
    )


def documented(text: str) -> str:
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if line.lstrip().startswith(("def ", "class ")):
            indent = " " * (len(line) - len(line.lstrip()) + 4)
            lines.append(f'{indent}"""What this is."""')
    return "\n".join(lines) + "\n"


def annotated(text: str) -> str:
    return text.replace("(x):", "(x: int) -> int:").replace("(self):", "(self) -> float:")


def moved(text: str) -> str:
    """``late`` and ``helper`` change places, and so does a function of the module."""
    blocks = text.split("\n\n")
    functions = [
        i for i, block in enumerate(blocks) if block.strip().startswith(("def helper", "def late", "def in"))
    ]
    for i, j in zip(functions[::2], functions[1::2], strict=False):
        blocks[i], blocks[j] = blocks[j], blocks[i]
    return "\n\n".join(blocks)


def unused(text: str) -> str:
    """Something else is defined, which nothing of the lineage reads."""
    return text + "\n\ndef nobody(x):\n    return open(x)\n\nUNUSED = object()\n"


COSMETICS = [commented, spaced, documented, annotated, moved, unused]
NOT_OF_WHOLE_MODULES = (
    annotated,
    moved,
    unused,
)  # one that a function imports when it runs counts by all it does


@given(
    changes=st.lists(st.sampled_from(COSMETICS), max_size=4, unique=True),
    file=st.sampled_from(["main.py", "job.py", "/elsewhere/main.py", "<stdin>"]),
    optimize=st.integers(0, 2),
)
def test_remarks_lines_places_and_names_of_files_do_not_count(written, changes, file, optimize) -> None:
    plain = written.of(Facts())
    assert written.fingerprint(written.write(Facts(), changes), file, optimize) == plain


def test_what_changes_texts_really_changes_them(written: Written) -> None:
    text = written.write(Facts())
    assert len({change(text) for change in COSMETICS} | {text}) == len(COSMETICS) + 1


def test_modules_of_another_name_hold_the_same_functions(tmp_path: Path, written: Written) -> None:
    """Where a function is imported by name, the name of its file is nothing to it."""
    text = "from {} import outer\ndef build(numbers):\n    return numbers(range(3), 2).map(outer)\n"
    found = []
    for name in ("fp_one", "fp_two"):
        other = Written(tmp_path, name)
        other.write(Facts())
        found.append(other.fingerprint(text.format(name)))
    assert found[0] == found[1]


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from spark_ft.lineage.fingerprint import Fingerprints
from tests.property.test_fingerprints import numbers
{main}
WORDS = {{"all", "these", "words", "are", "in", "a", "set"}}
BY_WORD = {{word: len(word) for word in sorted(WORDS)}}
rdd = build(numbers).filter(lambda pair: pair[0] in WORDS or pair[1] in BY_WORD or pair in {{("x", 1), "y"}})
print(Fingerprints().job(rdd._node, lambda part, rows: list(rows)).key.hex())
"""


def test_scripts_agree_whatever_their_hash_seed_name_or_optimisation(
    tmp_path: Path, written: Written
) -> None:
    main = PROGRAM.format(root=str(ROOT), main=written.write(Facts()))
    told = set()
    for name, seed, *flags in (("a.py", "1"), ("b.py", "2"), ("c.py", "random", "-O"), ("d.py", "3", "-OO")):
        (tmp_path / name).write_text(main)
        command = [sys.executable, *flags, str(tmp_path / name)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        told.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(told) == 1, told
