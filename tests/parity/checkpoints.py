"""Small random LLaVA checkpoints, saved by transformers in its own format."""

import torch
import transformers

IMAGE_TOKEN = 95


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
    torch.manual_seed(seed)
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
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn_like(tensor)
            around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            tensor.copy_(around + 0.2 * noise)
    model.save_pretrained(directory)
    return model.eval()
