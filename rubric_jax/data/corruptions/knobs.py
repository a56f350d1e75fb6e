"""Types of the knobs of corruptions, with their ranges."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import numpy as np
import pydantic


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1] <= 1:
        raise ValueError("it must be (least, most) with 0 < least <= most <= 1")
    return pair


def _fill(value: int | str) -> int | str:
    if value != "mean" and not (isinstance(value, int) and 0 <= value <= 255):
        raise ValueError("it must be 'mean' or a grey level from 0 to 255")
    return value


def _exists(path: str) -> str:
    if path and not os.path.isfile(path):
        raise ValueError("there is no such file")
    return path


Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Shares = Annotated[
    tuple[float, float], pydantic.Field(strict=False), pydantic.AfterValidator(_ordered)
]
Deviation = Annotated[float, pydantic.Field(gt=0, le=4)]  # 1 = the whole range of grey levels
Radius = Annotated[float, pydantic.Field(gt=0, le=1000)]
DiffusionStep = Annotated[int, pydantic.Field(ge=0, le=999)]
Schedule = Literal["sigmoid", "linear"]
# Sizes are those of a picture whose shorter edge is `side` pixels, as the model sees it; 0 = sizes
# are pixels of the picture itself.
Side = Annotated[int, pydantic.Field(ge=0)]
Positive = Annotated[int, pydantic.Field(ge=1)]
Groups = Annotated[int, pydantic.Field(ge=0)]  # 0 = every frame is a group
Fill = Annotated[int | str, pydantic.AfterValidator(_fill)]  # "mean" = that of the picture
Units = Literal["pixels", "shares"]
File = Annotated[str, "file", pydantic.AfterValidator(_exists)]  # its content counts

# Given by the name of a column, read as what the row holds there (see inputs.py).
Boxes = Annotated[list[np.ndarray], "boxes"]  # per picture float [n, 4]
Maps = Annotated[list[np.ndarray], "maps"]  # per picture float32 [h, w], in [0, 1]
COLUMNS = ("boxes", "maps")
