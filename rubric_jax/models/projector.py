"""The projector that LLaVA's descendants share: two linear layers from the tower to the decoder.

Parameters: projector/{up,down}/..., and projector/norm/... where a norm stands in front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rubric_jax import types
from rubric_jax.models import interleaved, layers, maps, weights

Array = types.Array
Params = types.Params

RULES = (
    (r"projector/up/kernel", PartitionSpec("fsdp", "tensor")),
    (r"projector/down/kernel", PartitionSpec("tensor", "fsdp")),
    (r"projector/up/bias", PartitionSpec("tensor")),
    *interleaved.RULES,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    inputs: int
    width: int
    activation: str
    bias: bool = True
    norm_eps: float = 0.0  # of a norm in front; 0 = there is none


class Projector(nn.Module):
    """[..., inputs] -> [..., width]."""

    config: Config
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c = self.config
        if c.norm_eps:
            x = layers.LayerNorm(c.norm_eps, self.dtype, name="norm")(x)
        x = layers.Linear((c.inputs,), (c.width,), self.dtype, c.bias, name="up")(x)
        x = layers.ACTIVATIONS[c.activation](x)
        return layers.Linear((c.width,), (c.width,), self.dtype, c.bias, name="down")(x)


def init(config: Config, key: jax.Array) -> Params:
    """Random parameters, float32."""
    tokens = jnp.zeros((1, 1, config.inputs))
    return Projector(config, jnp.dtype("float32")).init(key, tokens)["params"]


def apply(config: Config, params: Params, x: Array, dtype) -> Array:
    return Projector(config, dtype).apply({"params": params["projector"]}, x)


def tensors(config: Config) -> Iterator[weights.Weight]:
    """Its tensors in a checkpoint."""
    c, name = config, "multi_modal_projector"
    if c.norm_eps:
        yield from maps.norm(f"{name}.layer_norm", c.inputs, "projector/norm", True)
    yield from maps.linear(f"{name}.linear_1", c.width, c.inputs, "projector/up", c.bias)
    yield from maps.linear(f"{name}.linear_2", c.width, c.width, "projector/down", c.bias)


def flops(config: Config, tokens: int) -> float:
    return tokens * 2 * config.width * (config.inputs + config.width)
