"""What Qwen2.5-VL and Qwen3-VL share: a tower of native resolution, and three axes of positions.

              Qwen2.5-VL                                Qwen3-VL
  tower       windows but in a few layers; RMSNorm,     all layers see the picture; LayerNorm, a
              gated MLP                                 learned table of positions
  features    behind the last layer                     also behind some layers before it, added
                                                        behind the decoder's first ones (DeepStack)
  decoder     Qwen2: biases of queries, keys, values    Qwen3: norms of queries and keys
  positions   runs of frequencies turn with time,       frequencies turn with time, row, column,
              row and column                            time, row, column, ...
  videos      frames are apart in time                  text between frames tells the time

Parameters: vision/..., projector/{norm,up,down}/..., deep/... (Qwen3-VL), decoder/...
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rubric_jax import types
from rubric_jax.models import decoder, grids, interleaved, layers, maps, native, parsing, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = (
    (r"vision/layers/attn/qkv/kernel", PartitionSpec(None, "fsdp", None, "tensor")),
    (r"vision/layers/attn/qkv/bias", PartitionSpec(None, None, "tensor")),
    (r"vision/layers/gate/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"vision/layers/gate/bias", PartitionSpec(None, "tensor")),
    (r"vision/patch/kernel", PartitionSpec(None, "fsdp")),
    (r"projector/up/kernel", PartitionSpec("fsdp", "tensor")),
    (r"projector/down/kernel", PartitionSpec("tensor", "fsdp")),
    (r"projector/up/bias", PartitionSpec("tensor")),
    (r"deep/up/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"deep/down/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"deep/up/bias", PartitionSpec(None, "tensor")),
    *interleaved.RULES,
)

# Qwen2.5-VL's decoder stands at `model` on the Hub, at `model.language_model` in transformers 5.
SPELLINGS = (
    (r"^model\.visual\.", "visual."),
    (r"^model\.(layers|embed_tokens|norm)\.", r"language_model.model.\1."),
)
MODULES = ((r"^visual\.", "model.visual."),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: native.Config
    decoder: decoder.Config
    image_token: int
    pace: float = 0.0  # positions per second of a video, see grids.positions


def parse(known: type, hf: Mapping[str, Any], family: str) -> Any:
    """config.json through transformers' own class; ValueError for what is not `family`'s."""
    decoders, towers = (f"{family}_text",), (f"{family}_vision",)
    found = parsing.parse(known, hf, family, decoders=decoders, towers=towers)
    if found.vision_config.out_hidden_size != found.text_config.hidden_size:
        raise ValueError(
            f"config.json has vision features of {found.vision_config.out_hidden_size} numbers for "
            f"a decoder of width {found.text_config.hidden_size}; they must be equal."
        )
    return found


def vision_config(vision, **options) -> native.Config:
    """The tower of a vision_config; `options` are what the two families differ in."""
    side = vision.patch_size
    patch = (vision.in_channels, vision.temporal_patch_size, side, side)
    return native.Config(
        patch=patch,
        grid=grids.Grid(
            merge=vision.spatial_merge_size,
            values=math.prod(patch),
            window=options.pop("window", 0),
        ),
        width=vision.hidden_size,
        depth=vision.depth,
        heads=vision.num_heads,
        mlp=vision.intermediate_size,
        activation=parsing.activation(vision.hidden_act),
        theta=vision.rope_parameters["rope_theta"],
        **options,
    )


def text_config(text, *, tied: bool, axes: tuple[int, ...], **options) -> decoder.Config:
    """The decoder of a text_config; `axes`: which of the position axes each frequency reads."""
    found = parsing.llama(text, tied=tied)
    if len(axes) != len(found.frequencies):
        raise ValueError(
            f"config.json shares out {len(axes)} frequencies over three axes (mrope_section "
            f"{text.rope_parameters['mrope_section']}), but heads of size {found.head_size} have "
            f"{len(found.frequencies)}."
        )
    return dataclasses.replace(found, position_axes=axes, **options)


def build(config: Config, listed: tuple, *, dtype: str, remat: str, attention: str) -> vlm_lib.VLM:
    """The model; `listed`: the tensors of tower and mergers."""
    text, grid = config.decoder, config.vision.grid
    parts = interleaved.Parts(
        decoder=text,
        features=functools.partial(features, config),
        media=interleaved.Arrangement(
            config.image_token,
            arrange=functools.partial(grids.arrange, grid),
            reads=functools.partial(grids.reads, grid),
            positions=functools.partial(grids.positions, config.pace),
        ),
        picture_flops=functools.partial(native.flops, config.vision, text.width),
    )
    listed = (*listed, *maps.decoder(text, "language_model", "decoder"))
    spec = interleaved.weight_map(listed, text)
    spec = spec._replace(spellings=(*SPELLINGS, *spec.spellings), modules=(*MODULES, *spec.modules))
    start = functools.partial(init, config)
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    return interleaved.build(parts, config, start, RULES, spec, **compute)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    vision, projector, deep, text = jax.random.split(key, 4)
    f32, c = jnp.dtype("float32"), config.vision
    cells = jnp.zeros((1, max(c.grid.window, 1) ** 2, c.grid.merge**2, c.grid.values))
    where, extent = jnp.zeros((*cells.shape[:2], 2), int), jnp.ones((1, 2), int)
    states = jnp.zeros((1, c.grid.merge**2, c.width))
    model = decoder.Decoder(config.decoder, f32)
    params = {
        "vision": native.Tower(c, f32, False).init(vision, cells, where, extent)["params"],
        "projector": _merger(config, f32).init(projector, states)["params"],
        "decoder": model.init(text, method=decoder.Decoder.initialise)["params"],
    }
    if c.deep:
        one = _merger(config, f32, late=True).init
        keys = jax.random.split(deep, len(c.deep))
        params["deep"] = jax.vmap(lambda key: one(key, states)["params"])(keys)
    return params


def features(config: Config, params: Params, media, dtype, remat: bool) -> interleaved.Features:
    """The features of every entry of each group's table, cell by cell."""
    groups = media["pixels"].shape[0]
    pixels, where, extent = (
        media[name].reshape(-1, *media[name].shape[2:]) for name in ("pixels", "where", "extent")
    )
    tower = native.Tower(config.vision, dtype, remat)
    own = {"params": params["vision"]}
    states, deep = tower.apply(own, layers.shard_rows(pixels), where, extent)
    values = _merger(config, dtype).apply({"params": params["projector"]}, states)  # [X, L, D]
    values = values.reshape(groups, -1, values.shape[-1])
    if deep is None:
        return interleaved.Features(values)
    late = _merger(config, dtype, late=True)
    deep = jax.vmap(lambda p, x: late.apply({"params": p}, x))(params["deep"], deep)
    return interleaved.Features(values, deep.reshape(deep.shape[0], *values.shape))


def tower_map(c: native.Config) -> Iterator[weights.Weight]:
    """The tensors of the tower."""
    there, here, bias = "visual", "vision", not c.rms
    name, shape = f"{there}.patch_embed.proj", (c.width, *c.patch)
    yield weights.Weight(f"{name}.weight", shape, f"{here}/patch/kernel", (1, 2, 3, 4, 0))
    if c.patch_bias:
        yield weights.Weight(f"{name}.bias", (c.width,), f"{here}/patch/bias", (0,))
    if c.side:
        shape = (c.side**2, c.width)
        yield weights.Weight(f"{there}.pos_embed.weight", shape, f"{here}/position", (0, 1))
    up = (("gate_proj", "gate"), ("up_proj", "up")) if c.gated else (("linear_fc1", "up"),)
    down = "down_proj" if c.gated else "linear_fc2"
    for i in range(c.depth):
        layer, at = f"{there}.blocks.{i}", f"{here}/layers"
        yield from maps.norm(f"{layer}.norm1", c.width, f"{at}/attn_norm", bias, i)
        yield from maps.norm(f"{layer}.norm2", c.width, f"{at}/mlp_norm", bias, i)
        name, path = f"{layer}.attn", f"{at}/attn"
        yield from maps.linear(f"{name}.qkv", 3 * c.width, c.width, f"{path}/qkv", True, i)
        yield from maps.linear(f"{name}.proj", c.width, c.width, f"{path}/o", True, i)
        for theirs, ours in up:
            yield from maps.linear(f"{layer}.mlp.{theirs}", c.mlp, c.width, f"{at}/{ours}", True, i)
        yield from maps.linear(f"{layer}.mlp.{down}", c.width, c.mlp, f"{at}/down", True, i)


def merger_map(
    config: Config, names: tuple[str, str, str], path: str, layer: int | None = None
) -> Iterator[weights.Weight]:
    """The tensors of a merger; `names` of its norm and its two linear layers."""
    c, width = config.vision, config.decoder.width
    inputs = c.grid.merge**2 * c.width
    normed = c.width if layer is None else inputs
    first, up, down = names
    yield from maps.norm(first, normed, f"{path}/norm", not c.rms, layer)
    yield from maps.linear(up, inputs, inputs, f"{path}/up", True, layer)
    yield from maps.linear(down, width, inputs, f"{path}/down", True, layer)


def _merger(config: Config, dtype, late: bool = False) -> native.Merger:
    return native.Merger(config.vision, config.decoder.width, dtype, late)
