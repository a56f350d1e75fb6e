"""dpo and bco against numbers worked by hand, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax.objectives import bco, pairwise

PAIR = {"win": 0, "lose": 1}
ZERO = bco.Baseline(np.float64(0), np.float64(0))


@pytest.mark.parametrize(
    ("beta", "smoothing", "expected"),
    [
        (0.1, 0.0, [0.6491593390, 0.7602581947]),
        (0.5, 0.0, [0.4932489460, 1.0700553357]),
        (0.1, 0.1, [0.6581593390, 0.7472581947]),  # conservative
    ],
)
def test_dpo_by_hand(pairs, close, beta, smoothing, expected):
    loss, _ = pairwise.dpo(*pairs, **PAIR, beta=beta, label_smoothing=smoothing)
    close(loss, expected)


def test_dpo_logit_by_hand(pairs, close):
    _, metrics = pairwise.dpo(*pairs, **PAIR, beta=0.1)
    close(metrics["logit"], [0.09, -0.13])


def test_dpo_subtracts_the_margin_after_beta(pairs, close):
    logps, labels = pairs
    labels = labels._replace(margin=np.asarray([0.05, -0.02], logps.policy.dtype))
    close(pairwise.dpo(logps, labels, **PAIR, beta=0.1)[0], [0.6733471672, 0.7496589186])


def test_dpo_over_contexts_is_conditional_preference(pairs, close):
    close(pairwise.dpo(*pairs, win=0, lose=2, beta=0.1)[0], [0.6587595555, 0.6981596805])


def test_dpo_at_the_reference_is_log_2(pairs, close):
    logps, labels = pairs
    logps = logps._replace(ref=logps.policy)
    for beta in (0.01, 0.1, 3.0):
        close(pairwise.dpo(logps, labels, **PAIR, beta=beta)[0], [np.log(2)] * 2)


def test_dpo_gradient_by_hand(pairs, close):
    logps, labels = pairs

    def total(shift):  # [B, 2], added to the first token of each branch: d/d(log-ratio)
        policy = jnp.asarray(logps.policy).at[:, :2, 0].add(shift)
        return pairwise.dpo(logps._replace(policy=policy), labels, **PAIR, beta=0.1)[0].sum()

    gradient = jax.grad(total)(jnp.zeros((2, 2), logps.policy.dtype))
    close(gradient[:, 0], [-0.0477515175, -0.0532454306])
    close(gradient[:, 1], [0.0477515175, 0.0532454306])


def test_smoothed_dpo_is_the_mixture_of_both_orders(pairs64):
    there = pairwise.dpo(*pairs64, **PAIR, beta=0.1)[0]
    back = pairwise.dpo(*pairs64, win=1, lose=0, beta=0.1)[0]
    mixed = pairwise.dpo(*pairs64, **PAIR, beta=0.1, label_smoothing=0.3)[0]
    np.testing.assert_allclose(mixed, 0.7 * there + 0.3 * back, rtol=1e-12)


@pytest.mark.parametrize(
    ("mean", "expected"),
    [
        (0.0, [1.3418068152, 1.4525065063]),
        (0.01, [1.3418567894, 1.4524066153]),
        (0.02, [1.3419567353, 1.4523566686]),
    ],
)
def test_bco_by_hand(pairs, close, mean, expected):
    state = bco.Baseline(np.asarray(mean, pairs[0].policy.dtype), np.float32(1))
    loss, metrics = bco.bco(*pairs, state, **PAIR, beta=0.1)
    close(loss, expected)
    close(metrics["delta"], [mean] * 2)


def test_bco_without_delta_does_not_read_the_state(pairs, close):
    state = bco.Baseline(np.float32(3.0), np.float32(1))
    close(bco.bco(*pairs, state, **PAIR, beta=0.1, delta="none")[0], [1.3418068152, 1.4525065063])


def test_bco_gradient_by_hand_holds_the_baseline_fixed(pairs, close):
    logps, labels = pairs
    dtype = logps.policy.dtype
    start = bco.Baseline(jnp.zeros((), dtype), jnp.zeros((), dtype))

    def total(shift):
        policy = jnp.asarray(logps.policy).at[:, :2, 0].add(shift)
        moved = logps._replace(policy=policy)
        state = bco.update(start, moved, labels, **PAIR, beta=0.1)  # mean 0.01
        return bco.bco(moved, labels, state, **PAIR, beta=0.1)[0].sum()

    gradient = jax.grad(total)(jnp.zeros((2, 2), dtype))
    close(gradient[:, 0], [-0.0492500562, -0.0512497396])
    close(gradient[:, 1], [0.0485004498, 0.0519989340])


def _shifted(logps, total):
    """The batch with beta * log-ratio moved so that its mean over both sides is `total`."""
    ref = np.array(logps.ref)
    ref[:, :2, 0] -= (total - 0.01) / 0.1
    return logps._replace(ref=ref)


def test_baseline_counts_every_batch_once(pairs64):
    logps, labels = pairs64
    state, means = ZERO, []
    for batch_mean in (0.01, 0.05, 0.0):
        state = bco.update(state, _shifted(logps, batch_mean), labels, **PAIR, beta=0.1)
        means.append(float(state.mean))
    np.testing.assert_allclose(means, [0.01, 0.03, 0.02], rtol=1e-9)
    assert float(state.count) == 3


def test_baseline_from_a_given_state(pairs64):
    state = bco.update(bco.Baseline(np.float64(0.03), np.float64(1)), *pairs64, **PAIR, beta=0.1)
    np.testing.assert_allclose([state.mean, state.count], [0.02, 2], rtol=1e-9)


def test_baseline_takes_only_present_rows(pairs64):
    logps, labels = pairs64
    mask = np.array(logps.mask)
    mask[1, 1] = 0  # the second pair lost its rejected branch
    state = bco.update(ZERO, logps._replace(mask=mask), labels, **PAIR, beta=0.1)
    np.testing.assert_allclose(state.mean, (0.04 - 0.05) / 2, rtol=1e-9)


def test_baseline_is_left_alone_by_an_empty_batch(pairs64):
    logps, labels = pairs64
    before = bco.Baseline(np.float64(0.03), np.float64(5))
    empty = logps._replace(mask=np.zeros_like(logps.mask))
    after = bco.update(before, empty, labels, **PAIR, beta=0.1)
    assert (float(after.mean), float(after.count)) == (0.03, 5.0)


def test_bco_on_the_first_step_at_the_reference_is_2_log_2(pairs64):
    logps, labels = pairs64
    logps = logps._replace(ref=logps.policy)
    state = bco.update(ZERO, logps, labels, **PAIR, beta=0.1)
    loss, _ = bco.bco(logps, labels, state, **PAIR, beta=0.1)
    np.testing.assert_allclose(loss, 1.3862943611, rtol=1e-9)
