"""From rewards on axes [..., A] to one number."""

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
