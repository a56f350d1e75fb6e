"""Shared-prefix rows against the plain routes: the written-out mask, and separate sequences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import attention, layers, rows
from tests import toys
from tests.models import trees

LAYOUTS = {
    "N2_M1": ("chosen", "rejected"),
    "N3_M1": ("a", "b", "c"),
    "N8_M1": tuple(f"response_{k}" for k in range(8)),
    "N2_M2": ("chosen", "rejected@corrupted"),
    "N3_M2": ("chosen", "rejected", "chosen@corrupted"),
    "N8_M2": tuple(f"response_{k}" + "@corrupted" * (k % 3 == 0) for k in range(8)),
}


@pytest.fixture(scope="module")
def toy():
    return toys.model()


def test_slots_of_uneven_contexts():
    layout = types.Layout.of(("chosen", "rejected", "chosen@corrupted"))
    np.testing.assert_array_equal(rows.slots(layout), [[0, 1], [2, 0]])


def test_mask_of_two_branches_by_hand():
    valid = jnp.array([[True, True, False]])
    got = attention.mask(valid, branches=2, length=2)[0].astype(int)
    want = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],  # padding sees itself; nobody else sees it
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(got, want)


def test_positions_restart_at_the_end_of_the_prefix():
    got = rows.positions(jnp.array([2, 3]), prefix=3, branches=2, length=2)
    np.testing.assert_array_equal(got, [[0, 1, 2, 2, 3, 2, 3], [0, 1, 2, 3, 4, 3, 4]])


def test_mask_with_a_window_by_hand():
    valid = jnp.array([[True, True, True, False]])
    got = attention.mask(valid, branches=2, length=2, window=jnp.int32(2))[0].astype(int)
    want = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 0, 0],  # padding stands wherever; nobody reads it
        [0, 0, 1, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1, 1],
    ]
    keep = np.arange(8) != 3
    np.testing.assert_array_equal(got[keep][:, keep], np.array(want)[keep][:, keep])


def test_mask_with_blocks_by_hand():
    valid, blocks = jnp.array([[True, True, True, False]]), jnp.array([[-1, 0, 0, -1]])
    got = attention.mask(valid, branches=1, length=1, blocks=blocks)[0].astype(int)
    want = [
        [1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0],  # the first of two features sees the second
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]
    np.testing.assert_array_equal(got, want)


RULES = {
    "causal": {},
    "window": {"window": 2},
    "wide_window": {"window": 4},
    "no_window": {"window": 0},
    "blocks": {"blocks": [[0, 0, -1, 1, -1, -1], [-1, 2, 2, 2, 2, -1]]},
    "both": {"window": 2, "blocks": [[0, 0, 0, 0, -1, -1], [0, 0, 0, 0, 0, 0]]},
}


def ruled(branches, rule, cap):
    """(a case of two rows, the kind of layer) under one of RULES."""
    window, blocks = RULES[rule].get("window"), RULES[rule].get("blocks")
    case = trees.case((4, 6), 6, branches, 3)
    tables = case.tables._replace(blocks=None if blocks is None else jnp.array(blocks))
    kind = attention.Kind(0.3, cap, None if window is None else jnp.int32(window))
    return case._replace(tables=tables), kind


@pytest.mark.parametrize(
    ("branches", "rule"),
    [
        (1, "causal"),
        (2, "causal"),
        (3, "causal"),
        (8, "causal"),
        *((2, r) for r in RULES if r != "causal"),
    ],
)
@pytest.mark.parametrize("strip", [2, 128])
@pytest.mark.parametrize("large", [0, 10**9], ids=["heads_in_turn", "heads_at_once"])
def test_tree_attention_equals_the_dense_rule_in_values_and_gradients(
    branches, rule, large, strip, monkeypatch
):
    monkeypatch.setattr(attention, "_STRIP", strip)
    monkeypatch.setattr(attention, "_LARGE", large)
    case, kind = ruled(branches, rule, cap=5.0 if rule == "both" else 0.0)
    trees.assert_same(attention.tree, attention.dense, case, kind)


@pytest.mark.parametrize(
    ("branches", "rule"), [(0, "causal"), (1, "causal"), (3, "causal"), *((2, r) for r in RULES)]
)
def test_fused_calls_equal_the_dense_rule_in_values_and_gradients(branches, rule):
    fused = functools.partial(attention.tree, route="cudnn")
    trees.assert_same(fused, attention.dense, *ruled(branches, rule, cap=0.0))


def test_fused_attention_says_what_it_cannot_do(monkeypatch):
    case = trees.case((4, 6), 6, 2, 3)
    fused = functools.partial(attention.tree, *case.qkv, None, case.tables, route="cudnn")
    with pytest.raises(ValueError, match="is 'cudnn', but scores have a cap; take 'auto'"):
        fused(attention.Kind(0.3, 5.0))
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    with pytest.raises(ValueError, match=r"model\.dtype is float32 and .* an odd length"):
        fused(attention.Kind(0.3))
    case = trees.case((4, 6), 6, 2, 4, size=20, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="is 'cudnn', but the head size is not a multiple of 8"):
        attention.tree(*case.qkv, None, case.tables, attention.Kind(0.3), route="cudnn")


@pytest.mark.parametrize("large", [0, 10**9], ids=["heads_in_turn", "heads_at_once"])
def test_tree_attention_in_bfloat16_stays_near_the_dense_rule(large, monkeypatch):
    monkeypatch.setattr(attention, "_LARGE", large)
    trees.assert_near_in_bfloat16(attention.tree, attention.dense, attention.Kind(0.3))


def test_a_row_without_a_prompt_has_finite_values_and_gradients():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(1, 7, 2, 4)).astype(np.float32) for _ in range(3))
    tables = rows.tables(jnp.zeros((1, 7, 2)), jnp.array([0]), prefix=3, length=2)

    def total(q, k, v):
        return attention.tree(q, k, v, None, tables, attention.Kind(0.5))[0].sum()

    for leaf in jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)[1]:
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("large", [0, 10**9], ids=["heads_in_turn", "heads_at_once"])
def test_pictures_see_what_is_real_both_ways(large, monkeypatch):
    monkeypatch.setattr(attention, "_LARGE", large)
    rng = np.random.default_rng(0)
    q, k, v, pull = (rng.normal(size=(3, 5, 4, 8)).astype(np.float32) for _ in range(4))
    real = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)

    def plain(q, k, v):
        scores = jnp.einsum("rqhd,rkhd->rhqk", q, k) / np.sqrt(8)
        scores = jnp.where(real[:, None, None], scores, -1e30)
        return jnp.einsum("rhqk,rkhd->rqhd", jax.nn.softmax(scores), v)

    def looped(q, k, v):
        return attention.each_head(attention.both_ways, q, k, v, jnp.array(real))

    (got, pulled), (want, wanted) = (jax.vjp(route, q, k, v) for route in (looped, plain))
    np.testing.assert_allclose(got, want, atol=1e-6)
    for a, b in zip(pulled(pull), wanted(pull)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def separate(batch, layout):
    """Every branch with its prompt in a row of its own, as a model without branches reads them."""
    contexts, branches = np.array(layout.context_of), len(layout.branches)

    def spread(x):  # [B, M, ...] -> [B*N, 1, ...], still G groups of consecutive rows
        return x[:, contexts].reshape(-1, 1, *x.shape[2:])

    return batch._replace(
        prompts=spread(batch.prompts),
        prompt_lengths=spread(batch.prompt_lengths),
        media=batch.media | {"index": spread(batch.media["index"])},
        responses=batch.responses.reshape(len(batch.responses) * branches, 1, -1),
    )


# Compiling the gradients takes most of the time.
MARKS = {"N2_M2": pytest.mark.slow} | dict.fromkeys(
    ("N3_M1", "N8_M1", "N3_M2", "N8_M2"), pytest.mark.sweep
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=MARKS.get(n, ())) for n in LAYOUTS])
def test_shared_prefix_equals_separate_rows_in_values_and_gradients(name, toy):
    layout, (vlm, params) = types.Layout.of(LAYOUTS[name]), toy
    batch = toys.batch(vlm, layout, rows=2, response=3)
    signs = jnp.asarray(np.random.default_rng(0).normal(size=batch.responses.shape))

    def shared(params):
        h = vlm.hidden(params, batch, layout)
        return autoregressive.token_logps(h, vlm.unembed(params), batch.responses, chunk=4)

    def apart(params):
        rows = separate(batch, layout)
        h = vlm.hidden(params, rows, types.Layout.of(("only",)))
        logps = autoregressive.dense(h, vlm.unembed(params), rows.responses)
        return logps.reshape(batch.responses.shape)

    def both(route):
        def pulled(params):
            logps = route(params)
            return jnp.sum(logps * signs), logps

        grads, logps = jax.jit(jax.grad(pulled, has_aux=True))(params)
        return logps, grads

    (value, found), (want, wanted) = both(shared), both(apart)
    np.testing.assert_allclose(value, want, atol=2e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)


def test_an_image_that_two_contexts_share_is_encoded_once(toy):
    vlm, _ = toy
    image = np.ones((16, 16, 3), np.float32)
    prompts = np.full((1, 2, 4), toys.IMAGE_TOKEN, np.int32)
    media = vlm.media(prompts, [toys.pictures([image])], [[[0], [0]]], 1)
    assert media["pixels"].shape[:2] == (1, 1)
    np.testing.assert_array_equal(media["index"][0, 0], media["index"][0, 1])


def test_placeholders_that_do_not_match_the_images_are_an_error(toy):
    vlm, _ = toy
    prompts = np.full((1, 1, 3), toys.IMAGE_TOKEN, np.int32)
    with pytest.raises(ValueError, match="3 image tokens, but 1 images need 4"):
        vlm.media(prompts, [toys.pictures(np.zeros((1, 16, 16, 3)))], [[[0]]], 1)


def test_padding_does_not_change_logps(toy):
    layout, (vlm, params) = types.Layout.of(("chosen", "rejected")), toy
    batch = toys.batch(vlm, layout)
    wide = batch._replace(
        prompts=np.pad(batch.prompts, ((0, 0), (0, 0), (0, 5)), constant_values=7),
        media=batch.media
        | {"index": np.pad(batch.media["index"], ((0, 0), (0, 0), (0, 5)), constant_values=-1)},
        responses=np.pad(batch.responses, ((0, 0), (0, 0), (0, 3)), constant_values=9),
    )
    hidden = jax.jit(vlm.hidden, static_argnums=2)
    short = hidden(params, batch, layout)
    long = hidden(params, wide, layout)[:, :, : short.shape[2]]
    np.testing.assert_allclose(short, long, atol=1e-5)
