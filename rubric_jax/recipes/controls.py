"""Controls of `rubric`: what is left without its selection, or without the right rubric."""

from __future__ import annotations

import itertools
import random as random_lib
from collections.abc import Iterable, Sequence

from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import knobs, pairing


def random(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    finished: bool = True,
    pairs: knobs.Positive = 2,
    budget: knobs.Count = 0,
    margin_scale: knobs.Scale = 0.0,
) -> groups_lib.Mined:
    """Random pairs of own responses, each response in one, ordered by the rubric's total.

    Args:
      groups: judged.
      axes: names of the A reward axes.
      seed: of the draw.
      finished: use only responses that ended by themselves.
      pairs: per instance at most.
      budget: rows, 0 = all; drawn evenly.
      margin_scale: the label `margin` is this times the gap.
    """

    def each(group, left_out):
        own = pairing.usable(group, left_out, finished=finished, judged=True)
        if len(own) < 2:
            return pairing.FEW
        if pairing.all_equal(group, own):
            return pairing.EQUAL
        pairing.draws(seed, group.id).shuffle(own)
        rows, problem = [], ""
        for a, b in zip(own[::2], own[1::2]):
            if len(rows) == pairs:
                break
            if pairing.all_equal(group, (a, b)):
                reason, row = "drawn pair with equal scores", None
            else:
                good, bad = (a, b) if group.total[a] > group.total[b] else (b, a)
                row = pairing.gap_row(group, good, bad, axes, margin_scale=margin_scale)
                reason = pairing.NO_AXIS
            if row is None:
                left_out[reason] += 1
                problem = problem or reason
            else:
                rows.append(row)
        return rows or problem

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def reference_pairs(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    finished: bool = True,
    high: knobs.Share = 1.0,
    budget: knobs.Count = 0,
) -> groups_lib.Mined:
    """The reference against the own response of the smallest total.

    Args:
      groups: judged, with reference responses.
      axes: names of the A reward axes.
      seed: decides between equal totals.
      finished: use only responses that ended by themselves.
      high: skip instances of which all responses reach this.
      budget: rows, 0 = all; drawn evenly.
    """

    def each(group, left_out):
        if not group.reference.strip():
            return pairing.NO_REFERENCE
        own = pairing.usable(group, left_out, finished=finished, judged=True)
        own = [k for k in own if group.responses[k].text.split() != group.reference.split()]
        if not own:
            return "no judged response besides the reference"
        if min(group.total[own]) >= high - pairing.TOLERANCE:
            return "all responses reach high"
        pairing.draws(seed, group.id).shuffle(own)
        worst = min(own, key=lambda k: round(float(group.total[k]), 5))
        row = pairing.text_row(group, group.reference, group.responses[worst].text)
        rewards = {"chosen": {}, "rejected": groups_lib.rewards_of(group, worst, axes)}
        return [row._replace(rewards=rewards, sample={"rejected": worst})]

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def assign(ids: Iterable[str], *, seed: int) -> dict[str, str]:
    """Which instance's rubric judges an instance: for each one another one's, each used once.

    Raises:
      ValueError: fewer than two ids, or one that occurs twice.
    """
    ids = sorted(ids)
    if len(set(ids)) < len(ids):
        twice = next(a for a, b in itertools.pairwise(ids) if a == b)
        raise ValueError(f"The id {twice!r} occurs twice; give every instance its own.")
    if len(ids) < 2:
        raise ValueError(
            f"{len(ids)} instance(s): rubrics can only be exchanged between two or more. Use more "
            "instances, or another recipe than 'shuffled_rubric'."
        )
    random_lib.Random(f"{seed}").shuffle(ids)
    return dict(zip(ids, [*ids[1:], ids[0]]))
