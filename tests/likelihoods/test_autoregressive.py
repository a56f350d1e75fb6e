import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax.likelihoods import autoregressive


def test_two_token_vocabulary_by_hand():
    hidden = jnp.array([[[[1.0, 0.0]]]])
    head = jnp.array([[2.0, 0.0], [5.0, 5.0]])  # logits 2, 0
    ids = jnp.array([[[0]]])
    got = autoregressive.token_logps(hidden, head, ids, chunk=1)
    np.testing.assert_allclose(got, [[[-0.126928011]]], rtol=1e-6)  # -log(1 + e^-2)


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_chunks_equal_the_dense_route_in_values_and_gradients(chunk):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (2, 3, 5, 8))
    head = jax.random.normal(keys[1], (8, 17))
    ids = jax.random.randint(keys[2], (2, 3, 5), 0, 17)
    pull = jax.random.normal(keys[3], (2, 3, 5))

    def chunked(h, w):
        return jnp.sum(pull * autoregressive.token_logps(h, w, ids, chunk=chunk))

    def dense(h, w):
        return jnp.sum(pull * autoregressive.dense(h, w, ids))

    got = jax.value_and_grad(chunked, argnums=(0, 1))(hidden, head)
    want = jax.value_and_grad(dense, argnums=(0, 1))(hidden, head)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_logits_of_the_whole_batch_never_exist():
    batch, branches, length, vocab = 4, 2, 64, 1009
    hidden = jax.ShapeDtypeStruct((batch, branches, length, 8), jnp.float32)
    head = jax.ShapeDtypeStruct((8, vocab), jnp.float32)
    ids = jax.ShapeDtypeStruct((batch, branches, length), jnp.int32)

    def loss(h, w, y):
        return jnp.sum(autoregressive.token_logps(h, w, y, chunk=16))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, ids).compile()
    whole = 4 * batch * branches * length * vocab
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2


def test_bfloat16_states_give_float32_logps():
    hidden = jnp.ones((1, 1, 2, 8), jnp.bfloat16)
    head = jnp.ones((8, 4), jnp.bfloat16)
    got = autoregressive.token_logps(hidden, head, jnp.zeros((1, 1, 2), int), chunk=8)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.log(0.25), rtol=1e-6)


def test_divergence_of_three_tokens_by_hand():
    ref, policy = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    with jax.enable_x64(True):
        found = autoregressive.dense_kl(jnp.log(policy), jnp.log(ref))
        np.testing.assert_allclose(found.forward, 0.0252671539, atol=5e-11)
        # 0.4 log(0.4 / 0.5) + 0.4 log(0.4 / 0.3)
        np.testing.assert_allclose(found.reverse, 0.4 * np.log(16 / 15), rtol=1e-12)


def test_jensen_shannon_divergence_by_hand():
    """Of (1/2, 1/2, 0) and (1/2, 0, 1/2): half of both lies where the other has none."""
    tiny = 1e-300
    with jax.enable_x64(True):
        p, q = jnp.log(jnp.array([0.5, 0.5, tiny])), jnp.log(jnp.array([0.5, tiny, 0.5]))
        np.testing.assert_allclose(autoregressive.dense_js(p, q), 0.5 * np.log(2), rtol=1e-12)
        np.testing.assert_allclose(autoregressive.dense_js(p, p), 0.0, atol=1e-15)


@pytest.mark.parametrize("chunk", [1, 100])
def test_jensen_shannon_in_chunks_is_symmetric_and_without_gradient(chunk):
    rng = np.random.default_rng(0)
    h, o = rng.normal(size=(2, 2, 3, 5, 8)).astype(np.float32)
    w = rng.normal(size=(8, 17)).astype(np.float32)
    found = autoregressive.token_js(h, o, w, chunk=chunk)
    np.testing.assert_allclose(found, autoregressive.dense_js(h @ w, o @ w), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found, autoregressive.token_js(o, h, w, chunk=chunk), rtol=1e-4)
    assert (np.asarray(found) <= np.log(2) + 1e-6).all()
    slopes = jax.grad(lambda *a: autoregressive.token_js(*a, chunk=chunk).sum(), argnums=(0, 1, 2))
    assert not any(np.any(leaf) for leaf in slopes(h, o, w))


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_divergence_in_chunks_equals_the_dense_route_in_float64(chunk):
    # The dense route in float64, with the softmax written out; the other in float32.
    rng = np.random.default_rng(0)
    h, r = rng.normal(size=(2, 2, 3, 5, 8))
    w, v = rng.normal(size=(2, 8, 17))
    pull = rng.normal(size=(2, 2, 3, 5))

    def chunked(h, w, r, v):
        found = autoregressive.token_kl(h, w, r, v, chunk=chunk)
        return jnp.sum(pull[0] * found.forward + pull[1] * found.reverse)

    def dense(h, w, r, v):
        p, q = jax.nn.softmax(h @ w), jax.nn.softmax(r @ v)
        forward, reverse = q * jnp.log(q / p), p * jnp.log(p / q)
        return jnp.sum(pull[0][..., None] * forward + pull[1][..., None] * reverse)

    with jax.enable_x64(True):
        want = jax.value_and_grad(dense, argnums=(0, 1))(h, w, r, v)
    single = [x.astype(np.float32) for x in (h, w, r, v)]
    pull = pull.astype(np.float32)
    got = jax.value_and_grad(chunked, argnums=(0, 1))(*single)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
    into_reference = jax.grad(chunked, argnums=(2, 3))(*single)
    assert not any(np.any(leaf) for leaf in into_reference)


def test_divergence_from_itself_is_zero_with_zero_gradient():
    keys = jax.random.split(jax.random.key(0), 2)
    hidden, head = jax.random.normal(keys[0], (2, 2, 5, 8)), jax.random.normal(keys[1], (8, 17))

    def total(h):
        found = autoregressive.token_kl(h, head, hidden, head, chunk=4)
        return jnp.sum(found.forward + found.reverse)

    value, gradient = jax.value_and_grad(total)(hidden)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_logits_of_both_models_never_exist_whole():
    batch, branches, length, vocab = 4, 2, 64, 1009
    hidden = jax.ShapeDtypeStruct((batch, branches, length, 8), jnp.float32)
    head = jax.ShapeDtypeStruct((8, vocab), jnp.float32)

    def loss(h, w, r, v):
        return jnp.sum(autoregressive.token_kl(h, w, r, v, chunk=8).forward)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, head, hidden, head).compile()
    whole = 4 * batch * branches * length * vocab
    assert compiled.memory_analysis().temp_size_in_bytes < whole
