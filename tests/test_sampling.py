"""The sampler against teacher forcing, its own random streams, and its stopping rule."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import config, sampling, sharding, types
from rubric_jax.likelihoods import autoregressive
from tests import toys

NEVER = (64,)  # no such token


@pytest.fixture(scope="module")
def toy():
    """A model with decisive, varied logits, and prompts with 0, 1 and 2 images."""
    vlm, params = toys.model()
    params["decoder"]["unembedding"] = 20 * params["decoder"]["unembedding"]
    return vlm, params, toys.batch(vlm, types.Layout.of(("only",)), rows=3)


def sample(toy, *, seed=0, count=3, length=6, temperature=1.0, stop=NEVER, **knobs):
    vlm, params, batch = toy
    return sampling.sample(
        vlm,
        params,
        batch,
        np.arange(len(batch.prompt_lengths), dtype=np.uint32) + seed,
        count=count,
        length=length,
        temperature=temperature,
        stop=stop,
        **knobs,
    )


def prompts(rows):
    """What of a batch the sampler itself reads, for fake models."""
    ones = np.ones((rows, 1), np.int32)
    return types.Batch(ones[:, None], ones, {}, None, None, None)


def teacher_forced(toy, ids):
    """log p of sampled ids [B, K, T], read back as the K branches of a training batch."""
    vlm, params, batch = toy
    layout = types.Layout.of(tuple(f"response_{k}" for k in range(ids.shape[1])))
    hidden = jax.jit(vlm.hidden, static_argnums=2)(params, batch._replace(responses=ids), layout)
    return autoregressive.token_logps(hidden, vlm.unembed(params), ids, chunk=8)


@pytest.mark.parametrize("count", [1, 3])
def test_recorded_logps_are_those_of_teacher_forcing(count, toy):
    for knobs in (
        {},
        {"temperature": 0.0},
        {"temperature": 2.5},
        {"temperature": 2.5, "top_k": 5, "top_p": 0.9, "min_p": 0.02},
    ):
        got = sample(toy, count=count, **knobs)
        assert got.mask.all()
        want = teacher_forced(toy, got.ids)
        assert np.std(want) > 0.1  # it can tell
        # The two routes add up in other orders.
        np.testing.assert_allclose(got.logps, want, atol=5e-5)


def test_greedy_takes_the_most_likely_token_of_teacher_forcing(toy):
    vlm, params, batch = toy
    ids = sample(toy, count=1, temperature=0.0).ids
    layout = types.Layout.of(("only",))
    hidden = jax.jit(vlm.hidden, static_argnums=2)(params, batch._replace(responses=ids), layout)
    np.testing.assert_array_equal(ids, jnp.argmax(hidden @ vlm.unembed(params), axis=-1))


def test_a_stop_token_ends_the_response_and_stays_in_it(toy):
    free = sample(toy)
    ids = np.asarray(free.ids)
    stop = (int(ids[0, 0, 2]), int(ids[1, 1, 3]))  # tokens that do come up
    got = sample(toy, stop=stop)
    ends = np.isin(ids, stop)
    before = np.cumsum(ends, axis=-1) - ends == 0  # up to the first stop token, with it
    assert not before.all()
    np.testing.assert_array_equal(got.mask, before)
    np.testing.assert_array_equal(got.ids, np.where(before, ids, 0))
    np.testing.assert_allclose(got.logps, np.where(before, free.logps, 0), atol=1e-6)
    np.testing.assert_array_equal(got.finished, ends.any(axis=-1))
    assert got.finished.any()
    assert not got.finished.all()
    assert not free.finished.any()  # ended by the limit


def test_the_loop_ends_with_the_last_response():
    steps = []

    def decode(params, cache, ids):
        jax.debug.callback(lambda: steps.append(1))
        # Row b of the batch may say token 1 (the stop token) at step b + 1.
        step, rows = cache
        logits = jnp.where(step + 1 >= jnp.arange(2)[:, None, None], jnp.eye(3)[1], jnp.eye(3)[2])
        return jnp.broadcast_to(logits, (2, 3, 3)), (step + 1, rows)

    state = jnp.eye(3)[jnp.array([1, 2])]
    vlm = Fake(lambda *_: (state, (0, 2)), decode, lambda _: 50 * jnp.eye(3))
    got = sample((vlm, {}, prompts(2)), length=1000, stop=(1,))
    jax.effects_barrier()
    np.testing.assert_array_equal(got.mask.sum(-1), [[1] * 3, [2] * 3])
    assert len(steps) == 2

    # Row 1 is padding now, and nobody waits for it.
    batch = prompts(2)._replace(prompt_lengths=np.array([[1], [0]], np.int32))
    got = sample((vlm, {}, batch), length=1000, stop=(1,))
    jax.effects_barrier()
    np.testing.assert_array_equal(got.mask.sum(-1), [[1] * 3, [0] * 3])
    np.testing.assert_array_equal(got.finished, [[True] * 3, [False] * 3])
    assert len(steps) == 3


Fake = collections.namedtuple("Fake", ["prefill", "decode", "unembed", "logit_cap"], defaults=[0.0])


def test_temperature_sampling_follows_the_distribution():
    # One step from the same logits, 1.0, 0.5, 0 and -1, in 40 rows of 100 responses.
    logits = jnp.array([1.0, 0.5, 0.0, -1.0])
    vlm = Fake(
        lambda *_: (jnp.broadcast_to(logits, (40, 4)), 0),
        lambda params, cache, ids: (jnp.zeros((40, 100, 4)), 0),
        lambda _: jnp.eye(4),
    )
    for temperature in (1.0, 0.5):
        got = sample((vlm, {}, prompts(40)), count=100, length=1, temperature=temperature)
        counts = np.bincount(np.asarray(got.ids).ravel(), minlength=4)
        expected = 4000 * np.asarray(jax.nn.softmax(logits / temperature))
        chi_square = np.sum((counts - expected) ** 2 / expected)
        assert chi_square < 16.3  # 3 degrees of freedom, 1 in 1000
        want = np.asarray(jax.nn.log_softmax(logits))[np.asarray(got.ids)]  # at temperature 1
        np.testing.assert_allclose(got.logps, want, atol=1e-6)


def test_successive_tokens_are_drawn_independently():
    vlm = Fake(
        lambda *_: (jnp.zeros((40, 4)), 0),
        lambda params, cache, ids: (jnp.zeros((40, 100, 4)), 0),
        lambda _: jnp.eye(4),
    )
    ids = np.asarray(sample((vlm, {}, prompts(40)), count=100, length=2).ids)
    assert abs(np.mean(ids[..., 0] == ids[..., 1]) - 0.25) < 0.03  # 4 standard errors


def test_seeds_decide_the_samples(toy):
    hot = {"temperature": 4.0}  # flat, so that equal responses would be no coincidence
    one, again, other = sample(toy, **hot), sample(toy, **hot), sample(toy, seed=3, **hot)
    np.testing.assert_array_equal(one.ids, again.ids)
    assert (one.ids != other.ids).any(axis=-1).all()
    flat = np.asarray(one.ids).reshape(9, -1)
    assert len({tuple(row) for row in flat}) == 9  # every response has a stream of its own


def test_a_response_does_not_depend_on_how_many_others_are_drawn(toy):
    one, three = sample(toy, count=1), sample(toy, count=3)
    np.testing.assert_array_equal(one.ids, three.ids[:, :1])
    np.testing.assert_allclose(one.logps, three.logps[:, :1], atol=1e-6)


def test_a_response_does_not_depend_on_the_place_of_its_row(toy):
    vlm, params, _ = toy
    layout = types.Layout.of(("only",))
    batch = toys.batch(vlm, layout, rows=6)  # one image group: rows may stand anywhere
    seeds = np.array([7, 1, 2**32 - 1, 7, 0, 5], np.uint32)

    def responses(order):
        rows = {name: getattr(batch, name)[order] for name in ("prompts", "prompt_lengths")}
        media = batch.media | {"index": batch.media["index"][order]}
        knobs = {"temperature": 1.5, "top_k": 20, "top_p": 0.95, "min_p": 0.01}
        return sampling.sample(
            vlm, params, batch._replace(media=media, **rows), seeds[order],
            count=3, length=6, stop=NEVER, **knobs,
        )  # fmt: skip

    whole = responses(np.arange(6))
    for order in (np.array([4, 2, 0, 5, 3, 1]), np.array([3]), np.array([1, 5])):
        got = responses(order)
        np.testing.assert_array_equal(got.ids, np.asarray(whole.ids)[order])
        np.testing.assert_allclose(got.logps, np.asarray(whole.logps)[order], atol=3e-5)
    # Rows 0 and 3 have one seed and one stream, but other prompts.
    assert len({tuple(row) for row in np.asarray(whole.ids).reshape(18, -1)}) > 12


# Logits, and which of them the filters leave: probabilities .5, .25, .125, .0625, .0625.
HALVES = np.log(np.array([0.25, 0.5, 0.0625, 0.125, 0.0625], np.float32))


@pytest.mark.parametrize(
    ("knobs", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_k": 4}, [0, 1, 2, 3, 4]),  # a tie for the fourth place
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.9}, [0, 1, 2, 3, 4]),  # the tie again
        ({"min_p": 0.3}, [0, 1]),
        ({"min_p": 0.2}, [0, 1, 3]),
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.66}, [1]),  # of what is left, .67 and .33
        ({"top_p": 1e-6, "min_p": 1.0, "top_k": 1}, [1]),
    ],
)
def test_filters_leave_the_tokens_worked_out_by_hand(knobs, kept):
    knobs = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | knobs
    got = sampling.filtered(jnp.asarray(HALVES), **{k: jnp.asarray(v) for k, v in knobs.items()})
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(got)), kept)
    np.testing.assert_array_equal(np.asarray(got)[kept], HALVES[kept])


def test_only_tokens_that_the_filters_leave_are_drawn_and_in_their_proportion():
    vlm = Fake(
        lambda *_: (jnp.broadcast_to(jnp.asarray(HALVES), (40, 5)), 0),
        lambda params, cache, ids: (jnp.zeros((40, 100, 5)), 0),
        lambda _: jnp.eye(5),
    )
    got = sample((vlm, {}, prompts(40)), count=100, length=1, top_k=2)
    counts = np.bincount(np.asarray(got.ids).ravel(), minlength=5)
    assert counts.sum() == counts[:2].sum() == 4000
    assert abs(counts[1] / 4000 - 2 / 3) < 0.03  # 4 standard errors
    # The temperature comes first: at 0.5 the weights are 4 : 1, and half of 1/2 is below 0.3.
    got = sample((vlm, {}, prompts(40)), count=100, length=1, temperature=0.5, min_p=0.3)
    assert (np.asarray(got.ids) == 1).all()
    np.testing.assert_allclose(got.logps, np.log(0.5), atol=1e-6)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; it must be at least 0"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ({"min_p": 1.1}, "min_p is 1.1; it must be from 0 to 1"),
    ],
)
def test_knobs_out_of_range_are_refused(toy, knobs, message):
    with pytest.raises(ValueError, match=message):
        sample(toy, **knobs)


def test_each_row_needs_a_seed(toy):
    vlm, params, batch = toy
    with pytest.raises(ValueError, match=r"seeds has shape \(2,\); the batch has 3 rows"):
        sampling.sample(
            vlm, params, batch, np.zeros(2, np.uint32), count=1, length=1, temperature=1, stop=()
        )


def test_sampling_reads_only_the_first_context(toy):
    vlm, params, _ = toy
    batch = toys.batch(vlm, types.Layout.of(("a", "b@corrupted")), rows=3)
    first = batch._replace(
        prompts=batch.prompts[:, :1],
        prompt_lengths=batch.prompt_lengths[:, :1],
        media=batch.media | {"index": batch.media["index"][:, :1]},
    )
    prefill = jax.jit(vlm.prefill, static_argnums=(2, 3))
    got, want = (prefill(params, b, 2, 3) for b in (batch, first))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_a_second_call_does_not_compile(toy):
    sample(toy, temperature=0.7)
    compiled = sampling._sample._cache_size()
    sample(toy, temperature=0.9, seed=3)
    sample(toy, temperature=1, top_k=3, top_p=0.5, min_p=0.1)
    assert sampling._sample._cache_size() == compiled


@pytest.mark.slow
def test_sampling_on_a_mesh_equals_one_device_and_cuts_the_cache(toy):
    vlm, params, _ = toy
    batch = toys.batch(vlm, types.Layout.of(("only",)), rows=8, groups=4)
    knobs = {"count": 2, "length": 4, "temperature": 1.3, "top_k": 20, "top_p": 0.9}
    want = sample((vlm, params, batch), **knobs)

    mesh = sharding.make(config.Mesh(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params, sharding.place(mesh, vlm.rules, params)[0])
    found = []

    def decode(params, cache, ids):
        for leaf in jax.tree.leaves(cache.layers):
            jax.debug.inspect_array_sharding(
                leaf, callback=lambda s, shape=leaf.shape: found.append((shape, s))
            )
        return vlm.decode(params, cache, ids)

    with jax.set_mesh(mesh):
        spied = vlm._replace(decode=decode)
        got = sample((spied, placed, sharding.put_batch(batch, mesh)), **knobs)
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.logps, want.logps, atol=2e-5)
    np.testing.assert_array_equal(got.finished, want.finished)
    # [layers, rows, heads, prompt, size] and [layers, rows, K, heads, T, size]: rows over 4
    # devices, heads over 2.
    prefix = (2, 2, 1, batch.prompts.shape[2], 8)
    assert [s.shard_shape(shape) for shape, s in found] == [prefix] * 2 + [(2, 2, 2, 1, 4, 8)] * 2
