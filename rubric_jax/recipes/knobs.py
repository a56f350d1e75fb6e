"""Types of the knobs of recipes, with their ranges, and the check of a config's values."""

from __future__ import annotations

import re
import typing
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

_STRICT = pydantic.ConfigDict(strict=True)  # no "0.15" for a number, no True for 1


def check(name: str, recipe: Callable, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs, as the types of the recipe's signature want them.

    Raises:
      ValueError: a knob of the wrong type or out of range; it names recipe and knob.
    """
    hints = typing.get_type_hints(recipe, include_extras=True)
    checked = {}
    for knob, value in knobs.items():
        try:
            checked[knob] = pydantic.TypeAdapter(hints[knob], config=_STRICT).validate_python(value)
        except pydantic.ValidationError as error:
            raise ValueError(f"recipe {name!r}: {knob} is {value!r}; {_mend(error)}") from None
    return checked


def _mend(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "value_error":
        return f"{first['ctx']['error']}."
    if first["type"] == "literal_error":
        options = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return f"it must be {config_lib.one_of(first['input'], options)}"
    return f"it {first['msg'].removeprefix('Input ')}."
