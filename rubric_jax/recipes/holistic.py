"""Pairs by one mark for the whole response, from a judge without a rubric."""

from __future__ import annotations

from collections.abc import Sequence

from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import knobs, pairing

AXIS = "overall"  # of the mark; judges call its criterion so too


def holistic(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    finished: bool = True,
    margin: knobs.Share = 0.0,
    pairs: knobs.Positive = 1,
    budget: knobs.Count = 0,
    margin_scale: knobs.Scale = 0.0,
) -> groups_lib.Mined:
    """Pairs the best own response with the worst, the second best with the second worst, ...

    Args:
      groups: judged by a holistic judge.
      axes: with `overall` among them.
      seed: decides between equal marks.
      finished: use only responses that ended by themselves.
      margin: least gap; it must also be above 0. A step of a scale from 1 to 5 is 0.25.
      pairs: per instance at most.
      budget: rows, 0 = all; the largest gaps stay.
      margin_scale: the label `margin` is this times the gap.

    Raises:
      ValueError: the verdicts are of a judge with a rubric.
    """

    def each(group, left_out):
        _check(group, axes)
        own = pairing.usable(group, left_out, finished=finished, judged=True)
        if len(own) < 2:
            return pairing.FEW
        if pairing.all_equal(group, own):
            return pairing.EQUAL
        pairing.draws(seed, group.id).shuffle(own)
        own.sort(key=lambda k: -round(float(group.total[k]), 5))
        ends = list(zip(own, reversed(own)))[: min(pairs, len(own) // 2)]
        gaps = [group.total[c] - group.total[r] for c, r in ends]
        least = max(margin, 2 * pairing.TOLERANCE) - pairing.TOLERANCE
        rows = [
            pairing.gap_row(group, c, r, axes, margin_scale=margin_scale)
            for (c, r), gap in zip(ends, gaps)
            if gap >= least
        ]
        return rows or "no gap reaches the margin"

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget, by_gap=True)


def _check(group: groups_lib.Group, axes: Sequence[str]) -> None:
    found = [criterion.axis for criterion in group.rubric.criteria]
    if found != [AXIS] or AXIS not in axes:
        raise ValueError(
            f"The recipe 'holistic' reads one mark on the axis {AXIS!r}, and {group.id!r} was "
            f"judged by {len(found)} criteria on {', '.join(dict.fromkeys(found))}. Set the judge "
            "to one without a rubric (oracle_holistic, openai_holistic), or the recipe to 'rubric'."
        )
