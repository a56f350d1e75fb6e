"""The mathematics of kernels in few bits: codes, and a scale per output or per block of inputs.

  int8  W ~ codes * scale            round to nearest, a scale per output
  nf4   W ~ levels[codes] * scale    the 16 levels of QLoRA's NormalFloat, a scale per block of
                                     inputs of each output: Dettmers et al., arXiv:2305.14314

qwix quantises. Two codes of nf4 share a byte, along the last input axis, so that 4 bits are 4 bits
on every backend.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import qwix

from rubric_jax import types

Array = types.Array

KINDS = ("int8", "nf4")
BLOCK = 64  # inputs that share a scale in nf4, or the largest power of two that divides them


def encode(kernel: Array, kind: str, *, stack: int, inputs: int) -> dict[str, Array]:
    """{codes, scale} of a kernel [*stack, *inputs, *outputs]; `stack`, `inputs`: numbers of axes.

    codes int8, the kernel's shape, or uint8 with the last input axis halved; scale float32, with
    the input axes 1 (int8) or the last of them cut into blocks (nf4).
    """
    last = stack + inputs - 1
    outer = (*range(stack), *range(stack + inputs, kernel.ndim))
    kernel = kernel.astype(jnp.float32)
    if kind == "int8":
        found = qwix.quantize(kernel, jnp.int8, channelwise_axes=outer)
        return {"codes": found.qvalue, "scale": found.scale}
    block = math.gcd(kernel.shape[last], BLOCK)
    if block == 1:
        raise ValueError(
            f"NF4 packs two inputs in a byte, and a kernel {kernel.shape} has an odd number of "
            "them; use 'int8'."
        )
    apart = tuple(axis for axis in range(kernel.ndim) if axis != last)
    found = qwix.quantize(kernel, "nf4", channelwise_axes=apart, tiled_axes={last: block})
    codes = found.qvalue.astype(jnp.uint8)
    low, high = (jax.lax.slice_in_dim(codes, i, None, 2, last) for i in (0, 1))
    return {"codes": low | (high << 4), "scale": found.scale}


def decode(codes: Array, scale: Array, inputs: int, dtype) -> Array:
    """The kernel [*inputs, *outputs] of codes without a stack, in `dtype`."""
    last = inputs - 1
    if codes.dtype == jnp.int8:
        return (codes.astype(jnp.float32) * scale).astype(dtype)
    codes = jnp.stack([codes & 15, codes >> 4], axis=last + 1)
    shape = (*codes.shape[:last], -1, *codes.shape[last + 2 :])
    values = jnp.take(_levels(), codes.astype(jnp.int32), axis=0).reshape(shape)
    blocks = scale.shape[last]
    cut = (*values.shape[:last], blocks, -1, *values.shape[last + 1 :])
    scaled = values.reshape(cut) * jnp.expand_dims(scale, last + 1)
    return scaled.reshape(values.shape).astype(dtype)


def _levels() -> Array:
    """The 16 levels of NF4, float32, as qwix has them."""
    codes = jnp.arange(16, dtype=jnp.uint8).astype(jnp.uint4)
    return qwix.dequantize(qwix.QArray(codes, jnp.ones(1, jnp.float32), None, "nf4"))
