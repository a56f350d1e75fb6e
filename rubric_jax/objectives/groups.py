"""Policy gradients over a group of K responses of one instance, on log-probabilities.

  logps     log-probabilities [B, N, T] of the layout's branches, in nats
  labels    rewards [B, N, A], without gradient; a branch's return is R = sum_a weights_a rewards_a
  over      indices of the K branches, samples of the policy; an absent one takes no part
  weights   [A], >= 0
  result    loss [B], 0 with fewer than two branches present; metrics, each [B]

The value of these losses says little: their gradient is what counts. Responses are averaged over
the branches present. In expectations over fresh samples they are gradients of the mean return; on
stored samples they are off-policy, which is what `grpo` clips.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.objectives import lists, scores

_LARGEST = 20.0  # e^20 = 5e8 times any advantage still fits float32
_EPSILON = 1e-4  # added to a standard deviation, as the published code does


def advantages(
    rewards: jax.Array, present: jax.Array, *, std: bool, baseline: str = "mean"
) -> jax.Array:
    """Returns less their group's baseline, 0 for absent branches and lone ones. [B, K].

    baseline  mean       of all branches present
              leave_one  of the others: the mean form times n / (n - 1), unbiased
    std       divide by the group's standard deviation (n - 1 degrees of freedom) + 1e-4
    """
    count = jnp.sum(present, axis=-1, keepdims=True).astype(rewards.dtype)  # [B, 1]
    kept = jnp.where(present, rewards, 0.0)
    mean = jnp.sum(kept, axis=-1, keepdims=True) / jnp.maximum(count, 1.0)
    centred = jnp.where(present, rewards - mean, 0.0)
    if baseline == "leave_one":
        centred = centred * count / jnp.maximum(count - 1, 1.0)
    if std:
        square = jnp.sum(centred**2, axis=-1, keepdims=True) / jnp.maximum(count - 1, 1.0)
        centred = centred / (jnp.sqrt(square) + _EPSILON)
    return centred


def k3(log_ratio: jax.Array) -> jax.Array:
    """exp(x) - x - 1 at x = log pi_ref - log pi: >= 0, unbiased for the KL divergence.

    Above x = 20 it goes on along its tangent, so that float32 holds.
    """
    inside = jnp.minimum(log_ratio, _LARGEST)
    beyond = jnp.exp(_LARGEST) * (log_ratio - inside)  # 0 inside
    return jnp.expm1(inside) + beyond - log_ratio


def _mean_over(values, present):
    """Mean over the branches present. [B, K] -> [B]."""
    count = jnp.maximum(jnp.sum(present, axis=-1), 1)
    return jnp.sum(jnp.where(present, values, 0.0), axis=-1) / count


def rloo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    weights: types.PerAxis,
):
    """REINFORCE with the mean return of the other responses as baseline (leave one out).

    loss = -mean_i (R_i - mean_{j != i} R_j) log pi(y_i)       Ahmadian et al., arXiv:2402.14740

    Needs no reference: for a penalty on the divergence add `reverse_kl` or take `grpo`.
    """
    present = lists.present_of(logps, over)
    rewards = scores.reward(labels, weights)[:, np.asarray(over)]  # [B, K]
    gain = advantages(rewards, present, std=False, baseline="leave_one")
    loss = _mean_over(-gain * logps.total(np.asarray(over)), present)
    return _finish(loss, present, reward=_mean_over(rewards, present))


def reverse_kl(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
):
    """Gradient of KL(policy || reference) from fresh samples: `rloo` with the log-ratio as cost.

    loss = mean_i (d_i - mean_{j != i} d_j) log pi(y_i),   d_i = log-ratio of i, without gradient
                                                           HyPO, arXiv:2406.01462 (estimator ours)
    labels are not read. Needs samples of the current policy: on others it is biased.
    """
    del labels
    index, present = np.asarray(over), lists.present_of(logps, over)
    cost = jax.lax.stop_gradient(logps.ratio(index))  # [B, K]
    gain = advantages(cost, present, std=False, baseline="leave_one")
    loss = _mean_over(gain * logps.total(index), present)
    return _finish(loss, present, kl=_mean_over(cost, present))


def rwr(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    weights: types.PerAxis,
    temperature: float = 1.0,
    tokens: Literal["mean", "sum"] = "sum",
):
    """Supervised training on the group, each response weighted by its reward.

    loss = -sum_i softmax(R / temperature)_i log pi(y_i)       Peters & Schaal, ICML 2007

    Needs no reference.

    Args:
      temperature: > 0; small values train on the best alone.
      tokens: log-probability of the whole response, or per token.
    """
    index, present = np.asarray(over), lists.present_of(logps, over)
    rewards = scores.reward(labels, weights)[:, index]  # [B, K]
    share = jax.nn.softmax(jnp.where(present, rewards / temperature, -1e30), axis=-1)
    values = logps.total(index)
    if tokens == "mean":
        values = values / scores.safe_length(logps, index)
    loss = -jnp.sum(jnp.where(present, share * values, 0.0), axis=-1)
    return _finish(loss, present, reward=_mean_over(rewards, present))


def grpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    weights: types.PerAxis,
    clip: float = 0.2,
    beta_kl: float = 0.0,
    std: bool = True,
    apart: bool = False,
    behaviour: Literal["reference", "policy", "sampler"] = "reference",
    tokens: Literal["mean", "sum", "group"] = "mean",
):
    """Group-relative policy optimisation: clipped policy gradient with the group as baseline.

    A_i  = (R_i - mean R) / (std R + 1e-4)
    loss = mean_i mean_t (-min(p_t A_i, clip(p_t, 1 - clip, 1 + clip) A_i) + beta_kl k3_t)
    p_t  = pi(y_t) / pi_behaviour(y_t);   k3_t = exp(x_t) - x_t - 1, x_t = log pi_ref - log pi
                                                           Shao et al., arXiv:2402.03300
    Args:
      clip: in (0, 1).
      beta_kl: >= 0, weight of the divergence from the reference.
      std: False leaves the standard deviation out (Dr. GRPO, arXiv:2503.20783).
      apart: normalise each axis within the group, then take the weighted sum.
      behaviour: who sampled: `reference` where the reference is the policy that the round started
        from; `sampler` where every step samples (config.online): the log-probabilities recorded
        then; `policy` for one step on fresh samples: p_t is 1 and nothing is clipped.
      tokens: per response `mean` or `sum`; `group`: over all tokens of the group alike (DAPO).
    """
    present = lists.present_of(logps, over)
    if apart:
        weights = scores.per_row(labels, weights)  # [B, A]
        rewards = jax.lax.stop_gradient(labels.rewards)[:, np.asarray(over)]  # [B, K, A]
        axes = [
            advantages(rewards[..., a], present, std=std) * weights[:, a, None]
            for a in range(rewards.shape[-1])
        ]
        gain = sum(axes)
    else:
        gain = advantages(scores.reward(labels, weights)[:, np.asarray(over)], present, std=std)
    return _surrogate(logps, over, gain, clip, beta_kl, behaviour, tokens)


def papo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    outcome: types.PerAxis,
    process: types.PerAxis,
    correct: float = 1.0,
    clip: float = 0.2,
    beta_kl: float = 0.0,
    std: bool = True,
    behaviour: Literal["reference", "policy", "sampler"] = "reference",
    tokens: Literal["mean", "sum", "group"] = "mean",
):
    """`grpo` with outcome and process normalised apart: process ranks correct responses only.

    A_i = norm over all of (outcome . rewards)_i
          + [outcome . rewards_i >= correct] norm over the correct of (process . rewards)_i
                                                           PAPO, arXiv:2603.26535
    Args:
      outcome, process: [A], >= 0, weights of the axes on each side.
      correct: outcome score from which a response counts as correct.
      The rest as in `grpo`.
    """
    index, present = np.asarray(over), lists.present_of(logps, over)
    result = scores.reward(labels, outcome)[:, index]  # [B, K]
    quality = scores.reward(labels, process)[:, index]
    right = present & (result >= correct)
    gain = advantages(result, present, std=std) + advantages(quality, right, std=std)
    return _surrogate(logps, over, gain, clip, beta_kl, behaviour, tokens)


def _surrogate(logps, over, gain, clip, beta_kl, behaviour, tokens):
    """The clipped objective and the k3 penalty under advantages [B, K]."""
    index, present = np.asarray(over), lists.present_of(logps, over)
    mask, counted = logps.mask[:, index], logps.counted[:, index]  # [B, K, T]
    # What stands in the padding could overflow before the mask takes it out.
    policy = jnp.where(mask != 0, logps.policy[:, index], 0.0)
    ref = jnp.where(mask != 0, logps.ref[:, index], 0.0)
    old = _behaviour(logps, policy, ref, mask, index, behaviour)
    ratio = jnp.exp(jnp.clip(policy - old, -_LARGEST, _LARGEST))
    gain = gain[:, :, None]
    held = jnp.clip(ratio, 1 - clip, 1 + clip)
    divergence = k3(ref - policy)
    losses = -jnp.minimum(ratio * gain, held * gain) + beta_kl * divergence  # [B, K, T]
    loss = _over_tokens(losses, counted, present, tokens)
    clipped = (held * gain < ratio * gain).astype(loss.dtype)
    return _finish(
        loss,
        present,
        kl=_over_tokens(divergence, counted, present, "group"),
        clipped=_over_tokens(clipped, counted, present, "group"),
        ratio=_over_tokens(ratio, counted, present, "group"),
    )


def _behaviour(logps, policy, ref, mask, index, behaviour):
    """Log-probabilities [B, K, T] of the policy that sampled, without gradient."""
    if behaviour == "reference":
        return ref
    if behaviour == "policy":
        return jax.lax.stop_gradient(policy)
    if logps.behaviour is None:
        raise ValueError(
            "behaviour 'sampler' reads the log-probabilities recorded while sampling, and this "
            "batch has none: set config.online.updates, or take behaviour 'reference'."
        )
    return jnp.where(mask != 0, logps.behaviour[:, index], 0.0)


def _over_tokens(values, counted, present, tokens):
    """[B, K, T] -> [B]."""
    sums, lengths = jnp.sum(values * counted, axis=-1), jnp.sum(counted, axis=-1)  # [B, K]
    if tokens == "group":
        total = jnp.sum(lengths, axis=-1)
        return jnp.sum(sums, axis=-1) / jnp.where(total != 0, total, 1.0)
    if tokens == "mean":
        sums = sums / jnp.where(lengths != 0, lengths, 1.0)
    return _mean_over(sums, present)


def _finish(loss, present, **metrics):
    return scores.silent(jnp.sum(present, axis=-1) >= 2, loss, **metrics)
