"""Heads: what each kind reads, and how they lie on disk."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import paths, types
from rubric_jax.models import head_files, heads, rows
from tests import toys

SPEC = {
    "reward": {"head": "last"},
    "users": {"head": "table", "rows": 3, "outputs": 2, "start": 0.5},
    "deep": {"head": "prompt", "outputs": 4, "width": 6},
    "tokens": {"head": "activation"},
}
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(2, 3, 5, 8)).astype(np.float32)  # T = 4
MASK = np.zeros((2, 3, 4), np.float32)
for row, lengths in enumerate([(4, 2, 1), (3, 0, 4)]):
    for branch, length in enumerate(lengths):
        MASK[row, branch, :length] = 1.0
MASK[0, 0, 1] = 0.0  # a token of weight 0 within a response


def only(kind, **knobs):
    return heads.bind({"it": {"head": kind, **knobs}})[0][1]


@functools.cache
def toy():
    return heads.attach(toys.llava.build(toys.HF), SPEC)


def test_the_states_at_tokens_stand_behind_those_that_predict():
    """A row [prompt | chosen | rejected] of a prompt of 3, 2 of them real, and responses of 2."""
    layout = types.Layout.of(("chosen", "rejected"))
    row = np.arange(7.0)[None, :, None]
    found = rows.unpack(row, np.array([[2]]), 3, layout, True)
    np.testing.assert_array_equal(found[0, :, :, 0], [[1, 3, 4], [1, 5, 6]])
    found = rows.unpack(row, np.array([[2]]), 3, layout)
    np.testing.assert_array_equal(found[0, :, :, 0], [[1, 3], [1, 5]])


def test_last_reads_the_state_at_the_last_real_token():
    head = only("last", outputs=2)
    params = {"kernel": np.eye(8, 2, dtype=np.float32), "bias": np.float32([0.0, 10.0])}
    found = np.asarray(head.read(params, STATES, MASK))
    assert head.shape == types.HeadShape("branch", 2)
    for row, lengths in enumerate([(4, 2, 1), (3, 0, 4)]):
        for branch, length in enumerate(lengths):  # length 0: the end of the prompt
            expected = STATES[row, branch, length, :2] + [0, 10]
            np.testing.assert_allclose(found[row, branch], expected, rtol=1e-6)


def test_mean_and_prompt_read_what_they_say():
    params = {"kernel": np.eye(8, 2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    found = np.asarray(only("mean", outputs=2).read(params, STATES, MASK))
    np.testing.assert_allclose(found[0, 0], STATES[0, 0, [1, 3, 4], :2].mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found[1, 1], 0)
    found = only("prompt", outputs=2).read(params, STATES, MASK)
    np.testing.assert_allclose(found, STATES[:, :, 0, :2], rtol=1e-6)


def test_a_width_puts_a_layer_between():
    head = only("prompt", outputs=3, width=6)
    params = head.init(jax.random.key(0), 8)
    hidden = STATES[:, :, 0] @ params["up"]["kernel"]
    expected = jax.nn.gelu(hidden) @ params["kernel"]
    np.testing.assert_allclose(head.read(params, STATES, MASK), expected, rtol=1e-4, atol=1e-5)


def test_masks_start_near_their_bias_and_are_never_negative():
    head = only("mask", start=1.0)
    params = head.init(jax.random.key(0), 8)
    found = np.asarray(head.read(params, STATES, MASK))
    assert head.shape == types.HeadShape("token", 1, reference=True)
    assert found.shape == (2, 3, 4, 1)
    assert np.abs(found - 1).max() < 0.3
    closed = {**params, "bias": np.float32([-5.0])}
    np.testing.assert_array_equal(head.read(closed, STATES, MASK), 0)


def test_masks_by_hand():
    """LayerNorm of (1, -1) is itself: 2 * 1 - 1 * -1 + 0.5 of the scaled state."""
    states = np.array([[[[1.0, -1.0], [0.0, 0.0]]]], np.float32)  # predicts token 0; at token 0
    params = {
        "scale": np.float32([2.0, 1.0]),
        "kernel": np.float32([[1.0], [-1.0]]),
        "bias": np.float32([0.5]),
    }
    found = only("mask").read(params, states, np.ones((1, 1, 1), np.float32))
    np.testing.assert_allclose(found, [[[[3.5]]]], rtol=1e-5)


def test_activations_go_from_0_to_1_over_the_real_tokens():
    states = np.zeros((1, 1, 5, 2), np.float32)
    states[0, 0, :, 0] = states[0, 0, :, 1] = [3.0, 1.0, 2.0, 9.0, 9.0]
    found = only("activation").read({}, states, np.float32([[[1, 1, 1, 0]]]))
    np.testing.assert_allclose(found[0, 0, :, 0], [1.0, 0.0, 0.5, 0.0], atol=1e-6)
    alike = only("activation").read({}, 0 * states, np.float32([[[1, 1, 1, 0]]]))
    np.testing.assert_array_equal(alike, 0)


def test_heads_are_parameters_of_the_model_with_rules_of_their_own():
    shapes = paths.flatten(jax.eval_shape(toy().init, jax.random.key(0)))
    ours = {path: leaf.shape for path, leaf in shapes.items() if path.startswith("heads/")}
    assert ours == {
        "heads/deep/bias": (4,),
        "heads/deep/kernel": (6, 4),
        "heads/deep/up/bias": (6,),
        "heads/deep/up/kernel": (32, 6),
        "heads/reward/bias": (1,),
        "heads/reward/kernel": (32, 1),
        "heads/users/table": (3, 2),
    }
    for path in shapes:
        paths.lookup(toy().rules, path)


def test_a_new_head_does_not_depend_on_the_others():
    alone = heads.init(heads.bind({"reward": {"head": "last"}}), jax.random.key(3), 8)
    among = heads.init(heads.bind(SPEC), jax.random.key(3), 8)
    np.testing.assert_array_equal(alone["reward"]["kernel"], among["reward"]["kernel"])


def saved(tmp_path, spec):
    params = heads.init(heads.bind(spec), jax.random.key(7), 32)
    params = jax.tree.map(lambda leaf: leaf + 0.25, params)
    head_files.write(tmp_path, params, heads.complete(spec))
    return params


def load(directory, spec, seed=0):
    vlm = heads.attach(toys.llava.build(toys.HF), head_files.of_checkpoint(directory, spec))
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))["heads"]
    places = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    return head_files.load(directory, vlm, shapes, seed=seed, shardings=places)


def test_what_a_checkpoint_has_is_read_back_and_the_rest_is_new(tmp_path):
    written = saved(tmp_path, {"reward": SPEC["reward"], "tokens": SPEC["tokens"]})
    found = load(tmp_path, {"reward": SPEC["reward"], "users": SPEC["users"]})
    assert found.keys() == {"reward", "tokens", "users"}  # of the checkpoint, and of the config
    jax.tree.map(np.testing.assert_array_equal, found["reward"], written["reward"])
    np.testing.assert_array_equal(found["users"]["table"], 0.5)


def test_a_fingerprint_is_that_of_the_heads_alone(tmp_path):
    assert head_files.fingerprint(tmp_path) == ""
    params = saved(tmp_path, {"reward": {"head": "last"}})
    before = head_files.fingerprint(tmp_path)
    assert before == head_files.fingerprint(tmp_path)
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    head_files.write(tmp_path, changed, heads.complete({"reward": {"head": "last"}}))
    assert before != head_files.fingerprint(tmp_path)


def test_new_heads_come_from_the_seed(tmp_path):
    first, again, other = (load(tmp_path, {"reward": {"head": "last"}}, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(first["reward"]["kernel"], again["reward"]["kernel"])
    assert (first["reward"]["kernel"] != other["reward"]["kernel"]).any()


def test_a_head_that_is_another_in_the_checkpoint_is_refused(tmp_path):
    saved(tmp_path, {"reward": {"head": "last"}})
    with pytest.raises(ValueError, match=r"config.model.heads.reward is .* give the head another"):
        load(tmp_path, {"reward": {"head": "last", "outputs": 2}})


def test_a_checkpoint_of_another_width_is_named(tmp_path):
    params = heads.init(heads.bind({"reward": {"head": "last"}}), jax.random.key(7), 16)
    head_files.write(tmp_path, params, heads.complete({"reward": {"head": "last"}}))
    with pytest.raises(ValueError, match=r"reward/kernel is \[16, 1\], expected \[32, 1\]"):
        load(tmp_path, {})


def test_a_folder_that_is_not_whole_is_named(tmp_path):
    saved(tmp_path, {"reward": {"head": "last"}})
    file = tmp_path / "heads" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"weights.safetensors cannot be read"):
        load(tmp_path, {})
    (tmp_path / "heads" / "config.json").write_text(json.dumps({"reward": {"head": "lst"}}))
    with pytest.raises(ValueError, match=r"config.json does not describe heads.*'lst'"):
        load(tmp_path, {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"a b": {"head": "last"}}, "config.model.heads.a b: the name may hold"),
        ({"a": "last"}, "config.model.heads.a is 'last'; it must be a group"),
        ({"a": {"head": "lats"}}, "config.model.heads.a: head 'lats'.*Did you mean 'last'"),
        ({"a": {"head": "last", "output": 2}}, "no knob 'output'.*Did you mean 'outputs'"),
        ({"a": {"head": "last", "outputs": 0}}, "config.model.heads.a: outputs is 0"),
        ({"a": {"head": "table"}}, "needs the knob.* rows"),
    ],
)
def test_what_is_wrong_with_a_head_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        heads.complete(spec)


def test_states_in_bfloat16_are_read_in_float32():
    head = only("last")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), head.init(jax.random.key(0), 8))
    found = head.read(params, STATES.astype(jnp.bfloat16), MASK)
    assert found.dtype == jnp.float32
