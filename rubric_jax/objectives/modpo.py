"""Multi-objective preference: one axis orders the pair, the others shift its logit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types


def modpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    weights: types.PerAxis,
):
    """Ranks `win` above `lose` on the pair's own axis, after paying for the other axes.

    logit = (beta * (log-ratio gap) - sum_{a != axis} w_a * (reward gap)_a) / w_axis
    loss  = -log sigmoid(logit)                            Zhou et al., arXiv:2310.03708

    With all weight on the pair's axis this is `dpo` without a margin. The reward of the pair's own
    axis is not read: the pair's order stands for it. A positive gap on the other axes asks for a
    larger log-ratio gap, a negative one for a smaller. Only the direction of `weights` and
    beta / |weights| matter. Rewards must be commensurate with beta times a log-ratio.

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: rewards [B, N, A]; axis [B], the axis that ordered each pair.
      win, lose: indices of the two branches.
      beta: strength of the pull towards the reference, > 0.
      weights: [A], >= 0, and > 0 on every axis that orders a pair (see `check`).

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B].
    """
    if labels.rewards.shape[-1] != weights.shape[0]:
        raise ValueError(
            f"modpo has {weights.shape[0]} weights for {labels.rewards.shape[-1]} reward axes; "
            "give one weight for each of config.data.axes."
        )
    present = logps.present(win, lose)
    own = jax.nn.one_hot(labels.axis, weights.shape[0], dtype=bool)  # [B, A]
    rewards = jax.lax.stop_gradient(labels.rewards)
    gap = jnp.where(own, 0.0, rewards[:, win] - rewards[:, lose])  # [B, A]
    margin = gap @ weights  # [B]
    # A padding row's axis may have no weight; a real row's shows as an infinite logit.
    own_weight = jnp.where(present > 0, jnp.asarray(weights)[labels.axis], 1.0)  # [B]
    logit = (beta * (logps.ratio(win) - logps.ratio(lose)) - margin) / own_weight  # [B]
    loss = jnp.where(present > 0, -jax.nn.log_sigmoid(logit), 0.0)
    return loss, {
        "logit": jnp.where(present > 0, logit, 0.0),
        "margin": jnp.where(present > 0, margin, 0.0),
    }


def check(labels: types.Labels, *, weights: types.PerAxis, **_) -> None:
    """Raises ValueError where a pair is ordered by an axis without weight. NumPy, on the host."""
    real = labels.weight > 0  # [B]
    bad = real & ((labels.axis < 0) | (labels.axis >= len(weights)))
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(
            f"Row {row} is ordered by axis {labels.axis[row]}, but there are {len(weights)} axes."
        )
    bad = real & ~(weights[labels.axis * real] > 0)
    if bad.any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(
            f"Row {row} is ordered by axis {labels.axis[row]}, whose weight is "
            f"{weights[labels.axis[row]]}; modpo divides by it, so give that axis a weight > 0."
        )
