"""A reference that moves with the policy."""

import functools
import logging
import math

import jax
import numpy as np
import pytest

from rubric_jax import paths
from rubric_jax.train import front, loop
from tests.train import runs, steps

MOVING = {"reference": "step", "refresh": 2, "refresh_mixup": 0.25}


@functools.cache
def case(mesh=(1, 1, 1)):
    return steps.case(steps.DPO, mesh=mesh, **MOVING)


def leaf(tree):
    return np.array(tree["decoder"]["norm"]["scale"])


def batch(case):
    made = steps.batch(case, rows=8, ref=False)
    return made._replace(labels=made.labels._replace(weight=np.ones(8, np.float32)))


@pytest.mark.slow
def test_every_n_steps_a_share_of_the_policy_is_mixed_in():
    made = case()
    state, expected = made.start(), leaf(made.params())
    for done in range(1, 5):
        state, _ = made.step(state, batch(made))
        if done in (2, 4):
            expected = 0.25 * leaf(state.params) + 0.75 * expected
        np.testing.assert_allclose(leaf(state.ref), expected, rtol=1e-6)
    assert np.abs(leaf(state.params) - leaf(state.ref)).max() > 1e-5


def test_a_step_that_moves_the_reference_compiles_nothing(caplog):
    made = case()
    state, _ = made.step(made.start(), batch(made))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            state, _ = made.step(state, batch(made))
    assert not [record for record in caplog.records if "Compiling" in record.message]


@pytest.mark.slow
def test_a_reference_refreshed_every_step_is_the_policy_that_the_step_begins_with():
    made = steps.case(steps.DPO, reference="step", refresh=1)
    state = made.start()
    for _ in range(3):
        state, metrics = made.step(state, batch(made))
        np.testing.assert_allclose(metrics["rewards/margins"], 0.0, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"], math.log(2), rtol=1e-6)
        for name, new in paths.flatten(jax.device_get(state.params)).items():
            assert new.tobytes() == np.array(paths.flatten(state.ref)[name]).tobytes()


@pytest.mark.slow
def test_a_mesh_moves_the_reference_like_one_device():
    cut, whole = case((2, 2, 2)), case()
    steps.assert_close(cut.run(batch(cut), steps=3), whole.run(batch(whole), steps=3))
    kernel = cut.functions.state.ref["decoder"]["layers"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 2, 40 // 2)


def test_stored_log_probabilities_cannot_move(tmp_path):
    with pytest.raises(ValueError, match=r"refresh is 2: .*is 'cache', .*Set it to 'step'"):
        loop.train(runs.config(train={**MOVING, "reference": "cache"}), str(tmp_path))


def test_a_front_shares_one_reference_that_stays(tmp_path):
    with pytest.raises(ValueError, match=r"policies of a front share one reference"):
        front.run(runs.config(train=MOVING), {"a": runs.MODPO}, str(tmp_path))


def test_without_a_reference_there_is_nothing_to_move():
    made = steps.case({"nll": {"on": "chosen"}}, reference="none", refresh=2)
    assert made.functions.state.ref is None
