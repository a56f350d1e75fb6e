"""Our training step against TRL's DPOTrainer and a hand-tuned PyTorch step, side by side.

python experiments/benchmarks/against.py --prompt 190 --out experiments/benchmarks/results/x.jsonl
python experiments/benchmarks/against.py --prompt 600
python experiments/benchmarks/against.py --sample 8    our sampler against transformers' generate
python experiments/benchmarks/against.py --cuda        on a GPU, a 3B model in bfloat16; unmeasured

Makes a random LLaVA of 30 million parameters in Hugging Face's format, starts one process per side
on the same checkpoint and rows, and lets them step in turns (see turns.py). Their losses on every
step must agree to 1 in 1,000, or nothing is written. All parameters train with AdamW, gradients are
clipped at a norm of 1, computation is in float32.

  ours                this project's step; the reference was computed and stored before
  torch, split/mask   third_party/torch_dpo.py, either attention
  trl                 third_party/trl_dpo.py, the reference in the step

With --sample the sides are `ours` and `generate` (third_party/generate.py), both drawing so many
responses to every prompt at temperature 1; tests/parity compares what they draw.

Speed is compared turn by turn; memory is the peak of resident memory while steps run, less what the
process held after its imports.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import common
import rich.console
import rich.table
import turns

ROOT = pathlib.Path(__file__).parents[2]
WARM = 2  # steps before the clock counts; their losses are compared, too
IMAGES = {190: 168, 600: 336}  # pixels a side: 144 and 576 patches
GPU = {  # Of 3 billion parameters; see docs/performance.md
    "vocab": 32064, "width": 2560, "depth": 32, "mlp": 8704, "vision_width": 1024,
    "vision_depth": 24, "prompt": 1000, "image": 336, "response": 256, "rows": 8,
}  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=190, help="tokens, those of the image too")
    parser.add_argument("--response", type=int, default=64, help="tokens")
    parser.add_argument("--rows", type=int, default=2, help="pairs per step")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sides", default="", help="of those above, separated by commas")
    parser.add_argument("--sample", type=int, default=0, help="K; 0 = train")
    parser.add_argument("--attention", default="auto", help="of ours")
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rubric_jax-against-") as folder:
        sizes = make(pathlib.Path(folder), args)
        sides = start(pathlib.Path(folder), args)
        try:
            memory = run(sides, args.repeats)
        finally:
            for side in sides:
                side.kill()
    check(sides)
    report(args, sizes, sides, memory)


def make(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """The checkpoint and its rows; returns what was asked for."""
    sizes = {"prompt": args.prompt, "response": args.response, "rows": args.rows}
    sizes["vocab"], sizes["image"] = args.vocab, IMAGES.get(args.prompt, 168)
    if args.cuda:
        sizes = dict(GPU)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in sizes.items()]
    command = [sys.executable, str(ROOT / "third_party" / "checkpoint.py"), "--out", str(folder)]
    made = subprocess.run([*command, *options], check=True, stdout=subprocess.PIPE, text=True)
    return {**sizes, "parameters": int(made.stdout.split()[0].replace(",", ""))}


def start(folder: pathlib.Path, args: argparse.Namespace) -> list[turns.Side]:
    common_options = ["--folder", str(folder)]
    threads, steps = ["--threads", str(args.threads)], WARM + args.repeats + 1
    cuda = ["--cuda"] if args.cuda else []
    torch = ["third_party/torch_dpo.py", *threads, *cuda, "--attention"]
    ours = ["--attention", args.attention, *(["--dtype", "bfloat16"] if args.cuda else [])]
    sample = ["--sample", str(args.sample), "--length", str(args.response)]
    count = ["--count", str(args.sample), "--length", str(args.response)]
    generate = {
        "ours": ["experiments/benchmarks/ours.py", *ours, *sample],
        "generate": ["third_party/generate.py", *threads, *cuda, *count],
    }
    train = {
        "ours": ["experiments/benchmarks/ours.py", *ours],
        "torch split": [*torch, "split"],
        "torch mask": [*torch, "mask"],
        "trl": ["third_party/trl_dpo.py", *threads, *cuda, "--steps", str(steps)],
    }
    programs = generate if args.sample else train
    names = args.sides.split(",") if args.sides else list(programs)
    unknown = set(names) - set(programs)
    if unknown or "ours" not in names:
        raise ValueError(
            f"--sides is {args.sides!r}; give 'ours' and any of {', '.join(programs)}, "
            "separated by commas."
        )
    return [
        turns.Side(
            name,
            [sys.executable, str(ROOT / programs[name][0]), *programs[name][1:], *common_options],
            threads=args.threads,
            log=str(folder / f"{name}.log"),
        )
        for name in names
    ]


def run(sides: list[turns.Side], repeats: int) -> dict[str, dict[str, int]]:
    """Steps in turns; returns the memory of each side."""
    for side in sides:
        side.ready()
    for side in sides:
        for _ in range(WARM):
            side.step()
        side.forget()
    for _ in range(repeats):
        for side in sides:
            side.step()
    return {side.name: side.end() for side in sides}


def check(sides: list[turns.Side]) -> None:
    """Raises RuntimeError unless all sides found the same losses.

    Relative to the first loss: after some steps a loss is all but 0, and so are its digits.
    """
    first = sides[0].losses
    for side in sides[1:]:
        gap = max(abs(a - b) for a, b in zip(first, side.losses, strict=True)) / first[0]
        if gap > 1e-3:
            raise RuntimeError(
                f"{sides[0].name} and {side.name} do not compute the same: losses {first} and "
                f"{side.losses} on the same rows. Nothing was compared."
            )


def report(args, sizes, sides: list[turns.Side], memory) -> None:
    ours = next(side for side in sides if side.name == "ours")
    table = rich.table.Table(title=f"{args.prompt} prefix tokens, {args.repeats} turns")
    for heading in ("side", "ms", "quartiles", "CPU s", "peak MB", "speed of ours", "quartiles"):
        table.add_column(heading)
    lines = []
    work, unit = (f"sample {args.sample}", "responses") if args.sample else ("train", "pairs")
    for side in sides:
        low, middle, high = common.quartiles(side.seconds)
        ratios = [b / a for a, b in zip(ours.seconds, side.seconds, strict=True)]
        least, ratio, most = common.quartiles(ratios)
        held = memory[side.name]["steps"]
        busy = common.quartiles(side.cpu)[1]
        lines.append(
            {
                "setting": f"{work}: {side.name}, prompt {args.prompt}, vocabulary {args.vocab}",
                "median_s": middle,
                "quartiles_s": [low, high],
                f"{unit}_per_s": sizes["rows"] * (args.sample or 1) / middle,
                "cpu_s": busy,
                "speed_of_ours": ratio,
                "speed_of_ours_quartiles": [least, most],
                "peak_bytes": held,
                "memory_of_ours": memory["ours"]["steps"] / held,
                "memory": memory[side.name],
                "losses": side.losses,
                "threads": args.threads,
            }
        )
        shown = (side.name, f"{1e3 * middle:.0f}", f"{1e3 * low:.0f} to {1e3 * high:.0f}")
        shown += (f"{busy:.2f}", f"{held / 1e6:.0f}", f"{ratio:.2f}", f"{least:.2f} to {most:.2f}")
        table.add_row(*shown)
    rich.console.Console().print(table)
    common.write(args, sizes, lines)


if __name__ == "__main__":
    main()
