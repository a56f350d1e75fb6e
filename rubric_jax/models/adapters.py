"""Adapters as parameters: their leaves stand beside the kernels that they adapt.

  decoder/layers/attn/q/kernel          [L, D, H, h]   frozen
  decoder/layers/attn/q/lora_a          [L, D, r]      trains; random at first
  decoder/layers/attn/q/lora_b          [L, r, H, h]   trains; zeros at first: nothing changes
  decoder/layers/attn/q/lora_scale      [L]            alpha / r, or alpha / sqrt(r); never trains
  decoder/layers/attn/q/lora_magnitude  [L, H, h]      DoRA alone: trains; the norms of W at first

`layers.Linear` uses them where they are. They are float32 whatever the parameters' dtype: updates
are small. Trees here are nested dicts of arrays, of shapes or of shardings; nothing is copied:

  without(params)          the base, the same arrays
  extract(params)          the adapter's leaves alone
  swap(params, leaves)     the same base under another adapter: several adapters share one base
  merge(params)            a plain tree that computes the same; insert fresh(...) to begin anew
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import pydantic
from jax.sharding import PartitionSpec

from rubric_jax import config as config_lib
from rubric_jax import paths, types
from rubric_jax.models import lora, weights
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

TARGETS = ((r"decoder/.*", True), (r".*", False))
_WHERE = "config.model.adapter"
_Rank = Annotated[int, pydantic.Field(ge=1)]
_Alpha = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class Site(NamedTuple):
    """A kernel [*stack, *inputs, *outputs] that can have an adapter: any matrix of the decoder,
    the projector and the vision tower."""

    path: str  # 'decoder/layers/attn/q', without the kernel
    stack: tuple[int, ...]  # () or (layers,)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    modules: tuple[str, ...]  # canonical names of the checkpoint's modules, one for each layer


class Adapter(NamedTuple):
    """What config.model.adapter says, checked."""

    rank: int
    alpha: float
    rank_stabilised: bool
    dora: bool
    sites: tuple[Site, ...]
    start: str = ""  # directory in PEFT's format to start from; "" = afresh

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def options(
    *,
    rank: _Rank = 16,
    alpha: _Alpha = 32.0,
    targets: tuple = TARGETS,
    rank_stabilised: bool = False,
    dora: bool = False,
    start: str = "",
) -> dict[str, Any]:
    """The fields of config.model.adapter, with their defaults.

    Args:
      rank: r. alpha: the adapter's product counts alpha / r times.
      targets: ordered (regex, bool) over paths of kernels, such as 'decoder/layers/attn/q/kernel'.
      rank_stabilised: count it alpha / sqrt(r) times (rsLoRA).
      dora: learn the norms of the outputs' weights apart from their directions (DoRA).
      start: directory in PEFT's format; the other fields are then read from it.
    """
    return locals()


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    """The given fields of config.model.adapter; ValueError names one that is wrong."""
    known = options()
    for name in values:
        if name not in known:
            raise ValueError(
                f"{_WHERE} has no field {name!r}; it must be {config_lib.one_of(name, known)}"
            )
    values = dict(values)
    if isinstance(values.get("targets"), list | tuple):  # lists, as JSON gives them back
        values["targets"] = tuple(tuple(r) if isinstance(r, list) else r for r in values["targets"])
    values = config_lib.check(options, values, what=_WHERE)
    for rule in values.get("targets", ()):
        if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], bool)):
            raise ValueError(
                f"{_WHERE}.targets holds {rule!r}; give (regex, True or False) pairs, such as "
                '((r"decoder/.*", True), (r".*", False)).'
            )
        try:
            re.compile(rule[0])
        except (re.error, TypeError) as error:
            raise ValueError(f"{_WHERE}.targets: {rule[0]!r} is no pattern: {error}.") from error
    return values


def build(values: Mapping[str, Any], known: Mapping[str, Site]) -> Adapter:
    """The adapter of checked fields; `known` are the model's sites."""
    fields = options(**values)
    chosen = choose(fields.pop("targets"), known)
    return Adapter(sites=chosen, **fields)


def choose(targets: paths.Rules, known: Mapping[str, Site]) -> tuple[Site, ...]:
    """The sites that rules select; ValueError for a pattern without a kernel, or no site at all."""
    kernels = {f"{path}/kernel": site for path, site in known.items()}
    for pattern, _ in targets:
        if not any(re.fullmatch(pattern, kernel) for kernel in kernels):
            raise ValueError(
                f"{_WHERE}.targets: no kernel matches {pattern!r}; it must be "
                f"{config_lib.one_of(pattern, kernels)}"
            )
    rule = f"rule of {_WHERE}.targets"
    chosen = tuple(site for k, site in kernels.items() if paths.lookup(targets, k, what=rule))
    if not chosen:
        raise ValueError(f"{_WHERE}.targets selects no kernel; set one to True.")
    return chosen


def sites(spec: weights.Map, shapes: Params) -> dict[str, Site]:
    """{path: Site} of every kernel that is a matrix in the checkpoint, in tree order."""
    flat, names = paths.flatten(shapes), {}
    for weight in spec.weights:
        if weight.path.endswith("/kernel") and weight.axes == (1, 0):
            names.setdefault(weight.path, []).append(weight)
    found = {}
    for path in (path for path in flat if path in names):
        listed = sorted(names[path], key=lambda weight: weight.layer or 0)
        stack = () if listed[0].layer is None else (len(listed),)
        shape = flat[path].shape[len(stack) :]
        inputs = _leading(shape, listed[0].shape[1])
        modules = tuple(weight.name.removesuffix(".weight") for weight in listed)
        site = path.removesuffix("/kernel")
        found[site] = Site(site, stack, shape[:inputs], shape[inputs:], modules)
    return found


def fresh(adapter: Adapter, key: Array, params: Params) -> Params:
    """Leaves of a new adapter, which changes nothing yet; as PEFT begins.

    Args:
      key: each site has a stream of its own, so that one more target changes no other.
      params: the base, of which DoRA reads the norms.
    """
    flat, leaves = paths.flatten(params), {}
    for site in adapter.sites:
        own = jax.random.fold_in(key, zlib.crc32(site.path.encode()))
        bound = 1 / math.sqrt(math.prod(site.inputs))
        shape = (*site.stack, *site.inputs, adapter.rank)
        made = lora.Leaves(
            lora_a=jax.random.uniform(own, shape, jnp.float32, -bound, bound),
            lora_b=jnp.zeros((*site.stack, adapter.rank, *site.outputs), jnp.float32),
            lora_scale=jnp.full(site.stack, adapter.scale, jnp.float32),
        )
        if adapter.dora:
            size = jax.vmap(lora.norm) if site.stack else lora.norm
            made = made._replace(lora_magnitude=size(flat[f"{site.path}/kernel"], made))
        leaves |= leaves_at(site, made)
    return nest(leaves)


def leaves_at(site: Site, leaves: lora.Leaves) -> dict[str, Any]:
    """{path: leaf} of one site."""
    named = leaves._asdict().items()
    return {f"{site.path}/{name}": leaf for name, leaf in named if leaf is not None}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of {'a/b': leaf}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def is_adapter(path: str) -> bool:
    """Whether a parameter is a leaf of an adapter."""
    return path.rsplit("/", 1)[-1] in lora.Leaves._fields


def trains(path: str) -> bool:
    """Whether a parameter may train where there is an adapter: its base and its scale do not, heads
    do."""
    return (is_adapter(path) and not path.endswith("lora_scale")) or path.startswith("heads/")


def has(params: Params) -> bool:
    """Whether a tree holds an adapter."""
    return any(is_adapter(path) for path in paths.flatten(params))


def insert(params: Params, leaves: Params) -> Params:
    """The tree with these leaves in it, in place of those of the same path."""
    merged = dict(params)
    for name, leaf in leaves.items():
        below = isinstance(leaf, Mapping)
        merged[name] = insert(params.get(name, {}), leaf) if below else leaf
    return merged


def without(params: Params) -> Params:
    """The base: the same arrays without the adapter's."""
    return _select(params, lambda name: not is_adapter(name))


def extract(params: Params) -> Params:
    """The adapter's leaves alone; {} if there are none."""
    return _select(params, is_adapter, hollow=False)


def swap(params: Params, leaves: Params) -> Params:
    """The same base under another adapter; under none if `leaves` is {}."""
    return insert(without(params), leaves)


def merge(params: Params) -> Params:
    """A plain tree that computes the same, with the adapters added to their kernels."""
    if not isinstance(params, Mapping):
        return params
    if "lora_a" not in params:
        return {name: merge(leaf) for name, leaf in params.items()}
    kernel = lora.merged(params["kernel"], leaves_of(params))
    return {**without(params), "kernel": kernel}


def leaves_of(layer: Mapping[str, Any]) -> lora.Leaves:
    """The adapter in a layer's own parameters {kernel, lora_a, ...}."""
    return lora.Leaves(**{name: layer[name] for name in lora.Leaves._fields if name in layer})


def adapt(vlm: vlm_lib.VLM, adapter: Adapter) -> vlm_lib.VLM:
    """The model with an adapter among its parameters: `init` makes it, `rules` place it."""

    def init(key: Array) -> Params:
        params = vlm.init(key)
        return insert(params, fresh(adapter, key, params))

    return vlm._replace(init=init, rules=(*rules(adapter, vlm.rules), *vlm.rules))


def rules(adapter: Adapter, base: paths.Rules) -> paths.Rules:
    """Partition rules of the adapter's leaves, from those of the kernels.

    An axis of a kernel is cut in a leaf that has it too; the rank is never cut:

      kernel P(None, "fsdp", "tensor")   [L, D, H, h]
      lora_a P(None, "fsdp")             [L, D, r]
      lora_b P(None, None, "tensor")     [L, r, H, h]
    """
    made = []
    for site in adapter.sites:
        spec = paths.lookup(base, f"{site.path}/kernel", what="partition rule")
        n, k = len(site.stack), len(site.inputs)
        entries = tuple(spec) + (None,) * (n + k + len(site.outputs) - len(spec))
        stack, inputs, outputs = entries[:n], entries[n : n + k], entries[n + k :]
        cut = lora.Leaves(
            lora_a=_spec(*stack, *inputs),
            lora_b=_spec(*stack, None, *outputs),
            lora_scale=_spec(*stack),
            lora_magnitude=_spec(*stack, *outputs),
        )
        made += [(re.escape(path), spec) for path, spec in leaves_at(site, cut).items()]
    return tuple(made)


def _select(tree: Params, wanted: Callable[[str], bool], *, hollow: bool = True) -> Params:
    """The leaves whose names are wanted; `hollow`: with the modules that have no parameters."""
    found = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            below = _select(leaf, wanted, hollow=hollow)
            if below or (hollow and not leaf):
                found[name] = below
        elif wanted(name):
            found[name] = leaf
    return found


def _leading(shape: tuple[int, ...], size: int) -> int:
    """How many leading axes make up `size`."""
    for count in range(1, len(shape)):
        if math.prod(shape[:count]) == size:
            return count
    raise ValueError(f"A kernel {shape} does not begin with axes of {size} inputs.")


def _spec(*entries) -> PartitionSpec:
    while entries and entries[-1] is None:
        entries = entries[:-1]
    return PartitionSpec(*entries)
