"""Types of the knobs of recipes, with their ranges, and the check of a config's values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pydantic

from rubric_jax import config as config_lib


def _one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    if pattern and groups != 1:
        raise ValueError(f"{groups} capturing groups; put exactly one around the answer")
    return pattern


def _two_or_more(lists: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    for words in lists:
        if len({word.lower() for word in words if word.strip()}) < max(2, len(words)):
            raise ValueError(f"{list(words)}: a list needs two or more different words")
    if not lists:
        raise ValueError("no list of words")
    return lists


Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Part = Annotated[float, pydantic.Field(gt=0, le=1)]
Scale = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, pydantic.Field(ge=0)]  # mostly, 0 = no limit
Positive = Annotated[int, pydantic.Field(ge=1)]
Pattern = Annotated[str, pydantic.AfterValidator(_one_group)]  # "" = answers.PATTERN
_Words = Annotated[tuple[str, ...], pydantic.Field(strict=False)]  # a list will do
Slots = Annotated[
    tuple[_Words, ...],
    pydantic.Field(strict=False),
    pydantic.AfterValidator(_two_or_more),
]


def check(name: str, recipe: Callable, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs, as the types of the recipe's signature want them.

    Raises:
      ValueError: a knob of the wrong type or out of range; it names recipe and knob.
    """
    return config_lib.check(recipe, knobs, what=f"recipe {name!r}")
