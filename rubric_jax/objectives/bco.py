"""Binary-classifier preference: each branch against a running baseline."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rubric_jax import types


class Baseline(NamedTuple):
    """Mean of the implicit rewards over the batches so far; every batch counts once."""

    mean: types.Array  # float32 []
    count: types.Array  # float32 [], batches


def init() -> Baseline:
    return Baseline(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))


def update(
    state: Baseline,
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    **_,
) -> Baseline:
    """Takes one batch into the mean: that of beta * log-ratio over both sides of its present rows.

    count += 1; mean += (batch mean - mean) / count. A batch without a present row changes nothing.
    Under jit over several devices the mean is that of the global batch.
    """
    del labels
    present = logps.present(win, lose)
    rewards = jax.lax.stop_gradient(beta * (logps.ratio(win) + logps.ratio(lose)) / 2)  # [B]
    rows = jnp.sum(present)
    batch = jnp.sum(jnp.where(present > 0, rewards, 0.0)) / jnp.maximum(rows, 1.0)
    counted = jnp.where(rows > 0, 1.0, 0.0)
    count = state.count + counted
    mean = state.mean + counted * (batch - state.mean) / jnp.maximum(count, 1.0)
    # Carried from step to step, so it keeps its dtype whatever that of the log-probabilities is.
    return Baseline(mean.astype(state.mean.dtype), count.astype(state.count.dtype))


def bco(
    logps: types.Logps,
    labels: types.Labels,
    state: Baseline,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    delta: Literal["running", "none"] = "running",
):
    """Classifies `win` as good and `lose` as bad, each by its own log-ratio.

    loss = -log sigmoid(beta * log-ratio of win - d) - log sigmoid(-(beta * log-ratio of lose - d))
                                                           Jung et al., arXiv:2404.04656

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: not read.
      state: the baseline, this batch included (`update` comes first, and stops the gradient).
      win, lose: indices of the two branches.
      beta: strength of the pull towards the reference, > 0.
      delta: `running`: d is the baseline's mean, as in MPO (arXiv:2411.10442) and
        TRL 0.10; `none`: d = 0, as TRL's `bco_pair` has it today.

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B].
    """
    del labels
    present = logps.present(win, lose)
    d = state.mean if delta == "running" else 0.0
    good = jax.nn.log_sigmoid(beta * logps.ratio(win) - d)  # [B]
    bad = jax.nn.log_sigmoid(-(beta * logps.ratio(lose) - d))
    loss = jnp.where(present > 0, -good - bad, 0.0)
    return loss, {"delta": jnp.where(present > 0, d, 0.0).astype(loss.dtype)}
