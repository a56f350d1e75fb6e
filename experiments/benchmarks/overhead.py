"""What the loop adds to the compiled step: data, metrics, checkpoints.

python experiments/benchmarks/overhead.py --out experiments/benchmarks/results/overhead.jsonl

The real loop runs on rows of third_party/checkpoint.py. Every `--block` steps it is held, and as
many steps are taken by the compiled step alone, on one batch that lies on the device: blocks of
both take turns in one process. In the loop rows are read, pictures decoded, batches transferred,
metrics read and written; every other block has a checkpoint after its first step, which is written
behind the steps that follow. A run saves every 200 steps unless told otherwise.
"""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys
import tempfile
import time

import common
import jax
import ours

from rubric_jax import sharding
from rubric_jax.train import loop, passes
from rubric_jax.train import setup as setup_lib

ROOT = pathlib.Path(__file__).parents[2]
EVERY = 200  # config.train.checkpoint_every


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--block", type=int, default=5, help="steps")
    parser.add_argument("--prompt", type=int, default=190)
    parser.add_argument("--rows", type=int, default=2, help="pairs per step")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rubric_jax-overhead-") as folder:
        script = str(ROOT / "third_party" / "checkpoint.py")
        command = [sys.executable, script, "--out", folder, f"--prompt={args.prompt}"]
        subprocess.run([*command, f"--rows={2 * args.rows}"], check=True)
        seconds, bare = run(pathlib.Path(folder), args)
    quiet, saving = seconds[1::2], seconds[2::2]  # the first holds the compilation
    bare = bare[1::2]  # behind a quiet block: a checkpoint may still be written behind the others
    pairs = min(len(quiet), len(saving), len(bare))
    found = {"loop": quiet, "loop that saves": saving, "bare": bare}
    found = {name: values[:pairs] for name, values in found.items()}
    base = common.quartiles(found["bare"])[1] / args.block
    save = common.quartiles([a - b for a, b in zip(found["loop that saves"], found["loop"])])[1]
    ratio = common.quartiles([a / b for a, b in zip(found["loop"], found["bare"])])[1]
    facts = {
        "overhead of data and metrics": ratio - 1,
        "a checkpoint, s": save,
        f"overhead with a checkpoint every {EVERY} steps": ratio - 1 + save / (EVERY * base),
    }
    sizes = {"block": args.block, "prompt": args.prompt, "rows": args.rows}
    ratios = {"loop / bare": ("loop", "bare")}
    common.report(args, sizes, found, ratios, facts)


def run(folder: pathlib.Path, args) -> tuple[list[float], list[float]]:
    """Seconds of every block: of the loop, and of the bare step between them."""
    options = ours.parser().parse_args(["--folder", str(folder)])
    config = ours.config_of(folder, options)
    blocks = 2 * args.repeats + 1
    cache = str(folder / "cache")
    train = dataclasses.replace(
        config.train,
        batch_size=args.rows,
        steps=blocks * args.block + 1,
        checkpoint_every=2 * args.block,
        keep=1,
    )
    data = dataclasses.replace(config.data, cache=cache, prefetch=2)
    config = dataclasses.replace(config, train=train, data=data)
    objective = setup_lib.objective(config)
    setup = setup_lib.build(config)
    source = setup_lib.source(setup, config.data.path, config.data.split, cache)
    plan = setup_lib.plan(setup, source, shuffle=True)
    functions = loop.compile_functions(setup, objective, config.train.steps)
    store = passes.reference_store(setup, cache)
    directory = setup_lib.reference_directory(setup)
    passes.fill_references(setup, store, source, lambda: setup_lib.load(setup, directory))
    batch, _ = next(setup_lib.batches(setup, source, plan, stop=1, references=store))
    placed = sharding.put_batch(batch, setup.mesh)
    with jax.set_mesh(setup.mesh):
        state = functions.start(setup_lib.load(setup))
        state, _ = functions.step(state, placed, objective.knobs, None)  # compiles
    inside: list[float] = []
    between: list[float] = []

    def turns(setup, data, first, steps):
        take = loop.stored(setup, data, first, steps)
        since = time.perf_counter()

        def held(done, params):
            nonlocal since, state
            if done % args.block == args.block - 1:  # a step before a checkpoint may come
                jax.block_until_ready(params)
                inside.append(time.perf_counter() - since)
                started = time.perf_counter()
                for _ in range(args.block):
                    state, _ = functions.step(state, placed, objective.knobs, None)
                jax.block_until_ready(state)
                between.append(time.perf_counter() - started)
                since = time.perf_counter()
            return take(done, params)

        return held

    data = loop.Data(source, plan, None)
    loop.run(setup, objective, str(folder / "run"), config.train.steps, data, None, turns=turns)
    return inside, between


if __name__ == "__main__":
    main()
