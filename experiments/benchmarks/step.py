"""What a training step costs: pairs and tokens per second, utilisation, memory, compilation.

python experiments/benchmarks/step.py --out experiments/benchmarks/results/step.jsonl
python experiments/benchmarks/step.py --family gemma3 --prompt 600 --branches 8 --remat full
python experiments/benchmarks/step.py --mesh data=1,fsdp=2        on virtual devices of a CPU

Without settings of its own it runs SETTINGS, which take turns. The batch is made once and lies on
the device; its reference log-probabilities come with it. Two branches train DPO, any other number
the likelihood of each.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import time
from typing import Any, NamedTuple

import common
import jax
import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import metrics, sharding, types
from rubric_jax.train import loop
from rubric_jax.train import setup as setup_lib

# What one run compares; fields of `Setting`.
SETTINGS = ({"prompt": 190, "remat": "none"}, {"prompt": 190, "remat": "full"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    prompt: int = 190  # tokens
    response: int = 64
    branches: int = 2
    family: str = "llava"
    remat: str = "none"
    chunk: int = 128  # config.model.logps_chunk
    attention: str = "auto"

    @property
    def name(self) -> str:
        found = f"prompt {self.prompt}, {self.branches} branches"
        default = Setting()
        for field in ("response", "family", "remat", "chunk", "attention"):
            if getattr(self, field) != getattr(default, field):
                found += f", {field} {getattr(self, field)}"
        return found


class Case(NamedTuple):
    """A step that is ready to be taken."""

    step: Any  # () -> metrics
    facts: dict[str, Any]  # of its compilation
    tokens: float
    pairs: int
    flops: float  # required, of forward and backward pass


def main() -> None:
    parser = common.parser(__doc__.splitlines()[0])
    for field in dataclasses.fields(Setting):
        kind = {"str": str, "int": int}[field.type]
        parser.add_argument(f"--{field.name}", type=kind, default=None)
    parser.add_argument("--rows", type=int, default=0, help="instances per step")
    parser.add_argument("--mesh", default="", help="data=2,fsdp=2,tensor=2")
    args = parser.parse_args()
    mesh = read_mesh(args.mesh)
    own = {f.name: getattr(args, f.name) for f in dataclasses.fields(Setting)}
    own = {name: value for name, value in own.items() if value is not None}
    settings = [Setting(**own)] if own or args.mesh else [Setting(**one) for one in SETTINGS]
    size = common.SIZES[args.scale]
    size = dataclasses.replace(size, rows=args.rows or size.rows)
    made = {setting.name: build(size, setting, mesh) for setting in settings}
    seconds = common.time_cases({name: case.step for name, case in made.items()}, args.repeats)
    more = {name: figures(case, seconds[name]) for name, case in made.items()}
    sizes = dataclasses.asdict(size) | {"mesh": dataclasses.asdict(mesh)}
    del sizes["prompt"], sizes["family"]
    common.report(args, sizes, seconds, {}, more=more)
    for name, found in more.items():
        shown = {key: f"{value:.4g}" for key, value in found.items() if isinstance(value, float)}
        print(name, *(f"{key}={value}" for key, value in shown.items()))


def figures(case: Case, seconds: list[float]) -> dict[str, Any]:
    _, middle, _ = common.quartiles(seconds)
    peaks = [metrics.peak_flops(device) for device in jax.devices()]
    found = {
        "pairs_per_s": case.pairs / middle,
        "tokens_per_s": case.tokens / middle,
        "flops_per_s": case.flops / middle,
    }
    if None not in peaks:
        found["mfu"] = case.flops / middle / sum(peaks)
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        found["peak_device_bytes"] = float(stats["peak_bytes_in_use"])
    return found | case.facts


def read_mesh(text: str) -> config_lib.Mesh:
    """'data=2,fsdp=2' -> the mesh; on a CPU with so many virtual devices."""
    sizes = {"data": 1, **{k: int(v) for k, v in (x.split("=") for x in text.split(",") if x)}}
    mesh = config_lib.Mesh(**sizes)
    if count(mesh) > 1:  # read when the first device is asked for
        flag = f" --xla_force_host_platform_device_count={count(mesh)}"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
    return mesh


def count(mesh: config_lib.Mesh) -> int:
    return math.prod((mesh.data, mesh.fsdp, mesh.tensor))


def objective_of(branches: int) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(branches, config.objective)."""
    if branches == 2:
        pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
        return ("chosen", "rejected"), {"dpo": pair}
    names = tuple(f"response_{i}" for i in range(branches))
    return names, {f"nll_{name}": {"term": "nll", "on": name} for name in names}


def set_up(size: common.Size, setting: Setting, mesh: config_lib.Mesh, devices=None):
    """(setup, objective) of a run on random data, which no checkpoint stands behind."""
    names, objective = objective_of(setting.branches)
    config = config_lib.Config(
        model=config_lib.Model(
            family=size.family,
            dtype=size.dtype,
            remat=setting.remat,
            attention=setting.attention,
            logps_chunk=setting.chunk,
        ),
        data=config_lib.Data(branches=names),
        objective=objective,
        train=config_lib.Train(batch_size=size.rows),
        mesh=mesh,
    )
    setup = setup_lib.Setup(
        config=config,
        directory=pathlib.Path(),
        vlm=common.vlm(size, remat=setting.remat, attention=setting.attention),
        processor=None,
        layout=types.Layout.of(names),
        mesh=sharding.make(mesh, (devices or jax.devices())[: count(mesh)]),
    )
    return setup, setup_lib.objective(config)


def build(size: common.Size, setting: Setting, mesh: config_lib.Mesh) -> Case:
    size = dataclasses.replace(size, family=setting.family, prompt=setting.prompt)
    setup, objective = set_up(size, setting, mesh)
    functions = loop.compile_functions(setup, objective, 10_000)
    batch = random_batch(setup, size, setting)
    params = jax.jit(setup.vlm.init, out_shardings=setup.placement[0])(jax.random.key(0))
    with jax.set_mesh(setup.mesh):
        placed = sharding.put_batch(batch, setup.mesh)
        state = functions.start(params)
        started = time.perf_counter()
        compiled = functions.step.lower(state, placed, objective.knobs, None).compile()
        facts = {"compile_s": time.perf_counter() - started, **memory(compiled)}

    def step():
        nonlocal state
        with jax.set_mesh(setup.mesh):
            state, found = compiled(state, placed, objective.knobs, None)
        return state, found  # both, so that the optimizer is waited for

    flops = setup.vlm.flops(setup.layout, setting.prompt, setting.response, 1.0)
    return Case(
        step=step,
        facts=facts | dataclasses.asdict(setting),
        tokens=float(size.rows * (setting.prompt + setting.branches * setting.response)),
        pairs=size.rows,
        flops=3 * size.rows * flops,
    )


def memory(compiled) -> dict[str, float]:
    """What XLA says that a step holds on one device: state, batch, and what is computed between."""
    found = compiled.memory_analysis()
    if found is None:
        return {}
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return {
        "step_bytes": float(held + found.temp_size_in_bytes),
        "temporary_bytes": float(found.temp_size_in_bytes),
    }


def random_batch(setup: setup_lib.Setup, size: common.Size, setting: Setting) -> types.Batch:
    rng = np.random.default_rng(1)
    rows, groups = size.rows, sharding.data_shards(setup.mesh)
    shape = (rows, setting.branches, setting.response)
    zeros = np.zeros(rows, np.float32)
    return common.prompts(setup.vlm, size, rows=rows, groups=groups)._replace(
        responses=rng.integers(2, size.vocab, shape).astype(np.int32),
        mask=np.ones(shape, np.float32),
        labels=types.Labels(
            np.zeros((*shape[:2], 0), np.float32), zeros + 1, zeros, zeros.astype(np.int32)
        ),
        ref_logps=-rng.uniform(1, 6, shape).astype(np.float32),
    )


if __name__ == "__main__":
    main()
