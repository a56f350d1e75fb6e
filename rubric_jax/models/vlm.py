"""A vision-language model as a value: pure functions of parameters, and facts about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from rubric_jax import types
from rubric_jax.models import weights

Array = types.Array
Params = types.Params


class VLM(NamedTuple):
    """What a family's builder returns; everything above models/ sees only this.

    Parameters are nested dicts of arrays. Nothing here holds parameters or devices.
    """

    config: Any  # frozen; equal for checkpoints that compute the same function of their parameters
    init: Callable[[jax.Array], Params]  # random parameters from a key
    # The states that predict each response token: (params, batch, layout) -> [B, N, T, D]. With a
    # further argument True also the state at the last token, behind them: [B, N, T + 1, D].
    hidden: Callable[..., Array]
    unembed: Callable[[Params], Array]  # -> [D, V]
    # Reads the prefixes of a batch's first context and makes room for `length` tokens of each of
    # `branches` continuations: (params, batch, branches, length) -> (state [B, D], cache).
    prefill: Callable[[Params, types.Batch, int, int], tuple[Array, Any]]
    # One token more of each continuation: (params, cache, ids [B, N]) -> (states [B, N, D], cache).
    decode: Callable[[Params, Any, Array], tuple[Array, Any]]
    # On the host: prompts int32 [B, M, P], G tables of types.Picture, slots[b][m] = the pictures of
    # its table that the placeholders of that prompt read in order, entries per table, and cells per
    # entry (1 without) -> Batch.media.
    media: Callable[..., Mapping[str, Array]]
    rules: tuple  # (path regex, PartitionSpec over the mesh axes fsdp and tensor)
    weights: weights.Map  # how a checkpoint's tensors become these parameters, and back
    # Required FLOPs of one forward pass of one instance:
    # (layout, prompt tokens, response tokens, image entries, cells of each) -> float.
    flops: Callable[..., float]
    depth: int  # decoder layers
    vocab: int
    # Logits are cap * tanh(states @ unembed / cap); 0 = states @ unembed.
    logit_cap: float = 0.0
    heads: tuple = ()  # (name, heads.Head) of what reads the states besides the unembedding
