"""The store of reference log-probabilities."""

import multiprocessing
import os
import pickle
import signal
import sqlite3

import numpy as np
import pytest

from rubric_jax.data import references


def store(folder, model="model", dtype="float32"):
    return references.References(str(folder / "refs.sqlite"), model, dtype)


def test_what_is_put_is_got(tmp_path):
    refs = store(tmp_path)
    assert refs.missing(["a", "b", "a"]) == ["a", "b"]
    refs.put([("a", np.float32([-0.5, -1.25])), ("b", np.float32([-2]))])
    assert refs.missing(["c", "b", "a"]) == ["c"]
    found = refs.get(["b", "a", "b"])
    assert [values.tolist() for values in found] == [[-2.0], [-0.5, -1.25], [-2.0]]
    assert found[0].dtype == np.float32


def test_entries_belong_to_a_model_and_a_dtype(tmp_path):
    store(tmp_path).put([("a", np.float32([-1]))])
    assert store(tmp_path, model="other").missing(["a"]) == ["a"]
    assert store(tmp_path, dtype="bfloat16").missing(["a"]) == ["a"]
    assert store(tmp_path).missing(["a"]) == []


def test_many_keys_at_once(tmp_path):
    refs = store(tmp_path)
    keys = [f"{i}" for i in range(2500)]
    refs.put((key, np.full(3, -float(key), np.float32)) for key in keys)
    assert refs.missing(keys) == []
    assert [values[0] for values in refs.get(keys)] == [-float(key) for key in keys]


def test_a_missing_entry_says_how_to_fill_it(tmp_path):
    refs = store(tmp_path)
    with pytest.raises(ValueError, match=r"2 of 2 reference .*`put` them.*config.train.reference"):
        refs.get(["a", "b"])


def test_values_must_be_finite_vectors(tmp_path):
    for values in ([-1.0, np.nan], [[-1.0]], [-np.inf]):
        with pytest.raises(ValueError, match="are not a finite vector"):
            store(tmp_path).put([("a", np.float32(values))])


def test_an_unwritable_store_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Cannot write reference .*config.data.cache"):
        store(tmp_path / "file").put([("a", np.float32([-1]))])


def test_the_store_survives_a_killed_writer(tmp_path):
    refs = store(tmp_path)
    refs.put([("a", np.float32([-1]))])
    child = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(refs,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert refs.missing(["a", "b", "c"]) == ["c"]
    refs.put([("c", np.float32([-3]))])
    assert [values.tolist() for values in refs.get(["a", "b", "c"])] == [[-1], [-2], [-3]]


def _write_and_die(refs):
    """Commits 'b', then is killed with 'c' written but not committed."""
    refs.put([("b", np.float32([-2]))])
    connection = sqlite3.connect(refs.path)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO logps VALUES (?, ?)", (refs._key("c"), b"\0\0\0\0"))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_pickled_store_reads_the_same_file(tmp_path):
    refs = store(tmp_path)
    refs.put([("a", np.float32([-1]))])
    assert pickle.loads(pickle.dumps(refs)).get(["a"])[0].tolist() == [-1.0]
