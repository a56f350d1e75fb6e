"""Terms on scores of heads, against numbers worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.objectives import divergence, heads, lists, modifiers, pairwise

SIDES = {"win": 0, "lose": 1}


@pytest.fixture(autouse=True)
def _double(pairs64):
    del pairs64  # for its 64-bit types


def read(branches=2, rewards=None, axis=0, tokens=1, **values):
    """(logps, labels) of one row whose heads gave these values."""
    zeros = np.zeros((1, branches, tokens))
    rewards = np.zeros((1, branches, 1)) if rewards is None else np.asarray([rewards])
    labels = types.Labels(rewards, np.ones(1), np.zeros(1), np.array([axis], np.int32))
    found = {name: np.asarray(value, np.float64) for name, value in values.items()}
    return types.Logps(zeros, zeros, np.ones_like(zeros), heads=found), labels


def test_bt_by_hand(close):
    # Scores 0.7 and -0.4: a gap of 1.1, a sum of 0.3.
    logps, labels = read(s=[[[0.7], [-0.4]]])
    loss, metrics = heads.bt(logps, labels, **SIDES, head="s")
    close(loss, [0.2873353251])
    close(metrics["margin"], [1.1])
    close(metrics["accuracy"], [1.0])
    loss, _ = heads.bt(logps, labels._replace(margin=np.array([0.3])), **SIDES, head="s", center=2)
    close(loss, [0.3711006660 + 2 * 0.09])


def test_bt_mixture_by_hand(close):
    # Weights 0.6, 0.3, 0.1 and gaps 0.5, -0.2, 1.0.
    router = np.log([0.6, 0.3, 0.1])
    logps, labels = read(s=[[[0.9, 0.1, 2.0], [0.4, 0.3, 1.0]]], r=[[router, router]])
    loss, metrics = heads.bt_mixture(logps, labels, **SIDES, head="s", router="r", entropy=0.5)
    close(loss, [0.0929457480])
    close(metrics["margin"], [0.6 * 0.5 - 0.3 * 0.2 + 0.1])
    close(metrics["entropy"], [0.8979457249])


def test_bt_mixture_under_a_sure_router_is_bt_on_that_head(close):
    logps, labels = read(
        s=[[[0.9, 0.1], [0.4, 0.3]]], r=[[[-800.0, 0.0]] * 2], one=[[[0.1], [0.3]]]
    )
    loss, _ = heads.bt_mixture(logps, labels, **SIDES, head="s", router="r")
    close(loss, heads.bt(logps, labels, **SIDES, head="one")[0])


def test_the_entropy_spreads_the_router():
    logps, labels = read(s=np.zeros((1, 2, 2)), r=[[[1.0, 0.0]] * 2])

    def total(r):
        found = {**logps.heads, "r": r}
        return heads.bt_mixture(logps._replace(heads=found), labels, **SIDES, head="s", router="r")[
            0
        ].sum()

    slope = jax.grad(total)(jnp.asarray(logps.heads["r"]))[0, 0]
    assert slope[0] > 0 > slope[1]


def test_bt_user_by_hand(close):
    """Prototypes (1, 0) and (0, 1); user 0 likes the first alone, user 1 both alike."""
    users = [[0.0, -800.0], [0.3, 0.3]]
    point = [[[2.0, 0.0], [0.0, 0.5]]]
    logps, labels = read(f=point, g=[[[1.0, 0.0, 0.0, 1.0]] * 2], w=users)
    knobs = {**SIDES, "head": "f", "prototypes": "g", "users": "w", "scale": 2.0}
    loss, metrics = heads.bt_user(logps, labels, **knobs)
    np.testing.assert_allclose(loss, [math.log1p(math.exp(-2.0))], rtol=1e-9)
    loss, metrics = heads.bt_user(logps, labels._replace(axis=np.array([1])), **knobs)
    np.testing.assert_allclose(loss, [math.log(2)], rtol=1e-9)
    np.testing.assert_allclose(metrics["margin"], [0.0], atol=1e-9)


def test_bt_user_moves_the_weights_of_its_user_alone():
    logps, labels = read(
        f=[[[2.0, 0.1], [0.3, 0.5]]], g=[[[1.0, 0.2, 0.1, 1.0]] * 2], w=np.zeros((3, 2)), axis=1
    )

    def total(w):
        seen = logps._replace(heads={**logps.heads, "w": w})
        knobs = {**SIDES, "head": "f", "prototypes": "g", "users": "w"}
        return heads.bt_user(seen, labels, **knobs)[0].sum()

    slope = np.asarray(jax.grad(total)(jnp.asarray(logps.heads["w"])))
    assert (slope[1] != 0).all()
    np.testing.assert_array_equal(slope[[0, 2]], 0)


def test_regression_by_hand(close):
    logps, labels = read(s=[[[0.2, 0.9], [0.0, 0.0]]], rewards=[[0.5, 0.5], [1.0, 1.0]])
    loss, metrics = heads.regression(logps, labels, on=0, head="s")
    close(loss, [(0.09 + 0.16) / 2])
    close(metrics["error"], [0.35])


def test_degree_by_hand(close):
    """Softmax gives degree 0 to the first with 0.5, degree 1 to the second with 0.2."""
    scores = np.log([[[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]]])
    loss, metrics = heads.degree(*read(s=scores), over=(0, 1), head="s")
    close(loss, [(math.log(2) + math.log(5)) / 2])
    close(metrics["accuracy"], [0.5])


def test_dpo_by_head_with_beta_1_is_bt(pairs64, close):
    logps, labels = pairs64
    seen = modifiers.by_head(logps, labels, head="score")
    close(
        pairwise.dpo(*seen, **SIDES, beta=1.0)[0], heads.bt(logps, labels, **SIDES, head="score")[0]
    )
    halved = logps._replace(mask=0.5 * logps.mask)  # token weights do not weigh a score
    again = modifiers.by_head(halved, labels, head="score")
    close(pairwise.dpo(*again, **SIDES, beta=1.0)[0], pairwise.dpo(*seen, **SIDES, beta=1.0)[0])


@pytest.mark.parametrize(
    ("term", "knobs", "expected"),
    [("ranklist", {"skips": 1}, 1.8623448632), ("plackett_luce", {}, 2.7757108639)],
)
def test_lists_by_head_by_hand(term, knobs, expected):
    scores = 0.5 * np.array([0.6, 0.2, 0.5, -0.4])
    logps, labels = read(
        branches=4, tokens=3, s=scores[None, :, None], rewards=[[3.0], [2.0], [1.0], [0.5]]
    )
    seen = modifiers.by_head(logps, labels, head="s")
    knobs = {"over": (0, 1, 2, 3), "beta": 1.0, "weights": np.ones(1), **knobs}
    np.testing.assert_allclose(getattr(lists, term)(*seen, **knobs)[0], [expected], rtol=1e-9)


def masked(logps, mask, kl_mask):
    """Fixture P under these masks."""
    ones = np.ones_like(logps.mask)[..., None]
    return logps._replace(heads={"m": mask * ones, "k": kl_mask * ones})


SPARSE = {**SIDES, "mask": "m", "kl_mask": "k"}


def test_sparsepo_by_hand():
    # Masked log-ratios 0.4 + 0.3 and -0.2, u = 0.9; masked divergences 0.3 and 0.5, d = 0.2.
    zeros = np.zeros((1, 2, 2))
    kl = types.TokenKL(np.array([[[0.6, 9.0], [0.5, 0.25]]]), zeros)
    found = {
        "m": np.array([[[1.0, 0.5], [0.25, 0.0]]])[..., None],
        "k": np.array([[[0.5, 0.0], [0.5, 1.0]]])[..., None],
    }
    logps = types.Logps(
        np.array([[[0.4, 0.6], [-0.8, 7.0]]]), zeros, np.ones((1, 2, 2)), kl, heads=found
    )
    labels = read()[1]
    loss, metrics = divergence.sparsepo(logps, labels, **SPARSE, beta=0.8)
    np.testing.assert_allclose(loss, [0.4518454273], atol=5e-11)
    np.testing.assert_allclose(metrics["mask"], [1.75 / 4])
    loss, _ = divergence.sparsepo(logps, labels, **SPARSE, beta=0.8, l1=0.1, l1_kl=0.01)
    np.testing.assert_allclose(loss, [0.4518454273 + 0.175 + 0.02], atol=5e-11)


def test_sparsepo_under_full_masks_is_tdpo_and_without_divergences_dpo(pairs64, close):
    logps, labels = pairs64
    full = masked(logps, 1.0, 1.0)
    found = divergence.sparsepo(full, labels, **SPARSE, beta=0.1)[0]
    tdpo = divergence.tdpo(logps, labels, **SIDES, beta=0.1, alpha=1.0, detach=False)[0]
    close(found, tdpo)
    found = divergence.sparsepo(masked(logps, 1.0, 0.0), labels, **SPARSE, beta=0.1)[0]
    close(found, pairwise.dpo(logps, labels, **SIDES, beta=0.1)[0])


def test_a_large_l1_closes_the_masks(pairs64):
    logps, labels = pairs64

    def total(m, l1):
        seen = masked(logps, m, 0.0)
        return divergence.sparsepo(seen, labels, **SPARSE, beta=0.1, l1=l1)[0].sum()

    assert jax.grad(total)(1.0, 0.0) < 5.0  # 12 tokens pull by less than beta and log-ratio
    assert jax.grad(total)(1.0, 1.0) > 5.0
