"""Attention over rows that hold one shared prefix and several branches.

A row is [prefix, branch 1, branch 2, ...]. Token q sees token k when k is in the prefix or in q's
own branch, and does not come later:

                   k:  P P P | a a | b b
     q: prefix   P     1 . . | . . | . .        positions 0 1 2 | 3 4 | 3 4
                 P     1 1 . | . . | . .
                 P     1 1 1 | . . | . .
        branch   a     1 1 1 | 1 . | . .
                 a     1 1 1 | 1 1 | . .
        branch   b     1 1 1 | . . | 1 .
                 b     1 1 1 | . . | 1 1

`tree` computes this without the zero blocks: queries of a branch meet the prefix and their own
branch only. `mask` writes the rule out; `dense` is the plain route that tests compare `tree` with.

Shapes: R rows, S = P + N*T tokens, H query heads, J key heads (H is a multiple of J), h head size.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rubric_jax import types

Array = types.Array


class Cache(NamedTuple):
    """Keys and values of one layer while responses are being sampled."""

    prefix_k: Array  # [R, P, J, h]
    prefix_v: Array
    own_k: Array  # [R, N, T, J, h], filled up to the current step
    own_v: Array


class Tables(NamedTuple):
    """What attention needs to know of the rows, the same for every layer."""

    angles: Array  # float32 [R, S, h / 2], rotary angles of the queries
    valid: Array  # bool [R, P], the real tokens of the right-padded prefix
    own: Array  # bool [T', T], which of its own branch's T tokens each of T' queries sees


def tree(q: Array, k: Array, v: Array, cache: None, tables: Tables) -> tuple[Array, None]:
    """Training: q [R, S, H, h], k and v [R, S, J, h] -> [R, S, H, h]."""
    out, _ = prefill(q, k, v, cache, tables)
    return out, None


def prefill(q: Array, k: Array, v: Array, cache: None, tables: Tables):
    """As `tree`, and returns the prefix's keys and values [R, P, J, h] for later steps."""
    prefix = tables.valid.shape[1]
    causal = jnp.tri(prefix, dtype=bool)[None]  # padding comes last, so no real token sees it
    out = _attend(q[:, :prefix], k[:, :prefix], v[:, :prefix], causal)
    kv = k[:, :prefix], v[:, :prefix]
    if q.shape[1] == prefix:
        return out, kv
    length = tables.own.shape[0]
    q, k, v = (
        x[:, prefix:].reshape(x.shape[0], -1, length, *x.shape[2:]) for x in (q, k, v)
    )  # [R, N, T, heads, h]
    branches = _branches(q, *kv, k, v, tables)
    return jnp.concatenate([out, branches.reshape(out.shape[0], -1, *out.shape[2:])], axis=1), kv


def decode(q: Array, k: Array, v: Array, cache: Cache, tables: Tables) -> tuple[Array, Cache]:
    """One token per branch: q [R, N, H, h], k and v [R, N, J, h]; tables.own tells the step."""
    step = jnp.sum(tables.own[0]) - 1
    own_k, own_v = (
        jax.lax.dynamic_update_slice_in_dim(old, new[:, :, None].astype(old.dtype), step, axis=2)
        for old, new in ((cache.own_k, k), (cache.own_v, v))
    )
    cache = cache._replace(own_k=own_k, own_v=own_v)
    out = _branches(q[:, :, None], cache.prefix_k, cache.prefix_v, own_k, own_v, tables)
    return out[:, :, 0], cache


def dense(q: Array, k: Array, v: Array, cache: None, tables: Tables) -> tuple[Array, None]:
    """The rule as one masked softmax over the whole row; quadratic in S, for tests."""
    prefix, length = tables.valid.shape[1], tables.own.shape[0]
    branches = (q.shape[1] - prefix) // length if length else 0
    return _attend(q, k, v, mask(tables.valid, branches, length)), None


def mask(valid: Array, branches: int, length: int) -> Array:
    """The rule itself. valid: bool [R, P] -> bool [R, S, S], S = P + branches * length."""
    rows, prefix = valid.shape
    branch = jnp.concatenate(
        [jnp.zeros(prefix, int), jnp.repeat(jnp.arange(1, branches + 1), length)]
    )
    order = jnp.arange(prefix + branches * length)
    same = (branch[None, :] == 0) | (branch[None, :] == branch[:, None])
    past = order[None, :] <= order[:, None]
    real = jnp.concatenate([valid, jnp.ones((rows, branches * length), bool)], axis=1)
    # A padded prefix token sees itself, so that no softmax is over nothing.
    own = order[None, :] == order[:, None]
    return (same & past)[None] & (real[:, None, :] | own[None])


def _attend(q: Array, k: Array, v: Array, keep: Array) -> Array:
    """softmax(q k / sqrt(h)) v with keep [1 or R, Q, K]; softmax in float32."""
    grouped = _group(q, k.shape[-2])  # [R, Q, J, H/J, h]
    scores = jnp.einsum("rqjgh,rkjh->rjgqk", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(keep[:, None, None], scores * q.shape[-1] ** -0.5, -jnp.inf)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("rjgqk,rkjh->rqjgh", probs, v).reshape(q.shape)


def _branches(q: Array, pk: Array, pv: Array, ok: Array, ov: Array, tables: Tables) -> Array:
    """Queries [R, N, T', H, h] over the prefix [R, P, J, h] and their branch [R, N, T, J, h]."""
    grouped = _group(q, pk.shape[-2])  # [R, N, T', J, H/J, h]
    f32 = {"preferred_element_type": jnp.float32}
    prefix = jnp.einsum("rntjgh,rpjh->rnjgtp", grouped, pk, **f32)
    own = jnp.einsum("rntjgh,rnsjh->rnjgts", grouped, ok, **f32)
    prefix = jnp.where(tables.valid[:, None, None, None, None], prefix, -jnp.inf)
    own = jnp.where(tables.own[None, None, None, None], own, -jnp.inf)
    scores = jnp.concatenate([prefix, own], axis=-1) * q.shape[-1] ** -0.5
    probs = jax.nn.softmax(scores, axis=-1).astype(pv.dtype)
    prefix, own = jnp.split(probs, [pk.shape[1]], axis=-1)
    out = jnp.einsum("rnjgtp,rpjh->rntjgh", prefix, pv)
    return (out + jnp.einsum("rnjgts,rnsjh->rntjgh", own, ov)).reshape(q.shape)


def _group(q: Array, key_heads: int) -> Array:
    """[..., H, h] -> [..., J, H/J, h]: consecutive query heads share a key head."""
    return q.reshape(*q.shape[:-2], key_heads, -1, q.shape[-1])
