"""The training step of rubric_jax, or its sampler, as one side of a comparison: see turns.py.

  python experiments/benchmarks/ours.py --folder DIR                    of third_party/checkpoint.py
  python experiments/benchmarks/ours.py --folder DIR --sample 8 --length 32

What a run does until its loop begins: rows are prepared, the reference's log-probabilities are
computed and stored, the policy loaded, the step compiled. Then every step takes the same batch. A
step of the sampler draws so many responses to every prompt, all of `length` tokens; its "loss" is
their number of tokens.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np
import turns

from rubric_jax import config as config_lib
from rubric_jax import sampling, sharding
from rubric_jax.train import loop, passes
from rubric_jax.train import setup as setup_lib


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--sample", type=int, default=0, help="K; 0 = train")
    parser.add_argument("--length", type=int, default=32, help="tokens of a sampled response")
    return parser


def main() -> None:
    args = parser().parse_args()
    imported = turns.resident()
    config = config_of(pathlib.Path(args.folder), args)
    step = sampler(config, args.sample, args.length) if args.sample else trainer(config)
    turns.serve(step, {"jax": jax.__version__}, imported=imported)


def config_of(folder: pathlib.Path, args: argparse.Namespace) -> config_lib.Config:
    """DPO on all rows of the folder at once."""
    count = len((folder / "rows.jsonl").read_text().splitlines())
    return config_lib.Config(
        model=config_lib.Model(
            checkpoint=str(folder / "policy"),
            reference=str(folder / "reference"),
            dtype=args.dtype,
            remat=args.remat,
            attention=args.attention,
        ),
        data=config_lib.Data(path=str(folder / "rows.jsonl"), buckets=1, prefetch=1),
        objective={"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}},
        optimizer=config_lib.Optimizer(
            learning_rate=args.learning_rate, schedule="constant", warmup=0.0
        ),
        train=config_lib.Train(steps=10_000, batch_size=count),
        mesh=config_lib.Mesh(data=1),
    )


def trainer(config: config_lib.Config):
    """() -> the loss of one more step."""
    objective = setup_lib.objective(config)
    setup = setup_lib.build(config)
    functions = loop.compile_functions(setup, objective, config.train.steps)
    with tempfile.TemporaryDirectory() as cache, jax.set_mesh(setup.mesh):
        source = setup_lib.source(setup, config.data.path, config.data.split, cache)
        plan = setup_lib.plan(setup, source, shuffle=False)
        store = passes.reference_store(setup, cache)
        directory = setup_lib.reference_directory(setup)
        passes.fill_references(setup, store, source, lambda: setup_lib.load(setup, directory))
        batch, _ = next(setup_lib.batches(setup, source, plan, stop=1, references=store))
        placed = sharding.put_batch(batch, setup.mesh)
        state = functions.start(setup_lib.load(setup))

    def step() -> float:
        nonlocal state
        with jax.set_mesh(setup.mesh):
            state, metrics = functions.step(state, placed, objective.knobs, None)
            jax.block_until_ready(state)
        return float(metrics["loss"])

    return step


def sampler(config: config_lib.Config, count: int, length: int):
    """() -> the tokens of `count` responses to every prompt."""
    setup = setup_lib.build(config)
    with tempfile.TemporaryDirectory() as cache, jax.set_mesh(setup.mesh):
        source = setup_lib.source(setup, config.data.path, config.data.split, cache)
        plan = setup_lib.plan(setup, source, shuffle=False)
        batch, _ = next(setup_lib.batches(setup, source, plan, stop=1))
        placed = sharding.put_batch(batch, setup.mesh)
        params = setup_lib.load(setup)
    drawn = 0

    def step() -> float:
        nonlocal drawn
        drawn += 1
        seeds = np.arange(len(batch.prompts), dtype=np.uint32) + np.uint32(1000 * drawn)
        sizes = {"count": count, "length": length, "temperature": 1.0, "stop": ()}
        with jax.set_mesh(setup.mesh):
            found = sampling.sample(setup.vlm, params, placed, seeds, **sizes)
        return float(found.mask.sum())

    return step


if __name__ == "__main__":
    main()
