"""Terms that judge each side by itself, against numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.objectives import pairwise, sides

PAIR = {"win": 0, "lose": 1}
A = np.array([0.04, -0.04])  # beta * log-ratio of chosen, beta = 0.1
B = np.array([-0.05, 0.09])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (
            sides.nca_pair,
            -np.log(sigmoid(A)) - 0.5 * np.log(sigmoid(-A)) - 0.5 * np.log(sigmoid(-B)),
        ),
        (sides.sppo_hard, [4.6**2 + 4.5**2, 5.4**2 + 5.9**2]),  # targets +-5
        (sides.apo_zero, 1 - sigmoid(A) + sigmoid(B)),
        (sides.apo_down, sigmoid(A) + 1 - sigmoid(A - B)),
        (sides.kto, 1 - sigmoid(A) + 1 - sigmoid(-B)),
    ],
)
def test_terms_on_both_sides_by_hand(pairs, close, term, expected):
    close(term(*pairs, **PAIR, beta=0.1)[0], expected)


def test_kto_needs_only_one_side(pairs, close):
    logps, labels = pairs
    mask = np.array(logps.mask)
    knobs = {**PAIR, "beta": 0.1, "z0": 0.05}
    mask[:, 1] = 0
    good = sides.kto(logps._replace(mask=mask), labels, **knobs)[0]
    close(good, [0.5024999792, 0.5224848248])
    mask = np.array(logps.mask)
    mask[:, 0] = 0
    bad = sides.kto(logps._replace(mask=mask), labels, **knobs)[0]
    close(bad, [0.4750208125, 0.5099986669])
    close(sides.kto(logps, labels, **knobs)[0], np.asarray(good) + np.asarray(bad))
    weighted = sides.kto(logps, labels, **knobs, lam_win=2.0, lam_lose=0.5)[0]
    close(weighted, 2 * np.asarray(good) + np.asarray(bad) / 2)


def test_kto_slope_by_hand(pairs, close, slope):
    found = slope(sides.kto, *pairs, 0, **PAIR, beta=0.1, z0=0.05)
    close(found, [-0.0249993750, -0.0249494433])


def test_kto_at_the_reference_is_a_half_each_side(pairs64):
    logps, labels = pairs64
    loss, _ = sides.kto(logps._replace(ref=logps.policy), labels, **PAIR, beta=0.1)
    np.testing.assert_array_equal(loss, 1.0)


def test_ktos_reference_point_is_the_mean_over_the_batch_but_not_below_0(pairs64):
    logps, labels = pairs64
    # Branch 3 has log-ratios 0.1 and -0.1; taken alone, the first row's mean is 0.1.
    _, both = sides.kto(logps, labels, **PAIR, beta=0.1, kl=3, z0=0.2)
    np.testing.assert_allclose(both["reference_point"], 0.2, rtol=1e-9)
    mask = np.array(logps.mask)
    mask[1, 3] = 0
    _, one = sides.kto(logps._replace(mask=mask), labels, **PAIR, beta=0.1, kl=3, z0=0.2)
    np.testing.assert_allclose(one["reference_point"], 0.2 + 0.1 * 0.1, rtol=1e-9)
    # Branch 2 has -0.3 in both rows.
    _, below = sides.kto(logps, labels, **PAIR, beta=0.1, kl=2)
    np.testing.assert_array_equal(below["reference_point"], 0)


def test_ktos_reference_point_carries_no_gradient(pairs64):
    logps, labels = pairs64

    def total(policy):
        moved = logps._replace(policy=policy)
        return sides.kto(moved, labels, **PAIR, beta=0.1, kl=3)[0].sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(logps.policy))[:, 3], 0)


def _rows(win, lose, ref_win, ref_lose):
    policy = np.stack([win, lose], axis=-1)[..., None].astype(float)  # [B, 2, 1]
    ref = np.stack([ref_win, ref_lose], axis=-1)[..., None].astype(float)
    rows = len(win)
    labels = types.Labels(
        np.zeros((rows, 2, 0)), np.ones(rows), np.zeros(rows), np.zeros(rows, np.int32)
    )
    return types.Logps(policy, ref, np.ones_like(policy)), labels


def test_aot_pairs_equal_ranks(pairs64):
    del pairs64  # for its 64-bit types
    # Policy gaps (3, -1, 0), reference gaps (0, 2, -2): sorted -1 0 3 against -2 0 2.
    data = _rows([-1, -2, -1], [-4, -1, -1], [-1, -1, -3], [-1, -3, -1])
    loss, metrics = sides.aot(*data, **PAIR, beta=0.5)
    np.testing.assert_allclose(metrics["logit"], [0.5, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(loss, -np.log(sigmoid(np.array([0.5, 0.5, 0.0]))), rtol=1e-9)


def test_aot_unpaired_pairs_equal_ranks_of_the_two_sides(pairs64):
    del pairs64
    # Log-ratios of win (1, -1, 3), of lose (2, 0, -2): sorted -1 1 3 against -2 0 2.
    data = _rows([0, -2, 2], [1, -1, -3], [-1, -1, -1], [-1, -1, -1])
    _, metrics = sides.aot_unpaired(*data, **PAIR, beta=0.5)
    np.testing.assert_allclose(metrics["logit"], [0.5, 0.5, 0.5], atol=1e-12)


@pytest.mark.parametrize("term", [sides.aot, sides.aot_unpaired])
def test_an_absent_row_takes_no_part_in_the_sorting(pairs64, term):
    del pairs64
    logps, labels = _rows([-1, -2, -1], [-4, -1, -1], [-1, -1, -3], [-1, -3, -1])
    mask = np.array(logps.mask)
    mask[1] = 0
    found = term(logps._replace(mask=mask), labels, **PAIR, beta=0.5)[0]
    rest = jax.tree.map(lambda x: x[[0, 2]], (logps, labels))
    expected = term(*rest, **PAIR, beta=0.5)[0]
    np.testing.assert_allclose(found, [expected[0], 0.0, expected[1]], rtol=1e-12)


def test_aot_of_one_pair_is_dpo(pairs64):
    one = jax.tree.map(lambda x: x[:1], pairs64)
    knobs = {**PAIR, "beta": 0.1, "label_smoothing": 0.2}
    expected = pairwise.dpo(*one, **knobs)[0]
    np.testing.assert_allclose(sides.aot(*one, **knobs)[0], expected, rtol=1e-9)
    np.testing.assert_allclose(sides.aot_unpaired(*one, **knobs)[0], expected, rtol=1e-9)
