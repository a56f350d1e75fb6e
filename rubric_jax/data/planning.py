"""Which rows a step reads, and at which padded shape: a pure function of (seed, step).

Every row goes to the cheapest of at most `buckets` padded shapes that holds it. The shapes are
chosen together, over prompts and responses, for few padded tokens in an epoch:

    responses      . . . . : . . : .    . = rows; each shape reaches from the origin to its corner
             ------------ . : . . :
             . : : . . . | : . . .|     What is left of a shape's rows beyond whole batches goes to
             : : : : . . | : : . .|     the next one that holds it, so only one has a partial batch,
             ---------------------      filled up with padding rows (-1).
                          prompts

A batch has one shape, and an epoch visits every row once.
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

_MARKS = 32  # lengths of prompts, and of responses, that shapes are made of, at most


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
    needs = np.stack([prompts, responses], axis=1)
    # A token of the prompt is there once for each context, one of a response for each branch.
    weights = index["prompt_lengths"].shape[1], index["response_lengths"].shape[1]
    if shuffle:
        sizes, bucket = _fit(needs, np.array(weights), batch_size, buckets)
    else:  # the batches are given: each goes to a shape as a whole
        starts = np.arange(0, len(rows), batch_size)
        sizes, bucket = _fit(np.maximum.reduceat(needs, starts), np.array(weights), 1, buckets)
        bucket = np.repeat(bucket, batch_size)[: len(rows)]
    shapes = []
    for k, (prompt, response) in enumerate(sizes.tolist()):
        members = rows[bucket == k]
        slots = _most_images(index["images"][members], batch_size // groups)
        cells = int(index["cells"][members].max())
        cells = int(_round_up(np.array(cells))) if cells > 1 else 1
        shapes.append(Shape(prompt, response, slots, cells))
    made = Plan(tuple(shapes), rows, bucket, batch_size, groups, seed, shuffle)
    if phases is not None and shuffle:
        made = dataclasses.replace(made, phase=phases.of, key=phases.key)
    return made


def _fit(
    needs: np.ndarray, weights: np.ndarray, batch_size: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most so many shapes for rows that need [R, 2] tokens of prompt and response.

    Shapes are added one by one, each the best beside the others, and then exchanged for better
    ones; the number of shapes is the one with the fewest padded tokens, weighed, in whole batches.

    Returns (int64 [K, 2] shapes, cheap to dear, int64 [R] the shape of each row).
    """
    sizes, counts = np.unique(needs, axis=0, return_counts=True)
    marks = [_marks(need) for need in needs.T]
    offered = np.stack(np.meshgrid(*marks, indexing="ij"), axis=-1).reshape(-1, 2)
    offered = offered[np.argsort(offered @ weights, kind="stable")]  # the last holds all
    holds = (offered[:, None] >= sizes[None]).all(axis=2)
    cost = np.where(holds, (offered @ weights)[:, None] * counts[None], np.inf)  # [offered, sizes]
    chosen: list[int] = []
    found = []
    for count in range(min(most, len(offered))):
        chosen.append(_best(cost, chosen) if count else len(offered) - 1)
        for i in range(1, count + 1):
            chosen[i] = _best(cost, chosen[:i] + chosen[i + 1 :])
        found.append(_settle(needs, offered[sorted(set(chosen))], weights, batch_size))
    _, sizes, bucket = min(found, key=lambda one: one[0])
    used, bucket = np.unique(bucket, return_inverse=True)
    return sizes[used], bucket


def _marks(need: np.ndarray) -> np.ndarray:
    """Lengths that shapes may have: all, or some by the rows that need them, some by size."""
    every = np.unique(need)
    if len(every) <= _MARKS:
        return every
    parts = np.linspace(0, 1, _MARKS // 2 + 1)[1:]
    found = [np.quantile(x, parts, method="inverted_cdf") for x in (need, every)]
    return np.unique(np.concatenate(found))


def _best(cost: np.ndarray, others: list[int]) -> int:
    """The shape that saves most beside the others."""
    return int(np.argmin(np.minimum(cost, cost[others].min(axis=0)).sum(axis=1)))


def _settle(
    needs: np.ndarray, sizes: np.ndarray, weights: np.ndarray, batch_size: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """(padded tokens, sizes, int64 [R] the shape of each row): whole batches for all but one."""
    holds = (sizes[:, None] >= needs[None]).all(axis=2)  # [K, R]; the last holds all
    bucket = np.argmax(holds, axis=0)
    dear = np.argsort(needs @ weights, kind="stable")
    for k in range(len(sizes) - 1):
        own = dear[bucket[dear] == k]
        rest = own[len(own) - len(own) % batch_size :]
        bucket[rest] = k + 1 + np.argmax(holds[k + 1 :, rest], axis=0)
    batches = -(-np.bincount(bucket, minlength=len(sizes)) // batch_size)
    return int(batches @ (sizes @ weights)), sizes, bucket


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
