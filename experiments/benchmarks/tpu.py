"""What the compiler for TPUs makes of attention, on a machine that has no TPU.

python -m pip install -r requirements-tpu.txt
python experiments/benchmarks/tpu.py                     both routes, at the sizes of a 7B
python experiments/benchmarks/tpu.py --model 3b --rows 4 --prompt 4000

Nothing runs: forward and backward pass of one layer's attention are compiled for one chip of a v5p.
The compiler tells what lies in the chip's memory at a time and what the program moves to and from
it; at the chip's bandwidth that takes the time given, at least. Of a kernel it counts inputs and
outputs once, and no arithmetic, so the required FLOPs at the chip's peak stand beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time

import common
import jax
import jax.numpy as jnp
import rich.console
import rich.table
import roofline
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from rubric_jax import config, sharding
from rubric_jax.models import attention

POD = roofline.MACHINES["v5p-64"]
BRANCHES = 2


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", choices=roofline.MODELS, default="7b")
    parser.add_argument("--rows", type=int, default=8, help="a chip's")
    parser.add_argument("--prompt", type=int, default=1000)
    parser.add_argument("--response", type=int, default=roofline.RESPONSE)
    args = parser.parse_args()
    args.device = args.device or "TPU v5p, compiled for"
    size = roofline.MODELS[args.model].size
    size = dataclasses.replace(size, rows=args.rows, prompt=args.prompt)
    mesh = sharding.make(config.Mesh(data=1), chips("v5p:2x2x1")[:1])
    pairs = args.prompt**2 / 2 + BRANCHES * args.response * (args.prompt + args.response / 2)
    arithmetic = 3 * 4 * size.rows * size.width * pairs / (POD.flops / POD.devices)
    table = rich.table.Table(title=f"attention of a layer of the {args.model}, both passes")
    for heading in ("route", "holds MB", "moves GB", "at peak, ms", "compiled in s"):
        table.add_column(heading)
    lines = []
    for route in ("plain", "splash"):
        found = compiled(size, args.response, route, mesh)
        found["required_arithmetic_s"] = arithmetic
        lines.append({"setting": f"{args.model}, {route}", **found})
        figures = 1e-6 * found["temporary_bytes"], 1e-9 * found["moved_bytes"]
        figures += 1e3 * found["moved_s"], found["compile_s"]
        table.add_row(route, *(f"{value:.3g}" for value in figures))
    console = rich.console.Console()
    console.print(table)
    console.print(f"Its required FLOPs take {1e3 * arithmetic:.3g} ms at the chip's peak.")
    common.write(args, dataclasses.asdict(size), lines)


def chips(topology: str) -> list:
    """The devices of a topology such as v5p:2x4x4, to compile for. SystemExit without libtpu."""
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # a compiler alone has no metadata server
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except (RuntimeError, ValueError) as error:
        raise SystemExit(
            f"No compiler for {topology} ({error}); python -m pip install -r requirements-tpu.txt"
        ) from error


def compiled(size: common.Size, response: int, route: str, mesh: jax.sharding.Mesh) -> dict:
    """What the compiler says of values and gradients of one layer's attention."""
    head = size.width // size.heads
    kind = attention.Kind(head**-0.5)
    shape = size.rows, size.prompt + BRANCHES * response, size.heads, head
    here = NamedSharding(mesh, PartitionSpec())
    like = functools.partial(jax.ShapeDtypeStruct, sharding=here)
    x, valid = like(shape, jnp.dtype(size.dtype)), like((size.rows, size.prompt), bool)

    def both(q, k, v, valid, pull):
        own = jnp.tri(response, dtype=bool)
        tables = attention.Tables(angles=jnp.zeros(0), valid=valid, own=own)

        def attend(*qkv):
            return attention.tree(*qkv, None, tables, kind, route=route)[0]

        out, pulled = jax.vjp(attend, q, k, v)
        return out, pulled(pull)

    started = time.perf_counter()
    with jax.set_mesh(mesh):
        traced = jax.jit(both).trace(x, x, x, valid, x)
        program = traced.lower(lowering_platforms=("tpu",)).compile()
    moved = program.cost_analysis()["bytes accessed"]
    return {
        "temporary_bytes": float(program.memory_analysis().temp_size_in_bytes),
        "moved_bytes": moved,
        "moved_s": moved / (POD.bandwidth / POD.devices),
        "compile_s": time.perf_counter() - started,
    }


if __name__ == "__main__":
    main()
