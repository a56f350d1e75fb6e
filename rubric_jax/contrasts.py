"""Contrasting two next-token distributions while decoding.

  logits, other   float32 [..., V], of the policy and of what it is set against: the same policy
                  under other pictures, or another policy
  step            int32 [], tokens that the responses have already
  result          logits [..., V], from which the next token is drawn; -inf takes a token away

Knobs are traced: other values compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import pydantic

from rubric_jax import types

Array = types.Array
Weight = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]


def vcd(
    logits: Array, other: Array, step: Array, *, alpha: Weight = 1.0, plausible: Share = 0.1
) -> Array:
    """(1 + alpha) logits - alpha other, among the tokens that the policy itself finds plausible.

    Leng et al., arXiv:2311.16922, against a noised picture. With plausible = 0 and the projector of
    rejected answers as the other policy: DCD, arXiv:2504.08809.

    Args:
      alpha: strength.
      plausible: only tokens at least this times as likely as the most likely one; 0 = all.
    """
    del step
    mixed = (1 + alpha) * logits - alpha * other
    edge = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(plausible)  # -inf at 0
    return jnp.where(logits >= edge, mixed, -jnp.inf)


def m3id(
    logits: Array,
    other: Array,
    step: Array,
    *,
    forget: Weight = 0.02,
    sure: Share = 0.5,
    most: Weight = 100.0,
) -> Array:
    """l + (1 - g) / g (l - l_other) with g = exp(-forget step), where the policy is not sure.

    l are log-probabilities; other: without the picture. The later the token, the more the picture
    has to say. Favero et al., arXiv:2403.14003; the values of the constants, and `most`, are ours.

    Args:
      forget: how fast the picture is forgotten, per token.
      sure: a probability from which on the most likely token is taken at its word; 1 = never.
      most: bound of (1 - g) / g = exp(forget step) - 1, which grows without one.
    """
    own, blind = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    strength = jnp.minimum(
        jnp.expm1(jnp.minimum(forget * step, 80.0)), most
    )  # e^88 is float32's end
    unsure = jnp.max(own, axis=-1, keepdims=True) < jnp.log(sure)
    return jnp.where(unsure, own + strength * (own - blind), own)


CONTRASTS: dict[str, Callable[..., Array]] = {"vcd": vcd, "m3id": m3id}
