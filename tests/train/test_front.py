import dataclasses
import functools
import json
import logging

import jax
import numpy as np
import pytest

from rubric_jax import config as config_lib
from rubric_jax import objectives, paths
from rubric_jax.models import weights
from rubric_jax.train import front, loop
from rubric_jax.train import setup as setup_lib
from tests.train import runs, steps

FROZEN_TOWER = ((r"vision/.*", False), (r".*", True))
TERMS = {
    "modpo": {"weight": 0.8, **steps.PAIR, "weights": {"a": 0.6, "b": 0.4}},
    "bco": {"weight": 0.2, **steps.PAIR},
}


def member(i: int) -> dict:
    """Objective i: other weights over axes, another beta, another share of the terms."""
    modpo = {**TERMS["modpo"], "weight": 1.0 - 0.1 * i, "beta": 0.1 + 0.05 * i}
    return {
        "modpo": {**modpo, "weights": {"a": 0.2 + 0.2 * i, "b": 1.0}},
        "bco": {**TERMS["bco"], "weight": 0.1 * i},
    }


def build(spec, case):
    return objectives.build(spec, case.setup.layout, ("a", "b"))


# A compilation is what these tests cost: one front of eight serves several.
@functools.cache
def case(mesh=(1, 1, 1)):
    return steps.case(TERMS, mesh=mesh, trainable=FROZEN_TOWER)


@functools.cache
def compiled(one, members, turns=None):
    return front.compile_functions(one.setup, one.objective, members=members, steps=10, turns=turns)


def test_a_front_with_cudnn_takes_turns():
    one = steps.case(TERMS, attention="cudnn")
    with pytest.raises(ValueError, match="'cudnn' must take turns"):
        front.compile_functions(one.setup, one.objective, members=2, steps=10, turns=False)


def trained(one, objectives_, batches, *, params=None, ref_params=None, turns=None):
    """(parameters [W, ...], [metrics [W] of each step], functions) of a front."""
    functions, seen = compiled(one, len(objectives_), turns), []
    with jax.set_mesh(one.setup.mesh):
        params = front.train(
            one.setup,
            functions,
            front.stack(objectives_),
            one.params() if params is None else params,
            ((batch, None) for batch in batches),
            ref_params,
            report=lambda step, values: seen.append((step, values)),
        )
    assert [step for step, _ in seen] == list(range(1, len(batches) + 1))
    return jax.device_get(params), [values for _, values in seen], functions


@pytest.mark.parametrize(
    ("mesh", "turns"),
    [
        ((1, 1, 1), None),  # in turns: this is a CPU
        pytest.param((1, 1, 1), False, marks=pytest.mark.sweep),
        pytest.param((2, 2, 2), None, marks=pytest.mark.sweep),
        pytest.param((2, 2, 2), False, marks=pytest.mark.slow),
    ],
)
def test_a_front_of_eight_equals_eight_runs(mesh, turns):
    one = case(mesh)
    members = [build(member(i), one) for i in range(8)]
    batches = [steps.batch(one, rows=8, seed=seed) for seed in range(3)]
    params, metrics, functions = trained(one, members, batches, turns=turns)
    alone_losses = []
    for i, objective in enumerate(members):
        state = one.start()
        for batch in batches:
            state, alone = one.step(state, batch, knobs=objective.knobs)
        own = front.member(params, functions.axes.params, i)
        steps.assert_close(own, jax.device_get(state.params))
        alone = jax.device_get(alone)
        assert alone.keys() == metrics[-1].keys()
        steps.assert_close({name: metrics[-1][name][i] for name in alone}, alone)
        alone_losses.append(float(alone["loss"]))
    assert len(set(np.round(alone_losses, 4))) == 8  # they differ


def test_what_is_frozen_is_there_once():
    one = case()
    members = [build(member(i), one) for i in range(8)]
    before = paths.flatten(jax.device_get(one.params()))
    params, _, _ = trained(one, members, [steps.batch(one, rows=8)])
    for name, leaf in paths.flatten(params).items():
        if name.startswith("vision/"):
            assert leaf.tobytes() == before[name].tobytes(), name
        else:
            assert leaf.shape == (8, *before[name].shape), name


def test_a_front_compiles_once_for_sixteen_weightings(caplog):
    # Of a front of two, so that sixteen weightings are eight calls of one compiled step.
    one = case()
    spec = {"dpo": {**steps.PAIR, "with": {"axis_weight": {"weights": [0.5, 0.5]}}}}
    members = []
    for i in range(16):
        knobs = {**steps.PAIR, "beta": 0.05 * (i + 1), "label_smoothing": 0.02 * i}
        around = {"axis_weight": {"weights": [i / 16, 1 - i / 16]}}
        members.append(build({"dpo": {**knobs, "with": around}}, one))
    functions = front.compile_functions(one.setup, build(spec, one), members=2, steps=10)
    batch, losses = steps.batch(one, rows=8), []
    with jax.set_mesh(one.setup.mesh), jax.log_compiles(), caplog.at_level(logging.WARNING):
        for i in range(0, 16, 2):
            state = functions.start(one.params())
            knobs = front.stack(members[i : i + 2])
            placed = steps.sharding.put_batch(batch, one.setup.mesh)
            _, values = functions.step(state, placed, knobs, None)
            losses += np.asarray(values["loss"]).tolist()
    found = [r.message for r in caplog.records if r.message.startswith("Compiling jit(step)")]
    assert len(found) == 1
    assert functions.step._cache_size() == 1
    assert len(set(losses)) == 16


def test_a_reference_in_the_step_is_shared():
    one = steps.case(steps.DPO, reference="step", trainable=FROZEN_TOWER)
    members = [build({"dpo": {**steps.PAIR, "beta": beta}}, one) for beta in (0.1, 0.4)]
    batches = [steps.batch(one, rows=8, ref=False)] * 2
    ref_params = one.params()  # the policies start from the very arrays, and must not take them
    params, metrics, functions = trained(
        one, members, batches, params=ref_params, ref_params=ref_params
    )
    state = one.start()
    for batch in batches:
        state, alone = one.step(state, batch, knobs=members[1].knobs, ref_params=ref_params)
    steps.assert_close(metrics[-1]["loss"][1], np.asarray(alone["loss"]))
    own = front.member(params, functions.axes.params, 1)
    steps.assert_close(own, jax.device_get(state.params))


def test_objectives_that_differ_in_more_than_numbers_are_refused():
    one = case()
    with pytest.raises(ValueError, match=r"Objective 1 .* more than numbers.*hinge"):
        front.stack([build(steps.DPO, one), build({"hinge": steps.PAIR}, one)])
    with pytest.raises(ValueError, match="at least one"):
        front.stack([])


def test_a_policy_that_is_not_finite_is_named():
    one = case()
    members = [build(TERMS, one) for _ in range(3)]
    members[2].knobs["modpo"]["beta"] = np.float32(np.inf)
    with pytest.raises(FloatingPointError, match=r"Step 1: .* policies \[2\]"):
        trained(one, members, [steps.batch(one, rows=8)])


def test_a_folder_name_is_checked_before_anything_is_built(tmp_path):
    with pytest.raises(ValueError, match=r"'a/b' names a folder"):
        front.run(config_lib.Config(), {"a/b": {}}, str(tmp_path))


@pytest.mark.slow
def test_a_run_writes_every_policy_as_its_own_run_would(tmp_path):
    config = runs.config(train={"steps": 3, "log_every": 1}, mesh={"data": -1})
    config = dataclasses.replace(config, optimizer=steps.OPTIMIZER)  # see there
    weightings = {
        f"w{i}": {"modpo": {**runs.PAIR, "weights": {**runs.WEIGHTS, "grounding": 0.1 + i}}}
        for i in range(2)
    }
    folders = front.run(config, weightings, str(tmp_path / "front"))
    for name, spec in weightings.items():
        alone = dataclasses.replace(config, objective=spec)
        loop.train(alone, str(tmp_path / name))
        expected = runs.parameters(tmp_path / name)
        setup = setup_lib.build(alone)
        steps.assert_close(
            paths.flatten(jax.device_get(setup_lib.load(setup, folders[name]))), expected
        )
        curve = [json.loads(x) for x in (tmp_path / "front" / name / "metrics.jsonl").open()]
        losses = [row["loss"] for row in runs.metrics(tmp_path / name)]
        np.testing.assert_allclose([row["loss"] for row in curve], losses, rtol=1e-4)
        assert curve[-1].keys() <= runs.metrics(tmp_path / name)[-1].keys()
    digest = weights.fingerprint(folders["w0"], setup.vlm.weights)
    assert front.run(config, weightings, str(tmp_path / "front")) == folders  # and trains nothing
    assert weights.fingerprint(folders["w0"], setup.vlm.weights) == digest
    with pytest.raises(ValueError, match="belongs to another config"):
        front.run(config, {**weightings, "w1": weightings["w0"]}, str(tmp_path / "front"))
