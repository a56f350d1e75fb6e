"""What config.json may say, and the published sizes without their memory."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rubric_jax import config, models, paths, sharding
from rubric_jax.models import llava, weights
from tests import toys

# As on the Hub (llava-hf/llava-1.5-7b-hf and -13b-hf); what they leave out is Llama's default.
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
TEXT = {"model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064}
PUBLISHED = {
    "7b": {},
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "num_key_value_heads": 40,
    },
}


def published(size: str) -> dict:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": TEXT | {"torch_dtype": "float16"} | PUBLISHED[size],
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": VISION,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def shapes_of(vlm):
    return jax.eval_shape(vlm.init, jax.random.key(0))


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_resolve_every_parameter_its_tensors_and_its_rule(size):
    vlm = llava.build(published(size))
    shapes = paths.flatten(shapes_of(vlm))
    # Tensors fill parameters exactly: same paths, every layer once, as many numbers.
    by_path = {}
    for weight in vlm.weights.weights:
        by_path.setdefault(weight.path, []).append(weight)
    assert by_path.keys() == shapes.keys()
    for path, leaf in shapes.items():
        layers = [weight.layer for weight in by_path[path]]
        stacked = layers != [None]
        assert layers == (list(range(leaf.shape[0])) if stacked else [None]), path
        want = np.prod(leaf.shape[1:] if stacked else leaf.shape)
        assert {np.prod(weight.shape) for weight in by_path[path]} == {want}, path
    names = [weight.name for weight in vlm.weights.weights]
    assert len(set(names)) == len(names)

    mesh = sharding.make(config.Mesh(data=1, fsdp=4, tensor=2))
    placement, dropped = sharding.place(mesh, vlm.rules, shapes_of(vlm))
    whole = {p for p, place in paths.flatten(placement).items() if place.spec == PartitionSpec()}
    large = {p for p, leaf in shapes.items() if np.prod(leaf.shape) > 1e6}
    # 577 positions; 32,064 and the widths are multiples of 8.
    assert dropped == []
    assert large & whole == set()


def test_every_partition_rule_is_needed():
    biased = toys.HF | {"text_config": toys.HF["text_config"]}
    biased["text_config"] = biased["text_config"] | {"attention_bias": True, "mlp_bias": True}
    vlm = llava.build(biased)
    names = list(paths.flatten(shapes_of(vlm)))
    first = {
        name: next(
            i
            for i, rule in enumerate(vlm.rules)
            if paths.lookup((rule, (r".*", None)), name) is not None
        )
        for name in names
    }
    assert set(first.values()) == set(range(len(vlm.rules)))


def test_parameter_counts_by_hand():
    # 32 x 16 tokens of 4 dimensions would be easy to get wrong in a table, so the toy is counted:
    vision = 3 * 8 * 8 * 16 + 16 + 5 * 16 + 4 * 16  # patches, class, positions, two norms
    vision += 2 * (4 * (16 * 16 + 16) + (16 * 24 + 24) + (24 * 16 + 16) + 4 * 16)
    projector = 16 * 32 + 32 + 32 * 32 + 32
    decoder = 2 * 64 * 32 + 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 40 + 2 * 32)
    shapes = shapes_of(llava.build(toys.HF))
    assert weights.count(shapes) == vision + projector + decoder


@pytest.mark.parametrize("layer", [-1, -2, 1, [-1, 1], [2]])
def test_feature_layers_count_from_either_end(layer):
    after = llava.read_config(toys.HF | {"vision_feature_layer": layer}).feature_layers
    listed = [layer] if isinstance(layer, int) else layer
    assert after == tuple({-1: 2, -2: 1, 1: 1, 2: 2}[k] for k in listed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llava_next"}, "describes 'llava_next'; the family 'llava' reads"),
        ({"text_config": {"model_type": "mistral"}}, "decoder 'mistral'"),
        (
            {"vision_config": {"model_type": "siglip_vision_model"}},
            "vision tower 'siglip_vision_model'",
        ),
        ({"vision_feature_layer": -4}, r"vision_feature_layer .*-4.* outside the 2 layers"),
        ({"vision_feature_layer": 3}, r"vision_feature_layer .*3.* outside the 2 layers"),
        ({"vision_feature_layer": [-2, 9]}, r"vision_feature_layer .*9.* outside the 2 layers"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy.*got cls"),
        ({"projector_hidden_act": "gelux"}, "activation 'gelux'; .* Did you mean 'gelu'"),
        (
            {
                "text_config": toys.HF["text_config"]
                | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
            },
            "Rotary scaling 'yarn' is not one of",
        ),
    ],
)
def test_a_config_that_is_not_read_is_refused(change, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        llava.read_config(toys.HF | change)


def test_rotary_frequencies_are_read_in_both_spellings():
    def read(extra):
        text = toys.HF["text_config"] | extra
        return llava.read_config(toys.HF | {"text_config": text}).decoder.frequencies

    old = read({"rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 4.0}})
    new = read({"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}})
    # head size 8: 100^(-2i/8) / 4
    np.testing.assert_allclose(old, [0.25, 0.0790569, 0.025, 0.00790569], rtol=1e-5)
    assert old == new


def test_build_names_the_missing_config_and_the_unknown_family(tmp_path):
    with pytest.raises(ValueError, match=r"No config\.json in"):
        models.build("llava", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(toys.HF))
    assert models.build("llava", tmp_path).vocab == 64
    with pytest.raises(ValueError, match=r"Unknown model family 'lava'.*Did you mean 'llava'"):
        models.build("lava", tmp_path)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("", "config.model.checkpoint is empty"),
        ("./nowhere", "'./nowhere'; no such directory"),
        ("nowhere", "'nowhere'; no such directory"),
        ("no-such-owner/no-such-model", "neither a directory nor a hub name"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(checkpoint, message):
    with pytest.raises(ValueError, match=message):  # HF_HUB_OFFLINE: nothing is fetched
        models.directory(checkpoint)
