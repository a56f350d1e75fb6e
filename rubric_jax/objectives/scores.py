"""What several terms read of a branch: a score of its log-ratio, its mean, its scalar reward."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

# exp of it squared, times 1e5, still fits float32. Beyond it a score stays flat.
_LARGEST = 40.0


def divergence_score(ratio: jax.Array, divergence: Divergence, alpha: float) -> jax.Array:
    """f'(t) at t = exp(ratio), up to a constant: the score of a branch under an f-divergence.

    reverse_kl        ratio
    forward_kl        1 - exp(-ratio)
    js_divergence     log 2 + log sigmoid(ratio)
    alpha_divergence  (exp((alpha - 1) ratio) - 1) / (alpha - 1), and `ratio` at alpha = 1

    Wang et al., arXiv:2309.16240, with the constants of TRL. Exponents above 40 count as 40, so
    that float32 holds; TRL bounds the last one at 80 and leaves the second unbounded.

    Args:
      ratio: log-ratios to the reference [B], in nats.
      divergence: of the table above.
      alpha: of alpha_divergence; not read by the others.
    """
    if divergence == "reverse_kl":
        return ratio
    if divergence == "forward_kl":
        return -jnp.expm1(jnp.minimum(-ratio, _LARGEST))
    if divergence == "js_divergence":
        return jnp.log(2.0).astype(ratio.dtype) + jax.nn.log_sigmoid(ratio)
    order = jnp.asarray(alpha - 1.0, ratio.dtype)
    limit = jnp.abs(order) < 1e-6
    order = jnp.where(limit, 1.0, order)  # no 0/0 on the side that is not taken
    bent = jnp.expm1(jnp.minimum(order * ratio, _LARGEST)) / order
    return jnp.where(limit, ratio, bent)


def mean_logp(logps: types.Logps, branch: types.Branch) -> jax.Array:
    """Log-probability per token of one branch, by token weight; 0 where absent. [B], nats."""
    return logps.total(branch) / safe_length(logps, branch)


def safe_length(logps: types.Logps, branch: types.Branch) -> jax.Array:
    """Token weight of one branch, 1 where it has none. [B]."""
    length = logps.length(branch)
    return jnp.where(length != 0, length, 1.0)


def reward(labels: types.Labels, weights: types.PerAxis) -> jax.Array:
    """rewards @ weights, without gradient: one number per branch. [B, N]."""
    check_axes(labels, weights)
    rewards = jax.lax.stop_gradient(labels.rewards)
    if np.ndim(weights) == 1:
        return rewards @ weights
    return jnp.einsum("bna,ba->bn", rewards, weights)


def reward_gap(
    labels: types.Labels, win: types.Branch, lose: types.Branch, weights: types.PerAxis
) -> jax.Array:
    """Weighted reward of `win` less that of `lose`, without gradient. [B]."""
    rewards = reward(labels, weights)
    return rewards[:, win] - rewards[:, lose]


def per_row(labels: types.Labels, weights: types.PerAxis) -> jax.Array:
    """The weights of each row: those given, [A] for all or [B, A]. [B, A]."""
    check_axes(labels, weights)
    return jnp.broadcast_to(jnp.asarray(weights), (labels.rewards.shape[0], np.shape(weights)[-1]))


def check_axes(labels: types.Labels, weights: types.PerAxis) -> None:
    """Raises ValueError where there are not as many weights as reward axes."""
    count = np.shape(weights)[-1]
    if labels.rewards.shape[-1] != count:
        raise ValueError(
            f"There are {count} weights for {labels.rewards.shape[-1]} reward axes; "
            "give one weight for each of config.data.axes."
        )


def silent(present: jax.Array, loss: jax.Array, **metrics: jax.Array):
    """(loss, metrics) of a term, all 0 where `present` [B] is 0."""
    kept = {name: jnp.where(present > 0, value, 0.0) for name, value in metrics.items()}
    return jnp.where(present > 0, loss, 0.0), kept
