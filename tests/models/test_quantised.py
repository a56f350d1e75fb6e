"""Kernels in few bits: the codes by hand, the model over them, and what they save."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import config as config_lib
from rubric_jax import paths, sharding, types
from rubric_jax.likelihoods import autoregressive
from rubric_jax.models import adapters, lowbit, quantised
from tests import toys

LAYOUT = types.Layout.of(("chosen", "rejected"))


@functools.cache
def models(kind):
    """(model over a quantised base, its parameters)."""
    vlm, params = toys.model()
    encode = functools.partial(quantised.encode, quantised.sites(vlm), kind)
    return quantised.quantise(vlm, kind), paths.map_named(encode, params)


def decoded(kind):
    """A plain tree of the same numbers."""
    flat = paths.flatten(models(kind)[1])
    for path, site in quantised.sites(toys.model()[0]).items():
        read = functools.partial(lowbit.decode, inputs=len(site.inputs), dtype=jnp.float32)
        codes, scale = (flat.pop(f"{path}/{name}") for name in ("codes", "scale"))
        flat[path] = jax.vmap(read)(codes, scale)
    return adapters.nest(flat)


def logps(vlm, params):
    batch = toys.batch(vlm, LAYOUT)

    def run(params):
        h = vlm.hidden(params, batch, LAYOUT)
        return autoregressive.token_logps(h, vlm.unembed(params), batch.responses, chunk=4)

    return np.where(batch.mask != 0, jax.jit(run)(params), 0.0)


def test_int8_codes_are_the_nearest_of_255_steps_of_each_output():
    kernel = jnp.array([[127.5, 1.0], [-63.0, 0.25], [1.2, -0.5]])
    found = lowbit.encode(kernel, "int8", stack=0, inputs=1)
    # The largest entry is 127.5 steps: a step is 1 in the first column, 1 / 127.5 in the other.
    np.testing.assert_array_equal(found["codes"], [[127, 127], [-63, 32], [1, -64]])
    np.testing.assert_allclose(found["scale"], [[1.0, 1 / 127.5]], rtol=1e-6)
    back = lowbit.decode(**found, inputs=1, dtype=jnp.float32)
    np.testing.assert_allclose(back[:, 0], [127.0, -63.0, 1.0], rtol=1e-6)


def test_nf4_keeps_its_levels_and_packs_two_in_a_byte():
    levels = np.asarray(lowbit._levels())
    np.testing.assert_allclose(levels[[0, 7, 8, 15]], [-1, 0, 0.0795803, 1], atol=1e-6)
    # One block of 16 inputs; the outputs differ by a factor.
    kernel = jnp.asarray(np.stack([levels, 3 * levels[::-1]], axis=1))
    found = lowbit.encode(kernel, "nf4", stack=0, inputs=1)
    assert found["codes"].shape == (8, 2)
    assert found["codes"].dtype == np.uint8
    np.testing.assert_array_equal(found["codes"][:, 0], [16 * (i + 1) + i for i in range(0, 16, 2)])
    np.testing.assert_allclose(found["scale"], [[1.0, 3.0]], rtol=1e-6)
    back = lowbit.decode(**found, inputs=1, dtype=jnp.float32)
    np.testing.assert_allclose(back, kernel, atol=1e-6)


def test_nf4_has_a_scale_for_every_64_inputs():
    kernel = jnp.concatenate([jnp.full((64, 1), 0.5), jnp.full((64, 1), -8.0)])
    found = lowbit.encode(kernel, "nf4", stack=0, inputs=1)
    np.testing.assert_allclose(found["scale"], [[0.5], [8.0]], rtol=1e-6)
    back = lowbit.decode(**found, inputs=1, dtype=jnp.float32)
    np.testing.assert_allclose(back, kernel, rtol=1e-6)


def test_an_odd_number_of_inputs_is_refused():
    with pytest.raises(ValueError, match="odd number"):
        lowbit.encode(jnp.ones((3, 2)), "nf4", stack=0, inputs=1)


# Rounding moves an entry by at most 1/255 of its output's largest (int8), or by about a tenth of
# its size (nf4); kernels of the toy model are 0.15 wide, wider than a trained model's.
@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.05), ("nf4", 0.6)])
def test_log_probabilities_are_those_of_the_decoded_kernels_and_near_the_float_ones(
    kind, tolerance
):
    vlm, params = models(kind)
    found = logps(vlm, params)
    plain, whole = toys.model()
    np.testing.assert_allclose(found, logps(plain, decoded(kind)), atol=1e-5)
    distance = np.abs(found - logps(plain, whole)).max()
    assert 1e-4 < distance < tolerance


@pytest.mark.parametrize("kind", lowbit.KINDS)
def test_an_adapter_over_it_has_the_gradients_of_one_over_the_decoded_kernels(kind):
    plain, _ = toys.model()
    known = adapters.sites(plain.weights, jax.eval_shape(plain.init, jax.random.key(0)))
    made = adapters.build({"rank": 2}, known)
    leaves = jax.tree.map(
        lambda leaf: leaf + 0.05, adapters.fresh(made, jax.random.key(1), toys.model()[1])
    )

    def pulled(vlm, base):
        def total(leaves):
            batch, params = toys.batch(vlm, LAYOUT), adapters.insert(base, leaves)
            h = vlm.hidden(params, batch, LAYOUT)
            logps = autoregressive.token_logps(h, vlm.unembed(params), batch.responses, chunk=4)
            return jnp.sum(logps * batch.mask)

        return jax.jit(jax.grad(total))(leaves)

    found, want = pulled(models(kind)[0], models(kind)[1]), pulled(plain, decoded(kind))
    for path, leaf in paths.flatten(found).items():
        other = paths.flatten(want)[path]
        np.testing.assert_allclose(leaf, other, atol=1e-3 * np.abs(other).max() + 1e-6)
        assert np.abs(other).max() > 0, path


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("nf4", 4)])
def test_the_base_is_smaller_on_the_device(kind, bits):
    vlm, params = models(kind)
    plain, whole = toys.model()
    sites = quantised.sites(plain)
    codes = paths.flatten(params)
    for path in sites:
        kernel = paths.flatten(whole)[path]
        assert codes[f"{path}/codes"].nbytes == kernel.size * bits // 8

    def held(vlm, params):
        batch = toys.batch(vlm, LAYOUT)
        lowered = jax.jit(lambda p: vlm.hidden(p, batch, LAYOUT)).lower(params)
        return lowered.compile().memory_analysis().argument_size_in_bytes

    saved = held(plain, whole) - held(vlm, params)
    kernels = sum(paths.flatten(whole)[path].nbytes for path in sites)
    scales = sum(leaf.nbytes for path, leaf in codes.items() if path.endswith("kernel/scale"))
    assert saved == kernels * (32 - bits) // 32 - scales


@pytest.mark.parametrize("kind", lowbit.KINDS)
def test_no_decoded_kernel_is_kept_for_the_backward_pass(kind):
    vlm, base = models(kind)  # without recomputation of layers
    plain, whole = toys.model()
    known = adapters.sites(plain.weights, whole)
    made = adapters.build({"rank": 2}, known)
    batch = toys.batch(vlm, LAYOUT)

    def kept(vlm, base):
        def pull_back(base, leaves):
            hidden = lambda own: vlm.hidden(adapters.insert(base, own), batch, LAYOUT)  # noqa: E731
            return jax.tree.leaves(jax.vjp(hidden, leaves)[1])

        leaves = jax.eval_shape(lambda: adapters.fresh(made, jax.random.key(0), {}))
        found = jax.eval_shape(pull_back, base, leaves)
        return {leaf.shape for leaf in found if leaf.dtype == np.float32}

    kernels = {paths.flatten(whole)[path].shape for path in quantised.sites(plain)}
    assert kernels <= kept(plain, whole)
    assert not kernels & kept(vlm, base)


@pytest.mark.parametrize("kind", lowbit.KINDS)
def test_codes_lie_as_their_kernels_and_compute_the_same(kind):
    vlm, params = models(kind)
    mesh = sharding.make(config_lib.Mesh(data=2, fsdp=2, tensor=2))
    places, _ = sharding.place(mesh, vlm.rules, params)
    gate = places["decoder"]["layers"]["gate"]["kernel"]
    assert gate["codes"].spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert gate["scale"].spec[-1] == "tensor"
    with jax.set_mesh(mesh):
        found = logps(vlm, jax.device_put(params, places))
    np.testing.assert_allclose(found, logps(vlm, params), atol=1e-5)
