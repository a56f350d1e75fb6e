"""Terms on one branch's own likelihood."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from rubric_jax import types


def nll(
    logps: types.Logps,
    labels: types.Labels,
    *,
    on: types.Branch,
    reduce: Literal["mean", "sum", "batch_tokens"] = "mean",
):
    """Negative log-likelihood of one branch: supervised training on it. Needs no reference.

    reduce  mean          per token of the response: every response counts alike
            sum           over the response's tokens: every token counts alike, whatever the batch
            batch_tokens  -sum_B lp / sum_B length, TRL's `sft`. Each row returns its share times
                          the number of rows that have the branch, so that the mean over these rows
                          is the batch's value and a row's weight acts on its own tokens.

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: not read.
      on: index of the branch.
      reduce: see above.

    Returns:
      loss [B] in nats, 0 where the branch is absent; metrics, each [B].
    """
    del labels
    present = logps.present(on)
    total, length = logps.total(on), jnp.where(present > 0, logps.length(on), 1.0)  # [B]
    if reduce == "sum":
        loss = -total
    elif reduce == "mean":
        loss = -total / length
    else:
        tokens = jnp.maximum(jnp.sum(length * present), 1.0)  # an empty batch has none
        loss = -total * (jnp.sum(present) / tokens)
    return jnp.where(present > 0, loss, 0.0), {}
