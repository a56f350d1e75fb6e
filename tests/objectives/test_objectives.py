"""The contract of every term in the table, their weighted sum, and what a config may get wrong."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import objectives, types

AXES = ("correctness", "grounding", "format")
LAYOUT = types.Layout.of(("chosen", "rejected", "chosen@corrupted", "reference_answer"))
PAIR = {"win": "chosen", "lose": "rejected", "beta": 0.1}
SPECS = {  # one entry for each term of the table
    "dpo": {**PAIR, "label_smoothing": 0.1},
    "modpo": {**PAIR, "weights": [0.5, 0.3, 0.2]},
    "nll": {"on": "chosen"},
    "bco": PAIR,
}
MPO = {"dpo": {**PAIR, "weight": 0.8}, "bco": {**PAIR, "weight": 0.2}, "nll": {"on": "chosen"}}


def build(spec):
    return objectives.build(spec, LAYOUT, AXES)


def loss_of(objective, logps, labels):
    return objective(objective.knobs, objective.init_state(), logps, labels)[0]


def gradient_of(objective, logps, labels):
    """d(sum of losses)/d(policy log-probabilities), [B, N, T]."""

    def total(policy):
        return loss_of(objective, logps._replace(policy=policy), labels).sum()

    return jax.grad(total)(jnp.asarray(logps.policy))


@pytest.fixture(params=sorted(objectives.OBJECTIVES))
def name(request):
    return request.param


@pytest.fixture
def term(name):
    """Every term of the table in turn, as an objective of its own."""
    return build({name: SPECS[name]})


def test_every_term_returns_one_value_per_instance(term, pairs32):
    loss, metrics, _ = jax.jit(term)(term.knobs, term.init_state(), *pairs32)
    assert loss.shape == (2,)
    assert loss.dtype == jnp.float32
    assert {value.shape for value in metrics.values()} == {(2,)}


def test_every_term_is_the_same_under_jit(term, pairs32):
    plain = term(term.knobs, term.init_state(), *pairs32)
    jitted = jax.jit(term)(term.knobs, term.init_state(), *pairs32)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, jitted)


@pytest.mark.parametrize("gap", [1e5, -1e5])  # beta * gap = +-1e4
def test_every_term_is_finite_at_extreme_log_ratios(term, pairs32, gap):
    logps, labels = pairs32
    policy = np.array(logps.policy)
    policy[:, 0, 0] += gap
    policy[:, 1, 0] -= gap
    logps = logps._replace(policy=policy)
    assert np.isfinite(loss_of(term, logps, labels)).all()
    assert np.isfinite(gradient_of(term, logps, labels)).all()


def test_every_term_ignores_what_stands_in_the_padding(term, pairs32, make_pairs):
    filled = make_pairs(np.float32, fill=-1234.5)
    np.testing.assert_array_equal(loss_of(term, *pairs32), loss_of(term, *filled))
    gradient = np.asarray(gradient_of(term, *filled))
    np.testing.assert_array_equal(gradient[filled[0].mask == 0], 0)


def test_every_term_is_silent_where_its_branches_are_absent(term, pairs32):
    logps, labels = pairs32
    mask = np.array(logps.mask)
    mask[1, :2] = 0
    logps = logps._replace(mask=mask)
    loss, metrics, _ = term(term.knobs, term.init_state(), logps, labels)
    assert loss[1] == 0
    assert all(value[1] == 0 for value in metrics.values())
    assert loss[0] != 0
    gradient = gradient_of(term, logps, labels)
    np.testing.assert_array_equal(gradient[1], 0)
    assert (gradient[0, 0, 0] != 0).all()


def test_every_term_takes_an_empty_batch(term, pairs32):
    logps, labels = pairs32
    logps = logps._replace(mask=np.zeros_like(logps.mask))
    np.testing.assert_array_equal(loss_of(term, logps, labels), 0)
    np.testing.assert_array_equal(gradient_of(term, logps, labels), 0)


def test_every_term_says_truly_whether_it_reads_the_reference(name, term, pairs32):
    logps, labels = pairs32
    # Opposite moves on the two branches, so that a term cannot cancel them.
    ref = np.array(logps.ref)
    ref[:, 0] += 0.5
    ref[:, 1] -= 0.5
    changed = loss_of(term, logps._replace(ref=ref), labels) != loss_of(term, *pairs32)
    assert changed.all() if term.needs_reference else not changed.any()
    assert term.needs_reference == (name not in objectives.WITHOUT_REFERENCE)


def test_every_term_says_truly_whether_it_reads_rewards(term, pairs32):
    logps, labels = pairs32
    rewards = np.array(labels.rewards)
    rewards[:, 0, 1] += 0.25
    changed = loss_of(term, logps, labels._replace(rewards=rewards)) != loss_of(term, *pairs32)
    assert changed.all() if term.needs_rewards else not changed.any()


def test_every_term_ignores_branches_that_it_does_not_name(term, pairs32):
    logps, labels = pairs32
    mask = np.array(logps.mask)
    mask[:, 2:] = 0
    np.testing.assert_array_equal(
        loss_of(term, logps._replace(mask=mask), labels), loss_of(term, *pairs32)
    )


def test_every_term_leaves_the_reserved_knobs_alone(name):
    knobs = inspect.signature(objectives.OBJECTIVES[name]).parameters
    assert not {"term", "weight"} & knobs.keys()


def test_a_sweep_over_numbers_compiles_once(pairs32):
    traces = []
    objective = build({**MPO, "modpo": SPECS["modpo"]})

    def step(knobs, state, logps, labels):
        traces.append(1)
        return objective(knobs, state, logps, labels)

    jitted = jax.jit(step)
    for i in range(1, 9):
        pair = {**PAIR, "beta": 0.05 * i}
        spec = {
            "dpo": {**pair, "weight": 0.1 * i, "label_smoothing": 0.05 * i},
            "bco": {**pair, "weight": 0.2},
            "nll": {"on": "chosen", "weight": 1 / i},
            "modpo": {**pair, "weights": dict(zip(AXES, (0.1 * i, 0.2, 0.3)))},
        }
        other = build(spec)
        found = jitted(other.knobs, other.init_state(), *pairs32)[0]
        expected = other(other.knobs, other.init_state(), *pairs32)[0]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(traces) == 1
    assert jitted._cache_size() == 1


def test_knobs_are_float32_arrays():
    knobs = build({"modpo": {**SPECS["modpo"], "weight": 2}}).knobs
    assert {leaf.dtype for leaf in jax.tree.leaves(knobs)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(knobs["modpo"]["weights"], np.float32([0.5, 0.3, 0.2]))
    assert knobs["modpo"]["weight"] == 2


def test_weights_over_axes_by_name_equal_those_in_order():
    named = build(
        {"modpo": {**PAIR, "weights": {"format": 0.2, "correctness": 0.5, "grounding": 0.3}}}
    )
    np.testing.assert_array_equal(
        named.knobs["modpo"]["weights"], build({"modpo": SPECS["modpo"]}).knobs["modpo"]["weights"]
    )


@pytest.mark.parametrize(
    ("mean", "count", "delta", "expected"),
    [
        (0.0, 0, "running", [1.9543654958, 1.4486878788]),
        (0.03, 1, "running", [1.9543854849, 1.4486778895]),
        (0.03, 1, "none", [1.9543555009, 1.4487078570]),
    ],
)
def test_mpo_by_hand(pairs, close, mean, count, delta, expected):
    dtype = pairs[0].policy.dtype
    objective = build({**MPO, "bco": {**MPO["bco"], "delta": delta}})
    # The numbers as the test's precision has them: 0.1 in float32 is 1.5e-8 off.
    knobs = {
        "dpo": {"weight": 0.8, "beta": 0.1, "label_smoothing": 0.0},
        "bco": {"weight": 0.2, "beta": 0.1},
        "nll": {"weight": 1.0},
    }
    knobs = jax.tree.map(lambda value: np.asarray(value, dtype), knobs)
    state = {"bco": objectives.bco.Baseline(np.asarray(mean, dtype), np.asarray(count, dtype))}
    loss, metrics, after = objective(knobs, state, *pairs)
    close(loss, expected)
    close(metrics["loss/dpo"], [0.6491593390, 0.7602581947])
    assert after["bco"].count == count + 1


def test_mpo_as_configured_by_hand(pairs32):
    objective = build(MPO)
    np.testing.assert_allclose(
        loss_of(objective, *pairs32), [1.9543654958, 1.4486878788], atol=2e-6
    )
    whole = build({**MPO, "nll": {"on": "chosen", "reduce": "batch_tokens"}})
    np.testing.assert_allclose(loss_of(whole, *pairs32).mean(), 1.7631933540, atol=2e-6)


def test_the_instances_weight_multiplies_the_whole_loss(pairs32):
    logps, labels = pairs32
    objective = build({"dpo": PAIR})
    weighted = labels._replace(weight=np.float32([0.5, 2.0]))
    np.testing.assert_allclose(
        loss_of(objective, logps, weighted), [0.3245796695, 1.5205163894], atol=2e-6
    )
    _, metrics, _ = objective(objective.knobs, {}, logps, weighted)
    np.testing.assert_allclose(metrics["loss/dpo"], [0.6491593390, 0.7602581947], atol=2e-6)


def test_two_entries_of_one_term_add_up(pairs32):
    objective = build(
        {
            "text": {**PAIR, "term": "dpo"},
            "visual": {**PAIR, "term": "dpo", "lose": "chosen@corrupted"},
        }
    )
    np.testing.assert_allclose(
        loss_of(objective, *pairs32), [1.3079188946, 1.4584178752], atol=2e-6
    )
    _, metrics, _ = objective(objective.knobs, objective.init_state(), *pairs32)
    assert {"loss/text", "loss/visual", "text/logit", "visual/logit"} <= metrics.keys()
    # The generic metrics are those of the first pair.
    np.testing.assert_allclose(metrics["rewards/margins"], [0.09, -0.13], atol=2e-6)


def test_state_is_carried_from_step_to_step(pairs32):
    objective = build(MPO)
    step = jax.jit(lambda state: objective(objective.knobs, state, *pairs32)[2])
    state = step(step(objective.init_state()))
    assert jax.tree.structure(state) == jax.tree.structure(objective.init_state())
    np.testing.assert_allclose(state["bco"].mean, 0.01, atol=1e-7)
    assert state["bco"].count == 2


def test_the_state_given_is_not_changed(pairs32):
    objective = build(MPO)
    state = objective.init_state()
    objective(objective.knobs, state, *pairs32)
    assert state["bco"].count == 0


def test_the_baseline_over_devices_is_that_of_the_global_batch(pairs32):
    logps, labels = jax.tree.map(
        lambda x: np.concatenate([x, 0.5 * x] * 4).astype(x.dtype), pairs32
    )
    logps = logps._replace(mask=(logps.mask > 0).astype(np.float32))
    labels = labels._replace(axis=np.zeros(16, np.int32))
    objective = build({**MPO, "nll": {"on": "chosen", "reduce": "batch_tokens"}})
    one = objective(objective.knobs, objective.init_state(), logps, labels)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    many = jax.jit(objective)(
        objective.knobs, objective.init_state(), *jax.device_put((logps, labels), rows)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, many)


def test_only_terms_with_a_reference_ask_for_it():
    assert build(MPO).needs_reference
    assert not build({"nll": {"on": "chosen"}}).needs_reference
    assert not build(MPO).needs_rewards
    assert build({"modpo": SPECS["modpo"]}).needs_rewards
    assert build({"dpo": PAIR}).init_state() == {}


def test_check_names_the_pair_that_modpo_cannot_weigh(pairs32):
    objective = build({"modpo": {**PAIR, "weights": [0.5, 0.5, 0.0]}})
    with pytest.raises(ValueError, match="Row 1 is ordered by axis 2"):
        objective.check(pairs32[1])
    build(MPO).check(pairs32[1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "config.objective is empty"),
        ({"dpo": 0.5}, "config.objective.dpo is 0.5; it must be a mapping"),
        ({"dpoo": PAIR}, "config.objective.dpoo.* 'dpoo'.*Did you mean 'dpo'"),
        ({"a": {**PAIR, "term": "modp"}}, "config.objective.a.* 'modp'.*Did you mean 'modpo'"),
        ({"dpo": {**PAIR, "betta": 1}}, "config.objective.dpo.*'betta'.*Did you mean 'beta'"),
        ({"dpo": {"win": "chosen", "beta": 1}}, "config.objective.dpo.* needs the knob.* lose"),
        (
            {"dpo": {**PAIR, "lose": "rejectd"}},
            "config.objective.dpo.lose is 'rejectd'.*Did you mean 'rejected'",
        ),
        ({"dpo": {**PAIR, "lose": 1}}, "config.objective.dpo.lose is 1; it must be the name"),
        (
            {"dpo": {**PAIR, "lose": "chosen@clean"}},
            "config.objective.dpo.lose and config.objective.dpo.win are both 'chosen",
        ),
        ({"dpo": {**PAIR, "beta": 0.0}}, "config.objective.dpo.beta is 0.0; it must be > 0"),
        ({"dpo": {**PAIR, "beta": -0.1}}, "config.objective.dpo.beta is -0.1; it must be > 0"),
        ({"dpo": {**PAIR, "beta": 1e-60}}, "config.objective.dpo.beta is 1e-60"),
        ({"dpo": {**PAIR, "beta": 1e60}}, "config.objective.dpo.beta is 1e"),
        ({"dpo": {**PAIR, "beta": float("nan")}}, "config.objective.dpo.beta is nan"),
        ({"dpo": {**PAIR, "beta": True}}, "config.objective.dpo.beta is True; .* a number"),
        ({"dpo": {**PAIR, "beta": "0.1"}}, "config.objective.dpo.beta is '0.1'; .* a number"),
        ({"dpo": {**PAIR, "label_smoothing": 1.0}}, "dpo.label_smoothing is 1.0; .*\\[0, 1\\)"),
        ({"dpo": {**PAIR, "weight": -1}}, "config.objective.dpo.weight is -1; it must be >= 0"),
        ({"dpo": {**PAIR, "weight": float("inf")}}, "config.objective.dpo.weight is inf"),
        (
            {"modpo": {**PAIR, "weights": {"corectness": 1.0}}},
            "modpo.weights has no axis 'corectness'.*Did you mean 'correctness'",
        ),
        (
            {"modpo": {**PAIR, "weights": {"correctness": 1.0, "format": 1.0}}},
            "config.objective.modpo.weights lacks grounding",
        ),
        ({"modpo": {**PAIR, "weights": [1.0]}}, "modpo.weights has 1 numbers for 3 axes"),
        ({"modpo": {**PAIR, "weights": [1, -1, 0]}}, "modpo.weights.grounding is -1"),
        ({"modpo": {**PAIR, "weights": [0, 0, 0]}}, "modpo.weights is 0 on every axis"),
        ({"modpo": {**PAIR, "weights": 0.5}}, "modpo.weights is 0.5; it must map axes"),
        (
            {"nll": {"on": "chosen", "reduce": "batch_token"}},
            "config.objective.nll.reduce is 'batch_token'.*Did you mean 'batch_tokens'",
        ),
        ({"bco": {**PAIR, "delta": "runing"}}, "bco.delta is 'runing'.*Did you mean 'running'"),
    ],
)
def test_build_names_what_is_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec)


def test_modpo_needs_reward_axes():
    with pytest.raises(ValueError, match=r"modpo.weights needs reward axes.*config.data.axes"):
        objectives.build({"modpo": SPECS["modpo"]}, LAYOUT, ())
