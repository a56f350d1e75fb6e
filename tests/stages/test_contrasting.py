"""Sampling under a contrast: from the config to the file."""

import json
import shutil

import numpy as np
import pytest

from rubric_jax import paths, stages
from rubric_jax.data import loading
from rubric_jax.models import adapters
from rubric_jax.stages import contrasting, sample
from rubric_jax.train import setup as setup_lib
from tests.stages import jobs
from tests.train import runs

BLIND = {"contrast": "vcd", "plausible": 0.0, "context": {"corruption": "drop"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"contrast": "vdc", "context": {}}, "Unknown config.sample.contrast.*'vcd'"),
        ({**BLIND, "alhpa": 1.0}, "no knob 'alhpa'.*'alpha'"),
        ({**BLIND, "alpha": -1.0}, "alpha is -1.0"),
        ({"contrast": "vcd"}, "sets the policy against itself"),
        ({"contrast": "vcd", "context": {"corruption": "dorp"}}, "Unknown corruption 'dorp'"),
        ({"contrast": "vcd", "checkpoint": 3}, "checkpoint 3; they must be"),
        (
            {"contrast": "vcd", "context": {"corruption": "gaussian_noise", "when": "step"}},
            "config.sample.contrast.context.when is 'step'",
        ),
    ],
)
def test_a_wrong_contrast_is_refused_before_anything_runs(values, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        contrasting.parse(values)
    with pytest.raises(ValueError, match=message.replace("sample", "evaluation")):
        stages.Run(jobs.config(evaluation={"contrast": values}), str(tmp_path)).check()


def test_both_contexts_of_a_row_are_read_apart(tmp_path):
    spec = contrasting.parse(BLIND)
    made = jobs.config(sample={"contrast": BLIND}, data={"cache": str(tmp_path)})
    setup = contrasting.widen(sample._setup(made), spec)
    source = setup_lib.source(setup, made.pool.path, "train", str(tmp_path))
    plan = setup_lib.plan(setup, source, shuffle=False)
    clean, blind = (
        next(iter(loading.batches(each, plan, setup.vlm.media)))[0]
        for each in contrasting.sources(source, spec)
    )
    assert clean.prompts.shape == blind.prompts.shape == (8, 1, clean.prompts.shape[2])
    assert (clean.media["index"] >= 0).any(axis=(1, 2)).all()
    assert not (blind.media["index"] >= 0).any()
    shorter = (clean.prompt_lengths - blind.prompt_lengths).ravel()
    np.testing.assert_array_equal(shorter, (clean.media["index"] >= 0).sum(axis=(1, 2)))


def test_another_policy_is_read_without_the_adapter(tmp_path):
    made = jobs.config(model={"adapter": {"rank": 2}})
    setup = setup_lib.build(made)
    params = setup_lib.load(setup)
    assert adapters.has(contrasting.other_params(setup, contrasting.parse(BLIND), params))
    shutil.copytree(setup.directory, tmp_path / "other")
    for directory in (setup.directory, tmp_path / "other"):
        spec = contrasting.parse({"contrast": "vcd", "checkpoint": str(directory)})
        found = paths.flatten(contrasting.other_params(setup, spec, params))
        assert found.keys() == paths.flatten(adapters.without(params)).keys()


@pytest.mark.slow
def test_samples_under_a_contrast_are_others_and_say_so(tmp_path):
    other = tmp_path / "other"
    runs.scenes.write_model(other, width=16, depth=1, vision_width=16, vision_depth=2, seed=5)
    texts = {}
    for name, contrast in (
        ("plain", {}),
        ("nothing", {**BLIND, "alpha": 0.0}),
        ("blind", {**BLIND, "alpha": 4.0}),
        ("other", {"contrast": "vcd", "alpha": 4.0, "plausible": 0.0, "checkpoint": str(other)}),
    ):
        made = jobs.config(sample={"contrast": contrast})
        out = str(tmp_path / name / "samples.jsonl")
        cache = str(tmp_path / "cache")
        sample.write_samples(made, out, path=made.pool.path, split="train", cache=cache, seed=3)
        rows = sample.read_samples(out)
        texts[name] = [r["text"] for row in rows.values() for r in row["responses"]]
        manifest = json.loads((tmp_path / name / "samples.json").read_text())
        assert manifest["config"].get("contrast", {}) == contrast
        assert ("contrast" in manifest["inputs"]) == (name == "other")
    same = [a == b for a, b in zip(texts["plain"], texts["nothing"])]
    assert np.mean(same) > 0.9  # but for rounding
    assert texts["plain"] != texts["blind"]
    assert texts["plain"] != texts["other"]
