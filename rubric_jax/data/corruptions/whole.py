"""Corruptions of the whole picture: less detail, a part of it, or nothing."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageFilter

from rubric_jax.data.corruptions import knobs


def blur(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    radius: knobs.Radius,
    side: knobs.Side = 336,
) -> list[np.ndarray]:
    """Gaussian blur; `radius` is its standard deviation in pixels."""
    blurred = []
    for image in images:
        scale = min(image.shape[:2]) / side if side else 1.0
        kernel = PIL.ImageFilter.GaussianBlur(radius * scale)
        blurred.append(np.asarray(PIL.Image.fromarray(image).filter(kernel)))
    return blurred


def crop(
    images: list[np.ndarray], rng: np.random.Generator, *, share: knobs.Shares = (0.01, 0.2)
) -> list[np.ndarray]:
    """Keeps a random box of a random share of the area, and enlarges it to the picture's size.

    The default keeps up to a fifth, as mDPO (arXiv:2406.11839).
    """
    cropped = []
    for image in images:
        top, left, bottom, right = box(rng, image, rng.uniform(*share))
        part = PIL.Image.fromarray(image[top:bottom, left:right])
        size = (image.shape[1], image.shape[0])
        cropped.append(np.asarray(part.resize(size, PIL.Image.Resampling.BILINEAR)))
    return cropped


def black(images: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Black pictures; their placeholders stay."""
    return [np.zeros_like(image) for image in images]


def drop(images: list[np.ndarray], rng: np.random.Generator) -> list[None]:
    """No pictures; their placeholders leave the prompt too."""
    return [None] * len(images)


def box(rng: np.random.Generator, image: np.ndarray, share: float) -> tuple[int, int, int, int]:
    """A random box of a share of the area, with the picture's proportions.

    Returns (top, left, bottom, right) in pixels; at least one pixel.
    """
    edges = [max(1, round(edge * share**0.5)) for edge in image.shape[:2]]
    top, left = (
        int(rng.integers(0, edge - size + 1)) for edge, size in zip(image.shape[:2], edges)
    )
    return top, left, top + edges[0], left + edges[1]
