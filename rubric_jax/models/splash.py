"""Rows of a shared prefix and branches by JAX's splash kernel, which is made for TPUs.

The kernel takes the rule of `attention.mask` before the program runs. Blocks of queries and keys
between which nothing passes are skipped, and scores never leave the core. What only the batch
tells, the padding of prefixes, is a segment of its own:

    tokens     P P P . | a a | b b | .        . = padding of a prefix, and up to whole blocks
    segments   1 1 1 0 | 1 1 | 1 1 | 0        a token sees its own segment only

Elsewhere than on a TPU the kernel is interpreted, slowly, which is how tests run it.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec

from rubric_jax import types
from rubric_jax.models import layers

Array = types.Array

_BLOCK = 512  # queries, and keys, at a time; fewer where rows are shorter
_LANES = 128  # a block is a multiple of it


def rows(
    q: Array, k: Array, v: Array, valid: Array, length: int, scale: float, cap: float, kept: str
) -> Array:
    """What `attention.tree` gives, for a rule without window and blocks.

    Every device of the mesh in context computes its own rows and heads; all of them all rows, where
    those do not divide among them.

    Args:
      q: [R, S, H, h]; k, v: [R, S, J, h]; valid: bool [R, P].
      length: T, tokens of a branch. scale, cap: see attention.Kind.
      kept: the name of what a layer that is computed again keeps: output and log-sum-exps.
    """
    attend = functools.partial(_attend, length=length, scale=scale, cap=cap, kept=kept)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size > 1:
        own = tuple(name for name in types.ROWS if name in mesh.axis_names)
        if len(q) % math.prod(mesh.shape[name] for name in own):
            own = ()
        heads = PartitionSpec(own, None, "tensor" if "tensor" in mesh.axis_names else None)
        specs = (heads, heads, heads, PartitionSpec(own))
        attend = jax.shard_map(attend, in_specs=specs, out_specs=heads, check_vma=False)
    return attend(q, k, v, valid)


def _attend(
    q: Array, k: Array, v: Array, valid: Array, *, length: int, scale: float, cap: float, kept: str
) -> Array:
    size, prefix = q.shape[1], valid.shape[1]
    block = min(_BLOCK, -(-size // _LANES) * _LANES)
    tail = -size % block
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, k, v = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, tail), (0, 0))) for x in (q, k, v)
    )  # [R, heads, S + tail, h]
    real = jnp.pad(valid, ((0, 0), (0, size - prefix)), constant_values=True)
    segments = jnp.pad(real, ((0, 0), (0, tail))).astype(jnp.int32)
    rule = splash_attention.MultiHeadMask([_Rule(prefix, length, size, tail)] * q.shape[1])
    kernel = splash_attention.make_splash_mha(
        rule,
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=cap or None,
        head_shards=1,  # the caller cuts the heads
        q_seq_shards=1,
        residual_checkpoint_name=kept,
        interpret=layers.platform() != "tpu",
    )

    def one(q, k, v, segments):
        return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(segments, segments))

    return jnp.swapaxes(jax.vmap(one)(q, k, v, segments)[:, :, :size], 1, 2)


@dataclasses.dataclass(frozen=True)
class _Rule(splash_attention.Mask):
    """`attention.mask` of whole prefixes, a block at a time; the tail is a branch, too.

    The kernel hashes its masks once per head: these are four numbers.
    """

    prefix: int
    length: int
    size: int
    tail: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size + self.tail, self.size + self.tail

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        branch = np.zeros(self.shape[0], int)
        branch[self.prefix : self.size] = np.arange(self.size - self.prefix) // max(self.length, 1)
        branch[self.prefix : self.size] += 1
        branch[self.size :] = -1
        queries, keys = (np.arange(self.shape[0])[part] for part in block)
        same = (branch[keys][None] == 0) | (branch[keys][None] == branch[queries][:, None])
        return same & (keys[None] <= queries[:, None])
