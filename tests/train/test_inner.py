"""What a step hands to terms beside log-probabilities, on a model without a transformer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import objectives, types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import heads as heads_lib
from rubric_jax.train import setup
from rubric_jax.train import step as step_lib
from tests import toys
from tests.train import runs, steps

PICTURES = types.Layout.of(("chosen", "chosen@crop", "chosen@noise", "rejected"))


class Flat(NamedTuple):
    """A model whose states are parameters [N, T + 1, D], the same for every row."""

    heads: tuple = ()

    logit_cap = 0.0

    def hidden(self, params, batch, layout, last=False):
        count = batch.mask.shape[-1] + last
        return params["states"][None, :, :count] + jnp.zeros((len(batch.mask), 1, 1, 1))

    def unembed(self, params):
        return params["unembedding"]


def parameters(branches, bound=(), seed=0):
    rng = np.random.default_rng(seed)
    states, unembedding = rng.normal(size=(branches, 6, 8)), rng.normal(size=(8, 64))
    own = heads_lib.init(bound, jax.random.key(seed), 8)
    made = {"states": states, "unembedding": unembedding, "heads": own}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), made)


def batch(layout):
    return toys.batch(toys.llava.build(toys.HF), layout, rows=2)


def seen(monkeypatch, task, *given):
    """The Logps that the objective is called with."""
    caught = []
    original = objectives.Objective.__call__

    def catch(self, knobs, state, logps, labels):
        caught.append(logps)
        return original(self, knobs, state, logps, labels)

    monkeypatch.setattr(objectives.Objective, "__call__", catch)
    step_lib._loss(task, *given, jnp.ones(()))
    return caught[0]


def test_masks_learn_beside_the_policy_from_the_reference_s_states():
    spec = {"sparsepo": {**steps.PAIR, "mask": "m", "kl_mask": "a", "l1": 0.01}}
    heads = {"m": {"head": "mask"}, "a": {"head": "activation"}}
    layout = types.Layout.of(("chosen", "rejected"))
    objective = objectives.build(spec, layout, (), heads_lib.shapes(heads))
    bound = heads_lib.bind(heads)
    task = step_lib.Task(Flat(bound), layout, objective, logps_chunk=6)

    def loss(params, ref_params):
        given = (batch(layout), objective.knobs, objective.init_state(), ref_params, jnp.ones(()))
        return step_lib._loss(task, params, *given)[0]

    pair = parameters(2, bound), parameters(2, bound, seed=1)
    slopes, into_reference = jax.jit(jax.grad(loss, argnums=(0, 1)))(*pair)
    learns = {name: slopes[name] for name in ("unembedding", "heads")}
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(learns))
    assert not any(np.any(leaf != 0) for leaf in jax.tree.leaves(into_reference))


def test_js_is_that_of_a_branch_from_its_clean_reading(monkeypatch):
    spec = {"dpo_farthest": {"win": "chosen", "over": ["chosen@crop", "chosen@noise"], "beta": 1}}
    objective = objectives.build(spec, PICTURES)
    task = step_lib.Task(Flat(), PICTURES, objective, logps_chunk=6)
    rows, params = batch(PICTURES), parameters(4)
    found = seen(monkeypatch, task, params, rows, objective.knobs, {}, None).js
    logits = params["states"] @ params["unembedding"]
    for n in (1, 2):
        expected = autoregressive.dense_js(logits[n, :5], logits[0, :5])
        np.testing.assert_allclose(found[0, n], expected * rows.mask[0, n], rtol=1e-4, atol=1e-6)
    assert not found[:, [0, 3]].any()


def test_steps_are_cut_at_the_tokens_that_end_one(monkeypatch):
    layout = types.Layout.of(("response_0", "response_1"))
    spec = {"tree_rank": {"over": "all", "beta": 1.0, "weights": [1.0, 0.5], "steps": 3}}
    objective = objectives.build(spec, layout, ("a", "b"))
    ends = np.arange(64) % 2 == 0
    task = step_lib.Task(Flat(), layout, objective, 6, step_ends=ends)
    rows, params = batch(layout), parameters(2)
    found = seen(monkeypatch, task, params, rows, objective.knobs, {}, None).steps
    assert found.similarity.shape == (2, 2, 2, 3)
    ids, expected, number = rows.responses[0, 0], [], 0
    for before, token in zip([1, *ids[:-1]], ids, strict=True):
        number += bool(ends[before] and not ends[token])
        expected.append(min(number, 2))
    np.testing.assert_array_equal(found.index[0, 0], expected)
    # The state at a token stands behind the one that predicts it.
    step = [t for t in range(5) if expected[t] == 0 and rows.mask[0, 0, t]]
    mean = params["states"][0, 1:][jnp.array(step)].mean(axis=0)
    other = [t for t in range(5) if found.index[0, 1, t] == 0 and rows.mask[0, 1, t]]
    against = params["states"][1, 1:][jnp.array(other)].mean(axis=0)
    cosine = mean @ against / jnp.linalg.norm(mean) / jnp.linalg.norm(against)
    np.testing.assert_allclose(found.similarity[0, 0, 1, 0], cosine, rtol=1e-4)


def test_a_text_that_no_token_holds_ends_no_step():
    made = setup.build(runs.config(mesh={"data": -1}))
    found = setup.step_ends(made, "a")
    texts = made.processor.hf.tokenizer.batch_decode([[i] for i in np.flatnonzero(found)])
    assert texts
    assert all("a" in text for text in texts)
    with pytest.raises(ValueError, match="no token holds that; give its knob `ends`"):
        setup.step_ends(made, "never said")


def test_terms_must_agree_on_steps():
    layout = types.Layout.of(("response_0", "response_1"))
    term = {"term": "tree_rank", "over": "all", "beta": 1.0, "weights": [1.0]}
    objective = objectives.build(
        {"a": {**term, "steps": 3}, "b": {**term, "steps": 4}}, layout, ("x",)
    )
    with pytest.raises(ValueError, match="different steps"):
        _ = objective.steps
