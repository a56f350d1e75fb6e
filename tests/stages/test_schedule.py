import dataclasses
import pathlib

import numpy as np
import pytest

from rubric_jax import models, stages
from rubric_jax.models import weights
from rubric_jax.stages import schedule
from tests.stages import jobs
from tests.train import runs

NLL = {"nll": {"on": "chosen"}}


def config(*stage_fields, **groups):
    made = runs.config(mesh={"data": -1}, data={"cache": str(runs.root() / "cache")}, **groups)
    return dataclasses.replace(made, schedule=stage_fields)


def test_a_stage_changes_fields_and_starts_where_the_one_before_ended():
    made = config(
        {"objective": NLL, "train": {"steps": 3}},
        {"optimizer": {"learning_rate": 0.5}, "reference": "base"},
    )
    assert schedule.check(made) == ["stage_1", "stage_2"]
    first = schedule.stage_config(made, made.schedule[0], "A")
    assert (dict(first.objective), first.train.steps, first.schedule) == (NLL, 3, ())
    assert (first.model.checkpoint, first.model.reference) == ("A", "A")
    second = schedule.stage_config(made, made.schedule[1], "B")
    assert second.objective == made.objective
    assert (second.optimizer.learning_rate, second.train) == (0.5, made.train)
    assert (second.model.checkpoint, second.model.reference) == ("B", made.model.checkpoint)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"objektive": {}}, r"config.schedule\[0\]: unknown field 'objektive'.*'objective'"),
        ({"train": {"stps": 1}}, r"config.schedule\[0\]: Unknown field config.train.stps"),
        ({"objective": {"dop": {}}}, r"config.schedule\[0\]: Unknown config.objective.dop"),
        ({"name": "a/b"}, r"config.schedule\[0\].name is 'a/b'"),
        ({"extrapolate": -1}, r"config.schedule\[0\].extrapolate is -1"),
        ({"train": 3}, r"config.schedule\[0\]: train is 3"),
        ("nll", r"config.schedule\[0\] is 'nll'"),
    ],
)
def test_a_wrong_stage_is_refused_before_anything_is_trained(stage, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        stages.fit(config(stage), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_two_stages_with_one_name_are_refused():
    with pytest.raises(ValueError, match=r"config.schedule\[1\].name is 'a'"):
        schedule.check(config({"name": "a"}, {"name": "a"}))


@pytest.mark.slow
def test_stages_run_in_order_extrapolate_and_are_not_run_again(tmp_path):
    made = config(
        {"name": "sft", "objective": NLL, "train": {"steps": 2}, "extrapolate": 0.5},
        {
            "name": "modpo",
            "train": {"steps": 2},
            "data": {"view": {"by": "gap", "part": 1, "of": 2}},
            "extrapolate": 0.3,
        },
        train={"reference": "step"},
    )
    outcome, folder = stages.fit(made, str(tmp_path))
    assert outcome.finished
    assert pathlib.Path(folder) == tmp_path / "modpo"
    vlm = models.build("llava", runs.root() / "model")

    def read(path):
        shapes = stages.training.setup_lib.build(made).shapes
        found = weights.load(path, vlm.weights, shapes, dtype=np.float32)
        return found["decoder"]["norm"]["scale"]

    base, sft, further = (
        np.asarray(read(path))
        for path in (runs.root() / "model", tmp_path / "sft/policy", tmp_path / "sft/extrapolated")
    )
    np.testing.assert_allclose(further, sft + 0.5 * (sft - base), rtol=1e-6)
    assert not np.array_equal(sft, base)
    # From the policy of the stage before, not from the point that the stage started at.
    modpo, last = (read(tmp_path / f"modpo/{name}") for name in ("policy", "extrapolated"))
    np.testing.assert_allclose(last, modpo + 0.3 * (modpo - sft), rtol=1e-6)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    again, _ = stages.fit(made, str(tmp_path))
    assert again.step == outcome.step
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}


@pytest.mark.sweep
def test_a_round_trains_by_the_schedule(tmp_path):
    two = ({"objective": NLL, "train": {"steps": 1}}, {"train": {"steps": 1}})
    made = dataclasses.replace(
        jobs.config(rounds={"count": 1}, pool={"eval_path": ""}), schedule=two
    )
    job = stages.Run(made, str(tmp_path))
    job.all()
    assert pathlib.Path(job.path(1, "policy", "model.safetensors")).exists()
    assert pathlib.Path(job.path(1, "train", "stage_2", "metrics.jsonl")).exists()
