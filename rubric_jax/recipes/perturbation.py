"""Off-policy pairs: a good response against an edit of it that says something false.

Nobody has judged the edits, so these rows have no axis and edits have no rewards.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

from rubric_jax.recipes import edits, knobs, pairing
from rubric_jax.recipes import groups as groups_lib


def perturbation(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    of: Literal["reference", "best"] = "reference",
    swaps: knobs.Positive = 1,
    slots: knobs.Slots = edits.SLOTS,
    pairs: knobs.Positive = 1,
    budget: knobs.Count = 0,
) -> groups_lib.Mined:
    """Swaps words for others of their kind.

    Args:
      groups: with reference responses, or with verdicts for `of` best.
      axes: names of the A reward axes.
      seed: of the draws.
      of: what is edited: the reference, or the policy's own response of the largest total.
      swaps: words replaced, or as many as there are.
      slots: lists of interchangeable words.
      pairs: different edits per instance at most.
      budget: rows, 0 = all; drawn evenly.
    """
    each = functools.partial(
        _each, axes=axes, seed=seed, of=of, swaps=swaps, slots=slots, pairs=pairs, same_length=False
    )
    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def style_constrained(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    slots: knobs.Slots = edits.SLOTS,
    pairs: knobs.Positive = 1,
    budget: knobs.Count = 0,
) -> groups_lib.Mined:
    """The reference against itself with exactly one error: same words but one slot, same length.

    In the manner of VaPR (arXiv:2510.01700), by rule in place of a model.

    Args:
      groups: with reference responses.
      axes: names of the A reward axes.
      seed: of the draws.
      slots: lists of interchangeable words.
      pairs: different edits per instance at most.
      budget: rows, 0 = all; drawn evenly.
    """
    each = functools.partial(
        _each,
        axes=axes,
        seed=seed,
        of="reference",
        swaps=1,
        slots=slots,
        pairs=pairs,
        same_length=True,
    )
    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def _each(group, left_out, *, axes, seed, of, swaps, slots, pairs, same_length):
    best = pairing.best(group) if of == "best" else None
    if of == "best" and best is None:
        return "no judged response that ended"
    text = group.reference if best is None else group.responses[best].text
    if not text.strip():
        return pairing.NO_REFERENCE
    found = edits.find(text, slots, same_length=same_length)
    if not found:
        return "no slot to swap"
    draw, texts = pairing.draws(seed, group.id), {}
    for _ in range(8 * pairs):  # two draws may give the same edit
        texts[edits.swap(text, found, swaps, draw)] = None
        if len(texts) == pairs:
            break
    rows = [pairing.text_row(group, text, edit) for edit in texts]
    if best is None:
        return rows
    rewards = {"chosen": groups_lib.rewards_of(group, best, axes), "rejected": {}}
    return [row._replace(rewards=rewards, sample={"chosen": best}) for row in rows]
