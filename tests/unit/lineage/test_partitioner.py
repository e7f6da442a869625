"""Key placement: PySpark's very numbers, in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spark_ft.lineage.partitioner import Partitioner, portable_hash

ROOT = Path(__file__).resolve().parents[3]
VALUES = {
    "None": 0,
    "()": 3430008,
    "(1, 2)": 3430029580082870073,
    "((1, 2), 3)": 1031013823351644674,
    "(None, 1)": 3430028580079870073,
    "-1": -2,
    "1.0": 1,
}


def hash_elsewhere(expression, **environment):
    code = f"from spark_ft.lineage.partitioner import portable_hash; print(portable_hash({expression}))"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize(("expression", "expected"), VALUES.items())
def test_hashes_are_those_of_pyspark(expression, expected):
    assert hash_elsewhere(expression, PYTHONHASHSEED="0") == str(expected)


def test_a_text_hashes_alike_in_two_processes_of_one_seed():
    assert hash_elsewhere("('é', b'x')", PYTHONHASHSEED="0") == hash_elsewhere(
        "('é', b'x')", PYTHONHASHSEED="0"
    )


def test_without_a_fixed_seed_nothing_is_hashed():
    assert "PYTHON_HASH_SEED_NOT_SET" in hash_elsewhere("'text'")


def test_unhashable_keys_raise_type_error():
    with pytest.raises(TypeError, match="unhashable"):
        portable_hash(([],))


def test_partitioners_are_equal_by_count_and_function_object():
    assert Partitioner(2) == Partitioner(2)
    assert Partitioner(2) != Partitioner(3)
    assert Partitioner(2, lambda key: key) != Partitioner(2, lambda key: key)
    assert Partitioner(3, lambda key: -1)("any") == 2


def test_a_partitioner_answers_to_pysparks_names():
    partitioner = Partitioner(3, hash)
    assert (partitioner.numPartitions, partitioner.partitionFunc) == (3, hash)
