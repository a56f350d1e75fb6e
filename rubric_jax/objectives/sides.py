"""Terms that judge each side of a pair by its own log-ratio, and what the batch shares.

  logps       log-probabilities [B, N, T] of the layout's branches, in nats
  labels      not read
  win, lose   indices of the two branches
  beta        strength of the pull towards the reference, > 0
  result      loss [B] in nats unless said, 0 where a branch is absent; metrics, each [B]

Below, a and b are beta times the log-ratio of `win` and of `lose`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.objectives import scores


def nca_pair(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
):
    """Noise contrastive alignment of a pair: raises `win` and holds both likelihoods down.

    loss = -log sigmoid(a) - 0.5 log sigmoid(-a) - 0.5 log sigmoid(-b)
                                                           Chen et al., arXiv:2402.05369
    """
    del labels
    a, b = beta * logps.ratio(win), beta * logps.ratio(lose)  # [B]
    held = 0.5 * jax.nn.log_sigmoid(-a) + 0.5 * jax.nn.log_sigmoid(-b)
    return scores.silent(logps.present(win, lose), -jax.nn.log_sigmoid(a) - held)


def sppo_hard(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
):
    """Regresses each log-ratio on its own target, +- 1 / (2 beta): self-play, win probability 1.

    loss = (log-ratio of win - 1 / (2 beta))^2 + (log-ratio of lose + 1 / (2 beta))^2
                                                           Wu et al., arXiv:2405.00675, Eq. 4.7
    In squared nats.
    """
    del labels
    target = 0.5 / beta
    loss = (logps.ratio(win) - target) ** 2 + (logps.ratio(lose) + target) ** 2
    return scores.silent(logps.present(win, lose), loss)


def apo_zero(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
):
    """Raises `win` and lowers `lose`: for `win` better than what the model says by itself.

    loss = 1 - sigmoid(a) + sigmoid(b), in (0, 2)          D'Oosterlinck et al., arXiv:2408.06266
    """
    del labels
    a, b = beta * logps.ratio(win), beta * logps.ratio(lose)
    loss = jax.nn.sigmoid(-a) + jax.nn.sigmoid(b)
    return scores.silent(logps.present(win, lose), loss)


def apo_down(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
):
    """Lowers both sides, `lose` more: for `win` worse than what the model says by itself.

    loss = sigmoid(a) + 1 - sigmoid(a - b), in (0, 2)      D'Oosterlinck et al., arXiv:2408.06266
    """
    del labels
    a, b = beta * logps.ratio(win), beta * logps.ratio(lose)
    loss = jax.nn.sigmoid(a) + jax.nn.sigmoid(b - a)
    return scores.silent(logps.present(win, lose), loss)


def kto(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    z0: float = 0.0,
    kl: types.Branch | None = None,
    lam_win: float = 1.0,
    lam_lose: float = 1.0,
):
    """Values a gain less than a loss, by prospect theory; needs no partner.

    loss = lam_win (1 - sigmoid(a - z)) + lam_lose (1 - sigmoid(z - b))
    z    = z0 + beta max(0, mean log-ratio of `kl` over the batch), no gradient
                                                           Ethayarajh et al., arXiv:2402.01306

    A side that is absent adds nothing, and the other side still counts: rows may hold either.

    Args:
      z0: fixed part of the reference point.
      kl: a branch that does not belong to its prompt (a response read under another instance's
        context), whose mean log-ratio estimates the policy's KL divergence from the reference;
        None leaves it out, as TRL's `apo_zero_unpaired` does.
      lam_win, lam_lose: weights of the sides, >= 0; the paper balances lam * count.
    """
    del labels
    z = jnp.asarray(z0, logps.policy.dtype)
    if kl is not None:
        there = logps.present(kl)
        mean = jnp.sum(there * logps.ratio(kl)) / jnp.maximum(jnp.sum(there), 1.0)
        z = z + beta * jax.lax.stop_gradient(jnp.maximum(mean, 0.0))
    gain = lam_win * jax.nn.sigmoid(z - beta * logps.ratio(win))
    harm = lam_lose * jax.nn.sigmoid(beta * logps.ratio(lose) - z)
    good, bad = logps.present(win) > 0, logps.present(lose) > 0
    loss = jnp.where(good, gain, 0.0) + jnp.where(bad, harm, 0.0)
    return loss, {"reference_point": jnp.where(good | bad, z, 0.0)}


def _rank_and_sort(values, present):
    """(rank of each row, values in ascending order), present rows first. [B] each."""
    order = jnp.argsort(jnp.where(present > 0, values, jnp.inf))
    return jnp.argsort(order), values[order]


def aot(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    label_smoothing: float = 0.0,
):
    """Alignment by optimal transport: `dpo` between the sorted gaps of policy and reference.

    u    = sorted over the batch (log-probability of win - that of lose), under the policy
    v    = the same under the reference
    loss = -(1 - s) log sigmoid(beta (u - v)) - s log sigmoid(-beta (u - v)),  s = label_smoothing
                                                           Melnyk et al., arXiv:2406.05882

    A row's loss is that of its own place in u. Rows are sorted within the microbatch.
    """
    del labels
    present = logps.present(win, lose)
    ref = logps._replace(policy=logps.ref)
    policy_gap = logps.total(win) - logps.total(lose)  # [B]
    ref_gap = ref.total(win) - ref.total(lose)
    rank, _ = _rank_and_sort(policy_gap, present)
    _, ranked = _rank_and_sort(ref_gap, present)
    return _transport(policy_gap - ranked[rank], present, beta, label_smoothing)


def aot_unpaired(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    label_smoothing: float = 0.0,
):
    """Alignment by optimal transport between the two sides: the j-th best win above the j-th lose.

    u    = sorted over the batch: log-ratios of win;  v = those of lose
    loss = -(1 - s) log sigmoid(beta (u - v)) - s log sigmoid(-beta (u - v)),  s = label_smoothing
                                                           Melnyk et al., arXiv:2406.05882

    A row's loss is that of its own place in u. Rows are sorted within the microbatch; a row counts
    where it has both sides.
    """
    del labels
    present = logps.present(win, lose)
    up = logps.ratio(win)
    rank, _ = _rank_and_sort(up, present)
    _, ranked = _rank_and_sort(logps.ratio(lose), present)
    return _transport(up - ranked[rank], present, beta, label_smoothing)


def _transport(gap, present, beta, label_smoothing):
    right, wrong = jax.nn.log_sigmoid(beta * gap), jax.nn.log_sigmoid(-beta * gap)
    loss = -(1 - label_smoothing) * right - label_smoothing * wrong
    return scores.silent(present, loss, logit=beta * gap)
