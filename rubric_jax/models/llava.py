"""LLaVA (`LlavaForConditionalGeneration`): CLIP vision tower, two-layer projector, Llama decoder.

Parameters: vision/..., projector/{up,down}/..., decoder/{embedding,layers,norm,unembedding}.
Liu et al., arXiv:2304.08485 and arXiv:2310.03744.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import transformers

from rubric_jax import types
from rubric_jax.models import decoder, interleaved, maps, parsing, projector, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = projector.RULES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: vit.Config
    decoder: decoder.Config
    projector: projector.Config
    feature_layers: tuple[int, ...]  # after how many vision layers features are taken
    keep_class_token: bool
    image_token: int

    @property
    def tokens_per_image(self) -> int:
        return self.vision.patches + int(self.keep_class_token)


def build(
    hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    tokens = config.tokens_per_image
    parts = interleaved.Parts(
        decoder=config.decoder,
        features=interleaved.each(functools.partial(features, config)),
        media=interleaved.entries(config.image_token, config.vision.image, tokens),
        picture_flops=functools.partial(flops, config),
    )
    start, spec = functools.partial(init, config), weight_map(config)
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    return interleaved.build(parts, config, start, RULES, spec, **compute)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    vision, between, text = jax.random.split(key, 3)
    depths = config.feature_layers
    return {
        **interleaved.init(config.vision, config.decoder, vision, text, depths),
        "projector": projector.init(config.projector, between),
    }


def features(config: Config, params: Params, pixels: Array, dtype, remat: bool) -> Array:
    """Pixels [X, H, W, 3] -> projected features [X, tokens_per_image, D]."""
    x = vit.encode(config.vision, params, pixels, dtype, remat, config.feature_layers)
    x = x if config.keep_class_token else x[:, 1:]
    return projector.apply(config.projector, params, x, dtype)


def flops(config: Config, cells: float) -> float:
    """Of one entry of `features`."""
    between = projector.flops(config.projector, config.tokens_per_image)
    return vit.flops(config.vision) + between


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    return of_parsed(
        parsing.parse(
            transformers.LlavaConfig, hf, "llava", decoders=("llama",), towers=(parsing.CLIP,)
        )
    )


def of_parsed(known) -> Config:
    """The part of a config.json that LLaVA and LLaVA-NeXT share."""
    feature_layers = known.vision_feature_layer
    if isinstance(feature_layers, int):
        feature_layers = (feature_layers,)
    vision, text = parsing.tower(known.vision_config), known.text_config
    after = tuple(k if k >= 0 else vision.depth + 1 + k for k in feature_layers)
    if not all(0 < k <= vision.depth for k in after):
        raise ValueError(
            f"vision_feature_layer {feature_layers} is outside the {vision.depth} layers."
        )
    return Config(
        vision=vision,
        decoder=parsing.llama(text, tied=known.tie_word_embeddings),
        projector=projector.Config(
            inputs=vision.width * len(after),
            width=text.hidden_size,
            activation=parsing.activation(known.projector_hidden_act),
            bias=known.multimodal_projector_bias,
        ),
        feature_layers=after,
        keep_class_token=known.vision_feature_select_strategy == "full",
        image_token=known.image_token_index,
    )


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    listed = (
        *maps.vit(config.vision, "vision_tower", "vision"),
        *projector.tensors(config.projector),
        *maps.decoder(config.decoder, "language_model", "decoder"),
    )
    return interleaved.weight_map(listed, config.decoder)
