"""Terms on one branch's own likelihood."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.objectives import scores


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
    total, length = logps.total(on), scores.safe_length(logps, on)  # [B]
    if reduce == "sum":
        loss = -total
    elif reduce == "mean":
        loss = -total / length
    else:
        tokens = jnp.maximum(jnp.sum(logps.length(on)), 1.0)  # an empty batch has none
        loss = -total * (jnp.sum(present) / tokens)
    return jnp.where(present > 0, loss, 0.0), {}


def logistic_nll(
    logps: types.Logps,
    labels: types.Labels,
    *,
    on: types.Branch,
    beta: float,
):
    """Supervised training that is bounded below by log 2 nats: a rationale's likelihood.

    loss = -log sigmoid(beta * log-probability of `on`)    the code of "Preference learning with
                                                           rationales"; its paper has `nll`
    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats; ref is not read.
      labels: not read.
      on: index of the branch.
      beta: > 0.

    Returns:
      loss [B] in nats, 0 where the branch is absent; metrics, each [B].
    """
    del labels
    return scores.silent(logps.present(on), -jax.nn.log_sigmoid(beta * logps.total(on)))


def anchor(
    logps: types.Logps,
    labels: types.Labels,
    *,
    on: types.Branch,
    beta: float,
    sign: Literal[1, -1] = 1,
    delta: float = 0.0,
):
    """Holds one branch above the reference (sign 1) or below it (sign -1).

    loss = -log sigmoid(sign * (beta * log-ratio of `on` - delta))     mDPO, arXiv:2406.11839

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: not read.
      on: index of the branch.
      beta: strength of the pull towards the reference, > 0.
      sign: 1 or -1.
      delta: what the scaled log-ratio is held above or below.

    Returns:
      loss [B] in nats, 0 where the branch is absent; metrics, each [B].
    """
    del labels
    logit = sign * (beta * logps.ratio(on) - delta)
    return scores.silent(logps.present(on), -jax.nn.log_sigmoid(logit), logit=logit)


def shift(
    logps: types.Logps,
    labels: types.Labels,
    *,
    on: types.Branch,
    coef: float,
):
    """Adds a multiple of one branch's log-ratio: calibration on an unlabelled response.

    loss = coef * log-ratio of `on`       value-incentivised preference optimisation (VPO):
      coef = -alpha * beta on the chosen answer, offline (pessimism: raises it)
      coef = +alpha * beta on a response of the reference, online (optimism: lowers it)

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: not read.
      on: index of the branch.
      coef: of either sign. The loss is not bounded below, so add it to a term that holds it.

    Returns:
      loss [B] in nats, 0 where the branch is absent; metrics, each [B].
    """
    del labels
    return scores.silent(logps.present(on), coef * logps.ratio(on))


def sft_phi(
    logps: types.Logps,
    labels: types.Labels,
    *,
    on: types.Branch,
    phi: Literal["linear", "pearson", "sq_hellinger"],
    scale: float = 1.0,
):
    """Supervised training as implicit-reward learning: a concave function of the log-ratio.

    loss = -phi(z), z = scale * log-ratio of `on`      "Implicit reward as the bridge" (SFT and DPO)
      linear        z               supervised training, up to a constant
      pearson       z - z^2 / 4     turns down above z = 2
      sq_hellinger  z / (1 + z)     continued by its tangent below z = -1/2: singular at -1 (ours)

    Args:
      logps: log-probabilities [B, N, T] of the layout's branches, in nats.
      labels: not read.
      on: index of the branch.
      phi: see above.
      scale: > 0; a summed log-ratio passes both bounds at once, so it wants about 1 / tokens.

    Returns:
      loss [B], 0 where the branch is absent; metrics, each [B].
    """
    del labels
    z = scale * logps.ratio(on)
    if phi == "linear":
        value = z
    elif phi == "pearson":
        value = z - z**2 / 4
    else:
        inside = jnp.where(z >= -0.5, z, 0.0)  # no 1/0 on the side that is not taken
        value = jnp.where(z >= -0.5, inside / (1 + inside), 4 * z + 1)
    return scores.silent(logps.present(on), -value)
