"""Terms on one logit per pair: how far `win` lies above `lose` by the log-ratio to the reference.

All of them read

  logit = beta * (score of win - score of lose) - margin        [B]

where the score is the log-ratio itself, or what another f-divergence than the reverse KL makes of
it (`divergence`, `alpha`; see scores.divergence_score), and margin is labels.margin [B], which
enters after beta. Their arguments and results are

  logps       log-probabilities [B, N, T] of the layout's branches, in nats
  labels      margin [B]; nothing else is read
  win, lose   indices of the two branches
  beta        strength of the pull towards the reference, > 0
  result      loss [B] in nats unless said, 0 where a branch is absent; metrics, each [B]

TRL 1.16 has the same losses without a margin; tests/parity holds the two together.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.objectives import scores


def _score(logps, branch, divergence, alpha):
    return scores.divergence_score(logps.ratio(branch), divergence, alpha)  # [B]


def _logit(logps, labels, win, lose, beta, divergence, alpha):
    gap = _score(logps, win, divergence, alpha) - _score(logps, lose, divergence, alpha)
    return beta * gap - labels.margin  # [B]


def dpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    label_smoothing: float = 0.0,
    divergence: scores.Divergence = "reverse_kl",
    alpha: float = 1.0,
):
    """Ranks `win` above `lose` by the log-ratio to the reference.

    logit = beta * (log-ratio gap) - margin              Rafailov et al., arXiv:2305.18290
    loss  = -(1 - s) log sigmoid(logit) - s log sigmoid(-logit),   s = label_smoothing

    With s = 0 this is TRL's `sigmoid`. With s > 0 it is conservative DPO (cDPO), which assumes that
    a share s of the labels is flipped; TRL's `sigmoid` ignores label_smoothing, and its `robust`
    is another formula. Conditional preference is `dpo` with lose="chosen@corrupted".

    Args:
      label_smoothing: s, in [0, 1).
    """
    logit = _logit(logps, labels, win, lose, beta, divergence, alpha)
    right, wrong = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    loss = -(1 - label_smoothing) * right - label_smoothing * wrong
    return scores.silent(logps.present(win, lose), loss, logit=logit)


def sigmoid_norm(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    divergence: scores.Divergence = "reverse_kl",
    alpha: float = 1.0,
):
    """`dpo` on scores per token, TRL's `sigmoid_norm`.

    logit = beta * (score of win / |win| - score of lose / |lose|) - margin
    loss  = -log sigmoid(logit)                            Lambert et al., arXiv:2411.15124

    |.| is the branch's token weight: with token weights w_t the score is
    sum w_t d_t / sum w_t, the normalised token-weighted form. Wants a larger beta than `dpo`.
    """
    sides = [
        _score(logps, branch, divergence, alpha) / scores.safe_length(logps, branch)
        for branch in (win, lose)
    ]
    logit = beta * (sides[0] - sides[1]) - labels.margin
    return scores.silent(logps.present(win, lose), -jax.nn.log_sigmoid(logit), logit=logit)


def hinge(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    divergence: scores.Divergence = "reverse_kl",
    alpha: float = 1.0,
):
    """Asks for a logit of 1 and no more.

    loss = max(0, 1 - logit)                               Zhao et al. (SLiC), arXiv:2305.10425
    """
    logit = _logit(logps, labels, win, lose, beta, divergence, alpha)
    return scores.silent(logps.present(win, lose), jax.nn.relu(1 - logit), logit=logit)


def ipo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    tokens: Literal["sum", "mean"] = "sum",
    divergence: scores.Divergence = "reverse_kl",
    alpha: float = 1.0,
):
    """Regresses the score gap on 1 / (2 beta), so that it does not grow for ever.

    loss = (score of win - score of lose - 1 / (2 beta))^2     Azar et al., arXiv:2310.12036

    In squared nats. labels.margin is not read.

    Args:
      tokens: `sum`: scores of whole responses, the paper's equation; `mean`: each divided by its
        token weight, TRL's `ipo`. The two want betas that differ by about the response length.
    """
    del labels
    sides = [_score(logps, branch, divergence, alpha) for branch in (win, lose)]
    if tokens == "mean":
        pairs = zip(sides, (win, lose), strict=True)
        sides = [side / scores.safe_length(logps, branch) for side, branch in pairs]
    gap = sides[0] - sides[1]
    return scores.silent(logps.present(win, lose), (gap - 1 / (2 * beta)) ** 2, gap=gap)


def robust(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    flip_rate: float,
    divergence: scores.Divergence = "reverse_kl",
    alpha: float = 1.0,
):
    """The `dpo` loss on clean labels, estimated without bias from labels flipped at a known rate.

    loss = (-(1 - e) log sigmoid(logit) + e log sigmoid(-logit)) / (1 - 2 e),   e = flip_rate
                                                        Chowdhury et al., arXiv:2403.00409

    Not bounded below: where a logit grows, the loss falls with slope -e / (1 - 2 e).

    Args:
      flip_rate: e, in [0, 0.5); TRL's label_smoothing.
    """
    logit = _logit(logps, labels, win, lose, beta, divergence, alpha)
    right, wrong = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    loss = (-(1 - flip_rate) * right + flip_rate * wrong) / (1 - 2 * flip_rate)
    return scores.silent(logps.present(win, lose), loss, logit=logit)


def exo_pair(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    epsilon: float = 1e-3,
    divergence: scores.Divergence = "reverse_kl",
    alpha: float = 1.0,
):
    """KL from the policy's choice within the pair to the labels, smoothed: exact optimisation.

    loss = q log(q / (1 - e)) + (1 - q) log((1 - q) / e),   q = sigmoid(logit), e = epsilon
                                                           Ji et al., arXiv:2402.00856, Eq. 16

    Args:
      epsilon: e, in (0, 1); TRL's label_smoothing.
    """
    logit = _logit(logps, labels, win, lose, beta, divergence, alpha)
    log_q, log_not = jax.nn.log_sigmoid(logit), jax.nn.log_sigmoid(-logit)
    loss = jnp.exp(log_q) * (log_q - jnp.log1p(-epsilon))
    loss += jnp.exp(log_not) * (log_not - jnp.log(epsilon))
    return scores.silent(logps.present(win, lose), loss, logit=logit)


def discopop(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    tau: float = 0.05,
    divergence: scores.Divergence = "reverse_kl",
    alpha: float = 1.0,
):
    """A logistic and an exponential loss, mixed by the logit: found by search over programs.

    loss = -(1 - m) log sigmoid(logit) + m exp(-logit),   m = sigmoid(logit / tau)
                                                           Lu et al., arXiv:2406.08414, Eq. 5

    Args:
      tau: in (0, 1), where the product with the exponential stays bounded.
    """
    logit = _logit(logps, labels, win, lose, beta, divergence, alpha)
    logistic = -jax.nn.log_sigmoid(logit) * jax.nn.sigmoid(-logit / tau)
    # In one exponent: at a logit of -1e4 the factors are inf and 0.
    exponential = jnp.exp(-logit + jax.nn.log_sigmoid(logit / tau))
    return scores.silent(logps.present(win, lose), logistic + exponential, logit=logit)


def dpop(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    penalty: float = 50.0,
):
    """`dpo` that pays when `win` becomes less likely than under the reference (DPO-Positive).

    logit = beta * (log-ratio gap - penalty * max(0, -log-ratio of win)) - margin
    loss  = -log sigmoid(logit)                            Pal et al. (Smaug), arXiv:2402.13228

    Args:
      penalty: >= 0; the paper's lambda. 0 gives `dpo`.
    """
    up, down = logps.ratio(win), logps.ratio(lose)
    logit = beta * (up - down - penalty * jax.nn.relu(-up)) - labels.margin
    return scores.silent(logps.present(win, lose), -jax.nn.log_sigmoid(logit), logit=logit)


def flex_dpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    beta_lose: float,
):
    """`dpo` with a strength for each side.

    logit = beta * (log-ratio of win) - beta_lose * (log-ratio of lose) - margin
    loss  = -log sigmoid(logit)                            Flex-DPO, "3D-properties of DPO"

    Args:
      beta_lose: >= 0; below beta it slows the fall of `lose`. beta gives `dpo`.
    """
    logit = beta * logps.ratio(win) - beta_lose * logps.ratio(lose) - labels.margin
    return scores.silent(logps.present(win, lose), -jax.nn.log_sigmoid(logit), logit=logit)


def clipped_dpo(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    beta: float,
    clip: float,
):
    """`dpo` on probability ratios held within 1 +- clip; outside there is no gradient.

    logit = beta * (log clip(exp(log-ratio of win)) - log clip(exp(log-ratio of lose))) - margin
    loss  = -log sigmoid(logit)                            step-aware SPO, github.com/RockeyCoss/SPO

    Args:
      clip: in (0, 1). Suits single steps: a whole response leaves 1 +- 0.1 at once.
    """
    low, high = jnp.log1p(-clip), jnp.log1p(clip)
    up, down = (jnp.clip(logps.ratio(branch), low, high) for branch in (win, lose))
    logit = beta * (up - down) - labels.margin
    return scores.silent(logps.present(win, lose), -jax.nn.log_sigmoid(logit), logit=logit)


def gap_order(
    logps: types.Logps,
    labels: types.Labels,
    *,
    hard_win: types.Branch,
    hard_lose: types.Branch,
    easy_win: types.Branch,
    easy_lose: types.Branch,
    beta: float,
):
    """Asks that one pair be further apart than another of the same instance.

    logit = beta * (log-ratio gap of the hard pair) - beta * (log-ratio gap of the easy pair)
    loss  = -log sigmoid(logit)           our reading of MAPL's inter-sample preference

    Args:
      hard_win, hard_lose: the pair that should have the larger gap.
      easy_win, easy_lose: the other one. labels are not read.
    """
    del labels
    hard = logps.ratio(hard_win) - logps.ratio(hard_lose)
    easy = logps.ratio(easy_win) - logps.ratio(easy_lose)
    logit = beta * hard - beta * easy
    present = logps.present(hard_win, hard_lose, easy_win, easy_lose)
    return scores.silent(present, -jax.nn.log_sigmoid(logit), logit=logit)
