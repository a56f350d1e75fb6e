"""What image processors of transformers give, as arrays with one meaning for all families."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Form(NamedTuple):
    """How a family's pictures look. Picklable."""

    # What the image processor gave for one picture -> its pixels, float32.
    pixels: Callable[[Mapping[str, Any]], np.ndarray]
    # Shape of these pixels -> (entries, cells) of the picture; see types.Picture.
    extent: Callable[[tuple[int, ...]], tuple[int, int]]
    # The pixels of a video's frames -> those of the video; None where the family has no time.
    video: Callable[[list[np.ndarray]], np.ndarray] | None = None
    together: int = 1  # frames that one entry of a video takes in


def _whole(found: Mapping[str, Any]) -> np.ndarray:
    """[H, W, 3]."""
    return np.moveaxis(found["pixel_values"][0], 0, -1)


def _one(shape: tuple[int, ...]) -> tuple[int, int]:
    return 1, 1


def _tiles(found: Mapping[str, Any]) -> np.ndarray:
    """[n, H, W, 3], in the order of their placeholders."""
    mask = found.get("pixel_attention_mask")
    if mask is not None and not np.all(mask):
        raise ValueError(
            "The image processor pads tiles to one size, which is not read. Leave do_resize true, "
            "and let max_image_size in the processor's configuration be what the tower reads."
        )
    tiles = found["pixel_values"]  # [n, 3, H, W], or [1, n, 3, H, W]
    return np.moveaxis(tiles.reshape(-1, *tiles.shape[-3:]), 1, -1)


def _each(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], 1


def _cells(merge: int, found: Mapping[str, Any]) -> np.ndarray:
    """[t, h, w, merge * merge, values]: cells of merge x merge patches."""
    frames, rows, columns = np.asarray(found["image_grid_thw"][0])
    patches = np.asarray(found["pixel_values"])
    return patches.reshape(frames, rows // merge, columns // merge, merge**2, -1)


def _frames(window: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """A frame is an entry, its cells in whole windows; see models/grids.py."""
    rows, columns = (-(-size // window) for size in shape[1:3])
    return shape[0], rows * columns * window**2


def _video(together: int, frames: list[np.ndarray]) -> np.ndarray:
    """[t, h, w, merge * merge, values]: the last frame fills up, as in transformers.

    A patch of a still holds it `together` times, one after the other within each channel.
    """
    frames = [*frames, *frames[-1:] * (-len(frames) % together)]
    found = np.concatenate(frames)  # [n, h, w, merge * merge, values]
    found = found.reshape(
        -1, together, *found.shape[1:4], 3, together, found.shape[4] // 3 // together
    )
    found = np.moveaxis(found[..., 0, :], 1, -2)  # [t, h, w, merge * merge, 3, together, ..]
    return found.reshape(*found.shape[:4], -1)


def _native(config: Mapping[str, Any], window: int) -> Form:
    """`window`: pixels on a side, where config.json does not say."""
    vision = config.get("vision_config", {})
    merge = vision.get("spatial_merge_size", 2)
    cells = vision.get("window_size", window) // merge // vision.get("patch_size", 14)
    together = vision.get("temporal_patch_size", 2)
    return Form(
        pixels=functools.partial(_cells, merge),
        extent=functools.partial(_frames, max(cells, 1)),
        video=functools.partial(_video, together),
        together=together,
    )


WHOLE = Form(_whole, _one)
TILES = Form(_tiles, _each)

# By the processor class that a checkpoint names; all others give pictures whole.
FORMS = {
    "LlavaNextProcessor": TILES,
    "InternVLProcessor": TILES,
    "Idefics3Processor": TILES,
    "SmolVLMProcessor": TILES,
}


def of(processor: str, config: Mapping[str, Any]) -> Form:
    """The form of a checkpoint's pictures, by its processor class and its config.json."""
    if processor == "Qwen2_5_VLProcessor":
        return _native(config, 112)
    if processor == "Qwen3VLProcessor":
        return _native(config, 0)
    return FORMS.get(processor, WHOLE)


def resize(image_processor, pixels: tuple[int, ...]) -> None:
    """Sets what the sizes of resized pictures lie between."""
    size = dict(image_processor.size)
    if not {"shortest_edge", "longest_edge"} <= size.keys():
        raise ValueError(
            f"pixels (of config.data, or of a judge) is {pixels}, but the image processor of this "
            f"checkpoint makes all pictures {size}; leave it empty."
        )
    check_pixels(pixels)
    image_processor.size = {**size, "shortest_edge": pixels[0], "longest_edge": pixels[1]}


def check_pixels(pixels: tuple[int, ...]) -> None:
    """Raises ValueError for bounds of pictures that are none; () = no bounds."""
    if pixels and (len(pixels) != 2 or not 0 < pixels[0] <= pixels[1]):
        raise ValueError(
            f"pixels (of config.data, or of a judge) is {pixels}; it must be (least, most), "
            "ascending, or empty."
        )
