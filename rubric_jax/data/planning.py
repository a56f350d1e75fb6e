"""Which rows a step reads, and at which padded shape: a pure function of (seed, step).

Rows are sorted by length and cut into at most `buckets` runs of whole batches; the cuts minimise
the padded tokens of an epoch. A batch stays inside its bucket, so an epoch visits every row once
and only the bucket of the longest rows has a partial batch, filled up with padding rows (-1).
With phases (a curriculum), rows and batches are shuffled within their phase; what a phase leaves of
a batch is filled up with rows of the next one, and no row comes before its phase.
Every process computes the same plan from the lengths; nothing is communicated.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_CUTS = 64  # places at which a bucket may end, at most


class Shape(NamedTuple):
    """Padded sizes of a batch. One compilation each."""

    prompt: int  # P, tokens
    response: int  # T, tokens
    images: int  # I, image entries per group
    cells: int = 1  # of an entry; see types.Picture


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """`plan(step)` gives a step's shape and rows; step s belongs to epoch s // steps_per_epoch."""

    shapes: tuple[Shape, ...]  # every shape that `plan(step)` can give, small to large
    rows: np.ndarray  # int64 [R], the rows to visit
    bucket: np.ndarray  # int64 [R], index into shapes of each of them
    batch_size: int
    groups: int
    seed: int
    shuffle: bool
    phase: np.ndarray | None = None  # int64 [R], from 0; None = one phase
    key: np.ndarray | None = None  # float64 [R], by which the phases were cut

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __call__(self, step: int) -> tuple[Shape, np.ndarray]:
        """(shape, int64 [batch_size] row numbers, -1 = padding)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        buckets, rows = _epoch(self, epoch if self.shuffle else 0)
        return self.shapes[buckets[position]], rows[position]

    def epoch_batches(self, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [S] index of the shape, int64 [S, batch_size] rows) of a whole epoch."""
        return _epoch(self, epoch if self.shuffle else 0)


def plan(
    prepared,
    *,
    batch_size: int,
    groups: int = 1,
    buckets: int = 3,
    seed: int = 0,
    shuffle: bool = True,
    rows: Sequence[int] | None = None,
    phases=None,
) -> Plan:
    """Plans the batches of prepared data.

    Args:
      prepared: a preparing.Prepared (or a loading.Source); its `index` of lengths is read.
      batch_size: rows per step over all processes.
      groups: image groups per step over all processes; divides batch_size.
      buckets: padded shapes at most.
      seed: of the shuffle.
      shuffle: another order in every epoch; without it, batches are runs of the input order.
      rows: visit only these (all by default).
      phases: an ordering.Phases over these rows, or None; read only where batches are shuffled.

    Raises:
      ValueError: no rows, or groups that do not divide the batch.
    """
    if batch_size % groups:
        raise ValueError(
            f"A batch of {batch_size} rows does not split into {groups} image groups; make "
            "config.train.batch_size a multiple of data shards x config.train.accumulate."
        )
    index = prepared.index
    rows = np.arange(len(index["number"])) if rows is None else np.asarray(rows, np.int64)
    if not len(rows):
        raise ValueError("There are no rows to plan batches for.")
    prompts = _round_up(index["prompt_lengths"][rows].max(axis=1))  # [R]
    responses = _round_up(index["response_lengths"][rows].max(axis=1, initial=0))  # [R]
    contexts, branches = index["prompt_lengths"].shape[1], index["response_lengths"].shape[1]
    order = np.argsort(contexts * prompts + branches * responses, kind="stable")
    high_p, high_t = np.maximum.accumulate(prompts[order]), np.maximum.accumulate(responses[order])
    cuts = _cuts(contexts * high_p + branches * high_t, batch_size, buckets)
    bucket = np.empty(len(rows), np.int64)
    bucket[order] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
    shapes = []
    for k, cut in enumerate(cuts):
        members = bucket == k if shuffle else bucket <= k
        slots = _most_images(index["images"][rows[members]], batch_size // groups)
        cells = int(index["cells"][rows[members]].max())
        cells = int(_round_up(np.array(cells))) if cells > 1 else 1
        shapes.append(Shape(int(high_p[cut - 1]), int(high_t[cut - 1]), slots, cells))
    made = Plan(tuple(shapes), rows, bucket, batch_size, groups, seed, shuffle)
    if phases is not None and shuffle:
        made = dataclasses.replace(made, phase=phases.of, key=phases.key)
    used = np.unique(_epoch(made, 0)[0])
    if len(used) == len(shapes):
        return made
    # In input order a short bucket may never fill a batch of its own: drop shapes that never come.
    keep = np.searchsorted(used, bucket)
    return dataclasses.replace(made, shapes=tuple(shapes[k] for k in used), bucket=keep)


def _cuts(cost: np.ndarray, batch_size: int, buckets: int) -> np.ndarray:
    """Ends of buckets, ascending, the last one R; `cost` [R] is that of a row padded to its bucket
    when the bucket ends there. All but the last are multiples of the batch size."""
    total = len(cost)
    batches = -(-total // batch_size)
    ends = np.unique(np.linspace(1, batches, min(batches, _CUTS)).astype(np.int64)) * batch_size
    ends[-1] = total
    price = cost[ends - 1].astype(np.float64)
    best = ends * price  # one bucket up to each end
    previous = [np.full(len(ends), -1)]
    for _ in range(1, min(buckets, len(ends))):
        # [i, j]: buckets so far end at i, one more from there to j
        costs = best[:, None] + (ends[None] - ends[:, None]) * price[None]
        costs[np.tril_indices(len(ends))] = np.inf
        choice = np.argmin(costs, axis=0)
        cheaper = costs[choice, np.arange(len(ends))] < best
        previous.append(np.where(cheaper, choice, -1))
        best = np.where(cheaper, costs[choice, np.arange(len(ends))], best)
    return _walk(ends, previous)


def _walk(ends: np.ndarray, previous: list[np.ndarray]) -> np.ndarray:
    """Follows the choices of `_cuts` back from the last end."""
    at, level, cuts = len(ends) - 1, len(previous) - 1, []
    while at >= 0:
        cuts.append(int(ends[at]))
        while level > 0 and previous[level][at] < 0:  # no bucket gained at this level
            level -= 1
        at, level = (int(previous[level][at]), level - 1) if level > 0 else (-1, 0)
    return np.array(cuts[::-1])


def _most_images(images: np.ndarray, group: int) -> int:
    """Most images a group of `group` rows can hold, whichever rows meet."""
    return int(np.sort(images)[::-1][:group].sum())


def _round_up(lengths: np.ndarray) -> np.ndarray:
    """To multiples of 16 up to 256, of 32 up to 1024, of 128 beyond: few, well-aligned shapes."""
    step = np.where(lengths <= 256, 16, np.where(lengths <= 1024, 32, 128))
    return np.maximum(-(-lengths // step) * step, 16).astype(np.int64)


@functools.lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    if not plan.shuffle:
        rows = _fill(plan.rows, plan.batch_size)
        bucket = _fill(plan.bucket, plan.batch_size)
        return bucket.max(axis=1), rows
    rng = np.random.default_rng((plan.seed, epoch))
    buckets, batches, phases = [], [], []
    for k in range(len(plan.shapes)):
        members = rng.permutation(np.flatnonzero(plan.bucket == k))
        if plan.phase is not None:
            members = members[np.argsort(plan.phase[members], kind="stable")]
            phases.append(_fill(plan.phase[members], plan.batch_size).max(axis=1))
        batches.append(_fill(plan.rows[members], plan.batch_size))
        buckets.append(np.full(len(batches[-1]), k, np.int64))
    order = rng.permutation(sum(map(len, batches)))
    if phases:
        order = order[np.argsort(np.concatenate(phases)[order], kind="stable")]
    return np.concatenate(buckets)[order], np.concatenate(batches)[order]


def _fill(values: np.ndarray, batch_size: int) -> np.ndarray:
    """[n] -> [S, batch_size], the end filled with -1."""
    padding = -len(values) % batch_size
    return np.pad(values, (0, padding), constant_values=-1).reshape(-1, batch_size)
