"""eval: what a policy's responses to held-out instructions are worth.

{"policy": "round_1", "instances": 240, "measures": {"reward":
   {"mean": 0.61, "low": 0.58, "high": 0.64, "n": 240}, "reward/correctness": {...}, ...},
 "per_instance": {"id": [...], "reward": [...], ...}}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rubric_jax import checkpoint, evals
from rubric_jax import config as config_lib
from rubric_jax.recipes import groups as groups_lib


def write_measures(
    out: str,
    name: str,
    groups: Sequence[groups_lib.Group],
    axes: Sequence[str],
    config: config_lib.Evaluation,
    *,
    judge: Mapping[str, str],
    pairs: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Measures groups, writes eval.json, and returns it as plain values.

    Args:
      out: the file.
      name: of the policy: base, round_1, ...
      groups: judged responses to the held-out instructions.
      axes: the run's reward axes.
      config: which measures, and the resamples of their intervals.
      judge: the identity of the judge, for the record.
      pairs: measures of held-out preference data, per pair; see evals.implicit.
    """
    found = evals.measure(config.measures, groups, axes, pattern=config.pattern)
    measures = {
        measure: evals.interval(values, resamples=config.bootstrap)._asdict()
        for measure, values in {**found, **pairs}.items()
    }
    value = {
        "policy": name,
        "judge": dict(judge),
        "aggregation": dict(config.aggregation),
        "instances": len(groups),
        "measures": {k: {f: _finite(x) for f, x in v.items()} for k, v in measures.items()},
        "per_instance": {
            "id": [group.id for group in groups],
            **{measure: [_finite(x) for x in values] for measure, values in found.items()},
        },
    }
    with checkpoint.disk_errors(os.path.dirname(os.path.abspath(out))):
        with open(out + ".tmp", "w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1)
        os.replace(out + ".tmp", out)
    return value


def _finite(value: float) -> float | int | None:
    """JSON has no NaN: a measure that nothing has is null."""
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else round(float(value), 6)
