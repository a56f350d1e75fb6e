"""Decoder-only VLMs: image features take the place of placeholders in the prompt.

  prompt ids    Q : <i> <i> <i> <i> what ? A :        <i> = the image token, once per feature
  index        -1 -1  0   1   2   3  -1  -1 -1 -1     row of the group's feature table

A family gives its `Parts`: the decoder, how pixels become features, and which prefix tokens see
each other both ways. Everything else about such models is here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from rubric_jax import types
from rubric_jax.models import attention, decoder, rows, vit, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

# Of the vision tower `vision` and the decoder `decoder`; a family adds what stands between them.
RULES = (
    (r"vision/layers/attn/[qkv]/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"vision/layers/attn/o/kernel", PartitionSpec(None, "tensor", None, "fsdp")),
    (r"vision/layers/up/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"vision/layers/down/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"vision/layers/attn/[qkv]/bias", PartitionSpec(None, "tensor")),
    (r"vision/layers/up/bias", PartitionSpec(None, "tensor")),
    (r"vision/patch/kernel", PartitionSpec(None, None, None, "fsdp")),
    (r"vision/(class_token|position)", PartitionSpec()),
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

# Names as on the Hub (transformers 4) and as later releases write them, made one; see weights.Map.
SPELLINGS = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^vision_tower\.vision_model\.", "vision_tower."),
)

# Canonical names of modules as transformers 5 has them in memory, where peft finds them.
MODULES = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
)


class Parts(NamedTuple):
    """What tells one family from another. Static, all of it."""

    decoder: decoder.Config
    vision: vit.Config
    # (parameters, pixels [X, H, W, c], dtype, remat) -> [X, tokens_per_image, decoder width]
    features: Callable[[Params, Array, Any, bool], Array]
    image_token: int
    tokens_per_image: int
    # (index [R, P], valid [R, P]) -> blocks int32 [R, P] (see attention), or None: causal
    blocks: Callable[[Array, Array], Array] | None = None
    logit_cap: float = 0.0
    projector_flops: float = 0.0  # of one image


class Cache(NamedTuple):
    """Where sampling stands: keys and values of every layer, and what the next token needs."""

    layers: attention.Cache  # leading axis: layers
    lengths: Array  # int32 [B], prompt tokens
    step: Array  # int32 scalar, response tokens so far


def build(
    parts: Parts,
    config: Any,
    init: Callable[[jax.Array], Params],
    rules: tuple,
    spec: weights.Map,
    *,
    dtype: str,
    remat: str,
) -> vlm_lib.VLM:
    """The VLM of a family's parts; `config` is what tells two checkpoints' functions apart."""
    dtype = jnp.dtype(dtype)
    bind = functools.partial
    return vlm_lib.VLM(
        config=config,
        init=init,
        hidden=bind(hidden, parts, dtype, remat),
        unembed=bind(unembed, parts, dtype),
        prefill=bind(prefill, parts, dtype),
        decode=bind(decode, parts, dtype),
        media=bind(media, parts.image_token, parts.tokens_per_image, parts.vision.image),
        rules=rules,
        weights=spec,
        flops=bind(flops, parts),
        depth=parts.decoder.depth,
        vocab=parts.decoder.vocab,
        logit_cap=parts.logit_cap,
    )


def init(
    vision: vit.Config,
    text: decoder.Config,
    vision_key: jax.Array,
    text_key: jax.Array,
    depths: tuple[int, ...] = (),
) -> Params:
    """Random parameters of the tower (see vit.ViT for `depths`) and the decoder, float32."""
    f32 = jnp.dtype("float32")
    pixels = jnp.zeros((1, vision.image, vision.image, vision.channels))
    tower, model = vit.ViT(vision, depths, f32, False), decoder.Decoder(text, f32)
    return {
        "vision": tower.init(vision_key, pixels)["params"],
        "decoder": model.init(text_key, method=decoder.Decoder.initialise)["params"],
    }


def weight_map(listed: tuple[weights.Weight, ...], text: decoder.Config) -> weights.Map:
    """The map of a family's tensors, with the spellings that all families share."""
    tied = ((r"language_model\.lm_head\.weight", "tied to the embedding"),) if text.tied else ()
    ignored = (
        (r".*\.position_ids", "a buffer: 0, 1, 2, ..."),
        (r".*\.rotary_emb\.inv_freq", "a buffer: the rotary frequencies"),
        *tied,
    )
    return weights.Map(listed, SPELLINGS, ignored, MODULES)


def hidden(
    parts: Parts,
    dtype,
    remat: str,
    params,
    batch: types.Batch,
    layout: types.Layout,
    last: bool = False,
):
    """The states that predict each response token, [B, N, T, D]; `last`: see rows.unpack."""
    model = decoder.Decoder(parts.decoder, dtype, remat, attention.tree)
    own = {"params": params["decoder"]}
    prompts = _prompts(parts, dtype, remat, params, batch)
    responses = model.apply(own, batch.responses, method="embed")  # [B, N, T, D]
    x = rows.pack(prompts, responses, layout)  # [B*M, S, D]
    prefix, length = prompts.shape[2], responses.shape[2]
    lengths = batch.prompt_lengths.reshape(-1)
    where = rows.positions(lengths, prefix, (x.shape[1] - prefix) // length, length)
    index = batch.media["index"].reshape(-1, prefix)
    x, _ = model.apply(own, x, None, _tables(parts, where, lengths, index, length))
    return rows.unpack(x, batch.prompt_lengths, prefix, layout, last)


def unembed(parts: Parts, dtype, params) -> Array:
    """[D, V]."""
    model = decoder.Decoder(parts.decoder, dtype)
    return model.apply({"params": params["decoder"]}, method="unembed")


def prefill(parts: Parts, dtype, params, batch: types.Batch, branches: int, length: int):
    """Reads the first context's prompts. Returns the last states [B, D] and an empty cache."""
    model = decoder.Decoder(parts.decoder, dtype, attend=attention.prefill)
    first = batch._replace(
        prompts=batch.prompts[:, :1],
        prompt_lengths=batch.prompt_lengths[:, :1],
        media={k: v[:, :1] if k == "index" else v for k, v in batch.media.items()},
    )
    x = _prompts(parts, dtype, "none", params, first)[:, 0]  # [B, P, D]
    lengths, prefix = first.prompt_lengths[:, 0], x.shape[1]
    where = rows.positions(lengths, prefix, 0, 0)
    tables = _tables(parts, where, lengths, first.media["index"][:, 0], 0)
    x, (k, v) = model.apply({"params": params["decoder"]}, x, None, tables)
    last = jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    room = jnp.zeros((*k.shape[:2], branches, length, *k.shape[3:]), k.dtype)
    return last, Cache(attention.Cache(k, v, room, room), lengths, jnp.zeros((), jnp.int32))


def decode(parts: Parts, dtype, params, cache: Cache, ids: Array):
    """Reads one token of every continuation: ids [B, N] -> states [B, N, D] and the cache."""
    model = decoder.Decoder(parts.decoder, dtype, attend=attention.decode)
    own = {"params": params["decoder"]}
    prefix, length = cache.layers.prefix_k.shape[2], cache.layers.own_k.shape[3]
    where = jnp.broadcast_to((cache.lengths + cache.step)[:, None], ids.shape)
    tables = _tables(parts, where, cache.lengths, jnp.zeros((1, prefix), jnp.int32), 0)
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


def flops(parts: Parts, layout: types.Layout, prompt: int, response: int, images: float) -> float:
    """Required FLOPs of one instance's forward pass, each prefix and image counted once."""
    c = parts.decoder
    total = images * (vit.flops(parts.vision) + parts.projector_flops)
    for m in range(len(layout.contexts)):
        total += decoder.flops(c, prompt, len(layout.branches_of(m)), response)
    return total + 2 * len(layout.branches) * response * c.width * c.vocab


def _tables(parts: Parts, where: Array, lengths: Array, index: Array, length: int):
    c = parts.decoder
    angles = decoder.angles(c.frequencies, where)
    tables = rows.tables(angles, lengths, index.shape[1], length)
    if c.local_frequencies:
        tables = tables._replace(local_angles=decoder.angles(c.local_frequencies, where))
    if parts.blocks is not None:
        tables = tables._replace(blocks=parts.blocks(index, tables.valid))
    return tables


def _prompts(parts: Parts, dtype, remat: str, params, batch: types.Batch) -> Array:
    """Prompt embeddings with image features in place of the placeholders: [B, M, P, D]."""
    model = decoder.Decoder(parts.decoder, dtype)
    x = model.apply({"params": params["decoder"]}, batch.prompts, method="embed")
    pixels, index = batch.media["pixels"], batch.media["index"]
    groups, size = pixels.shape[:2]
    if size == 0:
        return x
    flat = pixels.reshape(-1, *pixels.shape[2:])
    features = parts.features(params, flat, dtype, remat != "none")  # [G*I, L, D]
    features = features.reshape(groups, -1, features.shape[-1])
    grouped = index.reshape(groups, -1)
    taken = jnp.take_along_axis(features, jnp.maximum(grouped, 0)[:, :, None], axis=1)
    return jnp.where((index >= 0)[..., None], taken.reshape(x.shape), x)


def whole_prefix(index: Array, valid: Array) -> Array:
    """One block: every token of the prefix sees all of it. See `Parts.blocks`."""
    return jnp.where(valid, 0, -1)


def each_image(index: Array, valid: Array) -> Array:
    """A block per run of image features. See `Parts.blocks`."""
    image = index >= 0
    starts = image & ~jnp.pad(image, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(image, jnp.cumsum(starts, axis=1) - 1, -1)
