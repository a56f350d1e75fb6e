"""rubrics: instructions -> the rubric pool. What the pool has is never written again."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from rubric_jax.data import instructions
from rubric_jax.judges import verdicts, writers
from rubric_jax.rubrics import pool as pool_lib
from rubric_jax.rubrics import records


def write_rubrics(
    spec: Mapping[str, Any],
    asked: Iterable[instructions.Instruction],
    path: str,
    *,
    axes: Sequence[str],
) -> dict[str, Any]:
    """Fills the pool for the instructions that it lacks; returns the counts.

    Args:
      spec: {"writer": name, <knobs>}, see judges/writers.py.
      asked: the instructions.
      path: the pool's file; made if it is not there.
      axes: the run's reward axes.

    Raises:
      ValueError: a bad spec or pool, or instructions that are still without a rubric: their number
        and the first reasons are named; what was written stays.
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
            else:
                yield found.rubric

    counts["written"] = pool_lib.append(path, written()) if missing else 0
    if counts["without"]:
        shown = "\n  ".join(examples[:5])
        raise ValueError(
            f"{counts['without']} of {len(missing)} instructions are still without a rubric:\n  "
            f"{shown}\nThe others are in {path}. Run the command again to ask for these once more."
        )
    return {**counts, "problems": dict(problems), "calls": usage.calls, "cost": usage.cost}
