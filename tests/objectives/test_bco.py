"""bco against numbers worked by hand, and its running baseline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax.objectives import bco

PAIR = {"win": 0, "lose": 1}
ZERO = bco.Baseline(np.float64(0), np.float64(0))


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
