"""Whether a config can run, before anything does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from rubric_jax import config as config_lib
from rubric_jax import evals, judges, recipes, sharding, types
from rubric_jax.judges import writers
from rubric_jax.models import adapters
from rubric_jax.stages import batching, contrasting, pair, schedule


def check(config: config_lib.Config, training_data: Callable[[], config_lib.Data]) -> None:
    """Raises ValueError, naming the field, for everything that a config can get wrong.

    Args:
      config: of a run.
      training_data: its data group with the branches of its recipe.
    """
    sharding.initialize(config.mesh)
    pool = config.pool
    if not pool.path:
        raise ValueError("config.pool.path is empty; name a file of instructions.")
    recipes.build(config.pair.recipe)
    _check_judge(config)
    for spec in (config.judging.judge, config.evaluation.judge):
        if spec:
            judges.check(spec)
    writers.check(pool.writer, config.data.axes)
    contrasting.parse(config.sample.contrast)
    contrasting.parse(config.evaluation.contrast, "config.evaluation.contrast")
    if config.online.updates:
        _check_online(config, training_data())
    elif config.pair.recipe["recipe"] in recipes.FRESH:
        raise ValueError(
            f"The recipe {config.pair.recipe['recipe']!r} is for samples of every step; set "
            "config.online.updates, or take 'listwise'."
        )
    pair.aggregate(config.pair.aggregation)
    pair.aggregate(config.evaluation.aggregation)
    evals.check(config.evaluation.measures, config.evaluation.pattern)
    start = adapters.check(config.model.adapter).get("start")
    if start and config.rounds.reference == "base" and config.rounds.count > 1:
        raise ValueError(
            "config.rounds.reference is 'base', which config.model.adapter.start is no part of "
            "after the first round; merge the adapter, and start from the merged checkpoint."
        )
    if config.rounds.reference == "fixed" and not config.model.reference:
        raise ValueError(
            "config.rounds.reference is 'fixed', but config.model.reference is empty; name the "
            "checkpoint that stays the reference."
        )
    if 0 < config.rounds.updates < config.rounds.count:
        raise ValueError(
            f"config.rounds.updates is {config.rounds.updates} for "
            f"{config.rounds.count} rounds; every round needs at least one."
        )
    if config.schedule and (config.rounds.updates or config.rounds.reference != "round"):
        raise ValueError(
            "With config.schedule each stage has its own steps and reference; leave "
            "config.rounds.updates at 0 and config.rounds.reference at 'round'."
        )
    schedule.check_objective(dataclasses.replace(config, data=training_data()))


def _check_judge(config: config_lib.Config) -> None:
    if config.judging.judge:
        return
    if not config.online.updates or recipes.judged(config.pair.recipe):
        raise ValueError('config.judging.judge is empty; give one, such as {"judge": "oracle"}.')
    if config.pool.eval_path and not config.evaluation.judge:
        raise ValueError(
            "config.pool.eval_path asks for an evaluation, which needs a judge; set "
            "config.evaluation.judge or config.judging.judge."
        )


def _check_online(config: config_lib.Config, data: config_lib.Data) -> None:
    recipes.check_online(config.pair.recipe)
    columns = batching.columns(types.Layout.of(data.branches), config)
    _check_drawn(columns, data)
    _check_gap(columns, data)
    for where, found in (
        ("config.pair.other", config.pair.other),
        ("config.schedule", config.schedule),
        ("config.sample.contrast", config.sample.contrast),
        ("config.data.weights", data.weights),
        ("config.data.differences", data.differences),
    ):
        if found:
            raise ValueError(
                f"{where} has no place where every step samples; leave it empty, or set "
                "config.online.updates to 0."
            )


def _check_drawn(columns: types.Layout, data: config_lib.Data) -> None:
    """Pictures drawn in the step are those of rows that the instructions' file has responses to."""
    if columns.branches:
        return
    for name, values in data.contexts.items():
        if isinstance(values, Mapping) and values.get("when") == "step":
            raise ValueError(
                f"config.data.contexts.{name}.when is 'step', which needs a response in the "
                "instructions' file, and with config.online.updates every response is sampled; "
                "take 'when': 'data'."
            )


def _check_gap(columns: types.Layout, data: config_lib.Data) -> None:
    """Rows are ordered before anything is sampled, so by responses of the file alone."""
    for name, values in (("curriculum", data.curriculum), ("view", data.view)):
        win, lose = values.get("win", "chosen"), values.get("lose", "rejected")
        stored = win in columns.branches and lose in columns.branches
        if values.get("by") == "gap" and not stored:
            raise ValueError(
                f"config.data.{name}.by is 'gap', the rewards of {win!r} above {lose!r}, "
                "and not both are columns of the instructions' file: with config.online.updates "
                "rows are ordered before anything is sampled. Take 'level', or leave it empty."
            )
