"""rubrics: instructions -> the rubric pool. What the pool has is never written again."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from rubric_jax.data import instructions
from rubric_jax.judges import verdicts, writer, writers
from rubric_jax.rubrics import pool as pool_lib
from rubric_jax.rubrics import records
from rubric_jax.stages import files


def write_rubrics(
    spec: Mapping[str, Any],
    asked: Iterable[instructions.Instruction],
    path: str,
    *,
    axes: Sequence[str],
    failures: float = 0.0,
) -> dict[str, Any]:
    """Fills the pool for the instructions that it lacks; returns the counts.

    Args:
      spec: {"writer": name, <knobs>}, see judges/writers.py.
      asked: the instructions.
      path: the pool's file; made if it is not there.
      axes: the run's reward axes.
      failures: share of the instructions that may stay without a rubric; they are left out later.

    Raises:
      ValueError: a bad spec or pool, or more instructions without a rubric than allowed: their
        number and the first reasons are named; what was written stays. What the writer said of them
        is in PATH.failed.jsonl.
    """
    write = writers.build(spec)
    pool = pool_lib.load(path, axes=axes)
    counts: collections.Counter[str] = collections.Counter(dropped_lines=pool.dropped)
    problems: collections.Counter[str] = collections.Counter()
    usage, examples = verdicts.Usage(), []
    missing: dict[str, instructions.Instruction] = {}  # equal content gets one rubric
    for task in asked:
        counts["instructions"] += 1
        if task.key in pool.rubrics:
            counts["in_pool"] += 1
        else:
            missing.setdefault(task.key, task)

    def written() -> Iterator[records.Rubric]:
        nonlocal usage
        bar = tqdm.tqdm(write(missing.values(), axes), total=len(missing), desc="rubrics")
        for task, found in bar:
            usage += found.usage
            problems.update(problem.partition(":")[0] for problem in found.problems)
            if found.rubric is None:
                counts["without"] += 1
                examples.append(f"{task.where}: {'; '.join(found.problems)}")
                _keep_raw(f"{path}.failed.jsonl", task, found)
            else:
                yield found.rubric

    counts["written"] = pool_lib.append(path, written()) if missing else 0
    if counts["without"] > failures * counts["instructions"]:
        shown = "\n  ".join(examples[:5])
        raise ValueError(
            f"{counts['without']} of {len(missing)} instructions are still without a rubric:\n  "
            f"{shown}\nThe others are in {path}, what was said of these in {path}.failed.jsonl. "
            "Run the command again to ask for them once more, or let config.pool.failures allow "
            "them."
        )
    sources = collections.Counter(r.source for r in pool_lib.load(path).rubrics.values())
    spent = {"calls": usage.calls, "cost": usage.cost}
    return {**counts, "sources": dict(sources), "problems": dict(problems), **spent}


def _keep_raw(path: str, task: instructions.Instruction, found: writer.Written) -> None:
    appender = files.Appender(path)
    appender.add(
        [{"key": task.key, "where": task.where, "problems": found.problems, "raw": found.raw}]
    )
    appender.close()
