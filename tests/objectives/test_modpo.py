"""modpo against numbers worked by hand, and the eight identities that it obeys.

A flipped sign of the margin survives all identities but the sixth.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.objectives import modpo, pairwise

PAIR = {"win": 0, "lose": 1}
WEIGHTS = np.array([0.5, 0.3, 0.2])
KNOBS = {**PAIR, "beta": 0.1, "weights": WEIGHTS}


def test_modpo_with_three_axes_by_hand(pairs, close):
    loss, metrics = modpo.modpo(
        *pairs, **PAIR, beta=0.1, weights=WEIGHTS.astype(pairs[0].policy.dtype)
    )
    close(metrics["margin"], [-0.3, 0.05])
    close(metrics["logit"], [0.78, -0.9])
    close(loss, [0.3773440662, 1.2411538747])


def test_modpo_with_two_axes_by_hand(pairs64):
    # Pair 0 is ordered by axis 0: margin 0.4 * (0 - 1) = -0.4, logit (0.09 + 0.4) / 0.6.
    # Pair 1 is ordered by axis 1: margin 0.6 * (0 - 0.5) = -0.3, logit (-0.13 + 0.3) / 0.4.
    logps, labels = pairs64
    labels = labels._replace(rewards=labels.rewards[..., :2], axis=np.array([0, 1]))
    loss, metrics = modpo.modpo(logps, labels, **PAIR, beta=0.1, weights=np.array([0.6, 0.4]))
    np.testing.assert_allclose(metrics["logit"], [0.49 / 0.6, 0.425], rtol=1e-9)
    expected = [np.log1p(np.exp(-0.49 / 0.6)), np.log1p(np.exp(-0.425))]
    np.testing.assert_allclose(loss, expected, rtol=1e-9)


def test_modpo_gradient_by_hand(pairs64):
    logps, labels = pairs64

    def total(shift):
        policy = jnp.asarray(logps.policy).at[:, 0, 0].add(shift)
        return modpo.modpo(logps._replace(policy=policy), labels, **KNOBS)[0].sum()

    np.testing.assert_allclose(
        jax.grad(total)(jnp.zeros(2)), [-0.0628639772, -0.3554747513], rtol=1e-9
    )


def test_identity_1_modpo_is_a_difference_of_shifted_rewards(pairs64):
    logps, labels = pairs64
    sides = []
    for n in (0, 1):
        others = [
            sum(WEIGHTS[k] * labels.rewards[b, n, k] for k in range(3) if k != labels.axis[b])
            for b in range(2)
        ]
        own = WEIGHTS[labels.axis]
        sides.append((0.1 * logps.ratio(n) - np.array(others)) / own)
    expected = -jax.nn.log_sigmoid(sides[0] - sides[1])
    np.testing.assert_allclose(modpo.modpo(logps, labels, **KNOBS)[0], expected, rtol=1e-12)


def test_identity_2_modpo_with_one_hot_weights_is_dpo(pairs64):
    logps, labels = pairs64
    labels = labels._replace(axis=np.array([0, 0]))
    loss, _ = modpo.modpo(logps, labels, **PAIR, beta=0.1, weights=np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(loss, [0.6491593390, 0.7602581947], rtol=1e-9)
    np.testing.assert_allclose(loss, pairwise.dpo(logps, labels, **PAIR, beta=0.1)[0], rtol=1e-12)


def test_identity_3_scaling_the_weights_divides_beta(pairs64):
    scaled = modpo.modpo(*pairs64, **PAIR, beta=0.1, weights=10 * WEIGHTS)[0]
    divided = modpo.modpo(*pairs64, **PAIR, beta=0.01, weights=WEIGHTS)[0]
    np.testing.assert_allclose(scaled, [0.4311467619, 0.8629993631], rtol=1e-9)
    np.testing.assert_allclose(scaled, divided, rtol=1e-12)


def test_identity_4_equal_rewards_give_dpo_with_a_larger_beta(pairs64):
    logps, labels = pairs64
    labels = labels._replace(rewards=np.full_like(labels.rewards, 0.7))
    loss, _ = modpo.modpo(logps, labels, **KNOBS)
    np.testing.assert_allclose(loss, [0.6071917248, 1.0700553357], rtol=1e-9)
    for b, axis in enumerate(labels.axis):
        dpo = pairwise.dpo(logps, labels, **PAIR, beta=0.1 / WEIGHTS[axis])[0]
        np.testing.assert_allclose(loss[b], dpo[b], rtol=1e-12)


def test_identity_5_shared_constants_and_the_pairs_own_reward_do_not_count(pairs64):
    logps, labels = pairs64
    rewards = np.array(labels.rewards) + np.array([0.1, -0.2, 0.3])
    rewards[0, :2, 0] = [7.0, np.nan]  # not read, whatever it holds
    rewards[1, :2, 2] = [-5.0, 11.0]
    loss, _ = modpo.modpo(logps, labels._replace(rewards=rewards), **KNOBS)
    np.testing.assert_allclose(loss, [0.3773440662, 1.2411538747], rtol=1e-9)


def test_identity_6_a_table_policy_finds_the_optimum(pairs64):
    """The first of two responses wins axis 0 with probability 0.7 and is 0.4 better on axis 1.

    At the minimum of the expected loss beta * gap = 0.6 * logit(0.7) + 0.4 * 0.4.
    """
    del pairs64  # for its 64-bit types
    rewards = np.array([[[0.0, 0.6], [0.0, 0.2]]])
    labels = types.Labels(rewards, np.ones(1), np.zeros(1), np.zeros(1, np.int32))
    knobs = {"beta": 0.1, "weights": np.array([0.6, 0.4])}

    def gap(theta):
        return jax.nn.log_softmax(jnp.stack([theta, 0.0])) - np.log(0.5)

    def expected_loss(theta):
        policy = (gap(theta) + np.log(0.5))[None, :, None]  # [1, 2, 1]
        logps = types.Logps(policy, jnp.full((1, 2, 1), np.log(0.5)), jnp.ones((1, 2, 1)))
        first = modpo.modpo(logps, labels, win=0, lose=1, **knobs)[0]
        second = modpo.modpo(logps, labels, win=1, lose=0, **knobs)[0]
        return (0.7 * first + 0.3 * second).sum()

    slope = jax.jit(jax.grad(expected_loss))
    low, high = -100.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    found = gap(low)
    np.testing.assert_allclose(0.1 * (found[0] - found[1]), 0.6683787162, rtol=1e-8)


def test_identity_7_swapping_the_branches_flips_the_logit(pairs64):
    there = modpo.modpo(*pairs64, **KNOBS)[1]["logit"]
    back = modpo.modpo(*pairs64, **{**KNOBS, "win": 1, "lose": 0})[1]["logit"]
    np.testing.assert_allclose(there, -back, rtol=1e-12)


def test_identity_8_no_gradient_reaches_the_rewards(pairs64):
    logps, labels = pairs64

    def total(rewards):
        return modpo.modpo(logps, labels._replace(rewards=rewards), **KNOBS)[0].sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(labels.rewards)), 0)


def test_modpo_pays_before_it_ranks(pairs64):
    """A response that is also better elsewhere needs a larger gap: its loss is higher."""
    logps, labels = pairs64
    rewards = np.zeros_like(labels.rewards)
    plain = modpo.modpo(logps, labels._replace(rewards=rewards), **KNOBS)[0]
    rewards[:, 0, 1] = 1.0
    assert (modpo.modpo(logps, labels._replace(rewards=rewards), **KNOBS)[0] > plain).all()


def test_modpo_ignores_the_weight_of_a_padding_rows_axis(pairs64):
    logps, labels = pairs64
    mask = np.array(logps.mask)
    mask[1] = 0
    logps = logps._replace(mask=mask)
    knobs = {**PAIR, "beta": 0.1, "weights": np.array([0.5, 0.5, 0.0])}  # row 1: axis 2

    def total(policy):
        return modpo.modpo(logps._replace(policy=policy), labels, **knobs)[0].sum()

    value, gradient = jax.value_and_grad(total)(jnp.asarray(logps.policy))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_modpo_refuses_another_number_of_axes(pairs64):
    with pytest.raises(ValueError, match="2 weights for 3 reward axes"):
        modpo.modpo(*pairs64, **PAIR, beta=0.1, weights=np.array([0.5, 0.5]))


def test_check_refuses_a_pair_ordered_by_an_axis_without_weight(pairs64):
    labels = pairs64[1]
    modpo.check(labels, weights=WEIGHTS)
    with pytest.raises(ValueError, match=r"Row 1 is ordered by axis 2, whose weight is 0\.0"):
        modpo.check(labels, weights=np.array([0.5, 0.5, 0.0]))
    padding = labels._replace(weight=np.array([1.0, 0.0]))
    modpo.check(padding, weights=np.array([0.5, 0.5, 0.0]))


def test_check_reads_the_weights_of_each_row(pairs64):
    labels = pairs64[1]  # ordered by axis 0 and axis 2
    modpo.check(labels, weights=np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]))
    with pytest.raises(ValueError, match=r"Row 0 is ordered by axis 0, whose weight is 0\.0"):
        modpo.check(labels, weights=np.array([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]))


def test_check_refuses_an_axis_that_does_not_exist(pairs64):
    labels = pairs64[1]._replace(axis=np.array([0, 3]))
    with pytest.raises(ValueError, match="Row 1 is ordered by axis 3, but there are 3 axes"):
        modpo.check(labels, weights=WEIGHTS)
