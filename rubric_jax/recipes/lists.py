"""Lists of responses with their rewards, for listwise objectives and group policy gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import knobs, pairing


def listwise(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    count: knobs.Count = 4,
    finished: bool = True,
    repeats: bool = False,
    budget: knobs.Count = 0,
) -> groups_lib.Mined:
    """The first `count` own responses of an instance as response_0, response_1, ..., as sampled.

    Their order says nothing; the rewards do. Rows have no axis.

    Args:
      groups: judged.
      axes: names of the A reward axes.
      seed: of the draw for `budget`.
      count: length of the lists; 0 = the most responses that a group has. Groups with fewer usable
        responses are skipped.
      finished: use only responses that ended by themselves.
      repeats: let equal texts stand in a list, as they were sampled; for policy gradients.
      budget: rows, 0 = all; drawn evenly.

    Raises:
      ValueError: lists of one.
    """
    sizes = [sum(r.policy in pairing.OWN for r in group.responses) for group in groups]
    names = branches(count or max(sizes, default=2))

    def each(group, left_out):
        own = pairing.usable(group, left_out, finished=finished, judged=True, repeats=repeats)
        if len(own) < len(names):
            return "fewer usable responses than the list is long"
        sample = dict(zip(names, own))
        if pairing.all_equal(group, list(sample.values())):
            return pairing.EQUAL
        return [_row(group, sample, axes)]

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def group(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    finished: bool = False,
    judged: bool = True,
    length: str = "",
    cap: knobs.Share = 0.5,
    tolerance: knobs.Scale = 0.2,
) -> groups_lib.Mined:
    """Every own response of an instance under its own number, whatever it says; others are absent.

    For policy gradients on fresh samples: empty responses, repeats and groups whose responses are
    all worth the same stand in the batch, as the estimator wants them. Rows have no axis.

    Args:
      groups: judged, unless `judged` is False.
      axes: names of the A reward axes.
      seed: nothing is drawn.
      finished: leave out responses that were cut off before their end.
      judged: leave out responses without a complete verdict, and give the others' rewards.
      length: an axis of the run on which long responses lose; "" = none. See `length_rewards`.
      cap, tolerance: of it.

    Raises:
      ValueError: the run has no such axis, or a criterion of a rubric counts for it.
    """
    del seed
    if length and length not in axes:
        raise ValueError(f"recipe 'group': length is {length!r}; config.data.axes must name it.")
    mined = groups_lib.Mined(groups=len(groups))
    for each in groups:
        sample = {}
        for k, response in enumerate(each.responses):
            if finished and not response.finished:
                mined.left_out[pairing.CUT_OFF] += 1
            elif judged and not each.valid[k]:
                mined.left_out[pairing.UNJUDGED] += 1
            else:
                sample[f"response_{k}"] = k
        if len(sample) < 2:
            mined.reasons[each.id] = pairing.FEW
            continue
        row = _row(each, sample, axes)
        if length:
            if each.known[list(axes).index(length)]:
                raise ValueError(
                    f"{each.id!r}: its rubric has criteria on the axis {length!r} too."
                )
            values = length_rewards(each, list(sample.values()), cap=cap, tolerance=tolerance)
            own = dict(zip(sample, values.tolist(), strict=True))
            rewards = {name: {**row.rewards[name], length: own[name]} for name in sample}
            row = row._replace(rewards=rewards)
        mined.rows.append(row)
    return mined


def length_rewards(
    group: groups_lib.Group, responses: Sequence[int], *, cap: float, tolerance: float
) -> np.ndarray:
    """1 - the penalty of each response for being longer than the right ones of its group.

    penalty = min(max(tokens / mean tokens of the right responses - 1 - tolerance, 0), cap)

    HARMO, arXiv:2510.05283, penalises length relative to the group, up to a cap and beyond a
    tolerance, where some response is right; the form is ours. Right: every essential criterion is
    fully met. Without a right one all are 1. [K'], in [1 - cap, 1].
    """
    tokens = np.array([group.responses[k].tokens for k in responses], float)
    right = group.valid[responses] & (group.essential[responses] >= 1 - pairing.TOLERANCE)
    if not right.any():
        return np.ones(len(tokens))
    excess = tokens / max(tokens[right].mean(), 1.0) - 1 - tolerance
    return 1 - np.clip(excess, 0.0, cap)


def _row(group: groups_lib.Group, sample: dict[str, int], axes: Sequence[str]) -> groups_lib.Row:
    return groups_lib.Row(
        group=group.id,
        branches={name: group.responses[k].text for name, k in sample.items()},
        rewards={name: groups_lib.rewards_of(group, k, axes) for name, k in sample.items()},
        total={name: float(group.total[k]) for name, k in sample.items()},
        sample=sample,
    )


def branches(count: int) -> tuple[str, ...]:
    """response_0 to response_{count - 1}."""
    if count < 2:
        raise ValueError(f"A list of {count} response(s) compares nothing; it needs at least 2.")
    return tuple(f"response_{k}" for k in range(count))
