"""Recipes: whatever turns an instance's judged responses into rows of preference data.

recipe = recipes.build({"recipe": "rubric", "margin": 0.15})
mined = recipe(groups, axes, seed=0)         # see groups.py
print(*mined.summary(), sep="\n")

on-policy                                          off-policy
rubric           by rubric: the method             style_constrained  reference / one error in it
outcome          right / wrong final answer        perturbation       good response / words swapped
style_matched    the same, of equal length         continuation       good one / continued unseeing
holistic         best / worst by one mark          cross_model        by rubric, other policies'
listwise         lists of K, with their rewards    reference_pairs    reference / worst own
group            all K, for sampling in every step
random           controls of `rubric`
shuffled_rubric
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rubric_jax import config
from rubric_jax.recipes import (
    continuation,
    controls,
    holistic,
    knobs,
    lists,
    outcome,
    perturbation,
    rubric,
)
from rubric_jax.recipes.groups import CONTINUED, Group, Mined, Recipe, Response, Row

RECIPES: dict[str, Recipe] = {
    "rubric": rubric.rubric,
    "outcome": outcome.outcome,
    "style_matched": outcome.style_matched,
    "holistic": holistic.holistic,
    "style_constrained": perturbation.style_constrained,
    "perturbation": perturbation.perturbation,
    "continuation": continuation.continuation,
    "cross_model": rubric.cross_model,
    "reference_pairs": controls.reference_pairs,
    "listwise": lists.listwise,
    "random": controls.random,
    "shuffled_rubric": rubric.rubric,  # the judge makes the difference, see RUBRIC_OF
}

# Recipes whose responses are judged by another instance's rubric: (ids, *, seed) -> id of each.
RUBRIC_OF: dict[str, Callable[..., dict[str, str]]] = {"shuffled_rubric": controls.assign}

# Recipes that need further responses: (groups, *, knobs) -> what to continue without the picture.
PROMPTS: dict[str, Callable[..., list[continuation.Start]]] = {
    "continuation": continuation.prompts,
}

# For sampling in every step alone: rows may lack branches, and no file of pairs may.
FRESH: dict[str, Recipe] = {"group": lists.group}

# Recipes whose branches are the group's own samples, one row of it at a time: they work where every
# step samples.
ONLINE = frozenset(
    {"rubric", "outcome", "style_matched", "holistic", "listwise", "group", "random"}
)

PAIR = ("chosen", "rejected")


def build(spec: Mapping[str, Any]) -> Recipe:
    """The recipe of a config: {"recipe": name, **knobs}; call it with (groups, axes, seed=...).

    Raises:
      ValueError: an unknown name or knob, or a knob's value; it names what is wrong.
    """
    name, values = _parse(spec)
    return functools.partial(_all()[name], **values)


def layout(spec: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Names of the responses in the recipe's rows, for `config.data.branches`.

    Args:
      spec: as for `build`.
      count: responses sampled per instance.
    """
    name, values = _parse(spec)
    if name == "group":
        return lists.branches(count)
    if name != "listwise":
        return PAIR
    length = inspect.signature(RECIPES[name]).parameters["count"].default
    length = values.get("count", length) or count
    if length > count:
        raise ValueError(
            f"recipe {name!r}: lists of count = {length} need as many responses per instance, and "
            f"{count} are sampled."
        )
    return lists.branches(length)


def check_online(spec: Mapping[str, Any]) -> None:
    """Raises ValueError for a recipe that cannot make a batch of fresh samples."""
    name, values = _parse(spec)
    if name not in ONLINE:
        raise ValueError(
            f"recipe {name!r} needs more than the samples of one step; with config.online.updates "
            f"it must be {config.one_of(name, sorted(ONLINE))}"
        )
    parameters = inspect.signature(_all()[name]).parameters
    if "pairs" in parameters and values.get("pairs", parameters["pairs"].default) != 1:
        raise ValueError(
            f"recipe {name!r}: with config.online.updates an instruction gives one row; set "
            "config.pair.recipe.pairs to 1."
        )


def axes(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """The axes on which the recipe itself gives rewards."""
    _, values = _parse(spec)
    return tuple(axis for axis in (values.get("length"),) if isinstance(axis, str) and axis)


def judged(spec: Mapping[str, Any]) -> bool:
    """Whether the recipe reads verdicts."""
    name, values = _parse(spec)
    return name != "group" or values.get("judged", True)


def prompts(spec: Mapping[str, Any]) -> Callable[..., list[continuation.Start]] | None:
    """(groups) -> what the policy has to continue for the recipe; None if it needs no more."""
    name, values = _parse(spec)
    if name not in PROMPTS:
        return None
    known = inspect.signature(PROMPTS[name]).parameters
    return functools.partial(
        PROMPTS[name], **{knob: value for knob, value in values.items() if knob in known}
    )


def _parse(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    values = dict(spec)
    name = values.pop("recipe", "")
    if "seed" in values:
        raise ValueError(
            f"recipe {name!r}: seed is no knob; recipes draw by the run's own seed. Remove it."
        )
    recipe = config.bind(_all(), name, {**values, "seed": 0}, what="recipe")
    return name, knobs.check(name, recipe, values)


def _all() -> dict[str, Recipe]:
    return {**RECIPES, **FRESH}


__all__ = [
    "CONTINUED",
    "FRESH",
    "ONLINE",
    "PROMPTS",
    "RECIPES",
    "RUBRIC_OF",
    "Group",
    "Mined",
    "Recipe",
    "Response",
    "Row",
    "axes",
    "build",
    "check_online",
    "judged",
    "layout",
    "prompts",
]
