"""A causal decoder over rows of one shared prefix and several branches: Llama's, and what Gemma's
generations change about it, as options.

Depth is scanned: parameters of all layers are stacked on a leading axis, and a 40-layer model
compiles as one layer (but for `decode`, which takes layers apart).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.models import attention, layers

Array = types.Array

REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, attention.KEPT
    ),
    "full": attention.KEPT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vocab: int
    width: int
    depth: int
    heads: int
    key_heads: int
    head_size: int
    mlp: int
    activation: str
    norm_eps: float
    frequencies: tuple[float, ...]  # rotary, radians per position; head_size / 2 of them
    longest: int = 0  # positions for which these frequencies hold; 0 = any number
    position_axes: tuple[int, ...] = ()  # per frequency, where positions have three axes
    attention_bias: bool
    output_bias: bool | None = None  # of the attention's output; None = as the others
    mlp_bias: bool
    tied: bool  # the unembedding is the embedding
    embed_scale: float = 1.0  # of token embeddings
    norm_offset: float = 0.0  # see layers.RMSNorm
    sandwich: bool = False  # norms also behind attention and MLP
    query_key_norm: bool = False
    query_scale: float = 0.0  # of attention scores; 0 = head_size ** -0.5
    attention_cap: float = 0.0  # see attention.Kind
    windows: tuple[int, ...] = ()  # per layer, positions; 0 = all; () = no layer has one
    local_frequencies: tuple[float, ...] = ()  # of layers with a window; () = the same


class Attention(nn.Module):
    config: Config
    attend: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array, cache, tables: attention.Tables, window: Array | None):
        c = self.config
        linear = functools.partial(layers.Linear, dtype=self.dtype, bias=c.attention_bias)
        q = linear((c.width,), (c.heads, c.head_size), name="q")(x)
        k = linear((c.width,), (c.key_heads, c.head_size), name="k")(x)
        v = linear((c.width,), (c.key_heads, c.head_size), name="v")(x)
        if c.query_key_norm:
            q = layers.RMSNorm(c.norm_eps, self.dtype, c.norm_offset, name="q_norm")(q)
            k = layers.RMSNorm(c.norm_eps, self.dtype, c.norm_offset, name="k_norm")(k)
        turns = tables.angles
        if tables.local_angles is not None:
            turns = jnp.where(window > 0, tables.local_angles, turns)
        q, k = (layers.rotate(y, turns) for y in (q, k))
        scale = c.query_scale or c.head_size**-0.5
        kind = attention.Kind(scale, c.attention_cap, window)
        out, cache = self.attend(q, k, v, cache, tables, kind)
        bias = c.attention_bias if c.output_bias is None else c.output_bias
        return linear((c.heads, c.head_size), (c.width,), bias=bias, name="o")(out), cache


class Block(nn.Module):
    config: Config
    attend: Callable
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Array,
        cache,
        tables: attention.Tables,
        window: Array | None,
        deep: Array | None,
        number: Array | None,
    ):
        c, dtype = self.config, self.dtype
        norm = functools.partial(layers.RMSNorm, c.norm_eps, dtype, c.norm_offset)
        x = layers.shard_rows(x)
        h = norm(name="attn_norm")(x)
        h, cache = Attention(c, self.attend, dtype, name="attn")(h, cache, tables, window)
        x = x + (norm(name="attn_post_norm")(h) if c.sandwich else h)
        h = norm(name="mlp_norm")(x)
        linear = functools.partial(layers.Linear, dtype=dtype, bias=c.mlp_bias)
        gate = layers.ACTIVATIONS[c.activation](linear((c.width,), (c.mlp,), name="gate")(h))
        h = gate * linear((c.width,), (c.mlp,), name="up")(h)
        h = linear((c.mlp,), (c.width,), name="down")(h)
        x = x + (norm(name="mlp_post_norm")(h) if c.sandwich else h)
        if deep is not None:
            more = deep[jnp.minimum(number, len(deep) - 1)]
            x = x.at[:, : more.shape[1]].add(jnp.where(number < len(deep), more, 0))
        return x, cache


class Decoder(nn.Module):
    """Embeddings [R, S, D] -> hidden states [R, S, D] and what `attend` keeps of every layer.

    `deep` [L, R, P, D] is added to the first P states behind each of the first L layers.
    `attend` is one of attention.tree, attention.prefill, attention.decode.
    """

    config: Config
    dtype: jnp.dtype
    remat: str = "none"
    attend: Callable = attention.tree

    def setup(self):
        c = self.config
        init = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", init, (c.vocab, c.width))
        if not c.tied:
            self.unembedding = self.param("unembedding", init, (c.width, c.vocab))
        policy = REMAT[self.remat]
        block = nn.remat(Block, prevent_cse=False, policy=policy) if policy else Block
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, 0, nn.broadcast, 0),
            length=c.depth,
        )
        self.layers = stack(c, self.attend, self.dtype)
        self.norm = layers.RMSNorm(c.norm_eps, self.dtype, c.norm_offset)

    def __call__(self, x: Array, cache, tables: attention.Tables, deep: Array | None = None):
        c = self.config
        windows = jnp.asarray(c.windows, jnp.int32) if c.windows else None
        number = None if deep is None else jnp.arange(c.depth)
        x, cache = self.layers(layers.shard_rows(x), cache, tables, windows, deep, number)
        return self.norm(x), cache

    def embed(self, ids: Array) -> Array:
        x = jnp.take(self.embedding, ids, axis=0).astype(self.dtype)
        return (
            x if self.config.embed_scale == 1 else x * jnp.asarray(self.config.embed_scale, x.dtype)
        )

    def unembed(self) -> Array:
        """[D, V]."""
        kernel = self.embedding.T if self.config.tied else self.unembedding
        return kernel.astype(self.dtype)

    def initialise(self) -> None:
        """Touches every parameter; `nn.Module.init` runs it on toy shapes."""
        tables = attention.Tables(
            angles=jnp.zeros((1, 1, self.config.head_size // 2)),
            valid=jnp.ones((1, 1), bool),
            own=jnp.ones((0, 0), bool),
        )
        self(self.embed(jnp.zeros((1, 1), int)), None, tables)


def decode(
    config: Config, dtype, params: types.Params, apart: tuple, x: Array, caches: tuple, tables
) -> tuple[Array, tuple]:
    """`Decoder` with attention.decode, its layers' parameters and caches given one by one.

    A loop over layers slices the stacked kernels in every step, and on a CPU copies them. `params`
    are the decoder's, whose stacked layers are not read.
    """
    block, kept = Block(config, attention.decode, dtype), []
    for number, (own, cache) in enumerate(zip(apart, caches, strict=True)):
        window = jnp.int32(config.windows[number]) if config.windows else None
        x, cache = block.apply({"params": own}, x, cache, tables, window, None, None)
        kept.append(cache)
    norm = layers.RMSNorm(config.norm_eps, dtype, config.norm_offset)
    return norm.apply({"params": params["norm"]}, x), tuple(kept)


def angles(frequencies: tuple[float, ...], positions: Array, axes: tuple[int, ...] = ()) -> Array:
    """Rotary angles float32 [R, S, head_size / 2] of positions int [R, S].

    With `axes` positions are int [R, S, 3], and each frequency turns with the axis that it names.
    """
    positions = positions[:, :, np.asarray(axes)] if axes else positions[:, :, None]
    return positions.astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None, :]


def frequencies(head_size: int, theta: float, scaling: dict) -> tuple[float, ...]:
    """Rotary frequencies of a checkpoint's `rope_parameters`: default, linear or llama3 scaling."""
    base = theta ** (-np.arange(0, head_size, 2, dtype=np.float32) / head_size)
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return tuple(base.tolist())
    factor = scaling["factor"]
    if kind == "linear":
        return tuple((base / factor).tolist())
    if kind != "llama3":
        raise ValueError(f"Rotary scaling {kind!r} is not one of default, linear, llama3.")
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelengths = 2 * math.pi / base
    turns = scaling["original_max_position_embeddings"] / wavelengths
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return tuple(((1 - smooth) * base / factor + smooth * base).tolist())


def flops(config: Config, prefix: int, branches: int, length: int) -> float:
    """Multiply-adds, times two, of one row's forward pass through the layers (head excluded)."""
    c = config
    heads = 2 * c.heads * c.head_size
    per_token = 2 * c.width * (heads + 2 * c.key_heads * c.head_size + 3 * c.mlp)
    tokens = prefix + branches * length
    pairs = prefix * prefix / 2 + branches * length * (prefix + length / 2)
    return c.depth * (tokens * per_token + 2 * heads * pairs)
