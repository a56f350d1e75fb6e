"""What recipes share: which responses can be used, how two are compared, and limits over all rows.

Draws depend on the seed and the group's id alone, so other groups change nothing.
"""

from __future__ import annotations

import collections
import math
import random
from collections.abc import Callable, Collection, Sequence

from rubric_jax.recipes import groups as groups_lib

TOLERANCE = 1e-5  # rewards are float32 means: gaps closer than this are equal

FEW = "fewer than two usable responses"
EQUAL = "all responses equal"
NO_AXIS = "no axis favours the chosen response"
NO_REFERENCE = "no reference response"
CUT_OFF = "response cut off before its end"
PLACEHOLDER = "response with an image placeholder"
UNJUDGED = "response without a complete verdict"

OWN = ("",)
_IMAGE = "<image>"  # only a prompt may hold it; training refuses a response that does

# Gives the rows of a group, at least one, or the reason why there is none; counts what it leaves
# out.
Each = Callable[[groups_lib.Group, collections.Counter], list[groups_lib.Row] | str]


def mine(groups: Sequence[groups_lib.Group], each: Each) -> groups_lib.Mined:
    """Applies `each` to all groups, in order.

    Raises:
      ValueError: two groups have the same id.
    """
    mined, seen = groups_lib.Mined(groups=len(groups)), set()
    for group in groups:
        if group.id in seen:
            raise ValueError(f"Two groups have the id {group.id!r}; give every instance its own.")
        seen.add(group.id)
        found = each(group, mined.left_out)
        if not isinstance(found, str):
            found = _without_placeholders(found, mined.left_out)
        if isinstance(found, str):
            mined.reasons[group.id] = found
        else:
            mined.rows += found
    return mined


def _without_placeholders(
    rows: list[groups_lib.Row], left_out: collections.Counter
) -> list[groups_lib.Row] | str:
    """Rows of which no text, such as a reference, holds an image placeholder."""
    kept = [row for row in rows if not any(_IMAGE in text for text in row.branches.values())]
    if len(kept) < len(rows):
        left_out[PLACEHOLDER] += len(rows) - len(kept)
    return kept or PLACEHOLDER


def draws(seed: int, name: str) -> random.Random:
    """The random numbers of one group."""
    return random.Random(f"{seed}/{name}")


def usable(
    group: groups_lib.Group,
    left_out: collections.Counter,
    *,
    finished: bool,
    judged: bool,
    policies: Collection[str] = OWN,
    repeats: bool = False,
) -> list[int]:
    """Which responses a recipe may use, in their order; counts the others.

    Args:
      group: K responses.
      left_out: takes the counts.
      finished: only those that ended by themselves.
      judged: only those with a complete verdict.
      policies: only of these; others are none of the recipe's business and not counted.
      repeats: keep responses with a text that an earlier one has too.
    """
    kept, seen = [], set()
    for k, response in enumerate(group.responses):
        if response.policy not in policies:
            continue
        words = tuple(response.text.split())
        if not words:
            left_out["empty response"] += 1
        elif _IMAGE in response.text:
            left_out[PLACEHOLDER] += 1
        elif finished and not response.finished:
            left_out[CUT_OFF] += 1
        elif judged and not group.valid[k]:
            left_out[UNJUDGED] += 1
        elif words in seen and not repeats:
            left_out["response with the text of another"] += 1
        else:
            seen.add(words)
            kept.append(k)
    return kept


def best(group: groups_lib.Group) -> int | None:
    """The finished own response of the largest total, the first of equals; None without any."""
    candidates = usable(group, collections.Counter(), finished=True, judged=True)
    return max(candidates, key=lambda k: _level(group.total[k]), default=None)


def all_equal(group: groups_lib.Group, candidates: Sequence[int]) -> bool:
    totals = [group.total[k] for k in candidates]
    return max(totals) - min(totals) <= TOLERANCE


def leading_axis(
    group: groups_lib.Group, chosen: int, rejected: int, axes: Sequence[str]
) -> str | None:
    """The axis with the largest gap in favour of `chosen`, the first of equals; None without."""
    gaps = {
        axis: _level(group.axes[chosen, a] - group.axes[rejected, a])
        for a, axis in enumerate(axes)
        if group.known[a]
    }
    axis = max(gaps, key=gaps.get, default=None)
    return axis if axis is not None and gaps[axis] > 0 else None


def gap_row(
    group: groups_lib.Group,
    chosen: int,
    rejected: int,
    axes: Sequence[str],
    *,
    margin_scale: float = 0.0,
) -> groups_lib.Row | None:
    """A pair ordered by the total, with its labels; None if no axis favours the chosen one."""
    axis = leading_axis(group, chosen, rejected, axes)
    if axis is None:
        return None
    total = {"chosen": float(group.total[chosen]), "rejected": float(group.total[rejected])}
    gap = total["chosen"] - total["rejected"]
    row = own_row(group, chosen, rejected, axes)
    return row._replace(axis=axis, margin=margin_scale * gap, total=total)


def own_row(
    group: groups_lib.Group, chosen: int, rejected: int, axes: Sequence[str]
) -> groups_lib.Row:
    """A pair of two of the group's responses, with the rewards that are known."""
    sample = {"chosen": chosen, "rejected": rejected}
    return groups_lib.Row(
        group=group.id,
        branches={name: group.responses[k].text for name, k in sample.items()},
        rewards={name: groups_lib.rewards_of(group, k, axes) for name, k in sample.items()},
        sample=sample,
    )


def text_row(group: groups_lib.Group, chosen: str, rejected: str) -> groups_lib.Row:
    """A pair of texts that nobody judged."""
    return groups_lib.Row(
        group=group.id,
        branches={"chosen": chosen, "rejected": rejected},
        rewards={"chosen": {}, "rejected": {}},
    )


def apart(a: str, b: str, least: int) -> bool:
    """Whether the edit distance of two texts, in words, is at least `least`."""
    x, y = a.split(), b.split()
    before = list(range(len(y) + 1))
    for i, word in enumerate(x, start=1):
        row = [i]
        for j, other in enumerate(y, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
        if min(row) >= least:  # it never shrinks again
            return True
        before = row
    return before[-1] >= least


def limit(
    mined: groups_lib.Mined,
    groups: Sequence[groups_lib.Group],
    *,
    seed: int,
    cap: int = 0,
    keep: float = 1.0,
    budget: int = 0,
    by_gap: bool = False,
) -> groups_lib.Mined:
    """Drops rows over all groups: beyond `cap` per source, then beyond `keep`, then `budget`.

    The rows of the largest gap in total stay, or with `by_gap` False those of a draw. Equal gaps go
    by the draw too. The others keep their order. Changes and returns `mined`.

    Args:
      mined: pairs, or lists.
      groups: their groups.
      seed: of the draw.
      cap: rows per source; 0 = all.
      keep: share of the rows.
      budget: rows; 0 = all.
      by_gap: rank by gap.
    """
    if not cap and keep == 1 and not budget:
        return mined
    source = {group.id: group.source for group in groups}
    ranked = _ranked(mined.rows, seed, by_gap)
    if cap:
        counts: collections.Counter = collections.Counter()
        kept = []
        for i in ranked:
            counts[source[mined.rows[i].group]] += 1
            if counts[source[mined.rows[i].group]] <= cap:
                kept.append(i)
        ranked = _drop(mined, ranked, kept, "over the cap of its source")
    number = math.ceil(keep * len(ranked) - 1e-9)
    ranked = _drop(mined, ranked, ranked[:number], "not in the share that is kept")
    if budget:
        ranked = _drop(mined, ranked, ranked[:budget], "over the budget")
    mined.rows = [mined.rows[i] for i in sorted(ranked)]
    return mined


def _ranked(rows: Sequence[groups_lib.Row], seed: int, by_gap: bool) -> list[int]:
    """Positions of the rows, those to keep first."""
    nth: collections.Counter = collections.Counter()
    keys = []
    for row in rows:
        gap = _level(row.total["chosen"] - row.total["rejected"]) if by_gap else 0
        keys.append((-gap, draws(seed, f"{row.group}/{nth[row.group]}").random()))
        nth[row.group] += 1
    return sorted(range(len(rows)), key=keys.__getitem__)


def _drop(mined, ranked, kept, reason) -> list[int]:
    """Counts the rows, and the groups of which none is left."""
    lost = {mined.rows[i].group for i in ranked} - {mined.rows[i].group for i in kept}
    if len(kept) < len(ranked):
        mined.left_out[reason] += len(ranked) - len(kept)
    mined.reasons |= dict.fromkeys(sorted(lost), reason)
    return kept


def _level(value: float) -> int:
    """Rewards and gaps in steps of the tolerance, so that rounding makes no difference."""
    return round(float(value) / TOLERANCE)
