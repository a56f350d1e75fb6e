"""The audit's estimate for every family: of what is held exactly, of the step against XLA."""

import functools
import pathlib
import tempfile
import types as types_lib

import jax
import numpy as np
import pytest

from rubric_jax import config as config_lib
from rubric_jax import models, sharding, types
from rubric_jax.data import loading
from rubric_jax.models import adapter_files, adapters
from rubric_jax.train import loop, memory
from rubric_jax.train import setup as setup_lib
from tests.parity import checkpoints, tiled

ROWS = 8
ADAPTERS = {"whole": {}, "adapter": {"rank": 4}}


@functools.cache
def directory(family):
    holder = tempfile.TemporaryDirectory(prefix="rubric_jax-tests-")
    _HOLDERS.append(holder)
    made = getattr(tiled if family in tiled.TILES else checkpoints, family)
    made(holder.name)
    return pathlib.Path(holder.name)


_HOLDERS = []


def setup_of(family, adapter, mesh):
    """A setup without a processor, which no estimate reads."""
    config = config_lib.Config(
        model=config_lib.Model(
            family=family,
            checkpoint=str(directory(family)),
            adapter=ADAPTERS[adapter],
            logps_chunk=16,
        ),
        objective={"dpo": {"win": "chosen", "lose": "rejected", "beta": 0.1}},
        train=config_lib.Train(batch_size=ROWS),
        mesh=config_lib.Mesh(**dict(zip(sharding.AXES, mesh, strict=True))),
    )
    vlm = models.build(family, directory(family), remat=config.model.remat)
    made = adapter_files.open_adapter(config.model.adapter, vlm)
    return setup_lib.Setup(
        config=config,
        directory=directory(family),
        vlm=adapters.adapt(vlm, made) if made else vlm,
        adapter=made,
        bare=vlm if made else None,
        processor=None,
        layout=types.Layout.of(config.data.branches),
        mesh=sharding.make(config.mesh, jax.devices()[: int(np.prod(mesh))]),
    )


def compiled(setup):
    objective = setup_lib.objective(setup.config)
    return objective, loop.compile_functions(setup, objective, steps=8)


def plan_of(setup):
    # Entries of 16 cells where a family has cells, so that its tower counts.
    cells = 16 if hasattr(setup.vlm.config.vision, "grid") else 1
    shape = loading.Shape(prompt=48, response=16, images=2, cells=cells)
    groups = sharding.data_shards(setup.mesh)
    return types_lib.SimpleNamespace(batch_size=ROWS, groups=groups, shapes=[shape])


def bytes_on_a_device(tree):
    return sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", models.MODELS)
def test_what_is_held_is_counted_as_it_is_placed(family, adapter):
    setup = setup_of(family, adapter, (2, 2, 2))
    state, found = compiled(setup)[1].state, memory.estimate(setup, plan_of(setup))
    assert found.parameters == bytes_on_a_device(state.params)
    assert found.optimizer == bytes_on_a_device(state.opt_state)
    assert (found.gradients < found.parameters) == (adapter == "adapter")
    assert found.optimizer == pytest.approx(2 * found.gradients, abs=64)  # AdamW, and its count


def test_the_shape_that_needs_most_counts():
    setup = setup_of("llava", "whole", (1, 1, 1))
    pictures, text = (loading.Shape(48, 16, 64), loading.Shape(64, 16, 0))

    def activations(*shapes):
        plan = types_lib.SimpleNamespace(batch_size=ROWS, groups=1, shapes=shapes)
        return memory.estimate(setup, plan).activations

    assert activations(pictures, text) == activations(pictures) > activations(text)


def _cases():
    """Every family with and without an adapter; a sweep but for one of each kind of tower."""
    shown = {("llava", "whole"), ("llava", "adapter"), ("gemma3", "whole"), ("qwen2_5_vl", "whole")}
    for family in models.MODELS:
        for adapter in ADAPTERS:
            marks = () if (family, adapter) in shown else pytest.mark.sweep
            yield pytest.param(family, adapter, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "adapter"), _cases())
def test_the_estimate_is_near_what_xla_allocates(family, adapter):
    """Within a third. What XLA fuses, and which buffers it uses twice, tracing does not see."""
    setup = setup_of(family, adapter, (1, 1, 1))
    plan, (objective, functions) = plan_of(setup), compiled(setup)
    batch = memory._batch(setup, ROWS, plan.shapes[-1])
    batch = batch._replace(ref_logps=np.zeros(batch.mask.shape, np.float32))
    with jax.set_mesh(setup.mesh):
        lowered = functions.step.lower(functions.state, batch, objective.knobs, None)
        found = lowered.compile().memory_analysis()
    used = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert 0.67 < memory.estimate(setup, plan).total / used < 1.5, (memory.lines(setup, plan), used)
