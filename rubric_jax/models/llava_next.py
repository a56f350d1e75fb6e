"""LLaVA-NeXT: LLaVA that reads a picture in tiles of any resolution.

  picture, 1000 x 500   entries of the table           what the placeholders read
  +---------------+     0  the picture, made square    all features of 0
  |               |     1  its left half               the features of 1 and 2 row by row across
  +---------------+     2  its right half              both, without those of the border that was
                                                       padded, and a newline behind every row

The newline is a learned vector: one row more of the table of features. Parameters: those of LLaVA,
and newline. Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from jax.sharding import PartitionSpec
from transformers import image_processing_utils

from rubric_jax import types
from rubric_jax.models import interleaved, llava, parsing, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = ((r"newline", PartitionSpec()), *llava.RULES)
SPELLINGS = ((r"^model\.image_newline$", "image_newline"),)
MODULES = ((r"^image_newline$", "model.image_newline"),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(llava.Config):
    resolutions: tuple[tuple[int, int], ...]  # height and width that a picture may be padded to


def build(
    hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none", attention: str = "auto"
) -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    parts = interleaved.Parts(
        decoder=config.decoder,
        features=functools.partial(features, config),
        media=interleaved.Arrangement(
            config.image_token,
            arrange=functools.partial(interleaved.squares, config.vision.image),
            reads=functools.partial(reads, config),
        ),
        picture_flops=functools.partial(llava.flops, config),
    )
    start, spec = functools.partial(init, config), weight_map(config)
    compute = {"dtype": dtype, "remat": remat, "attention": attention}
    return interleaved.build(parts, config, start, RULES, spec, **compute)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    width = config.decoder.width
    newline = jax.random.normal(jax.random.fold_in(key, 0), (width,)) * width**-0.5
    return {**llava.init(config, key), "newline": newline}


def features(config: Config, params: Params, media, dtype, remat: bool):
    """The features of every tile of each group's table, and the newline behind them."""
    values = interleaved.each(functools.partial(llava.features, config))(
        params, media, dtype, remat
    ).values  # [G, F, D]
    newline = params["newline"].astype(values.dtype)
    newline = jnp.broadcast_to(newline, (values.shape[0], 1, values.shape[2]))
    return interleaved.Features(jnp.concatenate([values, newline], axis=1))


def reads(
    config: Config, picture: types.Picture, first: int, images: int, cells: int
) -> np.ndarray:
    """The features that a picture's placeholders read; see interleaved.Arrangement."""
    vision = config.vision
    tile, side = vision.patches, vision.image // vision.patch
    width, height = picture.size
    tall, wide = (
        length // vision.image
        for length in image_processing_utils.select_best_resolution(
            (height, width), list(config.resolutions)
        )
    )
    if picture.entries != 1 + tall * wide:
        raise ValueError(
            f"The image processor cut a picture of {width} x {height} pixels into "
            f"{picture.entries - 1} tiles, config.json (image_grid_pinpoints) into {tall * wide}; "
            "processor and config.json are from different models."
        )
    tiles = first + 1 + np.arange(tall * wide).reshape(tall, 1, wide, 1)
    inside = np.arange(tile).reshape(1, side, 1, side)
    grid = (tiles * tile + inside).reshape(tall * side, wide * side)
    rows, columns = _border(picture.size, grid.shape)
    grid = grid[rows : grid.shape[0] - rows, columns : grid.shape[1] - columns]
    grid = np.pad(grid, ((0, 0), (0, 1)), constant_values=images * tile)  # the newline
    return np.concatenate([first * tile + np.arange(tile), grid.reshape(-1)])


def _border(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns at either edge of a grid of features that show padding alone.

    The picture fills the grid in one direction and is centred in the other. Rounded as in
    transformers: a row more or less would shift all that follows.
    """
    (width, height), (rows, columns) = size, grid
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    known = parsing.parse(
        transformers.LlavaNextConfig,
        hf,
        "llava_next",
        decoders=("llama", "mistral", "qwen2"),
        towers=(parsing.CLIP,),
    )
    base, resolutions = llava.of_parsed(known), known.image_grid_pinpoints
    if base.keep_class_token:
        raise ValueError(
            "config.json keeps the class token (vision_feature_select_strategy 'full'), which has "
            "no place in a grid of tiles; it must be 'default'."
        )
    odd = [size for size in resolutions if any(n % base.vision.image for n in size)]
    if odd:
        raise ValueError(
            f"config.json has image_grid_pinpoints {odd} that are no multiples of the tower's "
            f"image_size {base.vision.image}."
        )
    return Config(**vars(base), resolutions=tuple(map(tuple, resolutions)))


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    spec = llava.weight_map(config)
    newline = weights.Weight("image_newline", (config.decoder.width,), "newline", (0,))
    return spec._replace(
        weights=(*spec.weights, newline),
        spellings=(*SPELLINGS, *spec.spellings),
        modules=(*MODULES, *spec.modules),
    )
