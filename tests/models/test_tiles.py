"""Families that cut pictures into tiles: the order of features, and what config.json may say."""

import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.models import idefics3, internvl, llava_next, vit
from tests import toys

TEXT = {k: v for k, v in toys.HF["text_config"].items() if k != "model_type"}
NEXT = toys.HF | {
    "model_type": "llava_next",
    "vision_config": toys.HF["vision_config"] | {"image_size": 8, "patch_size": 2},
    "image_grid_pinpoints": [[8, 16], [16, 8]],
}
INTERN = {
    "model_type": "internvl",
    "image_token_id": toys.IMAGE_TOKEN,
    "text_config": TEXT | {"model_type": "qwen2"},
    "vision_config": {"model_type": "internvl_vision", "image_size": 16, "patch_size": 8},
}
IDEFICS = {
    "model_type": "idefics3",
    "image_token_id": toys.IMAGE_TOKEN,
    "text_config": TEXT | {"model_type": "llama"},
    "vision_config": {"model_type": "idefics3", "image_size": 16, "patch_size": 4},
}


def test_rows_run_across_tiles_without_the_padded_border_and_end_in_a_newline():
    config = llava_next.read_config(NEXT)
    # 16 x 4 pixels in the middle of 16 x 8: of 4 x 8 patches the rows 1 and 2 show something.
    picture = types.Picture(np.zeros((3, 8, 8, 3)), (16, 4), 3)
    found = llava_next.reads(config, picture, first=1, images=5, cells=1)
    whole, newline = list(range(16, 32)), 5 * 16
    row1 = [32 + 4, 32 + 5, 32 + 6, 32 + 7, 48 + 4, 48 + 5, 48 + 6, 48 + 7, newline]
    row2 = [32 + 8, 32 + 9, 32 + 10, 32 + 11, 48 + 8, 48 + 9, 48 + 10, 48 + 11, newline]
    assert found.tolist() == whole + row1 + row2


def test_a_cut_that_the_config_does_not_know_is_refused():
    config = llava_next.read_config(NEXT)
    picture = types.Picture(np.zeros((4, 8, 8, 3)), (16, 4), 4)
    with pytest.raises(ValueError, match=r"into 3 tiles, config.json .* into 2"):
        llava_next.reads(config, picture, first=0, images=4, cells=1)


def test_folding_puts_squares_of_patches_side_by_side():
    x = np.arange(16).reshape(1, 16, 1)  # 4 x 4 patches, one number each
    wanted = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert vit.fold(x, 2)[0].tolist() == wanted


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        (llava_next, {"model_type": "llava"}, "describes 'llava'; the family 'llava_next' reads"),
        (llava_next, {"vision_feature_select_strategy": "full"}, "keeps the class token"),
        (
            llava_next,
            {"image_grid_pinpoints": [[8, 12]]},
            r"\[8, 12\].*no multiples .*image_size 8",
        ),
        (llava_next, {"text_config": {"model_type": "gemma"}}, "the decoder 'gemma'"),
        (internvl, {"vision_feature_layer": -2}, "features from layer -2 by .*'default'"),
        (internvl, {"downsample_ratio": 0.4}, "downsample_ratio 0.4 for 2 x 2 patches"),
        (internvl, {"text_config": {"model_type": "gpt_oss"}}, "the decoder 'gpt_oss'"),
        (
            internvl,
            {"vision_config": INTERN["vision_config"] | {"image_size": [16, 32]}},
            r"image_size \[16, 32\]; only squares",
        ),
        (idefics3, {"scale_factor": 3}, "scale_factor 3 for 4 x 4 patches"),
        (idefics3, {"model_type": "idefics2"}, "describes 'idefics2'"),
    ],
)
def test_a_config_that_is_not_read_is_refused(family, change, message):
    values = {llava_next: NEXT, internvl: INTERN, idefics3: IDEFICS}[family]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        family.read_config(values | change)


def test_internvl_is_tied_as_the_release_that_wrote_its_config_says():
    def tied(top, text):
        values = INTERN | {"text_config": INTERN["text_config"] | text} | top
        return internvl.read_config(values).decoder.tied

    # transformers 4 writes the decoder's if it is not the default, transformers 5 writes both.
    assert not tied({}, {})
    assert tied({}, {"tie_word_embeddings": True})
    assert tied({"tie_word_embeddings": True}, {"tie_word_embeddings": False})
    assert not tied({"tie_word_embeddings": False}, {"tie_word_embeddings": True})


def test_windows_and_biases_of_llamas_kin():
    def read(kind, **more):
        text = TEXT | {"model_type": kind, **more}
        return llava_next.read_config(NEXT | {"text_config": text}).decoder

    plain, mistral, qwen2 = read("llama"), read("mistral", sliding_window=7), read("qwen2")
    assert (plain.windows, plain.attention_bias) == ((), False)
    assert (mistral.windows, mistral.attention_bias) == ((7, 7), False)
    assert read("mistral", sliding_window=None).windows == ()
    assert (qwen2.windows, qwen2.attention_bias, qwen2.output_bias) == ((), True, False)
    sliding = read("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert sliding.windows == (0, 5)


def test_dynamic_rotary_scaling_is_refused_only_beyond_its_beginning():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    text = INTERN["text_config"] | {"rope_parameters": rope, "max_position_embeddings": 20}
    vision = toys.HF["vision_config"] | {"model_type": "internvl_vision"}
    vlm = internvl.build(INTERN | {"text_config": text, "vision_config": vision})
    plain = INTERN["text_config"] | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}
    }
    same = internvl.read_config(INTERN | {"text_config": plain}).decoder.frequencies
    assert vlm.config.decoder.frequencies == same
    batch = _text_batch(prompt=16)
    with pytest.raises(ValueError, match=r"up to 21 tokens, but .* beyond 20.*max_prompt"):
        vlm.hidden(None, batch, types.Layout.of(("chosen",)))


def _text_batch(prompt):
    """Without pictures, and with responses of 5 tokens."""
    media = {"pixels": np.zeros((1, 0, 16, 16, 3)), "index": np.full((1, 1, prompt), -1)}
    responses = np.zeros((1, 1, 5), np.int32)
    labels = types.Labels(*(np.zeros(()) for _ in range(4)))
    ids = np.zeros((1, 1, prompt), np.int32)
    return types.Batch(ids, np.full((1, 1), prompt), media, responses, responses, labels)
