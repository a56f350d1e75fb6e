"""A vision transformer: images to one vector per patch.

The tower of CLIP, and what SigLIP's and InternVL's change about it, as options.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.models import attention, layers

Array = types.Array
Params = types.Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    image: int  # pixels on a side
    patch: int
    channels: int
    width: int
    depth: int
    heads: int
    mlp: int
    activation: str
    norm_eps: float
    class_token: bool = True  # a learned token in front of the patches
    patch_bias: bool = False
    pre_norm: bool = True  # a norm before the first layer
    post_norm: bool = True  # a norm behind the last layer
    rms: bool = False  # norms of the layers without mean and bias
    attention_bias: bool = True  # of queries, keys and values
    query_key_eps: float = 0.0  # of norms over the queries and keys of all heads; 0 = none
    layer_scale: bool = False  # a learned factor behind attention and MLP

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def tokens(self) -> int:
        return self.patches + int(self.class_token)


class Attention(nn.Module):
    config: Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        width, split = c.width, (c.heads, c.width // c.heads)
        q, k, v = (
            layers.Linear((width,), split, self.dtype, c.attention_bias, name=name)(x)
            for name in "qkv"
        )  # [I, L, H, h]
        if c.query_key_eps:
            norm = functools.partial(layers.RMSNorm, c.query_key_eps, self.dtype)
            q = norm(name="q_norm")(q.reshape(x.shape)).reshape(q.shape)
            k = norm(name="k_norm")(k.reshape(x.shape)).reshape(k.shape)
        out = attention.each_head(attention.both_ways, q, k, v)
        return layers.Linear(split, (width,), self.dtype, bias=True, name="o")(out)


class Block(nn.Module):
    config: Config
    dtype: jnp.dtype
    collect: bool

    @nn.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, Array | None]:
        c, dtype = self.config, self.dtype
        norm = functools.partial(layers.RMSNorm if c.rms else layers.LayerNorm, c.norm_eps, dtype)
        x = layers.shard_rows(x)
        h = Attention(c, dtype, name="attn")(norm(name="attn_norm")(x))
        x = x + (layers.Scale(dtype, name="attn_gain")(h) if c.layer_scale else h)
        h = norm(name="mlp_norm")(x)
        h = layers.Linear((c.width,), (c.mlp,), dtype, bias=True, name="up")(h)
        h = layers.ACTIVATIONS[c.activation](h)
        h = layers.Linear((c.mlp,), (c.width,), dtype, bias=True, name="down")(h)
        x = x + (layers.Scale(dtype, name="mlp_gain")(h) if c.layer_scale else h)
        return x, x if self.collect else None


class ViT(nn.Module):
    """pixels [I, H, W, channels] -> features [I, tokens, width * len(depths)].

    Features are the tokens after each of `depths` layers (0 = the embeddings), side by side; token
    0 is the class token, if there is one. The stack is as deep as its parameters, which the caller
    may have sliced to max(depths). With () the features are the output of the final norm, or of the
    last layer where there is no such norm; else the norm is kept among the parameters, but nothing
    passes through it, so it gets no gradient.
    """

    config: Config
    depths: tuple[int, ...]
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        c, init = self.config, nn.initializers.normal(0.02)
        patches = _patches(pixels, c.patch)  # [I, patches, patch, patch, channels]
        shape = (c.patch, c.patch, c.channels)
        x = layers.Linear(shape, (c.width,), self.dtype, c.patch_bias, name="patch")(patches)
        if c.class_token:
            first = self.param("class_token", init, (c.width,))
            first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, c.width))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.param("position", init, (c.tokens, c.width)).astype(self.dtype)[None]
        if c.pre_norm:
            x = layers.LayerNorm(c.norm_eps, self.dtype, name="pre_norm")(x)
        start = x
        collect = len(self.depths) > 1
        block = nn.remat(Block, prevent_cse=False, policy=attention.KEPT) if self.remat else Block
        stack = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=c.depth
        )
        x, outputs = stack(c, self.dtype, collect, name="layers")(x, None)
        final = layers.LayerNorm(c.norm_eps, self.dtype, name="post_norm")(x) if c.post_norm else x
        if not collect:
            return x if self.depths else final
        return jnp.concatenate([start if k == 0 else outputs[k - 1] for k in self.depths], axis=-1)


def encode(
    config: Config,
    params: Params,
    pixels: Array,
    dtype,
    remat: bool,
    depths: tuple[int, ...] = (),
) -> Array:
    """The features of pixels [I, H, W, channels] by the parameters `vision`; see ViT."""
    own = dict(params["vision"])
    if depths:
        config = dataclasses.replace(config, depth=max(depths))
        own["layers"] = jax.tree.map(lambda p: p[: config.depth], own["layers"])
    tower = ViT(config, depths, dtype, remat)
    return tower.apply({"params": own}, layers.shard_rows(pixels))


def fold(x: Array, side: int) -> Array:
    """[I, n*n, D] -> [I, (n/side)^2, side^2 * D]: each square of patches becomes one vector."""
    count, patches, width = x.shape
    squares = math.isqrt(patches) // side
    x = x.reshape(count, squares, side, squares, side, width).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(count, squares * squares, side * side * width)


def _patches(pixels: Array, size: int) -> Array:
    """[I, H, W, c] -> [I, (H//size)(W//size), size, size, c], row by row."""
    count, height, width, channels = pixels.shape
    rows, columns = height // size, width // size
    x = pixels[:, : rows * size, : columns * size]
    x = x.reshape(count, rows, size, columns, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(count, -1, size, size, channels)


def flops(config: Config) -> float:
    """Multiply-adds of one image's forward pass, times two."""
    tokens = config.tokens
    per_token = 2 * config.width * (4 * config.width + 2 * config.mlp)
    attention = 4 * tokens * config.width
    patch = 2 * config.patches * math.prod((config.patch, config.patch, config.channels))
    return config.depth * tokens * (per_token + attention) + patch * config.width
