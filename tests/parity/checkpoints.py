"""Small random LLaVA checkpoints, saved by transformers in its own format."""

import torch
import transformers

IMAGE_TOKEN = 95
VIDEO_TOKEN = 96


def llava(
    directory,
    *,
    seed=0,
    heads=4,
    key_heads=2,
    tied=False,
    feature_layer=-2,
    strategy="default",
    attention_bias=False,
    projector_bias=True,
    vision_depth=3,
    rope=None,
):
    """A random checkpoint with no zero or one in its biases and norms; returns the torch model."""
    text = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        attention_bias=attention_bias,
        tie_word_embeddings=tied,
        max_position_embeddings=512,
        **({"rope_parameters": rope} if rope else {}),
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=vision_depth,
        num_attention_heads=3,
        image_size=16,
        patch_size=8,
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        multimodal_projector_bias=projector_bias,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = transformers.LlavaForConditionalGeneration(config)
    return save_random(model, directory, seed, norms=1.0)


def siglip(**changes):
    """A small SigLIP tower's configuration."""
    return transformers.SiglipVisionConfig(
        **{
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 16,
            "patch_size": 8,
            "vision_use_head": False,
            **changes,
        }
    )


def paligemma(directory, *, seed=0, generation=1, vision=None, **text):
    """A random PaliGemma checkpoint of either generation; returns the torch model."""
    values = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 12,
        **text,
    }
    known = transformers.Gemma2Config if generation == 2 else transformers.GemmaConfig
    config = transformers.PaliGemmaConfig(
        vision_config=siglip(**(vision or {})),
        text_config=known(**values),
        image_token_index=IMAGE_TOKEN,
        projection_dim=values["hidden_size"],
        hidden_size=values["hidden_size"],
        tie_word_embeddings=values.get("tie_word_embeddings", True),
        attn_implementation="eager",
    )
    return save_random(transformers.PaliGemmaForConditionalGeneration(config), directory, seed)


def gemma3(directory, *, seed=0, vision=None, tokens=4, **text):
    """A random Gemma 3 checkpoint; returns the torch model."""
    config = transformers.Gemma3Config(
        vision_config=siglip(**(vision or {})),
        text_config=transformers.Gemma3TextConfig(
            **{
                "vocab_size": 97,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "sliding_window": 6,
                "sliding_window_pattern": 3,
                **text,
            }
        ),
        image_token_index=IMAGE_TOKEN,
        mm_tokens_per_image=tokens,
        tie_word_embeddings=text.get("tie_word_embeddings", True),
        attn_implementation="eager",
    )
    return save_random(transformers.Gemma3ForConditionalGeneration(config), directory, seed)


def save_random(model, directory, seed, *, norms=0.0):
    """Parameters without a zero or one in biases and norms (which are about `norms`), saved."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            around = norms if "norm" in name and name.endswith("weight") else 0.0
            tensor.copy_(around + 0.2 * torch.randn_like(tensor))
    model.save_pretrained(directory)
    return model.eval()


def qwen2_5_vl(directory, *, seed=0, vision=None, tied=False, sections=(1, 2, 1), **text):
    """A random Qwen2.5-VL checkpoint, windows of 2 x 2 cells; returns the torch model."""
    text = _qwen_text(sections, text)
    vision = _qwen_vision(text, {"window_size": 8, "fullatt_block_indexes": [1], **(vision or {})})
    config = transformers.Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return save_random(model, directory, seed, norms=1.0)


def qwen3_vl(directory, *, seed=0, vision=None, tied=False, sections=(1, 1, 1), **text):
    """A random Qwen3-VL checkpoint with a 3 x 3 table of positions; returns the torch model."""
    text = _qwen_text(sections, {"head_dim": 6, **text})
    own = {"num_position_embeddings": 9, "deepstack_visual_indexes": [0, 1]}
    config = transformers.Qwen3VLConfig(
        vision_config=_qwen_vision(text, {**own, **(vision or {})}),
        text_config=text,
        image_token_id=IMAGE_TOKEN,
        video_token_id=VIDEO_TOKEN,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model = transformers.Qwen3VLForConditionalGeneration(config)
    return save_random(model, directory, seed, norms=1.0)


def _qwen_text(sections, changes):
    return {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": list(sections),
        },
        **changes,
    }


def _qwen_vision(text, changes):
    return {
        "depth": 3,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_heads": 2,
        "patch_size": 2,
        "out_hidden_size": text["hidden_size"],
        **changes,
    }
