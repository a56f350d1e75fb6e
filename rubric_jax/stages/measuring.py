"""What a turn of online training says of its samples, before anything is trained on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import pairing

_COMMON = ("tokens", "finished", "rows")
_JUDGED = ("unjudged", "reward", "reward_std", "equal")


def names(axes: Sequence[str], *, judged: bool) -> tuple[str, ...]:
    """Names of the values, in order; docs/pipeline.md says what they are."""
    more = (*_JUDGED, *(f"reward/{axis}" for axis in axes)) if judged else ()
    return tuple(f"sample/{name}" for name in (*_COMMON, *more))


def values(
    groups: Sequence[groups_lib.Group],
    rows: Sequence[groups_lib.Row],
    axes: Sequence[str],
    *,
    judged: bool,
) -> list[float]:
    """Means over responses and groups; NaN where no response has a verdict."""
    responses = [response for group in groups for response in group.responses]
    common = [
        np.mean([response.tokens for response in responses]),
        np.mean([response.finished for response in responses]),
        len(rows) / len(groups),
    ]
    if not judged:
        return common
    valid = np.concatenate([group.valid for group in groups])
    totals = np.concatenate([group.total for group in groups])[valid]
    several = [group.total[group.valid] for group in groups if group.valid.sum() > 1]
    return [
        *common,
        1 - valid.mean(),
        _mean(totals),
        _mean([own.std(ddof=1) for own in several]),
        _mean([np.ptp(own) <= pairing.TOLERANCE for own in several]),
        *(_mean_on(axis, a, groups, rows) for a, axis in enumerate(axes)),
    ]


def _mean_on(axis: str, a: int, groups, rows) -> float:
    """Mean reward on an axis: of the rubrics that know it, or else that the recipe gave."""
    found = [value for group in groups if group.known[a] for value in group.axes[group.valid, a]]
    if not found:
        found = [own[axis] for row in rows for own in row.rewards.values() if axis in own]
    return _mean(found)


def _mean(found) -> float:
    return float(np.mean(found)) if len(found) else math.nan
