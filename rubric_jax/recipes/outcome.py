"""Pairs by the final answer alone: right against wrong. The control of `rubric`.

After the correctness pipeline of InternVL's MMPR data (arXiv:2411.10442).
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence

from rubric_jax.recipes import answers, knobs, pairing
from rubric_jax.recipes import groups as groups_lib

_NO_WRONG = "no response is clearly wrong"
_CONTAINED = "wrong answer that contains the right one"


def outcome(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    pattern: knobs.Pattern = "",
    unparsable: bool = True,
    pairs: knobs.Positive = 15,
    budget: knobs.Count = 0,
) -> groups_lib.Mined:
    """Pairs right with wrong own responses, drawn evenly from all such pairs of an instance.

    Rewards go along where there are verdicts; they order nothing, and the row has no axis.

    Args:
      groups: with answers.
      axes: names of the A reward axes.
      seed: of the draw.
      pattern: a regular expression with one group around the final answer; its last match counts;
        '' = answers.PATTERN.
      unparsable: let responses without a final answer stand as rejected too.
      pairs: per instance at most.
      budget: rows, 0 = all; drawn evenly.
    """

    def each(group, left_out):
        found = sort(group, left_out, pattern)
        if isinstance(found, str):
            return found
        wrong = sorted(found.wrong + found.unparsable) if unparsable else found.wrong
        if not wrong:
            return _NO_WRONG
        return draw_pairs(group, itertools.product(found.right, wrong), axes, seed, pairs)

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def style_matched(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    pattern: knobs.Pattern = "",
    tolerance: knobs.Share = 0.1,
    pairs: knobs.Positive = 15,
    budget: knobs.Count = 0,
) -> groups_lib.Mined:
    """`outcome` pairs that look alike: both end, both give an answer, and both are as long.

    Args:
      groups: with answers.
      axes: names of the A reward axes.
      seed: of the draw.
      pattern: as in `outcome`.
      tolerance: by how much the numbers of words may differ, as a share of the larger one.
      pairs: per instance at most.
      budget: rows, 0 = all; drawn evenly.
    """

    def each(group, left_out):
        found = sort(group, left_out, pattern)
        if isinstance(found, str):
            return found
        if not found.wrong:
            return _NO_WRONG
        words = [len(response.text.split()) for response in group.responses]
        alike = [
            (c, r)
            for c, r in itertools.product(found.right, found.wrong)
            if group.responses[r].finished  # right ones are
            and abs(words[c] - words[r]) <= tolerance * max(words[c], words[r])
        ]
        if not alike:
            return "no wrong response is as long as a right one"
        return draw_pairs(group, alike, axes, seed, pairs)

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def sort(
    group: groups_lib.Group, left_out: collections.Counter, pattern: str
) -> answers.Pools | str:
    """Responses by their answer, some of them right, or why there are none.

    Right ones are finished, and wrong ones do not contain the right answer.
    """
    if not group.answer.strip():
        return "no right answer known"
    own = pairing.usable(group, left_out, finished=False, judged=False)
    if len(own) < 2:
        return pairing.FEW
    found = answers.pools(group, own, pattern)
    if len(found.unparsable) == len(own):
        return "no response has a final answer"
    if not found.right:
        return "no response is right"
    if len(found.right) == len(own):
        return "all responses are right"
    right = answers.normal(group.answer)
    clear = [
        k
        for k in found.wrong
        if not answers.contains(answers.parse(group.responses[k].text, pattern), right)
    ]
    whole = [k for k in found.right if group.responses[k].finished]
    for reason, count in (
        (_CONTAINED, len(found.wrong) - len(clear)),
        (pairing.CUT_OFF, len(found.right) - len(whole)),
    ):
        if count:
            left_out[reason] += count
    if not whole:
        return "every right response is cut off"
    return answers.Pools(whole, clear, found.unparsable)


def draw_pairs(group, candidates, axes, seed, number) -> list[groups_lib.Row]:
    """At most `number` of the (chosen, rejected) candidates, each as likely as any other."""
    candidates = list(candidates)
    drawn = pairing.draws(seed, group.id).sample(candidates, min(number, len(candidates)))
    total = {"chosen": 1.0, "rejected": 0.0}
    return [
        pairing.own_row(group, chosen, rejected, axes)._replace(total=total)
        for chosen, rejected in drawn
    ]
