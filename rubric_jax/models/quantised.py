"""A frozen base in few bits: in place of each kernel of the decoder stand its codes and scales.

  decoder/layers/attn/q/kernel        bfloat16 [L, D, H, h]
  decoder/layers/attn/q/kernel/codes  int8 [L, D, H, h]       or uint8 [L, D/2, H, h]: NF4
  decoder/layers/attn/q/kernel/scale  float32 [L, 1, H, h]    or [L, D/64, H, h]

`layers.Linear` reads them, and never has more than one layer's kernel at a time. Embeddings, norms,
biases, the projector and the vision tower stay as they are.
"""

from __future__ import annotations

import functools
import re

import jax
from jax.sharding import PartitionSpec

from rubric_jax import paths, types
from rubric_jax.models import adapters, lowbit
from rubric_jax.models import vlm as vlm_lib

Array = types.Array
Params = types.Params

_PART = "decoder/"


def sites(vlm: vlm_lib.VLM) -> dict[str, adapters.Site]:
    """{path of a kernel: its site} of what is quantised in a model."""
    known = adapters.sites(vlm.weights, jax.eval_shape(vlm.init, jax.random.key(0)))
    return {f"{path}/kernel": site for path, site in known.items() if path.startswith(_PART)}


def quantise(vlm: vlm_lib.VLM, kind: str) -> vlm_lib.VLM:
    """The model over such a base: `init` gives one, `rules` place it."""
    own = sites(vlm)

    def init(key: Array) -> Params:
        return paths.map_named(functools.partial(encode, own, kind), vlm.init(key))

    return vlm._replace(init=init, rules=(*_rules(own, vlm.rules, kind), *vlm.rules))


def encode(own: dict[str, adapters.Site], kind: str, path: str, leaf: Array):
    """A parameter as the quantised base has it."""
    if path not in own:
        return leaf
    site = own[path]
    return lowbit.encode(leaf, kind, stack=len(site.stack), inputs=len(site.inputs))


def is_code(path: str) -> bool:
    """Whether a parameter is a part of a quantised kernel, which never trains."""
    return path.endswith(("/kernel/codes", "/kernel/scale"))


def _rules(own: dict[str, adapters.Site], base: paths.Rules, kind: str) -> paths.Rules:
    """Codes lie as their kernels do; so do scales, but along axes that have shrunk to 1."""
    made = []
    for path, site in own.items():
        spec = paths.lookup(base, path, what="partition rule")
        entries = list(spec) + [None] * (
            len(site.stack) + len(site.inputs) + len(site.outputs) - len(spec)
        )
        made.append((re.escape(f"{path}/codes"), PartitionSpec(*entries)))
        if kind == "int8":
            for axis in range(len(site.stack), len(site.stack) + len(site.inputs)):
                entries[axis] = None
        made.append((re.escape(f"{path}/scale"), PartitionSpec(*entries)))
    return tuple(made)
