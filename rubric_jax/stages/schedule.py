"""Training in several stages, each from where the one before ended.

  config.schedule = (
      {"name": "sft", "objective": {"nll": {"on": "chosen"}}, "train": {"steps": 100}},
      {"name": "dpo", "objective": {"dpo": {...}}, "optimizer": {"learning_rate": 5e-7},
       "reference": "start", "extrapolate": 0.3},
  )

A stage changes fields of the config's groups (model, data, optimizer, train) and may replace the
objective: what trains (`optimizer.trainable`), which data, how long, how fast.

  name         of its directory below the work directory; stage_1, stage_2, ... by default
  reference    start: the policy that the stage begins with (the default); base: model.checkpoint;
               or a checkpoint's directory
  model        {"adapter": {...}}: a stage merges its adapter; the next one begins afresh
  extrapolate  alpha: the next stage begins with policy + alpha (policy - policy of the stage
               before, at first model.checkpoint), as APO does (arXiv:2410.06293). Policies stay as
               they were trained: each differs from the last policy, not from where it started
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import jax

from rubric_jax import checkpoint, models
from rubric_jax import config as config_lib
from rubric_jax.models import adapter_files, adapters, soup
from rubric_jax.stages import training
from rubric_jax.train import loop
from rubric_jax.train import setup as setup_lib

_GROUPS = ("model", "data", "optimizer", "train")
_FIELDS = (*_GROUPS, "objective", "name", "reference", "extrapolate")


def train(config: config_lib.Config, workdir: str) -> tuple[loop.Outcome, str]:
    """Trains stage after stage, or goes on; returns the last outcome and its work directory.

    An outcome that is not finished is that of the stage that was told to stop.

    Raises:
      ValueError: a stage that does not fit, before anything is trained.
    """
    names = check(config)
    if jax.process_index() == 0:
        checkpoint.claim(workdir, config_lib.to_dict(config))
    start, outcome, folder = config.model.checkpoint, None, workdir
    before = start
    for name, values in zip(names, config.schedule, strict=True):
        folder = os.path.join(workdir, name)
        stage = stage_config(config, values, start)
        # One preparation serves all stages that read the same rows.
        cache = setup_lib.cache_directory(stage, workdir)
        stage = dataclasses.replace(stage, data=dataclasses.replace(stage.data, cache=cache))
        outcome = training.train(stage, folder)
        if not outcome.finished:
            return outcome, folder
        start = _ended(stage, folder, before, float(values.get("extrapolate", 0.0)))
        before = os.path.join(folder, "policy")
    return outcome, folder


def fit(config: config_lib.Config, workdir: str) -> tuple[loop.Outcome, str]:
    """Trains by the config's schedule, or in one piece without one; see `train`."""
    if config.schedule:
        return train(config, workdir)
    return training.train(config, workdir), workdir


def check_objective(config: config_lib.Config) -> None:
    """Raises ValueError where an objective, of the config or of a stage, does not fit."""
    if not check(config):
        setup_lib.objective(config)
        loop.check_best(config)


def check(config: config_lib.Config) -> list[str]:
    """Names of the stages; ValueError says which stage has what wrong."""
    names = []
    for number, values in enumerate(config.schedule, 1):
        where = f"config.schedule[{number - 1}]"
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} is {values!r}; it must be a mapping of fields.")
        for key in values:
            if key not in _FIELDS:
                raise ValueError(
                    f"{where}: unknown field {key!r}; it must be {config_lib.one_of(key, _FIELDS)}"
                )
        name = values.get("name", f"stage_{number}")
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name) or name in names:
            raise ValueError(
                f"{where}.name is {name!r}; it must be a directory's name that no other stage has."
            )
        alpha = values.get("extrapolate", 0.0)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 10:
            raise ValueError(f"{where}.extrapolate is {alpha!r}; it must be in [0, 10].")
        names.append(name)
        try:
            stage = stage_config(config, values, config.model.checkpoint)
            setup_lib.objective(stage)
            loop.check_best(stage)
            if alpha and adapters.check(stage.model.adapter).get("start"):
                raise ValueError(
                    "extrapolate needs the start of the stage as a directory; merge "
                    "config.model.adapter.start into its checkpoint first."
                )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return names


def stage_config(
    config: config_lib.Config, values: Mapping[str, Any], start: str
) -> config_lib.Config:
    """The config of one stage, as `train` alone would take it."""
    plain = config_lib.to_dict(config)
    for group in _GROUPS:
        changes = values.get(group, {})
        if not isinstance(changes, Mapping):
            raise ValueError(f"{group} is {changes!r}; it must be a group of fields.")
        plain[group] = {**plain[group], **changes}
    plain["objective"] = dict(values.get("objective", plain["objective"]))
    made = config_lib.build({**plain, "schedule": ()})
    reference = values.get("reference", "start")
    named = {"start": start, "base": config.model.checkpoint}
    adapter = made.model.adapter
    if adapter and start != config.model.checkpoint and "adapter" not in values.get("model", {}):
        # The stage before merged it.
        adapter = adapter_files.anew(adapter, models.build(made.model.family, start))
    model = dataclasses.replace(
        made.model,
        checkpoint=start,
        reference=named.get(reference, reference),
        adapter=adapter,
    )
    return dataclasses.replace(made, model=model)


def _ended(stage: config_lib.Config, folder: str, before: str, alpha: float) -> str:
    """The directory that the next stage starts from; `before` is the policy of the last stage."""
    policy, further = os.path.join(folder, "policy"), os.path.join(folder, "extrapolated")
    there = os.path.isdir(policy)
    setup_lib.barrier()  # nobody may write before everybody has looked
    if not there:
        training.hand_on(folder, policy + ".part", dtype=stage.model.param_dtype)
    if jax.process_index() == 0:
        if not there:
            os.replace(policy + ".part", policy)
        if alpha and not os.path.isdir(further):
            vlm = models.build(stage.model.family, policy)
            members = [policy, models.directory(before)]
            soup.write(further + ".part", members, [1 + alpha, -alpha], vlm)
            os.replace(further + ".part", further)
    setup_lib.barrier()
    return further if alpha else policy
