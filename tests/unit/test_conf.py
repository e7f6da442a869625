"""SparkConf keeps strings, chains, and leaves judging them to Settings."""

import pytest

from spark_ft.conf import SparkConf
from spark_ft.errors import PySparkRuntimeError, SettingsError
from spark_ft.settings import Settings


def test_setters_chain_and_values_are_strings():
    conf = SparkConf().setMaster("local[2]").setAppName("app").setSparkHome("/h").set("a", 1).set("b", True)
    assert conf.get("spark.master") == "local[2]"
    assert dict(conf.getAll()) == {
        "spark.master": "local[2]", "spark.app.name": "app", "spark.home": "/h", "a": "1", "b": "True",
    }  # fmt: skip
    assert conf.contains("a") and not conf.contains("c")


def test_an_absent_key_is_none_or_the_default_given():
    assert SparkConf().get("x") is None
    assert SparkConf().get("x", "y") == "y"


def test_set_if_missing_leaves_what_is_there():
    conf = SparkConf().set("a", "1").setIfMissing("a", "2").setIfMissing("b", "3")
    assert conf.getAll() == [("a", "1"), ("b", "3")]


def test_executor_environment_takes_one_form_exactly():
    conf = SparkConf().setExecutorEnv("A", "1").setExecutorEnv(pairs=[("B", "2"), ("C", "3")])
    assert [conf.get(f"spark.executorEnv.{name}") for name in "ABC"] == ["1", "2", "3"]
    for wrong in ({}, {"key": "A", "value": "1", "pairs": [("B", "2")]}):
        with pytest.raises(PySparkRuntimeError) as caught:
            conf.setExecutorEnv(**wrong)
        assert caught.value.getCondition() == "KEY_VALUE_PAIR_REQUIRED"


def test_the_debug_string_has_one_sorted_line_for_each_pair():
    assert SparkConf().setAll([("b", "2"), ("a", "1")]).toDebugString() == "a=1\nb=2"


def test_a_copy_shares_nothing():
    conf = SparkConf().set("a", "1")
    conf.copy().set("a", "2")
    assert conf.get("a") == "1"


def test_defaults_come_from_the_configuration_directory(tmp_path, monkeypatch):
    text = "# comment\n\nspark.a   1 2\nspark.b=3\nspark.c: 4\nspark.d\n"
    (tmp_path / "spark-defaults.conf").write_text(text)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    assert dict(SparkConf().getAll()) == {"spark.a": "1 2", "spark.b": "3", "spark.c": "4", "spark.d": ""}
    assert SparkConf(loadDefaults=False).getAll() == []


def test_UE_6_a_bad_value_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"\[BAD_CONFIG\] spark.task.maxFailures='many'"):
        Settings.from_conf(SparkConf().set("spark.task.maxFailures", "many").asdict())
