"""Whether a config can run, before anything does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rubric_jax import config as config_lib
from rubric_jax import evals, judges, recipes, sharding
from rubric_jax.judges import writers
from rubric_jax.stages import pair, schedule


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
    if not config.judging.judge:
        raise ValueError('config.judging.judge is empty; give one, such as {"judge": "oracle"}.')
    for spec in (config.judging.judge, config.evaluation.judge):
        if spec:
            judges.check(spec)
    writers.check(pool.writer, config.data.axes)
    recipes.build(config.pair.recipe)
    pair.aggregate(config.pair.aggregation)
    pair.aggregate(config.evaluation.aggregation)
    evals.check(config.evaluation.measures, config.evaluation.pattern)
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
