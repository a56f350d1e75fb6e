"""The spellings in which LLaVA checkpoints exist: one model, whichever way it is written down."""

import copy
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from rubric_jax import models, paths
from rubric_jax.models import llava, weights
from tests.models.test_llava import PUBLISHED, published
from tests.parity import checkpoints

# From the names that transformers 5 saves to those of ...
SPELLINGS = {
    "transformers 5, saved": [],
    "hub and transformers 4": [(r"^vision_tower\.", "vision_tower.vision_model.")],
    "transformers 4.52, in memory": [
        (r"^vision_tower\.", "model.vision_tower.vision_model."),
        (r"^multi_modal_projector\.", "model.multi_modal_projector."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
    ],
    "transformers 5, in memory": [
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^language_model\.lm_head\.", "lm_head."),
    ],
}
BUFFER = "vision_tower.vision_model.embeddings.position_ids"  # in old files on the hub


def respelled(source, target, rules, *, old_config):
    """Copies a checkpoint under other names, and its config as transformers 4 wrote it."""
    target.mkdir()
    tensors = {}
    for name, array in safetensors.numpy.load_file(source / weights.SINGLE).items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        tensors[name] = array
    if old_config:
        tensors[BUFFER] = np.arange(5)[None]
    safetensors.numpy.save_file(tensors, target / weights.SINGLE, {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(old(config) if old_config else config))
    return tensors


def old(config):
    """config.json of transformers 4: rotary settings flat, torch_dtype, defaults left out."""
    config = copy.deepcopy(config)
    config["torch_dtype"] = config.pop("dtype")
    text, vision = config["text_config"], config["vision_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope.pop("rope_theta")
    text["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    text["torch_dtype"] = "float32"
    for part, names in (
        (text, ["head_dim", "attention_bias", "mlp_bias", "hidden_act", "use_cache"]),
        (vision, ["hidden_act", "layer_norm_eps", "num_channels", "attention_dropout"]),
        (config, ["multimodal_projector_bias", "image_seq_length", "transformers_version"]),
    ):
        for name in names:
            part.pop(name, None)
    return config


def load(directory):
    vlm = models.build("llava", directory)
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    return vlm, weights.load(directory, vlm.weights, shapes, dtype=jnp.float32)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module", params=[{}, {"tied": True, "rope": LLAMA3}], ids=["untied", "tied"])
def saved(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved")
    model = checkpoints.llava(directory, **request.param)
    return model, directory, load(directory)


@pytest.mark.parametrize("old_config", [False, True], ids=["new_config", "old_config"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_read_and_written_back(spelling, old_config, saved, tmp_path):
    model, source, (want_vlm, want) = saved
    tensors = respelled(source, tmp_path / "in", SPELLINGS[spelling], old_config=old_config)
    hf = json.loads((tmp_path / "in" / "config.json").read_text())
    assert llava.read_config(hf) == llava.read_config(model.config.to_dict())

    vlm, params = load(tmp_path / "in")
    assert vlm.weights == want_vlm.weights
    got, want = paths.flatten(params), paths.flatten(want)
    assert got.keys() == want.keys()
    for path in got:
        np.testing.assert_array_equal(got[path], want[path], err_msg=path)
    assert weights.fingerprint(tmp_path / "in", vlm.weights) == weights.fingerprint(
        source, vlm.weights
    )

    weights.write(tmp_path / "out", params, vlm.weights, source=tmp_path / "in")
    written = safetensors.numpy.load_file(tmp_path / "out" / weights.SINGLE)
    assert written.keys() == tensors.keys() - {BUFFER}
    for name, array in written.items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
    again, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_the_parameters_of_transformers(size):
    config = transformers.LlavaConfig.from_dict(published(size))
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(config)
    vlm = llava.build(published(size))
    theirs = {vlm.weights.canonical(n): tuple(p.shape) for n, p in model.named_parameters()}
    assert theirs == {weight.name: weight.shape for weight in vlm.weights.weights}
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    assert weights.count(shapes) == sum(p.numel() for p in model.parameters())
