"""Evaluations: judged responses to held-out instructions -> measures per instance, and means.

rewards   reward per axis and in total, share of responses that pass every essential criterion
answers   right final answer, and share of responses in which an answer was found at all
lengths   tokens and words of a response, share that ended by themselves: drift of style
pairs     implicit rewards on held-out preference data, and scores of heads of one output: accuracy
          and margin
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from rubric_jax import config
from rubric_jax.evals import answers, lengths, rewards
from rubric_jax.evals.bootstrap import Interval, interval, mean_of
from rubric_jax.evals.pairs import implicit, of_head
from rubric_jax.recipes import groups as groups_lib

# (groups, axes, *, pattern) -> {measure: float64 [groups], NaN where an instance has none}
EVALS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "rewards": rewards.rewards,
    "answers": answers.answers,
    "lengths": lengths.lengths,
}


def measure(
    names: Sequence[str],
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    pattern: str = "",
) -> dict[str, np.ndarray]:
    """The measures of the named evaluations, each [groups]; ValueError names an unknown one."""
    check(names)
    found: dict[str, np.ndarray] = {}
    for name in names:
        found |= EVALS[name](groups, axes, pattern=pattern)
    return found


def check(names: Sequence[str], pattern: str = "") -> None:
    """Raises ValueError for an unknown evaluation, or a pattern without its one group."""
    for name in names:
        config.bind(EVALS, name, {"pattern": ""}, what="evaluation")
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(
            f"config.evaluation.pattern is {pattern!r}, no regular expression: {error}."
        ) from None
    if pattern and groups != 1:
        raise ValueError(
            f"config.evaluation.pattern is {pattern!r} with {groups} groups; it needs one, around "
            "the final answer."
        )


__all__ = ["EVALS", "Interval", "check", "implicit", "interval", "mean_of", "measure", "of_head"]
