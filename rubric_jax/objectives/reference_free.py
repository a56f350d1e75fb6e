"""Terms on the policy's own likelihood of a pair; none needs a reference.

  logps       log-probabilities [B, N, T] of the layout's branches, in nats; ref is not read
  win, lose   indices of the two branches
  result      loss [B] in nats, 0 where a branch is absent; metrics, each [B]

A mean log-probability is sum w_t log p_t / sum w_t over the tokens' weights w_t in the mask.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.objectives import scores


def _simpo_logit(logps, labels, win, lose, beta, gamma):
    gap = scores.mean_logp(logps, win) - scores.mean_logp(logps, lose)
    return beta * gap - gamma - labels.margin  # [B]


def simpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    gamma: float,
):
    """Ranks mean log-probabilities, with a target margin.

    logit = beta * (mean log-probability gap) - gamma - margin
    loss  = -log sigmoid(logit)                            Meng et al., arXiv:2405.14734

    Args:
      labels: margin [B].
      beta: > 0; 2 to 10 in the paper, as means are small.
      gamma: target margin of the logit, >= 0. Some libraries ask for gamma / beta.
    """
    logit = _simpo_logit(logps, labels, win, lose, beta, gamma)
    return scores.silent(logps.present(win, lose), -jax.nn.log_sigmoid(logit), logit=logit)


def simpo_hinge(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    gamma: float,
):
    """`simpo` with a hinge: asks for a logit of 1 and no more.

    loss = max(0, 1 - logit), the logit of `simpo`         used by MolPO
    """
    logit = _simpo_logit(logps, labels, win, lose, beta, gamma)
    return scores.silent(logps.present(win, lose), jax.nn.relu(1 - logit), logit=logit)


def orpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    lam: float,
):
    """Supervised training on `win` with an odds ratio against `lose`.

    loss = -mean lp of win - lam * log sigmoid(log odds of win - log odds of lose)
    log odds = mean lp - log(1 - exp(mean lp))             Hong et al., arXiv:2403.07691

    Args:
      labels: not read.
      lam: weight of the odds ratio, >= 0; TRL's beta.
    """
    del labels
    up, down = scores.mean_logp(logps, win), scores.mean_logp(logps, lose)
    log_odds = _log_odds(up) - _log_odds(down)
    loss = -up - lam * jax.nn.log_sigmoid(log_odds)
    return scores.silent(logps.present(win, lose), loss, log_odds=log_odds)


def _log_odds(logp):
    # A probability of 1 has infinite odds: 1e-6 nats below it they are 1e6.
    logp = jnp.minimum(logp, -1e-6)
    return logp - jnp.log(-jnp.expm1(logp))


def cpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    nll_weight: float = 1.0,
):
    """`dpo` against a uniform reference, with supervised training on `win`.

    logit = beta * (lp of win - lp of lose) - margin
    loss  = -log sigmoid(logit) - nll_weight * mean lp of win      Xu et al., arXiv:2401.08417

    Args:
      labels: margin [B].
      beta: > 0.
      nll_weight: >= 0; TRL's cpo_alpha.
    """
    logit = beta * (logps.total(win) - logps.total(lose)) - labels.margin
    loss = -jax.nn.log_sigmoid(logit) - nll_weight * scores.mean_logp(logps, win)
    return scores.silent(logps.present(win, lose), loss, logit=logit)
