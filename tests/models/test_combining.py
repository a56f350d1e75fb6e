"""Several adapters of one base made into one."""

import dataclasses

import jax
import numpy as np
import pytest

from rubric_jax import config as config_lib
from rubric_jax import paths, stages
from rubric_jax.models import adapter_files, adapters, combining
from tests import toys

TARGETS = {
    "a": ((r"decoder/layers/(gate|attn/q)/kernel", True), (r".*", False)),
    "b": ((r"decoder/layers/attn/[qo]/kernel", True), (r".*", False)),
}


def named(**changes):
    """Two random adapters of the toy model, of which each lacks a site of the other."""
    vlm, params = toys.model()
    known, made = adapters.sites(vlm.weights, params), {}
    for i, name in enumerate("ab"):
        fields = {"rank": 2 + i, "alpha": 3.0, "targets": TARGETS[name], **changes}
        adapter = adapters.build(adapters.check(fields), known)
        draw = np.random.default_rng(i)
        leaves = paths.map_named(
            lambda path, leaf, draw=draw: (
                np.asarray(leaf)
                if path.endswith("lora_scale")
                else draw.normal(size=leaf.shape).astype(np.float32)
            ),
            adapters.fresh(adapter, jax.random.key(i), params),
        )
        made[name] = combining.Named(adapter, leaves)
    return vlm, params, made


def delta(params, leaves):
    """What an adapter adds to every kernel."""
    base = paths.flatten(params)
    merged = paths.flatten(adapters.merge(adapters.insert(params, leaves)))
    return {path: merged[path] - base[path] for path in base if path.endswith("/kernel")}


def test_concatenated_adapters_add_their_weighted_products():
    _, params, given = named()
    weights = {"a": 0.7, "b": -0.4}
    made = combining.concatenate(given, weights)
    assert made.adapter.rank == 5
    found = delta(params, made.leaves)
    parts = {name: delta(params, one.leaves) for name, one in given.items()}
    for path, array in found.items():
        want = sum(weights[name] * parts[name][path] for name in given)
        np.testing.assert_allclose(array, want, atol=2e-5, err_msg=path)
    assert np.abs(found["decoder/layers/attn/o/kernel"]).max() > 0.1  # of b alone
    assert np.abs(found["decoder/layers/gate/kernel"]).max() > 0.1  # of a alone


def test_the_average_of_an_adapter_with_itself_is_the_adapter():
    _, params, given = named(rank=2, targets=TARGETS["a"])
    twice = {"a": given["a"], "again": given["a"]}
    made = combining.average(twice, {"a": 0.25, "again": 0.25})
    # (sqrt(.25 s) + sqrt(.25 s)) a, the same for b: s a b
    want = delta(params, given["a"].leaves)
    for path, array in delta(params, made.leaves).items():
        np.testing.assert_allclose(array, want[path], atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    ("function", "changes", "weights", "message"),
    [
        ("average", {}, {"a": 1.0, "b": 1.0}, "equal ranks, and found {'a': 2, 'b': 3}"),
        ("average", {"rank": 2}, {"a": 1.0, "b": -1.0}, "'b' has weight -1.0"),
        ("concatenate", {"dora": True}, {"a": 1.0, "b": 1.0}, "'a' is DoRA"),
        ("concatenate", {}, {"a": 1.0}, "adapters are a, b, and weights are given for a"),
    ],
)
def test_what_cannot_be_combined_is_refused(function, changes, weights, message):
    given = named(**changes)[2]
    with pytest.raises(ValueError, match=message):
        combining.COMBINATIONS[function](given, weights)


def test_the_command_writes_what_the_function_makes_and_one_base_serves_all(tmp_path, monkeypatch):
    vlm, params, given = named()
    monkeypatch.setattr(stages.training.models, "directory", lambda name: tmp_path)
    monkeypatch.setattr(stages.training.models, "build", lambda *_: vlm)
    for name, one in given.items():
        adapter_files.write(tmp_path / name, one.adapter, one.leaves, vlm.weights, base="BASE")
    config = config_lib.Config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, checkpoint="BASE"))
    spec = f"{tmp_path / 'a'}=0.7, {tmp_path / 'b'}=0.3"
    stages.combine(config, spec, str(tmp_path / "c"), by="concatenate")
    bank = adapter_files.read_named({name: tmp_path / name for name in "abc"}, vlm)
    want = combining.concatenate(given, {"a": 0.7, "b": 0.3})
    for name, one in (*given.items(), ("c", want)):
        chosen = adapters.swap(params, bank[name].leaves)
        assert adapters.without(chosen)["decoder"]["embedding"] is params["decoder"]["embedding"]
        for path, leaf in paths.flatten(one.leaves).items():
            np.testing.assert_array_equal(paths.flatten(chosen)[path], leaf, err_msg=path)
    for bad in ("x", f"{tmp_path / 'a'}=much", "=1.0"):
        with pytest.raises(ValueError, match="--adapters has"):
            stages.combine(config, bad, str(tmp_path / "d"), by="average")
