"""Processors of families with tiles: both layouts of files, without torch, and padded tiles."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from rubric_jax.data import forms, processing
from tests.parity import test_family_runs as runs
from tests.parity import tiled_processors

KINDS = tiled_processors.MARKS

WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None  # neither found nor imported
import PIL.Image
from rubric_jax.data import processing
made = processing.load(sys.argv[1])
image = PIL.Image.new("RGB", (20, 12))
prompt, _ = made.encode([{"role": "user", "content": "what is this ?"}], {}, [image])
print(prompt.tolist(), made.picture(image).pixels.shape)
"""


def saved(kind, directory):
    made = runs.processor(kind)
    made.save_pretrained(directory)
    tiled_processors.rename(directory)
    return made


def old_layout(kind, directory):
    """The directory as transformers 4 wrote it."""
    made = saved(kind, directory)
    file = directory / "processor_config.json"
    values = json.loads(file.read_text())
    name = values["processor_class"]
    images = values.pop("image_processor") | {"processor_class": name}
    (directory / "preprocessor_config.json").write_text(json.dumps(images))
    file.write_text(json.dumps(values))
    (directory / "chat_template.jinja").unlink()
    template = json.dumps({"chat_template": made.chat_template})
    (directory / "chat_template.json").write_text(template)
    (directory / "video_preprocessor_config.json").write_text('{"fps": 2}')


def example(directory):
    ours = processing.load(str(directory))
    prompt = [{"role": "user", "content": "what is this ?"}]
    responses = {"chosen": [{"role": "assistant", "content": "a red circle"}]}
    image = runs.picture(0, (20, 12))
    ids, coded = ours.encode(prompt, responses, [image])
    return ids.tolist(), coded["chosen"].tolist(), ours.picture(image).pixels, ours.image_token


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_of_files_are_read_alike(kind, tmp_path):
    saved(kind, tmp_path / "new")
    file = tmp_path / "new" / "processor_config.json"
    videos = {"video_processor_type": "AVideoProcessor", "fps": 2}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"video_processor": videos}))
    (tmp_path / "old").mkdir()
    old_layout(kind, tmp_path / "old")
    (prompt, response, pixels, image), other = (example(tmp_path / d) for d in ("new", "old"))
    assert prompt.count(image) == tiled_processors.tokens(kind, [runs.picture(0, (20, 12))])
    assert (prompt, response, image) == (other[0], other[1], other[3])
    np.testing.assert_array_equal(pixels, other[2])


@pytest.mark.parametrize("kind", ["internvl", "smolvlm"])
def test_stand_ins_load_without_torch_and_pickle(kind, tmp_path):
    saved(kind, tmp_path)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    prompt, _, pixels, _ = example(tmp_path)
    assert done.stdout == f"{prompt} {pixels.shape}\n"
    copy = pickle.loads(pickle.dumps(processing.load(str(tmp_path))))
    shown = copy.picture(runs.picture(0, (20, 12)))
    np.testing.assert_array_equal(shown.pixels, pixels)
    assert (shown.entries, shown.size) == (len(pixels), (20, 12))


def test_a_picture_that_is_not_split_is_one_full_tile(tmp_path):
    made = saved("idefics3", tmp_path)
    made.image_processor.do_image_splitting = False
    made.save_pretrained(tmp_path)
    prompt, _, pixels, image = example(tmp_path)
    assert pixels.shape == (1, 16, 16, 3)
    assert prompt.count(image) == 4


def test_tiles_with_padding_are_refused():
    mask = np.ones((1, 2, 16, 16))
    found = {"pixel_values": np.zeros((1, 2, 3, 16, 16)), "pixel_attention_mask": mask}
    assert forms.TILES.pixels(found).shape == (2, 16, 16, 3)
    mask[0, 1, 8:] = 0
    with pytest.raises(ValueError, match=r"pads tiles to one size.*max_image_size"):
        forms.TILES.pixels(found)
