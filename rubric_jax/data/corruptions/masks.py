"""Parts of a picture painted over with one colour."""

from __future__ import annotations

import numpy as np

from rubric_jax.data.corruptions import knobs, noise, whole


def region_mask(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    boxes: knobs.Boxes,
    units: knobs.Units = "pixels",
    fill: knobs.Fill = "mean",
) -> list[np.ndarray]:
    """Hides the boxes (x0, y0, x1, y1) that the row names; a picture without one stays."""
    masked = []
    for image, found in zip(images, boxes, strict=True):
        height, width = image.shape[:2]
        hidden = np.zeros((height, width), bool)
        scale = np.array([width, height] * 2) if units == "shares" else 1.0
        for x0, y0, x1, y1 in np.rint(found * scale).clip(0).astype(int):
            hidden[y0:y1, x0:x1] = True
        masked.append(_painted(image, hidden, fill))
    return masked


def random_region_mask(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    share: knobs.Shares = (0.3, 0.5),
    fill: knobs.Fill = "mean",
) -> list[np.ndarray]:
    """Hides one random box of a random share of the area."""
    masked = []
    for image in images:
        top, left, bottom, right = whole.box(rng, image, rng.uniform(*share))
        hidden = np.zeros(image.shape[:2], bool)
        hidden[top:bottom, left:right] = True
        masked.append(_painted(image, hidden, fill))
    return masked


def saliency_mask(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    maps: knobs.Maps,
    share: knobs.Share = 0.3,
    fill: knobs.Fill = "mean",
) -> list[np.ndarray]:
    """Hides the share of the pixels where the map is highest."""
    masked = []
    for image, found in zip(images, maps, strict=True):
        heat = noise.fit(found, image)
        hidden = np.zeros(heat.size, bool)
        hidden[np.argsort(-heat, axis=None, kind="stable")[: round(share * heat.size)]] = True
        masked.append(_painted(image, hidden.reshape(heat.shape), fill))
    return masked


def token_mask(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    share: knobs.Share,
    patch: knobs.Positive = 14,
    side: knobs.Side = 336,
    fill: knobs.Fill = "mean",
) -> list[np.ndarray]:
    """Hides a share of the squares that become image tokens.

    With a `side`, squares of `patch` pixels are laid from the edges of the centred square, as a
    processor that shrinks the shorter edge to `side` and crops the centre sees them. With side 0
    they are laid from the top left corner. A patch of 1 hides single pixels.
    """
    masked = []
    for image in images:
        height, width = image.shape[:2]
        short = min(height, width)
        scale = side / short if side else 1.0
        # [H, 1] and [1, W]: which square each pixel's centre lies in
        rows, columns = (
            np.floor((np.arange(edge) + 0.5 - offset) * scale / patch).astype(int)
            for edge, offset in (
                (edge, (edge - short) // 2 if side else 0) for edge in (height, width)
            )
        )
        rows, columns = (np.unique(index, return_inverse=True)[1] for index in (rows, columns))
        grid = (rows.max() + 1, columns.max() + 1)
        hidden = np.zeros(grid[0] * grid[1], bool)
        hidden[rng.permutation(hidden.size)[: round(share * hidden.size)]] = True
        masked.append(_painted(image, hidden.reshape(grid)[rows][:, columns], fill))
    return masked


def _painted(image: np.ndarray, hidden: np.ndarray, fill: int | str) -> np.ndarray:
    """hidden: bool [H, W]."""
    colour = np.rint(image.mean(axis=(0, 1))) if fill == "mean" else fill
    return np.where(hidden[..., None], np.uint8(colour), image)
