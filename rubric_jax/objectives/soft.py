"""Terms whose target comes from the rewards: how much better `win` is, not only that it is.

  logps       log-probabilities [B, N, T] of the layout's branches, in nats
  labels      rewards [B, N, A], without gradient; the pair's gap is
              dR = sum_a weights_a (rewards of win - rewards of lose)_a
  win, lose   indices of the two branches; where dR < 0 the target favours `lose`
  beta        strength of the pull towards the reference, > 0
  weights     [A], >= 0, one for each reward axis
  scale       >= 0, from the units of the rewards to those of beta * log-ratio; 1 to 3 for
              rewards in [0, 1] (ours)
  result      loss [B] in nats unless said, 0 where a branch is absent; metrics, each [B]

For the gap as a margin of a hard label see modifiers.reward_margin.
"""

from __future__ import annotations

import jax

from rubric_jax import types
from rubric_jax.objectives import scores


def soft(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    weights: types.PerAxis,
    scale: float = 1.0,
):
    """Fits the probability that `win` is preferred, as the rewards have it.

    logit = beta * (log-ratio gap) - margin
    loss  = -p log sigmoid(logit) - (1 - p) log sigmoid(-logit),   p = sigmoid(scale * dR)
                       up to a constant `rpo_bwd_kl` of NeMo-Aligner; least at logit = scale * dR
    Args:
      labels: margin [B], as well.
    """
    p = jax.nn.sigmoid(scale * scores.reward_gap(labels, win, lose, weights))  # [B]
    logit = beta * (logps.ratio(win) - logps.ratio(lose)) - labels.margin
    loss = -p * jax.nn.log_sigmoid(logit) - (1 - p) * jax.nn.log_sigmoid(-logit)
    return scores.silent(logps.present(win, lose), loss, logit=logit, target=p)


def squared(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    weights: types.PerAxis,
    scale: float = 1.0,
):
    """Regresses the gap of implicit rewards on the gap of rewards.

    loss = (beta * (log-ratio gap) - scale * dR)^2     `rpo_sq` of NeMo-Aligner; REBEL,
                                                       arXiv:2404.16767, has it divided by beta^2
    """
    target = scale * scores.reward_gap(labels, win, lose, weights)  # [B]
    gap = beta * (logps.ratio(win) - logps.ratio(lose))
    return scores.silent(logps.present(win, lose), (gap - target) ** 2, gap=gap, target=target)


def smpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    weights: types.PerAxis,
    scale: float = 1.0,
):
    """Scales the logit by how sure the preference is: no gradient from a tie.

    logit = (2 p - 1) * beta * (log-ratio gap),   p = sigmoid(scale * dR)
    loss  = -log sigmoid(logit)                            SmPO, github.com/JaydenLyh/SmPO

    The factor stands inside the sigmoid; the paper's further factor of 10 belongs to beta here.
    """
    p = jax.nn.sigmoid(scale * scores.reward_gap(labels, win, lose, weights))  # [B]
    logit = (2 * p - 1) * beta * (logps.ratio(win) - logps.ratio(lose))
    return scores.silent(logps.present(win, lose), -jax.nn.log_sigmoid(logit), logit=logit)
