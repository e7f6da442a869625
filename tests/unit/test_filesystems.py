"""The door to file systems: files appear whole or not at all, and what is missing is named."""

import os
import sys

import fsspec
import pytest

from spark_ft.errors import UsageError
from spark_ft.filesystems import Local, Remote, at, is_remote, local_path


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """(file system, directory in it)"""
    if request.param == "local":
        yield Local(), str(tmp_path)
        return
    files, path = at("memory://place")
    yield files, path
    files.delete_tree(path)


def test_paths_and_uris_are_told_apart():
    assert [is_remote(p) for p in ("/a/b", "a:b", "file:/a", "file:///a", "s3://b/k", "hdfs:/x")] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
    assert local_path("file:///a/../b/") == local_path("file:/b") == "/b"
    assert isinstance(at("/a")[0], Local) and isinstance(at("memory://a/")[0], Remote)


def test_a_file_is_created_once(place):
    files, folder = place
    assert files.create(f"{folder}/x", b"one")
    assert not files.create(f"{folder}/x", b"two")
    assert files.read(f"{folder}/x") == b"one" and files.size(f"{folder}/x") == 3
    files.write(f"{folder}/x", b"three")
    assert files.read(f"{folder}/x") == b"three" and files.names(folder) == ["x"]
    assert files.size(f"{folder}/none") == -1 and files.names(f"{folder}/none") == []
    assert files.exists(f"{folder}/x") and not files.exists(f"{folder}/none")
    with pytest.raises(FileNotFoundError):
        files.read(f"{folder}/none")


def test_a_file_left_by_an_exception_is_not_there(place):
    files, folder = place
    files.write(f"{folder}/before", b"")
    with pytest.raises(ZeroDivisionError), files.new_file(f"{folder}/half") as file:
        file.write(b"half")
        file.write(b"%d" % (1 // 0))
    with files.new_file(f"{folder}/whole") as file:
        file.write(b"whole")
    assert files.names(folder) == ["before", "whole"]


def test_a_url_without_its_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"pip install 'spark-ft\[files\]'"):
        at("s3://bucket/key")


def test_a_store_without_its_library_names_the_extra(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UsageError, match=r"Install s3fs.*pip install 'spark-ft\[s3\]'"):
        at("s3://bucket/key")


def test_an_unknown_scheme_is_named():
    with pytest.raises(UsageError, match="nowhere"):
        at("nowhere://x")


def test_a_local_path_needs_no_library():
    assert os.system(  # in a process that has imported nothing else
        f"{sys.executable} -c 'import sys; from spark_ft.filesystems import at; at(\"/a\"); "
        "sys.exit(\"fsspec\" in sys.modules)'"
    ) == 0  # fmt: skip
