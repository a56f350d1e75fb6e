"""Pictures of a context made from a row's own.

  config.data.branches = ("chosen", "rejected", "chosen@corrupted")
  config.data.contexts = {"corrupted": {"corruption": "diffusion_noise", "step": 500}}

A corruption is a pure function (images, rng, *, knobs) -> images of lists of uint8 [H, W, 3] that
keeps number, sizes and dtype; None in the result is a picture that is left out. `PARTNERS` take the
pictures of another instance; their functions see all rows (partners.py). `then` lists further
corruptions that follow; `seed` (0) is that of the context. `when` is "data" (made once, when the
data are prepared; the default) or "step" (drawn anew in every step, see drawn.py).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data.corruptions import (
    contexts,
    drawn,
    frames,
    knobs,
    masks,
    noise,
    partners,
    whole,
)

CORRUPTIONS: dict[str, Callable] = {
    "gaussian_noise": noise.gaussian_noise,
    "diffusion_noise": noise.diffusion_noise,
    "region_noise": noise.region_noise,
    "blur": whole.blur,
    "crop": whole.crop,
    "black": whole.black,
    "drop": whole.drop,
    "region_mask": masks.region_mask,
    "random_region_mask": masks.random_region_mask,
    "saliency_mask": masks.saliency_mask,
    "token_mask": masks.token_mask,
    "frame_shuffle": frames.frame_shuffle,
    "frame_reverse": frames.frame_reverse,
    "frame_drop": frames.frame_drop,
    "frame_mask": frames.frame_mask,
}
PARTNERS: dict[str, Callable] = {"swap": partners.swap, "nearest": partners.nearest}

Context, Pictures = contexts.Context, contexts.Pictures


def bind(values: Mapping[str, Any], layout: types.Layout) -> dict[str, Context]:
    """The contexts of `config.data.contexts` that data are prepared with; names and knobs of all
    are checked.

    A layout without branches (prompts alone, for sampling) has nothing to corrupt.

    Raises:
      ValueError: a context that no branch reads, an unknown corruption or knob, or a knob's value.
    """
    if layout == types.PROMPTS:
        return {}
    made = [name for name in layout.contexts if name != types.CLEAN]
    for name in values:
        if name not in made:
            there = f"it must be {config_lib.one_of(name, made)}" if made else "they read 'clean'."
            raise ValueError(
                f"config.data.contexts.{name}: no branch of config.data.branches = "
                f"{layout.branches} reads the context {name!r}; {there} "
                f"Add a branch such as 'chosen@corrupted', or remove the context."
            )
    in_step(values, layout)
    return {name: _context(name, v) for name, v in values.items() if not _is_drawn(name, v)}


def in_step(values: Mapping[str, Any], layout: types.Layout) -> dict[int, drawn.Drawn]:
    """The contexts that are drawn in the step, by their number in the layout.

    Raises:
      ValueError: a wrong name or knob.
    """
    return {
        number: drawn.bind(name, values[name])
        for number, name in enumerate(layout.contexts)
        if layout.branches and name in values and _is_drawn(name, values[name])
    }


def _is_drawn(name: str, value: Any) -> bool:
    when = value.get("when", "data") if isinstance(value, Mapping) else "data"
    if when not in ("data", "step"):
        raise ValueError(
            f"config.data.contexts.{name}.when is {when!r}; it must be "
            f"{config_lib.one_of(when, ('data', 'step'))}"
        )
    return when == "step"


def _context(name: str, value: Any) -> Context:
    where = f"config.data.contexts.{name}"
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{where} is {value!r}; it must be a group such as {{'corruption': 'crop'}}."
        )
    first = {key: item for key, item in value.items() if key != "when"}
    seed, then = first.pop("seed", 0), first.pop("then", ())
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"{where}.seed is {seed!r}; it must be a whole number.")
    if not isinstance(then, list | tuple):
        raise ValueError(f"{where}.then is {then!r}; it must be a list of corruptions.")
    steps = [_step(where, first)]
    steps += [_step(f"{where}.then[{i}]", step) for i, step in enumerate(then)]
    return Context(name, tuple(steps), seed)


def _step(where: str, value: Any) -> contexts.Step:
    if not isinstance(value, Mapping) or not isinstance(value.get("corruption"), str):
        raise ValueError(
            f"{where} is {value!r}; it must name its corruption: "
            f"{{'corruption': {config_lib.one_of('', {**CORRUPTIONS, **PARTNERS})}"
        )
    given = {key: item for key, item in value.items() if key != "corruption"}
    name = value["corruption"]
    try:
        function = config_lib.bind({**CORRUPTIONS, **PARTNERS}, name, given, what="corruption")
        return _checked(name, function, given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _checked(name: str, function: Callable, given: Mapping[str, Any]) -> contexts.Step:
    hints = typing.get_type_hints(function, include_extras=True)
    marks = {key: _mark(hint) for key, hint in hints.items()}
    columns = {key: value for key, value in given.items() if marks[key] in knobs.COLUMNS}
    for key, column in columns.items():
        if not isinstance(column, str) or not column:
            raise ValueError(
                f"corruption {name!r}: {key} is {column!r}; it must name a column of the data."
            )
    settings = {
        key: parameter.default
        for key, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key not in columns
    }
    settings |= {key: value for key, value in given.items() if key not in columns}
    settings = config_lib.check(function, settings, what=f"corruption {name!r}")
    return contexts.Step(
        name=name,
        function=function,
        knobs=settings,
        columns={key: (column, marks[key]) for key, column in columns.items()},
        is_partner=name in PARTNERS,
        files=tuple(settings[key] for key in settings if marks[key] == "file" and settings[key]),
    )


def _mark(hint: Any) -> str:
    """'boxes', 'maps' or 'file' of an annotated knob, else ''."""
    return next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, str)), "")
