"""What a run will need of a device's memory, estimated before anything is placed there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from rubric_jax import paths, sharding, types
from rubric_jax.data import loading
from rubric_jax.models import adapters, weights
from rubric_jax.train import optimizer
from rubric_jax.train import setup as setup_lib
from rubric_jax.train import step as step_lib


class Estimate(NamedTuple):
    """Bytes on the device that has most."""

    parameters: int
    optimizer: int
    gradients: int
    reference: int
    activations: int

    @property
    def total(self) -> int:
        return sum(self)


def lines(setup: setup_lib.Setup, plan: loading.Plan) -> list[str]:
    """Parameters, state and an estimate of the step's memory per device, as lines for the audit."""
    trainable = optimizer.trainable(setup.config.optimizer, setup.shapes)
    kept = paths.split(setup.shapes, trainable)[0]
    found = estimate(setup, plan)
    parts = " + ".join(f"{name} {_size(size)}" for name, size in found._asdict().items())
    mesh = " x ".join(f"{axis} {size}" for axis, size in setup.mesh.shape.items())
    return [
        f"parameters: {weights.count(setup.shapes):,}, of which {weights.count(kept):,} train",
        f"memory per device (estimate, mesh {mesh}): {_size(found.total)} = {parts}",
        *(f"not cut as the rules ask: {message}" for message in setup.placement[1]),
    ]


def estimate(setup: setup_lib.Setup, plan: loading.Plan) -> Estimate:
    """What a step will need, at the shape of the plan that needs most."""
    config = setup.config
    trainable = optimizer.trainable(config.optimizer, setup.shapes)
    kept = paths.split(setup.shapes, trainable)[0]
    tx, _ = optimizer.build(config.optimizer, kept, 1)
    state = {"params": setup.shapes, "moments": jax.eval_shape(tx.init, kept)}
    places, _ = sharding.place(setup.mesh, setup.vlm.rules, state)
    reference = 0
    if config.train.reference == "step":
        shapes = setup_lib.reference_setup(setup).shapes
        held = setup_lib.reference_placement(setup)
        if setup_lib.is_own_reference(setup):  # the base serves both
            shapes = adapters.extract(shapes)
        if setup.adapter and config.train.refresh:
            shapes, held = adapters.extract(setup.shapes), adapters.extract(setup.placement[0])
        reference = _per_device(shapes, held)
    return Estimate(
        parameters=_per_device(state["params"], places["params"]),
        optimizer=_per_device(state["moments"], places["moments"]),
        gradients=_per_device(kept, paths.split(places["params"], trainable)[0]),
        reference=reference,
        # The longest rows need not have the most pictures, nor the largest.
        activations=max(_activations(setup, plan, shape) for shape in plan.shapes),
    )


def _activations(setup: setup_lib.Setup, plan: loading.Plan, shape: loading.Shape) -> int:
    """Bytes of a microbatch on one device, at the height of the backward pass.

    What the forward pass keeps for it, and what is computed again and kept meanwhile: a chunk's
    logits with their gradient, or whatever else is more. Along the mesh axis `tensor` only those
    logits count as cut: an upper bound, for heads and hidden units are cut there, states are not.
    """
    rows = math.ceil(plan.batch_size / plan.groups)
    batch, chunk = _batch(setup, rows, shape), setup.config.model.logps_chunk
    logits = 2 * 4 * rows * chunk * setup.vlm.vocab / setup.mesh.shape["tensor"]
    inputs = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    task = step_lib.Task(setup.vlm, setup.layout, None, chunk)
    trainable = optimizer.trainable(setup.config.optimizer, setup.shapes)
    kept, frozen = paths.split(setup.shapes, trainable)

    def total(kept, frozen, batch):
        return jnp.sum(step_lib.branch_logps(task, paths.merge(kept, frozen), batch))

    with jax.set_mesh(setup.mesh):  # which attention depends on
        stored = _residuals(total, kept, frozen, batch)
        again = _computed_again(jax.make_jaxpr(total)(kept, frozen, batch).jaxpr)
    return int(stored + max(again, logits) + inputs)


def _residuals(function: Callable, *given) -> int:
    """Bytes that a function keeps for its backward pass by its first argument; by tracing.

    What it was given, parameters above all, does not count.
    """

    def pull_back(first, *others):
        return jax.tree.leaves(jax.vjp(lambda first: function(first, *others), first)[1])

    traced = jax.make_jaxpr(pull_back)(*given).jaxpr
    old = {id(variable) for variable in traced.invars}
    new = {id(v): v.aval for v in traced.outvars if id(v) not in old}
    return sum(aval.size * aval.dtype.itemsize for aval in new.values())


def _computed_again(jaxpr: core.Jaxpr) -> int:
    """What the largest part that the backward pass computes again keeps meanwhile, in bytes.

    That is a layer under `remat`, and everywhere the scores of attention or a chunk of logits.
    """
    most = 0
    for eqn in jaxpr.eqns:
        for part in core.jaxprs_in_params(eqn.params):
            size = _computed_again(part)
            if eqn.primitive.name == "remat2":
                function = core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))
                size += _residuals(
                    lambda given, f=function: f(*given), [v.aval for v in part.invars]
                )
            most = max(most, size)
    return most


def _batch(setup: setup_lib.Setup, rows: int, shape: loading.Shape) -> types.Batch:
    """A microbatch of padding, one image group."""
    m, n = len(setup.layout.contexts), len(setup.layout.branches)
    prompts = np.zeros((rows, m, shape.prompt), np.int32)
    mask = np.zeros((rows, n, shape.response), np.float32)
    zeros = np.zeros(rows, np.float32)
    rewards = np.zeros((rows, n, len(setup.config.data.axes)), np.float32)
    return types.Batch(
        prompts=prompts,
        prompt_lengths=np.zeros((rows, m), np.int32),
        media=setup.vlm.media(prompts, [[]], [[[]] * m] * rows, shape.images, shape.cells),
        responses=mask.astype(np.int32),
        mask=mask,
        labels=types.Labels(rewards, zeros, zeros, zeros.astype(np.int32)),
    )


def _per_device(shapes, places) -> int:
    def size(leaf, place) -> int:
        return math.prod(place.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, shapes, places)))


def _size(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    power = min(int(math.log2(max(count, 1)) // 10), 3)
    scaled, unit = count / 1024**power, ("B", "KiB", "MiB", "GiB")[power]
    return f"{scaled:.{0 if power == 0 or scaled >= 100 else 1}f} {unit}"
