"""What C criteria of a response cost in one pass over a shared prefix, and in C passes.

python experiments/benchmarks/judging.py --out experiments/benchmarks/results/judging.json

  one pass     image, instruction and response once, then C questions as branches
  C passes     each question behind a prefix of its own, one after the other
  C rows       the same in one batch of C times the rows; an image is still encoded once
"""

from __future__ import annotations

import dataclasses

import common
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.judges import vlm as vlm_judge

ANSWERS = np.array([2, 3], np.int32)  # whatever tokens stand for yes and no


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--criteria", type=int, default=8, help="C")
    parser.add_argument("--question", type=int, default=24, help="tokens of a criterion")
    args = parser.parse_args()
    size = common.SIZES[args.scale]
    vlm, params = common.model(size)
    c, rows = args.criteria, size.rows
    rng = np.random.default_rng(1)
    questions = rng.integers(2, size.vocab, (rows, c, args.question)).astype(np.int32)

    # The answer stands behind the question: a token whose value no state has seen.
    branches = np.pad(questions, ((0, 0), (0, 0), (0, 1)))
    mask = np.zeros(branches.shape, np.float32)
    mask[:, :, -1] = 1.0
    plain = common.prompts(vlm, size, rows=rows)
    shared = common.on_device(plain._replace(responses=branches, mask=mask))
    layout = types.Layout.of(tuple(f"criterion_{i}" for i in range(c)))
    single = types.Layout.of(("criterion",))
    separate = [common.prompts(vlm, size, rows=rows, tails=questions[:, i]) for i in range(c)]
    together = common.on_device(
        separate[0]._replace(
            prompts=np.concatenate([s.prompts for s in separate]),
            prompt_lengths=np.concatenate([s.prompt_lengths for s in separate]),
            media=separate[0].media
            | {"index": np.concatenate([s.media["index"] for s in separate])},
            responses=np.zeros((c * rows, 1, 1), np.int32),
            mask=np.ones((c * rows, 1, 1), np.float32),
        )
    )
    separate = [common.on_device(batch) for batch in separate]

    def score(batch, layout):
        return vlm_judge.agreement(vlm, params, batch, ANSWERS, layout=layout)

    cases = {
        "one pass": lambda: score(shared, layout),
        f"{c} passes": lambda: [score(batch, single) for batch in separate],
        f"{c} rows": lambda: score(together, single),
    }
    one = np.asarray(cases["one pass"]())
    many = np.concatenate(cases[f"{c} passes"](), axis=1)
    difference = float(jnp.max(jnp.abs(one - many)))
    seconds = common.time_cases(cases, args.repeats)
    ratios = {f"one pass / {other}": ("one pass", other) for other in (f"{c} passes", f"{c} rows")}
    sizes = dataclasses.asdict(size) | {"criteria": c, "question": args.question}
    facts = {"largest difference of a score": difference}
    common.report(args, sizes, seconds, ratios, facts)


if __name__ == "__main__":
    main()
