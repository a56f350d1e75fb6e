"""Soups: weighted averages of the parameters of policies that come from one start.

A reward soup averages policies that were each trained for one axis, by how much every axis counts:
weights (1, 0) give the first policy back, and a weighting in between costs no training.
Rame et al., arXiv:2306.04488.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from rubric_jax import paths, types
from rubric_jax.models import head_files
from rubric_jax.models import vlm as vlm_lib
from rubric_jax.models import weights as weights_lib


def soup(members: Iterable[types.Params], weights: Sequence[float]) -> types.Params:
    """sum_i weights_i members_i in float32, in the dtypes of the first member.

    Args:
      members: trees of arrays with equal paths and shapes; taken one after the other.
      weights: one for each, of sum 1. A negative one walks away from its member.

    Raises ValueError on weights that do not fit, and names the first parameter that differs.
    """
    if not weights or not all(map(math.isfinite, weights)) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"The weights of a soup are {list(weights)}; their sum must be 1.")
    first = total = None
    count = 0
    for tree in members:
        count += 1
        if count > len(weights):
            break
        part = _times(tree, weights[count - 1])
        if first is None:
            first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
            total = part
        else:
            _check_alike(first, tree, count - 1)
            total = jax.tree.map(jnp.add, total, part)
    if count != len(weights):
        more = "more" if count > len(weights) else count
        raise ValueError(f"The soup has {len(weights)} weights, but {more} members.")
    return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), total, first)


def write(
    directory: str | pathlib.Path,
    members: Sequence[str | pathlib.Path],
    weights: Sequence[float],
    vlm: vlm_lib.VLM,
) -> int:
    """Writes the soup of Hugging Face directories as another; returns the number of tensors.

    Names, dtypes, tokenizer and processor are those of the first member. Heads are averaged too;
    where a member lacks them, those of the first are copied. Host memory holds three times the
    parameters in float32.

    Args:
      directory: made if needed.
      members: directories of one architecture.
      weights: as in `soup`.
      vlm: their model.
    """
    host = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    places = jax.tree.map(lambda _: host, shapes)
    read = (
        weights_lib.load(member, vlm.weights, shapes, dtype=jnp.float32, shardings=places)
        for member in members
    )
    written = weights_lib.write(directory, soup(read, weights), vlm.weights, source=members[0])
    spec = head_files.saved(members[0])
    if spec:
        heads = [head_files.tensors(member) for member in members]
        alike = all(head_files.saved(member) == spec for member in members)
        head_files.write(directory, soup(heads, weights) if alike else heads[0], spec)
    return written


def _times(tree: types.Params, weight: float) -> types.Params:
    return jax.tree.map(lambda leaf: weight * jnp.asarray(leaf, jnp.float32), tree)


def _check_alike(first: types.Params, other: types.Params, index: int) -> None:
    a, b = paths.flatten(first), paths.flatten(other)
    for path in {**a, **b}:
        found = [str(tree[path].shape) if path in tree else "missing" for tree in (a, b)]
        if found[0] != found[1]:
            raise ValueError(
                f"Member {index} of the soup does not fit the first: {path!r} is {found[1]}, "
                f"there {found[0]}. A soup averages policies of one architecture."
            )
