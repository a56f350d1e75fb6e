"""Whether the final answer is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rubric_jax.evals import bootstrap
from rubric_jax.recipes import answers as parsing
from rubric_jax.recipes import groups as groups_lib


def answers(
    groups: Sequence[groups_lib.Group], axes: Sequence[str], *, pattern: str = ""
) -> dict[str, np.ndarray]:
    """`right answer` (exact after normalising, see recipes/answers.py; only for groups that know
    it), and `answer found`: share of responses that have a final answer at all: drift of format.

    pattern: a regular expression with one group; "" = after the last "answer is" or "answer:".
    """
    found, right = [], []
    for group in groups:
        said = [parsing.parse(r.text, pattern or parsing.PATTERN) for r in group.responses]
        found.append([bool(answer) for answer in said])
        true = parsing.normal(group.answer) if group.answer else ""
        right.append([answer == true for answer in said] if true else ())
    return {"right answer": bootstrap.mean_of(right), "answer found": bootstrap.mean_of(found)}
