"""Which other instance lends its pictures.

A partner has as many pictures as the row and none of them in common. Choosers see all rows at once
but not their order: the same rows in another order find the same partners.
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from rubric_jax.data.corruptions import knobs

_THREADS = 8
_CHUNK = 1024  # rows whose distances to all others exist at a time


class Survey(NamedTuple):
    """The rows of the data."""

    ids: Sequence[str]  # [R]
    hashes: Sequence[tuple[str, ...]]  # [R], of each row's pictures
    load: Callable[[int], list[np.ndarray]]  # pictures of a row, uint8 [H, W, 3]


def swap(survey: Survey, key: str) -> np.ndarray:
    """The next pictures in an order that the key shuffles: a derangement of the distinct ones.

    Returns:
      int64 [R], a row that has the partner's pictures; -1 where there is no partner.
    """
    first = _first(survey)
    order = sorted(first, key=lambda found: _hash(key, *found))
    circles = collections.defaultdict(list)
    for found in order:
        circles[len(found)].append(found)
    partner = {}
    for circle in circles.values():
        for i, found in enumerate(circle):
            others = (other for other in [*circle[i + 1 :], *circle[:i]])
            # Sets of several pictures may overlap; those are passed over.
            other = next((other for other in others if not set(other) & set(found)), None)
            partner[found] = -1 if other is None else first[other]
    partner[()] = first.get((), -1)
    return np.array([partner[found] for found in survey.hashes], np.int64)


def nearest(survey: Survey, key: str, *, embeddings: knobs.File = "") -> np.ndarray:
    """The most similar other pictures.

    Similar is the cosine of the rows' embeddings, or without them the distance of `descriptor`. All
    pairs are compared: R = 50,000 rows take minutes.

    Args:
      embeddings: an .npz file with `ids` [R] (the column `id`) and `embeddings` [R, D].

    Returns:
      int64 [R], the partner; -1 where there is none.

    Raises:
      ValueError: an embeddings file of another form, or without some row.
    """
    if embeddings:
        rows = np.array(sorted(range(len(survey.ids)), key=lambda i: (survey.ids[i], i)), np.int64)
        vectors = _embeddings(embeddings, [survey.ids[i] for i in rows])
        return _spread(rows, _closest(vectors, [survey.hashes[i] for i in rows]))
    first = _first(survey)
    sets = sorted(first)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        vectors = list(pool.map(lambda found: _description(survey.load(first[found])), sets))
    rows = np.array([first[found] for found in sets], np.int64)
    partner = dict(zip(sets, _closest(np.stack(vectors), sets)))
    chosen = [int(partner[found]) for found in survey.hashes]
    return np.array([-1 if i < 0 else rows[i] for i in chosen], np.int64)


def descriptor(image: np.ndarray) -> np.ndarray:
    """A picture in 80 numbers: mean colours of 4 x 4 cells, edge directions of 2 x 2 cells.

    Colours are in [0, 1]; the 8 directions of all cells, weighted by strength, have length 1.
    """
    small = PIL.Image.fromarray(image).resize((32, 32), PIL.Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32) / 255
    colours = pixels.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3))
    dy, dx = np.gradient(pixels.mean(axis=2))
    strength = np.hypot(dx, dy)
    direction = np.floor((np.arctan2(dy, dx) / np.pi + 1) * 4).astype(int) % 8
    edges = [
        np.bincount(direction[cell].ravel(), strength[cell].ravel(), minlength=8)
        for cell in (np.s_[i : i + 16, j : j + 16] for i in (0, 16) for j in (0, 16))
    ]
    edges = np.concatenate(edges)
    return np.concatenate([colours.ravel(), edges / max(np.linalg.norm(edges), 1e-6)])


def _description(pictures: list[np.ndarray]) -> np.ndarray:
    return np.mean([descriptor(image) for image in pictures] or [np.zeros(80)], axis=0)


def _closest(vectors: np.ndarray, sets: Sequence[tuple[str, ...]]) -> np.ndarray:
    """int64 [R]: the closest other row by Euclidean distance of vectors [R, D]; -1 = none."""
    having = collections.defaultdict(list)
    for i, found in enumerate(sets):
        for picture in set(found):
            having[picture].append(i)
    counts, squares = np.array([len(found) for found in sets]), np.sum(vectors**2, axis=1)
    closest = np.arange(len(sets))  # a row without pictures is its own partner
    for start in range(0, len(sets), _CHUNK):
        part = slice(start, start + _CHUNK)
        distances = squares[None] - 2 * vectors[part] @ vectors.T
        distances[counts[part, None] != counts[None]] = np.inf
        for i, found in enumerate(sets[part]):
            distances[i, [j for picture in found for j in having[picture]]] = np.inf
            if found:
                j = int(np.argmin(distances[i]))
                closest[start + i] = j if np.isfinite(distances[i, j]) else -1
    return closest


def _embeddings(path: str, ids: Sequence[str]) -> np.ndarray:
    """Unit vectors float64 [R, D] of these rows."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            known, vectors = arrays["ids"].astype(str), np.asarray(arrays["embeddings"], float)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path}: not an .npz file with `ids` [R] and `embeddings` [R, D] ({error})."
        ) from error
    if vectors.ndim != 2 or known.shape != vectors.shape[:1] or not np.isfinite(vectors).all():
        raise ValueError(
            f"{path}: ids {known.shape} and embeddings {vectors.shape}; they must be [R] and "
            "[R, D], and every number finite."
        )
    place = {ident: i for i, ident in enumerate(known.tolist())}
    absent = [ident for ident in ids if ident not in place]
    if absent:
        raise ValueError(
            f"{path}: no embedding of {len(absent)} of {len(ids)} rows, such as the row with id "
            f"{absent[0]!r}; `ids` must hold the column `id` of all rows."
        )
    found = vectors[[place[ident] for ident in ids]]
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)


def _first(survey: Survey) -> dict[tuple[str, ...], int]:
    """The first row with each distinct set of pictures."""
    first: dict[tuple[str, ...], int] = {}
    for i, found in enumerate(survey.hashes):
        first.setdefault(found, i)
    return first


def _spread(rows: np.ndarray, closest: np.ndarray) -> np.ndarray:
    """From positions among sorted rows to positions among the rows."""
    partner = np.empty(len(rows), np.int64)
    partner[rows] = np.where(closest < 0, -1, rows[closest])
    return partner


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()
