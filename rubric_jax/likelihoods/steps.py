"""Steps of responses: where one ends, and how alike those of two branches are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types

Array = types.Array


def find(states: Array, responses: Array, mask: Array, ends: Array, count: int) -> types.Steps:
    """The steps of every branch, and the cosine of their mean states. Without gradient.

    A step ends with the last of the tokens in a row that end one:

      tokens   a  b  \\n  \\n  c  \\n  d
      step     0  0  0   0   1  1   2

    Args:
      states: the hidden states at the response tokens, [B, N, T, D].
      responses: int [B, N, T].
      mask: [B, N, T]; 0 = padding.
      ends: bool [V], the tokens that end a step.
      count: S, steps at most; what comes after belongs to the last.
    """
    index = number(jnp.asarray(ends)[responses], count)  # [B, N, T]
    real = (mask != 0)[..., None] & (index[..., None] == jnp.arange(count)[None, None, None])
    real = real.astype(jnp.float32)  # [B, N, T, S]
    states = jax.lax.stop_gradient(states).astype(jnp.float32)
    total = jnp.einsum("bnts,bntd->bnsd", real, states)  # a mean has the same direction
    unit = total * jax.lax.rsqrt(jnp.sum(total**2, axis=-1, keepdims=True) + 1e-12)
    return types.Steps(index, jnp.einsum("bisd,bjsd->bijs", unit, unit))


def number(is_end: Array, count: int) -> Array:
    """The step of each token, int32 in [0, count): is_end bool [..., T]."""
    before = jnp.concatenate([jnp.zeros_like(is_end[..., :1]), is_end[..., :-1]], axis=-1)
    starts = (before & ~is_end).astype(jnp.int32)
    return jnp.minimum(jnp.cumsum(starts, axis=-1), count - 1)
