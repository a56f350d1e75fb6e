"""Terms with targets from rewards, and the rubric arrangements of modpo, by hand.

Fixture R: three pairs, four axes (criteria) of weights 3, 2, 1, 1, the first two essential;
beta * log-ratio gap is X.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.objectives import modifiers, modpo, pairwise, soft

PAIR = {"win": 0, "lose": 1}
X = np.array([0.09, -0.13, 0.05])
SCORES = [
    [[1.0, 1.0, 0.5, 0.0], [0.5, 1.0, 0.0, 1.0]],
    [[1.0, 0.5, 1.0, 0.5], [0.5, 1.0, 0.0, 0.0]],
    [[1.0, 1.0, 1.0, 0.5], [1.0, 1.0, 0.0, 0.0]],
]
WEIGHTS = np.array([3.0, 2.0, 1.0, 1.0]) / 7
ESSENTIAL = np.array([1.0, 1.0, 0.0, 0.0])


@pytest.fixture
def rubric(pairs64):
    """Fixture R in double precision."""
    del pairs64  # for its 64-bit types
    policy = np.stack([X / 0.1, np.zeros(3)], axis=-1)[..., None]  # [3, 2, 1]
    labels = types.Labels(np.array(SCORES), np.ones(3), np.zeros(3), np.zeros(3, np.int32))
    return types.Logps(policy, np.zeros_like(policy), np.ones_like(policy)), labels


def dpo_with(view, rubric, **knobs):
    logps, labels = view(*rubric, **PAIR, weights=WEIGHTS, **knobs)
    return pairwise.dpo(logps, labels, **PAIR, beta=0.1)[0], labels.margin


def test_soft_by_hand(pairs, close):
    logps, labels = pairs
    dtype = logps.policy.dtype
    # p = 0.8 and 0.3: reward gaps of logit(p) on one axis.
    rewards = np.zeros((2, 4, 1), dtype)
    rewards[:, 0, 0] = np.log([0.8 / 0.2, 0.3 / 0.7])
    labels = labels._replace(rewards=rewards)
    knobs = {**PAIR, "beta": 0.1, "weights": np.ones(1, dtype)}
    loss, metrics = soft.soft(logps, labels, **knobs)
    close(metrics["target"], [0.8, 0.3])
    close(loss, [0.6671593390, 0.6692581947])


def test_soft_slope_by_hand(pairs64, slope):
    logps, labels = pairs64
    rewards = np.zeros((2, 4, 1))
    rewards[:, 0, 0] = np.log([0.8 / 0.2, 0.3 / 0.7])
    labels = labels._replace(rewards=rewards)
    found = slope(soft.soft, logps, labels, 0, **PAIR, beta=0.1, weights=np.ones(1))
    np.testing.assert_allclose(found, [-0.0277515175, 0.0167545694], rtol=1e-8)


def test_soft_on_rubrics_by_hand(rubric):
    loss, metrics = soft.soft(*rubric, **PAIR, beta=0.1, weights=WEIGHTS, scale=2.0)
    expected = [0.5709465969, 0.6390927452, 0.6055324872]
    np.testing.assert_allclose(metrics["target"], expected, rtol=1e-9)
    np.testing.assert_allclose(loss, [0.6877741453, 0.7133402516, 0.6881830237], rtol=1e-9)


def test_squared_on_rubrics_by_hand(rubric):
    loss, _ = soft.squared(*rubric, **PAIR, beta=0.1, weights=WEIGHTS, scale=2.0)
    np.testing.assert_allclose(loss, [0.0383040816, 0.4920020408, 0.1433163265], rtol=1e-8)


def test_a_soft_target_of_a_half_has_no_gradient_at_the_reference(pairs64, slope):
    logps, labels = pairs64
    logps = logps._replace(ref=logps.policy)
    labels = labels._replace(rewards=np.zeros_like(labels.rewards))
    knobs = {**PAIR, "beta": 0.1, "weights": np.ones(3)}
    np.testing.assert_allclose(slope(soft.soft, logps, labels, 0, **knobs), 0, atol=1e-15)


def test_smpo_by_hand(make_list, pairs64, slope):
    del pairs64
    # p = softmax(0.9, 0.4) = 0.6224593312; half * 2000 * (2 p - 1) * 10 * 0.0005
    logps, labels = make_list([0.0005, 0.0], [0.9, 0.4])
    knobs = {**PAIR, "beta": 0.5 * 2000 * 10, "weights": np.ones(1)}
    loss, metrics = soft.smpo(logps, labels, **knobs)
    logit = 0.5 * 2000 * (2 * 0.6224593312 - 1) * 10 * 0.0005
    np.testing.assert_allclose(metrics["logit"], [logit], rtol=1e-9)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-logit)), rtol=1e-9)
    np.testing.assert_allclose(np.log1p(np.exp(-logit)), 0.2576432861, rtol=1e-8)
    tie = make_list([0.0005, 0.0], [0.5, 0.5])
    np.testing.assert_allclose(soft.smpo(*tie, **knobs)[0], [np.log(2)], rtol=1e-9)
    assert slope(soft.smpo, *tie, 0, **knobs) == 0


def test_v1_one_anchor_and_a_margin_by_hand(rubric):
    loss, metrics = modpo.modpo(*rubric, **PAIR, beta=0.1, weights=WEIGHTS, scale=2.0)
    np.testing.assert_allclose(metrics["margin"], [-1 / 7, 1 / 7, 3 / 7], rtol=1e-9)
    np.testing.assert_allclose(loss[:2], [0.4579367363, 1.0613152550], rtol=1e-9)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1e9, [0.3894327032, 1.6377591106, 1.3219283696]),
        (5.0, [0.3967156380, 1.3114182890, 1.1169494256]),
    ],
)
def test_v2_rotation_by_hand(rubric, most, expected):
    knobs = {**PAIR, "beta": 0.1, "weights": WEIGHTS, "scale": 2.0, "most": most}
    loss, metrics = modpo.modpo_rotation(*rubric, **knobs)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    np.testing.assert_array_equal(metrics["labelled"], [3, 4, 2])


def test_v2_a_pair_that_no_axis_tells_apart_has_no_loss(rubric):
    logps, labels = rubric
    labels = labels._replace(rewards=np.full_like(labels.rewards, 0.5))
    knobs = {**PAIR, "beta": 0.1, "weights": WEIGHTS}
    np.testing.assert_array_equal(modpo.modpo_rotation(logps, labels, **knobs)[0], 0)


def test_v2_swapping_the_branches_changes_nothing(rubric):
    """The pair's order is not read: every axis orders it itself."""
    knobs = {"beta": 0.1, "weights": WEIGHTS, "scale": 2.0}
    there = modpo.modpo_rotation(*rubric, **PAIR, **knobs)[0]
    back = modpo.modpo_rotation(*rubric, win=1, lose=0, **knobs)[0]
    np.testing.assert_allclose(there, back, rtol=1e-12)


def test_v3_gated_margin_by_hand(rubric):
    loss, margin = dpo_with(modifiers.gated_margin, rubric, essential=ESSENTIAL, scale=2.0)
    np.testing.assert_allclose(margin, [3 / 7, 1 / 7, 3 / 7], rtol=1e-9)
    np.testing.assert_allclose(loss, [0.8766938015, 0.8388534025, 0.9002414699], rtol=1e-9)


def test_v4_offset_by_hand(rubric):
    loss, margin = dpo_with(modifiers.reward_margin, rubric, scale=2.0)
    np.testing.assert_allclose(margin, 2 * np.array([1, 2, 1.5]) / 7, rtol=1e-9)
    np.testing.assert_allclose(loss, [0.7957847114, 1.1041408290, 0.9002414699], rtol=1e-9)


def test_v3_is_v4_where_the_gate_is_open(rubric):
    gated, _ = dpo_with(modifiers.gated_margin, rubric, essential=ESSENTIAL, scale=2.0)
    plain, _ = dpo_with(modifiers.reward_margin, rubric, scale=2.0)
    np.testing.assert_allclose(gated[2], plain[2], rtol=1e-12)


def test_v6_consistency_filter_by_hand(rubric):
    keep = modifiers.consistent(*rubric, **PAIR, essential=ESSENTIAL)
    np.testing.assert_array_equal(keep, [1, 0, 1])


def test_modpo_hinge_by_hand(pairs, close):
    weights = np.array([0.5, 0.3, 0.2], pairs[0].policy.dtype)
    loss, _ = modpo.modpo_hinge(*pairs, **PAIR, beta=0.1, weights=weights)
    close(loss, [0.22, 1.9])


def test_the_scale_of_modpo_scales_the_rewards(rubric):
    logps, labels = rubric
    knobs = {**PAIR, "beta": 0.1, "weights": WEIGHTS}
    scaled = labels._replace(rewards=jnp.asarray(labels.rewards) * 2.5)
    np.testing.assert_allclose(
        modpo.modpo(logps, labels, **knobs, scale=2.5)[0],
        modpo.modpo(logps, scaled, **knobs)[0],
        rtol=1e-12,
    )


def test_weights_for_other_axes_are_refused(rubric):
    for term in (soft.soft, soft.squared, soft.smpo, modpo.modpo_rotation):
        with pytest.raises(ValueError, match="2 weights for 4 reward axes"):
            term(*rubric, **PAIR, beta=0.1, weights=np.ones(2))
