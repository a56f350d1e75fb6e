"""Terms that rank one branch above another."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types


def dpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    label_smoothing: float = 0.0,
):
    """Ranks `win` above `lose` by the log-ratio to the reference.

    logit = beta * (log-ratio gap) - margin              Rafailov et al., arXiv:2305.18290
    loss  = -(1 - s) log sigmoid(logit) - s log sigmoid(-logit),   s = label_smoothing

    With s = 0 this is TRL's `sigmoid`. With s > 0 it is conservative DPO (cDPO), which assumes that
    a share s of the labels is flipped; TRL's `sigmoid` ignores label_smoothing, and its `robust`
    is another formula. Conditional preference is `dpo` with lose="chosen@corrupted".

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: margin [B], subtracted from the logit after beta; 0 for plain DPO.
      win, lose: indices of the two branches.
      beta: strength of the pull towards the reference, > 0.
      label_smoothing: in [0, 1).

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B].
    """
    present = logps.present(win, lose)
    logit = beta * (logps.ratio(win) - logps.ratio(lose)) - labels.margin  # [B]
    right, wrong = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    loss = -(1 - label_smoothing) * right - label_smoothing * wrong
    return jnp.where(present > 0, loss, 0.0), {"logit": jnp.where(present > 0, logit, 0.0)}
