import functools

import jax
import numpy as np
import pytest

from rubric_jax.train import passes, setup
from rubric_jax.train import step as step_lib
from tests.train import runs


@functools.cache
def prepared():
    """(setup, parameters, source) on the devices of this process."""
    made = setup.build(runs.config(mesh={"data": -1}, train={"batch_size": 8}))
    source = setup.source(made, made.config.data.path, "", str(runs.root() / "cache"))
    return made, setup.load(made), source


@functools.cache
def scored():
    made, params, source = prepared()
    with jax.set_mesh(made.mesh):
        return passes.score(made, params, source)


def test_scores_are_those_of_each_row_on_its_own():
    made, params, source = prepared()
    plan = setup.plan(made, source, shuffle=False)
    task = step_lib.Task(made.vlm, made.layout, None, logps_chunk=64)
    alone = jax.jit(functools.partial(step_lib.branch_logps, task))
    params = jax.device_get(params)
    for row in (0, 13, 23):
        example = source[row]
        batch = setup.loading.collate(source, [example], plan.shapes[-1], 1, made.vlm.media)
        expected = np.asarray(alone(params, batch))[0]
        for n, response in enumerate(example.responses):
            length = len(response)
            got = scored()["logps"][row, n]
            np.testing.assert_allclose(got[:length], expected[n, :length], rtol=1e-4, atol=1e-5)
            assert not got[length:].any()


def test_scores_are_in_the_order_of_the_data_with_masks_and_sums():
    _, _, source = prepared()
    arrays = scored()
    assert list(arrays["ids"]) == [source[row].id for row in range(24)]
    assert list(arrays["branches"]) == ["chosen", "rejected"]
    assert {name: arrays[name].dtype for name in ("logps", "mask", "sums")} == dict.fromkeys(
        ("logps", "mask", "sums"), np.float32
    )
    longest = max(len(r) for row in range(24) for r in source[row].responses)
    assert arrays["logps"].shape == arrays["mask"].shape == (24, 2, longest)
    np.testing.assert_array_equal(arrays["mask"].sum(-1), source.index["response_lengths"])
    np.testing.assert_allclose(
        arrays["sums"], (arrays["logps"] * arrays["mask"]).sum(-1), rtol=1e-5
    )
    assert (arrays["sums"] < 0).all()


def test_references_are_the_scores_of_the_reference(tmp_path):
    made, params, source = prepared()
    store = passes.reference_store(made, str(tmp_path))
    keys = source.prepared.keys(slice(None))
    with jax.set_mesh(made.mesh):
        assert passes.fill_references(made, store, source, lambda: params) == len(set(keys))
    lengths = source.index["response_lengths"].reshape(-1)
    flat = scored()["logps"].reshape(len(keys), -1)
    for values, logps, length in zip(store.get(keys), flat, lengths, strict=True):
        np.testing.assert_array_equal(values, logps[:length])


def test_known_references_load_no_model(tmp_path):
    made, _, source = prepared()
    store = passes.reference_store(made, str(tmp_path))
    store.put((key, np.zeros(1)) for key in source.prepared.keys(slice(None)))

    def load():
        pytest.fail("the reference's parameters were loaded")

    assert passes.fill_references(made, store, source, load) == 0


def test_a_pass_that_goes_on_computes_only_batches_that_lack_something(tmp_path, monkeypatch):
    made, params, source = prepared()
    store = passes.reference_store(made, str(tmp_path))
    kept = source.prepared.keys(slice(0, 12))  # all of batch 0, half of batch 1
    store.put((key, np.full(3, -7.0)) for key in kept)
    seen, logps = [], passes.logps

    def watched(*args, **kwargs):
        for rows, values in logps(*args, **kwargs):
            seen.append(rows.tolist())
            yield rows, values

    monkeypatch.setattr(passes, "logps", watched)
    with jax.set_mesh(made.mesh):
        passes.fill_references(made, store, source, lambda: params)
    assert seen == [list(range(8, 16)), list(range(16, 24))]
    # A value that was there stays, whatever the company it was computed in.
    assert all((values == -7.0).all() for values in store.get(kept))


def test_runs_of_steps():
    assert list(passes.runs([0, 1, 2, 7, 9, 10])) == [(0, 3), (7, 8), (9, 11)]
    assert list(passes.runs([])) == []
