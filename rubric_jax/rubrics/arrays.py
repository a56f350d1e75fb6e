"""Verdicts of many instances as arrays: what the aggregations read.

An instance with two criteria, padded to three, on the axes (correctness, format); its second
response got no verdict on criterion b:

  criteria  a: essential, weight 3, correctness     b: additional, weight 1, format
  weights   [3, 1, 0]           essential [T, F, F]      axis_of  [[1, 0], [0, 1], [0, 0]]
  scores    [[1, .5, 0], [1, 0, 0]]                      mask     [[T, T, F], [T, F, F]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.rubrics import records


class Scores(NamedTuple):
    """Criterion scores of B instances with K responses and C criteria each."""

    scores: types.Array  # float32 [B, K, C], in [0, 1]; 0 where the mask is False
    weights: types.Array  # float32 [B, C], > 0; 0 = padding
    essential: types.Array  # bool [B, C]
    axis_of: types.Array  # float32 [B, C, A], one-hot
    penalty: types.Array  # bool [B, C]; True: the criterion names a fault
    mask: types.Array  # bool [B, K, C]; the criterion is real and was scored

    @property
    def real(self) -> types.Array:
        """True for criteria, False for padding. [B, C]."""
        return self.weights > 0

    @property
    def complete(self) -> types.Array:
        """True for responses with a score on every criterion. [B, K]."""
        real = self.real[:, None, :]
        return jnp.all(self.mask | ~real, axis=-1) & jnp.any(real, axis=-1)

    @property
    def merits(self) -> types.Array:
        """Scores in which more is better everywhere; 0 where the mask is False. [B, K, C]."""
        merits = jnp.where(self.penalty[:, None, :], 1.0 - self.scores, self.scores)
        return jnp.where(self.mask, merits, 0.0)


def stack(
    rubrics: Sequence[records.Rubric],
    scores: Sequence[Sequence[Mapping[str, float] | None]],
    axes: Sequence[str],
    *,
    responses: int = 0,
    criteria: int = 0,
) -> Scores:
    """NumPy arrays of rubrics and scores.

    Args:
      rubrics: of each of B instances.
      scores: per instance and response the scores by criterion id; None or a missing id = no
        verdict. Instances may have fewer responses than others.
      axes: names of the A reward axes.
      responses, criteria: pad to this many at least (K and C), for equal shapes over batches.

    Raises:
      ValueError: an unknown axis, scores of a criterion the rubric does not have, a score outside
        [0, 1].
    """
    if len(rubrics) != len(scores):
        raise ValueError(f"{len(rubrics)} rubrics for {len(scores)} lists of scores.")
    k = max([responses, *map(len, scores)])
    c = max([criteria, *(len(rubric.criteria) for rubric in rubrics)])
    b, a = len(rubrics), len(axes)
    out = Scores(
        scores=np.zeros((b, k, c), np.float32),
        weights=np.zeros((b, c), np.float32),
        essential=np.zeros((b, c), bool),
        axis_of=np.zeros((b, c, a), np.float32),
        penalty=np.zeros((b, c), bool),
        mask=np.zeros((b, k, c), bool),
    )
    for i, (rubric, verdicts) in enumerate(zip(rubrics, scores)):
        records.check_axes(rubric, axes, where=f"rubric {rubric.key[:12]}")
        for j, criterion in enumerate(rubric.criteria):
            out.weights[i, j] = criterion.weight
            out.essential[i, j] = criterion.kind == "essential"
            out.axis_of[i, j, axes.index(criterion.axis)] = 1.0
            out.penalty[i, j] = criterion.penalty
        _fill(out, i, rubric, verdicts)
    return out


def _fill(out: Scores, i: int, rubric: records.Rubric, verdicts) -> None:
    column = {criterion.id: j for j, criterion in enumerate(rubric.criteria)}
    for n, verdict in enumerate(verdicts):
        for ident, score in (verdict or {}).items():
            if ident not in column:
                raise ValueError(
                    f"A score for criterion {ident!r}, which the rubric of {rubric.key[:12]} does "
                    f"not have ({', '.join(column)}). Were the verdicts made with this pool?"
                )
            if not 0 <= score <= 1:
                raise ValueError(f"{ident} of {rubric.key[:12]} scores {score}; not in [0, 1].")
            out.scores[i, n, column[ident]] = score
            out.mask[i, n, column[ident]] = True
