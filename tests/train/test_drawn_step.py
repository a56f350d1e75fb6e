"""Corruptions inside the compiled step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import sharding
from rubric_jax.data.corruptions import drawn
from rubric_jax.train import loop
from rubric_jax.train import step as step_lib
from tests.train import runs, steps

BRANCHES = ("chosen", "rejected", "chosen@corrupted")
SPEC = {"dpo": {**steps.PAIR, "lose": "chosen@corrupted"}}
RAMP = {"from": 0.1, "to": 2.0, "over": 4}
CONTEXTS = {"corrupted": {"corruption": "gaussian_noise", "when": "step", "std": RAMP}}
TRAIN = {"branches": BRANCHES, "reference": "step"}


@functools.cache
def case(contexts=True, **kwargs):
    return steps.case(SPEC, contexts=CONTEXTS if contexts else None, **TRAIN, **kwargs)


def batch(case):
    """With the toy pictures of the corrupted context marked as drawn: those are its own."""
    made = steps.batch(case, rows=8, ref=False)
    table = np.full((*made.media["pixels"].shape[:2], 3), -1, np.int32)
    groups = len(table)
    for group in range(groups):
        number = 0
        for b in range(group * 8 // groups, (group + 1) * 8 // groups):
            for m in range(2):
                if (b + m) % 3:  # as in toys.batch: such a prompt has pictures
                    table[group, number] = (1, b, 0) if m else (-1, -1, -1)
                    number += 1
    return made._replace(media={**made.media, drawn.TABLE: table})


def by_hand(case, state, batch, done):
    """Metrics of the plain model on pictures that were drawn outside of it."""
    contexts = case.setup.config.data.contexts
    apply = steps.setup_lib.draw(case.setup)
    made = jax.device_get(apply(batch, None if done is None else jnp.int32(done)))
    assert contexts
    plain = case_without()
    with jax.set_mesh(plain.setup.mesh):
        placed = sharding.put_batch(made, plain.setup.mesh)
        ref = plain.params(seed=7)
        found = plain.functions.evaluate(
            state.params, placed, plain.objective.knobs, state.loss_state, ref
        )
    return {name: float(value) / 8 for name, value in jax.device_get(found).items()}


@functools.cache
def case_without():
    return case(contexts=False)


@pytest.mark.slow
def test_a_step_reads_noise_of_its_own_under_policy_and_reference_alike():
    made, losses = case(), []
    rows = batch(made)
    state = made.start()
    for done in range(2):
        expected = by_hand(made, state, rows, done)
        state, metrics = made.step(state, rows, ref_params=made.params(seed=7))
        for name in ("loss", "rewards/margins", "logps/chosen"):
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, atol=1e-6)
        losses.append(expected["loss"])
    assert made.functions.step._cache_size() == 1  # the ramp moved on, and nothing compiled
    # As a step with the noise of the one before it would not.
    other = by_hand(made, state, rows, 1)["loss"], by_hand(made, state, rows, 2)["loss"]
    assert abs(other[0] - other[1]) > 1e-4


def test_an_evaluation_draws_the_same_at_every_step():
    made = case()
    rows, state = batch(made), made.start()
    with jax.set_mesh(made.setup.mesh):
        placed = sharding.put_batch(rows, made.setup.mesh)
        found = made.functions.evaluate(
            state.params, placed, made.objective.knobs, state.loss_state, made.params(seed=7)
        )
    expected = by_hand(made, state, rows, None)
    np.testing.assert_allclose(float(found["loss"]) / 8, expected["loss"], rtol=1e-4)


@pytest.mark.slow
def test_a_mesh_and_microbatches_draw_the_same():
    whole, cut = case(), case(mesh=(2, 2, 1), accumulate=2)
    states = [made.run(batch(made), ref_params=made.params(seed=7)) for made in (whole, cut)]
    steps.assert_close(*states)


def test_no_stored_log_probabilities_belong_to_it(tmp_path):
    data = {"branches": BRANCHES, "contexts": CONTEXTS}
    with pytest.raises(ValueError, match=r"drawn anew .*set it to 'step', or .*'when': 'data'"):
        loop.train(runs.config(data=data, objective=SPEC), str(tmp_path))


@pytest.mark.slow
def test_scores_see_the_draw_that_log_probabilities_see():
    made = case()
    task = steps.setup_lib.task(made.setup, None)
    with jax.set_mesh(made.setup.mesh):
        params, placed = made.params(), sharding.put_batch(batch(made), made.setup.mesh)
        wanted, scores = (
            jax.jit(functools.partial(function, task))(params, placed)
            for function in (step_lib.branch_logps, step_lib.branch_scores)
        )
    np.testing.assert_array_equal(scores["logps"], wanted)
    assert not np.array_equal(wanted[:, 0], wanted[:, 2])  # the context differs
