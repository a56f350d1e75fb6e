"""The splash kernel, interpreted on the CPU, against the written-out rule and the plain route."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import config, sharding
from rubric_jax.models import attention, layers, splash
from tests.models import trees
from tests.train import steps

KERNEL = functools.partial(attention.tree, route="splash")


@pytest.mark.parametrize("branches", [0, 1, 2, 3])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_it_equals_the_dense_rule_in_values_and_gradients(branches, key_heads):
    case = trees.case((0, 4, 6), 6, branches, 3, key_heads=key_heads)
    trees.assert_same(KERNEL, attention.dense, case, attention.Kind(0.3, 5.0))


@pytest.mark.parametrize(
    ("prefix", "branches", "length"),
    [(300, 2, 100), (256, 4, 64), (100, 3, 200), (512, 0, 0)],
    ids=["across_blocks", "whole_blocks", "branches_longer_than_a_block", "prefix_alone"],
)
def test_several_blocks_equal_the_dense_rule(prefix, branches, length, monkeypatch):
    monkeypatch.setattr(splash, "_BLOCK", 128)
    case = trees.case((prefix, prefix // 3), prefix, branches, length)
    trees.assert_same(KERNEL, attention.dense, case, attention.Kind(0.3))


def test_blocks_without_a_pair_are_left_out():
    # 2 branches of 256 tokens behind a prefix of 256, in blocks of 256: of nine, those above the
    # diagonal and the one between the branches.
    rule = splash._rule(256, 256, 768, 0)
    used = rule.reshape(3, 256, 3, 256).any(axis=(1, 3))
    np.testing.assert_array_equal(used, [[1, 0, 0], [1, 1, 0], [1, 0, 1]])


def test_bfloat16_stays_near_the_dense_rule_in_float32():
    wide, narrow = (trees.case((4, 6), 6, 2, 3, dtype=d) for d in (np.float32, jnp.bfloat16))

    def dense(q, k, v, *others):
        return attention.dense(*(x.astype(jnp.float32) for x in (q, k, v)), *others)

    trees.assert_same(KERNEL, dense, narrow._replace(pull=wide.pull), attention.Kind(0.3), 0.06)


def test_every_device_computes_its_rows_and_heads():
    case, kind = trees.case((4, 6, 0, 5), 6, 2, 3), attention.Kind(0.3)
    sizes = dict(zip(sharding.AXES, (2, 2, 2), strict=True))
    with jax.set_mesh(sharding.make(config.Mesh(**sizes))):
        trees.assert_same(KERNEL, attention.dense, case, kind)


def test_what_the_kernel_cannot_do_is_an_error_where_it_is_asked_for():
    case = trees.case((4, 6, 5), 6, 2, 3)
    windows = attention.Kind(0.3, 0.0, jnp.int32(2))
    blocks = case.tables._replace(blocks=jnp.zeros((3, 6), jnp.int32))
    with pytest.raises(ValueError, match="is 'splash', but layers have windows; take 'auto'"):
        KERNEL(*case.qkv, None, case.tables, windows)
    with pytest.raises(ValueError, match="prefix tokens see each other both ways"):
        KERNEL(*case.qkv, None, blocks, attention.Kind(0.3))
    mesh = sharding.make(config.Mesh(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="mesh does not divide rows"):
        KERNEL(*case.qkv, None, case.tables, attention.Kind(0.3))


@pytest.mark.parametrize(("kind", "wanted"), [((0.3,), True), ((0.3, 0.0, jnp.int32(2)), False)])
def test_auto_takes_the_kernel_on_a_tpu_where_the_rule_allows_it(kind, wanted, monkeypatch):
    case = trees.case((4, 6), 6, 2, 3)

    def traced(route):
        def out(*qkv):
            return attention.tree(*qkv, None, case.tables, attention.Kind(*kind), route=route)[0]

        return "pallas_call" in str(jax.make_jaxpr(out)(*case.qkv))

    assert not traced("auto")  # here
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    assert traced("auto") is wanted
    assert not traced("plain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "remat"), [((1, 1, 1), "none"), ((1, 1, 1), "full"), ((2, 2, 2), "full")]
)
def test_a_step_with_the_kernel_equals_the_plain_one(mesh, remat):
    plain = steps.case(steps.DPO)
    kernel = steps.case(steps.DPO, mesh=mesh, remat=remat, attention="splash")
    runs = (case.run(steps.batch(case, rows=8)) for case in (kernel, plain))
    steps.assert_close(*runs)
