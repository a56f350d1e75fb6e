"""Terms on the scores of heads: reward models, and what else is read from hidden states.

  logps       heads {name: float32 [B, N, H]}, one vector per branch; see config.model.heads
  labels      as each term says
  head        name of the head whose outputs are the scores s
  win, lose   indices of the two branches
  result      loss [B] in nats unless said, 0 where a branch is absent; metrics, each [B]

None of them reads log-probabilities, so none needs a reference. For every other term on scores in
place of log-ratios see modifiers.by_head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.objectives import scores


def bt(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    head: types.BranchHead,
    center: float = 0.0,
):
    """Bradley-Terry: the head's score of `win` above that of `lose`.

    logit = s_win - s_lose - margin
    loss  = -log sigmoid(logit) + center (s_win + s_lose)^2

    Bradley and Terry (1952); the second part keeps scores around 0, Eisenstein et al.,
    arXiv:2312.09244, TRL's center_rewards_coefficient.

    Args:
      labels: margin [B].
      head: of one output.
      center: >= 0.
    """
    score = logps.heads[head][:, :, 0]  # [B, N]
    gap = score[:, win] - score[:, lose]
    logit = gap - labels.margin
    loss = -jax.nn.log_sigmoid(logit) + center * (score[:, win] + score[:, lose]) ** 2
    return _pair(logps, win, lose, loss, gap)


def bt_mixture(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    head: types.BranchHead,
    router: types.BranchHead,
    entropy: float = 0.5,
):
    """A mixture of Bradley-Terry models, weighted by a router that reads the prompt.

    w    = softmax(router of win's prompt)
    loss = -log sum_k w_k sigmoid(s_win,k - s_lose,k) + entropy sum_k w_k log w_k

    Shen et al. (MiCRo), arXiv:2505.24846, whose score of a response is sum_k w_k s_k. The second
    part is negative: it spreads the router.

    Args:
      labels: not read.
      head, router: of as many outputs.
      entropy: >= 0.
    """
    del labels
    score, log_w = logps.heads[head], jax.nn.log_softmax(logps.heads[router][:, win])  # [B, K]
    gaps = score[:, win] - score[:, lose]
    loss = -jax.nn.logsumexp(log_w + jax.nn.log_sigmoid(gaps), axis=-1)
    weights = jnp.exp(log_w)
    negative = jnp.sum(weights * log_w, axis=-1)  # nats, in [-log K, 0]
    gap = jnp.sum(weights * gaps, axis=-1)
    return _pair(logps, win, lose, loss + entropy * negative, gap, entropy=-negative)


def bt_user(
    logps: types.Logps,
    labels: types.Labels,
    *,
    win: types.Branch,
    lose: types.Branch,
    head: types.BranchHead,
    prototypes: types.BranchHead,
    users: types.Table,
    scale: float = 14.3,
):
    """Bradley-Terry with an ideal point per user, mixed of K prototypes that read the prompt.

    a     = sum_k softmax(users[u])_k g_k(prompt)
    loss  = -log sigmoid(scale (cos(f(win), a) - cos(f(lose), a)))

    Chen et al. (PAL), arXiv:2406.08469, its model B. `u` is the row's axis: the axes of the run are
    the users, and a row's axis is the one who preferred `win`.

    Args:
      labels: axis [B], the user.
      head: f, of d outputs.
      prototypes: g, of K * d outputs, prototype after prototype.
      users: [users, K].
      scale: of the cosines; the paper starts at 1 / 0.07 and learns it.
    """
    own = logps.heads[users]  # [U, K]
    mixing = jax.nn.softmax(own)[jnp.clip(labels.axis, 0, own.shape[0] - 1)]  # [B, K]
    points = logps.heads[prototypes][:, win].reshape(len(mixing), own.shape[-1], -1)  # [B, K, d]
    ideal = _unit(jnp.sum(mixing[:, :, None] * points, axis=1))
    score = scale * jnp.sum(_unit(logps.heads[head]) * ideal[:, None], axis=-1)  # [B, N]
    gap = score[:, win] - score[:, lose]
    return _pair(logps, win, lose, -jax.nn.log_sigmoid(gap), gap)


def regression(
    logps: types.Logps, labels: types.Labels, *, on: types.Branch, head: types.BranchHead
):
    """Fits a head with an output per axis to the reward vector of a branch.

    loss = mean_a (s_a - rewards_a)^2      the reward model of DPA, Wang et al., arXiv:2402.18571

    Args:
      labels: rewards [B, N, A].
      on: index of the branch; an entry for each branch that has rewards.
      head: of A outputs.
    """
    target = jax.lax.stop_gradient(labels.rewards[:, on])  # [B, A]
    error = logps.heads[head][:, on] - target
    loss = jnp.mean(error**2, axis=-1)
    return scores.silent(logps.present(on), loss, error=jnp.mean(jnp.abs(error), axis=-1))


def degree(
    logps: types.Logps, labels: types.Labels, *, over: types.Branches, head: types.BranchHead
):
    """Tells how far a response was degraded: branch i of the list is of degree i.

    loss = mean over the branches present of -log softmax(s of branch i)_i

    The preference degrees of SPO (our reading): phrases are taken away, none from the first
    branch, one from the second, ...

    Args:
      labels: not read.
      over: indices of at least two branches, in the order of their degree.
      head: of at least as many outputs.
    """
    del labels
    index = np.asarray(over)
    logits = jax.nn.log_softmax(logps.heads[head][:, index])  # [B, K, H]
    own = jnp.diagonal(logits[:, :, : len(over)], axis1=1, axis2=2)  # [B, K]
    there = jnp.any(logps.mask[:, index] != 0, axis=-1)  # [B, K]
    count = jnp.maximum(jnp.sum(there, axis=-1), 1)
    right = jnp.argmax(logits, axis=-1) == np.arange(len(over))[None]
    loss = -jnp.sum(jnp.where(there, own, 0.0), axis=-1) / count
    accuracy = (jnp.sum(there & right, axis=-1) / count).astype(loss.dtype)
    return scores.silent(jnp.sum(there, axis=-1) >= 2, loss, accuracy=accuracy)


def fits(
    term: str, heads: Mapping[str, types.HeadShape], static: Mapping[str, Any], axes: tuple
) -> str:
    """What is wrong with the outputs of a term's heads, by knob; "" if nothing."""
    wanted = {
        "bt": {"head": 1},
        "by_head": {"head": 1},
        "regression": {"head": len(axes)},
        "sparsepo": {"mask": 1, "kl_mask": 1},
    }.get(term, {})
    for knob, outputs in wanted.items():
        if heads[knob].outputs != outputs:
            return f"{knob} has {heads[knob].outputs} output(s); {term} needs {outputs}."
    if term == "bt_mixture" and heads["router"].outputs != heads["head"].outputs:
        return f"router has {heads['router'].outputs} outputs for {heads['head'].outputs} of head."
    if term == "degree" and heads["head"].outputs < len(static["over"]):
        return f"head has {heads['head'].outputs} outputs for {len(static['over'])} degrees."
    if term == "bt_user":
        users, points = heads["users"], heads["prototypes"].outputs
        if users.rows != len(axes):
            return f"users has {users.rows} rows for {len(axes)} users in config.data.axes."
        if points != users.outputs * heads["head"].outputs:
            return (
                f"prototypes has {points} outputs; it needs {users.outputs} (of users) times "
                f"{heads['head'].outputs} (of head)."
            )
    return ""


def _pair(logps, win, lose, loss, gap, **metrics):
    """`margin` is the gap of the scores; a tie counts as wrong."""
    accuracy = (gap > 0).astype(loss.dtype)
    return scores.silent(logps.present(win, lose), loss, margin=gap, accuracy=accuracy, **metrics)


def _unit(x: jax.Array) -> jax.Array:
    """Of length 1 along the last axis; the 0 vector stays, without a NaN in its gradient."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
