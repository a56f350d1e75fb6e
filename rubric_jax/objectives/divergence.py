"""Terms on the divergence from the reference over the whole vocabulary, token by token.

They read logps.kl, which takes the logits of both models: config.train.reference = "step".
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.objectives import scores


def token_kl(
    logps: types.Logps,
    labels: types.Labels,
    *,
    on: types.Branch,
    direction: Literal["forward", "reverse"] = "forward",
    reduce: Literal["sum", "mean"] = "sum",
):
    """Keeps the policy near the reference along one branch, at every token it could have said.

    loss = sum_t KL(reference || policy) at token t of `on`, times the token's weight

    The anchor of RRPO (arXiv:2504.12083), by its code: added to the loss, on the chosen response.

    Args:
      logps: log-probabilities, masks and divergences [B, N, T] of the layout's branches, in nats.
      labels: not read.
      on: index of the branch.
      direction: forward, KL(reference || policy), or reverse, KL(policy || reference).
      reduce: `mean` divides by the token weight of the branch.

    Returns:
      loss [B] in nats, 0 where the branch is absent; metrics, each [B].
    """
    del labels
    present = logps.present(on)
    loss = _sequence(logps, on, direction)
    if reduce == "mean":
        loss = loss / scores.safe_length(logps, on)
    return jnp.where(present > 0, loss, 0.0), {}


def tdpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    alpha: float = 0.5,
    detach: bool = True,
):
    """DPO whose logit also holds how far each side has gone from the reference, token by token.

    D[n] = sum_t KL(reference || policy) along branch n
    loss = -log sigmoid(beta (log-ratio gap - alpha (D[lose] - D[win])))

    Zeng et al., arXiv:2404.11999. The defaults are its TDPO2, with D[win] as a constant; alpha 1
    without `detach` is TDPO1, and SparsePO (arXiv:2410.05102) with every mask at 1.

    Args:
      logps: log-probabilities, masks and divergences [B, N, T] of the layout's branches, in nats.
      labels: not read.
      win, lose: indices of the two branches.
      beta: strength of the pull towards the reference, > 0.
      alpha: of the divergences; at 0 this is `dpo` without a margin.
      detach: let no gradient through D[win].

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B].
    """
    del labels
    present = logps.present(win, lose)
    kl_win, kl_lose = _sequence(logps, win, "forward"), _sequence(logps, lose, "forward")
    held = jax.lax.stop_gradient(kl_win) if detach else kl_win
    gap = logps.ratio(win) - logps.ratio(lose)
    logit = beta * (gap - alpha * (kl_lose - held))
    return scores.silent(
        present, -jax.nn.log_sigmoid(logit), logit=logit, kl_win=kl_win, kl_lose=kl_lose
    )


def dpo_farthest(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    over: types.Branches,
    beta: float,
):
    """DPO of a response against itself under one of several contexts: the most telling one.

    lose = the branch of `over` whose token distributions are farthest from those of `win`:
           argmax of the mean over tokens of their Jensen-Shannon divergence, without gradient
    loss = -log sigmoid(beta * (log-ratio of win - that of lose) - margin)

    The prompt-aware choice of PaMi-VDPO, arXiv:2504.05810 (our reading). Absent branches are not
    chosen; a row counts if it has `win` and any of them.

    Args:
      logps: with js, the divergences [B, N, T] from the clean context, in nats.
      labels: margin [B].
      win: index of a response under the clean context.
      over: indices of the same response under the others.
      beta: strength of the pull towards the reference, > 0.

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B]: `js` of the branch chosen.
    """
    index = np.asarray(over)
    real = (logps.mask[:, index] != 0).astype(logps.policy.dtype)  # [B, K, T]
    count = jnp.sum(real, axis=-1)
    far = jnp.sum(logps.js[:, index] * real, axis=-1) / jnp.maximum(count, 1.0)
    far = jax.lax.stop_gradient(jnp.where(count > 0, far, -1.0))  # [B, K]
    chosen = jax.nn.one_hot(jnp.argmax(far, axis=-1), len(over), dtype=far.dtype)
    lose = jnp.sum(chosen * logps.ratio(index), axis=-1)
    logit = beta * (logps.ratio(win) - lose) - labels.margin
    present = logps.present(win) * (jnp.max(count, axis=-1) > 0)
    return scores.silent(present, -jax.nn.log_sigmoid(logit), logit=logit, js=jnp.max(far, axis=-1))


def one_response(layout: types.Layout, *, win: int, over: tuple[int, ...]) -> str:
    """What is wrong with the branches of `dpo_farthest`; "" if nothing."""
    if layout.context_name(win) != types.CLEAN:
        return f"win is {layout.branches[win]!r}; it must be read under the clean context."
    for branch in over:
        if branch == win or layout.responses[branch] != layout.responses[win]:
            return (
                f"over names {layout.branches[branch]!r}; it must name {layout.responses[win]!r} "
                "under other contexts."
            )
    return ""


def sparsepo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    mask: types.TokenHead,
    kl_mask: types.TokenHead,
    l1: float = 0.0,
    l1_kl: float = 0.0,
):
    """Token-level DPO that learns which tokens' log-ratios count, and which tokens' divergences.

    u    = sum_t m_t (log-ratio)_t of win - the same of lose
    d    = sum_t k_t KL(reference || policy)_t of lose - the same of win
    loss = -log sigmoid(beta (u - d)) + l1 (sum_t m_t) + l1_kl (sum_t k_t), over both sides

    Christopoulou et al., arXiv:2410.05102. Masks of 1 make it `tdpo` with alpha 1, not detached;
    further k of 0 make it `dpo`. With one head for both (the paper's common mask) the L1 parts add
    up, so halve them.

    Args:
      logps: log-probabilities, masks and divergences [B, N, T] of the layout's branches, in nats;
        heads {name: [B, N, T, 1]}, >= 0.
      labels: not read.
      win, lose: indices of the two branches.
      beta: strength of the pull towards the reference, > 0.
      mask, kl_mask: names of the heads m and k.
      l1, l1_kl: >= 0.

    Returns:
      loss [B] in nats, 0 where a branch is absent; metrics, each [B].
    """
    del labels
    both = np.array([win, lose])
    weight = logps.counted[:, both]  # [B, 2, T]
    real = (logps.mask[:, both] != 0).astype(weight.dtype)
    m, k = (logps.heads[name][..., 0][:, both] * real for name in (mask, kl_mask))
    ratios = jnp.sum(m * weight * (logps.policy - logps.ref)[:, both], axis=-1)  # [B, 2]
    divergences = jnp.sum(k * weight * logps.kl.forward[:, both], axis=-1)
    u, d = ratios[:, 0] - ratios[:, 1], divergences[:, 1] - divergences[:, 0]
    logit = beta * (u - d)
    size, kl_size = jnp.sum(m, axis=(1, 2)), jnp.sum(k, axis=(1, 2))
    tokens = jnp.maximum(jnp.sum(real, axis=(1, 2)), 1.0)
    return scores.silent(
        logps.present(win, lose),
        -jax.nn.log_sigmoid(logit) + l1 * size + l1_kl * kl_size,
        logit=logit,
        mask=size / tokens,
        kl_mask=kl_size / tokens,
    )


def _sequence(logps: types.Logps, branch: int, direction: str) -> jax.Array:
    """Divergence of one branch, summed over its tokens. [B], nats."""
    return jnp.sum(getattr(logps.kl, direction)[:, branch] * logps.counted[:, branch], axis=-1)
