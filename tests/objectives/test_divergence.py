import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.objectives import divergence, pairwise

LABELS = types.Labels(np.zeros((1, 2, 1)), np.ones(1), np.zeros(1), np.zeros(1, np.int32))


def pair(ratios, forward):
    """One pair of two tokens a side, with these log-ratios and forward divergences."""
    zeros = np.zeros((1, 2, 2))
    kl = types.TokenKL(np.asarray([forward]), zeros)
    return types.Logps(np.asarray([ratios]), zeros, np.ones((1, 2, 2)), kl)


def test_tdpo_by_hand():
    # u = 0.9 and d = D[lose] - D[win] = 0.2, at beta 0.8 and alpha 1: -log sigmoid(0.56).
    with jax.enable_x64(True):
        logps = pair([[0.4, 0.3], [-0.1, -0.1]], [[0.2, 0.1], [0.4, 0.1]])
        loss, metrics = divergence.tdpo(
            logps, LABELS, win=0, lose=1, beta=0.8, alpha=1.0, detach=False
        )
        np.testing.assert_allclose(loss, [0.4518454273], atol=5e-11)
        np.testing.assert_allclose(metrics["logit"], [0.56])
        np.testing.assert_allclose((metrics["kl_win"], metrics["kl_lose"]), [[0.3], [0.5]])


def test_tdpo_without_alpha_is_dpo(pairs64, close):
    knobs = {"win": 0, "lose": 1, "beta": 0.1}
    found = divergence.tdpo(*pairs64, **knobs, alpha=0.0)[0]
    close(found, pairwise.dpo(*pairs64, **knobs)[0])


@pytest.mark.parametrize("detach", [False, True])
def test_only_the_losing_side_pushes_through_the_divergence_when_detached(detach):
    logps = pair([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]])

    def total(forward):
        kl = logps.kl._replace(forward=forward)
        knobs = {"win": 0, "lose": 1, "beta": 0.4, "alpha": 0.5, "detach": detach}
        return divergence.tdpo(logps._replace(kl=kl), LABELS, **knobs)[0].sum()

    # sigmoid(0) beta alpha = 0.1 towards less divergence of `lose`, and more of `win`.
    gradient = jax.grad(total)(jnp.zeros((1, 2, 2)))
    np.testing.assert_allclose(gradient[0, 1], 0.1, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], 0.0 if detach else -0.1, rtol=1e-6)


def test_token_kl_sums_or_averages_one_direction_over_weighted_tokens():
    kl = types.TokenKL(np.array([[[0.5, 0.25, 9.0]]]), np.array([[[1.0, 3.0, 9.0]]]))
    mask = np.array([[[1.0, 2.0, 0.0]]])
    logps = types.Logps(np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), mask, kl)

    def value(**knobs):
        return float(divergence.token_kl(logps, LABELS, on=0, **knobs)[0][0])

    assert value() == 0.5 + 2 * 0.25
    assert value(direction="reverse") == 1.0 + 2 * 3.0
    assert math.isclose(value(direction="reverse", reduce="mean"), 7 / 3, rel_tol=1e-6)
