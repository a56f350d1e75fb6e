"""What W weightings trained at once cost, and what runs one after the other cost.

python experiments/benchmarks/front.py --out experiments/benchmarks/results/front.json

  front of 8 at once    one compiled step over parameters with a leading axis (vmap), one batch
  front of 8 in turns   the same step, with one member after the other inside it (lax.map)
  4 alone               a step of four runs each, one after the other, as one compiled step with
                        other knobs
  8 alone               the same of eight

All take MODPO with AdamW on one batch, and find the reference's log-probabilities in it. Runs of
their own also compile a step each, which these cases leave out: `whole runs` are measured once from
the first call to the last of `--steps` steps, the front's as `train.front` does it here by default.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import pathlib
import time

import common
import jax
import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import sharding, types
from rubric_jax.train import front, loop
from rubric_jax.train import setup as setup_lib

SIZES = {
    "cpu": common.Size(
        width=64, depth=2, heads=2, mlp=128, vocab=128, image=42, vision_width=64,
        vision_depth=2, dtype="float32", rows=8, prompt=32,
    ),
    "gpu": dataclasses.replace(common.SIZES["cpu"], rows=16, prompt=128, dtype="bfloat16"),
}  # fmt: skip
AXES = ("grounding", "completeness")
MODPO = {"win": "chosen", "lose": "rejected", "beta": 0.1}


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=8, help="W")
    parser.add_argument("--response", type=int, default=32, help="tokens")
    parser.add_argument("--steps", type=int, default=100, help="of whole runs")
    args = parser.parse_args()
    size, count = SIZES[args.scale], args.members
    setup, params, batch = build(size, args.response)
    shares = [(i + 1) / (count + 1) for i in range(count)]
    members = [objective(setup, share) for share in shares]
    knobs = front.stack(members)

    def front_functions(turns=None):
        return front.compile_functions(setup, members[0], members=count, steps=10_000, turns=turns)

    def alone_functions():
        return loop.compile_functions(setup, members[0], 10_000)

    fronts = {f"front of {count} at once": front_functions(False)}
    fronts[f"front of {count} in turns"] = front_functions(True)
    alone = alone_functions()
    with jax.set_mesh(setup.mesh):
        placed = sharding.put_batch(batch, setup.mesh)
        state = {name: functions.start(params) for name, functions in fronts.items()}
        for i in range(count):
            state[i] = alone.start(copy(params))

        def step_front(name):
            state[name], metrics = fronts[name].step(state[name], placed, knobs, None)
            return metrics

        def step_alone(members_):
            found = []
            for i in range(members_):
                state[i], metrics = alone.step(state[i], placed, members[i].knobs, None)
                found.append(metrics)
            return found

        half = f"{count // 2} alone"
        cases = {
            **{name: functools.partial(step_front, name) for name in fronts},
            half: lambda: step_alone(count // 2),
            f"{count} alone": lambda: step_alone(count),
        }
        seconds = common.time_cases(cases, args.repeats)
        whole = {
            f"whole runs: front of {count}": run(
                front_functions, params, placed, knobs, args.steps
            ),
            f"whole runs: {half}": sum(
                run(alone_functions, params, placed, one.knobs, args.steps)
                for one in members[: count // 2]
            ),
        }
    others = (half, f"{count} alone")
    ratios = {f"{name} / {other}": (name, other) for name in fronts for other in others}
    facts = {f"{name}, s": value for name, value in whole.items()}
    facts["whole runs: front / " + half] = operator.truediv(*whole.values())
    sizes = dataclasses.asdict(size) | {"members": count, "response": args.response}
    common.report(args, sizes, seconds, ratios, facts)


def build(size: common.Size, response: int):
    """(setup, parameters, a batch of random pairs)."""
    vlm, params = common.model(dataclasses.replace(size, dtype="float32"))
    if size.dtype != "float32":
        vlm, _ = common.model(size)
    config = config_lib.Config(
        model=config_lib.Model(dtype=size.dtype, remat="none"),
        data=config_lib.Data(axes=AXES),
        mesh=config_lib.Mesh(data=1),
    )
    layout = types.Layout.of(config.data.branches)
    mesh = sharding.make(config.mesh, jax.devices()[:1])
    made = setup_lib.Setup(
        config=config,
        directory=pathlib.Path(),
        vlm=vlm,
        processor=None,
        layout=layout,
        mesh=mesh,
    )
    rng = np.random.default_rng(1)
    shape = (size.rows, len(layout.branches), response)
    batch = common.prompts(vlm, size, rows=size.rows)._replace(
        responses=rng.integers(2, size.vocab, shape).astype(np.int32),
        mask=np.ones(shape, np.float32),
        labels=types.Labels(
            rng.uniform(size=(*shape[:2], len(AXES))).astype(np.float32),
            np.ones(size.rows, np.float32),
            np.zeros(size.rows, np.float32),
            rng.integers(0, len(AXES), size.rows).astype(np.int32),
        ),
        ref_logps=-rng.uniform(1, 6, shape).astype(np.float32),
    )
    return made, jax.device_put(params, made.placement[0]), batch


def objective(setup: setup_lib.Setup, share: float):
    weights = dict(zip(AXES, (share, 1 - share)))
    config = dataclasses.replace(setup.config, objective={"modpo": {**MODPO, "weights": weights}})
    return setup_lib.objective(config)


def run(compile_functions, params, placed, knobs, steps: int) -> float:
    """Seconds of a run that compiles its own step."""
    started = time.perf_counter()
    functions = compile_functions()
    state = functions.start(copy(params))
    for _ in range(steps):
        state, metrics = functions.step(state, placed, knobs, None)
    jax.block_until_ready(metrics)
    return time.perf_counter() - started


def copy(params):
    """`start` of a run takes over what it is given."""
    return jax.tree.map(lambda leaf: leaf.copy(), params)


if __name__ == "__main__":
    main()
