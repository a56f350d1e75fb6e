import functools
import re

import jax
import numpy as np
import pytest

from rubric_jax import sharding, types
from rubric_jax.train import loop, memory
from rubric_jax.train import setup as setup_lib
from tests.train import runs

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def estimate(text, name=""):
    """The bytes that the lines give for a part of the memory, or for all of it."""
    pattern = rf"{name} ([\d.]+) ([KMG]?i?B)" if name else r"\): ([\d.]+) ([KMG]?i?B) ="
    number, unit = re.search(pattern, text).groups()
    return float(number) * UNITS[unit]


def test_sizes_have_units():
    assert memory._size(0) == "0 B"
    assert memory._size(1023) == "1023 B"
    assert memory._size(1536) == "1.5 KiB"
    assert memory._size(200 * 2**20) == "200 MiB"
    assert memory._size(5000 * 2**30) == "5000 GiB"


@functools.cache
def on(mesh, reference="cache", remat="none", attention="auto"):
    """(setup, plan, the lines) of the tiny run on a mesh."""
    config = runs.config(
        model={"remat": remat, "attention": attention},
        mesh=dict(zip(sharding.AXES, mesh, strict=True)),
        optimizer={"trainable": ((r"vision/.*", False), (r".*", True))},
        train={"reference": reference},
    )
    setup = setup_lib.build(config)
    source = setup_lib.source(setup, config.data.path, "", str(runs.root() / "cache"))
    plan = setup_lib.plan(setup, source, shuffle=True)
    return setup, plan, "\n".join(memory.lines(setup, plan))


def bytes_on_a_device(tree):
    return sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_parameters_and_moments_are_counted_as_they_are_placed(mesh):
    setup, _, text = on(mesh)
    functions = loop.compile_functions(setup, setup_lib.objective(setup.config), steps=8)
    state = functions.state
    held = bytes_on_a_device(state.params), bytes_on_a_device(state.opt_state)
    np.testing.assert_allclose(estimate(text, "parameters"), held[0], rtol=0.02)
    np.testing.assert_allclose(estimate(text, "optimizer"), held[1], rtol=0.02)
    assert estimate(text, "reference") == 0


def test_with_a_kernel_no_scores_are_counted():
    # One row a device, which the mesh's data axis does not divide.
    plain, kernel = (on((8, 1, 1), "cache", "full", route)[2] for route in ("plain", "splash"))
    assert 0 < estimate(kernel, "activations") < estimate(plain, "activations")


def test_a_reference_in_the_step_counts_as_parameters():
    text = on((8, 1, 1), reference="step")[2]
    assert estimate(text, "reference") == estimate(text, "parameters")


def test_the_counts_tell_what_trains():
    setup, _, text = on((8, 1, 1))
    leaves = jax.tree_util.tree_leaves_with_path(setup.shapes)
    total = sum(leaf.size for _, leaf in leaves)
    frozen = sum(leaf.size for path, leaf in leaves if "vision" in jax.tree_util.keystr(path))
    assert f"parameters: {total:,}, of which {total - frozen:,} train" in text


@pytest.mark.parametrize(
    "remat",
    [
        pytest.param("none", marks=pytest.mark.slow),
        pytest.param("dots", marks=pytest.mark.slow),
        "full",
    ],
)
def test_the_estimate_is_within_a_factor_of_what_xla_allocates(remat):
    setup, plan, text = on((8, 1, 1), remat=remat)
    config = setup.config
    objective = setup_lib.objective(config)
    functions = loop.compile_functions(setup, objective, steps=8)
    batch = abstract_batch(setup, plan)
    with jax.set_mesh(setup.mesh):
        lowered = functions.step.lower(functions.state, batch, objective.knobs, None)
        found = lowered.compile().memory_analysis()
    used = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert 0.6 < estimate(text) / used < 1.6, (text, used)


def abstract_batch(setup, plan):
    """Shapes and shardings of a batch of the plan's largest shape."""
    shape, rows, axes = plan.shapes[-1], plan.batch_size, len(setup.config.data.axes)
    m, n = len(setup.layout.contexts), len(setup.layout.branches)
    place = sharding.batch_sharding(setup.mesh)

    def array(*shape, dtype=np.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    side = setup.vlm.media.args[0].arrange.args[0]
    return types.Batch(
        prompts=array(rows, m, shape.prompt, dtype=np.int32),
        prompt_lengths=array(rows, m, dtype=np.int32),
        media={
            "pixels": array(plan.groups, shape.images, side, side, 3),
            "index": array(rows, m, shape.prompt, dtype=np.int32),
        },
        responses=array(rows, n, shape.response, dtype=np.int32),
        mask=array(rows, n, shape.response),
        labels=types.Labels(
            array(rows, n, axes), array(rows), array(rows), array(rows, dtype=np.int32)
        ),
        ref_logps=array(rows, n, shape.response),
    )
