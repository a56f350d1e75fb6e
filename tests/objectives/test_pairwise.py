"""Terms on one logit per pair against numbers worked by hand, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax.objectives import pairwise, scores

PAIR = {"win": 0, "lose": 1}
Z = np.array([0.09, -0.13])  # beta * (log-ratio gap) at beta = 0.1


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
    ("term", "knobs", "expected"),
    [
        ("hinge", {"beta": 0.1}, [0.91, 1.13]),
        ("ipo", {"beta": 0.1}, [16.81, 39.69]),  # (gap - 5)^2, gaps 0.9 and -1.3
        # Per token: 0.4 / 3 + 0.5 / 4 - 5 and -0.4 / 2 - 0.9 / 3 - 5.
        (
            "ipo",
            {"beta": 0.1, "tokens": "mean"},
            [(0.4 / 3 + 0.5 / 4 - 5) ** 2, 5.5**2],
        ),
        ("robust", {"beta": 0.1, "flip_rate": 0.1}, [0.6379093390, 0.7765081947]),
        (
            "sigmoid_norm",
            {"beta": 0.1},
            np.log1p(np.exp(-0.1 * np.array([0.4 / 3 + 0.5 / 4, -0.5]))),
        ),
        ("flex_dpo", {"beta": 0.1, "beta_lose": 0.08}, [0.6539469673, 0.7507143617]),
        # Row 1: win fell by 0.4, so the logit loses 0.1 * 5 * 0.4.
        (
            "dpop",
            {"beta": 0.1, "penalty": 5.0},
            np.log1p(np.exp(-(Z - [0.0, 0.2]))),
        ),
    ],
)
def test_pair_terms_by_hand(pairs, close, term, knobs, expected):
    close(getattr(pairwise, term)(*pairs, **PAIR, **knobs)[0], expected)


def test_exo_pair_is_a_kl_divergence(pairs64):
    q, e = 1 / (1 + np.exp(-Z)), 0.1
    expected = q * np.log(q / (1 - e)) + (1 - q) * np.log((1 - q) / e)
    found = pairwise.exo_pair(*pairs64, **PAIR, beta=0.1, epsilon=e)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_discopop_is_its_two_parts(pairs64):
    m = 1 / (1 + np.exp(-Z / 0.05))
    expected = (1 - m) * np.log1p(np.exp(-Z)) + m * np.exp(-Z)
    found = pairwise.discopop(*pairs64, **PAIR, beta=0.1)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_clipped_dpo_by_hand(pairs64, make_list):
    del pairs64  # for its 64-bit types
    knobs = {**PAIR, "beta": 10.0, "clip": 0.1}
    for ratios, expected in (((0.3, -0.02), 0.2743355128), ((0.3, -0.4), 0.1261308799)):
        found = pairwise.clipped_dpo(*make_list(ratios, [0, 0]), **knobs)[0]
        np.testing.assert_allclose(found, [expected], rtol=1e-9)


def test_clipped_dpo_has_no_gradient_outside(pairs64, make_list, slope):
    del pairs64
    data, knobs = make_list((0.3, -0.02), [0, 0]), {**PAIR, "beta": 10.0, "clip": 0.1}
    assert slope(pairwise.clipped_dpo, *data, 0, **knobs) == 0
    assert slope(pairwise.clipped_dpo, *data, 1, **knobs) > 0


@pytest.mark.parametrize(
    ("term", "knobs", "expected"),
    [
        (pairwise.dpo, {}, [-0.0477515175, -0.0532454306]),
        (pairwise.ipo, {}, [-8.2, -12.6]),
        (pairwise.robust, {"flip_rate": 0.1}, [-0.0602515175, -0.0657454306]),
    ],
)
def test_slopes_by_hand(pairs, close, slope, term, knobs, expected):
    close(slope(term, *pairs, 0, **PAIR, beta=0.1, **knobs), expected)


def test_gap_order_by_hand(pairs64):
    """Hard: the first pair of fixture P, gap 0.9; easy: the second, gap -1.3."""
    logps, labels = pairs64
    logps = logps._replace(heads=None)
    one = jax.tree.map(lambda x: np.concatenate([x[:1, :2], x[1:, :2]], axis=1), logps)
    labels = jax.tree.map(lambda x: x[:1], labels)
    names = ("hard_win", "hard_lose", "easy_win", "easy_lose")
    knobs = dict(zip(names, range(4), strict=True))
    found, metrics = pairwise.gap_order(one, labels, **knobs, beta=0.1)
    np.testing.assert_allclose(found, [0.5891850190], rtol=1e-9)
    knobs = dict(zip(names, (2, 3, 0, 1), strict=True))
    _, back = pairwise.gap_order(one, labels, **knobs, beta=0.1)
    np.testing.assert_allclose(back["logit"], -metrics["logit"], rtol=1e-12)


def test_both_columns_of_labels_count(pairs, close):
    logps, labels = pairs
    labels = labels._replace(margin=np.asarray([0.05, -0.02], logps.policy.dtype))
    loss, _ = pairwise.dpo(logps, labels, **PAIR, beta=0.1)
    weight = np.asarray([0.5, 2.0], logps.policy.dtype)
    close(weight * loss, [0.3366735836, 1.4993178372])


def test_no_flips_are_dpo(pairs64):
    found = pairwise.robust(*pairs64, **PAIR, beta=0.1, flip_rate=0.0)[0]
    np.testing.assert_allclose(found, pairwise.dpo(*pairs64, **PAIR, beta=0.1)[0], rtol=1e-12)


def test_robust_is_unbiased_under_flips(pairs64):
    knobs = {"beta": 0.1, "flip_rate": 0.1}
    there = pairwise.robust(*pairs64, **PAIR, **knobs)[0]
    back = pairwise.robust(*pairs64, win=1, lose=0, **knobs)[0]
    np.testing.assert_allclose(back, [0.7504093390, 0.6140081947], rtol=1e-9)
    dpo = pairwise.dpo(*pairs64, **PAIR, beta=0.1)[0]
    np.testing.assert_allclose(0.9 * there + 0.1 * back, dpo, rtol=1e-14)


def test_penalty_0_and_equal_betas_are_dpo(pairs64):
    dpo = pairwise.dpo(*pairs64, **PAIR, beta=0.1)[0]
    dpop = pairwise.dpop(*pairs64, **PAIR, beta=0.1, penalty=0.0)[0]
    flex = pairwise.flex_dpo(*pairs64, **PAIR, beta=0.1, beta_lose=0.1)[0]
    np.testing.assert_allclose(dpop, dpo, rtol=1e-12)
    np.testing.assert_allclose(flex, dpo, rtol=1e-12)


def test_pair_terms_at_the_reference(pairs64):
    logps, labels = pairs64
    logps = logps._replace(ref=logps.policy)
    for beta in (0.1, 2.0):
        knobs = {**PAIR, "beta": beta}
        for term in (pairwise.dpo, pairwise.sigmoid_norm, pairwise.dpop):
            np.testing.assert_allclose(term(logps, labels, **knobs)[0], np.log(2), rtol=1e-12)
        np.testing.assert_array_equal(pairwise.hinge(logps, labels, **knobs)[0], 1)
        np.testing.assert_allclose(pairwise.ipo(logps, labels, **knobs)[0], 1 / (4 * beta**2))


def test_ipo_of_a_table_policy_is_least_at_its_target(pairs64, make_list, slope):
    del pairs64
    assert slope(pairwise.ipo, *make_list((2.0, -0.5), [0, 0]), 0, **PAIR, beta=0.2) == 0


@pytest.mark.parametrize(
    ("kind", "derivative"),
    [
        ("reverse_kl", lambda t: np.log(t)),
        ("forward_kl", lambda t: 1 - 1 / t),
        ("js_divergence", lambda t: np.log(2 * t / (1 + t))),
        ("alpha_divergence", lambda t: (t**-0.5 - 1) / -0.5),
    ],
)
def test_scores_are_the_derivatives_of_the_divergences(pairs64, kind, derivative):
    ratios = {0: np.array([0.4, -0.4]), 1: np.array([-0.5, 0.9])}
    gap = derivative(np.exp(ratios[0])) - derivative(np.exp(ratios[1]))
    _, metrics = pairwise.dpo(*pairs64, **PAIR, beta=0.1, divergence=kind, alpha=0.5)
    np.testing.assert_allclose(metrics["logit"], 0.1 * gap, rtol=1e-9)


def test_alpha_divergence_of_order_1_is_the_reverse_kl(pairs64):
    ratio = np.array([-3.0, 0.0, 2.0])
    near, at = (
        scores.divergence_score(ratio, "alpha_divergence", np.float64(alpha))
        for alpha in (1 + 1e-5, 1.0)
    )
    np.testing.assert_array_equal(at, ratio)
    np.testing.assert_allclose(near, ratio, atol=1e-4)
