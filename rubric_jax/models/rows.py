"""Between branches and rows: one row per context, its prefix once, then the branches that read it.

  layout                                              row of clean              row of corrupted
  chosen, rejected, chosen@corrupted   (N=3, M=2)     [P | chosen | rejected]   [P | chosen | -]

Every row has as many slots as the fullest context; a slot without a branch is computed and ignored.
Positions restart at the end of the prefix, so a branch's log-probabilities are those of the
separate sequence prefix + response.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.models import attention

Array = types.Array


def slots(layout: types.Layout) -> np.ndarray:
    """[M, slots]: the branch in each slot of each context's row (0 where the slot is unused)."""
    per_context = [layout.branches_of(m) for m in range(len(layout.contexts))]
    width = max(len(branches) for branches in per_context)
    return np.array([[*branches, *[0] * (width - len(branches))] for branches in per_context])


def pack(prompts: Array, responses: Array, layout: types.Layout) -> Array:
    """prompts [B, M, P, D] and responses [B, N, T, D] -> rows [B*M, P + slots*T, D]."""
    batch, contexts, _, width = prompts.shape
    table = slots(layout)
    branches = responses[:, table.reshape(-1)]  # [B, M*slots, T, D]
    branches = branches.reshape(batch, contexts, -1, width)
    rows = jnp.concatenate([prompts, branches], axis=2)
    return rows.reshape(batch * contexts, -1, width)


def unpack(
    rows: Array, lengths: Array, prefix: int, layout: types.Layout, last: bool = False
) -> Array:
    """Hidden states [B*M, S, D] -> the states that predict each response token, [B, N, T, D].

    Token 0 of a branch is predicted at the last real token of its prefix, token t at token t - 1.
    With `last` the state at the last token, which predicts none of them, stands behind: T + 1.
    """
    batch, contexts = lengths.shape
    table = slots(layout)
    rows = rows.reshape(batch, contexts, *rows.shape[1:])
    end = jnp.maximum(lengths - 1, 0)[:, :, None, None]
    first = jnp.take_along_axis(rows, end, axis=2)  # [B, M, 1, D]
    own = rows[:, :, prefix:].reshape(batch, contexts, table.shape[1], -1, rows.shape[-1])
    context = np.array(layout.context_of)
    slot = np.array([layout.branches_of(m).index(n) for n, m in enumerate(layout.context_of)])
    own = own[:, context, slot]  # [B, N, T, D]
    return jnp.concatenate([first[:, context], own if last else own[:, :, :-1]], axis=2)


def positions(lengths: Array, prefix: int, branches: int, length: int) -> Array:
    """int [R, P + branches*length]: 0, 1, ... in the prefix; each branch goes on from its end."""
    rows = lengths.shape[0]
    start = jnp.broadcast_to(jnp.arange(prefix)[None], (rows, prefix))
    own = lengths[:, None] + jnp.arange(length)[None]  # [R, T]
    return jnp.concatenate([start, jnp.tile(own, (1, branches))], axis=1)


def tables(angles: Array, lengths: Array, prefix: int, length: int) -> attention.Tables:
    """What attention needs to know of these rows."""
    valid = jnp.arange(prefix)[None] < lengths[:, None]
    return attention.Tables(angles=angles, valid=valid, own=jnp.tri(length, dtype=bool))
