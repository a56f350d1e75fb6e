"""Policy-gradient terms: advantages by hand, and gradients that must be exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.objectives import groups

OVER = (0, 1, 2, 3)
RETURNS = np.array([1.0, 0.0, 0.5, 0.0])
CENTRED = np.array([0.625, -0.375, 0.125, -0.375])
KNOBS = {"over": OVER, "weights": np.ones(1)}


@pytest.fixture(autouse=True)
def _double(pairs64):
    del pairs64  # for its 64-bit types


def gradient(term, logps, labels, **knobs):
    def total(policy):
        return term(logps._replace(policy=policy), labels, **knobs)[0].sum()

    return np.asarray(jax.grad(total)(jnp.asarray(logps.policy)))


def test_advantages_by_hand():
    rewards, present = RETURNS[None], np.ones((1, 4), bool)
    plain = groups.advantages(rewards, present, std=False)
    np.testing.assert_allclose(plain, CENTRED[None], rtol=1e-12)
    out = groups.advantages(rewards, present, std=False, baseline="leave_one")
    others = [[np.delete(RETURNS, i).mean() for i in range(4)]]
    np.testing.assert_allclose(out, RETURNS - np.array(others), rtol=1e-12)
    scaled = groups.advantages(rewards, present, std=True)
    np.testing.assert_allclose(scaled, CENTRED[None] / (RETURNS.std(ddof=1) + 1e-4), rtol=1e-12)


def test_advantages_sum_to_0_and_follow_the_scale_of_rewards():
    present = np.array([[True, True, True, False]])
    plain = groups.advantages(RETURNS[None], present, std=False)
    np.testing.assert_allclose(plain.sum(), 0, atol=1e-12)
    np.testing.assert_allclose(plain[0, :3], RETURNS[:3] - 0.5, rtol=1e-12)
    tripled = groups.advantages(3 * RETURNS[None], present, std=False)
    np.testing.assert_allclose(tripled, 3 * plain, rtol=1e-12)


def test_equal_rewards_and_lone_responses_have_no_advantage():
    for std in (True, False):
        equal = groups.advantages(np.full((1, 4), 0.7), np.ones((1, 4), bool), std=std)
        np.testing.assert_allclose(equal, 0, atol=1e-12)
        lone = groups.advantages(RETURNS[None], np.arange(4)[None] == 0, std=std)
        np.testing.assert_array_equal(lone, 0)


def test_k3_by_hand():
    np.testing.assert_allclose(groups.k3(jnp.array(0.2)), 0.0214027582, rtol=1e-8)
    assert groups.k3(jnp.array(0.0)) == 0
    # It goes on along its tangent.
    slope = jax.grad(groups.k3)
    np.testing.assert_allclose(slope(19.999), slope(25.0), rtol=2e-3)


def test_rloo_slopes_by_hand(make_list):
    found = gradient(groups.rloo, *make_list([0.1, -0.2, 0.3, 0.0], RETURNS, 3), **KNOBS)
    expected = -CENTRED * (4 / 3) / 4
    np.testing.assert_allclose(found[0], np.repeat(expected[:, None], 3, axis=1), rtol=1e-12)


def test_rwr_slopes_by_hand(make_list):
    data = make_list([0.1, -0.2, 0.3, 0.0], RETURNS, 3)
    share = np.exp(RETURNS / 0.5) / np.exp(RETURNS / 0.5).sum()
    found = gradient(groups.rwr, *data, **KNOBS, temperature=0.5)
    np.testing.assert_allclose(found[0, :, 0], -share, rtol=1e-12)
    mean = gradient(groups.rwr, *data, **KNOBS, temperature=0.5, tokens="mean")
    np.testing.assert_allclose(mean[0, :, 0], -share / 3, rtol=1e-12)


@pytest.mark.parametrize("std", [True, False])
def test_grpo_on_fresh_samples_is_the_plain_policy_gradient(make_list, std):
    gain = CENTRED / (RETURNS.std(ddof=1) + 1e-4) if std else CENTRED
    fresh = gradient(
        groups.grpo,
        *make_list([5.0, -5.0, 1.0, 0.0], RETURNS, 2),
        **KNOBS,
        std=std,
        behaviour="policy",
    )
    np.testing.assert_allclose(fresh[0, :, 0], -gain / (4 * 2), rtol=1e-12)
    # At the reference both ways of sampling agree.
    at = gradient(groups.grpo, *make_list([0.0] * 4, RETURNS, 2), **KNOBS, std=std)
    np.testing.assert_allclose(at[0, :, 0], -gain / (4 * 2), rtol=1e-12)


def test_grpo_clips_what_has_moved_far_enough(make_list):
    """Ratios 1.3, 0.7, 0.7, 1.3 against a clip of 0.2; advantages +, -, +, -."""
    data = make_list(np.log([1.3, 0.7, 0.7, 1.3]), RETURNS)
    loss, metrics = groups.grpo(*data, **KNOBS, std=False)
    slopes = gradient(groups.grpo, *data, **KNOBS, std=False)[0, :, 0]
    kept = np.array([0, 0, 0.7 * 0.125, 1.3 * -0.375])
    np.testing.assert_allclose(slopes, -kept / 4, rtol=1e-9, atol=1e-15)
    value = -(1.2 * 0.625 - 0.8 * 0.375 + 0.7 * 0.125 - 1.3 * 0.375) / 4
    np.testing.assert_allclose(loss, [value], rtol=1e-9)
    np.testing.assert_allclose(metrics["clipped"], [0.5])


def test_grpos_penalty_is_k3(make_list):
    data = make_list([-0.2, 0.0, 0.3, 0.0], RETURNS)
    knobs = {**KNOBS, "behaviour": "policy"}
    without, _ = groups.grpo(*data, **knobs)
    penalised, metrics = groups.grpo(*data, **knobs, beta_kl=0.04)
    k3 = (0.0214027582 + np.exp(-0.3) + 0.3 - 1) / 4
    np.testing.assert_allclose(penalised - without, [0.04 * k3], rtol=1e-8)
    np.testing.assert_allclose(metrics["kl"], [k3], rtol=1e-8)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [("mean", [1 / 2 / 2, 1 / 2 / 1]), ("sum", [1 / 2, 1 / 2]), ("group", [1 / 3, 1 / 3])],
)
def test_grpo_averages_over_tokens(make_list, tokens, expected):
    """Advantages 0.5 and -0.5; two tokens and one."""
    logps, labels = make_list([0.0, 0.0], [1, 0], 2)
    mask = np.array([[[1.0, 1.0], [1.0, 0.0]]])
    knobs = {"over": (0, 1), "weights": np.ones(1), "std": False, "tokens": tokens}
    found = gradient(groups.grpo, logps._replace(mask=mask), labels, **knobs)
    np.testing.assert_allclose(found[0, :, 0], -0.5 * np.array(expected) * [1, -1], rtol=1e-12)
    assert found[0, 1, 1] == 0


def _two_axes(outcome, process):
    rewards = np.stack([outcome, process], axis=-1)[None].astype(float)
    ref = np.full((1, len(outcome), 1), -1.0)
    labels = types.Labels(rewards, np.ones(1), np.zeros(1), np.zeros(1, np.int32))
    return types.Logps(ref, ref, np.ones_like(ref)), labels


def test_papo_ranks_the_process_of_correct_responses_only():
    data = _two_axes([1, 1, 0, 0], [0.2, 0.6, 0.9, 0.1])
    knobs = {
        "over": OVER,
        "outcome": np.array([1.0, 0.0]),
        "process": np.array([0.0, 1.0]),
        "std": False,
    }
    found = gradient(groups.papo, *data, **knobs)[0, :, 0]
    np.testing.assert_allclose(found, -np.array([0.3, 0.7, -0.5, -0.5]) / 4, rtol=1e-9)


def test_axes_normalised_apart_do_not_drown_each_other():
    data = _two_axes([1, 1, 0, 0], [0.02, 0.06, 0.09, 0.01])
    knobs = {"over": OVER, "weights": np.array([1.0, 2.0])}
    found = gradient(groups.grpo, *data, **knobs, apart=True)[0, :, 0]
    gain = sum(
        w * (r - r.mean()) / (r.std(ddof=1) + 1e-4)
        for w, r in zip((1.0, 2.0), np.asarray(data[1].rewards[0]).T, strict=True)
    )
    np.testing.assert_allclose(found, -gain / 4, rtol=1e-9)


def _all_pairs(theta, ref, returns):
    """Every pair of samples of a table policy, as a batch, and the probability of each."""
    logp = jax.nn.log_softmax(theta)
    first, second = (x.ravel() for x in np.meshgrid(np.arange(3), np.arange(3)))
    policy = jnp.stack([logp[first], logp[second]], axis=-1)[..., None]  # [9, 2, 1]
    other = np.log(np.stack([ref[first], ref[second]], axis=-1))[..., None]
    rewards = np.stack([returns[first], returns[second]], axis=-1)[..., None]
    labels = types.Labels(rewards, np.ones(9), np.zeros(9), np.zeros(9, np.int32))
    chance = jax.lax.stop_gradient(jnp.exp(logp[first] + logp[second]))
    return types.Logps(policy, other, np.ones((9, 2, 1))), labels, chance


@pytest.mark.parametrize("term", ["reverse_kl", "rloo"])
def test_the_mean_gradient_over_samples_is_exact(term):
    """Over all pairs of samples of a policy with three responses."""
    theta = jnp.array([0.3, -0.5, 0.1])
    ref, returns = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.2, -0.4])
    knobs = {"weights": np.ones(1)} if term == "rloo" else {}

    def expected_loss(theta):
        logps, labels, chance = _all_pairs(theta, ref, returns)
        return (chance * getattr(groups, term)(logps, labels, over=(0, 1), **knobs)[0]).sum()

    def exact(theta):
        p = jax.nn.softmax(theta)
        return (p * (jnp.log(p) - np.log(ref))).sum() if term == "reverse_kl" else -p @ returns

    found = jax.jit(jax.grad(expected_loss))(theta)
    np.testing.assert_allclose(found, jax.grad(exact)(theta), rtol=1e-9)


def test_the_ratio_of_a_fresh_batch_is_against_its_sampler():
    """Worked by hand: ratios e^0.3 (clipped at 1.2) and e^-0.1, advantages 1 and -1 (no std)."""
    policy, sampler = np.array([-0.7, -1.6]), np.array([-1.0, -1.5])
    logps = types.Logps(
        policy[None, :, None],
        np.full((1, 2, 1), -2.0),
        np.ones((1, 2, 1)),
        behaviour=sampler[None, :, None],
    )
    labels = types.Labels(
        np.array([[[2.0], [0.0]]]), np.ones(1), np.zeros(1), np.zeros(1, np.int32)
    )
    knobs = {"over": (0, 1), "weights": np.ones(1), "std": False, "behaviour": "sampler"}
    loss, found = groups.grpo(logps, labels, **knobs)
    np.testing.assert_allclose(loss, [(-1.2 + np.exp(-0.1)) / 2], rtol=1e-6)
    np.testing.assert_allclose(found["ratio"], [(np.exp(0.3) + np.exp(-0.1)) / 2], rtol=1e-6)
    np.testing.assert_allclose(found["clipped"], [0.5])
    with pytest.raises(ValueError, match=r"this batch has none: set config.online.updates"):
        groups.grpo(logps._replace(behaviour=None), labels, **knobs)
