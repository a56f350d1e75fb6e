"""The processor: hand-worked ids, both checkpoint layouts, life without torch."""

import json
import pickle
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from rubric_jax.data import processing
from tests.data import toy

WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None  # neither found nor imported
import PIL.Image
from rubric_jax.data import audit, loading, preparing, processing, reading, references
processor = processing.load(sys.argv[1])
prompt, responses = processor.encode(
    [{"role": "user", "content": "what is this ?"}],
    {"chosen": [{"role": "assistant", "content": "a circle"}]},
    [PIL.Image.new("RGB", (40, 30))],
)
print(prompt.tolist(), responses["chosen"].tolist())
print(processor.picture(PIL.Image.new("L", (9, 9))).pixels.shape)
"""


def old_layout(folder, *, processor_config=None):
    """The toy processor's directory as transformers 4 wrote it."""
    made = toy.processor()
    made.tokenizer.save_pretrained(folder)
    image_processor = json.loads(made.image_processor.to_json_string())
    image_processor["image_processor_type"] = "CLIPImageProcessor"
    files = {
        "preprocessor_config.json": {**image_processor, "processor_class": "LlavaProcessor"},
        "chat_template.json": {"chat_template": toy.TEMPLATE},
        "config.json": {
            "model_type": "llava",
            "vision_feature_select_strategy": "default",
            "vision_config": {"patch_size": 14},
        },
    }
    if processor_config:
        files["processor_config.json"] = processor_config
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return processing.load(str(folder))


def test_strings_become_their_words_with_the_placeholder_repeated(processor):
    prompt, responses = processor.encode(
        "USER: <image> what is this ?", {"chosen": "a circle", "rejected": "red"}, [toy.picture(0)]
    )
    assert prompt.tolist() == toy.ids("USER: <image>*4 what is this ?")
    assert responses["chosen"].tolist() == toy.ids("a circle")
    assert responses["rejected"].tolist() == toy.ids("red")
    assert prompt.dtype == responses["chosen"].dtype == np.int32


def test_plain_messages_get_image_blocks_before_the_first_user_text(processor):
    prompt, responses = processor.encode(
        [{"role": "user", "content": "what is this ?"}],
        {"chosen": [{"role": "assistant", "content": "a circle"}]},
        [toy.picture(0), toy.picture(1)],
    )
    assert prompt.tolist() == toy.ids("USER: <image>*4 <image>*4 what is this ? ASSISTANT:")
    assert responses["chosen"].tolist() == toy.ids("a circle </s>")


def test_image_blocks_stay_where_they_are(processor):
    content = [
        {"type": "text", "text": "what is"},
        {"type": "image"},
        {"type": "text", "text": "?"},
    ]
    prompt, _ = processor.encode([{"role": "user", "content": content}], {}, [toy.picture(0)])
    assert prompt.tolist() == toy.ids("USER: what is <image>*4 ? ASSISTANT:")


def test_rows_without_images(processor):
    prompt, responses = processor.encode("what is a circle ?", {"chosen": "red"}, [])
    assert prompt.tolist() == toy.ids("what is a circle ?")
    assert responses["chosen"].tolist() == toy.ids("red")


@pytest.mark.parametrize(
    ("prompt", "responses", "images", "field", "message"),
    [
        ("what ?", {"chosen": "a"}, 1, "images", "1 image(s) for 0 placeholder(s) '<image>'"),
        ("<image> ?", {"chosen": "a"}, 2, "images", "2 image(s) for 1 placeholder(s)"),
        ("<image> ?", {"chosen": "<image>"}, 1, "chosen", "contains the image placeholder"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "?"}]}],
            {},
            1,
            "images",
            "1 image(s) for 0 image block(s)",
        ),
        (
            [{"role": "user", "content": "<image> ?"}],
            {},
            1,
            "images",
            "1 image(s) for 2 placeholder(s)",
        ),
        ([{"role": "bot", "content": "?"}], {}, 0, "prompt", "role 'bot'"),
        ([{"role": "user", "content": "?"}], {"chosen": "a"}, 0, "chosen", "write both as strings"),
    ],
)
def test_misfits_name_the_field(processor, prompt, responses, images, field, message):
    with pytest.raises(processing.FieldError) as error:
        processor.encode(prompt, responses, [toy.picture(i) for i in range(images)])
    assert error.value.field == field
    assert message in str(error.value)


def test_messages_need_a_chat_template(tmp_path):
    toy.processor(template=None).save_pretrained(tmp_path)
    bare = processing.load(str(tmp_path))
    assert bare.encode("what ?", {}, [])[0].tolist() == toy.ids("what ?")
    with pytest.raises(processing.FieldError, match=r"no chat template; add chat_template.jinja"):
        bare.encode([{"role": "user", "content": "what ?"}], {}, [])


def test_both_checkpoint_layouts_give_the_same_ids(processor, tmp_path):
    row = (
        [{"role": "user", "content": "what is this ?"}],
        {"chosen": [{"role": "assistant", "content": "a circle"}]},
        [toy.picture(0)],
    )
    settings = {
        "processor_class": "LlavaProcessor",
        "patch_size": 14,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    (tmp_path / "given").mkdir()
    (tmp_path / "derived").mkdir()
    expected = processor.encode(*row)
    for old in (
        old_layout(tmp_path / "given", processor_config=settings),
        old_layout(tmp_path / "derived"),  # patch size from config.json
    ):
        prompt, responses = old.encode(*row)
        np.testing.assert_array_equal(prompt, expected[0])
        np.testing.assert_array_equal(responses["chosen"], expected[1]["chosen"])
        np.testing.assert_array_equal(
            old.picture(toy.picture(3)).pixels, processor.picture(toy.picture(3)).pixels
        )


def test_pixels_are_normalised_channels_last(processor):
    white = processor.picture(PIL.Image.new("RGB", (28, 28), (255, 255, 255))).pixels
    assert white.shape == (28, 28, 3)
    assert white.dtype == np.float32
    # (1 - mean) / std of CLIP's three channels
    np.testing.assert_allclose(white[3, 5], [1.9303, 2.0749, 2.1459], atol=1e-4)


def test_special_ids_and_decoding(processor):
    assert processor.pad_id == toy.WORDS.index("<pad>")
    assert processor.eos_ids == (toy.WORDS.index("</s>"),)
    assert processor.image_token == toy.WORDS.index("<image>")
    assert processor.decode(toy.ids("a red circle </s>")) == "a red circle"
    assert processor.decode(toy.ids("red </s>"), special=True) == "red </s>"


def test_fingerprint_changes_with_the_files_that_matter(processor, tmp_path):
    toy.processor().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("no matter")
    assert processing.load(str(tmp_path)).fingerprint == processor.fingerprint
    toy.processor(toy.TEMPLATE + " ").save_pretrained(tmp_path)
    assert processing.load(str(tmp_path)).fingerprint != processor.fingerprint


def test_a_processor_can_be_pickled(processor):
    copy = pickle.loads(pickle.dumps(processor))
    np.testing.assert_array_equal(
        copy.picture(toy.picture(1)).pixels, processor.picture(toy.picture(1)).pixels
    )


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="names no processor class"):
        processing.load(str(tmp_path))
    with pytest.raises(ValueError, match="No directory"):
        processing.load(str(tmp_path / "absent"))


def test_everything_loads_without_torch(checkpoint):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, checkpoint],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    prompt = toy.ids("USER: <image>*4 what is this ? ASSISTANT:")
    assert done.stdout == f"{prompt} {toy.ids('a circle </s>')}\n(28, 28, 3)\n"
