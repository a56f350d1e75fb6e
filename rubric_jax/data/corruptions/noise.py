"""Noise on pictures.

Noise has `side` cells along a picture's shorter edge, each of one colour: noise per pixel of a
large picture would average out when the model's processor shrinks it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image

from rubric_jax.data.corruptions import knobs

STEPS = 1000  # of the diffusion
# CLIP's normalisation, in which VCD adds its noise.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def gaussian_noise(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    std: knobs.Deviation,
    side: knobs.Side = 336,
) -> list[np.ndarray]:
    """Adds normal noise; a standard deviation of 1 is the whole range from black to white."""
    return [_bytes(image / np.float32(255) + std * _cells(rng, image, side)) for image in images]


def diffusion_noise(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    step: knobs.DiffusionStep,
    schedule: knobs.Schedule = "sigmoid",
    side: knobs.Side = 336,
) -> list[np.ndarray]:
    """The forward diffusion at `step`: sqrt(a) x + sqrt(1 - a) noise, a = signal(schedule)[step].

    x is normalised as for CLIP; the result is cut to the range of a picture.
    """
    share = signal(schedule)[step]
    return [_bytes(_diffused(image, rng, share, side)) for image in images]


def region_noise(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    maps: knobs.Maps,
    step: knobs.DiffusionStep,
    schedule: knobs.Schedule = "sigmoid",
    side: knobs.Side = 336,
) -> list[np.ndarray]:
    """`diffusion_noise` where the map is 1, the picture where it is 0, a blend between (MMedPO)."""
    share, noisy = signal(schedule)[step], []
    for image, found in zip(images, maps, strict=True):
        heat = fit(found, image)[..., None]
        blend = heat * _diffused(image, rng, share, side) + (1 - heat) * image / np.float32(255)
        noisy.append(_bytes(blend))
    return noisy


def signal(schedule: str) -> np.ndarray:
    """Share of the picture's variance that is left after steps 0 .. 999. float64 [STEPS].

    sigmoid  betas from 1e-5 to 5e-3 along a sigmoid from -6 to 6, as VCD (arXiv:2311.16922)
    linear   betas from 1e-4 to 0.02, as DDPM (arXiv:2006.11239)
    """
    return np.cumprod(1 - _BETAS[schedule])


def fit(found: np.ndarray, image: np.ndarray) -> np.ndarray:
    """A map at the size of a picture. float32 [H, W]."""
    height, width = image.shape[:2]
    if found.shape == (height, width):
        return found
    resized = PIL.Image.fromarray(found).resize((width, height), PIL.Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized, np.float32), 0, 1)


_BETAS = {
    "sigmoid": 1e-5 + (5e-3 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, STEPS))),
    "linear": np.linspace(1e-4, 0.02, STEPS),
}


def _diffused(image: np.ndarray, rng, share: float, side: int) -> np.ndarray:
    normal = (image / np.float32(255) - MEAN) / STD
    noise = _cells(rng, image, side)
    return (np.float32(share**0.5) * normal + np.float32((1 - share) ** 0.5) * noise) * STD + MEAN


def _cells(rng, image: np.ndarray, side: int) -> np.ndarray:
    """Standard normal noise [H, W, 3], one draw per cell and channel."""
    height, width = image.shape[:2]
    short = min(height, width)
    cells = min(side, short) if side else short
    grid = [max(1, round(edge * cells / short)) for edge in (height, width)]
    drawn = rng.standard_normal((*grid, 3), dtype=np.float32)
    rows, columns = (_index(edge, size) for edge, size in zip((height, width), grid))
    return drawn[rows][:, columns]


def _index(edge: int, size: int) -> Sequence[int]:
    return np.arange(edge) * size // edge


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
