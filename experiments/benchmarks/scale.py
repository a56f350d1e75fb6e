"""How the step grows with branches, with the prefix and with devices; what a pod would send.

python experiments/benchmarks/scale.py --part branches      1, 2, 8 branches behind one prefix
python experiments/benchmarks/scale.py --part prefix        150, 600 tokens
python experiments/benchmarks/scale.py --part mesh          8 virtual devices of this CPU
python experiments/benchmarks/scale.py --part plan --model 7b --mesh fsdp=32 --rows 256
python experiments/benchmarks/scale.py --part plan ... --chips v5p:2x4x4

Virtual devices share the cores, so their times say nothing about speed; what the compiled program
sends between them (collectives.py) is what it would send anywhere. `plan` compiles the step of a
model at its real size for a mesh, without its weights, and adds up what each device sends, by axis.
Without --chips that is a mesh of virtual devices, and XLA for CPUs leaves an all-reduce where a
TPU's makes a reduce-scatter, which sends half as much. With --chips it is the TPU's own compiler,
which needs requirements-tpu.txt and no TPU (v5p:2x4x4 is a v5p-64).
"""

from __future__ import annotations

import dataclasses
import time

import collectives
import common
import jax
import roofline
import step
import tpu

from rubric_jax import sharding
from rubric_jax.train import loop
from rubric_jax.train import setup as setup_lib

BRANCHES = (1, 2, 8)
PREFIX = (150, 600)
MESHES = ("data=8", "fsdp=8", "fsdp=4,tensor=2")


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("branches", "prefix", "mesh", "plan"), required=True)
    parser.add_argument("--prompt", type=int, default=600)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--model", choices=roofline.MODELS, default="7b", help="of a plan")
    parser.add_argument("--mesh", default="fsdp=32", help="of a plan")
    parser.add_argument("--chips", default="", help="of a plan: a topology of TPUs")
    args = parser.parse_args()
    if args.part in ("mesh", "plan"):
        compile_all(args)
        return
    size = common.SIZES[args.scale]
    size = dataclasses.replace(size, rows=args.rows or size.rows)
    shared = {"response": args.response}
    if args.part == "branches":
        settings = {
            f"{n} branches": step.Setting(prompt=args.prompt, branches=n, **shared)
            for n in BRANCHES
        }
    else:
        settings = {f"prefix {p}": step.Setting(prompt=p, **shared) for p in PREFIX}
    mesh = step.read_mesh("")
    made = {name: step.build(size, setting, mesh) for name, setting in settings.items()}
    seconds = common.time_cases({name: case.step for name, case in made.items()}, args.repeats)
    first = next(iter(made))
    ratios = {f"{name} / {first}": (name, first) for name in made if name != first}
    more = {name: step.figures(case, seconds[name]) for name, case in made.items()}
    required = {f"{name}, required FLOPs": made[name].flops / made[first].flops for name in made}
    common.report(args, dataclasses.asdict(size), seconds, ratios, required, more)


def compile_all(args) -> None:
    """Prints and writes what the step sends on each mesh; nothing runs."""
    plan = args.part == "plan"
    chips = tpu.chips(args.chips) if args.chips else None
    if chips:
        args.device = args.device or f"{args.chips}, compiled for"
    # As many virtual devices as the largest mesh has; a smaller one takes the first of them.
    step.read_mesh(args.mesh if plan else "data=8")
    size = roofline.MODELS[args.model].size if plan else common.SIZES[args.scale]
    size = dataclasses.replace(size, rows=args.rows or (256 if plan else 8), prompt=args.prompt)
    lines = []
    for text in (args.mesh,) if plan else MESHES:
        remat = "full" if plan else "none"
        found = compiled_sends(size, text, args.response, remat, chips)
        lines.append({"setting": f"{args.model if plan else 'toy'}, {text}", **found})
        for axes, operations in found["sent"].items():
            shown = ", ".join(f"{name} {1e-9 * value:.3g}" for name, value in operations.items())
            print(f"{text}: a device sends along {axes} (GB): {shown}")
        print(f"{text}: a device holds {1e-9 * found['step_bytes']:.3g} GB")
    common.write(args, dataclasses.asdict(size), lines)


def compiled_sends(
    size: common.Size, mesh_text: str, response: int, remat: str, chips=None
) -> dict:
    mesh = step.read_mesh(mesh_text)
    setting = step.Setting(prompt=size.prompt, response=response, remat=remat)
    setup, objective = step.set_up(size, setting, mesh, chips)
    functions = loop.compile_functions(setup, objective, 10_000)
    batch = jax.eval_shape(lambda: step.random_batch(setup, size, setting))
    rows = sharding.batch_sharding(setup.mesh)
    batch = setup_lib.abstract(batch, jax.tree.map(lambda _: rows, batch))
    with jax.set_mesh(setup.mesh):
        traced = functions.step.trace(functions.state, batch, objective.knobs, None)
        started = time.perf_counter()
        compiled = traced.lower(lowering_platforms=("tpu" if chips else "cpu",)).compile()
        took = time.perf_counter() - started
    sent = collectives.sent(compiled.as_text(), setup.mesh)
    return {"sent": sent, "compile_s": took, **step.memory(compiled)}


if __name__ == "__main__":
    main()
