"""How long a checkpoint takes to be loaded, and how long its bytes take to be read.

python experiments/benchmarks/load.py
python experiments/benchmarks/make_checkpoint.py --size=7b --out=DIR
python experiments/benchmarks/load.py --checkpoint DIR --dtype bfloat16 --cold [--devices 8]

  load   tensors into the stacked parameters of the model, on the devices
  keep   the bytes into memory of their own, as parameters must have it, too
  read   the bytes into one small buffer, block by block

Without --checkpoint a random LLaVA of the scale is written first. Files are in the page cache, for
all cases read them over and over; with --cold they leave it before each.
"""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Callable

import common
import jax
import numpy as np

from rubric_jax import config, models, sharding
from rubric_jax.models import weights

_BLOCK = 16 * 2**20  # bytes


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="", help="a directory; default: a random one")
    parser.add_argument("--family", default="llava")
    parser.add_argument("--dtype", default="float32", help="of the parameters")
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices, along fsdp")
    parser.add_argument("--cold", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    with tempfile.TemporaryDirectory(prefix="rubric_jax-load-") as made:
        directory = pathlib.Path(args.checkpoint or made)
        if not args.checkpoint:
            write(directory, common.SIZES[args.scale])
        vlm = models.build(args.family, directory)
        shapes = jax.eval_shape(vlm.init, jax.random.key(0))
        places, _ = sharding.place(sharding.make(config.Mesh(data=1, fsdp=-1)), vlm.rules, shapes)
        files = sorted(directory.glob("*.safetensors"))

        def load():
            return weights.load(directory, vlm.weights, shapes, dtype=args.dtype, shardings=places)

        def keep():
            for file in files:
                np.fromfile(file, np.uint8)

        cases = {"load": load, "keep": keep, "read": lambda: read(files)}
        if args.cold:
            cases = {name: after(case, files) for name, case in cases.items()}
        seconds = common.time_cases(cases, args.repeats)
        size = sum(file.stat().st_size for file in files)
    facts = {"bytes": size, "parameters": weights.count(shapes), "cold": args.cold}
    ratios = {f"load / {other}": ("load", other) for other in ("keep", "read")}
    common.report(args, facts | {"devices": args.devices}, seconds, ratios)


def read(files: list[pathlib.Path]) -> None:
    buffer = bytearray(_BLOCK)
    for file in files:
        with open(file, "rb", buffering=0) as source:
            while source.readinto(buffer):
                pass


def after(case: Callable, files: list[pathlib.Path]) -> Callable:
    """The case, reading files that the page cache has forgotten."""

    def cold():
        for file in files:
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        return case()

    return cold


def write(directory: pathlib.Path, size: common.Size) -> None:
    vlm, params = common.model(size)
    (directory / "config.json").write_text(json.dumps(common.hf_config(size)))
    weights.write(directory, jax.device_get(params), vlm.weights)


if __name__ == "__main__":
    main()
