import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import models, paths
from rubric_jax.data import scenes
from rubric_jax.models import head_files, heads, soup, weights

SPICED = {"a": {"kernel": [[1.0, 2.0]]}, "b": [4.0]}
PLAIN = {"a": {"kernel": [[3.0, -2.0]]}, "b": [0.0]}


def tree(values, dtype=jnp.float32):
    return {
        name: tree(value, dtype) if isinstance(value, dict) else jnp.asarray(value, dtype)
        for name, value in values.items()
    }


def test_a_soup_by_hand():
    found = soup.soup([tree(SPICED), tree(PLAIN)], [0.25, 0.75])
    np.testing.assert_array_equal(found["a"]["kernel"], [[2.5, -1.0]])
    np.testing.assert_array_equal(found["b"], [1.0])


def test_a_soup_of_equals_is_equal_and_all_weight_on_one_gives_its_bits():
    rng = np.random.default_rng(0)
    one, other = ({"a": rng.normal(size=(5, 7)).astype(np.float32)} for _ in range(2))
    np.testing.assert_allclose(soup.soup([one] * 3, [0.2, 0.5, 0.3])["a"], one["a"], rtol=1e-6)
    assert np.array_equal(soup.soup([one, other], [0.0, 1.0])["a"], other["a"])


def test_a_soup_is_linear_in_its_members():
    rng = np.random.default_rng(1)
    a, b, c = ({"x": rng.normal(size=9).astype(np.float32)} for _ in range(3))
    nested = soup.soup([soup.soup([a, b], [0.5, 0.5]), c], [0.4, 0.6])
    np.testing.assert_allclose(nested["x"], soup.soup([a, b, c], [0.2, 0.2, 0.6])["x"], rtol=1e-5)


def test_averages_are_taken_in_float32_and_returned_in_the_first_dtype():
    # 1 + 1/128 and 1 - 1/128: in bfloat16 each product 0.3 * x, 0.7 * x would round.
    a, b = tree({"x": [1.0078125]}, jnp.bfloat16), tree({"x": [0.9921875]})
    found = soup.soup([a, b], [0.5, 0.5])["x"]
    assert found.dtype == jnp.bfloat16
    assert float(found[0]) == 1.0


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"a": {"kernel": [[1.0]]}, "b": [0.0]}, r"'a/kernel' is \(1, 1\), there \(1, 2\)"),
        ({"a": {"kernel": [[1.0, 2.0]]}}, "'b' is missing"),
        ({**PLAIN, "c": [1.0]}, r"'c' is \(1,\), there missing"),
    ],
)
def test_the_parameter_that_differs_is_named(other, said):
    with pytest.raises(ValueError, match=f"Member 1 .*{said}"):
        soup.soup([tree(SPICED), tree(other)], [0.5, 0.5])


@pytest.mark.parametrize("bad", [[], [0.5, 0.4], [float("nan"), 1.0]])
def test_weights_must_sum_to_one(bad):
    with pytest.raises(ValueError, match="sum must be 1"):
        soup.soup([tree(SPICED), tree(PLAIN)], bad)


@pytest.mark.parametrize("count", [1, 3])
def test_every_member_has_a_weight(count):
    with pytest.raises(ValueError, match=r"2 weights, but (1|more) members"):
        soup.soup([tree(PLAIN)] * count, [0.5, 0.5])


@pytest.mark.slow
def test_heads_are_averaged_where_all_members_have_them(tmp_path):
    spec = heads.complete({"reward": {"head": "last"}})
    for name in ("0", "1", "2"):
        scenes.write_model(tmp_path / name, width=16, depth=1, vision_width=16, vision_depth=1)
        params = heads.init(heads.bind(spec), jax.random.key(int(name)), 16)
        if name != "2":
            head_files.write(tmp_path / name, params, spec)
    vlm = models.build("llava", tmp_path / "0")
    a, b = (head_files.tensors(tmp_path / name)["reward/kernel"] for name in "01")
    soup.write(tmp_path / "both", [tmp_path / "0", tmp_path / "1"], [1.5, -0.5], vlm)
    found = head_files.tensors(tmp_path / "both")["reward/kernel"]
    np.testing.assert_allclose(found, 1.5 * a - 0.5 * b, atol=1e-6)
    soup.write(tmp_path / "one", [tmp_path / "0", tmp_path / "2"], [1.5, -0.5], vlm)
    np.testing.assert_array_equal(head_files.tensors(tmp_path / "one")["reward/kernel"], a)


def test_directories_make_a_directory(tmp_path):
    for seed in range(2):
        scenes.write_model(
            tmp_path / str(seed), seed=seed, width=16, depth=1, vision_width=16, vision_depth=1
        )
    vlm = models.build("llava", tmp_path / "0")
    out = tmp_path / "soup"
    count = soup.write(out, [tmp_path / "0", tmp_path / "1"], [0.25, 0.75], vlm)
    shapes = jax.eval_shape(vlm.init, jax.random.key(0))
    a, b, both = (
        paths.flatten(weights.load(path, vlm.weights, shapes, dtype=jnp.float32))
        for path in (tmp_path / "0", tmp_path / "1", out)
    )
    for name in a:
        np.testing.assert_allclose(both[name], 0.25 * a[name] + 0.75 * b[name], atol=1e-6)
    assert count == len(vlm.weights.weights)
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "0/tokenizer.json").read_bytes()
