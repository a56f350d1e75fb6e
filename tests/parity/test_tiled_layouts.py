"""The spellings in which checkpoints of families with tiles exist, and what their towers read."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from transformers.models.idefics3 import modeling_idefics3

from rubric_jax import models, paths
from rubric_jax.models import weights
from tests.parity import test_families as families
from tests.parity import test_layouts as layouts

IN_MEMORY = layouts.SPELLINGS["transformers 5, in memory"]
# From the names that transformers 5 saves to those of other releases. Old configurations leave out
# what is the default, so these checkpoints have the default there.
SPELLINGS = {
    "llava_next-hub": layouts.SPELLINGS["hub and transformers 4"],
    "llava_next_qwen2-memory": [*IN_MEMORY, (r"^image_newline$", "model.image_newline")],
    "internvl-hub": [],
    "internvl-memory": IN_MEMORY,
    "idefics3_cut_edge-hub": [],
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_every_spelling_is_read_and_written_back(case, tmp_path):
    variant, _ = case.split("-")
    family, model, source, vlm, params = families.both(variant, tmp_path / "source")
    rules = SPELLINGS[case]
    tensors = layouts.respelled(source, tmp_path / "in", rules, old_config=True)
    tensors.pop(layouts.BUFFER)
    file = tmp_path / "in" / "config.json"
    config = json.loads(file.read_text())
    if family == "internvl":
        config.pop("tie_word_embeddings")  # transformers 4 left it to the decoder's part
    if family == "idefics3":
        config["vision_config"]["model_type"] = "idefics3"
    file.write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, tmp_path / "in" / weights.SINGLE, {"format": "pt"})

    other = models.build(family, tmp_path / "in")
    assert other.config == vlm.config
    found = weights.load(tmp_path / "in", other.weights, params, dtype=np.float32)
    for (path, got), want in zip(paths.flatten(found).items(), paths.flatten(params).values()):
        np.testing.assert_array_equal(got, want, err_msg=path)
    weights.write(tmp_path / "out", found, other.weights, source=tmp_path / "in")
    written = safetensors.numpy.load_file(tmp_path / "out" / weights.SINGLE)
    assert written.keys() == tensors.keys()
    again, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(("side", "patch"), [(364, 14), (384, 14), (512, 16), (16, 4), (30, 7)])
def test_positions_of_a_full_tile_are_the_numbers_of_its_patches(side, patch):
    """At the published sizes and those of the tests; rounding moves some at others, as 25 x 25."""
    config = transformers.Idefics3VisionConfig(hidden_size=1, image_size=side, patch_size=patch)
    embeddings = modeling_idefics3.Idefics3VisionEmbeddings(config)
    n = side // patch
    with torch.no_grad():
        embeddings.patch_embedding.weight.zero_()
        embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight.copy_(torch.arange(n * n)[:, None])
        found = embeddings(torch.zeros(1, 3, side, side), torch.ones(1, n, n, dtype=torch.bool))
    assert found[0, :, 0].tolist() == list(range(n * n))
