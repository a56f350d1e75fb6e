"""LLaVA (`LlavaForConditionalGeneration`): CLIP vision tower, two-layer projector, Llama decoder.

Parameters: vision/..., projector/{up,down}/..., decoder/{embedding,layers,norm,unembedding}.
Liu et al., arXiv:2304.08485 and arXiv:2310.03744.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import transformers
from huggingface_hub import errors
from jax.sharding import PartitionSpec

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.models import decoder, interleaved, layers, maps, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = (
    (r"projector/up/kernel", PartitionSpec("fsdp", "tensor")),
    (r"projector/down/kernel", PartitionSpec("tensor", "fsdp")),
    (r"projector/up/bias", PartitionSpec("tensor")),
    *interleaved.RULES,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: vit.Config
    decoder: decoder.Config
    feature_layers: tuple[int, ...]  # after how many vision layers features are taken
    keep_class_token: bool
    projector_activation: str
    projector_bias: bool
    image_token: int

    @property
    def tokens_per_image(self) -> int:
        return self.vision.patches + int(self.keep_class_token)


class Projector(nn.Module):
    config: Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        width, inputs = c.decoder.width, c.vision.width * len(c.feature_layers)
        linear = functools.partial(layers.Linear, dtype=self.dtype, bias=c.projector_bias)
        x = linear((inputs,), (width,), name="up")(x)
        x = layers.ACTIVATIONS[c.projector_activation](x)
        return linear((width,), (width,), name="down")(x)


def build(hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none") -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    width, wide = config.decoder.width, config.vision.width * len(config.feature_layers)
    parts = interleaved.Parts(
        decoder=config.decoder,
        vision=config.vision,
        features=functools.partial(features, config),
        image_token=config.image_token,
        tokens_per_image=config.tokens_per_image,
        projector_flops=config.tokens_per_image * 2 * width * (wide + width),
    )
    start, spec = functools.partial(init, config), weight_map(config)
    return interleaved.build(parts, config, start, RULES, spec, dtype=dtype, remat=remat)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    vision, projector, text = jax.random.split(key, 3)
    tokens = jnp.zeros((1, 1, config.vision.width * len(config.feature_layers)))
    depths = config.feature_layers
    return {
        **interleaved.init(config.vision, config.decoder, vision, text, depths),
        "projector": Projector(config, jnp.dtype("float32")).init(projector, tokens)["params"],
    }


def features(config: Config, params: Params, pixels: Array, dtype, remat: bool) -> Array:
    """Pixels [X, H, W, 3] -> projected features [X, tokens_per_image, D]."""
    deepest = max(config.feature_layers)
    tower = vit.ViT(
        dataclasses.replace(config.vision, depth=deepest), config.feature_layers, dtype, remat
    )
    own = dict(params["vision"])
    own["layers"] = jax.tree.map(lambda p: p[:deepest], own["layers"])
    x = tower.apply({"params": own}, layers.shard_rows(pixels))  # [X, 1 + patches, width]
    x = x if config.keep_class_token else x[:, 1:]
    return Projector(config, dtype).apply({"params": params["projector"]}, x)


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    kind = hf.get("model_type")
    text_kind = hf.get("text_config", {}).get("model_type", "llama")
    vision_kind = hf.get("vision_config", {}).get("model_type", "clip_vision_model")
    if (kind, text_kind, vision_kind) != ("llava", "llama", "clip_vision_model"):
        raise ValueError(
            f"config.json describes {kind!r} (text {text_kind!r}, vision {vision_kind!r}); the "
            "family 'llava' reads 'llava' with a 'llama' decoder and a 'clip_vision_model' tower."
        )
    try:
        known = transformers.LlavaConfig.from_dict(dict(hf))
    except errors.StrictDataclassError as error:
        raise ValueError(f"config.json is not a valid LLaVA configuration: {error}") from error
    text, vision = known.text_config, known.vision_config
    feature_layers = known.vision_feature_layer
    if isinstance(feature_layers, int):
        feature_layers = (feature_layers,)
    depth = vision.num_hidden_layers
    after = tuple(k if k >= 0 else depth + 1 + k for k in feature_layers)
    if not all(0 < k <= depth for k in after):
        raise ValueError(f"vision_feature_layer {feature_layers} is outside the {depth} layers.")
    for name in (vision.hidden_act, text.hidden_act, known.projector_hidden_act):
        if name not in layers.ACTIVATIONS:
            known_names = config_lib.one_of(name, layers.ACTIVATIONS)
            raise ValueError(f"config.json asks for activation {name!r}; it must be {known_names}")
    return Config(
        vision=vit.Config(
            image=vision.image_size,
            patch=vision.patch_size,
            channels=vision.num_channels,
            width=vision.hidden_size,
            depth=depth,
            heads=vision.num_attention_heads,
            mlp=vision.intermediate_size,
            activation=vision.hidden_act,
            norm_eps=vision.layer_norm_eps,
        ),
        decoder=_text_config(text, tied=known.tie_word_embeddings),
        feature_layers=after,
        keep_class_token=known.vision_feature_select_strategy == "full",
        projector_activation=known.projector_hidden_act,
        projector_bias=known.multimodal_projector_bias,
        image_token=known.image_token_index,
    )


def _text_config(text, *, tied: bool) -> decoder.Config:
    head_size = text.head_dim or text.hidden_size // text.num_attention_heads
    rope = text.rope_parameters
    return decoder.Config(
        vocab=text.vocab_size,
        width=text.hidden_size,
        depth=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_size=head_size,
        mlp=text.intermediate_size,
        activation=text.hidden_act,
        norm_eps=text.rms_norm_eps,
        frequencies=decoder.frequencies(head_size, rope["rope_theta"], rope),
        attention_bias=text.attention_bias,
        mlp_bias=text.mlp_bias,
        tied=tied,
    )


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    width, bias = config.decoder.width, config.projector_bias
    inputs = config.vision.width * len(config.feature_layers)
    name = "multi_modal_projector.linear"
    listed = (
        *maps.vit(config.vision, "vision_tower", "vision"),
        *maps.linear(f"{name}_1", width, inputs, "projector/up", bias),
        *maps.linear(f"{name}_2", width, width, "projector/down", bias),
        *maps.decoder(config.decoder, "language_model", "decoder"),
    )
    return interleaved.weight_map(listed, config.decoder)
