"""A reward model end to end: a head is trained, kept, gone on with, exported and scored with."""

import dataclasses
import functools
import pathlib
import shutil
import tempfile

import numpy as np
import pytest

from rubric_jax import checkpoint, paths, stages
from rubric_jax.stages import run
from rubric_jax.train import setup
from tests.train import runs, steps

HEADS = {
    "reward": {"head": "last"},
    "router": {"head": "prompt", "outputs": 2},
    "active": {"head": "activation"},  # has no parameters
}
ALONE = ((r"heads/.*", True), (r".*", False))
BT = {"bt": {"win": "chosen", "lose": "rejected", "head": "reward"}}


def config(**model):
    data = runs.root() / "data" / "train.jsonl"
    made = runs.config(
        model={"heads": HEADS, **model},
        data={"eval_path": str(data), "cache": str(runs.root() / "cache")},
        objective=BT,
        optimizer={"learning_rate": 0.3, "trainable": ALONE},
        train={"keep": 9, "reference": "none"},
        mesh={"data": -1},
    )
    return made


@functools.cache
def trained():
    """(outcome, work directory, exported directory) of eight steps."""
    holder = tempfile.TemporaryDirectory(prefix="rubric_jax-tests-")
    runs._HOLDERS.append(holder)
    workdir, out = pathlib.Path(holder.name, "run"), pathlib.Path(holder.name, "policy")
    outcome = stages.train(config(), str(workdir))
    stages.training.export(str(workdir), str(out))
    return outcome, workdir, out


@pytest.mark.slow
def test_only_what_the_rules_name_trains():
    _, workdir, _ = trained()
    before = paths.flatten(setup.load(setup.build(config())))
    after = runs.parameters(workdir)
    assert before.keys() == after.keys()
    moved = {path for path, leaf in after.items() if np.any(leaf != before[path])}
    # The bias cancels in a pair, and nothing reads the router.
    assert moved == {"heads/reward/kernel"}


@pytest.mark.slow
def test_training_finds_the_better_response():
    outcome, _, _ = trained()
    assert outcome.metrics["bt/accuracy"] > 0.8
    assert outcome.metrics["loss"] < 0.6


@pytest.mark.slow
def test_an_exported_model_scores_as_the_trained_one(tmp_path):
    outcome, _, out = trained()
    # The heads come with the checkpoint: the config need not name them.
    made = dataclasses.replace(config(heads={}, checkpoint=str(out)), objective={})
    found = stages.score(made, str(tmp_path / "scores.npz"), None)
    scores = np.load(tmp_path / "scores.npz")["heads/reward"]
    np.testing.assert_array_equal(scores, found["heads/reward"])
    assert scores.shape == (24, 2, 1)
    assert found["heads/router"].shape == (24, 2, 2)
    gaps = scores[:, 0, 0] - scores[:, 1, 0]
    np.testing.assert_allclose((gaps > 0).mean(), outcome.metrics["bt/accuracy"], rtol=1e-6)
    np.testing.assert_allclose(gaps.mean(), outcome.metrics["bt/margin"], rtol=1e-4)
    measures = run._heads(found, str(out))  # of an evaluation on held-out pairs
    assert measures.keys() == {"reward accuracy", "reward margin"}
    np.testing.assert_allclose(measures["reward margin"], gaps, rtol=1e-6)
    np.testing.assert_allclose(measures["reward accuracy"].mean(), outcome.metrics["bt/accuracy"])


@pytest.mark.slow
def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(tmp_path):
    _, workdir, _ = trained()
    shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "8")
    assert stages.train(config(), str(tmp_path / "again")).step == 8
    runs.assert_same_bits(workdir, tmp_path / "again")


@pytest.mark.slow
def test_a_run_that_starts_from_an_exported_one_has_its_heads():
    _, workdir, out = trained()
    made = setup.build(config(checkpoint=str(out), heads={}))
    loaded = paths.flatten(setup.load(made))
    for path, leaf in paths.flatten(checkpoint.params(str(workdir))).items():
        np.testing.assert_array_equal(loaded[path], leaf)


@pytest.mark.slow
def test_the_other_files_of_an_exported_model_are_those_of_any():
    _, _, out = trained()
    there = {file.name for file in out.iterdir()}
    assert there == {file.name for file in (runs.root() / "model").iterdir()} | {"heads"}


def test_heads_of_the_reference_need_it_in_the_step():
    pair = {"win": "chosen", "lose": "rejected", "beta": 0.1}
    spec = {"sparsepo": {**pair, "mask": "m", "kl_mask": "m"}}
    made = dataclasses.replace(config(heads={"m": {"head": "mask"}}), objective=spec)
    made = dataclasses.replace(made, train=dataclasses.replace(made.train, reference="cache"))
    with pytest.raises(ValueError, match="set it to 'step'"):
        setup.objective(made)


@pytest.mark.sweep
def test_masks_learn_on_a_mesh_as_on_one_device():
    def two_steps(mesh):
        spec = {"sparsepo": {**steps.PAIR, "mask": "m", "kl_mask": "a", "l1": 0.01}}
        heads = {"m": {"head": "mask"}, "a": {"head": "activation"}}
        case = steps.case(spec, mesh=mesh, reference="step", heads=heads)
        batch = steps.batch(case, rows=8, ref=False)
        return case.run(batch, ref_params=case.params(seed=1), steps=2)

    steps.assert_close(two_steps((1, 1, 1)), two_steps((2, 2, 2)))
