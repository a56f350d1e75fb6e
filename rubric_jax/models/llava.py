"""LLaVA (`LlavaForConditionalGeneration`): CLIP vision tower, two-layer projector, Llama decoder.

Parameters: vision/..., projector/{up,down}/..., decoder/{embedding,layers,norm,unembedding}.
Liu et al., arXiv:2304.08485 and arXiv:2310.03744.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from huggingface_hub import errors
from jax.sharding import PartitionSpec

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.models import attention, decoder, layers, maps, rows, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

RULES = (
    (r"vision/layers/attn/[qkv]/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"vision/layers/attn/o/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"vision/layers/up/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"vision/layers/down/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"vision/layers/attn/[qkv]/bias", PartitionSpec(None, "tensor")),
    (r"vision/layers/up/bias", PartitionSpec(None, "tensor")),
    (r"vision/patch/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"vision/(class_token|position)", PartitionSpec()),
    (r"projector/up/kernel", PartitionSpec("fsdp", "tensor")),
    (r"projector/down/kernel", PartitionSpec("tensor", "fsdp")),
    (r"projector/up/bias", PartitionSpec("tensor")),
    (r"decoder/embedding", PartitionSpec("tensor", "fsdp")),
    (r"decoder/unembedding", PartitionSpec("fsdp", "tensor")),
    (r"decoder/layers/attn/[qkv]/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"decoder/layers/attn/o/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"decoder/layers/(gate|up)/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"decoder/layers/down/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"decoder/layers/attn/[qkv]/bias", PartitionSpec(None, "tensor")),
    (r"decoder/layers/(gate|up)/bias", PartitionSpec(None, "tensor")),
    (r".*/(bias|scale)", PartitionSpec()),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    vision: vit.Config
    decoder: decoder.Config
    feature_layers: tuple[int, ...]  # after how many vision layers features are taken
    keep_class_token: bool
    projector_activation: str
    projector_bias: bool
    image_token: int

    @property
    def tokens_per_image(self) -> int:
        return self.vision.patches + int(self.keep_class_token)


class Projector(nn.Module):
    config: Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        width, inputs = c.decoder.width, c.vision.width * len(c.feature_layers)
        linear = functools.partial(layers.Linear, dtype=self.dtype, bias=c.projector_bias)
        x = linear((inputs,), (width,), name="up")(x)
        x = layers.ACTIVATIONS[c.projector_activation](x)
        return linear((width,), (width,), name="down")(x)


class Cache(NamedTuple):
    """Where sampling stands: keys and values of every layer, and what the next token needs."""

    layers: attention.Cache  # leading axis: layers
    lengths: Array  # int32 [B], prompt tokens
    step: Array  # int32 scalar, response tokens so far


def build(hf: Mapping[str, Any], *, dtype: str = "float32", remat: str = "none") -> vlm_lib.VLM:
    """The model of a checkpoint's config.json. Raises ValueError on another architecture."""
    config = read_config(hf)
    dtype = jnp.dtype(dtype)
    bind = functools.partial
    return vlm_lib.VLM(
        config=config,
        init=bind(init, config),
        hidden=bind(hidden, config, dtype, remat),
        unembed=bind(unembed, config, dtype),
        prefill=bind(prefill, config, dtype),
        decode=bind(decode, config, dtype),
        media=bind(media, config.image_token, config.tokens_per_image, config.vision.image),
        rules=RULES,
        weights=weight_map(config),
        flops=bind(flops, config),
        depth=config.decoder.depth,
        vocab=config.decoder.vocab,
    )


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32; for shapes (`jax.eval_shape`) and toy models."""
    f32 = jnp.dtype("float32")
    vision, projector, text = jax.random.split(key, 3)
    tower = vit.ViT(config.vision, config.feature_layers, f32, False)
    size, c = config.vision.image, config.vision.channels
    features = jnp.zeros((1, 1, config.vision.width * len(config.feature_layers)))
    model = decoder.Decoder(config.decoder, f32)
    return {
        "vision": tower.init(vision, jnp.zeros((1, size, size, c)))["params"],
        "projector": Projector(config, f32).init(projector, features)["params"],
        "decoder": model.init(text, method=decoder.Decoder.initialise)["params"],
    }


def hidden(config: Config, dtype, remat: str, params, batch: types.Batch, layout: types.Layout):
    """The states that predict each response token: [B, N, T, D]."""
    model = decoder.Decoder(config.decoder, dtype, remat, attention.tree)
    own = {"params": params["decoder"]}
    prompts = _prompts(config, dtype, remat, params, batch)
    responses = model.apply(own, batch.responses, method="embed")  # [B, N, T, D]
    x = rows.pack(prompts, responses, layout)  # [B*M, S, D]
    prefix, length = prompts.shape[2], responses.shape[2]
    lengths = batch.prompt_lengths.reshape(-1)
    where = rows.positions(lengths, prefix, (x.shape[1] - prefix) // length, length)
    tables = rows.tables(decoder.angles(config.decoder, where), lengths, prefix, length)
    x, _ = model.apply(own, x, None, tables)
    return rows.unpack(x, batch.prompt_lengths, prefix, layout)


def unembed(config: Config, dtype, params) -> Array:
    model = decoder.Decoder(config.decoder, dtype)
    return model.apply({"params": params["decoder"]}, method="unembed")


def prefill(config: Config, dtype, params, batch: types.Batch, branches: int, length: int):
    """Reads the first context's prompts. Returns the last states [B, D] and an empty cache."""
    model = decoder.Decoder(config.decoder, dtype, attend=attention.prefill)
    first = batch._replace(
        prompts=batch.prompts[:, :1],
        prompt_lengths=batch.prompt_lengths[:, :1],
        media={k: v[:, :1] if k == "index" else v for k, v in batch.media.items()},
    )
    x = _prompts(config, dtype, "none", params, first)[:, 0]  # [B, P, D]
    lengths, prefix = first.prompt_lengths[:, 0], x.shape[1]
    where = rows.positions(lengths, prefix, 0, 0)
    tables = rows.tables(decoder.angles(config.decoder, where), lengths, prefix, 0)
    x, (k, v) = model.apply({"params": params["decoder"]}, x, None, tables)
    last = jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    room = jnp.zeros((*k.shape[:2], branches, length, *k.shape[3:]), k.dtype)
    return last, Cache(attention.Cache(k, v, room, room), lengths, jnp.zeros((), jnp.int32))


def decode(config: Config, dtype, params, cache: Cache, ids: Array):
    """Reads one token of every continuation: ids [B, N] -> states [B, N, D] and the cache."""
    model = decoder.Decoder(config.decoder, dtype, attend=attention.decode)
    own = {"params": params["decoder"]}
    prefix, length = cache.layers.prefix_k.shape[2], cache.layers.own_k.shape[3]
    where = jnp.broadcast_to((cache.lengths + cache.step)[:, None], ids.shape)
    tables = rows.tables(decoder.angles(config.decoder, where), cache.lengths, prefix, 0)
    tables = tables._replace(own=(jnp.arange(length) <= cache.step)[None])
    x = model.apply(own, ids, method="embed")  # [B, N, D]
    x, kept = model.apply(own, x, cache.layers, tables)
    return x, Cache(kept, cache.lengths, cache.step + 1)


def media(
    image_token: int,
    tokens_per_image: int,
    side: int,
    prompts: np.ndarray,
    tables: Sequence[Sequence[np.ndarray]],
    slots: Sequence[Sequence[Sequence[int]]],
    size: int,
) -> dict[str, np.ndarray]:
    """Lays out the images of a batch on the host; see types.Batch.media.

    Args:
      prompts: int32 [B, M, P] with placeholders expanded.
      tables: per group its distinct images, float32 [side, side, 3].
      slots: slots[b][m] lists the table entries that prompt (b, m) shows, in order.
      size: I, the entries of every group's table (zeros fill it up).
    """
    pixels = np.zeros((len(tables), size, side, side, 3), np.float32)
    for group, table in enumerate(tables):
        for entry, image in enumerate(table):
            if image.shape != pixels.shape[2:]:
                raise ValueError(
                    f"The image processor gave {image.shape}, but the vision tower reads "
                    f"{pixels.shape[2:]}; processor and config.json are from different models."
                )
            pixels[group, entry] = image
    index = np.full(prompts.shape, -1, np.int32)
    for b, m in np.ndindex(prompts.shape[:2]):
        (at,) = np.nonzero(prompts[b, m] == image_token)
        wanted = len(slots[b][m]) * tokens_per_image
        if len(at) != wanted:
            raise ValueError(
                f"A prompt has {len(at)} image tokens, but {len(slots[b][m])} images need {wanted}."
            )
        first = np.repeat(np.asarray(slots[b][m], np.int32) * tokens_per_image, tokens_per_image)
        index[b, m, at] = first + np.tile(np.arange(tokens_per_image), len(slots[b][m]))
    return {"pixels": pixels, "index": index}


def flops(config: Config, layout: types.Layout, prompt: int, response: int, images: float) -> float:
    """Required FLOPs of one instance's forward pass, each prefix and image counted once."""
    c = config.decoder
    total = images * vit.flops(config.vision)
    total += images * config.tokens_per_image * 2 * c.width * (config.vision.width + c.width)
    for m in range(len(layout.contexts)):
        total += decoder.flops(c, prompt, len(layout.branches_of(m)), response)
    return total + 2 * len(layout.branches) * response * c.width * c.vocab


def _prompts(config: Config, dtype, remat: str, params, batch: types.Batch) -> Array:
    """Prompt embeddings with image features in place of the placeholders: [B, M, P, D]."""
    model = decoder.Decoder(config.decoder, dtype)
    x = model.apply({"params": params["decoder"]}, batch.prompts, method="embed")
    pixels, index = batch.media["pixels"], batch.media["index"]
    groups, size = pixels.shape[:2]
    if size == 0:
        return x
    features = _features(config, dtype, remat, params, pixels)  # [G, I*L, D]
    grouped = index.reshape(groups, -1)
    taken = jnp.take_along_axis(features, jnp.maximum(grouped, 0)[:, :, None], axis=1)
    return jnp.where((index >= 0)[..., None], taken.reshape(x.shape), x)


def _features(config: Config, dtype, remat: str, params, pixels: Array) -> Array:
    """Pixels [G, I, H, W, 3] -> projected features [G, I * tokens_per_image, D]."""
    groups = pixels.shape[0]
    deepest = max(config.feature_layers)
    tower = vit.ViT(
        dataclasses.replace(config.vision, depth=deepest),
        config.feature_layers,
        dtype,
        remat != "none",
    )
    own = dict(params["vision"])
    own["layers"] = jax.tree.map(lambda p: p[:deepest], own["layers"])
    x = layers.shard_rows(pixels.reshape(-1, *pixels.shape[2:]))
    x = tower.apply({"params": own}, x)  # [G*I, 1 + patches, width]
    x = x if config.keep_class_token else x[:, 1:]
    x = Projector(config, dtype).apply({"params": params["projector"]}, x)
    return x.reshape(groups, -1, x.shape[-1])


def read_config(hf: Mapping[str, Any]) -> Config:
    """Parses config.json (as on the Hub, or as transformers 5 writes it)."""
    kind = hf.get("model_type")
    text_kind = hf.get("text_config", {}).get("model_type", "llama")
    vision_kind = hf.get("vision_config", {}).get("model_type", "clip_vision_model")
    if (kind, text_kind, vision_kind) != ("llava", "llama", "clip_vision_model"):
        raise ValueError(
            f"config.json describes {kind!r} (text {text_kind!r}, vision {vision_kind!r}); the "
            "family 'llava' reads 'llava' with a 'llama' decoder and a 'clip_vision_model' tower."
        )
    try:
        known = transformers.LlavaConfig.from_dict(dict(hf))
    except errors.StrictDataclassError as error:
        raise ValueError(f"config.json is not a valid LLaVA configuration: {error}") from error
    text, vision = known.text_config, known.vision_config
    feature_layers = known.vision_feature_layer
    if isinstance(feature_layers, int):
        feature_layers = (feature_layers,)
    depth = vision.num_hidden_layers
    after = tuple(k if k >= 0 else depth + 1 + k for k in feature_layers)
    if not all(0 < k <= depth for k in after):
        raise ValueError(f"vision_feature_layer {feature_layers} is outside the {depth} layers.")
    for name in (vision.hidden_act, text.hidden_act, known.projector_hidden_act):
        if name not in layers.ACTIVATIONS:
            known_names = config_lib.one_of(name, layers.ACTIVATIONS)
            raise ValueError(f"config.json asks for activation {name!r}; it must be {known_names}")
    return Config(
        vision=vit.Config(
            image=vision.image_size,
            patch=vision.patch_size,
            channels=vision.num_channels,
            width=vision.hidden_size,
            depth=depth,
            heads=vision.num_attention_heads,
            mlp=vision.intermediate_size,
            activation=vision.hidden_act,
            norm_eps=vision.layer_norm_eps,
        ),
        decoder=_text_config(text, tied=known.tie_word_embeddings),
        feature_layers=after,
        keep_class_token=known.vision_feature_select_strategy == "full",
        projector_activation=known.projector_hidden_act,
        projector_bias=known.multimodal_projector_bias,
        image_token=known.image_token_index,
    )


def _text_config(text, *, tied: bool) -> decoder.Config:
    head_size = text.head_dim or text.hidden_size // text.num_attention_heads
    rope = text.rope_parameters
    return decoder.Config(
        vocab=text.vocab_size,
        width=text.hidden_size,
        depth=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        head_size=head_size,
        mlp=text.intermediate_size,
        activation=text.hidden_act,
        norm_eps=text.rms_norm_eps,
        frequencies=decoder.frequencies(head_size, rope["rope_theta"], rope),
        attention_bias=text.attention_bias,
        mlp_bias=text.mlp_bias,
        tied=tied,
    )


_SPELLINGS = (  # Hub and transformers 4; transformers 4.52 and later in memory
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
)


def weight_map(config: Config) -> weights.Map:
    """Every tensor of the checkpoint and the parameter that it becomes."""
    ignored = [
        (r".*\.position_ids", "a buffer: 0, 1, 2, ..."),
        (r".*\.rotary_emb\.inv_freq", "a buffer: the rotary frequencies"),
    ]
    if config.decoder.tied:
        ignored.append((r"language_model\.lm_head\.weight", "tied to the embedding"))
    width, bias = config.decoder.width, config.projector_bias
    inputs = config.vision.width * len(config.feature_layers)
    name = "multi_modal_projector.linear"
    listed = (
        *maps.clip(config.vision, "vision_tower", "vision"),
        *maps.linear(f"{name}_1", width, inputs, "projector/up", bias),
        *maps.linear(f"{name}_2", width, width, "projector/down", bias),
        *maps.llama(config.decoder, "language_model", "decoder"),
    )
    return weights.Map(listed, _SPELLINGS, tuple(ignored))
