"""Decoder-only VLMs: image features take the place of placeholders in the prompt.

  prompt ids    Q : <i> <i> <i> <i> what ? A :        <i> = the image token, once per feature
  index        -1 -1  0   1   2   3  -1  -1 -1 -1     row of the group's feature table

A family gives its `Parts`: the decoder, how pixels become features, and which prefix tokens see
each other both ways. Everything else about such models is here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from rubric_jax import types
from rubric_jax.models import attention, decoder, layers, rows, vit, weights
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


_OF_PROMPTS = ("index", "positions", "behind")  # the media with one entry per prompt


class Features(NamedTuple):
    """What the vision side makes of each group's table."""

    values: Array  # [G, F, D], F features a group
    # [L, G, F, D], added behind each of the decoder's first L layers; None = to no layer
    deep: Array | None = None


class Arrangement(NamedTuple):
    """How a family lays out pictures on the host. Picklable, for loader processes."""

    image_token: int
    # (tables of pictures, entries per table, cells per entry) -> media without `index`
    arrange: Callable[..., dict[str, np.ndarray]]
    # (picture, its first entry, entries per table, cells per entry) -> the rows of Features.values
    # that its placeholders read, in order
    reads: Callable[[types.Picture, int, int, int], np.ndarray]
    # (image tokens of a prompt bool [P], its pictures) -> (positions int32 [P, 3], how far the end
    # is behind the count of tokens), or None: 0, 1, 2, ...
    positions: Callable[[np.ndarray, list[types.Picture]], tuple[np.ndarray, int]] | None = None


def entries(image_token: int, side: int, tokens: int) -> Arrangement:
    """Entries of [side, side, 3] with `tokens` features each, read one after the other."""
    arrange = functools.partial(squares, side)
    return Arrangement(image_token, arrange, functools.partial(runs, tokens))


class Parts(NamedTuple):
    """What tells one family from another. Static, all of it."""

    decoder: decoder.Config
    media: Arrangement
    # (parameters, media, dtype, remat) -> Features
    features: Callable[[Params, Mapping[str, Array], Any, bool], Features]
    # of an entry with so many cells: tower and projector
    picture_flops: Callable[[float], float]
    # (index [R, P], valid [R, P]) -> blocks int32 [R, P] (see attention), or None: causal
    blocks: Callable[[Array, Array], Array] | None = None
    logit_cap: float = 0.0


class Cache(NamedTuple):
    """Where sampling stands: keys and values of every layer, and what the next token needs.

    On one CPU it holds the decoder's layers a second time, one by one.
    """

    # Leading axis: layers; or one by one, where `apart` holds the parameters of each layer.
    layers: attention.Cache | tuple[attention.Cache, ...]
    apart: tuple[Params, ...]  # on one CPU; see decoder.decode
    lengths: Array  # int32 [B], prompt tokens
    start: Array  # int32 [B], position of the first response token
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
    attention: str,
) -> vlm_lib.VLM:
    """The VLM of a family's parts; `config` is what tells two checkpoints' functions apart."""
    dtype = jnp.dtype(dtype)
    bind = functools.partial
    return vlm_lib.VLM(
        config=config,
        init=init,
        hidden=bind(hidden, parts, dtype, remat, attention),
        unembed=bind(unembed, parts, dtype),
        prefill=bind(prefill, parts, dtype, attention),
        decode=bind(decode, parts, dtype),
        media=bind(media, parts.media),
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
    route: str,
    params,
    batch: types.Batch,
    layout: types.Layout,
    last: bool = False,
):
    """The states that predict each response token, [B, N, T, D]; `last`: see rows.unpack."""
    _check_length(parts, batch.prompts.shape[2] + batch.responses.shape[2])
    attend = functools.partial(attention.tree, route=route)
    model = decoder.Decoder(parts.decoder, dtype, remat, attend)
    own = {"params": params["decoder"]}
    prompts, deep = _prompts(parts, dtype, remat, params, batch)
    responses = model.apply(own, batch.responses, method="embed")  # [B, N, T, D]
    x = rows.pack(prompts, responses, layout)  # [B*M, S, D]
    prefix, length = prompts.shape[2], responses.shape[2]
    lengths = batch.prompt_lengths.reshape(-1)
    where = _positions(batch, (x.shape[1] - prefix) // length, length)
    index = batch.media["index"].reshape(-1, prefix)
    x, _ = model.apply(own, x, None, _tables(parts, where, lengths, index, length), deep)
    return rows.unpack(x, batch.prompt_lengths, prefix, layout, last)


def unembed(parts: Parts, dtype, params) -> Array:
    """[D, V]."""
    model = decoder.Decoder(parts.decoder, dtype)
    return model.apply({"params": params["decoder"]}, method="unembed")


def prefill(
    parts: Parts, dtype, route: str, params, batch: types.Batch, branches: int, length: int
):
    """Reads the first context's prompts. Returns the last states [B, D] and an empty cache."""
    _check_length(parts, batch.prompts.shape[2] + length)
    attend = functools.partial(attention.prefill, route=route)
    model = decoder.Decoder(parts.decoder, dtype, attend=attend)
    first = batch._replace(
        prompts=batch.prompts[:, :1],
        prompt_lengths=batch.prompt_lengths[:, :1],
        media={k: v[:, :1] if k in _OF_PROMPTS else v for k, v in batch.media.items()},
    )
    x, deep = _prompts(parts, dtype, "none", params, first)
    x, lengths = x[:, 0], first.prompt_lengths[:, 0]  # [B, P, D]
    where = _positions(first, 1, 1)  # one token more: where responses start
    start = where[:, -1].reshape(x.shape[0], -1)[:, 0]
    tables = _tables(parts, where[:, :-1], lengths, first.media["index"][:, 0], 0)
    x, (k, v) = model.apply({"params": params["decoder"]}, x, None, tables, deep)
    last = jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    room = jnp.zeros((*k.shape[:2], branches, k.shape[2], length, k.shape[4]), k.dtype)
    kept, apart = attention.Cache(k, v, room, room), ()
    if layers.one_cpu():
        kept, apart = (_one_by_one(x) for x in (kept, params["decoder"]["layers"]))
    return last, Cache(kept, apart, lengths, start, jnp.zeros((), jnp.int32))


def _one_by_one(stacked: Any) -> tuple:
    """A tree with a leading axis of layers -> one tree for each."""
    depth = jax.tree.leaves(stacked)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth))


def decode(parts: Parts, dtype, params, cache: Cache, ids: Array):
    """Reads one token of every continuation: ids [B, N] -> states [B, N, D] and the cache."""
    model = decoder.Decoder(parts.decoder, dtype, attend=attention.decode)
    own = {"params": params["decoder"]}
    one = cache.layers[0] if cache.apart else cache.layers
    prefix, length = one.prefix_k.shape[-2], one.own_k.shape[-2]
    where = jnp.broadcast_to((cache.start + cache.step)[:, None], ids.shape)
    if parts.media.positions is not None:
        where = jnp.broadcast_to(where[..., None], (*where.shape, 3))
    tables = _tables(parts, where, cache.lengths, jnp.zeros((1, prefix), jnp.int32), 0)
    tables = tables._replace(own=(jnp.arange(length) <= cache.step)[None])
    x = model.apply(own, ids, method="embed")  # [B, N, D]
    if cache.apart:
        given = params["decoder"], cache.apart, x, cache.layers, tables
        x, kept = decoder.decode(parts.decoder, dtype, *given)
    else:
        x, kept = model.apply(own, x, cache.layers, tables)
    return x, cache._replace(layers=kept, step=cache.step + 1)


def media(
    arrangement: Arrangement,
    prompts: np.ndarray,
    tables: Sequence[Sequence[types.Picture]],
    slots: Sequence[Sequence[Sequence[int]]],
    images: int,
    cells: int = 1,
) -> dict[str, np.ndarray]:
    """Lays out the images of a batch on the host; see types.Batch.media.

    Args:
      prompts: int32 [B, M, P] with placeholders expanded.
      tables: per group its distinct pictures.
      slots: slots[b][m] lists the pictures of its group that prompt (b, m) shows, in order.
      images: I, the entries of every group (zeros fill it up).
      cells: of every entry, where entries differ in size.
    """
    made = arrangement.arrange(tables, images, cells)
    index = np.full(prompts.shape, -1, np.int32)
    positions = np.zeros((*prompts.shape, 3), np.int32)
    behind = np.zeros(prompts.shape[:2], np.int32)
    firsts = [np.cumsum([0, *(picture.entries for picture in table)]) for table in tables]
    for b, m in np.ndindex(prompts.shape[:2]):
        group = b * len(tables) // len(prompts)
        shown = [tables[group][slot] for slot in slots[b][m]]
        reads = [
            arrangement.reads(picture, int(firsts[group][slot]), images, cells)
            for picture, slot in zip(shown, slots[b][m], strict=True)
        ]
        here = prompts[b, m] == arrangement.image_token
        wanted = sum(map(len, reads))
        if here.sum() != wanted:
            raise ValueError(
                f"A prompt has {here.sum()} image tokens, but {len(shown)} images need {wanted}."
            )
        if shown:
            index[b, m, here] = np.concatenate(reads)
        if arrangement.positions is not None:
            positions[b, m], behind[b, m] = arrangement.positions(here, shown)
    made["index"] = index
    if arrangement.positions is not None:
        made.update(positions=positions, behind=behind)
    return made


def flops(
    parts: Parts,
    layout: types.Layout,
    prompt: int,
    response: int,
    images: float,
    cells: float = 1,
) -> float:
    """Required FLOPs of one instance's forward pass, each prefix and image counted once."""
    c = parts.decoder
    total = images * parts.picture_flops(cells)
    for m in range(len(layout.contexts)):
        total += decoder.flops(c, prompt, len(layout.branches_of(m)), response)
    return total + 2 * len(layout.branches) * response * c.width * c.vocab


def _check_length(parts: Parts, tokens: int) -> None:
    if 0 < parts.decoder.longest < tokens:
        raise ValueError(
            f"Rows have up to {tokens} tokens, but the decoder's dynamic rotary scaling changes "
            f"beyond {parts.decoder.longest}, which is not read; lower config.data.max_prompt."
        )


def _positions(batch: types.Batch, branches: int, length: int) -> Array:
    """int [B*M, S], or [B*M, S, 3] where the media tell."""
    lengths, prefix = batch.prompt_lengths.reshape(-1), batch.prompts.shape[2]
    if "positions" not in batch.media:
        return rows.positions(lengths, prefix, branches, length)
    behind = batch.media["behind"].reshape(-1)
    own = rows.positions(lengths - behind, prefix, branches, length)[:, prefix:, None]
    first = batch.media["positions"].reshape(-1, prefix, 3)
    return jnp.concatenate([first, jnp.broadcast_to(own, (*own.shape[:2], 3))], axis=1)


def _tables(parts: Parts, where: Array, lengths: Array, index: Array, length: int):
    c = parts.decoder
    angles = decoder.angles(c.frequencies, where, c.position_axes)
    tables = rows.tables(angles, lengths, index.shape[1], length)
    if c.local_frequencies:
        tables = tables._replace(local_angles=decoder.angles(c.local_frequencies, where))
    if parts.blocks is not None:
        tables = tables._replace(blocks=parts.blocks(index, tables.valid))
    return tables


def _prompts(parts: Parts, dtype, remat: str, params, batch: types.Batch):
    """([B, M, P, D], prompt embeddings with image features in place of the placeholders;
    [L, B*M, P, D], what the first L layers add there, or None)."""
    model = decoder.Decoder(parts.decoder, dtype)
    x = model.apply({"params": params["decoder"]}, batch.prompts, method="embed")
    index = batch.media["index"]
    if batch.media["pixels"].shape[1] == 0:
        return x, None
    found = parts.features(params, batch.media, dtype, remat != "none")
    grouped = index.reshape(found.values.shape[0], -1)

    def taken(features):  # [G, F, D] -> [B, M, P, D]
        at = jnp.maximum(grouped, 0)[:, :, None]
        return jnp.take_along_axis(features, at, axis=1).reshape(x.shape)

    image = (index >= 0)[..., None]
    deep = found.deep
    if deep is not None:
        deep = jnp.where(image, jax.vmap(taken)(deep), 0).reshape(deep.shape[0], -1, *x.shape[2:])
    return jnp.where(image, taken(found.values), x), deep


def whole_prefix(index: Array, valid: Array) -> Array:
    """One block: every token of the prefix sees all of it. See `Parts.blocks`."""
    return jnp.where(valid, 0, -1)


def each_image(index: Array, valid: Array) -> Array:
    """A block per run of image features. See `Parts.blocks`."""
    image = index >= 0
    starts = image & ~jnp.pad(image, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(image, jnp.cumsum(starts, axis=1) - 1, -1)


def each(encode: Callable[[Params, Array, Any, bool], Array]):
    """`Parts.features` of a family that reads each entry by itself.

    encode: (parameters, pixels [X, H, W, 3], dtype, remat) -> [X, L, D].
    """

    def features(params, media, dtype, remat) -> Features:
        pixels = media["pixels"]
        found = encode(params, pixels.reshape(-1, *pixels.shape[2:]), dtype, remat)
        return Features(found.reshape(pixels.shape[0], -1, found.shape[-1]))

    return features


def squares(side: int, tables, images: int, cells: int) -> dict[str, np.ndarray]:
    """`Arrangement.arrange` where entries are [side, side, 3], and a picture one or several."""
    pixels = np.zeros((len(tables), images, side, side, 3), np.float32)
    for group, table in enumerate(tables):
        entry = 0
        for picture in table:
            if picture.pixels.shape[-3:] != pixels.shape[2:]:
                raise ValueError(
                    f"The image processor gave {picture.pixels.shape}, but the vision tower reads "
                    f"{pixels.shape[2:]}; processor and config.json are from different models."
                )
            pixels[group, entry : entry + picture.entries] = picture.pixels
            entry += picture.entries
    return {"pixels": pixels}


def runs(tokens: int, picture: types.Picture, first: int, images: int, cells: int) -> np.ndarray:
    """`Arrangement.reads` where every entry gives `tokens` features, read one after the other."""
    return first * tokens + np.arange(picture.entries * tokens)
