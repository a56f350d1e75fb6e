"""Terms over a list of K branches, ordered by a scalar of their rewards.

  logps     log-probabilities [B, N, T] of the layout's branches, in nats
  labels    rewards [B, N, A], without gradient; a branch's score is R = sum_a weights_a rewards_a
  over      indices of the K branches, in any order; an absent one takes no part
  beta      strength of the pull towards the reference, > 0; r = beta * log-ratio
  weights   [A], >= 0
  result    loss [B] in nats, 0 with fewer than two branches present; metrics, each [B]

`concordance` is the share of the pairs that R orders which r orders alike.

Sums run over items or pairs, as published: a longer list weighs more. The order of `over` does not
matter, and branches of equal R are not ranked against each other.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.objectives import scores

_NEVER = -1e30  # a logit that has no share, and no NaN in the gradient as -inf would


def present_of(logps: types.Logps, over: types.Branches) -> jax.Array:
    """Which branches of the list each instance has. bool [B, K]."""
    return jnp.any(logps.mask[:, np.asarray(over)] != 0, axis=-1)


def _ratios(logps, over, beta):
    return beta * logps.ratio(np.asarray(over))  # [B, K]


def _rewards(labels, over, weights):
    return scores.reward(labels, weights)[:, np.asarray(over)]  # [B, K]


def _below(x):
    """x_i - x_j at [B, i, j]."""
    return x[:, :, None] - x[:, None, :]


def _ordered(rewards, present):
    """Which pairs (i, j) are ranked: both present, R_i > R_j. bool [B, K, K]."""
    return present[:, :, None] & present[:, None, :] & (_below(rewards) > 0)


def _finish(loss, implicit, rewards, present):
    pairs = _ordered(rewards, present)
    count = jnp.sum(pairs, axis=(1, 2))
    alike = jnp.sum(pairs & (_below(implicit) > 0), axis=(1, 2)) / jnp.maximum(count, 1)
    enough = jnp.sum(present, axis=-1) >= 2
    return scores.silent(enough, loss, concordance=alike.astype(loss.dtype))


def plackett_luce(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    beta: float,
    weights: types.PerAxis,
):
    """Picks the best, then the best of the rest, and so on: the likelihood of the whole ranking.

    loss = sum_i (log sum_{j: R_j <= R_i} exp(r_j) - r_i)      Plackett-Luce; DPO over rankings in
                                                               Rafailov et al., arXiv:2305.18290
    Two branches give `dpo`. Ties by Breslow's form: each tied item competes with the others.
    """
    implicit, rewards = _ratios(logps, over, beta), _rewards(labels, over, weights)
    present = present_of(logps, over)
    rivals = present[:, None, :] & (_below(rewards) >= 0)  # [B, i, j]: R_j <= R_i
    # Each i is its own rival, so that a present row's sum is never empty.
    total = jax.nn.logsumexp(jnp.where(rivals, implicit[:, None, :], _NEVER), axis=-1)
    loss = jnp.sum(jnp.where(present, total - implicit, 0.0), axis=-1)
    return _finish(loss, implicit, rewards, present)


def listnet(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    beta: float,
    weights: types.PerAxis,
    temperature: float = 1.0,
):
    """Fits the policy's choice among the list to the rewards' own softmax.

    loss = -sum_i softmax(R / temperature)_i log softmax(r)_i      Cao et al. (ListNet), ICML 2007

    Args:
      temperature: > 0; small values put all target mass on the best.
    """
    implicit, rewards = _ratios(logps, over, beta), _rewards(labels, over, weights)
    present = present_of(logps, over)
    target = jax.nn.softmax(jnp.where(present, rewards / temperature, _NEVER), axis=-1)
    choice = jax.nn.log_softmax(jnp.where(present, implicit, _NEVER), axis=-1)
    loss = -jnp.sum(jnp.where(present, target * choice, 0.0), axis=-1)
    return _finish(loss, implicit, rewards, present)


def ranknet(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    beta: float,
    weights: types.PerAxis,
    min_gap: float = 0.0,
):
    """`dpo` on every pair of the list that the rewards order.

    loss = sum over R_i > R_j, R_i - R_j >= min_gap of -log sigmoid(r_i - r_j)
                                                           Burges et al. (RankNet), ICML 2005
    Args:
      min_gap: >= 0; smaller differences are left out.
    """
    implicit, rewards = _ratios(logps, over, beta), _rewards(labels, over, weights)
    present = present_of(logps, over)
    pairs = _ordered(rewards, present) & (_below(rewards) >= min_gap)
    losses = -jax.nn.log_sigmoid(_below(implicit))
    loss = jnp.sum(jnp.where(pairs, losses, 0.0), axis=(1, 2))
    return _finish(loss, implicit, rewards, present)


def ranklist(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    beta: float,
    weights: types.PerAxis,
    skips: int = 1,
    min_gap: float = 0.0,
):
    """`ranknet` on pairs that stand at most `skips` places apart in the list.

    loss = sum_{k=1..skips} sum_i log(1 + exp(r_{i+k} - r_i)), sorted by R, best first
                                                           our reading of RankList
    Args:
      skips: >= 1; K - 1 gives `ranknet`. Equal R take places in the order of `over`.
      min_gap: >= 0; pairs whose R differ by less are left out.
    """
    implicit, rewards = _ratios(logps, over, beta), _rewards(labels, over, weights)
    present = present_of(logps, over)
    place = jnp.argsort(jnp.argsort(jnp.where(present, -rewards, jnp.inf), axis=-1), axis=-1)
    apart = -_below(place)  # [B, i, j]: how many places j stands behind i
    pairs = _ordered(rewards, present) & (apart <= skips) & (_below(rewards) >= min_gap)
    losses = -jax.nn.log_sigmoid(_below(implicit))
    loss = jnp.sum(jnp.where(pairs, losses, 0.0), axis=(1, 2))
    return _finish(loss, implicit, rewards, present)


def lambda_rank(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    beta: float,
    weights: types.PerAxis,
    rank_by: Literal["labels", "policy"] = "labels",
):
    """`ranknet` with each pair weighted by what swapping it would cost in nDCG.

    loss = sum over R_i > R_j of lambda_ij (-log sigmoid(r_i - r_j))
    lambda_ij = |2^R_i - 2^R_j| |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|, without gradient
                                           RankDPO, arXiv:2410.18013 (ranks by labels); preference
                                           trees (TPO, ICLR 2025) rank by the current policy
    Args:
      weights: such that R stays small (in [0, 1], say): 2^R overflows at 128.
      rank_by: `labels`: rank of R; `policy`: rank of r as it is now. Equal items share a rank.
    """
    implicit, rewards = _ratios(logps, over, beta), _rewards(labels, over, weights)
    present = present_of(logps, over)
    ranked = rewards if rank_by == "labels" else jax.lax.stop_gradient(implicit)
    losses = -_cost(rewards, ranked, present) * jax.nn.log_sigmoid(_below(implicit))
    loss = jnp.sum(jnp.where(_ordered(rewards, present), losses, 0.0), axis=(1, 2))
    return _finish(loss, implicit, rewards, present)


def _cost(rewards, ranked, present):
    """What swapping a pair would cost in nDCG, by the ranks of `ranked`. [B, K, K]."""
    above = present[:, None, :] & (_below(ranked) < 0)  # [B, i, j]: j ranks above i
    rank = 1 + jnp.sum(above, axis=-1)  # [B, K]
    discount = 1 / jnp.log1p(rank.astype(rewards.dtype))
    return jnp.abs(_below(jnp.exp2(rewards))) * jnp.abs(_below(discount))


def tree_rank(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    beta: float,
    weights: types.PerAxis,
    steps: int = 16,
    ends: str = "\n",
):
    """`lambda_rank` by the policy's ranks, where each pair weighs the steps that it shares more.

    loss = sum over R_i > R_j of lambda_ij (-log sigmoid(r_ij))
    r_ij = beta sum_k (1 + cos_k(i, j)) (log-ratio of step k of i - that of step k of j)

    Preference trees: Liao et al. (TPO), arXiv:2410.12854, Eq. 7 to 10, the weight on the pair as
    its text says. A common beginning adds nothing. cos is that of the steps' mean hidden states
    (our choice), 0 where one response has no such step; were it 0 everywhere, this would be
    `lambda_rank` with rank_by="policy".

    Args:
      logps: with steps (types.Steps).
      weights: such that R stays small, as in `lambda_rank`.
      steps: >= 1, steps of a response at most; what comes after belongs to the last.
      ends: a token whose text holds this ends a step.
    """
    del steps, ends  # read where the steps are found
    implicit, rewards = _ratios(logps, over, beta), _rewards(labels, over, weights)
    present, index = present_of(logps, over), np.asarray(over)
    similarity = logps.steps.similarity[:, index[:, None], index[None]]  # [B, K, K, S]
    places = np.arange(similarity.shape[-1])[None, None, None]
    own = logps.steps.index[:, index][..., None] == places  # [B, K, T, S]
    tokens = (beta * logps.counted * (logps.policy - logps.ref))[:, index]  # [B, K, T]
    parts = jnp.sum(jnp.where(own, tokens[..., None], 0.0), axis=2)  # [B, K, S]
    gaps = jnp.sum((1 + similarity) * (parts[:, :, None] - parts[:, None]), axis=-1)
    cost = _cost(rewards, jax.lax.stop_gradient(implicit), present)
    losses = -cost * jax.nn.log_sigmoid(gaps)
    loss = jnp.sum(jnp.where(_ordered(rewards, present), losses, 0.0), axis=(1, 2))
    return _finish(loss, implicit, rewards, present)


def pro(
    logps: types.Logps,
    labels: types.Labels,
    *,
    over: types.Branches,
    weights: types.PerAxis,
    sft: float = 0.05,
):
    """Preference ranking optimisation: Plackett-Luce whose temperatures are the reward gaps.

    Sorted by R, best first, with s_i the mean log-probability, T_ki = R_k - R_i, T_kk = max_i T_ki:
    loss = sum_{k<n} -log(e^{s_k T_kk} / (e^{s_k T_kk} + sum_{i>k} e^{s_i T_ki}))
           + sft (n - 1)^2 (-log-probability of the best)
                                                           Song et al., arXiv:2306.17492
    Needs no reference. The scale of the rewards is an inverse temperature: a hyper-parameter.

    Args:
      sft: >= 0, weight of supervised training on the best.
    """
    present = present_of(logps, over)
    index = np.asarray(over)
    rewards = _rewards(labels, over, weights)
    totals = logps.total(index)  # [B, K]
    means = totals / scores.safe_length(logps, index)
    order = jnp.argsort(jnp.where(present, -rewards, jnp.inf), axis=-1)  # stable, absent last
    rewards, means, totals = (
        jnp.take_along_axis(x, order, axis=-1) for x in (rewards, means, totals)
    )
    count = jnp.sum(present, axis=-1)  # [B], n
    place = np.arange(len(over))
    real = place[None] < count[:, None]  # [B, K], after sorting
    behind = real[:, None, :] & (place[None, :] > place[:, None])[None]  # [B, k, i]
    gaps = jnp.where(behind, _below(rewards), 0.0)  # T_ki >= 0
    own = means * jnp.max(gaps, axis=-1)  # [B, k]
    others = jnp.where(behind, means[:, None, :] * gaps, _NEVER)  # [B, k, i]
    both = jnp.concatenate([own[:, :, None], others], axis=-1)
    steps = jax.nn.logsumexp(both, axis=-1) - own
    loss = jnp.sum(jnp.where(jnp.any(behind, axis=-1), steps, 0.0), axis=-1)
    loss += sft * (count - 1) ** 2 * -totals[:, 0]
    return _finish(loss, means, rewards, real)
