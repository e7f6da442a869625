"""Whose a module is, and what names one state of what it came with."""

import sys
from pathlib import Path

import pytest

from spark_ft.lineage import packages
from spark_ft.lineage.anatomy import expand, whole_module
from spark_ft.lineage.canonical import Canon
from spark_ft.lineage.packages import ENGINE, INSTALLED, USER, origin, source_of


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of modules; what is known of modules is forgotten before and after."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    for known in (packages._origin, packages._providers, packages.engine):
        known.cache_clear()


def install(path: Path, name: str, record: str | None, folder: str = "fp_thing-1.0.dist-info") -> None:
    (path / folder).mkdir(exist_ok=True)
    (path / folder / ("METADATA" if record is not None else "PKG-INFO")).write_text(
        f"Name: {name}\nVersion: 1.0\n"
    )
    if record is not None:
        (path / folder / "RECORD").write_text(record)


@pytest.mark.parametrize("name", ["json", "math", "sys", "os.path", "collections.abc", "_thread", "random"])
def test_the_interpreters_own_modules(name: str) -> None:
    assert origin(name) == packages.interpreter()


@pytest.mark.parametrize(
    ("name", "distribution"),
    [("numpy", "numpy "), ("numpy.linalg", "numpy "), ("zmq", "pyzmq "), ("_pytest.mark", "pytest ")],
)
def test_installed_ones_by_their_distribution(name: str, distribution: str) -> None:
    found = origin(name)
    assert found.kind == INSTALLED
    assert found.name.startswith(distribution)


def test_this_package_by_its_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = origin("spark_ft.rdd.tasks")
    assert before.kind == ENGINE
    (path / "a.py").write_text("1")
    monkeypatch.setattr(packages, "_ENGINE_ROOT", path)
    packages.engine.cache_clear()
    one = packages.engine()
    (path / "a.py").write_text("2")
    packages.engine.cache_clear()
    assert len({before.digest, one.digest, packages.engine().digest}) == 3


@pytest.mark.parametrize(
    "name", ["__main__", "__mp_main__", "", "tests.unit", "no_such_module", "no_such.module"]
)
def test_all_others_are_the_users(name: str) -> None:
    assert origin(name).kind == USER


def test_a_distribution_counts_by_what_its_record_says_of_its_modules(path: Path) -> None:
    (path / "fp_thing.py").write_text("")

    def digest(record: str) -> bytes:
        install(path, "fp_thing", record)
        forget()
        found = origin("fp_thing")
        assert (found.kind, found.name) == (INSTALLED, "fp_thing 1.0")
        return found.digest

    first = digest("fp_thing.py,sha256=a,1\n")
    assert digest("fp_thing.py,sha256=b,1\n") != first
    notes = "fp_thing-1.0.dist-info/INSTALLER,sha256=x,4\n__pycache__/fp_thing.cpython-311.pyc,,\n"
    assert digest(notes + "fp_thing.py,sha256=a,1\n") == first


@pytest.mark.parametrize("record", ["__editable__.fp_thing.pth,,\n", None])
def test_an_editable_one_is_the_users(path: Path, record: str | None) -> None:
    (path / "fp_thing.py").write_text("")
    install(path, "fp_thing", record, "fp_thing.egg-info" if record is None else "fp_thing-1.0.dist-info")
    assert origin("fp_thing").kind == USER


def test_a_file_among_the_installed_ones_counts_by_its_bytes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_site_folders", lambda: (f"{path}/",))
    digests = set()
    for text in ("1", "2"):
        (path / "fp_stray.py").write_text(text)
        forget()
        found = origin("fp_stray")
        assert found.kind == INSTALLED
        digests.add(found.digest)
    assert len(digests) == 2


def test_a_module_of_the_users_that_hides_one_of_the_interpreters(path: Path) -> None:
    (path / "this.py").write_text("")
    assert "this" not in sys.modules
    assert origin("this").kind == USER


def test_looking_at_a_module_does_not_import_it(path: Path) -> None:
    (path / "fp_pack").mkdir()
    (path / "fp_pack" / "__init__.py").write_text("raise AssertionError")
    (path / "fp_pack" / "inner.py").write_text("x = 1")
    assert origin("fp_pack.inner").kind == USER
    source = source_of("fp_pack.inner")
    assert source is not None
    assert source.code is not None
    assert not source.is_package
    assert source_of("fp_pack").is_package  # type: ignore[union-attr]
    assert source_of("fp_pack.none") is None
    assert source_of("fp_none") is None
    assert not [name for name in sys.modules if name.startswith("fp_pack")]


def test_a_broken_file_is_a_module_that_nobody_can_import(path: Path) -> None:
    (path / "fp_broken.py").write_text("def")
    assert source_of("fp_broken") is None


def test_whole_modules_count_with_all_that_they_import_in_circles_too(path: Path) -> None:
    def digest(**texts: str) -> bytes:
        for name, text in texts.items():
            (path / f"{name}.py").write_text(text)
        canon = Canon(expand)
        made = canon.digest(whole_module("fp_one"))
        assert not canon.reasons(whole_module("fp_one"))
        return made

    first = digest(
        fp_one="import fp_two, json", fp_two="from fp_three import x", fp_three="import fp_one\nx = 1"
    )
    assert digest(fp_three="# a remark\nimport fp_one\n\nx = 1") == first
    assert digest(fp_three="import fp_one\nx = 2") != first
    assert digest(fp_three="import fp_one\nx = 1") == first
    assert digest(fp_two="from fp_none import x") != first


def test_relative_imports_are_followed(path: Path) -> None:
    (path / "fp_rel" / "sub").mkdir(parents=True)
    texts = {
        "__init__": "", "one": "from . import two\nfrom .sub import three", "two": "x = 1",
        "sub/__init__": "", "sub/three": "from ..two import x\nfrom ... import nothing",
    }  # fmt: skip
    digests = []
    for changed in (None, "two", "sub/three"):
        for name, text in texts.items():
            (path / "fp_rel" / f"{name}.py").write_text(text + ("\ny = 2" if name == changed else ""))
        digests.append(Canon(expand).digest(whole_module("fp_rel.one")))
    assert len(set(digests)) == 3
