"""What K responses to one prompt cost when its prefix is read once.

python experiments/benchmarks/sampling.py --out experiments/benchmarks/results/sampling.json

  prefill   the prompt alone, with room for K continuations
  sample    prefill and `length` tokens of each
  copies    the same K responses from K rows of the same prompt, K = 1 each
"""

from __future__ import annotations

import dataclasses

import common
import jax
import numpy as np

from rubric_jax import sampling


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8, help="K")
    parser.add_argument("--length", type=int, default=32, help="tokens of a response")
    args = parser.parse_args()
    size = common.SIZES[args.scale]
    vlm, params = common.model(size)
    rows, count = size.rows, args.count
    batch = common.on_device(common.prompts(vlm, size, rows=rows))
    copies = common.on_device(
        batch._replace(
            prompts=np.repeat(batch.prompts, count, 0),
            prompt_lengths=np.repeat(batch.prompt_lengths, count, 0),
            # The vision tower sees an image once here, too.
            media=batch.media | {"index": np.repeat(batch.media["index"], count, 0)},
        )
    )
    prefill = jax.jit(vlm.prefill, static_argnums=(2, 3))

    def sample(batch, count):
        seeds = np.arange(len(batch.prompts), dtype=np.uint32)
        return sampling.sample(
            vlm, params, batch, seeds, count=count, length=args.length, temperature=1.0, stop=()
        )  # fmt: skip

    names = {1: "K = 1", count: f"K = {count}"}
    cases = {
        f"prefill, {name}": lambda k=k: prefill(params, batch, k, args.length)
        for k, name in names.items()
    }
    cases[f"prefill, {count} copies"] = lambda: prefill(params, copies, 1, args.length)
    cases |= {f"sample, {name}": lambda k=k: sample(batch, k) for k, name in names.items()}
    cases[f"sample, {count} copies"] = lambda: sample(copies, 1)
    seconds = common.time_cases(cases, args.repeats)
    ratios = {
        f"{kind}: {over} / K = 1": (f"{kind}, {over}", f"{kind}, K = 1")
        for kind in ("prefill", "sample")
        for over in (f"K = {count}", f"{count} copies")
    }
    sizes = dataclasses.asdict(size) | {"count": count, "length": args.length}
    common.report(args, sizes, seconds, ratios)


if __name__ == "__main__":
    main()
