import dataclasses
import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

from rubric_jax import config as config_lib
from rubric_jax import paths, stages
from rubric_jax.models import weights
from rubric_jax.train import loop, setup
from tests.train import runs


def here(**groups):
    """The tiny run on all devices of this process, with its data prepared once."""
    groups["data"] = {"cache": str(runs.root() / "cache"), **groups.get("data", {})}
    return runs.config(mesh={"data": -1}, **groups)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(outcome, work directory) of three steps that hold out data and keep the best of them."""
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    config = here(
        data={"eval_path": str(runs.root() / "data" / "heldout.jsonl")},
        train={
            "steps": 3,
            "eval_every": 1,
            "log_every": 2,
            "keep": 1,
            "keep_best": 1,
            "best_metric": "loss",
            "best_mode": "min",
            "tensorboard": True,
        },
    )
    return config, stages.train(config, str(workdir)), workdir


def test_train_reports_steps_evaluations_and_what_it_held_out(trained):
    _, outcome, workdir = trained
    assert outcome.step == 3
    assert outcome.finished
    assert {"loss", "rewards/accuracies", "rewards/margins"} <= outcome.metrics.keys()
    lines = runs.metrics(workdir)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert ["loss" in line for line in lines] == [False, True, True]
    assert all("eval/loss" in line for line in lines)
    np.testing.assert_allclose(lines[-1]["eval/loss"], outcome.metrics["loss"])
    assert list((workdir / "tensorboard").iterdir())


def test_a_finished_run_starts_again_to_no_effect(trained):
    config, outcome, workdir = trained
    before, lines = runs.parameters(workdir), runs.metrics(workdir)
    again = stages.train(config, str(workdir))
    assert again.step == 3
    assert again.finished
    assert again.metrics == outcome.metrics
    assert runs.metrics(workdir) == lines
    after = runs.parameters(workdir)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before)


def test_a_harmless_field_may_change_and_another_may_not(trained):
    config, _, workdir = trained
    other = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, log_every=5),
        objective={**config.objective, "nll": {"on": "chosen"}},
    )
    with pytest.raises(ValueError, match=r"objective\.nll: \(absent\) -> \{'on'") as error:
        stages.train(other, str(workdir))
    assert "log_every" not in str(error.value)
    assert "Take a new --workdir" in str(error.value)


def test_export_writes_a_directory_with_the_trained_weights(trained, tmp_path):
    config, _, workdir = trained
    stages.export(str(workdir), str(tmp_path / "hf"))
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= names
    back = setup.load(setup.build(dataclasses.replace(config, model=model_of(tmp_path / "hf"))))
    for name, leaf in paths.flatten(jax.device_get(back)).items():
        assert leaf.tobytes() == runs.parameters(workdir)[name].tobytes(), name


def model_of(directory):
    return config_lib.Model(checkpoint=str(directory), remat="none")


def test_export_takes_the_best_step_or_one_by_number(trained, tmp_path):
    _, _, workdir = trained
    losses = {line["step"]: line["eval/loss"] for line in runs.metrics(workdir)}
    best = min(losses, key=losses.get)
    stages.export(str(workdir), str(tmp_path / "best"), step="best")
    stages.export(str(workdir), str(tmp_path / "named"), step=best)
    stages.training.hand_on(str(workdir), str(tmp_path / "handed"))
    names = ("best", "named", "handed")
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in names)
    assert a == b == c
    with pytest.raises(ValueError, match=r"No checkpoint of step 99 in .*; it has \["):
        stages.export(str(workdir), str(tmp_path / "none"), step=99)


def test_export_needs_a_run(tmp_path):
    with pytest.raises(ValueError, match=r"No config\.json in .*--workdir of a run"):
        stages.export(str(tmp_path), str(tmp_path / "out"))


@functools.cache
def score(out, path=None):
    config = here(**({"data": {"path": path}} if path else {}))
    stages.score(config, out, None)
    with np.load(out) as arrays:
        return dict(arrays)


def test_score_writes_its_arrays_to_the_path_as_given(tmp_path):
    arrays = score(str(tmp_path / "logps.out"))
    assert [path.name for path in tmp_path.iterdir()] == ["logps.out"]
    assert set(arrays) == {"ids", "branches", "logps", "mask", "sums"}
    assert arrays["logps"].shape[:2] == arrays["sums"].shape == (24, 2)
    assert arrays["logps"].dtype == arrays["mask"].dtype == arrays["sums"].dtype == np.float32
    rows = (runs.root() / "data" / "train.jsonl").read_text().splitlines()
    assert arrays["ids"].tolist() == [json.loads(row)["id"] for row in rows]


@pytest.mark.slow
def test_score_leaves_dropped_rows_out_and_counts_them(tmp_path, capsys):
    source = runs.root() / "data" / "train.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()[:4]]
    rows[1]["rejected"] = rows[1]["chosen"]
    for row in rows:
        row["images"] = [str(source.parent / image) for image in row["images"]]
    rows.reverse()
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    arrays = score(str(tmp_path / "a.npz"), str(path))
    assert arrays["ids"].tolist() == [rows[0]["id"], rows[1]["id"], rows[3]["id"]]
    assert "3 of 4 rows, 1 dropped (identical responses)" in capsys.readouterr().err
    # The same row says the same, whatever stands around it.
    whole = score(str(tmp_path / "b.npz"))
    where = [whole["ids"].tolist().index(name) for name in arrays["ids"]]
    np.testing.assert_allclose(arrays["sums"], whole["sums"][where], rtol=1e-4)


def test_audit_says_what_the_data_hold_and_what_a_step_costs():
    text = stages.audit(here(), None)
    count = weights.count(setup.build(here()).shapes)
    for part in ("read", "24", "prompt tokens", "response tokens", "batches of 8 rows"):
        assert part in text
    assert "compilations of the step to expect: 1" in text
    assert f"parameters: {count:,}, of which {count:,} train" in text
    assert "memory per device (estimate, mesh data 8 x fsdp 1 x tensor 1)" in text


def test_audit_without_a_work_directory_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.training.tempfile, "tempdir", str(tmp_path))
    stages.audit(here(data={"cache": ""}), None)
    assert not list(tmp_path.iterdir())


def test_audit_refuses_weights_of_another_architecture(tmp_path):
    runs.scenes.write_model(tmp_path, width=24, depth=1, vision_width=16, vision_depth=2)
    source = json.loads((runs.root() / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(source))
    with pytest.raises(ValueError, match=r"do not fit the model of its config\.json\. misshapen"):
        stages.audit(here(model={"checkpoint": str(tmp_path)}), None)


@pytest.mark.slow
def test_sigterm_saves_leaves_and_is_gone_on_from(tmp_path, monkeypatch, capsys):
    # The same with a process of its own, bit for bit, is tests/train/test_loop.py.
    config = here(train={"steps": 2, "checkpoint_every": 50})
    original = loop.log_lib.Log.add

    def add(self, step, *args):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, step, *args)

    monkeypatch.setattr(loop.log_lib.Log, "add", add)
    outcome = stages.train(config, str(tmp_path))
    assert outcome == loop.Outcome(1, False, {})
    assert "SIGTERM: saved step 1; the same command goes on from there." in capsys.readouterr().err
