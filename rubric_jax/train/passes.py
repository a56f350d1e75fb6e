"""One pass over data without training: scores, and the reference's log-probabilities."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from rubric_jax import sharding, types
from rubric_jax.data import loading, references
from rubric_jax.train import setup as setup_lib
from rubric_jax.train import step as step_lib


def logps(
    setup: setup_lib.Setup,
    params: types.Params,
    data: loading.Source,
    plan: loading.Plan,
    *,
    wanted: Callable[[np.ndarray], bool] = lambda rows: True,
    title: str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (rows int64 [b], log-probabilities float32 [b, N, T]) per batch, on every process.

    Args:
      wanted: of a batch's rows (-1 = padding), whether to compute it; others are not even loaded.
    """
    function = step_lib.branch_logps
    return values(function, setup, params, data, plan, wanted=wanted, title=title)


def values(
    function: Callable,
    setup: setup_lib.Setup,
    params: types.Params,
    data: loading.Source,
    plan: loading.Plan,
    *,
    wanted: Callable[[np.ndarray], bool] = lambda rows: True,
    title: str,
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields (rows int64 [b], a tree of [b, ...]) per batch, on every process; see `logps`.

    function: (task, params, batch) -> the tree.
    """
    function = setup_lib.pass_function(setup, function)
    steps = [step for step in range(plan.steps_per_epoch) if wanted(plan(step)[1])]
    bar = tqdm.tqdm(total=len(steps), desc=title, unit=" batches", disable=not setup.is_writer)
    for start, stop in runs(steps):
        for batch, _ in setup_lib.batches(setup, data, plan, start=start, stop=stop):
            placed = sharding.put_batch(batch._replace(ref_logps=None), setup.mesh)
            found = sharding.to_host(function(params, placed))
            rows = plan(start)[1]  # of all processes
            start += 1
            bar.update()
            yield rows[rows >= 0], jax.tree.map(lambda x, real=rows >= 0: x[real], found)
    bar.close()


def reference_store(setup: setup_lib.Setup, cache: str) -> references.References:
    """Where the log-probabilities of this run's reference lie."""
    model, reader = setup.config.model, setup_lib.reference_setup(setup)
    found = setup_lib.fingerprint(reader, setup_lib.reference_directory(setup))
    return references.References(
        os.path.join(cache, "references.sqlite"),
        hashlib.sha256(f"{found} {setup.vlm.config}".encode()).hexdigest(),
        "/".join(filter(None, (model.dtype, model.param_dtype, model.quantise))),
    )


def fill_references(
    setup: setup_lib.Setup,
    store: references.References,
    data: loading.Source,
    load: Callable[[], types.Params],
    *,
    rows: np.ndarray | None = None,
) -> int:
    """Computes what the store lacks for rows of some data; returns how many branches it lacked.

    Batches are those of a pass over all these rows, and a key takes its first value for good: a
    pass that was killed and goes on computes every value in the same company, hence with the same
    rounding.

    Args:
      load: gives the reference's parameters; called only if something is missing.
      rows: int64, all by default.
    """
    plan = setup_lib.plan(setup, data, shuffle=False, rows=rows)
    missing = set(store.missing(data.prepared.keys(plan.rows)))
    count = len(missing)
    setup_lib.barrier()  # nobody may write before everybody has looked
    if not missing:
        return 0
    branches = len(setup.layout.branches)

    def wanted(rows: np.ndarray) -> bool:
        return not missing.isdisjoint(data.prepared.keys(rows[rows >= 0]))

    found = logps(setup, load(), data, plan, wanted=wanted, title="reference log-probabilities")
    for rows, values in found:
        if setup.is_writer:
            keys = data.prepared.keys(rows)
            lengths = data.index["response_lengths"][rows].reshape(-1)
            flat = values.reshape(len(rows) * branches, -1)
            new = {k: v[:n] for k, v, n in zip(keys, flat, lengths, strict=True) if k in missing}
            store.put(new.items())
            missing -= new.keys()
    setup_lib.barrier()
    return count


def score(
    setup: setup_lib.Setup, params: types.Params, data: loading.Source
) -> dict[str, np.ndarray]:
    """Log-probabilities of every kept row in the order of the input, ready for `np.savez`.

    Returns `ids` str [R], `branches` str [N], `logps` float32 [R, N, T] in nats, `mask` float32
    [R, N, T] and `sums` float32 [R, N]; T is the longest response of the data. Of a model with
    heads also `heads/<name>` float32 [R, N, H] of each head per branch.
    """
    lengths = data.index["response_lengths"]  # [R, N]
    mask = (np.arange(lengths.max()) < lengths[..., None]).astype(np.float32)
    table = np.zeros(mask.shape, np.float32)
    plan = setup_lib.plan(setup, data, shuffle=False)
    heads = {
        f"heads/{name}": np.zeros((*lengths.shape, head.shape.outputs), np.float32)
        for name, head in setup.vlm.heads
        if head.shape.of == "branch"
    }
    for rows, found in values(step_lib.branch_scores, setup, params, data, plan, title="score"):
        width = min(found["logps"].shape[-1], table.shape[-1])  # padded beyond the longest
        table[rows, :, :width] = found["logps"][..., :width]
        for name, scores in heads.items():
            scores[rows] = found[name]
    return {
        "ids": data.index["id"],
        "branches": np.array(setup.layout.branches),
        "logps": table,
        "mask": mask,
        "sums": (table * mask).sum(axis=-1, dtype=np.float64).astype(np.float32),
        **heads,
    }


def runs(steps: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive steps as (start, stop): [0, 1, 2, 7] -> (0, 3), (7, 8)."""
    start = None
    for before, step in zip([None, *steps], steps, strict=False):
        if start is None or before is None or step != before + 1:
            if start is not None:
                yield start, before + 1
            start = step
    if start is not None:
        yield start, steps[-1] + 1
