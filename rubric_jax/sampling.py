"""Continuations of a prompt: the prefix is read once, its continuations are decoded together."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rubric_jax import types

Array = types.Array


class Samples(NamedTuple):
    ids: Array  # int32 [B, K, T], the stop token included, 0 after it
    mask: Array  # bool [B, K, T]
    logps: Array  # float32 [B, K, T], nats under the model, without temperature


@functools.partial(jax.jit, static_argnames=("vlm", "count", "length", "stop"))
def sample(
    vlm: Any,
    params: types.Params,
    batch: types.Batch,
    key: jax.Array,
    *,
    count: int,
    length: int,
    temperature: float,
    stop: tuple[int, ...],
) -> Samples:
    """Samples `count` responses to the first context of every instance, in one compiled loop.

    Args:
      vlm: a model value (models.vlm.VLM).
      params: its parameters.
      batch: prompts and media; responses are not read.
      key: randomness; response (b, k) has a stream of its own.
      count: K; length: T, tokens at most.
      temperature: > 0, or 0 for the most likely token.
      stop: token ids that end a response.

    The loop ends when all responses have.
    """
    state, cache = vlm.prefill(params, batch, count, length)
    rows = state.shape[0]
    states = jnp.broadcast_to(state[:, None], (rows, count, state.shape[-1]))
    head = vlm.unembed(params)
    streams = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(
        jax.random.split(key, rows), jnp.arange(count)
    )  # [B, K]
    empty = jnp.zeros((rows, count, length))
    out = Samples(empty.astype(jnp.int32), empty.astype(bool), empty)

    def going(carry):
        step, _, _, done, _ = carry
        return (step < length) & ~jnp.all(done)

    def body(carry):
        step, states, cache, done, out = carry
        logits = jnp.einsum("bkd,dv->bkv", states, head, preferred_element_type=jnp.float32)
        ids = _draw(
            logits, jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, step)))(streams), temperature
        )
        logps = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]
        out = Samples(
            out.ids.at[:, :, step].set(jnp.where(done, 0, ids)),
            out.mask.at[:, :, step].set(~done),
            out.logps.at[:, :, step].set(jnp.where(done, 0.0, logps)),
        )
        done = done | jnp.isin(ids, jnp.asarray(stop, jnp.int32))
        states, cache = vlm.decode(params, cache, ids)
        return step + 1, states, cache, done, out

    done = jnp.zeros((rows, count), bool)
    return jax.lax.while_loop(going, body, (jnp.zeros((), jnp.int32), states, cache, done, out))[-1]


def _draw(logits: Array, keys: jax.Array, temperature) -> Array:
    """Token ids int32 [B, K] from logits [B, K, V]."""
    scaled = logits / jnp.maximum(temperature, 1e-6)
    drawn = jax.vmap(jax.vmap(jax.random.categorical))(keys, scaled)
    return jnp.where(temperature > 0, drawn, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
