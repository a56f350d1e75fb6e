"""How long the responses are, and whether they end: drift that rewards may hide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rubric_jax.evals import bootstrap
from rubric_jax.recipes import groups as groups_lib


def lengths(
    groups: Sequence[groups_lib.Group], axes: Sequence[str], *, pattern: str = ""
) -> dict[str, np.ndarray]:
    """`response tokens`, `response words`, and `finished`: share that ended by a stop token."""
    return {
        "response tokens": bootstrap.mean_of([[r.tokens for r in g.responses] for g in groups]),
        "response words": bootstrap.mean_of(
            [[len(r.text.split()) for r in g.responses] for g in groups]
        ),
        "finished": bootstrap.mean_of([[r.finished for r in g.responses] for g in groups]),
    }
