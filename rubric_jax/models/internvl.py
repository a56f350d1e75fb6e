"""InternVL 3 in the layout of transformers: InternViT tower, projector, Qwen2 or Qwen3 decoder.

A picture is cut into tiles, with the whole of it behind them; each gives as many features as it has
squares of patches. Parameters: vision/..., projector/{norm,up,down}/..., decoder/...
Zhu et al., arXiv:2504.10479.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import transformers

from rubric_jax import types
from rubric_jax.models import decoder, interleaved, maps, parsing, projector, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = projector.RULES
# transformers fixes these, whatever layer_norm_eps says.
_QUERY_KEY_EPS = 1e-6
_PROJECTOR_EPS = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: vit.Config
    decoder: decoder.Config
    projector: projector.Config
    square: int  # patches on a side of what becomes one feature
    image_token: int

    @property
    def tokens_per_tile(self) -> int:
        return self.vision.patches // self.square**2


def build(
    hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    vision, tokens = config.vision, config.tokens_per_tile
    tile = vit.flops(vision) + projector.flops(config.projector, tokens)
    parts = interleaved.Parts(
        decoder=config.decoder,
        features=interleaved.each(functools.partial(features, config)),
        media=interleaved.entries(config.image_token, vision.image, tokens),
        picture_flops=lambda cells: tile,
    )
    start, spec = functools.partial(init, config), weight_map(config)
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    return interleaved.build(parts, config, start, RULES, spec, **compute)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    vision, between, text = jax.random.split(key, 3)
    return {
        **interleaved.init(config.vision, config.decoder, vision, text),
        "projector": projector.init(config.projector, between),
    }


def features(config: Config, params: Params, pixels: Array, dtype, remat: bool) -> Array:
    """Pixels [X, H, W, 3] -> projected features [X, tokens_per_tile, D]."""
    x = vit.encode(config.vision, params, pixels, dtype, remat)
    x = vit.fold(x[:, 1:], config.square)  # without the class token
    return projector.apply(config.projector, params, x, dtype)


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    known = parsing.parse(
        transformers.InternVLConfig,
        hf,
        "internvl",
        decoders=("qwen2", "qwen3"),
        towers=("internvl_vision",),
    )
    chosen = (known.vision_feature_layer, known.vision_feature_select_strategy)
    if chosen != (-1, "default"):
        raise ValueError(
            f"config.json takes features from layer {chosen[0]} by the strategy {chosen[1]!r} "
            "(vision_feature_layer, vision_feature_select_strategy); it must be -1 by 'default'."
        )
    vision, text = known.vision_config, known.text_config
    tower = parsing.tower(
        vision,
        patch_bias=True,
        pre_norm=False,
        post_norm=not vision.use_mean_pooling,
        rms=vision.norm_type == "rms_norm",
        attention_bias=vision.attention_bias,
        query_key_eps=_QUERY_KEY_EPS if vision.use_qk_norm else 0.0,
        layer_scale=True,
    )
    square, side = round(1 / known.downsample_ratio), tower.image // tower.patch
    if square * known.downsample_ratio != 1 or side % square:
        raise ValueError(
            f"config.json has downsample_ratio {known.downsample_ratio} for {side} x {side} "
            f"patches; it must be one over a number that divides {side}."
        )
    return Config(
        vision=tower,
        # transformers 4 left it to the decoder; transformers 5 always writes it.
        decoder=parsing.llama(text, tied=hf.get("tie_word_embeddings", text.tie_word_embeddings)),
        projector=projector.Config(
            inputs=tower.width * square**2,
            width=text.hidden_size,
            activation=parsing.activation(known.projector_hidden_act),
            norm_eps=_PROJECTOR_EPS,
        ),
        square=square,
        image_token=known.image_token_id,
    )


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    listed = (
        *_tower(config.vision, "vision_tower", "vision"),
        *projector.tensors(config.projector),
        *maps.decoder(config.decoder, "language_model", "decoder"),
    )
    return interleaved.weight_map(listed, config.decoder)


def _tower(c: vit.Config, there: str, here: str) -> Iterator[weights.Weight]:
    """InternViT under the checkpoint prefix `there`, as the parameters `here`."""
    width, embed = c.width, f"{there}.embeddings"
    name, shape = f"{embed}.patch_embeddings.projection", (width, c.channels, c.patch, c.patch)
    yield weights.Weight(f"{embed}.cls_token", (1, 1, width), f"{here}/class_token", (0, 1, 2))
    yield weights.Weight(f"{name}.weight", shape, f"{here}/patch/kernel", (2, 3, 1, 0))
    yield weights.Weight(f"{name}.bias", (width,), f"{here}/patch/bias", (0,))
    name, shape = f"{embed}.position_embeddings", (1, c.tokens, width)
    yield weights.Weight(name, shape, f"{here}/position", (0, 1, 2))
    if c.post_norm:
        yield from maps.norm(f"{there}.layernorm", width, f"{here}/post_norm", True)
    for i in range(c.depth):
        layer, at = f"{there}.encoder.layer.{i}", f"{here}/layers"
        for ours in "qkv":
            name, path = f"{layer}.attention.{ours}_proj", f"{at}/attn/{ours}"
            yield from maps.linear(name, width, width, path, c.attention_bias, i)
            if c.query_key_eps and ours != "v":
                name = f"{layer}.attention.{ours}_norm"
                yield from maps.norm(name, width, f"{path}_norm", False, i)
        name = f"{layer}.attention.projection_layer"
        yield from maps.linear(name, width, width, f"{at}/attn/o", True, i)
        yield from maps.linear(f"{layer}.mlp.fc1", c.mlp, width, f"{at}/up", True, i)
        yield from maps.linear(f"{layer}.mlp.fc2", width, c.mlp, f"{at}/down", True, i)
        for theirs, number, ours in (("before", 1, "attn"), ("after", 2, "mlp")):
            name = f"{layer}.layernorm_{theirs}"
            yield from maps.norm(name, width, f"{at}/{ours}_norm", not c.rms, i)
            name = f"{layer}.lambda_{number}"
            yield weights.Weight(name, (width,), f"{at}/{ours}_gain/scale", (0,), i)
