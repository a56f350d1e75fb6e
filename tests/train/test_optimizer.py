"""The optimizer: hand-worked steps, schedules, and rules over paths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rubric_jax import config, paths
from rubric_jax.train import optimizer

EVERYTHING = ((r".*", 1.0),)


def make(**fields):
    return config.Optimizer(**{"schedule": "constant", "warmup": 0.0, "clip": 0.0, **fields})


def params_like(dtype=jnp.float32):
    """Two layers of a decoder with heads of size 2, stacked, and a vision tower."""
    rng = np.random.default_rng(0)

    def leaf(*shape):
        return jnp.asarray(0.1 + rng.normal(size=shape), dtype)

    return {
        "decoder": {
            "embedding": leaf(8, 4),
            "layers": {
                "attn": {"q": {"kernel": leaf(2, 4, 2, 3)}, "o": {"kernel": leaf(2, 2, 3, 4)}},
                "up": {"kernel": leaf(2, 4, 6)},
                "norm": {"scale": leaf(2, 4)},
            },
        },
        "vision": {"patch": {"kernel": leaf(2, 2, 3, 4)}, "up": {"bias": leaf(6)}},
    }


def step(optimizer_config, params, grads, *, steps=10):
    """(new params, state after, state before) of one update."""
    tx, _ = optimizer.build(optimizer_config, params, steps)
    before = tx.init(params)
    updates, after = jax.jit(tx.update)(grads, before, params)
    return optax.apply_updates(params, updates), after, before


def test_adamw_first_step_by_hand():
    # m/(1-b1) = g and v/(1-b2) = g^2, so the direction is g / (|g| + eps) = sign(g):
    # p - 0.1 * (sign(g) + 0.5 * p) = 2 - 0.1 * (1 + 1) and -4 - 0.1 * (-1 - 2).
    params = {"a": {"kernel": jnp.array([2.0, -4.0])}}
    grads = {"a": {"kernel": jnp.array([0.3, -20.0])}}
    new, _, _ = step(make(learning_rate=0.1, weight_decay=0.5), params, grads)
    np.testing.assert_allclose(new["a"]["kernel"], [1.8, -3.7], rtol=1e-6)


def test_adamw_second_step_by_hand():
    # g = 1, then 3, b1 = 0.5, b2 = 0.75: m = 0.5 * 0.5 + 0.5 * 3 = 1.75, over 1 - 0.25;
    # v = 0.75 * 0.25 + 0.25 * 9 = 2.4375, over 1 - 0.5625.
    c = make(learning_rate=1.0, knobs={"b1": 0.5, "b2": 0.75})
    params = {"a": jnp.array([0.0])}
    tx, _ = optimizer.build(c, params, 10)
    _, state = tx.update({"a": jnp.array([1.0])}, tx.init(params), params)
    updates, _ = tx.update({"a": jnp.array([3.0])}, state, params)
    expected = -(1.75 / 0.75) / np.sqrt(2.4375 / 0.4375)
    np.testing.assert_allclose(updates["a"], [expected], rtol=1e-6)


def test_lion_steps_by_the_sign():
    params = {"a": {"kernel": jnp.array([2.0, -4.0])}}
    grads = {"a": {"kernel": jnp.array([0.3, -20.0])}}
    new, _, _ = step(make(name="lion", learning_rate=0.1, weight_decay=0.5), params, grads)
    np.testing.assert_allclose(new["a"]["kernel"], [1.8, -3.7], rtol=1e-6)


def test_adafactor_first_step_by_hand():
    # The first decay rate is 1 - 1^-0.8 = 0: v = g^2, the direction sign(g), of RMS 1: not clipped.
    params = {"a": {"kernel": jnp.array([[2.0, -4.0]])}}
    grads = {"a": {"kernel": jnp.array([[0.3, -20.0]])}}
    new, _, _ = step(make(name="adafactor", learning_rate=0.1), params, grads)
    np.testing.assert_allclose(new["a"]["kernel"], [[1.9, -3.9]], rtol=1e-6)


def test_adafactor_keeps_rows_and_columns():
    params = {"up": {"kernel": jnp.ones((3, 8, 16))}}
    c = make(name="adafactor", knobs={"min_dim_size_to_factor": 8})
    _, state, _ = step(c, params, params)
    sizes = {name: leaf.size for name, leaf in paths.flatten(state).items()}
    assert max(sizes.values()) == 3 * 16


def _orthogonal(matrix):
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


@pytest.mark.parametrize(
    ("path", "shape"), [("q", (2, 4, 6)), ("o", (2, 6, 4))], ids=["heads out", "heads in"]
)
def test_muon_reads_all_heads_of_a_layer_as_one_matrix(path, shape):
    params = params_like()
    new, _, _ = step(make(name="muon", learning_rate=1.0), params, params)
    old_kernel = np.asarray(params["decoder"]["layers"]["attn"][path]["kernel"])
    kernel = np.asarray(new["decoder"]["layers"]["attn"][path]["kernel"])
    update = (old_kernel - kernel).reshape(shape)
    for layer in range(2):
        # Newton-Schulz stops early: singular values end in [0.68, 1.14] or so, around 1.
        singular = np.linalg.svd(update[layer], compute_uv=False) / (0.2 * np.sqrt(6))
        assert singular.min() > 0.5
        assert singular.max() < 1.3
        # The singular vectors are the gradient's: against its polar factor, no sign is turned.
        polar = _orthogonal(old_kernel.reshape(shape)[layer])
        assert np.sum(polar * update[layer]) / np.sum(polar**2) > 0.2 * np.sqrt(6) * 0.6


def test_muon_leaves_embeddings_norms_and_biases_to_adam():
    params = params_like()
    new, _, _ = step(make(name="muon", learning_rate=0.1), params, params)
    for group, name in (("decoder", "embedding"), ("vision", "patch")):
        moved = jax.tree.map(lambda a, b: a - b, params[group][name], new[group][name])
        jax.tree.map(lambda m: np.testing.assert_allclose(np.abs(m), 0.1, rtol=1e-3), moved)


def test_muon_refuses_a_matrix_with_too_few_axes():
    params = {"attn": {"q": {"kernel": jnp.ones((4, 4))}}}
    tx, _ = optimizer.build(make(name="muon"), params, 10)
    with pytest.raises(ValueError, match=r"'attn/q/kernel' as a matrix of 1 \+ 2 axes"):
        tx.update(params, tx.init(params), params)


def test_decay_acts_only_where_the_rules_say():
    params = params_like()
    zero = jax.tree.map(jnp.zeros_like, params)
    decay = ((r"vision/.*", 0.0), (r".*/up/kernel", 2.0), (r".*/kernel", 1.0), (r".*", 0.0))
    new, _, _ = step(make(learning_rate=0.5, weight_decay=0.1, decay=decay), params, zero)
    shrink = jax.tree.map(lambda a, b: float(jnp.mean(a / b)), new, params)
    shrink = paths.flatten(shrink)
    for path, factor in {
        "decoder/embedding": 1.0,
        "decoder/layers/attn/q/kernel": 0.95,
        "decoder/layers/attn/o/kernel": 0.95,
        "decoder/layers/up/kernel": 0.9,
        "decoder/layers/norm/scale": 1.0,
        "vision/patch/kernel": 1.0,
        "vision/up/bias": 1.0,
    }.items():
        np.testing.assert_allclose(shrink.pop(path), factor, rtol=1e-5)
    assert not shrink


def test_scale_multiplies_the_whole_update_of_a_path():
    params = params_like()
    rules = {"decay": EVERYTHING, "weight_decay": 0.1, "learning_rate": 0.1}
    scaled, _, _ = step(make(scale=((r"vision/.*", 0.25), *EVERYTHING), **rules), params, params)
    plain, _, _ = step(make(**rules), params, params)
    update = jax.tree.map(lambda new, old: new - old, scaled, params)
    whole = jax.tree.map(lambda new, old: new - old, plain, params)
    for path, value in paths.flatten(update).items():
        factor = 0.25 if path.startswith("vision/") else 1.0
        np.testing.assert_allclose(value, factor * paths.flatten(whole)[path], rtol=1e-4, atol=1e-7)


def test_gradients_are_clipped_by_their_global_norm():
    # Norm 5, clipped to 1: the first AdamW step has no memory of scale, so look at the moment.
    params = {"a": jnp.array([0.0]), "b": jnp.array([0.0])}
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, state, _ = step(make(clip=1.0), params, grads)
    moments = {k: v for k, v in paths.flatten(state).items() if "/mu/" in k}
    np.testing.assert_allclose(list(moments.values()), [[0.06], [0.08]], rtol=1e-5)


@pytest.mark.parametrize("name", sorted(optimizer.OPTIMIZERS))
def test_frozen_leaves_have_no_state_and_no_update(name):
    params = params_like()
    c = make(
        name=name, weight_decay=0.1, clip=1.0, trainable=((r"vision/.*", False), (r".*", True))
    )
    kept, rest = paths.split(params, optimizer.trainable(c, params))
    c = make(name=name, weight_decay=0.1, clip=1.0, scale=((r".*/up/.*", 0.5), *EVERYTHING))
    new, state, before = step(c, kept, kept)
    assert not [path for path in paths.flatten(state) if "vision" in path]
    assert jax.tree.structure(new) == jax.tree.structure(kept)
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(kept)))
    assert jax.tree.structure(paths.merge(new, rest)) == jax.tree.structure(params)
    # What a jitted step with a donated state needs: the state keeps its shapes and types.
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, before)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", sorted(optimizer.OPTIMIZERS))
def test_moments_have_the_parameters_type(name, dtype):
    params = params_like(dtype)
    c = make(name=name, weight_decay=0.1, clip=1.0, scale=((r".*/up/.*", 0.5), *EVERYTHING))
    new, state, before = step(c, params, params)
    moments = [leaf for path, leaf in paths.flatten(state).items() if "decoder" in path]
    assert moments
    assert {leaf.dtype for leaf in moments} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype(dtype)}
    assert [x.dtype for x in jax.tree.leaves(state)] == [x.dtype for x in jax.tree.leaves(before)]


@pytest.mark.parametrize("name", sorted(optimizer.OPTIMIZERS))
def test_every_optimizer_lowers_a_quadratic(name):
    params = params_like()
    tx, _ = optimizer.build(make(name=name, learning_rate=0.01, clip=1.0), params, 30)

    def loss(p):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    @jax.jit
    def advance(p, state):
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    now, state = params, tx.init(params)
    for _ in range(30):
        now, state = advance(now, state)
    assert loss(now) < 0.8 * loss(params)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 10 steps, 0.4 of them to warm up: w = 4, peak * (step + 1) / 5; then 6 steps to 0.1.
        ("constant", [0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.2, 0.4, 0.6, 0.8, 1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1]),
        ("cosine", [0.2, 0.4, 0.6, 0.8, 1.0, 0.9397114, 0.775, 0.55, 0.325, 0.1602886, 0.1]),
    ],
)
def test_schedules_by_hand(kind, expected):
    c = make(schedule=kind, learning_rate=2.0, warmup=0.4, end=0.1)
    rate = optimizer.schedule(c, 10)
    for at, share in enumerate(expected):
        np.testing.assert_allclose(rate(at), 2.0 * share, rtol=1e-6)


def test_build_returns_the_schedule_that_the_steps_follow():
    c = make(schedule="linear", learning_rate=1.0, knobs={"b1": 0.0, "b2": 0.0})
    params = {"a": jnp.array([0.0])}
    tx, rate = optimizer.build(c, params, 4)
    state = tx.init(params)
    for at in range(4):
        updates, state = tx.update({"a": jnp.array([1.0])}, state, params)
        np.testing.assert_allclose(-updates["a"][0], rate(at), rtol=1e-6)
    np.testing.assert_allclose([rate(0), rate(3)], [1.0, 0.25])


@pytest.mark.parametrize("steps", [1, 2])
def test_a_short_run_still_reaches_its_peak(steps):
    rate = optimizer.schedule(make(schedule="cosine", learning_rate=1.0, warmup=0.03), steps)
    np.testing.assert_allclose(rate(steps - 1), 1.0)
    assert rate(0) > 0


def test_trainable_follows_the_first_matching_rule():
    rules = ((r"vision/up/.*", True), (r"vision/.*", False), (r".*", True))
    found = paths.flatten(optimizer.trainable(make(trainable=rules), params_like()))
    assert [path for path, keep in found.items() if not keep] == ["vision/patch/kernel"]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (((r"visoin/.*", False), (r".*", True)), "no parameter matches 'visoin/.\\*'"),
        (((r"vision/.*", False),), "No rule of config.optimizer.trainable matches 'decoder/"),
        (((r".*", False),), "freezes every parameter"),
        (((r".*", 1.0),), "has 1.0 for '.\\*'; use True or False"),
        (((r"(", True),), "'\\(' is no regular expression"),
    ],
)
def test_trainable_refuses_rules_that_cannot_be_meant(rules, message):
    with pytest.raises(ValueError, match=message):
        optimizer.trainable(make(trainable=rules), params_like())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam"}, "config.optimizer.name 'adam'; .*Did you mean 'adamw'"),
        ({"knobs": {"bb1": 0.9}}, "'adamw' has no knob 'bb1'.*Did you mean 'b1'"),
        ({"name": "lion", "knobs": {"eps": 1.0}}, "'lion' has no knob 'eps'"),
        ({"decay": ((r".*", "much"),)}, "config.optimizer.decay has 'much'"),
        ({"scale": ((r".*", -1.0),)}, "config.optimizer.scale has -1.0"),
        ({"scale": ((r"decoder/.*", 1.0),)}, "No rule of config.optimizer.scale matches 'vision"),
        ({"warmup": 1.5}, "config.optimizer.warmup is 1.5"),
        ({"end": -0.5}, "config.optimizer.end is -0.5"),
    ],
)
def test_build_names_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        optimizer.build(make(**fields), params_like(), 10)


def test_a_schedule_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step, not 0"):
        optimizer.build(make(), params_like(), 0)


def test_build_works_from_shapes_alone():
    params = params_like()
    tx, _ = optimizer.build(make(name="muon"), jax.eval_shape(lambda: params), 10)
    state = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
