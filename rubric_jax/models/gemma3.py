"""Gemma 3 with pictures: SigLIP tower, pooling projector, Gemma 3 decoder.

The features of one picture see each other both ways; everything else is causal. Pictures are read
whole: pan-and-scan is off. Parameters: vision/..., projector/{norm,out}/..., decoder/...
Gemma Team, arXiv:2503.19786.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import transformers
from jax.sharding import PartitionSpec

from rubric_jax import types
from rubric_jax.models import decoder, gemma, interleaved, layers, maps, parsing, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = ((r"projector/out/kernel", PartitionSpec("fsdp", "tensor")), *interleaved.RULES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: vit.Config
    decoder: decoder.Config
    image_token: int
    tokens_per_image: int  # a square number


class Projector(nn.Module):
    """[X, patches, width] -> [X, tokens_per_image, D]: means of squares of patches, projected."""

    config: Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        side = math.isqrt(c.tokens_per_image)
        square = c.vision.image // c.vision.patch // side
        x = x.reshape(x.shape[0], side, square, side, square, -1)
        x = jnp.mean(x, axis=(2, 4)).reshape(x.shape[0], side * side, -1)
        x = layers.RMSNorm(c.vision.norm_eps, self.dtype, 1.0, name="norm")(x)
        return layers.Linear((c.vision.width,), (c.decoder.width,), self.dtype, name="out")(x)


def build(
    hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    vision, text = config.vision, config.decoder
    projector = 2 * config.tokens_per_image * vision.width * text.width
    parts = interleaved.Parts(
        decoder=text,
        features=interleaved.each(functools.partial(features, config)),
        media=interleaved.entries(config.image_token, vision.image, config.tokens_per_image),
        blocks=interleaved.each_image,
        picture_flops=lambda cells: vit.flops(vision) + projector,
    )
    start, spec = functools.partial(init, config), weight_map(config)
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    return interleaved.build(parts, config, start, RULES, spec, **compute)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    vision, projector, text = jax.random.split(key, 3)
    tokens = jnp.zeros((1, config.vision.patches, config.vision.width))
    return {
        **interleaved.init(config.vision, config.decoder, vision, text),
        "projector": Projector(config, jnp.dtype("float32")).init(projector, tokens)["params"],
    }


def features(config: Config, params: Params, pixels: Array, dtype, remat: bool) -> Array:
    """Pixels [X, H, W, 3] -> projected features [X, tokens_per_image, D]."""
    x = vit.encode(config.vision, params, pixels, dtype, remat)
    return Projector(config, dtype).apply({"params": params["projector"]}, x)


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    known = parsing.parse(
        transformers.Gemma3Config, hf, "gemma3", decoders=("gemma3_text",), towers=(parsing.SIGLIP,)
    )
    config = Config(
        vision=parsing.siglip(known.vision_config),
        decoder=gemma.text_config(known.text_config, tied=known.tie_word_embeddings),
        image_token=known.image_token_index,
        tokens_per_image=known.mm_tokens_per_image,
    )
    side, patches = math.isqrt(config.tokens_per_image), config.vision.image // config.vision.patch
    if side**2 != config.tokens_per_image or patches % side:
        raise ValueError(
            f"config.json asks for mm_tokens_per_image {config.tokens_per_image} from a grid of "
            f"{patches} x {patches} patches; it must be a square number whose root divides "
            f"{patches}."
        )
    if known.text_config.use_bidirectional_attention:
        raise ValueError("config.json asks for an encoder (use_bidirectional_attention).")
    return config


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    name, shape = "multi_modal_projector", (config.vision.width, config.decoder.width)
    projection = f"{name}.mm_input_projection_weight"
    listed = (
        *maps.vit(config.vision, "vision_tower", "vision"),
        *maps.norm(f"{name}.mm_soft_emb_norm", config.vision.width, "projector/norm", False),
        weights.Weight(projection, shape, "projector/out/kernel", (0, 1)),
        *maps.decoder(config.decoder, "language_model", "decoder"),
    )
    return interleaved.weight_map(listed, config.decoder)
