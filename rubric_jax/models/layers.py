"""Layers that every family shares. Parameters keep their dtype; `dtype` is the computation's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from rubric_jax import types
from rubric_jax.models import lora, lowbit

Array = types.Array


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
}


class Linear(nn.Module):
    """x [..., *inputs] -> [..., *outputs]: trailing axes of x meet the first ones of the kernel.

    `inputs` and `outputs` are shapes, so that attention heads stay an axis of their own:
    (width,) -> (heads, head_dim) has a kernel [width, heads, head_dim]. Parameters of an adapter
    beside the kernel (see adapters.py) take part in the output. The kernel may be given in few bits
    (see quantised.py).
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: jnp.dtype
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        fan_in = math.prod(self.inputs)
        held = self.get_variable("params", "kernel")
        if isinstance(held, Mapping):  # codes and scales: see lowbit.py
            kernel = None
            # Decoded again in the backward pass, whatever is kept otherwise.
            y = jax.checkpoint(self._decoded)(x.astype(self.dtype), held["codes"], held["scale"])
        else:
            kernel = self.param(
                "kernel", nn.initializers.normal(fan_in**-0.5), (*self.inputs, *self.outputs)
            )
            y = self._product(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.has_variable("params", "lora_a"):
            found = (n for n in lora.Leaves._fields if self.has_variable("params", n))
            leaves = lora.Leaves(**{n: self.get_variable("params", n) for n in found})
            y = lora.apply(x, y, kernel, leaves, dtype=self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, self.outputs)
            y = y + jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim))).astype(self.dtype)
        return y

    def _product(self, x: Array, kernel: Array) -> Array:
        axes = tuple(range(x.ndim - len(self.inputs), x.ndim))
        return jax.lax.dot_general(x, kernel, ((axes, tuple(range(len(self.inputs)))), ((), ())))

    def _decoded(self, x: Array, codes: Array, scale: Array) -> Array:
        return self._product(x, lowbit.decode(codes, scale, len(self.inputs), self.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + scale). Gemma's checkpoints keep the distance of the factor from 1."""

    eps: float
    dtype: jnp.dtype
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        first = nn.initializers.constant(1.0 - self.offset)
        scale = self.offset + self.param("scale", first, (x.shape[-1],))
        x = x.astype(jnp.float32)  # float32: the mean of squares loses digits in bfloat16
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * _rows(scale, x)).astype(self.dtype)


class LayerNorm(nn.Module):
    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return (x * _rows(scale, x) + _rows(bias, x)).astype(self.dtype)


class Scale(nn.Module):
    """x * scale, a factor per number."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return x * _rows(scale, x).astype(self.dtype)


def rotate(x: Array, angles: Array) -> Array:
    """Rotary position embedding, half-split as in Llama: pairs are (i, i + head_dim / 2).

    Args:
      x: [R, S, H, head_dim]; angles: float32 [R, S, head_dim / 2] in radians.
    """
    cos, sin = (f(angles)[:, :, None, :] for f in (jnp.cos, jnp.sin))  # [R, S, 1, head_dim / 2]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def platform() -> str:
    """What the program traced now is for ("cpu", "gpu", "tpu"): the mesh in context knows."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def one_cpu() -> bool:
    """Whether what is traced now will run on a single CPU device, as far as the mesh tells."""
    return platform() == "cpu" and jax.sharding.get_abstract_mesh().size <= 1


def shard_rows(x: Array) -> Array:
    """Pins the leading axis to the data axes of the mesh in context, if there is one.

    Without the pin XLA may prefer to spread activations the way the fsdp parameters are spread.
    """
    mesh = jax.sharding.get_abstract_mesh()
    names = tuple(name for name in types.ROWS if name in mesh.axis_names)
    size = math.prod(mesh.shape[name] for name in names)
    if size == 1 or x.shape[0] % size:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(names))


def _rows(vector: Array, like: Array) -> Array:
    """[D] -> [1, ..., 1, D], for rank promotion is an error in this project."""
    return jnp.expand_dims(vector, tuple(range(like.ndim - 1)))
