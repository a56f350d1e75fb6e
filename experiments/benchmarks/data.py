"""Rows per second from the disk to the device: read, decode, collate, transfer.

python experiments/benchmarks/data.py --out experiments/benchmarks/results/data.jsonl

  prepare    once per data set: rows checked and tokenised, pictures stored
  batches    16 batches of `--batch` rows on the device, their pictures decoded and scaled
  in hand    the same without the disk: one batch that is transferred 16 times
"""

from __future__ import annotations

import pathlib
import tempfile
import time

import common
import jax

from rubric_jax import config as config_lib
from rubric_jax import sharding
from rubric_jax.data import scenes
from rubric_jax.train import setup as setup_lib

TAKEN = 16  # batches that a case takes, more than are ready ahead


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8, help="rows")
    parser.add_argument("--pairs", type=int, default=200, help="rows of the data set")
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0 = threads")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rubric_jax-data-") as folder:
        root = pathlib.Path(folder)
        scenes.write(root / "data", demos=1, pairs=args.pairs, heldout=1)
        scenes.write_model(root / "model", width=16, depth=1, vision_width=16, vision_depth=1)
        config = config_lib.Config(
            model=config_lib.Model(checkpoint=str(root / "model")),
            data=config_lib.Data(
                path=str(root / "data" / "train.jsonl"), axes=scenes.AXES, workers=args.workers
            ),
            train=config_lib.Train(batch_size=args.batch),
            mesh=config_lib.Mesh(data=1),
        )
        setup = setup_lib.build(config)
        started = time.perf_counter()
        source = setup_lib.source(setup, config.data.path, "train", str(root / "cache"))
        prepared = time.perf_counter() - started
        plan = setup_lib.plan(setup, source, shuffle=True)
        batches = setup_lib.batches(setup, source, plan)
        held, _ = next(batches)

        def put(next_one):
            return [sharding.put_batch(next_one(), setup.mesh) for _ in range(TAKEN)]

        cases = {
            "batches": lambda: put(lambda: next(batches)[0]),
            "in hand": lambda: put(lambda: held),
        }
        seconds = common.time_cases(cases, args.repeats)
    rows = TAKEN * args.batch
    more = {name: {"rows_per_s": rows / common.quartiles(seconds[name])[1]} for name in cases}
    facts = {"prepare, rows per s": len(source) / prepared}
    sizes = {"batch": args.batch, "pairs": args.pairs, "workers": args.workers}
    sizes["image"] = list(jax.tree.leaves(held.media)[-1].shape[-3:])
    common.report(args, sizes, seconds, {}, facts, more)


if __name__ == "__main__":
    main()
