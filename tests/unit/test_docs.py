"""What the documentation claims is there: links resolve, named tests exist, the README compiles.

``python tests/unit/test_docs.py`` rewrites the columns of tests in docs/fault-model.md from the names of the
tests; ``make docs`` does that and then runs this file.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FAULTS = ROOT / "docs" / "fault-model.md"
ROW = re.compile(r"^\| ([A-Z]+-\d+) \|")
NONE_YET = "none yet"


def files_by_fault() -> dict[str, set[str]]:
    """``EX-1`` -> files below tests/, whose tests bear its id, ``test_EX_1_`` or ``test_BL_3_EX_1_``."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for ids in re.findall(r"def test_((?:[A-Z]+(?:_\d+)+_)+)", path.read_text()):
            for kind, numbers in re.findall(r"([A-Z]+)((?:_\d+)+)_", ids):
                for number in numbers.strip("_").split("_"):
                    found[f"{kind}-{number}"].add(path.relative_to(ROOT / "tests").as_posix())
    return found


def rows() -> Iterator[tuple[str, str]]:
    """Each row's id and its last cell."""
    for line in FAULTS.read_text().splitlines():
        if match := ROW.match(line):
            yield match[1], line.rstrip().rstrip("|").rsplit("|", 1)[1].strip()


def with_tests_named(text: str) -> str:
    found = files_by_fault()
    lines = []
    for line in text.splitlines():
        if match := ROW.match(line):
            cell = ", ".join(f"`{name}`" for name in sorted(found[match[1]])) or NONE_YET
            line = line.rstrip().rstrip("|").rsplit("|", 1)[0] + f"| {cell} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_resolve(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page: Path):
    for name in re.findall(r"`((?:spark_ft|tests|docs|examples)/[\w./-]+\.(?:py|md))`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_fault_model_names_only_tests_that_are_there():
    found = files_by_fault()
    for fault, cell in rows():
        named = set(re.findall(r"`([^`]+)`", cell))
        assert named <= found[fault], f"{fault} names {named - found[fault]}: run make docs"
        assert named or cell == NONE_YET, f"{fault} names no test and does not say so: run make docs"


def test_the_readme_names_only_tests_that_are_there():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_[A-Z]+_\d+_\w+)`", (ROOT / "README.md").read_text())
    assert named
    assert [name for name in named if f"def {name}(" not in sources] == []


def test_every_fault_has_one_row():
    ids = [fault for fault, _ in rows()]
    assert len(ids) == len(set(ids))


def test_the_readme_program_is_short_and_compiles():
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert program is not None
    compile(program[1], "README.md", "exec")
    assert len([line for line in program[1].splitlines() if line.strip()]) <= 10


if __name__ == "__main__":
    FAULTS.write_text(with_tests_named(FAULTS.read_text()))
