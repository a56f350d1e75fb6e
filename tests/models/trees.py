"""Random queries, keys and values of rows with branches, and two routes compared on them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rubric_jax.models import rows


class Case(NamedTuple):
    qkv: tuple[Any, Any, Any]
    pull: Any  # what the outputs are weighed with for the gradient
    real: np.ndarray  # bool [R, S]; nothing reads the padding of a prefix
    tables: Any


def case(lengths, prefix, branches, length, *, heads=4, key_heads=2, size=8, dtype=np.float32):
    rng = np.random.default_rng(branches)
    shape = len(lengths), prefix + branches * length
    q, pull = (rng.normal(size=(*shape, heads, size)).astype(dtype) for _ in range(2))
    k, v = (rng.normal(size=(*shape, key_heads, size)).astype(dtype) for _ in range(2))
    real = np.ones(shape, bool)
    for row, end in enumerate(lengths):
        real[row, end:prefix] = False
    angles = jnp.zeros((*shape, size // 2))
    tables = rows.tables(angles, jnp.array(lengths), prefix=prefix, length=length)
    return Case((q, k, v), jnp.where(real[:, :, None, None], pull, 0), real, tables)


def assert_same(route, other, case, kind, atol=1e-5):
    """Both routes give the same values and gradients on what is real."""

    def pulled(route, *qkv):
        out, _ = route(*qkv, None, case.tables, kind)
        return jnp.sum((out * case.pull).astype(jnp.float32)), out

    def both(route):
        grad = jax.grad(functools.partial(pulled, route), argnums=(0, 1, 2), has_aux=True)
        return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.jit(grad)(*case.qkv))

    (found, got), (wanted, want) = both(route), both(other)
    np.testing.assert_allclose(got[case.real], want[case.real], atol=atol)
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, atol=atol)


def assert_near_in_bfloat16(route, other, kind):
    """`route` in bfloat16 gives nearly what `other` gives in float32 of the same numbers."""
    narrow = case((4, 6), 6, 2, 3, dtype=jnp.bfloat16)

    def wide(q, k, v, *rest):
        return other(*(x.astype(jnp.float32) for x in (q, k, v)), *rest)

    assert_same(route, wide, narrow, kind, atol=0.06)
