"""From a config's knobs to a term's arguments, before any device work.

A term's signature says how each knob is read:

  annotation        in a config                        reaches the term as
  types.Branch      "chosen", "chosen@corrupted"       its index, static
  types.Branches    ["chosen", "rejected"], "all",     their indices, static; a pattern takes them
                    "response_*"                       in the layout's order
  float             0.1                                float32 [], traced: a sweep compiles once
  types.PerAxis     {"grounding": 0.3, ...} or list    float32 [A], traced
                    "prompt" (for `weights` alone)     Labels.preference, float32 [B, A]
  types.BranchHead  "reward", of config.model.heads    its name, static; TokenHead and Table alike
  Literal[...]      one of the values                  the value, static
  bool, int, str    itself                             itself, static
"""

from __future__ import annotations

import fnmatch
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from rubric_jax import config, types

HEADS = (types.BranchHead, types.TokenHead, types.Table)

# A knob's name means the same in every term, and so does its range.
RANGES = {
    "weight": (">= 0", lambda value: value >= 0),
    "weights": (">= 0", lambda value: value >= 0),
    "beta": ("> 0", lambda value: value > 0),
    "center": (">= 0", lambda value: value >= 0),
    "entropy": (">= 0", lambda value: value >= 0),
    "l1": (">= 0", lambda value: value >= 0),
    "l1_kl": (">= 0", lambda value: value >= 0),
    "beta_lose": (">= 0", lambda value: value >= 0),
    "beta_kl": (">= 0", lambda value: value >= 0),
    "clip": ("in (0, 1)", lambda value: 0 < value < 1),
    "epsilon": ("in (0, 1)", lambda value: 0 < value < 1),
    "essential": (">= 0", lambda value: value >= 0),
    "flip_rate": ("in [0, 0.5)", lambda value: 0 <= value < 0.5),
    "gamma": (">= 0", lambda value: value >= 0),
    "inside": (">= 0", lambda value: value >= 0),
    "label_smoothing": ("in [0, 1)", lambda value: 0 <= value < 1),
    "lam": (">= 0", lambda value: value >= 0),
    "lam_lose": (">= 0", lambda value: value >= 0),
    "lam_win": (">= 0", lambda value: value >= 0),
    "min_gap": (">= 0", lambda value: value >= 0),
    "most": ("> 0", lambda value: value > 0),
    "nll_weight": (">= 0", lambda value: value >= 0),
    "outcome": (">= 0", lambda value: value >= 0),
    "outside": (">= 0", lambda value: value >= 0),
    "penalty": (">= 0", lambda value: value >= 0),
    "per_token": (">= 0", lambda value: value >= 0),
    "process": (">= 0", lambda value: value >= 0),
    "scale": (">= 0", lambda value: value >= 0),
    "sft": (">= 0", lambda value: value >= 0),
    "skips": (">= 1", lambda value: value >= 1),
    "steps": (">= 1", lambda value: value >= 1),
    "tail": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "tau": ("in (0, 1)", lambda value: 0 < value < 1),
    "temperature": ("> 0", lambda value: value > 0),
}


def resolve(
    term: Callable,
    values: Mapping[str, Any],
    *,
    where: str,
    layout: types.Layout,
    axes: tuple[str, ...],
    heads: Mapping[str, types.HeadShape],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(static knobs, traced knobs) of one term, defaults filled in; `where` names it in errors."""
    static, traced, branches = {}, {}, {}
    for knob, parameter in inspect.signature(term, eval_str=True).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        value, hint = values.get(knob, parameter.default), parameter.annotation
        here = f"{where}.{knob}"
        if hint == types.Branch | None and value is None:
            static[knob] = None
        elif hint in (types.Branch, types.Branch | None):
            static[knob] = branch(value, layout, here)
            if static[knob] in branches:  # a constant: certainly a slip of the pen
                raise ValueError(
                    f"{here} and {where}.{branches[static[knob]]} are both {value!r}; "
                    "a term compares two different branches."
                )
            branches[static[knob]] = knob
        elif hint == types.Branches:
            static[knob] = several(value, layout, here)
        elif hint in HEADS:
            static[knob] = head(value, hint, heads, here)
        elif hint is float:
            traced[knob] = number(value, knob, here)
        elif hint == types.PerAxis and knob == "weights" and isinstance(value, str):
            static[knob] = choice(value, knob, Literal["prompt"], here)
        elif hint == types.PerAxis:
            traced[knob] = per_axis(value, knob, axes, here)
        else:
            static[knob] = choice(value, knob, hint, here)
    return static, traced


def branch(value: Any, layout: types.Layout, where: str) -> int:
    if not isinstance(value, str):
        raise ValueError(
            f"{where} is {value!r}; it must be the name of a branch, "
            f"{config.one_of(value, layout.branches)}"
        )
    try:
        return layout.index(value)
    except ValueError as error:
        raise ValueError(
            f"{where} is {value!r}; it must be {config.one_of(value, layout.branches)} "
            "config.data.branches lists them."
        ) from error


def stated(values: Mapping[str, Any], labels: types.Labels) -> dict[str, Any]:
    """Knobs with the weights that prompts state in place of "prompt".

    Raises:
      ValueError: the labels have none.
    """
    if not isinstance(values.get("weights"), str):
        return dict(values)
    if labels.preference is None:
        raise ValueError(
            "A term's weights are those that the prompts state ('prompt'), but the data state "
            "none; set config.data.weights."
        )
    return {**values, "weights": labels.preference}


def several(value: Any, layout: types.Layout, where: str) -> tuple[int, ...]:
    """Two branches or more: a sequence of names, "all", or a pattern such as "response_*"."""
    if isinstance(value, str):
        pattern = "*" if value == "all" else value
        names = [name for name in layout.branches if fnmatch.fnmatchcase(name, pattern)]
        found = f"{value!r}, which fits {len(names)} branches"
    elif isinstance(value, Sequence):
        names, found = list(value), f"{value!r}"
    else:
        raise ValueError(
            f"{where} is {value!r}; it must be a list of branches, a pattern such as "
            f"'response_*', or 'all'; this run has {', '.join(layout.branches)}."
        )
    indices = tuple(branch(name, layout, f"{where}.{i}") for i, name in enumerate(names))
    if len(set(indices)) != len(indices):
        raise ValueError(f"{where} is {found}; a list holds each branch once.")
    if len(indices) < 2:
        raise ValueError(
            f"{where} is {found}; a list needs at least two of {', '.join(layout.branches)}."
        )
    return indices


def named_heads(term: Callable, static: Mapping[str, Any]) -> dict[str, str]:
    """{knob: head} of a term's static knobs."""
    parameters = inspect.signature(term, eval_str=True).parameters
    return {knob: name for knob, name in static.items() if parameters[knob].annotation in HEADS}


def head(value: Any, hint: Any, heads: Mapping[str, types.HeadShape], where: str) -> str:
    """The name of a head that gives what the term reads."""
    wanted = hint.__metadata__[0]
    if not heads:
        raise ValueError(
            f"{where} is {value!r}, but there are no heads; name them in config.model.heads, such "
            'as {"reward": {"head": "last"}}.'
        )
    if not isinstance(value, str) or value not in heads:
        raise ValueError(
            f"{where} is {value!r}; it must be {config.one_of(value, heads)} config.model.heads "
            "lists them."
        )
    if heads[value].of != wanted:
        raise ValueError(
            f"{where} is {value!r}, which gives one vector per {heads[value].of}; the term reads "
            f"one per {wanted}. See models/heads.py for the kinds of heads."
        )
    return value


def number(value: Any, knob: str, where: str) -> np.ndarray:
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{where} is {value!r}; it must be a number.")
    text, inside = RANGES.get(knob, ("finite", lambda _: True))
    with np.errstate(over="ignore"):
        single = np.float32(value)
    if not math.isfinite(single) or not inside(single):
        raise ValueError(f"{where} is {value}; it must be {text}, and finite in float32.")
    return np.asarray(single)


def per_axis(value: Any, knob: str, axes: tuple[str, ...], where: str) -> np.ndarray:
    """One number for each axis: a mapping with every axis, or a sequence in the axes' order."""
    if not axes:
        raise ValueError(f"{where} needs reward axes; name them in config.data.axes.")
    if isinstance(value, Mapping):
        for axis in value:
            if axis not in axes:
                raise ValueError(
                    f"{where} has no axis {axis!r}; it must be {config.one_of(axis, axes)}"
                )
        missing = [axis for axis in axes if axis not in value]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}; 0 leaves an axis out.")
        value = [value[axis] for axis in axes]
    if isinstance(value, str) or not isinstance(value, Sequence | np.ndarray):
        raise ValueError(f"{where} is {value!r}; it must map axes to numbers: {', '.join(axes)}.")
    if len(value) != len(axes):
        raise ValueError(
            f"{where} has {len(value)} numbers for {len(axes)} axes: {', '.join(axes)}."
        )
    numbers = [number(v, knob, f"{where}.{axis}") for axis, v in zip(axes, value, strict=True)]
    if not any(numbers):
        raise ValueError(f"{where} is 0 on every axis; at least one must be > 0.")
    return np.stack(numbers)


def choice(value: Any, knob: str, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        options = typing.get_args(hint)
        if value not in options:
            raise ValueError(f"{where} is {value!r}; it must be {config.one_of(value, options)}")
    elif type(value) is not hint:
        raise ValueError(f"{where} is {value!r}; it must be of type {hint.__name__}.")
    elif hint is int:
        number(value, knob, where)
    return value
