"""Multi-objective preference: one axis orders the pair, the others shift its logit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.objectives import scores


def modpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    weights: types.PerAxis,
    scale: float = 1.0,
):
    """Ranks `win` above `lose` on the pair's own axis, after paying for the other axes.

    logit = (beta * (log-ratio gap) - scale * sum_{a != axis} w_a * (reward gap)_a) / w_axis
    loss  = -log sigmoid(logit)                            Zhou et al., arXiv:2310.03708

    With all weight on the pair's axis this is `dpo` without a margin. The reward of the pair's own
    axis is not read: the pair's order stands for it. A positive gap on the other axes asks for a
    larger log-ratio gap, a negative one for a smaller. Only the direction of `weights` and
    beta / |weights| matter.

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: rewards [B, N, A]; axis [B], the axis that ordered each pair.
      win, lose: indices of the two branches.
      beta: strength of the pull towards the reference, > 0.
      weights: [A], >= 0, and > 0 on every axis that orders a pair (see `check`).
      scale: >= 0, from the units of the rewards to those of beta * log-ratio; 1 where rewards are
        implicit rewards, 1 to 3 for rewards in [0, 1] (ours).

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B].
    """
    present = logps.present(win, lose)
    logit, margin = _logit(logps, labels, win, lose, beta, weights, scale)
    return scores.silent(present, -jax.nn.log_sigmoid(logit), logit=logit, margin=margin)


def modpo_hinge(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    weights: types.PerAxis,
    scale: float = 1.0,
):
    """`modpo` with a hinge: loss = max(0, 1 - logit), on the same logit. Arguments as there."""
    present = logps.present(win, lose)
    logit, margin = _logit(logps, labels, win, lose, beta, weights, scale)
    return scores.silent(present, jax.nn.relu(1 - logit), logit=logit, margin=margin)


def _logit(logps, labels, win, lose, beta, weights, scale):
    """(logit [B], margin [B]) of `modpo`."""
    weights = scores.per_row(labels, weights)  # [B, A]
    own = jax.nn.one_hot(labels.axis, weights.shape[-1], dtype=bool)  # [B, A]
    rewards = jax.lax.stop_gradient(labels.rewards)
    gap = jnp.where(own, 0.0, rewards[:, win] - rewards[:, lose])  # [B, A]
    margin = scale * jnp.sum(gap * weights, axis=-1)  # [B]
    # A padding row's axis may have no weight; a real row's shows as an infinite logit.
    present = logps.present(win, lose)
    own_weight = jnp.take_along_axis(weights, labels.axis[:, None], axis=-1)[:, 0]
    own_weight = jnp.where(present > 0, own_weight, 1.0)  # [B]
    logit = (beta * (logps.ratio(win) - logps.ratio(lose)) - margin) / own_weight
    return logit, margin


def modpo_rotation(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    weights: types.PerAxis,
    scale: float = 1.0,
    most: float = 5.0,
):
    """`modpo` with every axis that tells the pair apart as its label in turn.

    d_a   = reward gap on axis a;   q_a = w_a |d_a| / sum_j w_j |d_j|
    logit = sign(d_a) min(1 / w_a, most) (beta * (log-ratio gap) - scale * sum_{j != a} w_j d_j)
    loss  = sum_a q_a (-log sigmoid(logit_a))              ours, from `modpo`

    labels.axis is not read. A pair that no weighted axis tells apart has no loss.

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: rewards [B, N, A], without gradient.
      win, lose: indices of the two branches.
      beta: strength of the pull towards the reference, > 0.
      weights: [A], >= 0; normalise them to sum 1, as `scale` and `most` are read on that footing.
      scale: >= 0, as in `modpo`.
      most: > 0, bound of 1 / w_a: an axis of little weight must not have a steep logit.

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B].
    """
    weights = scores.per_row(labels, weights)  # [B, A]
    rewards = jax.lax.stop_gradient(labels.rewards)
    gaps = rewards[:, win] - rewards[:, lose]  # [B, A]
    share = weights * jnp.abs(gaps)
    total = jnp.sum(share, axis=-1)  # [B]
    share = share / jnp.where(total > 0, total, 1.0)[:, None]
    weighted = weights * gaps
    others = jnp.sum(weighted, axis=-1, keepdims=True) - weighted  # [B, A]
    steepness = jnp.minimum(1 / jnp.where(weights > 0, weights, 1.0), most)  # [B, A]
    gap = beta * (logps.ratio(win) - logps.ratio(lose))  # [B]
    logits = jnp.sign(gaps) * steepness * (gap[:, None] - scale * others)
    loss = jnp.sum(share * -jax.nn.log_sigmoid(logits), axis=-1)
    present = logps.present(win, lose) * (total > 0)
    return scores.silent(present, loss, labelled=jnp.sum(share > 0, axis=-1).astype(loss.dtype))


def check(labels: types.Labels, *, weights: types.PerAxis, **_) -> None:
    """Raises ValueError where a pair is ordered by an axis without weight. NumPy, on the host."""
    real, count = labels.weight > 0, np.shape(weights)[-1]  # [B], A
    bad = real & ((labels.axis < 0) | (labels.axis >= count))
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(
            f"Row {row} is ordered by axis {labels.axis[row]}, but there are {count} axes."
        )
    rows = np.arange(len(real))
    own = np.broadcast_to(weights, (len(real), count))[rows, labels.axis * real]
    bad = real & ~(own > 0)
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(
            f"Row {row} is ordered by axis {labels.axis[row]}, whose weight is "
            f"{own[row]}; modpo divides by it, so give that axis a weight > 0."
        )
