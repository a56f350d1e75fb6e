"""What corruptions read of a row beside its pictures.

boxes  [x0, y0, x1, y1], a list of such boxes, or nothing ([] or null); a row with several pictures
       has a list with one of these per picture
maps   one map per picture, as paths, bytes or PIL images: grey pictures, white where the map is 1,
       or .npy files of floats [h, w] in [0, 1]
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from rubric_jax.data import images, processing

_NUMPY = b"\x93NUMPY"


def boxes(column: str, value: Any, count: int) -> list[np.ndarray]:
    """Per picture float [n, 4]. FieldError if the value is of another form."""
    if count == 1:
        return [_boxes(column, value)]
    if not isinstance(value, list) or len(value) != count:
        raise processing.FieldError(
            column,
            f"is {value!r}; a row with {count} pictures needs a list of {count}, each a box "
            "[x0, y0, x1, y1], a list of boxes, or null.",
        )
    return [_boxes(column, item) for item in value]


def maps(column: str, refs: tuple[images.Ref, ...], count: int) -> list[np.ndarray]:
    """Per picture float32 [h, w] in [0, 1]. FieldError if they are of another form."""
    if len(refs) != count:
        raise processing.FieldError(
            column, f"holds {len(refs)} map(s) for {count} picture(s); there must be one for each."
        )
    found = []
    for number, ref in enumerate(refs, 1):
        try:
            found.append(_map(images.read(ref)))
        except ValueError as error:
            raise processing.FieldError(column, f"map {number}: {error}") from error
    return found


def _boxes(column: str, value: Any) -> np.ndarray:
    value = [value] if isinstance(value, list) and value and _is_number(value[0]) else value
    for box in value if isinstance(value, list) else [] if value is None else [value]:
        numbers = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))
        if not numbers or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
            raise processing.FieldError(
                column,
                f"holds {box!r}; a box is [x0, y0, x1, y1] with 0 <= x0 < x1 and 0 <= y0 < y1.",
            )
    return np.array(value or [], float).reshape(-1, 4)


def _is_number(value: Any) -> bool:
    finite = isinstance(value, int | float) and abs(value) < float("inf")
    return finite and not isinstance(value, bool)


def _map(data: bytes) -> np.ndarray:
    if data.startswith(_NUMPY):
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if found.ndim != 2 or not found.size or not (np.min(found) >= 0 and np.max(found) <= 1):
            raise ValueError(
                f"an array {found.shape} of {found.dtype}; a map is [h, w] with numbers in [0, 1]."
            )
        return found.astype(np.float32)
    images.check(data, np.iinfo(np.int64).max)
    return np.asarray(images.decode(data).convert("L"), np.float32) / 255
