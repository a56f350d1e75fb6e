import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from rubric_jax import paths, sharding, types
from rubric_jax.models import adapters, layers, lora
from rubric_jax.train import loop, optimizer
from rubric_jax.train import setup as setup_lib
from tests import toys
from tests.train import steps

LAYOUT = types.Layout.of(("chosen", "rejected"))
KINDS = {
    "lora": {"rank": 3, "alpha": 6.0},
    "rslora": {"rank": 3, "alpha": 2.0, "rank_stabilised": True},
    "dora": {"rank": 3, "alpha": 6.0, "dora": True},
}
EVERYWHERE = {"targets": ((r".*", True),)}


@functools.cache
def model():
    return toys.model()


@functools.cache
def known():
    vlm, params = model()
    return adapters.sites(vlm.weights, params)


def adapter_of(**values):
    return adapters.build(adapters.check(values), known())


@functools.cache
def fresh(adapter, seed):
    """Leaves on the toy model."""
    make = jax.jit(functools.partial(adapters.fresh, adapter))
    return make(jax.random.key(seed), model()[1] if adapter.dora else {})


def noisy(adapter, seed=1, size=0.1):
    """The toy model under a fresh adapter with noise on all that trains."""
    params = model()[1]
    leaves = fresh(adapter, 0)
    rng = np.random.default_rng(seed)

    def add(path, leaf):
        noise = size * rng.normal(size=leaf.shape).astype(np.float32)
        return leaf + noise if adapters.trains(path) else leaf

    return adapters.insert(params, paths.map_named(add, leaves))


@functools.cache
def _hidden():
    vlm = model()[0]
    return jax.jit(lambda params, batch: vlm.hidden(params, batch, LAYOUT))


def states(params):
    """[B, N, T, D]."""
    return np.asarray(_hidden()(params, toys.batch(model()[0], LAYOUT)))


def logps(params):
    """[B, N, T], 0 on padding."""
    batch = toys.batch(model()[0], LAYOUT)
    logits = states(params) @ np.asarray(params["decoder"]["unembedding"])
    table = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    found = np.take_along_axis(table, batch.responses[..., None], axis=-1)[..., 0]
    return np.where(batch.mask, found, 0)


def linear(leaves, x):
    layer = layers.Linear((2,), (2,), jnp.dtype("float32"), bias=True)
    params = {"kernel": jnp.array([[3.0, 0.0], [0.0, 2.0]]), "bias": jnp.array([0.5, -0.5])}
    own = {name: jnp.asarray(leaf) for name, leaf in leaves.items()}
    return layer.apply({"params": {**params, **own}}, jnp.asarray(x))


def test_lora_by_hand():
    # x W = [3, 4]; x a = 1 + 2 * 2 = 5; (x a) b = [5, 10]; times 0.5: [2.5, 5]
    leaves = {"lora_a": [[1.0], [2.0]], "lora_b": [[1.0, 2.0]], "lora_scale": 0.5}
    np.testing.assert_allclose(linear(leaves, [[1.0, 2.0]]), [[3 + 2.5 + 0.5, 4 + 5 - 0.5]])


def test_dora_by_hand():
    # W + 0.5 a b = [[3.5, 1], [1, 4]]; its outputs have the norms sqrt(13.25) and sqrt(17).
    leaves = {
        "lora_a": [[1.0], [2.0]],
        "lora_b": [[1.0, 2.0]],
        "lora_scale": 0.5,
        "lora_magnitude": [2.0, 3.0],
    }
    expected = [[5.5 * 2 / math.sqrt(13.25) + 0.5, 9 * 3 / math.sqrt(17) - 0.5]]
    np.testing.assert_allclose(linear(leaves, [[1.0, 2.0]]), expected, rtol=1e-6)


def test_the_norm_of_dora_is_a_constant_to_the_gradient():
    def first(b):
        leaves = {"lora_a": [[1.0], [2.0]], "lora_b": b, "lora_scale": 0.5}
        return linear({**leaves, "lora_magnitude": [2.0, 3.0]}, [[1.0, 2.0]])[0, 0]

    # d(3 + 0.5 * 5 b) / db = 2.5, times m / norm; with the norm's own gradient it would be less
    grad = jax.grad(first)(jnp.array([[1.0, 2.0]]))
    np.testing.assert_allclose(grad, [[2.5 * 2 / math.sqrt(13.25), 0.0]], rtol=1e-6)


def test_the_norm_is_that_of_the_merged_kernel():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 2, 3)).astype(np.float32)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((5, 4), (4, 2, 3)))
    whole = kernel + 0.3 * np.tensordot(a, b, axes=1)
    found = lora.norm(kernel, lora.Leaves(a, b, np.float32(0.3)))
    np.testing.assert_allclose(found, np.sqrt((whole**2).sum(axis=0)), rtol=1e-5)


def test_scales():
    assert adapter_of(rank=16, alpha=32.0).scale == 2.0
    assert adapter_of(rank=16, alpha=32.0, rank_stabilised=True).scale == 8.0


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_a_fresh_adapter_is_its_base_bit_for_bit(kind):
    params = model()[1]
    adapter = adapter_of(**KINDS[kind], **EVERYWHERE)
    own = adapters.insert(params, fresh(adapter, 3))
    np.testing.assert_array_equal(states(own), states(params))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_unmerged_compute_the_same(kind):
    own = noisy(adapter_of(**KINDS[kind], **EVERYWHERE))
    merged = adapters.merge(own)
    assert jax.tree.structure(merged) == jax.tree.structure(model()[1])
    np.testing.assert_allclose(states(merged), states(own), rtol=1e-5, atol=1e-5)
    assert np.abs(states(own) - states(model()[1])).max() > 1e-2  # and it does something


def test_the_sampler_reads_the_adapter_as_the_step_does():
    vlm, _ = model()
    own = noisy(adapter_of(**KINDS["dora"], **EVERYWHERE))
    batch = toys.batch(vlm, LAYOUT)
    last = jax.jit(lambda params, batch: vlm.prefill(params, batch, 1, 1)[0])(own, batch)
    np.testing.assert_allclose(last, states(own)[:, 0, 0], rtol=1e-5, atol=1e-5)


def test_merging_on_the_host_is_merging_on_the_device():
    own = noisy(adapter_of(**KINDS["dora"]))
    host = adapters.merge(jax.device_get(own))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(host))
    steps.assert_close(host, jax.device_get(adapters.merge(own)), rtol=1e-5)


def test_the_next_round_begins_where_the_last_one_ended():
    adapter = adapter_of(**KINDS["lora"], **EVERYWHERE)
    own = noisy(adapter)
    base = adapters.merge(own)
    again = adapters.insert(base, fresh(adapter, 7))
    np.testing.assert_allclose(states(again), states(own), rtol=1e-5, atol=1e-5)
    at = "decoder/layers/attn/q/lora_a"
    assert np.abs(paths.flatten(again)[at] - paths.flatten(own)[at]).min() > 0
    assert not paths.flatten(again)["decoder/layers/attn/q/lora_b"].any()


def test_several_adapters_share_one_base():
    params = model()[1]
    first, second = (noisy(adapter_of(**KINDS["lora"], **EVERYWHERE), seed=seed) for seed in (1, 2))
    named = {"first": adapters.extract(first), "second": adapters.extract(second)}
    base = adapters.without(first)
    assert jax.tree.structure(base) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(base), jax.tree.leaves(params), strict=True))
    np.testing.assert_array_equal(states(adapters.swap(first, named["second"])), states(second))
    np.testing.assert_array_equal(states(adapters.swap(first, {})), states(params))


def test_one_more_target_changes_no_other():
    few, all_ = (
        fresh(adapter_of(**fields), 0)
        for fields in ({"targets": ((r".*attn/q/.*", True), (r".*", False))}, EVERYWHERE)
    )
    flat = paths.flatten(all_)
    for path, leaf in paths.flatten(few).items():
        np.testing.assert_array_equal(leaf, flat[path])


def test_rules_choose_kernels():
    kernels = [site.path for site in adapter_of().sites]
    assert kernels == [
        *(f"decoder/layers/attn/{name}" for name in "koqv"),
        *(f"decoder/layers/{name}" for name in ("down", "gate", "up")),
    ]
    site = {site.path: site for site in adapter_of(**EVERYWHERE).sites}
    assert "projector/up" in site
    assert "vision/layers/attn/o" in site
    assert "vision/patch" not in site  # a convolution in the checkpoint
    q = site["decoder/layers/attn/q"]
    assert (q.stack, q.inputs, q.outputs) == ((2,), (32,), (4, 8))
    assert q.modules[1] == "language_model.model.layers.1.self_attn.q_proj"
    o = site["decoder/layers/attn/o"]
    assert (o.inputs, o.outputs) == ((4, 8), (32,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rnk": 4}, "config.model.adapter has no field 'rnk'.*Did you mean 'rank'"),
        ({"rank": 0}, "config.model.adapter: rank is 0"),
        ({"alpha": "32"}, "config.model.adapter: alpha is '32'"),
        ({"dora": 1}, "config.model.adapter: dora is 1"),
        ({"targets": (("a", 1),)}, "targets holds"),
        ({"targets": (("(", True),)}, "is no pattern"),
        ({"targets": ((r"decodr/.*", True), (r".*", False))}, "no kernel matches 'decodr"),
        ({"targets": ((r".*", False),)}, "selects no kernel"),
        ({"targets": ((r"vision/.*", True),)}, "No rule of config.model.adapter.targets matches"),
    ],
)
def test_a_wrong_field_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        adapter_of(**values)


def test_lists_are_read_as_json_gives_them_back():
    rules = [["projector/.*", True], [".*", False]]
    assert [site.path for site in adapter_of(targets=rules).sites] == [
        "projector/down",
        "projector/up",
    ]


def test_leaves_are_cut_as_the_axes_of_their_kernels():
    vlm, _ = model()
    own = adapters.adapt(vlm, adapter_of(**KINDS["dora"], **EVERYWHERE))
    specs = paths.flatten(sharding.specs(own.rules, jax.eval_shape(own.init, jax.random.key(0))))
    at = {name: specs[f"decoder/layers/attn/o/lora_{name}"] for name in ("a", "b", "scale")}
    assert at["a"] == PartitionSpec(None, "tensor")  # kernel: None, tensor, None, fsdp
    assert at["b"] == PartitionSpec(None, None, "fsdp")
    assert at["scale"] == PartitionSpec()
    assert specs["decoder/layers/attn/q/lora_b"] == PartitionSpec(None, None, "tensor")
    assert specs["decoder/layers/attn/q/lora_magnitude"] == PartitionSpec(None, "tensor")
    assert specs["projector/up/lora_a"] == PartitionSpec("fsdp")
    assert specs["decoder/layers/attn/q/kernel"] == PartitionSpec(None, "fsdp", "tensor")


def test_rules_of_the_optimizer_choose_among_the_leaves_and_never_the_base():
    config = steps.OPTIMIZER
    tree = noisy(adapter_of(**KINDS["dora"]))

    def chosen(*rules):
        found = optimizer.trainable(dataclasses.replace(config, trainable=rules), tree)
        return {path.rsplit("/", 1)[-1] for path, value in paths.flatten(found).items() if value}

    every = {"lora_a", "lora_b", "lora_magnitude"}
    assert chosen((r".*", True)) == every
    assert chosen((r"vision/.*", False), (r".*", True)) == every
    assert chosen((r".*lora_b", True), (r".*", False)) == {"lora_b"}
    with pytest.raises(ValueError, match="freezes every parameter"):
        chosen((r"vision/.*", True), (r".*", False))


@functools.cache
def case(mesh):
    """A step on the toy model under an adapter, with its base as the reference."""
    plain = steps.case(steps.DPO, mesh=mesh, reference="step")
    adapter = adapter_of(**KINDS["dora"])
    setup = dataclasses.replace(
        plain.setup,
        vlm=adapters.adapt(plain.setup.vlm, adapter),
        adapter=adapter,
        bare=plain.setup.vlm,
    )
    with pytest.MonkeyPatch.context() as patch:  # there is no directory to compare
        patch.setattr(setup_lib, "is_own_reference", lambda setup: True)
        functions = loop.compile_functions(setup, plain.objective, steps=10)
    return dataclasses.replace(plain, setup=setup, functions=functions)


def run(case, batch, count=2):
    host = jax.device_get(noisy(case.setup.adapter))  # or the step would be given our own arrays
    params = jax.device_put(host, case.setup.placement[0])
    with jax.set_mesh(case.setup.mesh):
        state = case.functions.start(params)
    found = []
    for _ in range(count):
        state, metrics = case.step(state, batch, ref_params={})
        found.append(jax.device_get(metrics))
    return jax.device_get(state), found


def test_only_the_adapter_moves_and_only_it_has_moments():
    own = case((1, 1, 1))
    state, metrics = run(own, steps.batch(own))
    before, after = paths.flatten(noisy(own.setup.adapter)), paths.flatten(state.params)
    moved = {p for p in after if np.asarray(before[p]).tobytes() != after[p].tobytes()}
    assert moved == {path for path in after if adapters.trains(path)}
    held = {path for path in paths.flatten(state.opt_state) if "decoder" in path}
    assert held
    assert all(adapters.is_adapter(path) and "scale" not in path for path in held)
    assert metrics[1]["loss"] < metrics[0]["loss"]


def test_the_reference_in_the_step_is_the_base_without_the_adapter():
    own = case((1, 1, 1))
    batch = steps.batch(own)
    metrics = run(own, batch, count=1)[1][0]
    sums = [logps(params).sum(axis=-1) for params in (noisy(own.setup.adapter), model()[1])]
    ratio = sums[0] - sums[1]
    losses = np.logaddexp(0, -0.1 * (ratio[:, 0] - ratio[:, 1]))
    expected = np.mean(batch.labels.weight * losses)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


@pytest.mark.slow
def test_sharded_is_single():
    one, eight = case((1, 1, 1)), case((2, 2, 2))
    # The rows are the same, however their images are grouped.
    a, b = (run(each, steps.batch(each)) for each in (one, eight))
    np.testing.assert_allclose(a[1][1]["loss"], b[1][1]["loss"], rtol=1e-5)
    steps.assert_close(adapters.extract(a[0].params), adapters.extract(b[0].params), atol=2e-5)


def test_no_array_of_a_kernels_size_is_made_on_the_way_back():
    own = case((1, 1, 1))
    vlm, params = own.setup.vlm, noisy(own.setup.adapter)
    keep = optimizer.trainable(own.setup.config.optimizer, params)
    kept, frozen = paths.split(params, keep)
    batch = toys.batch(vlm, LAYOUT)

    def total(kept, frozen):
        return jnp.sum(vlm.hidden(paths.merge(kept, frozen), batch, LAYOUT))

    traced = jax.make_jaxpr(jax.grad(total))(kept, frozen)
    stacked = {(2, 32, 40), (2, 40, 32)}  # mlp kernels of both layers, as gradients would be

    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from shapes(inner)

    found = set(shapes(traced.jaxpr))
    assert (2, 32, 3) in found  # the gradient of lora_a
    assert not stacked & found
