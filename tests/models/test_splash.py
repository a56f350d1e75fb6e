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
    rule = splash._Rule(prefix=256, length=256, size=768, tail=0)
    blocks = [slice(start, start + 256) for start in (0, 256, 512)]
    used = [[rule[queries, keys].any() for keys in blocks] for queries in blocks]
    np.testing.assert_array_equal(used, [[1, 0, 0], [1, 1, 0], [1, 0, 1]])


def test_bfloat16_stays_near_the_dense_rule_in_float32():
    trees.assert_near_in_bfloat16(KERNEL, attention.dense, attention.Kind(0.3))


@pytest.mark.parametrize(("data", "lengths"), [(2, (4, 6, 0, 5)), (4, (6, 4, 5))])
def test_every_device_computes_its_heads_and_its_rows_where_they_divide(data, lengths):
    case, kind = trees.case(lengths, 6, 2, 3), attention.Kind(0.3)
    with jax.set_mesh(sharding.make(config.Mesh(data=data, fsdp=4 // data, tensor=2))):
        trees.assert_same(KERNEL, attention.dense, case, kind)


def test_a_mesh_may_have_other_axes():
    mesh = jax.make_mesh(
        (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    with jax.set_mesh(mesh):
        trees.assert_same(KERNEL, attention.dense, trees.case((4, 6), 6, 2, 3), attention.Kind(0.3))


def test_what_the_kernel_cannot_do_is_an_error_where_it_is_asked_for():
    case = trees.case((4, 6, 5), 6, 2, 3)
    windows = attention.Kind(0.3, 0.0, jnp.int32(2))
    blocks = case.tables._replace(blocks=jnp.zeros((3, 6), jnp.int32))
    with pytest.raises(ValueError, match="is 'splash', but layers have windows; take 'auto'"):
        KERNEL(*case.qkv, None, case.tables, windows)
    with pytest.raises(ValueError, match="prefix tokens see each other both ways"):
        KERNEL(*case.qkv, None, blocks, attention.Kind(0.3))
    mesh, uneven = sharding.make(config.Mesh(data=2, tensor=4)), "tensor does not divide key heads"
    for route in ("splash", "cudnn"):
        with jax.set_mesh(mesh), pytest.raises(ValueError, match=uneven):
            attention.tree(*case.qkv, None, case.tables, attention.Kind(0.3), route=route)


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
    ("route", "mesh", "remat"),
    [
        ("splash", (1, 1, 1), "none"),
        ("splash", (1, 1, 1), "full"),
        ("splash", (2, 2, 2), "full"),
        ("cudnn", (2, 2, 2), "full"),
    ],
)
def test_a_step_with_a_kernel_equals_the_plain_one(route, mesh, remat):
    plain = steps.case(steps.DPO)
    kernel = steps.case(steps.DPO, mesh=mesh, remat=remat, attention=route)
    runs = (case.run(steps.batch(case, rows=8)) for case in (kernel, plain))
    steps.assert_close(*runs)
