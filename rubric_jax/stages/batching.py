"""From sampled responses to the batch of a step: which sample each branch reads, and its labels.

Branches whose response the recipe makes are fresh; the others are columns of the instructions' file
(offline pairs beside fresh samples, as in HyPO).

  config.data.branches  ("chosen", "rejected", "response_0", "response_1")
  pair.recipe           {"recipe": "group", "judged": False}, sample.count 2: makes response_0, _1
  columns               ("chosen", "rejected")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import recipes, sampling, types
from rubric_jax.recipes import groups as groups_lib
from rubric_jax.train import setup as setup_lib


class Choice(NamedTuple):
    """What the recipe made of a batch's groups."""

    pick: np.ndarray  # int32 [B, N], which of the K samples a branch reads; -1 = none of them
    rewards: np.ndarray  # float32 [B, N, A]
    weight: np.ndarray  # float32 [B], 0 where the group has no row
    margin: np.ndarray  # float32 [B]
    axis: np.ndarray  # int32 [B]


def columns(layout: types.Layout, config: config_lib.Config) -> types.Layout:
    """The layout of what the instructions' file holds: all contexts, and the branches not made.

    Raises:
      ValueError: a response that the recipe makes and no branch reads, or samples that no branch
        reads under the pictures as they are.
    """
    made = recipes.layout(config.pair.recipe, config.sample.count)
    missing = [name for name in made if name not in layout.responses]
    if missing:
        raise ValueError(
            f"The recipe {config.pair.recipe['recipe']!r} makes {', '.join(made)}, and no branch "
            f"of config.data.branches ({', '.join(layout.branches)}) reads {', '.join(missing)}."
        )
    if layout.contexts[0] != types.CLEAN:
        raise ValueError(
            f"config.data.branches begins with {layout.branches[0]!r}; put a branch under the "
            "pictures as they are first, for it is under these that responses are sampled."
        )
    kept = [n for n, name in enumerate(layout.responses) if name not in made]
    return types.Layout(
        layout.contexts,
        tuple(layout.branches[n] for n in kept),
        tuple(layout.context_of[n] for n in kept),
    )


def nothing(setup: setup_lib.Setup, rows: int) -> Choice:
    """The choice of a batch without a row."""
    branches, axes = len(setup.layout.branches), len(setup.config.data.axes)
    return Choice(
        pick=np.full((rows, branches), -1, np.int32),
        rewards=np.zeros((rows, branches, axes), np.float32),
        weight=np.zeros(rows, np.float32),
        margin=np.zeros(rows, np.float32),
        axis=np.zeros(rows, np.int32),
    )


def choose(setup: setup_lib.Setup, rows: Sequence[groups_lib.Row | None], objective: Any) -> Choice:
    """The recipe's rows, one or none per group, as arrays.

    Raises:
      ValueError: the objective needs the axis that ordered a pair, and the recipe has none.
    """
    layout, axes = setup.layout, setup.config.data.axes
    choice = nothing(setup, len(rows))
    for b, row in enumerate(rows):
        if row is None:
            continue
        if objective.needs_axis and row.axis is None:
            raise ValueError(
                f"The objective needs the axis that ordered each pair, and the recipe "
                f"{setup.config.pair.recipe['recipe']!r} names none; take 'rubric' or 'holistic'."
            )
        for n, name in enumerate(layout.responses):
            if name in row.sample:
                choice.pick[b, n] = row.sample[name]
                found = row.rewards.get(name, {})
                choice.rewards[b, n] = [found.get(axis, 0.0) for axis in axes]
        choice.weight[b], choice.margin[b] = row.weight, row.margin
        choice.axis[b] = axes.index(row.axis) if row.axis in axes else 0
    return choice


def assemble(
    setup: setup_lib.Setup, loaded: types.Batch, found: sampling.Samples, choice: Choice
) -> types.Batch:
    """The batch of a step.

    Args:
      loaded: rows with the columns of their file as branches, [b, N', T'].
      found: their samples [b, K, T].
      choice: of these rows.
    """
    config = setup.config
    layout, old = setup.layout, columns(setup.layout, config)
    length = max(found.ids.shape[-1], loaded.responses.shape[-1] if old.branches else 0)
    shape = (len(found.ids), len(layout.branches), length)
    responses, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    behaviour, rewards = np.zeros(shape, np.float32), choice.rewards.copy()
    made = found.ids.shape[-1]
    every = np.arange(len(found.ids))
    for n, branch in enumerate(layout.branches):
        if branch in old.branches:
            own = old.branches.index(branch)
            responses[:, n, : loaded.responses.shape[-1]] = loaded.responses[:, own]
            mask[:, n, : loaded.mask.shape[-1]] = loaded.mask[:, own]
            rewards[:, n] = loaded.labels.rewards[:, own]
            continue
        k = np.maximum(choice.pick[:, n], 0)
        kept = found.mask[every, k] & (choice.pick[:, n] >= 0)[:, None]
        mask[:, n, :made] = kept
        responses[:, n, :made] = np.where(kept, found.ids[every, k], 0)
        behaviour[:, n, :made] = np.where(kept, found.logps[every, k], 0.0)
    labels = types.Labels(rewards, choice.weight, choice.margin, choice.axis)
    if old.branches:  # the rows of the file say what they weigh
        labels = loaded.labels._replace(rewards=rewards)
    return loaded._replace(responses=responses, mask=mask, labels=labels, behaviour=behaviour)
