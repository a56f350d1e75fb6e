"""Contrasted decoding: golden logits, and the sampler against a plain loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import contrasts, sampling, types
from tests import toys

STEPS = 5
KNOBS = {"vcd": {"alpha": 0.7, "plausible": 0.05}, "m3id": {"forget": 0.4, "sure": 0.9}}


def call(name, logits, other, step=0, **knobs):
    knobs = {key: np.float32(value) for key, value in knobs.items()}
    return np.asarray(
        contrasts.CONTRASTS[name](jnp.asarray(logits), jnp.asarray(other), step, **knobs)
    )


def test_dcd_is_the_golden_pair():
    got = call("vcd", [1.0, 0.0], [0.2, 0.4], alpha=0.5, plausible=0.0)
    np.testing.assert_allclose(got, [1.4, -0.2], rtol=1e-6)


def test_m3id_is_the_golden_distribution():
    clean, blind = np.log([0.5, 0.3, 0.2]), np.log([0.6, 0.3, 0.1])
    got = jax.nn.softmax(call("m3id", clean, blind, step=3, forget=0.1, sure=0.7))
    np.testing.assert_allclose(got, [0.4581125278, 0.2929717027, 0.2489157696], rtol=1e-5)
    sure = jax.nn.softmax(call("m3id", clean, blind, step=3, forget=0.1, sure=0.4))
    np.testing.assert_allclose(sure, [0.5, 0.3, 0.2], rtol=1e-5)  # 0.5 > 0.4


def test_m3id_leaves_the_first_token_and_a_policy_that_does_not_see_alone():
    logits = np.array([1.0, -0.5, 0.2])
    want = np.asarray(jax.nn.log_softmax(jnp.asarray(logits)))
    np.testing.assert_allclose(call("m3id", logits, -logits, step=0), want, rtol=1e-6)
    np.testing.assert_allclose(call("m3id", logits, logits + 3, step=50), want, atol=1e-5)


def test_m3id_is_finite_however_long_the_response():
    got = call("m3id", [1.0, 0.0], [0.0, 1.0], step=10**6, sure=1.0, most=1000.0)
    np.testing.assert_allclose(got[0] - got[1], 1 + 1000 * 2, rtol=1e-4)


def test_vcd_draws_only_what_the_policy_finds_plausible():
    got = call("vcd", np.log([0.6, 0.3, 0.1]), np.log([0.9, 0.05, 0.05]), plausible=0.2)
    assert np.isneginf(got[2])  # 0.1 < 0.2 x 0.6
    assert np.isfinite(got[:2]).all()
    assert got.argmax() == 1


@pytest.fixture(scope="module")
def toy():
    """(model, parameters, other parameters, batch, the batch with other pictures)."""
    vlm, params = toys.model()
    params["decoder"]["unembedding"] = 20 * params["decoder"]["unembedding"]
    other = jax.tree.map(lambda leaf: leaf, params)
    other["projector"] = jax.tree.map(lambda leaf: -leaf, params["projector"])
    batch = toys.batch(vlm, types.Layout.of(("only",)), rows=3)
    media = batch.media | {"pixels": -2 * batch.media["pixels"]}
    return vlm, params, other, batch, batch._replace(media=media)


def float64(name, logits, other, step):
    """The next token's logits, written out; another road than contrasts.py takes."""
    knobs = {key: float(value) for key, value in KNOBS[name].items()}
    own, blind = (x.astype(np.float64) for x in (logits, other))
    p = np.exp(own - own.max())
    p /= p.sum()
    if name == "vcd":
        mixed = own + knobs["alpha"] * (own - blind)
        return np.where(p >= knobs["plausible"] * p.max(), mixed, -np.inf)
    q = np.exp(blind - blind.max())
    q /= q.sum()
    if p.max() >= knobs["sure"]:
        return np.log(p)
    g = np.exp(-knobs["forget"] * step)
    return np.log(p) + (1 - g) / g * (np.log(p) - np.log(q))


@pytest.mark.parametrize("name", KNOBS)
def test_the_sampler_follows_a_plain_loop(toy, name):
    vlm, params, other, batch, seen = toy
    layout = types.Layout.of(("only",))
    hidden = jax.jit(vlm.hidden, static_argnums=2)
    head = np.asarray(vlm.unembed(params))  # of both: they differ in the projector
    ids = np.zeros((3, 1, STEPS), np.int32)
    plain = ids.copy()
    for step in range(STEPS):
        own, blind = (
            np.asarray(hidden(p, b._replace(responses=ids), layout))[:, 0, step] @ head
            for p, b in ((params, batch), (other, seen))
        )
        ids[:, 0, step] = [float64(name, a, b, step).argmax() for a, b in zip(own, blind)]
        alone = np.asarray(hidden(params, batch._replace(responses=plain), layout))[:, 0, step]
        plain[:, 0, step] = (alone @ head).argmax(axis=-1)
    against = sampling.Against(contrasts.CONTRASTS[name], KNOBS[name], seen, other)
    sizes = {"count": 1, "length": STEPS, "temperature": 0.0, "stop": (64,)}
    seeds = np.arange(3, dtype=np.uint32)
    got = sampling.sample(vlm, params, batch, seeds, **sizes, against=against)
    np.testing.assert_array_equal(got.ids, ids)
    assert (ids != plain).any()  # or it would show nothing
    # What is recorded is the policy's own.
    states = np.asarray(hidden(params, batch._replace(responses=ids), layout))[:, 0]
    logps = np.asarray(jax.nn.log_softmax(states @ head))
    want = np.take_along_axis(logps, ids[:, 0, :, None], axis=-1)[..., 0]
    np.testing.assert_allclose(got.logps[:, 0], want, atol=2e-4)
    compiled = sampling._sample._cache_size()
    other_knobs = {key: 0.5 * value for key, value in KNOBS[name].items()}
    sampling.sample(vlm, params, batch, seeds, **sizes, against=against._replace(knobs=other_knobs))
    assert sampling._sample._cache_size() == compiled
