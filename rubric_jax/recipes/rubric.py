"""Pairs by rubric: qualification, margin, diversity. "rDPO", arXiv:2604.13029.

The paper names the three rules; their thresholds are ours. With an essential criterion "answer" of
weight 3, an additional one "style" of weight 1, and margin 0.15:

  response  answer style  total   can be chosen  pairs, largest gap first
  0           1     1     1.0     yes            (0, 3)  gap 1.0
  1           1     .5    .875    yes            (1, 2)  gap .625; 0 and 3 are used
  2           0     1     .25     no
  3           0     0     0       no
"""

from __future__ import annotations

import collections
import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import knobs, pairing


class _Rule(NamedTuple):
    tau: float
    unfailed: bool
    high: float
    margin: float
    pairs: int
    reuse: int
    distance: int
    margin_scale: float


def rubric(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    tau: knobs.Share = 0.0,
    unfailed: bool = True,
    finished: bool = True,
    high: knobs.Share = 1.0,
    margin: knobs.Share = 0.15,
    pairs: knobs.Positive = 2,
    reuse: knobs.Positive = 1,
    distance: knobs.Positive = 1,
    cap: knobs.Count = 0,
    keep: knobs.Part = 1.0,
    budget: knobs.Count = 0,
    margin_scale: knobs.Scale = 0.0,
) -> groups_lib.Mined:
    """Pairs the policy's own responses, largest gaps in the rubric's total first.

    Args:
      groups: judged.
      axes: names of the A reward axes.
      seed: decides between equal gaps.
      tau: least weighted mean of the chosen response's essential criteria.
      unfailed: the chosen response scores 0 on no essential criterion.
      finished: use only responses that ended by themselves.
      high: skip instances of which all responses reach this.
      margin: least gap in total; it must also be above 0.
      pairs: per instance at most.
      reuse: pairs that a response may stand in.
      distance: least edit distance of the two, in words.
      cap: rows per source, 0 = all; the largest gaps stay, as with `keep` and `budget`.
      keep: share of the rows.
      budget: rows, 0 = all.
      margin_scale: the label `margin` is this times the gap. At 0 the gap only selects.
    """
    rule = _Rule(tau, unfailed, high, margin, pairs, reuse, distance, margin_scale)

    def each(group, left_out):
        own = pairing.usable(group, left_out, finished=finished, judged=True)
        return _pairs(group, axes, own, own, rule, pairing.draws(seed, group.id), left_out)

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, cap=cap, keep=keep, budget=budget, by_gap=True)


def cross_model(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    rejected: Literal["other", "own"] = "other",
    tau: knobs.Share = 0.0,
    unfailed: bool = True,
    finished: bool = True,
    high: knobs.Share = 1.0,
    margin: knobs.Share = 0.15,
    pairs: knobs.Positive = 2,
    reuse: knobs.Positive = 1,
    distance: knobs.Positive = 1,
    budget: knobs.Count = 0,
    margin_scale: knobs.Scale = 0.0,
) -> groups_lib.Mined:
    """Off-policy pairs by the same rule: chosen responses are of other policies.

    Args:
      groups: judged, with responses that name another policy.
      axes: names of the A reward axes.
      seed: decides between equal gaps.
      rejected: of the others, or the policy's own.
      tau, unfailed, finished, high, margin, pairs, reuse, distance, budget, margin_scale: as in
        `rubric`.
    """
    rule = _Rule(tau, unfailed, high, margin, pairs, reuse, distance, margin_scale)

    def each(group, left_out):
        policies = {response.policy for response in group.responses}
        others = policies - {*pairing.OWN, groups_lib.CONTINUED}
        if not others:
            return "no response of another policy"
        pool = {"other": others, "own": others | set(pairing.OWN)}[rejected]
        both = pairing.usable(group, left_out, finished=finished, judged=True, policies=pool)
        other = [k for k in both if group.responses[k].policy in others]
        bad = other if rejected == "other" else [k for k in both if k not in other]
        return _pairs(group, axes, other, bad, rule, pairing.draws(seed, group.id), left_out)

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget, by_gap=True)


def _pairs(
    group: groups_lib.Group,
    axes: Sequence[str],
    good: Sequence[int],
    bad: Sequence[int],
    rule: _Rule,
    draw: random.Random,
    left_out: collections.Counter,
) -> list[groups_lib.Row] | str:
    """Rows with chosen from `good` and rejected from `bad`, or why there are none."""
    total, slack = group.total, pairing.TOLERANCE
    either = sorted({*good, *bad})
    if len(either) < 2 or not good or not bad:
        return pairing.FEW
    if min(total[either]) >= rule.high - slack:
        return "all responses reach high"
    if pairing.all_equal(group, either):
        return pairing.EQUAL
    good = [k for k in good if group.essential[k] >= rule.tau - slack]
    good = [k for k in good if group.unfailed[k] or not rule.unfailed]
    if not good:
        return "no response qualifies as chosen"
    gaps = total[good][:, None] - total[bad][None, :]
    wide = np.argwhere((gaps >= rule.margin - slack) & (gaps > slack)).tolist()
    if not wide:
        return "no gap reaches the margin"
    draw.shuffle(wide)
    wide.sort(key=lambda pair: -round(float(gaps[*pair]), 5))
    return _spread(group, axes, [(good[i], bad[j]) for i, j in wide], rule, left_out)


def _spread(group, axes, wide, rule, left_out) -> list[groups_lib.Row] | str:
    """Goes through candidate pairs in order and takes those that the diversity rule lets."""
    rows, used, problem = [], collections.Counter(), ""

    def refuse(reason):
        left_out[reason] += 1
        return problem or reason

    for pair in wide:
        if len(rows) == rule.pairs:
            break
        if any(used[k] >= rule.reuse for k in pair):
            continue
        if rule.distance > 1 and not _differ(group, pair, rule.distance):
            problem = refuse("texts too alike")
            continue
        row = pairing.gap_row(group, *pair, axes, margin_scale=rule.margin_scale)
        if row is None:
            problem = refuse(pairing.NO_AXIS)
            continue
        rows.append(row)
        used.update(pair)
    return rows or problem


def _differ(group, pair, distance) -> bool:
    return pairing.apart(*(group.responses[k].text for k in pair), distance)
