"""Log-probabilities of response tokens from hidden states, without ever holding [B, N, T, V]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types

Array = types.Array


def token_logps(hidden: Array, unembedding: Array, ids: Array, *, chunk: int) -> Array:
    """log p(ids | ...) of every response token, in float32.

    Works through the response in pieces: the logits of a piece exist while it is computed, and are
    computed again in the backward pass.

    Args:
      hidden: the states that predict each token, [B, N, T, D].
      unembedding: [D, V].
      ids: int [B, N, T].
      chunk: response positions per instance (over all branches) whose logits exist at a time.

    Returns log-probabilities [B, N, T] in nats.
    """
    batch, branches, length, width = hidden.shape
    piece = min(max(1, chunk // branches), length)
    count = -(-length // piece)
    spare = count * piece - length
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, spare), (0, 0)))
    ids = jnp.pad(ids, ((0, 0), (0, 0), (0, spare)))
    hidden = jnp.moveaxis(hidden.reshape(batch, branches, count, piece, width), 2, 0)
    ids = jnp.moveaxis(ids.reshape(batch, branches, count, piece), 2, 0)

    @jax.checkpoint
    def piece_logps(h: Array, y: Array) -> Array:
        return dense(h, unembedding, y)

    logps = jax.lax.map(lambda piece: piece_logps(*piece), (hidden, ids))  # [count, B, N, piece]
    return jnp.moveaxis(logps, 0, 2).reshape(batch, branches, -1)[:, :, :length]


def dense(hidden: Array, unembedding: Array, ids: Array) -> Array:
    """The same with all logits at once: hidden [..., D], ids [...] -> [...]."""
    # float32: bfloat16 keeps 2-3 digits, and a response sums hundreds of terms.
    logits = jnp.einsum("...d,dv->...v", hidden, unembedding, preferred_element_type=jnp.float32)
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
