"""Heads: small modules on a model's hidden states, trained with it, and read by loss terms.

  config.model.heads = {"reward": {"head": "last", "outputs": 1}}
  config.objective = {"bt": {"win": "chosen", "lose": "rejected", "head": "reward"}}

Their parameters are heads/<name>/... of the model's tree, so that rules over paths freeze, decay
and scale them: optimizer.trainable = ((r"heads/.*", True), (r".*", False)). head_files.py
has them on disk.
"""

from __future__ import annotations

import functools
import inspect
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from jax.sharding import PartitionSpec

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params
Positive = Annotated[int, pydantic.Field(ge=1)]
Count = Annotated[int, pydantic.Field(ge=0)]

FOLDER = "heads"
RULES = ((r"heads/.*", PartitionSpec()),)  # small: a copy on every device
_EPS = 1e-5


class Head(NamedTuple):
    """A head as a value."""

    shape: types.HeadShape
    init: Callable[[jax.Array, int], Params]  # (key, width D of the states) -> parameters
    # (parameters, states [B, N, T + 1, D], mask [B, N, T]) -> what `shape` says, float32.
    # states[:, :, t] predicts token t, and stands at token t - 1 or at the end of the prompt.
    read: Callable[[Params, Array, Array], Array]


def last(*, outputs: Positive = 1, width: Count = 0) -> Head:
    """Of the state at the last response token: a reward model's head. [B, N, H].

    Args:
      outputs: H.
      width: of a layer between (GELU); 0 = linear.
    """

    def read(params, states, mask):
        return _project(params, _at_last(states, mask))

    return Head(types.HeadShape("branch", outputs), _perceptron(outputs, width), read)


def mean(*, outputs: Positive = 1, width: Count = 0) -> Head:
    """Of the mean of the states at all response tokens. [B, N, H]. Knobs as of `last`."""

    def read(params, states, mask):
        real = (mask != 0).astype(jnp.float32)[..., None]  # [B, N, T, 1]
        total = jnp.sum(states[:, :, 1:].astype(jnp.float32) * real, axis=2)
        return _project(params, total / jnp.maximum(jnp.sum(real, axis=2), 1.0))

    return Head(types.HeadShape("branch", outputs), _perceptron(outputs, width), read)


def prompt(*, outputs: Positive = 1, width: Count = 0) -> Head:
    """Of the state at the end of each branch's prompt: a router. [B, N, H]. Knobs as of `last`."""

    def read(params, states, mask):
        del mask
        return _project(params, states[:, :, 0].astype(jnp.float32))

    return Head(types.HeadShape("branch", outputs), _perceptron(outputs, width), read)


def mask(*, start: float = 1.0) -> Head:
    """A weight per token, >= 0, of the reference's states: ReLU(linear(LayerNorm)). [B, N, T, 1].

    The learned masks of SparsePO, arXiv:2410.05102, from the last layer's states (the paper mixes
    all layers).

    Args:
      start: the bias at the beginning: where masks start, up to noise.
    """

    def init(key, width):
        return {
            "scale": jnp.ones(width),
            "kernel": 0.02 * jax.random.normal(key, (width, 1)),
            "bias": jnp.full(1, start),
        }

    def read(params, states, mask):
        x = _standardise(states[:, :, : mask.shape[-1]].astype(jnp.float32), axis=-1)
        x = x * params["scale"].astype(jnp.float32)[None, None, None]
        return jax.nn.relu(_linear(params, x))

    return Head(types.HeadShape("token", 1, reference=True), init, read)


def activation() -> Head:
    """A weight per token in [0, 1] without parameters: how active the reference is. [B, N, T, 1].

    The mean over the state, standardised over the response, then brought from its least to its
    most to [0, 1]: MaPO of arXiv:2410.05102, on the last layer's states. A response whose states
    are all alike has weights 0.
    """

    def read(params, states, mask):
        del params
        real = mask != 0
        x = jnp.mean(states[:, :, : mask.shape[-1]].astype(jnp.float32), axis=-1)  # [B, N, T]
        x = _standardise(x, axis=-1, where=real)
        least = jnp.min(jnp.where(real, x, jnp.inf), axis=-1, keepdims=True)
        most = jnp.max(jnp.where(real, x, -jnp.inf), axis=-1, keepdims=True)
        span = jnp.where(most > least, most - least, 1.0)
        return jnp.where(real & (most > least), (x - least) / span, 0.0)[..., None]

    return Head(types.HeadShape("token", 1, reference=True), lambda key, width: {}, read)


def table(*, rows: Positive, outputs: Positive = 1, start: float = 0.0) -> Head:
    """Parameters of their own, whatever the states: a row of weights per user, say. [R, H].

    Args:
      rows, outputs: R and H.
      start: the value of all of them at the beginning.
    """

    def init(key, width):
        del key, width
        return {"table": jnp.full((rows, outputs), start)}

    def read(params, states, mask):
        del states, mask
        return params["table"].astype(jnp.float32)

    return Head(types.HeadShape("table", outputs, rows=rows), init, read)


HEADS = {
    "last": last,
    "mean": mean,
    "prompt": prompt,
    "mask": mask,
    "activation": activation,
    "table": table,
}


def complete(spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The heads of a config with every knob written out; ValueError names what is wrong."""
    found = {}
    for name, values in spec.items():
        where = f"config.model.heads.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise ValueError(f"{where}: the name may hold letters, digits and underscores.")
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} is {values!r}; it must be a group: {{'head': 'last'}}.")
        knobs = dict(values)
        kind = knobs.pop("head", name)
        function = config_lib.bind(HEADS, kind, knobs, what=f"{where}: head")
        defaults = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if key not in knobs
        }
        found[name] = {"head": kind, **config_lib.check(function, knobs, what=where), **defaults}
    return found


def bind(spec: Mapping[str, Any]) -> tuple[tuple[str, Head], ...]:
    """(name, head) of a config's heads, sorted by name."""
    heads = []
    for name, values in sorted(complete(spec).items()):
        knobs = {key: value for key, value in values.items() if key != "head"}
        heads.append((name, HEADS[values["head"]](**knobs)))
    return tuple(heads)


def shapes(spec: Mapping[str, Any]) -> dict[str, types.HeadShape]:
    """What the heads of a config give."""
    return {name: head.shape for name, head in bind(spec)}


def attach(vlm: vlm_lib.VLM, spec: Mapping[str, Any]) -> vlm_lib.VLM:
    """The model with heads: further parameters below heads/, and rules for them."""
    heads = bind(spec)
    if not heads:
        return vlm
    backbone = jax.eval_shape(vlm.init, jax.random.key(0))
    width = jax.eval_shape(vlm.unembed, backbone).shape[0]
    init = functools.partial(_init_all, vlm.init, heads, width)
    return vlm._replace(init=init, rules=(*RULES, *vlm.rules), heads=heads)


def init(heads: tuple[tuple[str, Head], ...], key: jax.Array, width: int) -> Params:
    """Parameters of heads. One does not depend on the others."""
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name, _ in heads}
    return {name: head.init(keys[name], width) for name, head in heads}


def split(tree: Params) -> tuple[Params, Params]:
    """(the model's own part of a tree, the heads' part: {} if there are none)."""
    own = {name: part for name, part in tree.items() if name != FOLDER}
    return own, tree.get(FOLDER, {})


def _init_all(backbone: Callable, heads, width: int, key: jax.Array) -> Params:
    return {**backbone(key), FOLDER: init(heads, key, width)}


def _perceptron(outputs: int, width: int) -> Callable[[jax.Array, int], Params]:
    def make(key, inputs):
        if not width:
            return _new_linear(key, inputs, outputs)
        first, second = jax.random.split(key)
        return {
            "up": _new_linear(first, inputs, width),
            **_new_linear(second, width, outputs),
        }

    return make


def _new_linear(key, inputs: int, outputs: int) -> Params:
    kernel = jax.random.normal(key, (inputs, outputs)) * (inputs + 1) ** -0.5
    return {"kernel": kernel, "bias": jnp.zeros(outputs)}


def _project(params: Params, x: Array) -> Array:
    if "up" in params:
        x = jax.nn.gelu(_linear(params["up"], x))
    return _linear(params, x)


def _linear(params: Params, x: Array) -> Array:
    """float32, whatever the parameters' dtype: [..., D] -> [..., H]."""
    kernel, bias = (params[name].astype(jnp.float32) for name in ("kernel", "bias"))
    y = jnp.einsum("...d,dh->...h", x, kernel, preferred_element_type=jnp.float32)
    return y + jnp.expand_dims(bias, tuple(range(y.ndim - 1)))


def _at_last(states: Array, mask: Array) -> Array:
    """The state at the last real response token, that of the prompt's end if there is none."""
    count = mask.shape[-1]
    behind = jnp.argmax(jnp.flip(mask != 0, axis=-1), axis=-1)  # padding behind the last token
    length = jnp.where(jnp.any(mask != 0, axis=-1), count - behind, 0)  # [B, N]
    found = jnp.take_along_axis(states, length[:, :, None, None], axis=2)[:, :, 0]
    return found.astype(jnp.float32)


def _standardise(x: Array, axis: int, where: Array | None = None) -> Array:
    """Less its mean, over its standard deviation; along one axis."""
    options = {"axis": axis, "keepdims": True, "where": where}
    # Where nothing counts the mean of nothing would be NaN.
    x = x if where is None else jnp.where(where, x, 0.0)
    count = x.shape[axis] if where is None else jnp.sum(where, axis=axis, keepdims=True)
    center = jnp.sum(x, **options) / jnp.maximum(count, 1)
    x = x - center
    spread = jnp.sum(x * x, **options) / jnp.maximum(count, 1)
    return x * jax.lax.rsqrt(spread + _EPS)
