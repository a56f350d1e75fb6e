"""Continuations of a prompt: the prefix is read once, its continuations are decoded together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types
from rubric_jax.likelihoods import autoregressive

Array = types.Array


class Against(NamedTuple):
    """What the policy is contrasted with while decoding (see contrasts.py)."""

    contrast: Callable[..., Array]  # of contrasts.CONTRASTS
    knobs: Mapping[str, float]  # of the contrast
    batch: types.Batch  # the same rows in the same order, perhaps with other pictures
    params: types.Params  # the policy's own, or another one's


class Samples(NamedTuple):
    ids: Array  # int32 [B, K, T], the stop token included, 0 after it
    mask: Array  # bool [B, K, T]
    logps: Array  # float32 [B, K, T], nats under the model, without temperature and filters
    finished: Array  # bool [B, K], ended by a stop token


def sample(
    vlm: Any,
    params: types.Params,
    batch: types.Batch,
    seeds: Array,
    *,
    count: int,
    length: int,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: tuple[int, ...],
    against: Against | None = None,
) -> Samples:
    """Samples `count` responses to the first context of every instance, in one compiled loop.

    The logits are divided by the temperature, then top_k, top_p and min_p take tokens away, each
    reading what the one before has left, as in transformers. Other values of these four compile
    nothing.

    Args:
      vlm: a model value (models.vlm.VLM).
      params: its parameters.
      batch: prompts and media; responses are not read. A row of padding gets empty responses.
      seeds: uint32 [B], one per instance. Response (b, k) depends on the instance, on seeds[b] and
        on k, not on the rest of the batch (but for rounding, which may differ between shapes).
      count: K; length: T, tokens at most.
      temperature: > 0, or 0 for the most likely token.
      top_k: only the k most likely tokens, with all that tie with the last of them; 0 = all.
      top_p: only the most likely tokens that together reach this probability, ties as above;
        in (0, 1], 1 = all.
      min_p: only tokens at least this times as likely as the most likely one; in [0, 1], 0 = all.
      stop: token ids that end a response.
      against: contrasts the logits with others before all of these; None = as they are.

    The loop ends when all responses have.

    Raises:
      ValueError: a number out of its range, or not one seed per row.
    """
    rows = batch.prompt_lengths.shape[0]
    if jnp.shape(seeds) != (rows,):
        raise ValueError(
            f"seeds has shape {jnp.shape(seeds)}; the batch has {rows} rows, and each needs a seed."
        )
    for name, value, fine, wanted in (
        ("temperature", temperature, temperature >= 0, "at least 0"),
        ("top_k", top_k, top_k >= 0 and top_k == int(top_k), "a whole number, at least 0"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1"),
        ("min_p", min_p, 0 <= min_p <= 1, "from 0 to 1"),
    ):
        if not fine:
            raise ValueError(f"{name} is {value}; it must be {wanted}.")
    knobs = _Knobs(np.float32(temperature), np.int32(top_k), np.float32(top_p), np.float32(min_p))
    sizes = {"count": count, "length": length, "stop": stop}
    if against is None:
        return _sample(vlm, params, batch, seeds, knobs, None, contrast=None, **sizes)
    values = {name: np.float32(value) for name, value in against.knobs.items()}
    other = (against.params, against.batch, values)
    return _sample(vlm, params, batch, seeds, knobs, other, contrast=against.contrast, **sizes)


class _Knobs(NamedTuple):
    """Scalars, traced."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array


class _Reader(NamedTuple):
    """A policy that has read the prefixes."""

    states: Array  # [B, K, D], which predict the next tokens
    cache: Any


def _read(vlm, params, batch, count: int, length: int) -> _Reader:
    state, cache = vlm.prefill(params, batch, count, length)
    shape = (state.shape[0], count, state.shape[-1])
    return _Reader(jnp.broadcast_to(state[:, None], shape), cache)


@functools.partial(jax.jit, static_argnames=("vlm", "count", "length", "stop", "contrast"))
def _sample(
    vlm, params, batch, seeds, knobs: _Knobs, other, *, count, length, stop, contrast
) -> Samples:
    readers = [_read(vlm, params, batch, count, length)]
    weights = [params]  # of each reader
    if contrast is not None:
        weights.append(other[0])
        readers.append(_read(vlm, other[0], other[1], count, length))
    heads = [vlm.unembed(own) for own in weights]
    rows = batch.prompt_lengths.shape[0]
    fold_in = jax.random.fold_in
    streams = jax.vmap(jax.vmap(fold_in, (None, 0)), (0, None))(
        jax.vmap(jax.random.key)(seeds), jnp.arange(count)
    )  # [B, K]
    empty = jnp.zeros((rows, count, length))
    done = jnp.broadcast_to((batch.prompt_lengths[:, 0] == 0)[:, None], (rows, count))
    out = Samples(empty.astype(jnp.int32), empty.astype(bool), empty, jnp.zeros_like(done))

    def going(carry):
        step, _, done, _ = carry
        return (step < length) & ~jnp.all(done)

    def body(carry):
        step, readers, done, out = carry
        logits, *others = (
            autoregressive.logits(reader.states, head, cap=vlm.logit_cap)
            for head, reader in zip(heads, readers, strict=True)
        )
        wanted = contrast(logits, *others, step, **other[2]) if contrast else logits
        keys = jax.vmap(jax.vmap(fold_in, (0, None)), (0, None))(streams, step)
        ids = _draw(wanted, keys, knobs)
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        ended = ~done & jnp.isin(ids, jnp.asarray(stop, jnp.int32))
        out = Samples(
            out.ids.at[:, :, step].set(jnp.where(done, 0, ids)),
            out.mask.at[:, :, step].set(~done),
            out.logps.at[:, :, step].set(jnp.where(done, 0.0, logps)),
            out.finished | ended,
        )
        readers = [
            _Reader(*vlm.decode(own, reader.cache, ids))
            for own, reader in zip(weights, readers, strict=True)
        ]
        return step + 1, readers, done | ended, out

    return jax.lax.while_loop(going, body, (jnp.zeros((), jnp.int32), readers, done, out))[-1]


def _draw(logits: Array, keys: jax.Array, knobs: _Knobs) -> Array:
    """Token ids int32 [B, K] from logits [B, K, V]."""
    scaled = logits / jnp.maximum(knobs.temperature, 1e-6)
    filters = (knobs.top_k > 0) | (knobs.top_p < 1) | (knobs.min_p > 0)
    scaled = jax.lax.cond(filters, filtered, lambda logits, *_: logits, scaled, *knobs[1:])
    drawn = jax.vmap(jax.vmap(jax.random.categorical))(keys, scaled)
    return jnp.where(knobs.temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)


def filtered(logits: Array, top_k: Array, top_p: Array, min_p: Array) -> Array:
    """Logits [..., V] with -inf for the tokens that the filters take away; see `sample`."""
    vocab = logits.shape[-1]
    ordered = jnp.sort(logits, axis=-1, descending=True)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab) - 1
    edge = jnp.take(ordered, last, axis=-1)[..., None]
    probs = jax.nn.softmax(jnp.where(ordered >= edge, ordered, -jnp.inf), axis=-1)
    # A token stays while those before it have not reached top_p; the first always does.
    inside = jnp.cumsum(probs, axis=-1) - probs < top_p
    inside = (inside | (top_p >= 1)).at[..., 0].set(True)
    nucleus = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    most = ordered[..., :1]
    edge = jnp.maximum(jnp.maximum(edge, nucleus), most + jnp.log(min_p))
    return jnp.where(logits >= jnp.minimum(edge, most), logits, -jnp.inf)
