"""What share of an epoch's tokens is padding, by config.data.buckets: what packing could save.

python experiments/benchmarks/padding.py

The planner of the training loop plans an epoch of pairs whose lengths are drawn: a picture of so
many tokens, a question and two responses of lognormal lengths. "Row by row": if each row had a
shape of its own, whose responses differ in length all the same. For data of your own `audit` prints
the share of each padded shape.
"""

from __future__ import annotations

import types

import common
import numpy as np
import rich.console
import rich.table

from rubric_jax.data import planning

PICTURES = {"576 tokens": 576, "tiles, 1 to 5 of 576": 0}  # of each row's picture
QUESTION = 40, 0.6  # median in tokens, standard deviation of its logarithm
RESPONSE = 90, 0.7
MOST = 512  # tokens of a response
BUCKETS = (1, 3, 8)


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256)
    args = parser.parse_args()
    sizes = {"rows": args.rows, "batch": args.batch, "question": QUESTION, "response": RESPONSE}
    table = rich.table.Table(title=f"padding of {args.rows} pairs in batches of {args.batch}")
    table.add_column("pictures")
    headings = [*(f"{buckets} bucket{'s' * (buckets > 1)}" for buckets in BUCKETS), "row by row"]
    for heading in headings:
        table.add_column(heading, justify="right")
    lines = []
    for name, tokens in PICTURES.items():
        index = drawn(args.rows, tokens)
        shares = [*(share(index, args.batch, buckets) for buckets in BUCKETS), least(index)]
        table.add_row(name, *(f"{found:.1%}" for found in shares))
        for heading, found in zip(headings, shares, strict=True):
            lines.append({"setting": f"{name}, {heading}", "padded_share": found})
    rich.console.Console().print(table)
    common.write(args, sizes, lines)


def drawn(rows: int, picture: int) -> dict[str, np.ndarray]:
    """The index of lengths that `data.preparing` makes, of drawn ones."""
    rng = np.random.default_rng(0)

    def lengths(median: float, spread: float, *shape: int) -> np.ndarray:
        found = median * np.exp(spread * rng.normal(size=shape))
        return np.clip(found.astype(np.int64), 1, MOST)

    pictures = picture or 576 * rng.integers(1, 6, (rows, 1))
    return {
        "number": np.arange(rows),
        "prompt_lengths": pictures + lengths(*QUESTION, rows, 1),
        "response_lengths": lengths(*RESPONSE, rows, 2),
        "images": np.ones(rows, np.int64),
        "cells": np.ones(rows, np.int64),
    }


def least(index: dict[str, np.ndarray]) -> float:
    """The same if each row had a shape of its own: what two responses of unequal length leave."""
    prompts, responses = index["prompt_lengths"], index["response_lengths"]
    whole = (prompts.sum(axis=1) + 2 * responses.max(axis=1)).sum()
    return 1.0 - (prompts.sum() + responses.sum()) / whole


def share(index: dict[str, np.ndarray], batch: int, buckets: int) -> float:
    """Padded tokens of an epoch over all its tokens."""
    plan = planning.plan(types.SimpleNamespace(index=index), batch_size=batch, buckets=buckets)
    real = sum(index[name].sum() for name in ("prompt_lengths", "response_lengths"))
    shapes, _ = plan.epoch_batches()
    per_row = np.array([shape.prompt + 2 * shape.response for shape in plan.shapes])
    return 1.0 - real / (batch * per_row[shapes].sum())


if __name__ == "__main__":
    main()
