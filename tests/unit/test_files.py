"""Files: one copy on the driver, a link or a fetched copy in each executor, packages importable."""

import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from spark_ft import files
from spark_ft.errors import JobError, PySparkRuntimeError
from spark_ft.files import SparkFiles
from spark_ft.ids import HostId
from spark_ft.protocol.messages import BlockRef


class Store:
    def __init__(self):
        self.blocks, self.reads = {}, 0

    def put(self, kind, name, chunks):
        self.blocks[name] = b"".join(chunks)
        return BlockRef(HostId("driver"), "store", 0, name, len(self.blocks[name]))

    def read_block(self, block):
        self.reads += 1
        return self.blocks[block.key]


@pytest.fixture
def registry(tmp_path):
    registry = files.Registry(tmp_path / "scratch")
    yield registry
    registry.close()


@pytest.fixture
def executor(monkeypatch):
    """This process as an executor that has seen no file yet."""

    def become():
        monkeypatch.setattr(files._Process, "seen", "")
        monkeypatch.setattr(files._Process, "root", None)
        monkeypatch.setattr(SparkFiles, "_root", None)
        monkeypatch.setattr(sys, "path", list(sys.path))

    return become


def text_of(path):
    return Path(path).read_text()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_an_added_file_is_found_on_the_driver_and_in_a_task(registry, executor, tmp_path):
    source = write(tmp_path / "data.txt", "hello")
    registry.add(source)
    on_driver = SparkFiles.get("data.txt")
    (tmp_path / "data.txt").unlink()
    executor()
    files.ensure({files.PROPERTY: registry.text}, Store())
    in_task = SparkFiles.get("data.txt")
    assert on_driver != in_task and text_of(on_driver) == text_of(in_task) == "hello"
    assert in_task.startswith(SparkFiles.getRootDirectory())
    assert registry.uris(archives=False) == [f"file:{source}"]


def test_a_task_without_files_does_nothing():
    files.ensure({}, Store())


def test_before_a_context_there_is_no_directory(executor):
    executor()
    with pytest.raises(PySparkRuntimeError, match="CALL_BEFORE_INITIALIZE"):
        SparkFiles.getRootDirectory()
    with pytest.raises(TypeError):
        SparkFiles()


def test_a_directory_goes_only_recursively(registry, tmp_path):
    write(tmp_path / "d" / "sub" / "x", "deep")
    with pytest.raises(JobError, match="is a directory and recursive is not turned on"):
        registry.add(str(tmp_path / "d"))
    registry.add(str(tmp_path / "d"), recursive=True)
    assert text_of(SparkFiles.get("d/sub/x")) == "deep"


def test_a_missing_file_is_told_at_once(registry, tmp_path):
    with pytest.raises(JobError, match="INPUT_NOT_FOUND"):
        registry.add(str(tmp_path / "none"))


def test_the_same_name_with_other_content_needs_overwrite(registry, tmp_path):
    registry.add(write(tmp_path / "a" / "f", "1"))
    registry.add(write(tmp_path / "b" / "f", "1"))
    with pytest.raises(JobError, match="already registered"):
        registry.add(write(tmp_path / "c" / "f", "2"))
    registry.add(str(tmp_path / "c" / "f"), overwrite=True)
    assert text_of(SparkFiles.get("f")) == "2"


def test_a_package_is_importable_at_once_and_shadows_the_standard_library(registry, executor, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as package:
        package.writestr("sndhdr_of_ours.py", "MINE = 1")
    registry.add(str(tmp_path / "z.zip"), kind="py")
    assert sys.path.index(SparkFiles.get("z.zip")) == 1
    executor()
    files.ensure({files.PROPERTY: registry.text}, Store())
    assert sys.path.index(SparkFiles.get("z.zip")) == 1


def test_a_module_file_is_importable_by_its_directory(registry, tmp_path):
    registry.add(write(tmp_path / "module_of_ours.py", "VALUE = 3"), kind="py")
    import module_of_ours

    assert module_of_ours.VALUE == 3


def test_closing_takes_everything_back_from_the_path(tmp_path):
    before = list(sys.path)
    registry = files.Registry(tmp_path / "scratch")
    registry.add(write(tmp_path / "m.py", ""), kind="py")
    assert sys.path != before
    registry.close()
    assert sys.path == before


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_are_unpacked_under_the_name_given(registry, tmp_path, kind):
    write(tmp_path / "in" / "x", "inside")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(tmp_path / "in" / "x", "x")
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(tmp_path / "in" / "x", "x")
    registry.add(f"{tmp_path}/a.{kind}#name", kind="archive")
    assert text_of(SparkFiles.get("name/x")) == "inside"
    assert registry.uris(archives=True) == [f"file:{tmp_path}/a.{kind}#name"]
    assert registry.uris(archives=False) == []


def test_an_executor_elsewhere_fetches_the_bytes_once(executor, tmp_path):
    store = Store()
    registry = files.Registry(tmp_path / "scratch", store.put)
    registry.add(write(tmp_path / "f", "far away"))
    registry.add(write(tmp_path / "d" / "x", "in a directory") and str(tmp_path / "d"), recursive=True)
    wanted = json.loads(registry.text)
    registry.close()
    wanted["folder"] = "/not/here"
    for entry in wanted["files"]:
        entry["path"] = "/not/here/" + entry["name"]
    executor()
    for attempt in ("first", "second"):
        files.ensure({files.PROPERTY: json.dumps({**wanted, "attempt": attempt})}, store)
        assert text_of(SparkFiles.get("f")) == "far away"
        assert text_of(SparkFiles.get("d/x")) == "in a directory"
    assert store.reads == 2


def test_an_archive_cannot_write_outside_of_its_directory(registry, tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    for _ in range(2):
        with pytest.raises(tarfile.FilterError):
            registry.add(str(tmp_path / "evil.tar"), kind="archive")
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name == "escaped"]
