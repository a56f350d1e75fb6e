"""Means over instances with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_CHUNK = 8_000_000  # random numbers drawn at a time


class Interval(NamedTuple):
    mean: float
    low: float  # 2.5 %
    high: float  # 97.5 %
    n: int  # instances that have the measure


def interval(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean of values [n] with its 95 % percentile interval; NaN entries have no say.

    The instances are drawn with replacement (Efron's percentile bootstrap). Two measures of the
    same instances get the same draws, so differences may be taken instance by instance first.
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng, means = np.random.default_rng(seed), []
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        picks = rng.integers(0, n, (min(step, resamples - start), n))
        means.append(values[picks].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), n)


def mean_of(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """Mean of each list, NaN entries left out; NaN for a list without any. float64 [len(lists)]."""
    found = np.full(len(lists), np.nan)
    for i, values in enumerate(lists):
        values = np.asarray(values, np.float64)
        values = values[~np.isnan(values)]
        if len(values):
            found[i] = values.mean()
    return found
