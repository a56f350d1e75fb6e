"""The mathematics of low-rank adapters of one kernel.

  y = x W + s (x a) b                             LoRA     Hu et al., arXiv:2106.09685
  s = alpha / r, or alpha / sqrt(r)               rsLoRA   Kalajdzievski, arXiv:2312.03732
  y = m / |W + s a b| * (x W + s (x a) b)         DoRA     Liu et al., arXiv:2402.09353

|.| is the norm of what goes into one output: over the input axes. No array of the kernel's shape is
made on the way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax import types

Array = types.Array

_F32 = jnp.float32


class Leaves(NamedTuple):
    """The adapter of one kernel [*stack, *inputs, *outputs]; stack is () or (layers,)."""

    lora_a: Any  # [*stack, *inputs, r]
    lora_b: Any  # [*stack, r, *outputs]
    lora_scale: Any  # [*stack]
    lora_magnitude: Any = None  # [*stack, *outputs]; None but for DoRA


def apply(x: Array, y: Array, kernel: Array, leaves: Leaves, *, dtype) -> Array:
    """The adapted output of a linear layer, without its bias; [..., *outputs].

    Args:
      x: [..., *inputs]; y: the kernel's own output [..., *outputs], in `dtype`.
      kernel: [*inputs, *outputs]. leaves: without a stack.
    """
    a, b = leaves.lora_a.astype(dtype), leaves.lora_b.astype(dtype)
    inputs = a.ndim - 1
    axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
    low = jax.lax.dot_general(x.astype(dtype), a, (axes, ((), ())))  # [..., r]
    low = (low.astype(_F32) * leaves.lora_scale).astype(dtype)
    y = y + jax.lax.dot_general(low, b, (((low.ndim - 1,), (0,)), ((), ())))
    if leaves.lora_magnitude is None:
        return y
    # The norm is a constant to the gradient, as section 4.3 of the paper has it.
    size = jax.lax.stop_gradient(norm(kernel, leaves))
    ratio = leaves.lora_magnitude / size  # float32: close to 1, where bfloat16 has steps of 0.8 %
    ratio = jnp.expand_dims(ratio, tuple(range(y.ndim - ratio.ndim)))
    return (y.astype(_F32) * ratio).astype(dtype)


def norm(kernel: Array, leaves: Leaves) -> Array:
    """|W + s a b| over the input axes: float32 [*outputs]. Neither has a stack.

    Expanded, so that only the kernel itself is read:
      |W|^2 + 2 s sum_r b (a^T W) + s^2 sum_rq b_r (a^T a)_rq b_q
    """
    inputs = tuple(range(leaves.lora_a.ndim - 1))
    contract = ((inputs, inputs), ((), ()))
    a, b = leaves.lora_a.astype(_F32), leaves.lora_b.astype(_F32)
    scale = leaves.lora_scale.astype(_F32)
    square = jnp.sum(jnp.square(kernel.astype(_F32)), axis=inputs)
    across = jax.lax.dot_general(
        a.astype(kernel.dtype), kernel, contract, preferred_element_type=_F32
    )  # [r, *outputs]
    gram = jax.lax.dot_general(a, a, contract)  # [r, r]
    square = square + 2 * scale * jnp.sum(b * across, axis=0)
    square = square + scale**2 * jnp.sum(b * jnp.tensordot(gram, b, axes=1), axis=0)
    return jnp.sqrt(jnp.maximum(square, jnp.finfo(_F32).tiny))  # an output of nothing stays 0


def merged(kernel, leaves: Leaves):
    """The kernel that computes by itself what `apply` computes; stacked or not.

    In float32, returned in the kernel's dtype; NumPy arrays give NumPy arrays.
    """
    a, b = leaves.lora_a.astype(np.float32), leaves.lora_b.astype(np.float32)
    outputs = kernel.ndim - (a.ndim - 1)
    stack = kernel.shape[: b.ndim - 1 - outputs]
    width = math.prod(kernel.shape[kernel.ndim - outputs :])
    w = kernel.astype(np.float32).reshape(*stack, -1, width)
    delta = a.reshape(*stack, -1, a.shape[-1]) @ b.reshape(*stack, a.shape[-1], width)
    w = w + leaves.lora_scale.astype(np.float32).reshape(*stack, 1, 1) * delta
    if leaves.lora_magnitude is not None:
        square = (w * w).sum(axis=-2, keepdims=True)
        size = square.clip(np.finfo(np.float32).tiny) ** 0.5
        w = w * (leaves.lora_magnitude.astype(np.float32).reshape(*stack, 1, width) / size)
    return w.reshape(kernel.shape).astype(kernel.dtype)
