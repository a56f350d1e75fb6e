"""What the data holds, what was dropped and why, and what the batches will cost: one table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.table

from rubric_jax.data import planning, preparing

_BINS = 8
_ORIGINS = {
    "column": "from a column",
    "corruption": "made of the row's own",
    "unchanged": "left as they are by the corruption",
    "shared": "the row's own, under a prompt of the context's own",
    "own": "the row's own, for want of others",
    "drawn from own": "the row's own, corrupted in every step",
    "drawn from column": "from a column, corrupted in every step",
}


def table(
    prepared: preparing.Prepared, plan: planning.Plan, *, title: str = "", lines: Sequence[str] = ()
) -> str:
    """The audit as text: rows and drops, lengths, buckets.

    Args:
      prepared: the data.
      plan: its batches.
      title: a heading, such as the data's path.
      lines: further lines for the end (a memory estimate, say).
    """
    counts = prepared.counts
    parts: list[Any] = [title] if title else []
    parts.append(_rows(counts, prepared.axes, len(plan.rows)))
    parts += [f"  dropped: {line}" for examples in counts.examples.values() for line in examples]
    if counts.unread:
        parts.append(f"  columns that nothing reads: {', '.join(counts.unread)}")
    for name, key, rows in (
        ("prompt", "prompt_lengths", prepared.layout.contexts),
        ("response", "response_lengths", prepared.layout.branches),
    ):
        parts.append(_histogram(f"{name} tokens", prepared.index[key], rows))
    parts.append(_buckets(prepared, plan))
    if plan.phase is not None:
        parts.append(_phases(plan))
    count = len(plan.shapes)
    parts.append(f"compilations of the step to expect: {count} (one per shape)")
    parts += list(lines)
    console = rich.console.Console(file=io.StringIO(), width=100)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False, highlight=False)
    return console.file.getvalue()


def shapes(prepared: preparing.Prepared, plan: planning.Plan) -> list[tuple[int, int, float]]:
    """Per shape of the plan: (rows per epoch, batches per epoch, share of padding in [0, 1])."""
    buckets, rows = plan.epoch_batches()
    real = prepared.index["prompt_lengths"].sum(axis=1)
    real = real + prepared.index["response_lengths"].sum(axis=1)  # tokens of each row
    m, n = len(prepared.layout.contexts), len(prepared.layout.branches)
    found = []
    for k, shape in enumerate(plan.shapes):
        members = rows[buckets == k]
        tokens = members.size * (m * shape.prompt + n * shape.response)
        used = real[members[members >= 0]].sum()
        found.append((int((members >= 0).sum()), len(members), 1 - float(used) / max(tokens, 1)))
    return found


def _rows(counts, axes: Sequence[str], planned: int) -> rich.table.Table:
    made = rich.table.Table()
    made.add_column("rows")
    made.add_column("", justify="right")
    made.add_row("read", str(counts.rows))
    for cause, number in sorted(counts.dropped.items()):
        made.add_row(f"dropped: {cause}", str(number))
    if counts.copies:
        made.add_row("copies of each, with weights in the prompt", str(counts.copies))
    made.add_row("kept", str(counts.kept))
    if planned < counts.kept:
        made.add_row("of these in config.data.view", str(planned))
    if axes:
        made.add_row("without rewards on every axis", str(counts.unrewarded))
    if counts.fell_back:
        made.add_row("reading their own images in another context", str(counts.fell_back))
    for context, origins in counts.contexts.items():
        for origin, number in sorted(origins.items()):
            made.add_row(f"images of {context}: {_ORIGINS[origin]}", str(number))
    for context, number in counts.prompts.items():
        made.add_row(f"prompts of {context}: from a column", str(number))
    for name, number in counts.spans.items():
        made.add_row(f"with spans {name}".rstrip(), str(number))
    if counts.spans:
        made.add_row("spans that no token is left of", str(counts.cut_spans))
    made.add_row("responses cut", str(counts.cut))
    made.add_row("images, distinct", f"{counts.images}, {counts.distinct_images}")
    return made


def _histogram(title: str, lengths: np.ndarray, names: Sequence[str]) -> rich.table.Table:
    """Rows per range of lengths, one column per context or branch. lengths [R, len(names)]."""
    made = rich.table.Table(title=title, title_justify="left")
    edges = np.unique(np.linspace(lengths.min(), lengths.max() + 1, _BINS + 1).astype(int))
    made.add_column("tokens")
    for name in names:
        made.add_column(name, justify="right")
    made.add_column("")
    counts = np.stack([np.histogram(column, edges)[0] for column in lengths.T])  # [names, bins]
    for i in range(len(edges) - 1):
        low, high = edges[i], edges[i + 1] - 1
        bar = "█" * int(np.ceil(24 * counts[:, i].max() / max(counts.max(), 1)))
        made.add_row(f"{low}" if low == high else f"{low} to {high}", *map(str, counts[:, i]), bar)
    return made


def _phases(plan: planning.Plan) -> rich.table.Table:
    """Rows of each phase of the curriculum, their keys, and the step of an epoch it begins with."""
    made = rich.table.Table(title="phases of an epoch", title_justify="left")
    for name in ("phase", "rows", "key", "first step"):
        made.add_column(name, justify="right")
    _, batches = plan.epoch_batches()
    phase_of = dict(zip(plan.rows.tolist(), plan.phase.tolist(), strict=True))
    latest = [max(phase_of[row] for row in batch[batch >= 0].tolist()) for batch in batches]
    for number in range(plan.phase.max() + 1):
        key = plan.key[plan.phase == number]
        span = f"{key.min():g}" if key.min() == key.max() else f"{key.min():g} to {key.max():g}"
        first = latest.index(number) if number in latest else "in a batch of the next"
        made.add_row(str(number + 1), str(len(key)), span, str(first))
    return made


def _buckets(prepared: preparing.Prepared, plan: planning.Plan) -> rich.table.Table:
    made = rich.table.Table(title=f"batches of {plan.batch_size} rows", title_justify="left")
    for name in ("prompt x response", "image slots", "rows", "steps per epoch", "padding"):
        made.add_column(name, justify="right")
    for shape, (rows, steps, padding) in zip(plan.shapes, shapes(prepared, plan), strict=True):
        made.add_row(
            f"{shape.prompt} x {shape.response}",
            f"{shape.images} per group",
            str(rows),
            str(steps),
            f"{padding:.0%}",
        )
    return made
