"""Prompts that state how much each reward axis counts, and the weights that they state.

  config.data.axes = ("correctness", "grounding")
  config.data.weights = {"draw": "dirichlet", "concentration": 1.0, "copies": 4}

  USER: <image> {weights}How many cups?
  USER: <image> Weights: correctness: 0.71, grounding: 0.29. How many cups?    labels [0.71, 0.29]

Every row is prepared `copies` times, each time with weights of its own; they are a function of
seed, number of the row and copy. The statement stands where the prompt says {weights}; messages
that do not say so have it before the text of the last user message. A draw is a function
(rng, copies, axes, *, knobs) -> float64 [copies, A].
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data import processing, reading

MARK = "{weights}"
_ITEMS = ("{axis}", "{weight}")

Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, lt=1)]


def dirichlet(
    rng: np.random.Generator,
    copies: int,
    axes: Sequence[str],
    *,
    concentration: Positive = 1.0,
    least: Share = 0.0,
) -> np.ndarray:
    """Weights that sum to 1: uniform over all such at concentration 1, near equal ones above.

    Args:
      least: of every axis; at most 1 / A. `modpo` needs some on the axis that orders a pair.
    """
    if least * len(axes) > 1:
        raise ValueError(f"least is {least}; {len(axes)} axes leave at most {1 / len(axes):.3g}.")
    drawn = rng.dirichlet(np.full(len(axes), concentration), copies)
    return least + (1 - least * len(axes)) * drawn


def choice(
    rng: np.random.Generator, copies: int, axes: Sequence[str], *, vectors: list | tuple
) -> np.ndarray:
    """Weights out of a list; the copies of a row take different ones while there are any.

    Args:
      vectors: lists of A numbers >= 0, in the order of the axes.
    """
    even = len({len(v) if isinstance(v, list | tuple) else 0 for v in vectors}) == 1
    table = np.asarray(vectors, np.float64) if even else np.zeros((0, 0))
    if table.ndim != 2 or table.shape[1] != len(axes) or not (table >= 0).all():
        raise ValueError(
            f"vectors is {vectors!r}; it must be a list of {len(axes)} numbers >= 0 each, in the "
            f"order {', '.join(axes)}."
        )
    if not table.any(axis=1).all() or not np.isfinite(table).all():
        raise ValueError(f"vectors is {vectors!r}; each needs a finite weight > 0.")
    order = rng.permutation(len(table))
    return table[order[np.arange(copies) % len(table)]]


DRAWS: dict[str, Callable] = {"dirichlet": dirichlet, "choice": choice}


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """Bound settings of `config.data.weights`."""

    draw: str
    knobs: Mapping[str, Any]
    axes: tuple[str, ...]
    copies: int
    seed: int
    digits: int  # decimals of the weights, in the prompt and in the labels
    text: str  # with {weights}
    item: str  # with {axis} and {weight}
    join: str

    def settings(self) -> dict[str, Any]:
        """What the prepared data depend on."""
        return dataclasses.asdict(self)

    def apply(self, row: reading.Row) -> list[tuple[reading.Row, np.ndarray]]:
        """[(the row with its prompts stating weights, float32 [A])], one per copy.

        Raises:
          processing.FieldError: a prompt that does not say where.
        """
        rng = np.random.default_rng((self.seed, row.number))
        drawn = DRAWS[self.draw](rng, self.copies, self.axes, **self.knobs)
        made = []
        for copy, weights in enumerate(rounded(drawn, self.digits)):
            statement = self.state(weights)
            prompts = {
                context: written(row.prompt_field[context], prompt, statement)
                for context, prompt in row.prompts.items()
            }
            name = row.id if self.copies == 1 else f"{row.id}/{copy}"
            changed = dataclasses.replace(row, id=name, prompts=prompts)
            made.append((changed, weights.astype(np.float32)))
        return made

    def state(self, weights: np.ndarray) -> str:
        """The words for a vector of weights [A]."""
        items = [
            self.item.replace("{axis}", axis).replace("{weight}", f"{weight:.{self.digits}f}")
            for axis, weight in zip(self.axes, weights, strict=True)
        ]
        return self.text.replace(MARK, self.join.join(items))


def bind(
    values: Mapping[str, Any], layout: types.Layout, axes: Sequence[str]
) -> Conditioning | None:
    """The settings of `config.data.weights`, checked; None without any.

    Prompts alone (for sampling) are read as they are.

    Raises:
      ValueError: no axes, an unknown draw or knob, or a knob's value.
    """
    where = "config.data.weights"
    if not values or not layout.branches:
        return None
    if not axes:
        raise ValueError(f"{where} weighs reward axes; name them in config.data.axes.")
    given = {name: value for name, value in values.items() if name != "draw"}
    common = {name: given.pop(name) for name in [*given] if name in _COMMON}
    try:
        common = config_lib.check(_common, {**_COMMON, **common}, what="weights")
        function = config_lib.bind(DRAWS, values.get("draw", ""), given, what="draw")
        knobs = config_lib.check(function, given, what=f"draw {values['draw']!r}")
        function(np.random.default_rng(0), 1, axes, **knobs)  # raises where the axes do not suit
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if MARK not in common["text"] or not all(part in common["item"] for part in _ITEMS):
        raise ValueError(
            f"{where}: text must hold {MARK}, and item {' and '.join(_ITEMS)}; they are "
            f"{common['text']!r} and {common['item']!r}."
        )
    return Conditioning(values["draw"], knobs, tuple(axes), **common)


def rounded(weights: np.ndarray, digits: int) -> np.ndarray:
    """Weights [copies, A] of so many decimals, with the sum that theirs rounds to.

    >>> rounded(np.array([[0.333, 0.333, 0.334]]), 1)
    array([[0.3, 0.3, 0.4]])
    """
    units = weights * 10**digits
    floor = np.floor(units + 1e-9)
    left = np.rint(units.sum(axis=1)) - floor.sum(axis=1)  # [copies], units to hand out
    # Those that lost most get one each.
    place = np.argsort(np.argsort(floor - units, axis=1, kind="stable"), axis=1)
    return (floor + (place < left[:, None])) / 10**digits


def written(field: str, prompt: str | list, statement: str) -> str | list:
    """A prompt with the statement in its place."""
    if isinstance(prompt, str):
        if MARK not in prompt:
            raise processing.FieldError(
                field,
                f"does not say where the weights of config.data.weights stand; write {MARK} there.",
            )
        return prompt.replace(MARK, statement)
    if MARK in processing.text_of(prompt):
        return [_texts(message, lambda text: text.replace(MARK, statement)) for message in prompt]
    users = [i for i, message in enumerate(prompt) if message["role"] == "user"]
    if not users:
        raise processing.FieldError(
            field, f"has no user message to state weights in; write {MARK} where they stand."
        )
    once = iter([statement])
    last = _texts(prompt[users[-1]], lambda text: next(once, "") + text)
    if next(once, None) is not None:
        raise processing.FieldError(
            field, f"has no text in its last user message; write {MARK} where the weights stand."
        )
    return [*prompt[: users[-1]], last, *prompt[users[-1] + 1 :]]


def _texts(message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The message with each of its texts changed, in order."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": change(content)}
    blocks = [
        {**block, "text": change(block["text"])}
        if isinstance(block, Mapping) and block.get("type") == "text"
        else block
        for block in content or ()
    ]
    return {**message, "content": blocks}


def _common(
    *,
    copies: Annotated[int, pydantic.Field(ge=1)] = 1,
    seed: Annotated[int, pydantic.Field(ge=0)] = 0,
    digits: Annotated[int, pydantic.Field(ge=0, le=6)] = 2,
    text: str = "Weights: {weights}. ",
    item: str = "{axis}: {weight}",
    join: str = ", ",
):
    """Knobs of every draw."""


_COMMON = {name: p.default for name, p in inspect.signature(_common).parameters.items()}
