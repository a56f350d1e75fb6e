"""PaliGemma 1 and 2: SigLIP tower, linear projector, Gemma or Gemma 2 decoder.

The prefix (pictures and prompt) sees all of itself; responses are causal. Parameters: vision/...,
projector/..., decoder/... Beyer et al., arXiv:2407.07726; Steiner et al., arXiv:2412.03555.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import transformers
from jax.sharding import PartitionSpec

from rubric_jax import types
from rubric_jax.models import decoder, gemma, interleaved, layers, maps, parsing, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = ((r"projector/kernel", PartitionSpec("fsdp", "tensor")), *interleaved.RULES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: vit.Config
    decoder: decoder.Config
    image_token: int
    logit_cap: float


def build(
    hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    vision, text = config.vision, config.decoder
    projector = 2 * vision.patches * vision.width * text.width
    parts = interleaved.Parts(
        decoder=text,
        features=interleaved.each(functools.partial(features, config)),
        media=interleaved.entries(config.image_token, vision.image, vision.patches),
        blocks=interleaved.whole_prefix,
        logit_cap=config.logit_cap,
        picture_flops=lambda cells: vit.flops(vision) + projector,
    )
    start, spec = functools.partial(init, config), weight_map(config)
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    return interleaved.build(parts, config, start, RULES, spec, **compute)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    f32 = jnp.dtype("float32")
    vision, projector, text = jax.random.split(key, 3)
    return {
        **interleaved.init(config.vision, config.decoder, vision, text),
        "projector": _projector(config, f32).init(
            projector, jnp.zeros((1, 1, config.vision.width))
        )["params"],
    }


def features(config: Config, params: Params, pixels: Array, dtype, remat: bool) -> Array:
    """Pixels [X, H, W, 3] -> projected features [X, patches, D]."""
    x = vit.encode(config.vision, params, pixels, dtype, remat)
    return _projector(config, dtype).apply({"params": params["projector"]}, x)


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    known = parsing.parse(
        transformers.PaliGemmaConfig,
        hf,
        "paligemma",
        decoders=("gemma", "gemma2"),
        towers=(parsing.SIGLIP,),
    )
    text = known.text_config
    if known.projection_dim != text.hidden_size:
        raise ValueError(
            f"config.json has projection_dim {known.projection_dim} and a decoder of width "
            f"{text.hidden_size}; they must be equal."
        )
    return Config(
        vision=parsing.siglip(known.vision_config),
        decoder=gemma.text_config(text, tied=known.tie_word_embeddings),
        image_token=known.image_token_index,
        logit_cap=getattr(text, "final_logit_softcapping", None) or 0.0,
    )


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    name, width = "multi_modal_projector.linear", config.decoder.width
    listed = (
        *maps.vit(config.vision, "vision_tower", "vision"),
        *maps.linear(name, width, config.vision.width, "projector", True),
        *maps.decoder(config.decoder, "language_model", "decoder"),
    )
    return interleaved.weight_map(listed, config.decoder)


def _projector(config: Config, dtype) -> layers.Linear:
    return layers.Linear((config.vision.width,), (config.decoder.width,), dtype, bias=True)
