"""Rounds and stages under an adapter: each merges its own, and the next begins afresh."""

import dataclasses
import pathlib

import jax
import pytest

from rubric_jax import models, stages
from rubric_jax.models import adapter_files, adapters, weights
from rubric_jax.stages import schedule
from tests.stages import jobs
from tests.train import runs

ADAPTER = {"rank": 2, "alpha": 8.0, "targets": ((r"decoder/.*/[qv]/kernel", True), (r".*", False))}


def fingerprint(directory):
    return weights.fingerprint(directory, models.build("llava", directory).weights)


@pytest.mark.slow
def test_a_round_is_merged_and_the_next_one_begins_afresh(tmp_path):
    job = stages.Run(
        jobs.config(
            model={"adapter": ADAPTER},
            optimizer={"learning_rate": 0.1},
            pool={"eval_path": ""},
        ),
        str(tmp_path),
    )
    job.begin()
    job.rubrics()
    for stage in (job.sample, job.judge, job.pair, job.train):
        stage(1)
    folder, base = tmp_path / "round_1", runs.root() / "model"
    assert all(map(adapters.is_adapter, runs.parameters(folder / "train")))
    assert adapter_files.read_config(folder / "adapter")["rank"] == 2
    assert job._fingerprint(2) == fingerprint(folder / "policy") != fingerprint(base)
    assert job._model(2).adapter == {}
    later = job.training(2).model
    assert later.checkpoint == later.reference == str(folder / "policy")
    assert later.adapter == ADAPTER
    again = job.train(1)  # nothing is left to do
    assert (again.step, again.finished) == (2, True)


def test_a_round_after_a_start_has_its_fields_and_no_start(tmp_path):
    vlm = models.build("llava", runs.root() / "model")
    adapter = adapter_files.open_adapter(ADAPTER, vlm)
    _write(adapter, vlm, tmp_path / "adapter")
    job = stages.Run(
        jobs.config(model={"adapter": {"start": str(tmp_path / "adapter")}}), str(tmp_path)
    )
    assert job._model(1).adapter == {"start": str(tmp_path / "adapter")}
    assert "+" in job._fingerprint(1)
    _copy(tmp_path / "round_1" / "policy")
    assert job._model(2).adapter == {}
    for number in (1, 2):
        pathlib.Path(job.path(number)).mkdir(parents=True, exist_ok=True)
    later = job.training(2).model.adapter
    assert adapter_files.open_adapter(later, vlm) == adapter


def test_the_base_cannot_be_the_reference_of_rounds_that_began_with_an_adapter(tmp_path):
    made = jobs.config(
        model={"adapter": {"start": "somewhere"}},
        rounds={"reference": "base"},
    )
    with pytest.raises(ValueError, match=r"model\.adapter\.start is no part of"):
        stages.Run(made, str(tmp_path)).check()


def test_a_stage_after_another_begins_afresh(tmp_path):
    vlm = models.build("llava", runs.root() / "model")
    adapter = adapter_files.open_adapter(ADAPTER, vlm)
    _write(adapter, vlm, tmp_path / "adapter")
    start = {"start": str(tmp_path / "adapter")}
    made = dataclasses.replace(
        runs.config(mesh={"data": -1}, model={"adapter": start}),
        schedule=({}, {"extrapolate": 0.5}),
    )
    with pytest.raises(ValueError, match=r"schedule\[1\]: extrapolate needs the start"):
        schedule.check(made)
    first = schedule.stage_config(made, {}, made.model.checkpoint)
    assert first.model.adapter == start
    later = schedule.stage_config(made, {}, _copy(tmp_path / "stage"))
    assert adapter_files.open_adapter(later.model.adapter, vlm) == adapter


def _write(adapter, vlm, directory):
    params = jax.eval_shape(vlm.init, jax.random.key(0))
    leaves = adapters.fresh(adapter, jax.random.key(0), params)
    adapter_files.write(directory, adapter, leaves, vlm.weights, base="")


def _copy(directory):
    """Another directory with the base's config."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_bytes((runs.root() / "model" / "config.json").read_bytes())
    return str(directory)
