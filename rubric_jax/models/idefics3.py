"""Idefics3 and SmolVLM: SigLIP tower, squares of patches through one linear layer, Llama decoder.

A picture is cut into tiles, with the whole of it behind them; rows and columns are told by tokens
of text. Parameters: vision/..., projector/kernel, decoder/...
Laurençon et al., arXiv:2408.12637; Marafioti et al., arXiv:2504.05299.

The towers of transformers find a patch's position from the fraction of the tile that lies before
it. Tiles are whole here (see data/forms.py), so that patch i of a row has position i.
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
from rubric_jax.models import decoder, interleaved, layers, maps, parsing, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = ((r"projector/kernel", PartitionSpec("fsdp", "tensor")), *interleaved.RULES)
SPELLINGS = (
    (r"^model\.text_model\.", "language_model.model."),
    (r"^model\.vision_model\.", "vision_tower."),
    (r"^model\.connector\.", "connector."),
)
MODULES = (
    (r"^language_model\.model\.", "model.text_model."),
    (r"^vision_tower\.", "model.vision_model."),
    (r"^connector\.", "model.connector."),
)
# The tower's own model_type, as transformers 5 and as it was first published.
TOWERS = ("idefics3_vision", "smolvlm_vision", "idefics3", "smolvlm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: vit.Config
    decoder: decoder.Config
    square: int  # patches on a side of what becomes one feature
    image_token: int

    @property
    def tokens_per_tile(self) -> int:
        return self.vision.patches // self.square**2

    @property
    def inputs(self) -> int:
        """Numbers that become one feature."""
        return self.vision.width * self.square**2


def build(
    hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    vision, text, tokens = config.vision, config.decoder, config.tokens_per_tile
    tile = vit.flops(vision) + 2 * tokens * config.inputs * text.width
    parts = interleaved.Parts(
        decoder=text,
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
    projector, x = _projector(config, jnp.dtype("float32")), jnp.zeros((1, 1, config.inputs))
    return {
        **interleaved.init(config.vision, config.decoder, vision, text),
        "projector": projector.init(between, x)["params"],
    }


def features(config: Config, params: Params, pixels: Array, dtype, remat: bool) -> Array:
    """Pixels [X, H, W, 3] -> projected features [X, tokens_per_tile, D]."""
    x = vit.fold(vit.encode(config.vision, params, pixels, dtype, remat), config.square)
    return _projector(config, dtype).apply({"params": params["projector"]}, x)


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    smol = hf.get("model_type") == "smolvlm"
    known = parsing.parse(
        transformers.SmolVLMConfig if smol else transformers.Idefics3Config,
        hf,
        "idefics3",
        decoders=("llama",),
        towers=TOWERS,
    )
    vision, square = parsing.siglip(known.vision_config), known.scale_factor
    side = vision.image // vision.patch
    if side % square:
        raise ValueError(
            f"config.json has scale_factor {square} for {side} x {side} patches; it must divide "
            f"{side}."
        )
    return Config(
        vision=vision,
        decoder=parsing.llama(known.text_config, tied=known.tie_word_embeddings),
        square=square,
        image_token=known.image_token_id,
    )


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    name = "connector.modality_projection.proj"
    listed = (
        *maps.vit(config.vision, "vision_tower", "vision"),
        *maps.linear(name, config.decoder.width, config.inputs, "projector", False),
        *maps.decoder(config.decoder, "language_model", "decoder"),
    )
    spec = interleaved.weight_map(listed, config.decoder)
    return spec._replace(spellings=(*SPELLINGS, *spec.spellings), modules=(*MODULES, *spec.modules))


def _projector(config: Config, dtype) -> layers.Linear:
    return layers.Linear((config.inputs,), (config.decoder.width,), dtype)
