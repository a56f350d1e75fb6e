"""What PaliGemma and Gemma 3 share: decoders of the three Gemma generations, and SigLIP.

            norms                          attention                                    logits
  gemma     before attention and MLP       all layers see everything                    as they are
  gemma2    also behind them               every other layer has a window; capped       capped
  gemma3    also on queries and keys       five of six layers have a window and a       as they are
                                           rotary base of their own

Gemma Team, arXiv:2403.08295, arXiv:2408.00118 and arXiv:2503.19786; Zhai et al. (SigLIP),
arXiv:2303.15343.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import errors

from rubric_jax import config as config_lib
from rubric_jax.models import decoder, layers, vit


def parse(known: type, hf: Mapping[str, Any], family: str, decoders: tuple[str, ...]) -> Any:
    """config.json through transformers' own class, with its defaults filled in.

    Raises ValueError where the architecture, an activation or a shape is not `family`'s.
    """
    kind = hf.get("model_type")
    if kind != family:
        raise ValueError(
            f"config.json describes {kind!r}; the family {family!r} reads checkpoints of "
            f"model_type {family!r}."
        )
    try:
        found = known.from_dict(dict(hf))
    except errors.StrictDataclassError as error:
        raise ValueError(f"config.json is not a valid {family} configuration: {error}") from error
    text, vision = found.text_config, found.vision_config
    if text.model_type not in decoders or vision.model_type != "siglip_vision_model":
        raise ValueError(
            f"config.json has the decoder {text.model_type!r} and the vision tower "
            f"{vision.model_type!r}; {family!r} reads {' or '.join(decoders)} with "
            "'siglip_vision_model'."
        )
    return found


def text_config(text, *, tied: bool) -> decoder.Config:
    """The decoder of a text_config of any of the three generations."""
    kind, size = text.model_type, text.head_dim
    first = kind == "gemma"
    activation = _activation(text.hidden_act if first else text.hidden_activation)
    rope = text.rope_parameters
    everywhere = rope["full_attention"] if kind == "gemma3_text" else rope
    local = rope["sliding_attention"] if kind == "gemma3_text" else None
    windows: tuple[int, ...] = ()
    if not first and text.sliding_window is not None:
        sliding = [layer == "sliding_attention" for layer in text.layer_types]
        windows = tuple(text.sliding_window if there else 0 for there in sliding)
    return decoder.Config(
        vocab=text.vocab_size,
        width=text.hidden_size,
        depth=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_size=size,
        mlp=text.intermediate_size,
        activation=activation,
        norm_eps=text.rms_norm_eps,
        frequencies=decoder.frequencies(size, everywhere["rope_theta"], everywhere),
        local_frequencies=decoder.frequencies(size, local["rope_theta"], local) if local else (),
        attention_bias=text.attention_bias,
        mlp_bias=False,
        tied=tied,
        embed_scale=text.hidden_size**0.5,
        norm_offset=1.0,
        sandwich=not first,
        query_key_norm=kind == "gemma3_text",
        query_scale=0.0 if first else text.query_pre_attn_scalar**-0.5,
        attention_cap=(text.attn_logit_softcapping or 0.0) if kind == "gemma2" else 0.0,
        windows=windows if any(windows) else (),
    )


def vision_config(vision) -> vit.Config:
    """The tower of a SigLIP vision_config."""
    if getattr(vision, "vision_use_head", False):
        raise ValueError(
            "config.json gives the SigLIP tower a pooling head (vision_use_head), which no "
            "PaliGemma or Gemma 3 reads; set vision_config.vision_use_head to false."
        )
    return vit.Config(
        image=vision.image_size,
        patch=vision.patch_size,
        channels=vision.num_channels,
        width=vision.hidden_size,
        depth=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp=vision.intermediate_size,
        activation=_activation(vision.hidden_act),
        norm_eps=vision.layer_norm_eps,
        class_token=False,
        patch_bias=True,
        pre_norm=False,
    )


def _activation(name: str) -> str:
    if name not in layers.ACTIVATIONS:
        known = config_lib.one_of(name, layers.ACTIVATIONS)
        raise ValueError(f"config.json asks for activation {name!r}; it must be {known}")
    return name
