"""Corruptions of the order and number of several pictures, such as the frames of a clip.

With `groups`, frames are first cut into so many runs of about equal length, which then move, go or
turn black as a whole (TEMPLE). A row with a single picture or group stays as it is and is counted.
"""

from __future__ import annotations

import numpy as np

from rubric_jax.data.corruptions import knobs


def frame_shuffle(
    images: list[np.ndarray], rng: np.random.Generator, *, groups: knobs.Groups = 0
) -> list[np.ndarray]:
    """Another order than the given one, all of them equally likely."""
    runs = _runs(images, groups)
    order = np.arange(len(runs))
    while len(runs) > 1 and np.array_equal(order, np.arange(len(runs))):
        order = rng.permutation(len(runs))
    return [images[i] for run in order for i in runs[run]]


def frame_reverse(
    images: list[np.ndarray], rng: np.random.Generator, *, groups: knobs.Groups = 0
) -> list[np.ndarray]:
    """The order turned round; inside a group it stays."""
    return [images[i] for run in reversed(_runs(images, groups)) for i in run]


def frame_drop(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    share: knobs.Share = 0.5,
    groups: knobs.Groups = 0,
) -> list[np.ndarray | None]:
    """Leaves out a share of the frames, at least one and never all; placeholders go with them."""
    gone = _drawn(images, rng, share, groups)
    return [None if i in gone else image for i, image in enumerate(images)]


def frame_mask(
    images: list[np.ndarray],
    rng: np.random.Generator,
    *,
    share: knobs.Share = 0.5,
    groups: knobs.Groups = 0,
) -> list[np.ndarray]:
    """Blackens a share of the frames, at least one and never all."""
    gone = _drawn(images, rng, share, groups)
    return [np.zeros_like(image) if i in gone else image for i, image in enumerate(images)]


def _drawn(images, rng, share: float, groups: int) -> set[int]:
    runs = _runs(images, groups)
    count = min(max(round(share * len(runs)), 1), len(runs) - 1)
    return {int(i) for run in rng.permutation(len(runs))[: max(count, 0)] for i in runs[run]}


def _runs(images, groups: int) -> list[np.ndarray]:
    count = min(groups or len(images), len(images))
    return np.array_split(np.arange(len(images)), count) if count else []
