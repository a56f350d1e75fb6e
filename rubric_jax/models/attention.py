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

Two things may change the rule for a family: a window (a token sees only what is fewer than so many
positions back) and blocks (prefix tokens of one block see each other both ways: a picture, or the
whole prefix).

`tree` computes this without the zero blocks: queries of a branch meet the prefix and their own
branch only. No scores are stored for the backward pass (`each_head`). Kernels that keep scores on
the chip do both: splash.py on TPUs, unless the family has windows or blocks, and where it is asked
for cuDNN's on GPUs (`_fused`). `mask` writes the rule out; `dense` is the route that tests compare
the others with.

Shapes: R rows, S = P + N*T tokens, H query heads, J key heads (H is a multiple of J), h head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from rubric_jax import types
from rubric_jax.models import layers, splash

Array = types.Array

ROUTES = ("auto", "plain", "splash", "cudnn")  # config.model.attention
# What a layer that is computed again keeps all the same, or scores would be computed a third time.
_NAME = "attended"
KEPT = jax.checkpoint_policies.save_only_these_names(_NAME)

# The prefix attends to itself in strips of at least so many queries, without the keys behind them.
_STRIP = 128
_STRIPS = 8  # at most: they compute 56 % of the square, and each is compiled by itself
# Scores of one row and key head from which a CPU takes them by themselves.
_LARGE = 128 * 128


class Cache(NamedTuple):
    """Keys and values of one layer while responses are being sampled.

    Heads come before tokens, so that the products of a step read them as they lie.
    """

    prefix_k: Array  # [R, J, P, h]
    prefix_v: Array
    own_k: Array  # [R, N, J, T, h], filled up to the current step
    own_v: Array


class Tables(NamedTuple):
    """What attention needs to know of the rows, the same for every layer."""

    angles: Array  # float32 [R, S, h / 2], rotary angles of the queries
    valid: Array  # bool [R, P], the real tokens of the right-padded prefix
    own: Array  # bool [T', T], which of its own branch's T tokens each of T' queries sees
    local_angles: Array | None = None  # those of layers with a window, where they differ
    blocks: Array | None = None  # int32 [R, P], block of each prefix token; -1 = none


class Kind(NamedTuple):
    """How a family's layers score: static but for the window, which may differ by layer."""

    scale: float  # of the scores
    cap: float = 0.0  # scores are cap * tanh(score / cap); 0 = as they are
    window: Array | None = None  # int32 scalar, positions; 0 = all; None = no layer has one


def tree(
    q: Array, k: Array, v: Array, cache: None, tables: Tables, kind: Kind, *, route: str = "auto"
):
    """Training: q [R, S, H, h], k and v [R, S, J, h] -> ([R, S, H, h], None).

    route: config.model.attention. ValueError where it names a kernel that cannot do it.
    """
    out, _ = prefill(q, k, v, cache, tables, kind, route=route)
    return out, None


def prefill(
    q: Array, k: Array, v: Array, cache: None, tables: Tables, kind: Kind, *, route: str = "auto"
):
    """As `tree`, and returns the prefix's keys and values [R, J, P, h] for later steps."""
    prefix, length = tables.valid.shape[1], len(tables.own)
    chosen = _chosen(route, k, tables, kind)
    if chosen == "splash":
        out = splash.rows(q, k, v, tables.valid, length, kind.scale, kind.cap, _NAME)
    elif chosen == "cudnn":
        out = ad_checkpoint.checkpoint_name(_fused(q, k, v, tables, kind), _NAME)
    else:
        row = functools.partial(_row, tables.own, kind)
        out = each_head(row, q, k, v, tables.valid, tables.blocks)
    return out, tuple(jnp.swapaxes(x[:, :prefix], 1, 2) for x in (k, v))


def _chosen(route: str, k: Array, tables: Tables, kind: Kind) -> str:
    """The route itself: plain, splash or cudnn."""
    kernel = "splash" if route == "auto" else route
    if route == "plain" or (route == "auto" and layers.platform() != "tpu"):
        return "plain"
    tensor = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    obstacles = {"the mesh axis tensor does not divide key heads": k.shape[2] % tensor != 0}
    if kernel == "splash":
        obstacles |= {
            "layers have windows": kind.window is not None,
            "prefix tokens see each other both ways": tables.blocks is not None,
            "the kernel is not for GPUs": layers.platform() == "gpu",
        }
    else:
        gpu, eights = layers.platform() == "gpu", range(8, 257, 8)
        odd = tables.valid.shape[1] % 2 or len(tables.own) % 2
        obstacles |= {
            "scores have a cap": kind.cap > 0,
            "the kernel is for GPUs": layers.platform() == "tpu",
            "model.dtype is float32": gpu and k.dtype == jnp.float32,
            "the head size is not a multiple of 8 up to 256": gpu and k.shape[3] not in eights,
            "prompts or responses have an odd length": gpu and odd,
        }
    found = " and ".join(obstacle for obstacle, here in obstacles.items() if here)
    if found and route == "auto":
        return "plain"
    if found:
        raise ValueError(
            f"config.model.attention is {route!r}, but {found}; take 'auto' or 'plain'."
        )
    return kernel


def _fused(q: Array, k: Array, v: Array, tables: Tables, kind: Kind) -> Array:
    """Rows [R, S, H, h] by cuDNN's attention: the prefix, and each branch behind a copy of it.

    Elsewhere than on a GPU, XLA computes the same calls: for tests.
    """
    (rows, prefix), length = tables.valid.shape, len(tables.own)
    fused = "cudnn" if layers.platform() == "gpu" else "xla"
    attend = functools.partial(jax.nn.dot_product_attention, scale=kind.scale, implementation=fused)
    pk, pv = k[:, :prefix], v[:, :prefix]
    # Padding comes last, so the kernel's own causal rule hides it; a written rule is for the rest.
    causal = tables.blocks is None and kind.window is None
    keep = None if causal else _prefix_mask(prefix, tables.blocks, kind.window)[:, None]
    out = attend(q[:, :prefix], pk, pv, mask=keep, is_causal=causal)
    if q.shape[1] == prefix:
        return out

    def apart(x: Array) -> Array:  # [R, N*T, ...] -> [R, N, T, ...]
        return x[:, prefix:].reshape(rows, -1, length, *x.shape[2:])

    def joined(shared: Array, own: Array) -> Array:  # [R, P, J, h], [R, N, T, J, h]
        shape = (rows, own.shape[1], *shared.shape[1:])
        both = jnp.concatenate([jnp.broadcast_to(shared[:, None], shape), own], axis=2)
        return both.reshape(-1, *both.shape[2:])  # [R*N, P + T, J, h]

    keys, values = joined(pk, apart(k)), joined(pv, apart(v))
    own = apart(q).reshape(-1, length, *q.shape[2:])  # [R*N, T, H, h]
    keep = jnp.concatenate(
        [
            jnp.broadcast_to(seen, (rows, length, seen.shape[-1]))
            for seen in _seen(tables.valid, tables.own, kind)
        ],
        axis=2,
    )
    keep = jnp.repeat(keep, len(own) // rows, axis=0)[:, None]  # [R*N, 1, T, P + T]
    branches = attend(own, keys, values, mask=keep)
    return jnp.concatenate([out, branches.reshape(rows, -1, *out.shape[2:])], axis=1)


def each_head(attend: Callable, q: Array, k: Array, v: Array, *rows) -> Array:
    """attend(q, k, v, *rows), whose scores are computed again in the backward pass.

    q [R, Q, H, h], k and v [R, K, J, h], rows: trees of arrays [R, ...] -> [R, Q, H, h]. Rows and
    key heads must not meet in `attend`: on one CPU it sees one of each at a time where they are
    large, so that their scores stay in the processor's cache; elsewhere it sees all at once.
    """
    attend = jax.checkpoint(attend)
    count, heads = len(k), k.shape[2]
    small = q.shape[1] * (q.shape[2] // heads) * k.shape[1] < _LARGE
    if small or not layers.one_cpu():
        return ad_checkpoint.checkpoint_name(attend(q, k, v, *rows), _NAME)

    def cut(x: Array) -> Array:  # [R, Q, H, h] -> [R * J, 1, Q, H/J, h]
        x = jnp.moveaxis(_group(x, heads), 2, 1)
        return x.reshape(count * heads, 1, *x.shape[2:])

    rows = jax.tree.map(lambda x: jnp.repeat(x, heads, axis=0)[:, None], rows)
    out = jax.lax.map(lambda one: attend(*one), (cut(q), cut(k), cut(v), *rows))
    out = out.reshape(count, heads, q.shape[1], -1, q.shape[-1])
    return ad_checkpoint.checkpoint_name(jnp.moveaxis(out, 1, 2).reshape(q.shape), _NAME)


def both_ways(q: Array, k: Array, v: Array, real: Array | None = None) -> Array:
    """All tokens over all that are `real`, bool [R, K]; a route for `each_head`."""
    keep = None if real is None else real[:, None]
    return _attend(q, k, v, keep, Kind(q.shape[-1] ** -0.5))


def decode(q: Array, k: Array, v: Array, cache: Cache, tables: Tables, kind: Kind):
    """One token per branch: q [R, N, H, h], k and v [R, N, J, h]; tables.own tells the step.

    Returns ([R, N, H, h], the cache with the token's keys and values).
    """
    step = jnp.sum(tables.own[0]) - 1
    own_k, own_v = (
        jax.lax.dynamic_update_slice_in_dim(old, new[..., None, :].astype(old.dtype), step, axis=3)
        for old, new in ((cache.own_k, k), (cache.own_v, v))
    )
    cache = cache._replace(own_k=own_k, own_v=own_v)
    prefix = cache.prefix_k, cache.prefix_v
    out = _branches(q[:, :, None], *prefix, own_k, own_v, tables.valid, tables.own, kind)
    return out[:, :, 0], cache


def dense(q: Array, k: Array, v: Array, cache: None, tables: Tables, kind: Kind):
    """The rule as one masked softmax over the whole row; quadratic in S, for tests."""
    prefix, length = tables.valid.shape[1], tables.own.shape[0]
    branches = (q.shape[1] - prefix) // length if length else 0
    keep = mask(tables.valid, branches, length, tables.blocks, kind.window)
    return _attend(q, k, v, keep, kind), None


def mask(
    valid: Array,
    branches: int,
    length: int,
    blocks: Array | None = None,
    window: Array | None = None,
) -> Array:
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
    keep = (same & past)[None] & (real[:, None, :] | own[None])
    if window is not None:
        after = jnp.tile(jnp.arange(length), branches)[None] + jnp.sum(valid, axis=1)[:, None]
        start = jnp.broadcast_to(jnp.arange(prefix)[None], (rows, prefix))
        where = jnp.concatenate([start, after], axis=1)  # positions [R, S]
        keep &= _near(where[:, :, None] - where[:, None, :], window)
    if blocks is not None:
        blocks = jnp.pad(blocks, ((0, 0), (0, branches * length)), constant_values=-1)
        keep |= _together(blocks)
    return keep


def _row(
    own: Array, kind: Kind, q: Array, k: Array, v: Array, valid: Array, blocks: Array | None
) -> Array:
    """Rows [R, S, H, h] over themselves; `own`, `valid` and `blocks` as in Tables."""
    prefix = valid.shape[1]
    pk, pv = k[:, :prefix], v[:, :prefix]
    out = _prefix(q[:, :prefix], pk, pv, blocks, kind)
    if q.shape[1] == prefix:
        return out
    q, k, v = (
        x[:, prefix:].reshape(len(x), -1, len(own), *x.shape[2:]) for x in (q, k, v)
    )  # [R, N, T, heads, h]
    pk, pv, k, v = (jnp.swapaxes(x, -3, -2) for x in (pk, pv, k, v))
    branches = _branches(q, pk, pv, k, v, valid, own, kind)
    return jnp.concatenate([out, branches.reshape(len(out), -1, *out.shape[2:])], axis=1)


def _prefix(q: Array, k: Array, v: Array, blocks: Array | None, kind: Kind) -> Array:
    """The prefix over itself, in strips of queries that skip the keys behind them all."""
    prefix = q.shape[1]
    # Padding comes last and is in no block, so no real token sees it.
    keep = _prefix_mask(prefix, blocks, kind.window)
    count = 1 if blocks is not None else min(max(prefix // _STRIP, 1), _STRIPS)
    ends = [-(-prefix * (i + 1) // count) for i in range(count)]
    strips = [
        _attend(q[:, start:end], k[:, :end], v[:, :end], keep[:, start:end, :end], kind)
        for start, end in zip([0, *ends], ends)
    ]
    return jnp.concatenate(strips, axis=1) if count > 1 else strips[0]


def _prefix_mask(prefix: int, blocks: Array | None, window: Array | None) -> Array:
    """The rule inside the prefix: bool [1 or R, P, P]."""
    order = jnp.arange(prefix)
    back = order[:, None] - order[None, :]
    keep = (back >= 0)[None]
    if window is not None:
        keep &= _near(back, window)[None]
    return keep if blocks is None else keep | _together(blocks)


def _near(back: Array, window: Array) -> Array:
    """Whether a token so many positions back is inside the window."""
    return (back < window) | (window == 0)


def _together(blocks: Array) -> Array:
    """Whether two tokens share a block: [R, P] -> [R, P, P]."""
    return (blocks[:, :, None] == blocks[:, None, :]) & (blocks >= 0)[:, :, None]


def _attend(q: Array, k: Array, v: Array, keep: Array | None, kind: Kind) -> Array:
    """softmax(scores) v with keep [1 or R, 1 or Q, K], None = all; softmax in float32."""
    grouped = _group(q, k.shape[-2])  # [R, Q, J, H/J, h]
    scores = jnp.einsum("rqjgh,rkjh->rjgqk", grouped, k, preferred_element_type=jnp.float32)
    scores = _scaled(scores, kind)
    if keep is not None:
        # A finite bound: padding of pictures may see nothing.
        scores = jnp.where(keep[:, None, None], scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("rjgqk,rkjh->rqjgh", probs, v).reshape(q.shape)


def _branches(
    q: Array, pk: Array, pv: Array, ok: Array, ov: Array, valid: Array, own: Array, kind: Kind
) -> Array:
    """Queries [R, N, T', H, h] over the prefix [R, J, P, h] and their branch [R, N, J, T, h]."""
    seen, mine = _seen(valid, own, kind)
    grouped = jnp.moveaxis(_group(q, pk.shape[1]), 2, 4)  # [R, N, J, H/J, T', h]
    f32 = {"preferred_element_type": jnp.float32}
    prefix = jnp.einsum("rnjgth,rjph->rnjgtp", grouped, pk, **f32)
    own = jnp.einsum("rnjgth,rnjsh->rnjgts", grouped, ok, **f32)
    prefix = jnp.where(seen[:, None, None, None], _scaled(prefix, kind), -jnp.inf)
    own = jnp.where(mine[:, None, None, None], _scaled(own, kind), -jnp.inf)
    # One softmax over both parts. A query sees itself, so the largest score is finite.
    most = jax.lax.stop_gradient(jnp.maximum(jnp.max(prefix, axis=-1), jnp.max(own, axis=-1)))
    prefix, own = (jnp.exp(scores - most[..., None]) for scores in (prefix, own))
    total = jnp.sum(prefix, axis=-1) + jnp.sum(own, axis=-1)  # [R, N, J, H/J, T']
    out = jnp.einsum("rnjgtp,rjph->rnjgth", prefix.astype(pv.dtype), pv)
    out = out + jnp.einsum("rnjgts,rnjsh->rnjgth", own.astype(pv.dtype), ov)
    out = (out / total[..., None]).astype(pv.dtype)
    return jnp.moveaxis(out, 4, 2).reshape(q.shape)


def _seen(valid: Array, own: Array, kind: Kind) -> tuple[Array, Array]:
    """What a branch's queries see: of the prefix [R, 1 or T', P], of the branch [1, T', T]."""
    seen, mine = valid[:, None], own
    if kind.window is not None:
        at = jnp.sum(own, axis=1) - 1  # [T'], each query's place in its branch
        end = jnp.sum(valid, axis=1)[:, None] + at[None]  # [R, T'], its position
        seen = seen & _near(end[:, :, None] - jnp.arange(seen.shape[2])[None, None], kind.window)
        mine = mine & _near(at[:, None] - jnp.arange(mine.shape[1])[None], kind.window)
    return seen, mine[None]


def _scaled(scores: Array, kind: Kind) -> Array:
    scores = scores * kind.scale
    return kind.cap * jnp.tanh(scores / kind.cap) if kind.cap else scores


def _group(q: Array, key_heads: int) -> Array:
    """[..., H, h] -> [..., J, H/J, h]: consecutive query heads share a key head."""
    return q.reshape(*q.shape[:-2], key_heads, -1, q.shape[-1])
