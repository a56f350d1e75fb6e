"""Off-policy pairs whose rejected response lost sight of the picture halfway. Dropout-NTP.

InternVL's MMPR data (arXiv:2411.10442): the first half of a good response, continued by the policy
without the picture.

  chosen    i see a red circle at top left . so the answer is one .
  rejected  i see a red circle | and a blue square . so the answer is two .

`prompts` says what is to be continued; whoever samples adds what comes out to the groups, as
responses with policy "continued" whose text is the first part with its continuation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rubric_jax.recipes import groups as groups_lib
from rubric_jax.recipes import knobs, pairing

_SENTENCE = re.compile(r"\s*\S.*?[.!?](?=\s)", re.DOTALL)


class Start(NamedTuple):
    """What to continue: the prompt ends in an assistant's message that says `first`."""

    group: str  # id
    text: str  # the whole response, which will be chosen
    first: str  # its first part, without the space behind it


def continuation(
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    *,
    seed: int,
    of: Literal["best", "first", "reference"] = "best",
    ratio: knobs.Share = 0.5,
    cut: Literal["share", "sentence"] = "share",
    finished: bool = True,
    pairs: knobs.Positive = 1,
    budget: knobs.Count = 0,
) -> groups_lib.Mined:
    """Pairs a response with continuations of its first part; knobs as they were for `prompts`.

    Args:
      groups: judged (for `of` best), with continued responses, which need no verdict.
      axes: names of the A reward axes.
      seed: of the draw.
      of: what is chosen: the policy's own response of the largest total, its first one that ended,
        whether judged or not, or the reference.
      ratio: share of the words that the first part has.
      cut: the first part is that share, or the first sentence (M3ID, arXiv:2403.14003).
      finished: use only continuations that ended by themselves.
      pairs: per instance at most, in the order of the responses.
      budget: rows, 0 = all; drawn evenly.
    """

    def each(group, left_out):
        start = _start(group, of, ratio, cut)
        if isinstance(start, str):
            return start
        best = _own(group, of)
        judged = best is not None and group.valid[best]
        rewards = groups_lib.rewards_of(group, best, axes) if judged else {}
        rows = []
        policies = {groups_lib.CONTINUED}
        for k in pairing.usable(
            group, left_out, finished=finished, judged=False, policies=policies
        ):
            text = group.responses[k].text
            if not text.startswith(start.first):
                left_out["continuation of another text"] += 1
            elif text.split() == start.text.split():
                left_out["continuation equal to the chosen response"] += 1
            elif len(rows) < pairs:
                row = pairing.text_row(group, start.text, text)
                sample = {"rejected": k} | ({} if best is None else {"chosen": best})
                rows.append(
                    row._replace(rewards={"chosen": rewards, "rejected": {}}, sample=sample)
                )
        return rows or "no usable continuation"

    mined = pairing.mine(groups, each)
    return pairing.limit(mined, groups, seed=seed, budget=budget)


def prompts(
    groups: Sequence[groups_lib.Group],
    *,
    of: Literal["best", "first", "reference"] = "best",
    ratio: knobs.Share = 0.5,
    cut: Literal["share", "sentence"] = "share",
) -> list[Start]:
    """What the policy has to continue without the picture, for the groups where there is any."""
    starts = [_start(group, of, ratio, cut) for group in groups]
    return [start for start in starts if isinstance(start, Start)]


def _own(group: groups_lib.Group, of: str) -> int | None:
    """The policy's own response that is chosen, if it is one."""
    if of == "best":
        return pairing.best(group)
    if of == "first":
        return next(iter(pairing.usable(group, Counter(), finished=True, judged=False)), None)
    return None


def _start(group: groups_lib.Group, of: str, ratio: float, cut: str) -> Start | str:
    own = _own(group, of)
    if own is not None:
        text = group.responses[own].text
    elif of == "reference":
        text = group.reference
    else:
        return "no judged response that ended" if of == "best" else "no response that ended"
    if not text.strip():
        return pairing.NO_REFERENCE
    words = text.split(" ")
    first = " ".join(words[: int(len(words) * ratio)])
    if cut == "sentence":
        ended = _SENTENCE.match(text)
        first = ended.group() if ended else ""
    if not first.strip() or first.split() == text.split():
        return "response too short to be cut"
    return Start(group.id, text, first)
