"""Log-probabilities and divergences at response tokens, without ever holding [B, N, T, V]."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rubric_jax import types

Array = types.Array


def token_logps(
    hidden: Array, unembedding: Array, ids: Array, *, chunk: int, cap: float = 0.0
) -> Array:
    """log p(ids | ...) of every response token, in float32.

    Works through the response in pieces: the logits of a piece exist while it is computed, and are
    computed again in the backward pass.

    Args:
      hidden: the states that predict each token, [B, N, T, D].
      unembedding: [D, V].
      ids: int [B, N, T].
      chunk: response positions per instance (over all branches) whose logits exist at a time.
      cap: the model's soft cap of logits (models.vlm.VLM.logit_cap); 0 = none.

    Returns log-probabilities [B, N, T] in nats.
    """
    return _in_pieces(lambda h, y: dense(h, unembedding, y, cap=cap), (hidden, ids), chunk)


def token_kl(
    hidden: Array,
    unembedding: Array,
    ref_hidden: Array,
    ref_unembedding: Array,
    *,
    chunk: int,
    cap: float = 0.0,
) -> types.TokenKL:
    """Divergence of policy and reference over the whole vocabulary, at every response token.

    Works in pieces as `token_logps` does. The reference has no gradient.

    Args:
      hidden, ref_hidden: the states that predict each token, [B, N, T, D].
      unembedding, ref_unembedding: [D, V].
      chunk, cap: as in `token_logps`; the logits of both models exist at a time.
    """
    ref_hidden, ref_unembedding = jax.lax.stop_gradient((ref_hidden, ref_unembedding))

    def piece(h: Array, r: Array) -> types.TokenKL:
        return dense_kl(logits(h, unembedding, cap=cap), logits(r, ref_unembedding, cap=cap))

    return _in_pieces(piece, (hidden, ref_hidden), chunk)


def token_js(
    hidden: Array, other: Array, unembedding: Array, *, chunk: int, cap: float = 0.0
) -> Array:
    """Jensen-Shannon divergence between two readings by one model, at every response token.

    Works in pieces as `token_logps` does. No gradient.

    Args:
      hidden, other: the states that predict each token, [B, N, T, D].
      unembedding: [D, V].
      chunk, cap: as in `token_logps`; the logits of both readings exist at a time.

    Returns divergences [B, N, T] in nats, from 0 to log 2.
    """
    arrays = jax.lax.stop_gradient((hidden, other))
    unembedding = jax.lax.stop_gradient(unembedding)

    def piece(h: Array, o: Array) -> Array:
        return dense_js(logits(h, unembedding, cap=cap), logits(o, unembedding, cap=cap))

    return _in_pieces(piece, arrays, chunk)


def dense_js(logits: Array, other: Array) -> Array:
    """The same from logits [..., V]."""
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    middle = jnp.logaddexp(p, q) - jnp.log(2.0).astype(p.dtype)
    return 0.5 * jnp.sum(jnp.exp(p) * (p - middle) + jnp.exp(q) * (q - middle), axis=-1)


def dense_kl(policy: Array, ref: Array) -> types.TokenKL:
    """`token_kl` from logits [..., V] of both."""
    policy, ref = jax.nn.log_softmax(policy), jax.nn.log_softmax(ref)
    return types.TokenKL(
        forward=jnp.sum(jnp.exp(ref) * (ref - policy), axis=-1),
        reverse=jnp.sum(jnp.exp(policy) * (policy - ref), axis=-1),
    )


def dense(hidden: Array, unembedding: Array, ids: Array, *, cap: float = 0.0) -> Array:
    """`token_logps` with all logits at once: hidden [..., D], ids [...] -> [...]."""
    found = logits(hidden, unembedding, cap=cap)
    chosen = jnp.take_along_axis(found, ids[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(found, axis=-1)


def logits(hidden: Array, unembedding: Array, *, cap: float = 0.0) -> Array:
    """hidden [..., D] -> float32 [..., V]; above 0, `cap` bounds them softly."""
    # float32: bfloat16 keeps 2-3 digits, and a response sums hundreds of terms.
    found = jnp.einsum("...d,dv->...v", hidden, unembedding, preferred_element_type=jnp.float32)
    return cap * jnp.tanh(found / cap) if cap else found


def _in_pieces(function: Callable, arrays: tuple[Array, ...], chunk: int):
    """function(*arrays) on pieces of T, one after the other, computed again in the backward pass.

    Args:
      function: from pieces [B, N, piece, ...] to a tree of [B, N, piece].
      arrays: [B, N, T, ...].
      chunk: positions of a piece, over all branches.
    """
    branches, length = arrays[0].shape[1:3]
    piece = min(max(1, chunk // branches), length)
    count = -(-length // piece)

    def cut(x: Array) -> Array:
        spare = [(0, 0)] * x.ndim
        spare[2] = (0, count * piece - length)
        x = jnp.pad(x, spare)
        return jnp.moveaxis(x.reshape(*x.shape[:2], count, piece, *x.shape[3:]), 2, 0)

    def join(x: Array) -> Array:  # [count, B, N, piece]
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], -1)[:, :, :length]

    again = jax.checkpoint(function)
    found = jax.lax.map(lambda pieces: again(*pieces), tuple(map(cut, arrays)))
    return jax.tree.map(join, found)
