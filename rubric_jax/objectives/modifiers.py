"""What a config puts around a term: {"dpo": {..., "with": {"ld": {"tail": 0.5}, "wpo": {}}}}.

A view changes what the term sees, in the order of the config; it returns (logps, labels):

  ld             LD-DPO: tokens beyond the shorter response count less
  spans          tokens of spans that the data name weigh more or less
  reward_margin  a margin in proportion to the reward gap (ODPO)
  gated_margin   the same, where additional axes count only if every essential one passes
  length_margin  a margin against the longer response (R-DPO)
  by_head        scores of a head in place of log-ratios: the term trains a reward model

A factor multiplies the term's loss [B]; it sees the data as they are and has no gradient:

  wpo            how likely the pair is under the policy
  axis_weight    the weight of the axis that ordered the pair (loss weighting)
  consistent     0 where `win` is worse on an essential axis

`win` and `lose` are those of the term; a modifier that compares them needs a term that has them.
A view that adds to labels.margin needs a term that reads it (READS_MARGIN).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.objectives import scores


def ld(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    tail: float,
):
    """Weighs tokens past the length of the shorter response by `tail`.

    Liu et al. (LD-DPO), arXiv:2409.06411; TRL's ld_alpha. Lengths count tokens; token weights are
    multiplied.

    Args:
      tail: in [0, 1]; 1 changes nothing, 0 cuts both sides to the shorter length.
    """
    real = logps.mask[:, (win, lose), :] != 0  # [B, 2, T]
    shorter = jnp.min(jnp.sum(real, axis=-1), axis=-1)  # [B]
    beyond = jnp.cumsum(real, axis=-1) > shorter[:, None, None]
    weight = jnp.where(beyond & (shorter > 0)[:, None, None], tail, 1.0).astype(logps.mask.dtype)
    mask = jnp.asarray(logps.mask)
    mask = mask.at[:, win].multiply(weight[:, 0]).at[:, lose].multiply(weight[:, 1])
    return logps._replace(mask=mask), labels


def spans(
    logps: types.Logps,
    labels: types.Labels,
    *,
    inside: float = 1.0,
    outside: float = 1.0,
    name: str = "",
):
    """Weighs tokens by spans that the data name (columns <response>_spans, docs/data.md).

    weight = inside * (weight of the token's span),   and `outside` for a token of no span

    Only this term sees the weights. A branch whose tokens all weigh 0 has the log-ratio 0, and is
    not absent: with `outside` 0, `dpo` is log 2 where two responses name no span.

    Args:
      inside, outside: >= 0.
      name: of the spans, where the data have several kinds.
    """
    if logps.spans is None or name not in logps.spans:
        there = ", ".join(map(repr, logps.spans or ())) or "none"
        raise ValueError(
            f"The batch has no spans named {name!r} (it has {there}); load it with "
            "spans=objective.spans."
        )
    given = jnp.asarray(logps.spans[name])
    weights = jnp.where(given == types.OUTSIDE, outside, inside * given)
    return logps._replace(weights=weights.astype(logps.mask.dtype)), labels


def reward_margin(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    weights: types.PerAxis,
    scale: float = 1.0,
):
    """margin += scale * weights . (rewards of win - rewards of lose).

    Amini et al. (ODPO), arXiv:2402.10571, with the identity for its function of the gap. Order
    pairs by the same rewards, since a negative gap relaxes the logit.

    Args:
      weights: [A], >= 0. scale: >= 0, from rewards to beta * log-ratio.
    """
    gap = scores.reward_gap(labels, win, lose, weights)  # [B]
    return logps, labels._replace(margin=labels.margin + scale * gap)


def gated_margin(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    weights: types.PerAxis,
    essential: types.PerAxis,
    scale: float = 1.0,
    pass_at: float = 1.0,
):
    """`reward_margin`, its additional axes counted only where both sides pass every essential one.

    margin += scale * (sum_E w_a d_a + g sum_{not E} w_a d_a),  g = 1 iff rewards_a >= pass_at on
    every axis of E for both, else 0: a bonus never buys back an essential failure. Ours.

    Args:
      weights: [A], >= 0. scale: >= 0.
      essential: [A], > 0 on the essential axes and 0 on the others.
      pass_at: least reward that passes.
    """
    rewards = jax.lax.stop_gradient(labels.rewards)
    gap = (rewards[:, win] - rewards[:, lose]) * scores.per_row(labels, weights)  # [B, A]
    gate = jnp.asarray(essential)[None] > 0  # [1, A]
    passed = jnp.all((jnp.minimum(rewards[:, win], rewards[:, lose]) >= pass_at) | ~gate, axis=-1)
    margin = scale * jnp.sum(jnp.where(gate | passed[:, None], gap, 0.0), axis=-1)
    return logps, labels._replace(margin=labels.margin + margin)


def length_margin(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    per_token: float,
):
    """margin -= per_token * (tokens of win - tokens of lose).

    Park et al. (R-DPO), arXiv:2403.19159: the policy then fits a reward from which per_token nats
    are taken for every token.

    Args:
      per_token: >= 0; the paper's alpha.
    """
    tokens = jnp.sum(logps.mask != 0, axis=-1).astype(logps.mask.dtype)  # [B, N]
    gap = per_token * (tokens[:, win] - tokens[:, lose])
    return logps, labels._replace(margin=labels.margin - gap)


def by_head(logps: types.Logps, labels: types.Labels, *, head: types.BranchHead):
    """Lets a head's score stand for every branch's log-ratio: `dpo` with beta 1 is then `bt`.

    Works around terms that read log-ratios or summed log-probabilities of whole branches: the
    score stands at the first token, all else is 0. The reference is not read.

    Args:
      head: of one output.
    """
    real = logps.mask != 0
    first = real & (jnp.cumsum(real, axis=-1) == 1)  # [B, N, T]
    score = logps.heads[head] * first  # [B, N, 1] at the first token
    mask = real.astype(logps.mask.dtype)  # a score has no tokens that could weigh more or less
    return logps._replace(policy=score, ref=jnp.zeros_like(score), mask=mask, weights=None), labels


def wpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
):
    """exp(mean log-probability of win + that of lose), in (0, 1]. Zhou et al., arXiv:2406.11827

    The paper's weight without its alignment, which divides each probability by sum_v p_v^2 and so
    needs whole distributions; TRL's use_weighting has it.
    """
    del labels
    mean = scores.mean_logp(logps, win) + scores.mean_logp(logps, lose)  # [B]
    return jax.lax.stop_gradient(jnp.exp(jnp.minimum(mean, 0.0)))


def axis_weight(logps: types.Logps, labels: types.Labels, *, weights: types.PerAxis):
    """weights[axis] of each row: DPO with loss weighting, MODPO's baseline (see check_axis)."""
    del logps
    weights = scores.per_row(labels, weights)  # [B, A]
    own = jax.nn.one_hot(labels.axis, weights.shape[-1], dtype=weights.dtype)
    return jnp.sum(own * weights, axis=-1)  # [B]


def check_axis(labels: types.Labels, *, weights: types.PerAxis, **_) -> None:
    """Raises ValueError where a row is ordered by no axis. NumPy, on the host."""
    count = weights.shape[-1]
    bad = (labels.weight > 0) & ((labels.axis < 0) | (labels.axis >= count))
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(
            f"Row {row} is ordered by axis {labels.axis[row]}, but there are {count} axes; "
            "axis_weight needs one of them."
        )


def consistent(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    essential: types.PerAxis,
):
    """1 where `win` is at least as good on every essential axis, else 0: reward consistency.

    arXiv:2504.11337. A recipe that drops such pairs does the same and saves their compute.

    Args:
      essential: [A], > 0 on the essential axes and 0 on the others.
    """
    scores.check_axes(labels, essential)
    gap = labels.rewards[:, win] - labels.rewards[:, lose]  # [B, A]
    fine = jnp.all((gap >= 0) | ~(jnp.asarray(essential)[None] > 0), axis=-1)
    return fine.astype(logps.mask.dtype)


VIEWS = {
    "ld": ld,
    "spans": spans,
    "reward_margin": reward_margin,
    "gated_margin": gated_margin,
    "length_margin": length_margin,
    "by_head": by_head,
}
FACTORS = {"wpo": wpo, "axis_weight": axis_weight, "consistent": consistent}
MODIFIERS = VIEWS | FACTORS
ADDS_MARGIN = frozenset({"reward_margin", "gated_margin", "length_margin"})
# What only the data can show: (labels, **traced knobs) -> None or ValueError, on the host.
CHECKS = {"axis_weight": check_axis}
READS_REWARDS = frozenset({"reward_margin", "gated_margin", "consistent"})
READS_AXIS = frozenset({"axis_weight"})
# With these a term reads no log-probability of the reference.
WITHOUT_REFERENCE = frozenset({"by_head"})
