"""Boxes in a response against those that are right: GIoU, matching, and what they are worth.

A response names boxes as JSON, alone or in a fenced block, with or without text around it:

  [{"bbox_2d": [10, 20, 110, 220], "label": "cup"}]       corners x1 < x2, y1 < y2

Vision-R1, arXiv:2503.18013: boxes are matched one to one by the least sum of
L1(corners) - 1[same label] - GIoU, and v_i is the GIoU of the i-th match.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize

_LIST = re.compile(r"\[\s*\{.*\}\s*\]|\[\s*\]", re.DOTALL)


class Box(NamedTuple):
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2
    label: str = ""


def parse(text: str) -> list[Box] | None:
    """The boxes that a response names, in its order; None where it holds no list of boxes.

    A box whose corners are no four numbers with x1 < x2 and y1 < y2 makes the whole list None.
    """
    found = _LIST.search(text)
    try:
        return read(json.loads(found.group())) if found else None
    except ValueError:
        return None


def read(values: Any) -> list[Box]:
    """Boxes of plain values: {"bbox_2d" (or "box"): [x1, y1, x2, y2], "label": ..} each.

    Raises:
      ValueError: says which is no box.
    """
    if not isinstance(values, list | tuple):
        raise ValueError(f"{values!r} is no list of boxes.")
    boxes = []
    for i, value in enumerate(values):
        corners = value.get("bbox_2d", value.get("box")) if isinstance(value, dict) else None
        numbers = isinstance(corners, list | tuple) and len(corners) == 4
        numbers = numbers and all(
            isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e9 for x in corners
        )
        if not numbers or corners[0] >= corners[2] or corners[1] >= corners[3]:
            raise ValueError(
                f"[{i}]: {value!r} is no box; it must be such as "
                '{"bbox_2d": [10, 20, 110, 220], "label": "cup"}, with x1 < x2 and y1 < y2.'
            )
        boxes.append(Box(tuple(map(float, corners)), str(value.get("label", "")).strip().lower()))
    return boxes


def giou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Generalised IoU of boxes [..., 4], in (-1, 1]: IoU less the empty share of the hull.

    Rezatofighi et al., arXiv:1902.09630
    """
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    inside = np.prod(np.maximum(high - low, 0.0), axis=-1)
    area_a, area_b = (np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (a, b))
    union = area_a + area_b - inside
    hull_low, hull_high = np.minimum(a[..., :2], b[..., :2]), np.maximum(a[..., 2:], b[..., 2:])
    hull = np.prod(hull_high - hull_low, axis=-1)
    return inside / union - (hull - union) / hull


def matched(found: Sequence[Box], right: Sequence[Box]) -> np.ndarray:
    """GIoU of every match [min(found, right)]: as many as the shorter list has."""
    if not found or not right:
        return np.zeros(0)
    a = np.array([box.corners for box in found])[:, None]  # [F, 1, 4]
    b = np.array([box.corners for box in right])[None]  # [1, R, 4]
    overlap = giou(a, b)
    same = np.array([[x.label == y.label for y in right] for x in found])
    pairs = optimize.linear_sum_assignment(np.abs(a - b).sum(axis=-1) - same - overlap)
    return overlap[pairs]


def stepped(value, low: float, high: float):
    """0 below `low`, 1 above `high`, the value itself between."""
    value = np.asarray(value, float)
    return np.where(value < low, 0.0, np.where(value > high, 1.0, value))


def precision(text: str, right: Sequence[Box], *, low: float, high: float) -> float:
    """Mean of the stepped GIoU over the matches, in [0, 1].

    Without a box in the response: 1 if there is none to find, else 0.
    """
    found = parse(text)
    if not found or not right:
        return float(not found and not right)
    return float(np.clip(stepped(matched(found, right), low, high), 0.0, 1.0).mean())


def recall(
    text: str, right: Sequence[Box], *, low: float, high: float, floor: float, full: float
) -> float:
    """The stepped GIoUs over the number of right boxes, stepped again by `floor` and `full`."""
    found = parse(text)
    if not found or not right:
        return float(not found and not right)
    hits = np.clip(stepped(matched(found, right), low, high), 0.0, 1.0).sum()
    return float(stepped(hits / len(right), floor, full))
