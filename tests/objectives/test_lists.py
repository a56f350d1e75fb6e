"""List terms against numbers worked by hand, and the identities between them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import objectives, types
from rubric_jax.objectives import lists, pairwise, soft

ONE = {"weights": np.ones(1)}
OVER = (0, 1, 2, 3)
DELTA = [0.6, 0.2, 0.5, -0.4]
REWARDS = [3.0, 2.0, 1.0, 0.5]
PHI = [1.0, 2 / 3, 1 / 3, 0.0]
KNOBS = {"over": OVER, "beta": 0.5, **ONE}
LIST_TERMS = {
    "plackett_luce": {"beta": 0.5},
    "pro": {},
    "listnet": {"beta": 0.5},
    "ranknet": {"beta": 0.5},
    "ranklist": {"beta": 0.5, "skips": 2},
    "lambda_rank": {"beta": 0.5},
    "rloo": {},
    "grpo": {"beta_kl": 0.1},
    "rwr": {},
}


@pytest.fixture(autouse=True)
def _double(pairs64):
    del pairs64  # for its 64-bit types


@pytest.mark.parametrize(
    ("term", "labels", "knobs", "expected"),
    [
        ("plackett_luce", REWARDS, {}, 2.7757108639),
        ("ranklist", REWARDS, {"skips": 1}, 1.8623448632),
        ("ranklist", REWARDS, {"skips": 2}, 3.0851597557),
        ("ranklist", REWARDS, {"skips": 3}, 3.5592367398),
        ("ranklist", REWARDS, {"skips": 3, "min_gap": 0.75}, 3.0659877938),
        ("ranknet", REWARDS, {}, 3.5592367398),
        ("ranknet", REWARDS, {"min_gap": 0.75}, 3.0659877938),
        ("lambda_rank", PHI, {}, 1.0322412327),
        ("lambda_rank", PHI, {"rank_by": "policy"}, 0.9481193472),
    ],
)
def test_list_terms_by_hand(make_list, term, labels, knobs, expected):
    loss, metrics = getattr(lists, term)(*make_list(DELTA, labels), **KNOBS, **knobs)
    np.testing.assert_allclose(loss, [expected], rtol=1e-9)
    np.testing.assert_allclose(metrics["concordance"], [5 / 6])  # only (1, 2) is turned round


def steps_of(logps, similarity):
    """One token a step."""
    count = logps.mask.shape[-1]
    index = np.broadcast_to(np.arange(count), logps.mask.shape)
    return logps._replace(steps=types.Steps(index, similarity))


def test_tree_rank_of_two_by_hand(make_list):
    """Steps differ by 0 and 0.4 nats at cosines of 1 and 0.5: beta 1.5 x 0.4 = 0.3 at beta 0.5."""
    logps, labels = make_list([0.0, 0.0], [1.0, 0.0], tokens=2)
    logps = logps._replace(policy=logps.ref + np.array([[[0.7, 0.1], [0.7, -0.3]]]))
    similarity = np.broadcast_to(np.array([1.0, 0.5]), (1, 2, 2, 2))
    loss, _ = lists.tree_rank(steps_of(logps, similarity), labels, **{**KNOBS, "over": (0, 1)})
    # lambda: 2^1 - 2^0 = 1, and the ranks are 1 and 2.
    cost = 1 / np.log(2) - 1 / np.log(3)
    np.testing.assert_allclose(loss, [cost * 0.5543552445], rtol=1e-9)


def test_tree_rank_between_unlike_steps_is_lambda_rank(make_list):
    logps, labels = make_list(DELTA, PHI)
    found = lists.tree_rank(steps_of(logps, np.zeros((1, 4, 4, 1))), labels, **KNOBS)[0]
    np.testing.assert_allclose(found, [0.9481193472], rtol=1e-9)
    alike = lists.tree_rank(steps_of(logps, np.ones((1, 4, 4, 1))), labels, **KNOBS)[0]
    np.testing.assert_allclose(
        alike, lists.lambda_rank(logps, labels, **{**KNOBS, "beta": 1.0}, rank_by="policy")[0]
    )


def test_a_common_beginning_adds_nothing_to_tree_rank(make_list):
    logps, labels = make_list([0.0, 0.0], [1.0, 0.0], tokens=2)
    similarity = np.full((1, 2, 2, 2), 0.3)

    def loss(first):
        policy = logps.ref + jnp.stack([jnp.stack([first, 0.2]), jnp.stack([first, -0.1])])[None]
        seen = steps_of(logps._replace(policy=policy), similarity)
        return lists.tree_rank(seen, labels, **{**KNOBS, "over": (0, 1)})[0].sum()

    assert jax.grad(loss)(jnp.asarray(0.4)) == 0


def _pro_data(make_list):
    """Mean log-probabilities -0.8, -1.0, -0.9, -1.4 over ten tokens each."""
    return make_list([0.2, 0.0, 0.1, -0.4], REWARDS, tokens=10)


@pytest.mark.parametrize(
    ("over", "sft", "expected"),
    [
        (OVER, 0.0, 3.4326101444),
        (OVER, 0.05, 7.0326101444),
        ((1, 2, 3), 0.0, 1.2151888002 + 0.5759394199),
        ((2, 3), 0.0, 0.5759394199),
    ],
)
def test_pro_by_hand(make_list, over, sft, expected):
    loss, _ = lists.pro(*_pro_data(make_list), over=over, sft=sft, **ONE)
    np.testing.assert_allclose(loss, [expected], rtol=1e-9)


def test_pro_of_two_is_a_pair_loss_with_the_gap_as_temperature(make_list):
    loss, _ = lists.pro(*_pro_data(make_list), over=(0, 3), sft=0.0, **ONE)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-2.5 * (1.4 - 0.8))), rtol=1e-9)


def test_listnet_by_hand(make_list):
    target = np.exp(np.array(REWARDS) / 2) / np.exp(np.array(REWARDS) / 2).sum()
    implicit = 0.5 * np.array(DELTA)
    expected = -(target * (implicit - np.log(np.exp(implicit).sum()))).sum()
    loss, _ = lists.listnet(*make_list(DELTA, REWARDS), **KNOBS, temperature=2.0)
    np.testing.assert_allclose(loss, [expected], rtol=1e-9)


def test_the_weight_of_a_swap_by_hand(make_list, slope):
    """Pair (0, 3) has weight 0.8213601063: at equal implicit rewards its slope is half of it."""
    logps, labels = make_list([0.0] * 4, PHI)

    def total(shift):
        policy = jnp.asarray(logps.policy).at[0, 0, 0].add(shift)
        moved = logps._replace(policy=policy)
        everything = lists.lambda_rank(moved, labels, **{**KNOBS, "beta": 1.0})[0]
        return everything.sum()

    # Of the pairs with item 0: discounts 1/log(2), 1/log(3), 1/log(4), 1/log(5).
    gains = 2.0 - 2.0 ** np.array(PHI[1:])
    discounts = 1 / np.log(2) - 1 / np.log([3, 4, 5])
    np.testing.assert_allclose(gains[2] * discounts[2], 0.8213601063, rtol=1e-9)
    np.testing.assert_allclose(jax.grad(total)(0.0), -(gains * discounts).sum() / 2, rtol=1e-9)


@pytest.mark.parametrize("term", ["plackett_luce", "ranknet", "ranklist"])
def test_a_list_of_two_is_dpo(make_list, term):
    data = make_list(DELTA, [1.0, 3.0, 0.0, 0.0])
    found = getattr(lists, term)(*data, over=(0, 1), beta=0.5, **ONE)[0]
    expected = pairwise.dpo(*data, win=1, lose=0, beta=0.5)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_lambda_rank_of_two_is_a_weighted_dpo(make_list):
    data = make_list(DELTA, [0.0, 1.0, 0.0, 0.0])
    found = lists.lambda_rank(*data, over=(0, 1), beta=0.5, **ONE)[0]
    weight = (2 - 1) * (1 / np.log(2) - 1 / np.log(3))
    expected = weight * pairwise.dpo(*data, win=1, lose=0, beta=0.5)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_listnet_of_two_is_the_soft_target(make_list):
    data = make_list(DELTA, REWARDS)
    found = lists.listnet(*data, over=(0, 1), beta=0.5, temperature=0.5, **ONE)[0]
    expected = soft.soft(*data, win=0, lose=1, beta=0.5, scale=2.0, **ONE)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_neighbours_are_one_fewer_than_the_list(make_list):
    loss, _ = lists.ranklist(*make_list([0.0] * 4, REWARDS), **KNOBS)
    np.testing.assert_allclose(loss, [3 * np.log(2)], rtol=1e-12)


def test_ties_are_not_ranked(make_list):
    data = make_list(DELTA, [1.0] * 4)
    for term in (lists.ranknet, lists.ranklist, lists.lambda_rank):
        np.testing.assert_array_equal(term(*data, **KNOBS)[0], 0)


def single(data):
    """In single precision, as training has it."""
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, data)


def evaluate(name, logps, labels, over):
    with jax.enable_x64(False):
        knobs = {"over": over, "weights": np.ones(1, np.float32), **LIST_TERMS[name]}
        return objectives.OBJECTIVES[name](logps, labels, **knobs)


@functools.cache
def _compiled(name):
    """(loss, d loss / d policy) over six branches in a shuffled order; one compilation a term."""

    def total(policy, logps, labels):
        moved = logps._replace(policy=policy)
        return evaluate(name, moved, labels, (5, 1, 0, 2, 3, 4))[0].sum()

    return jax.jit(jax.value_and_grad(total))


def slopes(name, logps, labels):
    with jax.enable_x64(False):
        return _compiled(name)(logps.policy, logps, labels)


@pytest.mark.parametrize("name", LIST_TERMS)
def test_the_order_of_a_list_does_not_matter(make_list, name):
    data = single(make_list(DELTA, REWARDS))
    expected, metrics = evaluate(name, *data, OVER)
    for over in list(itertools.permutations(OVER))[5::7]:
        found, others = evaluate(name, *data, over)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for key, value in metrics.items():
            np.testing.assert_allclose(others[key], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LIST_TERMS)
def test_an_absent_response_changes_nothing(make_list, name):
    """Whatever stands in it, wherever it stands in the list, and whatever reward it has."""
    logps, labels = single(make_list([0.3, *DELTA, 7.0], [9.0, *REWARDS, -4.0]))
    mask = np.array(logps.mask)
    mask[:, [0, 5]] = 0
    logps = logps._replace(mask=mask)
    value, gradient = slopes(name, logps, labels)
    expected, _ = evaluate(name, logps, labels, (1, 2, 3, 4))
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_array_equal(gradient[0, [0, 5]], 0)
    assert np.abs(gradient[0, 1:5]).max() > 0


@pytest.mark.parametrize("name", LIST_TERMS)
def test_a_lone_response_has_no_loss(make_list, name):
    logps, labels = single(make_list([0.3, *DELTA, 7.0], [9.0, *REWARDS, -4.0]))
    mask = np.array(logps.mask)
    mask[:, 1:] = 0
    value, gradient = slopes(name, logps._replace(mask=mask), labels)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", LIST_TERMS)
def test_lists_are_finite_at_extreme_log_ratios(make_list, name):
    for gaps in ((2e4, 0, -2e4, 1e4, 0, 0), (-2e4, 2e4, 0, 0, 1e4, -1e4)):
        value, gradient = slopes(name, *single(make_list(gaps, [9.0, *REWARDS, -4.0])))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_step_weights_of_a_pair_of_trees(make_list):
    """TPO over preference trees: (1 + cos) per step, 0 on shared ones, as token weights.

    Two steps with cos 1 and 0.5 and gaps of log-ratios 0 and 0.4: beta * 1.5 * 0.4 = 0.3.
    """
    logps, labels = make_list([0.0, 0.0], [1, 0], tokens=2)
    policy = np.array(logps.policy)
    policy[0, :, 1] = [-0.9, -1.3]  # log-ratios 0.1 and -0.3
    mask = np.array([[[2.0, 1.5], [2.0, 1.5]]])
    logps = types.Logps(policy, logps.ref, mask)
    loss, _ = pairwise.dpo(logps, labels, win=0, lose=1, beta=0.5)
    np.testing.assert_allclose(loss, [0.5543552445], rtol=1e-9)
