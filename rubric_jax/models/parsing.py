"""What families share in reading config.json; transformers' own classes fill in its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import errors

from rubric_jax import config as config_lib
from rubric_jax.models import decoder, layers, vit

CLIP = "clip_vision_model"
SIGLIP = "siglip_vision_model"


def parse(
    known: type,
    hf: Mapping[str, Any],
    family: str,
    *,
    decoders: Sequence[str],
    towers: Sequence[str],
) -> Any:
    """config.json through transformers' class. ValueError where it is not one of `family`."""
    kind = hf.get("model_type")
    if kind != known.model_type:
        raise ValueError(
            f"config.json describes {kind!r}; the family {family!r} reads checkpoints of "
            f"model_type {known.model_type!r}."
        )
    try:
        found = known.from_dict(dict(hf))
    except errors.StrictDataclassError as error:
        raise ValueError(f"config.json is not a valid {family} configuration: {error}") from error
    text, vision = found.text_config.model_type, found.vision_config.model_type
    if text not in decoders or vision not in towers:
        raise ValueError(
            f"config.json has the decoder {text!r} and the vision tower {vision!r}; the family "
            f"{family!r} reads {' or '.join(decoders)} with {' or '.join(towers)}."
        )
    return found


def activation(name: str) -> str:
    """The name of an activation, if it is a known one."""
    if name not in layers.ACTIVATIONS:
        known = config_lib.one_of(name, layers.ACTIVATIONS)
        raise ValueError(f"config.json asks for activation {name!r}; it must be {known}")
    return name


def tower(vision, **options) -> vit.Config:
    """The tower of a vision_config; `options` are what its kind does not leave at the default."""
    return vit.Config(
        image=_side(vision, "image_size"),
        patch=_side(vision, "patch_size"),
        channels=vision.num_channels,
        width=vision.hidden_size,
        depth=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp=vision.intermediate_size,
        activation=activation(vision.hidden_act),
        norm_eps=vision.layer_norm_eps,
        **options,
    )


def siglip(vision) -> vit.Config:
    """The tower of a SigLIP vision_config, or of one that differs in nothing that counts here."""
    if getattr(vision, "vision_use_head", False):
        raise ValueError(
            "config.json gives the SigLIP tower a pooling head (vision_use_head), which no family "
            "here reads; set vision_config.vision_use_head to false."
        )
    return tower(vision, class_token=False, patch_bias=True, pre_norm=False)


def llama(text, *, tied: bool) -> decoder.Config:
    """The decoder of a Llama or of its kin.

              biases                      norms of queries, keys    windows
    llama     as the config says          no                        no
    mistral   none                        no                        in all layers, or in none
    qwen2     of queries, keys, values    no                        in some layers, or in none
    qwen3     as the config says          yes                       in some layers, or in none
    """
    kind, rope, longest = text.model_type, text.rope_parameters, 0
    if rope.get("rope_type") == "dynamic":  # begins behind max_position_embeddings
        rope, longest = {**rope, "rope_type": "default"}, text.max_position_embeddings
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    window = getattr(text, "sliding_window", None) or 0
    if hasattr(text, "layer_types"):
        windows = tuple(window * (layer == "sliding_attention") for layer in text.layer_types)
    else:
        windows = (window,) * text.num_hidden_layers
    return decoder.Config(
        vocab=text.vocab_size,
        width=text.hidden_size,
        depth=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_size=size,
        mlp=text.intermediate_size,
        activation=activation(text.hidden_act),
        norm_eps=text.rms_norm_eps,
        frequencies=decoder.frequencies(size, rope["rope_theta"], rope),
        longest=longest,
        attention_bias=kind == "qwen2" or getattr(text, "attention_bias", False),
        output_bias=False if kind == "qwen2" else None,
        mlp_bias=getattr(text, "mlp_bias", False),
        tied=tied,
        query_key_norm=kind == "qwen3",
        windows=windows if any(windows) else (),
    )


def _side(vision, name: str) -> int:
    """A size that may be written as a number or as two."""
    value = getattr(vision, name)
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ValueError(
            f"config.json has vision_config.{name} {list(value)}; only squares are read."
        )
    return sides.pop()
