"""A vision transformer over pictures at their own resolution: cells of patches to states.

Positions are rotary angles of row and column, and for some a learned table that is stretched over
the picture. In layers with windows a patch sees its window only. Layouts are those of grids.py.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.models import attention, grids, layers

Array = types.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    grid: grids.Grid
    patch: tuple[int, int, int, int]  # channels, frames, height, width; in the order of its values
    width: int
    depth: int
    heads: int
    mlp: int
    activation: str
    theta: float  # base of the rotary frequencies
    norm_eps: float = 1e-6
    rms: bool = False  # norms without mean and bias
    gated: bool = False  # the MLP is gate * up
    patch_bias: bool = True
    whole: tuple[int, ...] = ()  # the layers that see the whole picture, where there are windows
    side: int = 0  # of the square table of learned positions; 0 = none
    deep: tuple[int, ...] = ()  # the layers whose outputs are features too, ascending

    @property
    def window(self) -> int:
        """Patches in a window; 0 = there are none."""
        return (self.grid.window * self.grid.merge) ** 2


def norm(config: Config, dtype, name: str | None = None) -> nn.Module:
    kind = layers.RMSNorm if config.rms else layers.LayerNorm
    return kind(config.norm_eps, dtype, name=name)


class Attention(nn.Module):
    config: Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, angles: Array, real: Array, whole: Array) -> Array:
        c = self.config
        heads = (c.heads, c.width // c.heads)
        linear = functools.partial(layers.Linear, dtype=self.dtype, bias=True)
        qkv = linear((c.width,), (3, *heads), name="qkv")(x)  # [X, S, 3, H, h]
        q, k = (layers.rotate(qkv[:, :, i], angles) for i in range(2))
        out = _attend(c.window, q, k, qkv[:, :, 2], real, whole)
        return linear(heads, (c.width,), name="o")(out)


class Block(nn.Module):
    config: Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, angles: Array, real: Array, whole: Array):
        c, dtype = self.config, self.dtype
        x = layers.shard_rows(x)
        h = norm(c, dtype, "attn_norm")(x)
        x = x + Attention(c, dtype, name="attn")(h, angles, real, whole)
        h = norm(c, dtype, "mlp_norm")(x)
        linear = functools.partial(layers.Linear, dtype=dtype, bias=True)
        up = linear((c.width,), (c.mlp,), name="up")(h)
        act = layers.ACTIVATIONS[c.activation]
        h = act(linear((c.width,), (c.mlp,), name="gate")(h)) * up if c.gated else act(up)
        x = x + linear((c.mlp,), (c.width,), name="down")(h)
        return x, x if c.deep else None


class Tower(nn.Module):
    """Entries of grids.arrange, X = G * I of them, to states of their patches.

    pixels [X, L, merge * merge, values], where [X, L, 2], extent [X, 2] -> states
    [X, L, merge * merge, width], and those after each of `deep` on a leading axis (None without).
    """

    config: Config
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, pixels: Array, where: Array, extent: Array):
        c = self.config
        count, cells, patches, values = pixels.shape
        x = pixels.reshape(count, -1, values)
        x = layers.Linear((values,), (c.width,), self.dtype, c.patch_bias, name="patch")(x)
        merge = c.grid.merge
        inside = np.stack(np.divmod(np.arange(patches), merge), axis=-1)
        at = jnp.maximum(where[:, :, None], 0) * merge + inside[None, None]
        at = at.reshape(count, -1, 2)  # [X, S, 2], row and column of every patch
        if c.side:
            init = nn.initializers.normal(0.02)
            table = self.param("position", init, (c.side**2, c.width)).astype(self.dtype)
            x = x + _stretched(table, c.side, at, extent * merge)
        half = c.width // c.heads // 2
        frequencies = c.theta ** (-np.arange(0, half, 2, dtype=np.float32) / half)
        angles = at[..., None].astype(jnp.float32) * frequencies[None, None, None]
        angles = angles.reshape(count, -1, half)  # [X, S, h / 2]
        real = jnp.repeat(where[..., 0] >= 0, patches, axis=1)
        whole = np.isin(np.arange(c.depth), c.whole) if c.window else np.ones(c.depth, bool)
        block = nn.remat(Block, prevent_cse=False, policy=attention.KEPT) if self.remat else Block
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            length=c.depth,
        )
        x, outputs = stack(c, self.dtype, name="layers")(x, angles, real, jnp.asarray(whole))
        shape = (count, cells, patches, c.width)
        if not c.deep:
            return x.reshape(shape), None
        return x.reshape(shape), outputs[np.asarray(c.deep)].reshape(-1, *shape)


class Merger(nn.Module):
    """Cells of states [..., merge * merge, width] to one feature each: [..., D]."""

    config: Config
    width: int  # D
    dtype: jnp.dtype
    late: bool = False  # the norm is over all of a cell, not over each of its patches

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs = x.shape[-2] * x.shape[-1]
        flat = (*x.shape[:-2], inputs)
        x = norm(self.config, self.dtype, "norm")(x.reshape(flat) if self.late else x)
        linear = functools.partial(layers.Linear, dtype=self.dtype, bias=True)
        x = layers.gelu(linear((inputs,), (inputs,), name="up")(x.reshape(flat)))
        return linear((inputs,), (self.width,), name="down")(x)


def _attend(window: int, q: Array, k: Array, v: Array, real: Array, whole: Array) -> Array:
    """[X, S, H, h]; real bool [X, S]; `whole` (a scalar) or inside runs of `window` patches."""
    if not window:
        return _runs(q.shape[1], q, k, v, real)
    runs = (functools.partial(_runs, size) for size in (q.shape[1], window))
    return jax.lax.cond(whole, *runs, q, k, v, real)


def _runs(size: int, q: Array, k: Array, v: Array, real: Array) -> Array:
    shape = q.shape
    q, k, v, real = (x.reshape(-1, size, *x.shape[2:]) for x in (q, k, v, real))
    return attention.each_head(attention.both_ways, q, k, v, real).reshape(shape)


def _stretched(table: Array, side: int, at: Array, extent: Array) -> Array:
    """The table [side * side, width] read at patches [X, S, 2] of pictures of `extent` [X, 2]
    patches, its corners on theirs, between four of its entries."""
    steps = jnp.maximum(extent - 1, 1).astype(jnp.float32)
    exact = at.astype(jnp.float32) * (side - 1) / steps[:, None]  # [X, S, 2]
    low = jnp.floor(exact)
    share = exact - low
    low = low.astype(jnp.int32)
    high = jnp.minimum(low + 1, side - 1)
    total = 0.0
    for rows, row_share in ((low, 1 - share), (high, share)):
        for columns, column_share in ((low, 1 - share), (high, share)):
            entry = jnp.take(table, rows[..., 0] * side + columns[..., 1], axis=0)
            weight = row_share[..., 0] * column_share[..., 1]
            total = total + entry * weight[..., None].astype(table.dtype)
    return total


def flops(config: Config, width: int, cells: float) -> float:
    """Of one entry's forward pass through the tower and its mergers, which give `width`."""
    c, patches = config, cells * config.grid.merge**2
    per_patch = 2 * c.width * (4 * c.width + (3 if c.gated else 2) * c.mlp)
    narrow = c.depth - len(c.whole) if c.window else 0
    seen = narrow * min(c.window, patches) + (c.depth - narrow) * patches
    cell = c.grid.merge**2 * c.width
    mergers = (1 + len(c.deep)) * cells * 2 * cell * (cell + width)
    patch = 2 * patches * c.grid.values * c.width
    return patches * (c.depth * per_patch + 4 * c.width * seen) + patch + mergers
