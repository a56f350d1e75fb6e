"""Scales: what a judge may say of a criterion, and what it is worth in [0, 1].

scale    a judge says              worth
halves   0, 0.5 (1/2), 1           as it stands
binary   true, false (yes, no)     1, 0
1-5      1, 2, 3, 4, 5             0, 1/4, 1/2, 3/4, 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rubric_jax import config as config_lib


class Scale(NamedTuple):
    levels: Mapping[str, float]  # name of each level, worst first -> its worth in [0, 1]
    spellings: Mapping[str, str]  # other lower-case spellings -> the level's name
    schema: Mapping[str, Any]  # JSON schema of what a judge answers


SCALES: dict[str, Scale] = {
    "halves": Scale(
        {"0": 0.0, "0.5": 0.5, "1": 1.0},
        {"1/2": "0.5", ".5": "0.5"},
        {"type": "number", "enum": [0, 0.5, 1]},
    ),
    "binary": Scale(
        {"false": 0.0, "true": 1.0},
        {"no": "false", "yes": "true", "0": "false", "1": "true"},
        {"type": "boolean"},
    ),
    "1-5": Scale(
        {"1": 0.0, "2": 0.25, "3": 0.5, "4": 0.75, "5": 1.0},
        {f"{i}/5": str(i) for i in range(1, 6)},
        {"type": "integer", "enum": [1, 2, 3, 4, 5]},
    ),
}


def get(name: str) -> Scale:
    if name not in SCALES:
        raise ValueError(f"{name!r} is no scale; it must be {config_lib.one_of(name, SCALES)}")
    return SCALES[name]


def read(name: str, raw: Any) -> float:
    """What `raw`, a number, a text or a truth value, is worth on a scale. In [0, 1].

    Raises:
      ValueError: off the scale. Nothing is rounded or clipped onto it.
    """
    scale = get(name)
    level = _spell(raw)
    level = scale.spellings.get(level, level)
    if level not in scale.levels:
        raise ValueError(f"{raw!r} is off the scale {name} ({', '.join(scale.levels)})")
    return scale.levels[level]


def _spell(raw: Any) -> str | None:
    """The name of a level as it would be spelled: 1.0 -> '1', ' Yes ' -> 'yes', True -> 'true'."""
    if isinstance(raw, bool):  # an int to Python, but no point on a scale of numbers
        return str(raw).lower()
    if isinstance(raw, str):
        text = raw.strip().lower()
        try:
            raw = float(text)
        except ValueError:
            return text
    if not isinstance(raw, int | float) or not math.isfinite(raw):
        return None
    return str(int(raw)) if raw == int(raw) else repr(float(raw))
