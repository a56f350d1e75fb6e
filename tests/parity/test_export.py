"""A run's export, loaded by transformers."""

import dataclasses

import jax
import numpy as np
import torch
import transformers

from rubric_jax import checkpoint, stages
from rubric_jax import config as config_lib
from rubric_jax.data import loading
from rubric_jax.train import setup as setup_lib
from tests.train import runs


def a_run(workdir):
    """A work directory with one checkpoint, whose parameters are those of the start plus noise."""
    config = runs.config(mesh={"data": -1}, data={"cache": str(runs.root() / "cache")})
    setup = setup_lib.build(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype),
        jax.device_get(setup_lib.load(setup)),
    )
    plain = config_lib.to_dict(config)
    checkpoint.claim(str(workdir), plain)
    with checkpoint.Manager(str(workdir), keep=1) as manager:
        manager.save(1, {"params": params}, position={"step": 1}, config=plain)
    return config


def torch_logps(model, source, row, branch):
    """Token log-probabilities of one response, by transformers on the whole sequence."""
    example = source[row]
    prompt, response = example.prompts[0], example.responses[branch]
    ids = torch.tensor(np.concatenate([prompt, response])[None]).long()
    pixels = np.stack([source.picture(number).pixels for number in example.images[0]])
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2)).logits[
            0, len(prompt) - 1 : -1
        ]
    return torch.log_softmax(logits, -1)[range(len(response)), response].numpy()


def test_transformers_says_of_an_export_what_score_says(tmp_path):
    config = a_run(tmp_path / "run")
    stages.export(str(tmp_path / "run"), str(tmp_path / "hf"))
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", attn_implementation="eager", dtype=torch.float32
    ).eval()
    processor = transformers.LlavaProcessor.from_pretrained(tmp_path / "hf")
    assert processor.chat_template

    exported = dataclasses.replace(config.model, checkpoint=str(tmp_path / "hf"))
    config = dataclasses.replace(config, model=exported)
    arrays = stages.score(config, str(tmp_path / "logps.npz"), None)
    setup = setup_lib.build(config)
    source = setup_lib.source(setup, config.data.path, "", config.data.cache)
    assert isinstance(source, loading.Source)
    for row, branch in ((0, 0), (5, 1), (23, 0)):
        expected = torch_logps(model, source, row, branch)
        got = arrays["logps"][row, branch, : len(expected)]
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert abs(arrays["sums"][row, branch] - expected.sum()) < 1e-3


def test_an_export_in_bfloat16_is_the_rounded_one(tmp_path):
    a_run(tmp_path / "run")
    stages.export(str(tmp_path / "run"), str(tmp_path / "wide"))
    stages.export(str(tmp_path / "run"), str(tmp_path / "narrow"), dtype="bfloat16")
    wide, narrow = (
        transformers.LlavaForConditionalGeneration.from_pretrained(
            tmp_path / name, dtype="auto"
        ).state_dict()
        for name in ("wide", "narrow")
    )
    assert wide.keys() == narrow.keys()
    for name in wide:
        assert torch.equal(wide[name].to(torch.bfloat16), narrow[name].to(torch.bfloat16)), name
