"""What a run will need of a device's memory, estimated before anything is placed there."""

from __future__ import annotations

import math

import jax
import numpy as np

from rubric_jax import paths, sharding
from rubric_jax.data import loading
from rubric_jax.models import rows as rows_lib
from rubric_jax.models import weights
from rubric_jax.train import optimizer
from rubric_jax.train import setup as setup_lib


def lines(setup: setup_lib.Setup, plan: loading.Plan) -> list[str]:
    """Parameters, state and an estimate of the step's memory per device, as lines for the audit."""
    config = setup.config
    trainable = optimizer.trainable(config.optimizer, setup.shapes)
    kept = paths.split(setup.shapes, trainable)[0]
    tx, _ = optimizer.build(config.optimizer, setup.shapes, 1)
    moments = jax.eval_shape(tx.init, kept)
    state = {"params": setup.shapes, "moments": moments}
    places, _ = sharding.place(setup.mesh, setup.vlm.rules, state)
    params, held = (_per_device(state[k], places[k]) for k in ("params", "moments"))
    grads = _per_device(kept, paths.split(places["params"], trainable)[0])
    reference = params if config.train.reference == "step" else 0
    worst = max(_activations(setup, plan, shape) for shape in plan.shapes)
    total = params + held + grads + reference + worst
    mesh = " x ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    return [
        f"parameters: {weights.count(setup.shapes):,}, of which {weights.count(kept):,} train",
        f"memory per device (estimate, mesh {mesh}): {_size(total)} = parameters {_size(params)} "
        f"+ optimizer {_size(held)} + gradients {_size(grads)} + reference {_size(reference)} "
        f"+ activations {_size(worst)}",
        *(f"not cut as the rules ask: {message}" for message in setup.placement[1]),
    ]


def _activations(setup: setup_lib.Setup, plan: loading.Plan, shape: loading.Shape) -> int:
    """Bytes that the backward pass keeps for the largest microbatch, plus one layer's own."""
    vlm, model = setup.vlm, setup.config.model
    per_device = math.ceil(plan.batch_size / plan.groups)
    slots = rows_lib.slots(setup.layout).size  # over all contexts
    tokens = per_device * (len(setup.layout.contexts) * shape.prompt + slots * shape.response)
    width = 2 if model.dtype == "bfloat16" else 4
    # Layer inputs only ("full"), with the matmul results ("dots": about 8 widths), or everything.
    kept = {"full": 1, "dots": 8, "none": 16}[model.remat]
    layers = tokens * vlm.width * width * (vlm.depth * kept + 16)
    logits = 2 * 4 * per_device * model.logps_chunk * vlm.vocab
    return layers + logits


def _per_device(shapes, places) -> int:
    def size(leaf, place) -> int:
        return math.prod(place.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, shapes, places)))


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
