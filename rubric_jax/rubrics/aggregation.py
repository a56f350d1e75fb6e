"""Aggregation: criterion scores [B, K, C] -> rewards per axis [B, K, A] and as one number [B, K].

Every scheme is a pure function of `arrays.Scores`; its knobs are keyword-only and may be traced.
Common to all:

- A response without a score on every criterion has no reward: NaN, and False in `valid`.
- An axis that no criterion of the rubric names is 0 for all responses, and False in `known`.
- A criterion marked as a penalty counts with 1 - score, except in `signed_points`.
- Sums run over the criteria of one instance; sums per axis over its criteria on that axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.rubrics import arrays

_TOLERANCE = 1e-6  # a score that float32 rounding left below its threshold still reaches it


class Rewards(NamedTuple):
    axes: types.Array  # float32 [B, K, A]; NaN where not valid
    total: types.Array  # float32 [B, K]; NaN where not valid
    known: types.Array  # bool [B, A]: some criterion counts for the axis
    valid: types.Array  # bool [B, K]: every criterion was scored


def weighted_mean(scores: arrays.Scores) -> Rewards:
    """R = sum_k w_k s_k / sum_k w_k. In [0, 1]. "RaR explicit", arXiv:2507.17746."""
    return _weighted(scores, scores.weights)


def gated_mix(scores: arrays.Scores, *, lam: float = 0.3, tau: float = 1.0) -> Rewards:
    """R = (1 - lam) R_E + lam 1[R_E >= tau] R_A: additional credit never offsets essentials.

    R_E and R_A are weighted means over the essential and the additional criteria. In the spirit of
    RLR3 (arXiv:2605.30244), whose formula is not public; the form is ours. A rubric, or an axis,
    with one kind only has that kind's mean (R_A still gated).

    Args:
      scores: the scores.
      lam: share of the additional criteria, in [0, 1].
      tau: what R_E must reach before they count, in [0, 1].
    """
    gate = _reached(essential_score(scores), tau)  # [B, K]

    def mix(mean, has):
        essential, additional = mean(scores.essential), mean(~scores.essential)
        has_e, has_a = has(scores.essential), has(~scores.essential)
        share = jnp.where(has_a, jnp.where(has_e, lam, 1.0), 0.0)
        return essential, additional, share

    e, a, share = mix(lambda kind: _mean(scores.merits, _of(scores, kind)), _has(scores))
    total = (1 - share) * e + share * gate * a
    e, a, share = mix(
        lambda kind: _mean_per_axis(scores, scores.merits, _of(scores, kind)),
        _has_per_axis(scores),
    )
    return _rewards(scores, total=total, axes=(1 - share) * e + share * gate[..., None] * a)


def hard_gate(scores: arrays.Scores, *, tau: float = 1.0) -> Rewards:
    """R = prod_{essential} 1[pass] * mean_{additional} 1[pass]; weights play no part.

    After arXiv:2606.28322 (must-right, easy-wrong). Without additional criteria (of an axis: on
    that axis) the mean is 1.

    Args:
      scores: the scores.
      tau: a criterion passes from this score on.
    """
    passes = _passes(scores, tau)  # [B, K, C]
    gate = all_essentials(scores, tau=tau).astype(jnp.float32)  # [B, K]
    ones = (scores.real & ~scores.essential).astype(jnp.float32)[:, None, :]  # [B, 1, C]
    has, has_axis = _has(scores)(~scores.essential), _has_per_axis(scores)(~scores.essential)
    total = gate * jnp.where(has, _mean(passes, ones), 1.0)
    per_axis = jnp.where(has_axis, _mean_per_axis(scores, passes, ones), 1.0)
    return _rewards(scores, total=total, axes=gate[..., None] * per_axis)


def outcome(scores: arrays.Scores, *, tau: float = 1.0) -> Rewards:
    """R = 1 if every essential criterion passes, else 0; per axis, those of the axis. A control."""
    fails = (1.0 - _passes(scores, tau)) * _of(scores, scores.essential)  # [B, K, C]
    per_axis = jnp.einsum("bkc,bca->bka", fails, scores.axis_of)
    return _rewards(
        scores,
        total=(fails.sum(axis=-1) == 0).astype(jnp.float32),
        axes=(per_axis == 0).astype(jnp.float32),
    )


def signed_points(scores: arrays.Scores) -> Rewards:
    """R = sum of points earned / sum of positive points; penalties earn negative points.

    HealthBench (openai/simple-evals). May be below 0: clip only after averaging over instances. On
    an axis of penalties alone, the lost share of its points, in [-1, 0].
    """
    sign = jnp.where(scores.penalty, -1.0, 1.0)
    points = sign * scores.weights  # [B, C]
    positive = jnp.where(scores.penalty, 0.0, scores.weights)
    earned = jnp.where(scores.mask, scores.scores, 0.0) * points[:, None, :]  # [B, K, C]

    def share(earned, positive, all_points):
        return _divide(earned, jnp.where(positive > 0, positive, all_points))

    def on_axes(values):  # [B, C] -> [B, 1, A]
        return jnp.einsum("bc,bca->ba", values, scores.axis_of)[:, None, :]

    total = share(
        earned.sum(axis=-1),
        positive.sum(axis=-1, keepdims=True),
        scores.weights.sum(axis=-1, keepdims=True),
    )
    per_axis = share(
        jnp.einsum("bkc,bca->bka", earned, scores.axis_of),
        on_axes(positive),
        on_axes(scores.weights),
    )
    return _rewards(scores, total=total, axes=per_axis)


def stratified(
    scores: arrays.Scores, right: types.Array | None = None, *, low: float = 0.4, high: float = 0.6
) -> Rewards:
    """Total = low * R where the outcome is wrong, high + (1 - high) * R where it is right.

    R is the weighted mean. So no quality lifts a wrong response above a right one, while both sides
    stay ordered (HERO). Axes as in `weighted_mean`.

    Args:
      scores: the scores.
      right: bool [B, K], a verifier's word; None = every essential criterion is fully met.
      low, high: end of the wrong range and start of the right one, 0 <= low <= high <= 1.
    """
    dense = weighted_mean(scores)
    right = all_essentials(scores) if right is None else jnp.asarray(right)
    total = jnp.where(right, high + (1 - high) * dense.total, low * dense.total)
    return dense._replace(total=total)


def whitened(scores: arrays.Scores, *, ridge: float = 0.05) -> Rewards:
    """Weighted mean with weights from Sigma^(-1/2) 1, so that redundant criteria share theirs.

    Sigma is the covariance of the criterion scores over the K responses of the instance. RRD,
    arXiv:2602.05125. The rubric's own weights play no part; negative weights become 0.

    Args:
      scores: the scores.
      ridge: added to the diagonal of Sigma, > 0: with few responses Sigma is singular. Variances of
        scores are at most 0.25.
    """
    counted = scores.complete.astype(jnp.float32)[..., None]  # [B, K, 1]
    number = jnp.maximum(counted.sum(axis=1, keepdims=True), 1.0)
    mean = (scores.merits * counted).sum(axis=1, keepdims=True) / number
    centred = (scores.merits - mean) * counted  # [B, K, C]
    cov = jnp.einsum("bkc,bkd->bcd", centred, centred) / number  # [B, C, C]
    cov = cov + ridge * jnp.eye(cov.shape[-1])[None]
    weights = jnp.where(scores.real, whitening_weights(cov), 0.0)
    return _weighted(scores, weights)


def whitening_weights(cov: types.Array) -> types.Array:
    """Sigma^(-1/2) 1 of positive definite [..., C, C], negative entries set to 0. [..., C]."""
    values, vectors = jnp.linalg.eigh(cov)
    root = jax.lax.rsqrt(jnp.maximum(values, 1e-12))  # [..., C]
    summed = vectors.sum(axis=-2)  # 1' V
    return jnp.maximum(jnp.einsum("...cd,...d->...c", vectors, root * summed), 0.0)


def saturation(scores: arrays.Scores, *, gamma: float = 1.0) -> Rewards:
    """Weighted mean with w_k (1 - mean_k)^gamma: criteria that most responses meet count less.

    mean_k is the mean score of criterion k over the instance's responses. SA-MRPO. Where all are
    met by all, the rubric's own weights stand.

    Args:
      scores: the scores.
      gamma: >= 0; 0 is `weighted_mean`.
    """
    counted = scores.complete.astype(jnp.float32)[..., None]  # [B, K, 1]
    number = jnp.maximum(counted.sum(axis=1), 1.0)  # [B, 1]
    attained = (scores.merits * counted).sum(axis=1) / number  # [B, C]
    weights = saturation_weights(scores.weights, attained, gamma=gamma)
    some = jnp.any(weights > _TOLERANCE, axis=-1, keepdims=True)
    weights = jnp.where(some, weights, scores.weights)
    return _weighted(scores, weights)


def saturation_weights(weights, attained, *, gamma: float):
    """w (1 - attained)^gamma."""
    return weights * jnp.maximum(1.0 - attained, 0.0) ** gamma


AGGREGATIONS: dict[str, Callable[..., Rewards]] = {
    "weighted_mean": weighted_mean,
    "gated_mix": gated_mix,
    "hard_gate": hard_gate,
    "outcome": outcome,
    "signed_points": signed_points,
    "stratified": stratified,
    "whitened": whitened,
    "saturation": saturation,
}


# What recipes ask about the essential criteria.


def essential_score(scores: arrays.Scores) -> types.Array:
    """R_E, the weighted mean over the essential criteria. [B, K], in [0, 1]; 1 without any."""
    mean = _mean(scores.merits, _of(scores, scores.essential))
    return jnp.where(_has(scores)(scores.essential), mean, 1.0)


def all_essentials(scores: arrays.Scores, *, tau: float = 1.0) -> types.Array:
    """True where every essential criterion scores at least tau. [B, K]; False if unscored."""
    essential = (scores.real & scores.essential)[:, None, :]
    return jnp.all((_passes(scores, tau) > 0) | ~essential, axis=-1)


def no_essential_failed(scores: arrays.Scores) -> types.Array:
    """True where no essential criterion scores 0. [B, K]; False if unscored."""
    return all_essentials(scores, tau=2 * _TOLERANCE)


def _weighted(scores, weights) -> Rewards:
    """The weighted mean with these weights [B, C] in place of the rubric's."""
    weights = weights[:, None, :]  # [B, 1, C]
    return _rewards(
        scores,
        total=_mean(scores.merits, weights),
        axes=_mean_per_axis(scores, scores.merits, weights),
    )


def _rewards(scores, *, total, axes) -> Rewards:
    valid = scores.complete
    return Rewards(
        axes=jnp.where(valid[..., None], axes * _known(scores)[:, None, :], jnp.nan),
        total=jnp.where(valid, total, jnp.nan),
        known=_known(scores),
        valid=valid,
    )


def _known(scores) -> jax.Array:
    return _has_per_axis(scores)(scores.real)[:, 0, :]


def _of(scores, kind) -> jax.Array:
    """Weights of the criteria of a kind [B, C], 0 for the others. [B, 1, C]."""
    return jnp.where(kind, scores.weights, 0.0)[:, None, :]


def _has(scores) -> Callable:
    """kind [B, C] -> whether the rubric has criteria of it, [B, 1]."""
    return lambda kind: jnp.any(scores.real & kind, axis=-1, keepdims=True)


def _has_per_axis(scores) -> Callable:
    """kind [B, C] -> whether an axis has criteria of it, [B, 1, A]."""

    def has(kind):
        on_axis = (scores.real & kind)[..., None] & (scores.axis_of > 0)  # [B, C, A]
        return jnp.any(on_axis, axis=1)[:, None, :]

    return has


def _passes(scores, tau) -> jax.Array:
    return _reached(scores.merits, tau)  # without a score, the merit is 0


def _reached(value, tau) -> jax.Array:
    return (value >= tau - _TOLERANCE).astype(jnp.float32)


def _mean(values, weights) -> jax.Array:
    """Weighted mean over C; 0 without weight. [B, K]."""
    return _divide((values * weights).sum(axis=-1), weights.sum(axis=-1))


def _mean_per_axis(scores, values, weights) -> jax.Array:
    """Weighted mean over the criteria of each axis; 0 without any. [B, K, A]."""
    return _divide(
        jnp.einsum("bkc,bca->bka", values * weights, scores.axis_of),
        jnp.einsum("bkc,bca->bka", weights, scores.axis_of),
    )


def _divide(a, b) -> jax.Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
