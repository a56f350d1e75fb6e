"""What a judge says of the responses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rubric_jax.evals import bootstrap
from rubric_jax.recipes import groups as groups_lib


def rewards(
    groups: Sequence[groups_lib.Group], axes: Sequence[str], *, pattern: str = ""
) -> dict[str, np.ndarray]:
    """`reward`, `reward/<axis>` in [0, 1], `all essentials` (share that meets them in full), and
    `judged` (share with a complete verdict). Means over the K responses of each group.

    A response without a complete verdict has no reward; an axis that a rubric does not name has
    none for that group.
    """
    found = {"reward": bootstrap.mean_of([g.total for g in groups])}
    for a, axis in enumerate(axes):
        values = [g.axes[:, a] if g.known[a] else () for g in groups]
        found[f"reward/{axis}"] = bootstrap.mean_of(values)
    passed = [np.where(g.valid, g.essential >= 1 - 1e-6, np.nan) for g in groups]
    found["all essentials"] = bootstrap.mean_of(passed)
    found["judged"] = bootstrap.mean_of([g.valid for g in groups])
    return found
