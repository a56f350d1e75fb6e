"""From rewards on axes [..., A] to one number, and from rewards of a group to advantages."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from rubric_jax import types


def linear(rewards: types.Array, *, weights: types.Array) -> types.Array:
    """sum_a w_a r_a / sum_a w_a. [...]."""
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.asarray(rewards) @ weights / weights.sum()


def harmonic(rewards: types.Array, *, weights: types.Array) -> types.Array:
    """sum_a w_a / sum_a (w_a / r_a): one poor axis is not bought back. 0 where a reward is 0."""
    rewards, weights = jnp.asarray(rewards), jnp.asarray(weights, jnp.float32)
    weights = jnp.broadcast_to(weights, rewards.shape)
    # An axis without weight must not turn a zero reward into 0 / 0.
    zero = jnp.any((rewards <= 0) & (weights > 0), axis=-1)
    safe = jnp.where(rewards > 0, rewards, 1.0)
    mean = weights.sum(axis=-1) / (weights / safe).sum(axis=-1)
    return jnp.where(zero, 0.0, mean)


def projection(rewards: types.Array, *, weights: types.Array) -> types.Array:
    """v . r with v = weights / |weights|: the length of r along a direction of preference."""
    weights = jnp.asarray(weights, jnp.float32)
    return jnp.asarray(rewards) @ (weights / jnp.linalg.norm(weights))


def sequential(rewards: types.Array) -> types.Array:
    """The last axis's reward, 0 as soon as an earlier stage is 0."""
    rewards = jnp.asarray(rewards)
    return jnp.where(jnp.any(rewards == 0, axis=-1), 0.0, rewards[..., -1])


SCALARISERS: dict[str, Callable[..., types.Array]] = {
    "linear": linear,
    "harmonic": harmonic,
    "projection": projection,
    "sequential": sequential,
}


def papo_advantages(
    right: types.Array, quality: types.Array, valid: types.Array, *, eps: float = 1e-6
) -> types.Array:
    """Advantage of the outcome, plus that of the rubric among the right responses only.

    A = z(right) + 1[right] z_right(quality), z over the K responses of an instance. PAPO,
    arXiv:2603.26535. With z over right responses alone, style never pays for a wrong answer.

    Args:
      right: [B, K], 1 or True where the final answer is right.
      quality: [B, K], the rubric's reward.
      valid: bool [B, K]; the others get 0 and count for nothing.
      eps: added to the standard deviation.
    """
    valid = jnp.asarray(valid)
    right = jnp.where(valid, jnp.asarray(right, jnp.float32), 0.0)
    quality = jnp.where(valid, jnp.asarray(quality, jnp.float32), 0.0)
    of_right = _standardise(quality, valid & (right > 0), eps)
    return _standardise(right, valid, eps) + of_right


def _standardise(values, mask, eps):
    """(x - mean) / (std + eps) over the masked entries of the last axis; 0 elsewhere."""
    count = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    mean = jnp.where(mask, values, 0.0).sum(axis=-1, keepdims=True) / count
    centred = jnp.where(mask, values - mean, 0.0)
    std = jnp.sqrt((centred**2).sum(axis=-1, keepdims=True) / count)
    return centred / (std + eps)
