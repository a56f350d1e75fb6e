import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import paths, types
from rubric_jax.models import attention
from rubric_jax.train import step as step_lib
from tests.train import steps

MPO = {
    "modpo": {"weight": 0.8, **steps.PAIR, "weights": {"a": 0.6, "b": 0.4}},
    "bco": {"weight": 0.2, **steps.PAIR},
    "nll": {"weight": 1.0, "on": "chosen"},
}
TWO_CONTEXTS = ("chosen", "rejected", "chosen@corrupted")
FROZEN_TOWER = ((r"vision/.*", False), (r".*", True))


# A compilation is what these tests cost: one case, and one shape of batch, serves many.
@functools.cache
def mpo(mesh=(1, 1, 1)):
    """A mixed objective on mixed images, two contexts and three branches."""
    return steps.case(MPO, mesh=mesh, branches=TWO_CONTEXTS)


@functools.cache
def dpo():
    return steps.case(steps.DPO, trainable=FROZEN_TOWER)


@functools.cache
def dpo_with_reference():
    return steps.case(steps.DPO, reference="step", trainable=FROZEN_TOWER)


@functools.cache
def two_steps(case):
    return case.run(steps.batch(case, rows=8, seed=3), steps=2)


def branch_logps(case, params, batch):
    task = step_lib.Task(case.setup.vlm, case.setup.layout, None, logps_chunk=6)
    return np.array(jax.jit(functools.partial(step_lib.branch_logps, task))(params, batch))


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
        pytest.param((8, 1, 1), marks=pytest.mark.sweep),
        pytest.param((2, 4, 1), marks=pytest.mark.sweep),
        (2, 2, 2),
    ],
)
def test_a_mesh_steps_like_one_device(mesh):
    steps.assert_close(two_steps(mpo(mesh)), two_steps(mpo()))


def test_parameters_and_moments_are_cut_along_the_mesh():
    case = steps.case(steps.DPO, mesh=(1, 4, 2))
    state = case.functions.state
    for tree in (state.params, state.opt_state[1].mu):
        kernel = tree["decoder"]["layers"]["up"]["kernel"]  # [L, D, F]
        assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 4, 40 // 2)


def test_the_loss_of_a_step_is_the_mean_over_real_rows_by_hand():
    # Three rows of padding and one whose policy is 0.5 nats above the reference per chosen token.
    case = dpo()
    batch = steps.without_rows(steps.batch(case, rows=8, seed=5), [0, 1, 2, 3, 4, 5, 7])
    logps = branch_logps(case, case.params(), batch)
    logps[:, 0] -= 0.5
    _, metrics = case.step(case.start(), batch._replace(ref_logps=logps * batch.mask))
    margin = 0.1 * 0.5 * batch.mask[6, 0].sum()
    expected = batch.labels.weight[6] * math.log1p(math.exp(-margin))
    np.testing.assert_allclose(metrics["rewards/margins"], margin, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    assert metrics["rows"] == 1
    assert metrics["tokens"] == batch.prompt_lengths[6].sum() + batch.mask[6].sum()


@pytest.mark.parametrize(
    ("accumulate", "mesh"),
    [
        pytest.param(2, (1, 1, 1), marks=pytest.mark.slow),
        pytest.param(4, (1, 1, 1), marks=pytest.mark.sweep),
        pytest.param(2, (2, 1, 1), marks=pytest.mark.sweep),
        (2, (1, 2, 2)),
    ],
)
def test_accumulated_gradients_are_those_of_the_whole_batch(accumulate, mesh):
    def prepared(case):
        batch = steps.batch(case, rows=8, seed=1)
        # One microbatch loses more rows than the others: a mean of means would show.
        return steps.without_branch(steps.without_rows(batch, [6, 7]), 2, 1)

    whole = dpo()
    parts = steps.case(steps.DPO, accumulate=accumulate, mesh=mesh, trainable=FROZEN_TOWER)
    steps.assert_close(parts.run(prepared(parts)), whole.run(prepared(whole)))


@pytest.mark.slow
def test_spans_act_in_every_microbatch_as_a_mask_of_their_weights():
    around = {"with": {"spans": {"inside": 2.0, "outside": 0.5}}}
    parts = steps.case(
        {"dpo": {**steps.PAIR, **around}}, accumulate=2, mesh=(1, 2, 2), trainable=FROZEN_TOWER
    )
    batch = steps.batch(parts, rows=8, seed=1)
    given = np.random.default_rng(0).choice([types.OUTSIDE, 0.5, 3.0], batch.mask.shape)
    spanned = parts.run(batch._replace(spans={"": given.astype(np.float32)}))
    weights = np.where(given == types.OUTSIDE, 0.5, 2.0 * given).astype(np.float32)
    masked = dpo().run(steps.batch(dpo(), rows=8, seed=1)._replace(mask=batch.mask * weights))
    steps.assert_close(spanned[0].params, masked[0].params)
    np.testing.assert_allclose(spanned[1]["loss"], masked[1]["loss"], rtol=1e-5)


def test_microbatches_keep_rows_with_their_images():
    # 12 rows, 2 data shards, 3 microbatches: 6 groups of 2 rows. A row's value is its group.
    rows, groups = np.arange(12) // 2, np.arange(6)
    parts = step_lib.microbatches({"rows": rows, "pixels": groups}, 3, 2)
    # Shard 0 holds groups 0, 1, 2 and shard 1 groups 3, 4, 5.
    np.testing.assert_array_equal(parts["pixels"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(parts["rows"], [[0, 0, 3, 3], [1, 1, 4, 4], [2, 2, 5, 5]])


def test_other_knobs_compile_nothing(caplog):
    case = mpo()
    two_steps(case)
    other = steps.objectives.build(
        {
            "modpo": {"weight": 0.3, **steps.PAIR, "beta": 0.7, "weights": {"a": 1, "b": 5}},
            "bco": {"weight": 2.0, **steps.PAIR, "beta": 0.3},
            "nll": {"weight": 0.0, "on": "chosen"},
        },
        case.setup.layout,
        ("a", "b"),
    )
    batch = steps.batch(case, rows=8, seed=3)
    _, first = case.step(case.start(), batch)
    state = case.start()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        _, second = case.step(state, batch, knobs=other.knobs)
    assert not [record for record in caplog.records if "Compiling" in record.message]
    assert case.functions.step._cache_size() == 1
    assert abs(float(first["loss"]) - float(second["loss"])) > 0.1


def test_frozen_parameters_keep_their_bits_and_have_no_optimizer_state():
    case = dpo()  # its weight decay is on every parameter
    before = paths.flatten(jax.device_get(case.params()))
    state, _ = case.run(steps.batch(case, rows=8), steps=2)
    for name, leaf in paths.flatten(state.params).items():
        same = leaf.tobytes() == before[name].tobytes()
        assert same == name.startswith("vision/"), name
    moments = [name for name in paths.flatten(state.opt_state) if "/mu/" in name]
    assert moments
    assert not [name for name in moments if "vision" in name]


def test_the_reference_tree_stays_and_a_policy_that_equals_it_has_no_margin():
    case = dpo_with_reference()
    batch = steps.batch(case, rows=8, ref=False)
    batch = batch._replace(labels=batch.labels._replace(weight=np.ones(8, np.float32)))
    ref_params = case.params()
    before = jax.device_get(ref_params)
    state, first = case.step(case.start(), batch, ref_params=ref_params)
    np.testing.assert_allclose(first["loss"], math.log(2), rtol=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        np.testing.assert_allclose(first[name], 0.0, atol=1e-6)
    _, second = case.step(state, batch, ref_params=ref_params)
    assert float(second["loss"]) < float(first["loss"])
    assert jax.tree.all(jax.tree.map(np.array_equal, before, jax.device_get(ref_params)))


def test_references_from_the_batch_and_from_the_step_give_one_loss():
    given, inside = dpo(), dpo_with_reference()
    batch = steps.batch(given, rows=8, ref=False)
    other = inside.params(seed=7)  # another model than the policy
    ref_logps = branch_logps(given, other, batch)
    _, a = given.step(given.start(), batch._replace(ref_logps=ref_logps))
    _, b = inside.step(inside.start(), batch, ref_params=other)
    steps.assert_close(jax.device_get(a), jax.device_get(b))
    assert abs(float(a["rewards/chosen"])) > 1e-3  # far above the tolerance


def test_the_divergence_is_that_of_the_two_models_distributions():
    terms = {"token_kl": {"on": "chosen"}, "tdpo": {**steps.PAIR, "weight": 0.5}}
    case = steps.case(terms, reference="step", trainable=FROZEN_TOWER)
    batch = steps.batch(case, rows=8, ref=False)
    other = case.params(seed=7)
    _, far = case.step(case.start(), batch, ref_params=other)
    vlm, layout = case.setup.vlm, case.setup.layout

    @jax.jit
    def expected(params, ref_params):
        def probabilities(params):
            return jax.nn.softmax(vlm.hidden(params, batch, layout) @ vlm.unembed(params))

        p, q = probabilities(params), probabilities(ref_params)
        kl = jnp.sum(q * jnp.log(q / p), axis=-1)  # [B, N, T]
        return jnp.mean(jnp.sum(jnp.where(batch.mask != 0, kl, 0.0), axis=-1), axis=0)

    chosen, rejected = expected(case.params(), other)
    np.testing.assert_allclose(far["loss/token_kl"], chosen, rtol=1e-4)
    np.testing.assert_allclose(far["tdpo/kl_lose"], rejected, rtol=1e-4)
    _, near = case.step(case.start(), batch, ref_params=case.params())
    np.testing.assert_allclose(near["loss/token_kl"], 0.0, atol=1e-5)
    np.testing.assert_allclose(near["loss/tdpo"], math.log(2), rtol=1e-5)


def test_a_stored_reference_holds_no_distribution():
    with pytest.raises(ValueError, match=r"config.train.reference is 'cache'; set it to 'step'"):
        steps.case({"token_kl": {"on": "chosen"}})


def test_evaluation_sums_what_the_step_averages():
    case = dpo()
    batch = steps.without_rows(steps.batch(case, rows=8), [3])
    state = case.start()
    with jax.set_mesh(case.setup.mesh):
        placed = steps.sharding.put_batch(batch, case.setup.mesh)
        sums = case.functions.evaluate(
            state.params, placed, case.objective.knobs, state.loss_state, None
        )
    _, means = case.step(state, batch)
    for name, value in sums.items():
        whole = name in ("rows", "tokens")
        np.testing.assert_allclose(value, means[name] * (1 if whole else 7), rtol=1e-5)


def test_bfloat16_computes_near_float32_over_float32_parameters():
    wide, narrow = dpo(), steps.case(steps.DPO, dtype="bfloat16", trainable=FROZEN_TOWER)
    batch = steps.batch(wide, rows=8)
    (state, metrics), (_, expected) = narrow.run(batch), wide.run(batch)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
    for name in ("loss", "grad_norm", "logps/chosen"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=0.03)
        assert metrics[name].dtype == np.float32


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_changes_no_value(remat):
    plain, again = dpo(), steps.case(steps.DPO, remat=remat, trainable=FROZEN_TOWER)
    batch = steps.batch(plain, rows=8)
    steps.assert_close(again.run(batch), plain.run(batch))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_heads_in_turn_change_no_value(remat, monkeypatch):
    plain = dpo()
    batch = steps.batch(plain, rows=8)
    wanted = plain.run(batch)
    monkeypatch.setattr(attention, "_LARGE", 0)
    again = steps.case(steps.DPO, remat=remat, trainable=FROZEN_TOWER)
    steps.assert_close(again.run(batch), wanted)


def test_padded_positions_reach_nothing():
    # A mask of 0 hides whatever stands there: other tokens, even references that are not numbers.
    case = dpo()
    batch = steps.batch(case, rows=8)
    hidden = batch.mask == 0
    noisy = batch._replace(
        responses=np.where(hidden, 17, batch.responses),
        ref_logps=np.where(hidden, 1e4, batch.ref_logps).astype(np.float32),
    )
    steps.assert_close(case.run(noisy), case.run(batch), rtol=1e-5)
    assert jnp.any(hidden)
