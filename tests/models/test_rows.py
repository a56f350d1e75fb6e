"""Shared-prefix rows against the plain routes: the written-out mask, and separate sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import attention, rows
from tests import toys

LAYOUTS = {
    "N2_M1": ("chosen", "rejected"),
    "N3_M1": ("a", "b", "c"),
    "N8_M1": tuple(f"response_{k}" for k in range(8)),
    "N2_M2": ("chosen", "rejected@corrupted"),
    "N3_M2": ("chosen", "rejected", "chosen@corrupted"),
    "N8_M2": tuple(f"response_{k}" + "@corrupted" * (k % 3 == 0) for k in range(8)),
}


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


@pytest.mark.parametrize("branches", [1, 2, 3, 8])
def test_tree_attention_equals_the_dense_rule(branches):
    keys = jax.random.split(jax.random.key(branches), 3)
    size = 6 + branches * 3
    q = jax.random.normal(keys[0], (2, size, 4, 8))
    k, v = (jax.random.normal(key, (2, size, 2, 8)) for key in keys[1:])
    lengths = jnp.array([4, 6])
    tables = rows.tables(jnp.zeros((2, size, 4)), lengths, prefix=6, length=3)
    got, _ = attention.tree(q, k, v, None, tables)
    want, _ = attention.dense(q, k, v, None, tables)
    real = np.ones((2, size), bool)
    real[0, 4:6] = False
    np.testing.assert_allclose(got[real], want[real], atol=1e-5)


def separate(vlm, params, batch, layout, n):
    """Branch n with its prompt in rows of their own, as a model without branches would read it."""
    m = layout.context_of[n]
    alone = batch._replace(
        prompts=batch.prompts[:, m : m + 1],
        prompt_lengths=batch.prompt_lengths[:, m : m + 1],
        media=batch.media | {"index": batch.media["index"][:, m : m + 1]},
        responses=batch.responses[:, n : n + 1],
    )
    h = vlm.hidden(params, alone, types.Layout.of(("only",)))
    return autoregressive.dense(h, vlm.unembed(params), alone.responses)[:, 0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_shared_prefix_equals_separate_rows_in_values_and_gradients(name):
    layout = types.Layout.of(LAYOUTS[name])
    vlm, params = toys.model()
    batch = toys.batch(vlm, layout, rows=2, response=3)
    signs = jnp.asarray(np.random.default_rng(0).normal(size=batch.responses.shape))

    def shared(params):
        h = vlm.hidden(params, batch, layout)
        return autoregressive.token_logps(h, vlm.unembed(params), batch.responses, chunk=4)

    def apart(params):
        logps = [separate(vlm, params, batch, layout, n) for n in range(len(layout.branches))]
        return jnp.stack(logps, axis=1)

    def both(route):
        return jax.jit(lambda p: (route(p), jax.grad(lambda p: jnp.sum(route(p) * signs))(p)))

    (value, found), (want, wanted) = both(shared)(params), both(apart)(params)
    np.testing.assert_allclose(value, want, atol=2e-5)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, atol=2e-5 * scale)


def test_an_image_that_two_contexts_share_is_encoded_once():
    layout = types.Layout.of(("chosen", "rejected@corrupted"))
    vlm, _ = toys.model()
    image = np.ones((16, 16, 3), np.float32)
    prompts = np.full((1, 2, 4), toys.IMAGE_TOKEN, np.int32)
    media = vlm.media(prompts, [[image]], [[[0], [0]]], 1)
    assert media["pixels"].shape[:2] == (1, 1)
    np.testing.assert_array_equal(media["index"][0, 0], media["index"][0, 1])
    assert layout.contexts == ("clean", "corrupted")


def test_placeholders_that_do_not_match_the_images_are_an_error():
    vlm, _ = toys.model()
    prompts = np.full((1, 1, 3), toys.IMAGE_TOKEN, np.int32)
    with pytest.raises(ValueError, match="3 image tokens, but 1 images need 4"):
        vlm.media(prompts, [[np.zeros((16, 16, 3), np.float32)]], [[[0]]], 1)


def test_padding_does_not_change_logps():
    layout = types.Layout.of(("chosen", "rejected"))
    vlm, params = toys.model()
    batch = toys.batch(vlm, layout)
    wide = batch._replace(
        prompts=np.pad(batch.prompts, ((0, 0), (0, 0), (0, 5)), constant_values=7),
        media=batch.media
        | {"index": np.pad(batch.media["index"], ((0, 0), (0, 0), (0, 5)), constant_values=-1)},
        responses=np.pad(batch.responses, ((0, 0), (0, 0), (0, 3)), constant_values=9),
    )
    short = vlm.hidden(params, batch, layout)
    long = vlm.hidden(params, wide, layout)[:, :, : short.shape[2]]
    np.testing.assert_allclose(short, long, atol=1e-5)
