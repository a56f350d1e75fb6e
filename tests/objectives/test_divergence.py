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


FAR = {"win": 0, "over": (1, 2, 3), "beta": 0.1}


def bank(js, ratios=(0.3, -0.4, -0.6, 0.2), mask=None):
    """One response of two tokens under four contexts, with these divergences from the first."""
    ones = np.ones((1, 4, 2)) if mask is None else np.asarray([mask], float)
    policy = 0.5 * np.asarray(ratios)[None, :, None] * np.ones((1, 4, 2))
    js = np.asarray([[[0.0, 0.0], *js]])
    return types.Logps(policy, np.zeros((1, 4, 2)), ones, js=js)


def test_dpo_farthest_takes_the_context_of_the_largest_mean_divergence():
    with jax.enable_x64(True):
        loss, metrics = divergence.dpo_farthest(
            bank([[0.1, 0.2], [0.0, 0.5], [0.3, 0.1]]), LABELS, **FAR
        )
        np.testing.assert_allclose(loss, [math.log1p(math.exp(-0.09))], rtol=1e-12)
        np.testing.assert_allclose(metrics["js"], [0.25])


def test_dpo_farthest_never_takes_a_context_that_is_absent():
    mask = [[1, 1], [1, 0], [0, 0], [1, 1]]
    with jax.enable_x64(True):
        logps = bank([[0.4, 9.0], [9.0, 9.0], [0.3, 0.1]], mask=mask)
        loss, _ = divergence.dpo_farthest(logps, LABELS, **FAR)
        # Of the second branch one token is there: -0.2 nats, at a divergence of 0.4.
        np.testing.assert_allclose(loss, [math.log1p(math.exp(-0.05))], rtol=1e-12)


def test_the_choice_of_dpo_farthest_carries_no_gradient():
    logps = bank([[0.1, 0.2], [0.0, 0.5], [0.3, 0.1]])

    def total(policy, js):
        seen = logps._replace(policy=policy, js=js)
        return divergence.dpo_farthest(seen, LABELS, **FAR)[0].sum()

    into_policy, into_js = jax.grad(total, argnums=(0, 1))(
        jnp.asarray(logps.policy), jnp.asarray(logps.js)
    )
    assert not into_js.any()
    assert not into_policy[:, [1, 3]].any()
    np.testing.assert_allclose(into_policy[0, 0], -into_policy[0, 2])


def test_token_kl_sums_or_averages_one_direction_over_weighted_tokens():
    kl = types.TokenKL(np.array([[[0.5, 0.25, 9.0]]]), np.array([[[1.0, 3.0, 9.0]]]))
    mask = np.array([[[1.0, 2.0, 0.0]]])
    logps = types.Logps(np.zeros((1, 1, 3)), np.zeros((1, 1, 3)), mask, kl)

    def value(**knobs):
        return float(divergence.token_kl(logps, LABELS, on=0, **knobs)[0][0])

    assert value() == 0.5 + 2 * 0.25
    assert value(direction="reverse") == 1.0 + 2 * 3.0
    assert math.isclose(value(direction="reverse", reduce="mean"), 7 / 3, rel_tol=1e-6)
