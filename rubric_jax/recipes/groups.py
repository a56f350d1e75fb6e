"""What recipes read and what they give.

A group is an instance with its K judged responses; a recipe turns groups into rows of preference
data, or says why a group gives none.

  group   instruction, rubric, responses[k] with scores; totals [K], axes [K, A], essential [K], ...
  row     branches {"chosen": text, "rejected": text} with rewards, the ordering axis, a margin
  mined   rows, and for every group without a row one reason: {"all responses equal": 17, ..}
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rubric_jax.rubrics import aggregation, arrays, records

_ROUNDING = 1e-6  # of float32 means

CONTINUED = "continued"  # the policy of responses that were continued without the picture


@dataclasses.dataclass(frozen=True)
class Response:
    """One sampled response."""

    text: str
    finished: bool = True  # ended by a stop token, not by the limit of tokens
    tokens: int = 0
    policy: str = ""  # whose it is; "" = the policy that is trained
    scores: Mapping[str, float] | None = None  # by criterion id; None = no usable verdict


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """An instance with its judged responses. Arrays are NumPy, over responses [K]."""

    id: str
    instruction: str  # text
    answer: str  # the right final answer; "" = unknown
    reference: str  # a right response; "" = none
    source: str  # which data set it comes from; "" = unknown
    rubric: records.Rubric | None  # None = nobody judges
    responses: tuple[Response, ...]
    axes: np.ndarray  # float32 [K, A], rewards per axis; NaN where not valid
    known: np.ndarray  # bool [A], some criterion counts for the axis
    total: np.ndarray  # float32 [K], NaN where not valid
    valid: np.ndarray  # bool [K], every criterion was scored
    essential: np.ndarray  # float32 [K], weighted mean of the essential criteria
    unfailed: np.ndarray  # bool [K], no essential criterion scores 0


class Row(NamedTuple):
    """One row of preference data, still without its prompt and pictures."""

    group: str  # id of the group
    branches: Mapping[str, str]  # response name -> text: chosen, rejected or response_0, ..
    rewards: Mapping[str, Mapping[str, float]]  # response name -> axis -> [0, 1]; may lack axes
    axis: str | None = None  # the axis that ordered the pair
    weight: float = 1.0
    margin: float = 0.0
    total: Mapping[str, float] = {}  # response name -> the reward that ordered it
    sample: Mapping[str, int] = {}  # response name -> which of the group's responses it is


@dataclasses.dataclass
class Mined:
    """What a recipe made of groups."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    groups: int = 0
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)  # of groups without a row
    # Single responses and pairs that were left out of any group, by reason.
    left_out: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @property
    def skipped(self) -> collections.Counter:
        """How many groups have no row, by reason."""
        return collections.Counter(self.reasons.values())

    def summary(self) -> list[str]:
        """Lines for people: how many rows, and why there are not more."""
        with_rows = self.groups - self.skipped.total()
        lines = [f"{len(self.rows)} rows from {with_rows} of {self.groups} groups"]
        for title, counter in (("no row", self.skipped), ("left out", self.left_out)):
            lines += [f"  {title}: {count} x {reason}" for reason, count in counter.most_common()]
        return lines


# A recipe: (groups, axes, *, seed, knobs) -> Mined. Equal input gives equal rows, in group order.
Recipe = Callable[..., Mined]


def build(
    items: Sequence[Mapping[str, Any]],
    axes: Sequence[str],
    aggregate: Callable[[arrays.Scores], aggregation.Rewards] = aggregation.weighted_mean,
) -> list[Group]:
    """Aggregates scores and makes groups, in order.

    Args:
      items: per instance the fields id, instruction, answer, reference, source, rubric and
        responses of its Group.
      axes: names of the A reward axes.
      aggregate: from aggregation.AGGREGATIONS, knobs bound.

    Raises:
      ValueError: an axis that the run does not have, or scores of another rubric.
    """
    if not items:
        return []
    scores = arrays.stack(
        [item["rubric"] for item in items],
        [[response.scores for response in item["responses"]] for item in items],
        axes,
    )
    rewards = aggregate(scores)
    found = {
        "axes": rewards.axes,
        "total": rewards.total,
        "valid": rewards.valid,
        "essential": aggregation.essential_score(scores),
        "unfailed": aggregation.no_essential_failed(scores),
    }
    found = {name: np.asarray(value) for name, value in found.items()}
    known = np.asarray(rewards.known)
    groups = []
    for b, item in enumerate(items):
        count = len(item["responses"])
        own = {name: value[b, :count] for name, value in found.items()}
        groups.append(Group(**item, known=known[b], **own))
    return groups


def unjudged(item: Mapping[str, Any], axes: int) -> Group:
    """A group of responses that nobody judges; item: as for `build`, axes: their number."""
    count = len(item["responses"])
    return Group(
        **item,
        axes=np.full((count, axes), np.nan, np.float32),
        known=np.zeros(axes, bool),
        total=np.full(count, np.nan, np.float32),
        valid=np.zeros(count, bool),
        essential=np.zeros(count, np.float32),
        unfailed=np.zeros(count, bool),
    )


def extend(group: Group, responses: Sequence[Response]) -> Group:
    """The group with further responses that have no verdict."""
    count = len(responses)

    def more(values: np.ndarray, fill) -> np.ndarray:
        return np.concatenate([values, np.full((count, *values.shape[1:]), fill, values.dtype)])

    return dataclasses.replace(
        group,
        responses=(*group.responses, *responses),
        axes=more(group.axes, np.nan),
        total=more(group.total, np.nan),
        valid=more(group.valid, False),
        essential=more(group.essential, 0.0),
        unfailed=more(group.unfailed, False),
    )


def rewards_of(group: Group, k: int, axes: Sequence[str]) -> dict[str, float]:
    """Rewards of response k on the axes that its rubric knows: labels of training data.

    Raises:
      ValueError: one outside [0, 1], which training does not take.
    """
    found = {}
    for a, axis in enumerate(axes):
        if group.known[a] and group.valid[k]:
            reward = float(group.axes[k, a])
            if not -_ROUNDING <= reward <= 1 + _ROUNDING:
                raise ValueError(
                    f"{group.id!r}: response {k} has the reward {reward:g} on the axis {axis!r}, "
                    "and rewards of training data are in [0, 1]. Aggregations such as "
                    "signed_points give others; take weighted_mean as config.pair.aggregation."
                )
            found[axis] = min(max(reward, 0.0), 1.0)
    return found
