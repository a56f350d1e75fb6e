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
