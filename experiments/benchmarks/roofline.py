"""What a preference step must spend: FLOPs and bytes of a model, and the time that they imply.

python experiments/benchmarks/roofline.py            prints the tables of docs/performance.md

Required FLOPs are those of `vlm.flops`: each prefix and picture counted once, nothing computed
again; a backward pass is two forward passes. Bytes are those of the memory that a step cannot avoid
touching: parameters in forward and backward pass, gradients, and the optimizer's read and write of
parameters and two moments. Activations are left out: they depend on what is recomputed.
"""

from __future__ import annotations

import dataclasses

import common
import jax
import rich.console
import rich.table

from rubric_jax import types
from rubric_jax.models import weights

LAYOUT = types.Layout.of(("chosen", "rejected"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    flops: float  # dense bfloat16, FLOP/s of all devices
    bandwidth: float  # bytes/s of all devices
    memory: float  # bytes of all devices
    link: float  # bytes/s that one device sends to the others
    devices: int


# NVIDIA's data sheet of the H200; cloud.google.com/tpu/docs/v5p. A v5p-64 is 32 chips (64 cores),
# and one chip is one jax device.
MACHINES = {
    "H200": Machine(flops=989e12, bandwidth=4.8e12, memory=141e9, link=0.0, devices=1),
    "v5p-64": Machine(
        flops=32 * 459e12, bandwidth=32 * 2.765e12, memory=32 * 95e9, link=600e9, devices=32
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    size: common.Size
    text: str


MODELS = {
    "3b": Model(
        text="LLaVA with a decoder of 2,560 x 32",
        size=common.Size(
            width=2560, depth=32, heads=20, mlp=8704, vocab=32064, image=336, vision_width=1024,
            vision_depth=24, dtype="bfloat16", rows=8, prompt=1000,
        ),
    ),
    "7b": Model(
        text="LLaVA 1.5 7B",
        size=dataclasses.replace(common.SIZES["gpu"], rows=8, prompt=1000),
    ),
}  # fmt: skip
RESPONSE = 256  # tokens


def main() -> None:
    table = rich.table.Table(title=f"1,000 prefix tokens, two responses of {RESPONSE}, one picture")
    headings = (
        "model", "machine", "pairs", "TFLOP / pair", "state GB", "compute s", "memory s",
        "pairs / s at 100 %", "at 50 %",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, model in MODELS.items():
        for machine_name, machine in MACHINES.items():
            rows = 8 * machine.devices
            found = step(model.size, rows)
            compute = found["flops"] / machine.flops
            table.add_row(
                name,
                machine_name,
                str(rows),
                f"{found['flops'] / rows / 1e12:.1f}",
                f"{found['state'] / 1e9:.0f} of {machine.memory / 1e9:.0f}",
                f"{compute:.3f}",
                f"{found['bytes'] / machine.bandwidth:.3f}",
                f"{rows / compute:.1f}",
                f"{rows / compute / 2:.1f}",
            )
    rich.console.Console(width=120).print(table)
    for name, model in MODELS.items():
        apart = separate(model.size)
        print(f"{name} ({model.text}): {count(model.size):,} parameters; a pair apart, with the")
        print(f"  reference in the step, takes {apart:.2f} times the required FLOPs")


def count(size: common.Size) -> int:
    return weights.count(jax.eval_shape(common.vlm(size).init, jax.random.key(0)))


def step(size: common.Size, rows: int, *, state_bytes: int = 4) -> dict[str, float]:
    """FLOPs and bytes of a step on `rows` pairs, the reference's log-probabilities given.

    state_bytes: of a parameter and of each moment; gradients alike. Computation is in bfloat16.
    """
    parameters = count(size)
    forward = common.vlm(size).flops(LAYOUT, size.prompt, RESPONSE, 1.0)
    # The cast to bfloat16 reads the parameters and writes them; both passes read the copy.
    casts = parameters * (state_bytes + 2 + 2 * 2)
    # The gradient is written and read; parameter and two moments are read and written.
    update = parameters * state_bytes * (2 + 3 * 2)
    return {
        "flops": 3.0 * rows * forward,
        "bytes": float(casts + update),
        "state": float(4 * state_bytes * parameters),  # parameters, gradients, moments
    }


def separate(size: common.Size) -> float:
    """FLOPs of two sequences of their own and a second model, over the required ones."""
    flops = common.vlm(size).flops
    alone = types.Layout.of(("chosen",))
    return (
        4
        * 2
        * flops(alone, size.prompt, RESPONSE, 1.0)
        / (3 * flops(LAYOUT, size.prompt, RESPONSE, 1.0))
    )


if __name__ == "__main__":
    main()
