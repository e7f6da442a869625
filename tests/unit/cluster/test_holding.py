"""Directories of applications on a worker that several share."""

from __future__ import annotations

from spark_ft.cluster.holding import applications_in, directory_of
from spark_ft.ids import AppId


def test_each_application_has_a_directory_of_its_own_whatever_it_is_called(tmp_path):
    names = ["app-1", "app/1", "app_1", "../../etc", "x" * 300]
    paths = {directory_of(tmp_path, AppId(name)) for name in names}
    assert len(paths) == len(names)
    assert all(path.parent == tmp_path / "apps" for path in paths)
    assert sorted(applications_in(tmp_path)) == sorted(names)
    assert directory_of(tmp_path, AppId("app-1")) in paths, "the same again"
