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


def sample(toy, *, count=3, length=6, temperature=1.0, stop=NEVER, seed=0):
    vlm, params, batch = toy
    return sampling.sample(
        vlm,
        params,
        batch,
        jax.random.key(seed),
        count=count,
        length=length,
        temperature=temperature,
        stop=stop,
    )


def teacher_forced(toy, ids):
    """log p of sampled ids [B, K, T], read back as the K branches of a training batch."""
    vlm, params, batch = toy
    layout = types.Layout.of(tuple(f"response_{k}" for k in range(ids.shape[1])))
    hidden = jax.jit(vlm.hidden, static_argnums=2)(params, batch._replace(responses=ids), layout)
    return autoregressive.token_logps(hidden, vlm.unembed(params), ids, chunk=8)


@pytest.mark.parametrize("count", [1, 3])
def test_recorded_logps_are_those_of_teacher_forcing(count, toy):
    for temperature in (1.0, 0.0, 2.5):
        got = sample(toy, count=count, temperature=temperature)
        assert got.mask.all()
        want = teacher_forced(toy, got.ids)
        assert np.std(want) > 0.1  # it can tell
        np.testing.assert_allclose(got.logps, want, atol=2e-5)


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
    got = sample((vlm, {}, None), length=1000, stop=(1,))
    jax.effects_barrier()
    np.testing.assert_array_equal(got.mask.sum(-1), [[1] * 3, [2] * 3])
    assert len(steps) == 2


Fake = collections.namedtuple("Fake", ["prefill", "decode", "unembed"])


def test_temperature_sampling_follows_the_distribution():
    # One step from the same logits, 1.0, 0.5, 0 and -1, in 40 rows of 100 responses.
    logits = jnp.array([1.0, 0.5, 0.0, -1.0])
    vlm = Fake(
        lambda *_: (jnp.broadcast_to(logits, (40, 4)), 0),
        lambda params, cache, ids: (jnp.zeros((40, 100, 4)), 0),
        lambda _: jnp.eye(4),
    )
    for temperature in (1.0, 0.5):
        got = sample((vlm, {}, None), count=100, length=1, temperature=temperature)
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
    ids = np.asarray(sample((vlm, {}, None), count=100, length=2).ids)
    assert abs(np.mean(ids[..., 0] == ids[..., 1]) - 0.25) < 0.03  # 4 standard errors


def test_a_key_decides_the_samples(toy):
    hot = {"temperature": 4.0}  # flat, so that equal responses would be no coincidence
    one, again, other = sample(toy, **hot), sample(toy, **hot), sample(toy, seed=1, **hot)
    np.testing.assert_array_equal(one.ids, again.ids)
    assert (one.ids != other.ids).any(axis=-1).all()
    flat = np.asarray(one.ids).reshape(9, -1)
    assert len({tuple(row) for row in flat}) == 9  # every response has a stream of its own


def test_a_response_does_not_depend_on_how_many_others_are_drawn(toy):
    one, three = sample(toy, count=1), sample(toy, count=3)
    np.testing.assert_array_equal(one.ids, three.ids[:, :1])
    np.testing.assert_allclose(one.logps, three.logps[:, :1], atol=1e-6)


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
    compiled = sampling.sample._cache_size()
    sample(toy, temperature=0.9, seed=3)
    assert sampling.sample._cache_size() == compiled


@pytest.mark.slow
def test_sampling_on_a_mesh_equals_one_device(toy):
    vlm, params, _ = toy
    batch = toys.batch(vlm, types.Layout.of(("only",)), rows=4, groups=4)
    want = sample((vlm, params, batch), count=2, length=4)
    mesh = sharding.make(config.Mesh(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(params, sharding.place(mesh, vlm.rules, params)[0])
    got = sample((vlm, placed, sharding.put_batch(batch, mesh)), count=2, length=4)
    np.testing.assert_array_equal(got.ids, want.ids)
    np.testing.assert_allclose(got.logps, want.logps, atol=2e-5)
