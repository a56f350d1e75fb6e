"""The families that cut pictures into tiles: small random checkpoints, and what they are shown."""

import numpy as np
import torch
import transformers

from rubric_jax import types
from tests.parity import checkpoints

VARIANTS = {
    "llava_next": ("llava_next", {}),
    "llava_next_mistral": (
        "llava_next",
        {"kind": "mistral", "sliding_window": 7, "head_dim": 6, "vision": {"image_size": 24}},
    ),
    "llava_next_qwen2": (
        "llava_next",
        {"kind": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 1, "layer": [-2, 1]},
    ),
    "internvl": ("internvl", {}),
    "internvl_6b_tower": (
        "internvl",
        {
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
            "vision": {
                "image_size": 32,
                "norm_type": "rms_norm",
                "use_qk_norm": True,
                "layer_norm_eps": 1e-5,
            },
        },
    ),
    "internvl_qwen3": (
        "internvl",
        {
            "kind": "qwen3",
            "head_dim": 6,
            "tie_word_embeddings": True,
            "vision": {"attention_bias": True, "use_mean_pooling": False, "patch_size": 4},
            "downsample_ratio": 0.25,
        },
    ),
    "idefics3": ("idefics3", {"attention_bias": True}),
    "idefics3_cut_edge": (  # 30 pixels are 4 patches of 7, and 2 pixels
        "idefics3",
        {"vision": {"image_size": 30, "patch_size": 7}, "scale": 4, "num_key_value_heads": 1},
    ),
    "smolvlm_tied": (
        "smolvlm",
        {"tie_word_embeddings": True, "vision": {"image_size": 24}, "scale": 3, "head_dim": 6},
    ),
}
FAMILIES = {"smolvlm": "idefics3"}  # of kinds that are not called like their family

SIZES = ((40, 18), (20, 30), (50, 46))  # width and height of the pictures

TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 16,
    "patch_size": 8,
}


def text(kind, **changes):
    """A small decoder's configuration."""
    return transformers.AutoConfig.for_model(kind, **TEXT | changes)


def llava_next(directory, *, seed=0, kind="llama", vision=None, layer=-2, **changes):
    """A random LLaVA-NeXT checkpoint; returns the torch model."""
    vision = transformers.CLIPVisionConfig(**VISION | (vision or {}))
    n = vision.image_size
    config = transformers.LlavaNextConfig(
        vision_config=vision,
        text_config=text(kind, **changes),
        image_token_index=checkpoints.IMAGE_TOKEN,
        image_grid_pinpoints=[[n, 2 * n], [2 * n, n], [2 * n, 2 * n], [3 * n, n]],
        vision_feature_layer=layer,
        tie_word_embeddings=changes.get("tie_word_embeddings", False),
        attn_implementation="eager",
    )
    model = transformers.LlavaNextForConditionalGeneration(config)
    return checkpoints.save_random(model, directory, seed, norms=1.0)


def internvl(directory, *, seed=0, kind="qwen2", vision=None, downsample_ratio=0.5, **changes):
    """A random InternVL checkpoint; returns the torch model."""
    config = transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(**VISION | (vision or {})),
        text_config=text(kind, **changes),
        image_token_id=checkpoints.IMAGE_TOKEN,
        downsample_ratio=downsample_ratio,
        tie_word_embeddings=changes.get("tie_word_embeddings", False),
        attn_implementation="eager",
    )
    model = transformers.InternVLForConditionalGeneration(config)
    return checkpoints.save_random(model, directory, seed, norms=1.0)


def idefics3(directory, *, seed=0, smol=False, vision=None, scale=2, **changes):
    """A random Idefics3 or SmolVLM checkpoint; returns the torch model."""
    name = "smolvlm" if smol else "idefics3"
    towers = transformers.SmolVLMVisionConfig, transformers.Idefics3VisionConfig
    config = transformers.AutoConfig.for_model(
        name,
        vision_config=towers[not smol](**VISION | {"patch_size": 4} | (vision or {})),
        text_config=text("llama", **changes),
        image_token_id=checkpoints.IMAGE_TOKEN,
        scale_factor=scale,
        tie_word_embeddings=changes.get("tie_word_embeddings", False),
        attn_implementation="eager",
    )
    model = transformers.AutoModelForImageTextToText.from_config(config)
    return checkpoints.save_random(model, directory, seed, norms=1.0)


def smolvlm(directory, **changes):
    return idefics3(directory, smol=True, **changes)


def pictures(model):
    """One picture of each size, with as many random tiles as the family reads."""
    c, rng = model.config, np.random.default_rng(1)
    side = np.max(c.vision_config.image_size)
    found = []
    for size, count in zip(SIZES, TILES[c.model_type](c), strict=True):
        tiles = rng.normal(size=(count, side, side, 3)).astype(np.float32)
        found.append(types.Picture(tiles, size, count))
    return found


def _by_resolution(config):
    side = config.vision_config.image_size
    shapes = [
        transformers.image_processing_utils.select_best_resolution(
            size[::-1], config.image_grid_pinpoints
        )
        for size in SIZES
    ]
    return [1 + tall // side * (wide // side) for tall, wide in shapes]


TILES = {  # of each picture
    "llava_next": _by_resolution,
    "internvl": lambda config: (3, 1, 2),
    "idefics3": lambda config: (3, 1, 5),
    "smolvlm": lambda config: (1, 5, 3),
}


def inputs(family, shown):
    """What the processor hands to the torch model for these pictures."""
    stacks = [torch.tensor(picture.pixels).permute(0, 3, 1, 2) for picture in shown]
    if family == "internvl":
        return {"pixel_values": torch.cat(stacks)}
    if family == "idefics3":
        return {"pixel_values": torch.cat(stacks)[None]}
    most = max(map(len, stacks))
    padded = torch.stack([torch.cat([s, s.new_zeros(most - len(s), *s.shape[1:])]) for s in stacks])
    return {
        "pixel_values": padded,
        "image_sizes": torch.tensor([picture.size[::-1] for picture in shown]),
    }


def example(family, model):
    """(prompts, responses, images per prompt, pictures) with one, two and no images."""
    shown, rng = pictures(model), np.random.default_rng(0)
    with torch.no_grad():
        features = [
            model.get_image_features(**inputs(family, [one])).pooler_output for one in shown
        ]
    some = lambda n: rng.integers(1, 90, n).tolist()  # noqa: E731
    # A tensor of tiles, or a list of one tensor.
    image = [[checkpoints.IMAGE_TOKEN] * sum(map(len, own)) for own in features]
    prompts = [
        some(3) + image[0] + some(4),
        image[1] + some(2) + image[2] + some(1),
        some(5),
    ]
    responses = [[some(6), some(3)], [some(1), some(4)], [some(5), some(5)]]
    return prompts, responses, [1, 2, 0], shown


PUBLISHED = {  # the shapes of the largest published checkpoints
    "llava_next": transformers.LlavaNextConfig(  # 110B
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        text_config=transformers.Qwen2Config(
            vocab_size=152064,
            hidden_size=8192,
            intermediate_size=49152,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
        ),
        image_token_index=151646,
    ),
    "internvl": transformers.InternVLConfig(  # 78B
        vision_config=transformers.InternVLVisionConfig(
            hidden_size=3200,
            intermediate_size=12800,
            num_hidden_layers=45,
            num_attention_heads=25,
            use_qk_norm=True,
            norm_type="rms_norm",
        ),
        text_config=transformers.Qwen2Config(
            vocab_size=151674,
            hidden_size=8192,
            intermediate_size=29568,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6},
        ),
        tie_word_embeddings=False,
    ),
    "idefics3": transformers.Idefics3Config(  # 8B
        vision_config=transformers.Idefics3VisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=364,
            patch_size=14,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=128259,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        ),
    ),
}
