"""Pictures that are corrupted in the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.data import audit, corruptions, loading
from rubric_jax.data.corruptions import drawn, noise
from tests.data import toy

LAYOUT = types.Layout.of(("chosen", "rejected", "chosen@corrupted"))
BLACK, WHITE = np.float32([-1.0, -2.0, 0.0]), np.float32([1.0, 2.0, 4.0])
NOISE = {"corruption": "gaussian_noise", "when": "step", "std": 0.1}


def bind(**values):
    return corruptions.in_step({"corrupted": {**NOISE, **values}}, LAYOUT)


def batch(table, *, grey=0.5):
    """Pictures of one grey, shown as `table` [G, I, 3] says."""
    table = np.asarray(table, np.int32)
    level = (BLACK + grey * (WHITE - BLACK)).astype(np.float32)
    pixels = np.broadcast_to(level, (*table.shape[:2], 8, 8, 3))
    empty = np.zeros(0, np.float32)
    media = {"pixels": pixels, "index": empty, drawn.TABLE: table}
    return types.Batch(empty, empty, media, empty, empty, types.Labels(*[empty] * 4))


def applied(contexts, made, done=0):
    done = None if done is None else jnp.int32(done)
    return np.array(drawn.apply(contexts, BLACK, WHITE, made, done).media["pixels"])


def test_noise_has_the_strength_of_the_whole_range_and_is_cut_to_it():
    table = [[(1, row, 0) for row in range(60)]]
    pixels = (applied(bind(std=0.1), batch(table)) - BLACK) / (WHITE - BLACK)
    np.testing.assert_allclose(pixels.mean(axis=(0, 1, 2, 3)), 0.5, atol=0.01)
    np.testing.assert_allclose(pixels.std(axis=(0, 1, 2, 3)), 0.1, rtol=0.05)
    strong = (applied(bind(std=4.0), batch(table)) - BLACK) / (WHITE - BLACK)
    assert strong.min() >= -1e-6
    assert strong.max() <= 1 + 1e-6


def test_a_draw_depends_on_step_row_and_place_and_on_nothing_else():
    first = applied(bind(), batch([[(1, 4, 0), (1, 5, 0), (1, 4, 1), (-1, -1, -1)]]))
    assert len({picture.tobytes() for picture in first[0]}) == 4
    # In another table, in another group, among others.
    moved = applied(bind(), batch([[(-1, -1, -1), (1, 9, 0)], [(1, 5, 0), (1, 4, 0)]]))
    np.testing.assert_array_equal(moved[1], first[0, [1, 0]])
    again = applied(bind(), batch([[(1, 4, 0)]]), done=1)
    assert not np.allclose(again[0, 0], first[0, 0])
    seeded = applied(bind(seed=1), batch([[(1, 4, 0)]]))
    assert not np.allclose(seeded[0, 0], first[0, 0])


def test_pictures_of_other_contexts_keep_their_bits():
    made = batch([[(-1, -1, -1), (1, 0, 0), (0, 0, 0)]])
    pixels = applied(bind(), made)
    for place in (0, 2):
        assert pixels[0, place].tobytes() == made.media["pixels"][0, place].tobytes()


def test_a_mesh_draws_like_one_device():
    table = [[(1, 2 * g + i, 0) for i in range(2)] for g in range(8)]
    made, contexts = batch(table), bind()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    media = {name: jax.device_put(made.media[name], cut) for name in ("pixels", drawn.TABLE)}
    draw = jax.jit(functools.partial(drawn.apply, contexts, BLACK, WHITE))
    sharded = draw(made._replace(media=media), jnp.int32(3)).media["pixels"]
    assert sharded.sharding.shard_shape(sharded.shape)[0] == 1
    np.testing.assert_allclose(sharded, applied(contexts, made, done=3), atol=1e-6)


def test_an_evaluation_takes_the_draw_of_step_0_with_ramps_at_their_end():
    ramp = {"from": 0.1, "to": 0.3, "over": 10}
    made = batch([[(1, 4, 0)]])
    start, end = applied(bind(std=0.1), made), applied(bind(std=0.3), made)
    np.testing.assert_allclose(applied(bind(std=ramp), made), start, atol=1e-6)
    np.testing.assert_allclose(applied(bind(std=ramp), made, done=None), end, atol=1e-6)
    assert np.abs(end - start).max() > 0.1


def test_a_ramp_goes_straight_and_then_stays():
    ramp = drawn.Ramp(100, 500, 8)
    found = [float(ramp.at(jnp.int32(done))) for done in (0, 2, 8, 100)]
    np.testing.assert_allclose(found, [100, 200, 500, 500])
    assert ramp.at(None) == 500


def test_the_diffusion_of_a_step_mixes_as_the_table_says():
    picture = jnp.full((8, 8, 3), 0.25)
    key = jax.random.key(0)
    unit = np.array(jax.random.normal(key, picture.shape))
    found = drawn.diffusion_noise(picture, key, step=jnp.float32(399.6), schedule="linear")
    share = noise.signal("linear")[400]
    normal = np.sqrt(share) * (0.25 - noise.MEAN) / noise.STD + np.sqrt(1 - share) * unit
    np.testing.assert_allclose(found, normal * noise.STD + noise.MEAN, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_squares_is_hidden(share):
    picture = jnp.asarray(np.random.default_rng(0).uniform(size=(12, 10, 3)), jnp.float32)
    found = drawn.token_mask(picture, jax.random.key(1), share=share, patch=4, fill=51)
    hidden = np.all(np.isclose(found, 0.2), axis=-1)
    squares = {(y // 4, x // 4) for y, x in np.argwhere(hidden)}
    assert len(squares) == round(share * 9)  # 3 x 3, the last column cut
    assert hidden.sum() == sum(4 * (4 if x < 2 else 2) for _, x in squares)
    np.testing.assert_array_equal(np.array(found)[~hidden], np.array(picture)[~hidden])
    mean = drawn.token_mask(picture, jax.random.key(1), share=1.0, patch=4)
    np.testing.assert_allclose(mean, np.broadcast_to(picture.mean((0, 1)), (12, 10, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corruption": "blur"}, r"corruption is 'blur'; in the step it must be .*'when': 'data'"),
        ({"when": "later"}, r"when is 'later'; it must be one of data, step"),
        ({"std": 9.0}, r"contexts.corrupted: corruption 'gaussian_noise': std is 9.0"),
        ({"sdt": 1.0}, r"has no knob 'sdt'.*'std'"),
        ({"std": {"from": 0.1, "to": 9.0, "over": 5}}, r"std is 9.0"),
        ({"std": {"from": 0.1, "over": 5}}, r"corrupted.std is .*a ramp is"),
        ({"std": {"from": 0.1, "to": 0.2, "over": 0}}, r"std.over is 0"),
        ({"then": []}, r"corrupted.then: in the step there is one corruption"),
        ({"seed": "a"}, r"corrupted.seed is 'a'"),
    ],
)
def test_a_slip_is_refused_before_any_data(values, message):
    with pytest.raises(ValueError, match=message):
        corruptions.bind({"corrupted": {**NOISE, **values}}, LAYOUT)


def test_a_family_of_another_form_is_refused():
    made = batch([[(1, 4, 0)]])
    flat = {**made.media, "pixels": made.media["pixels"].reshape(1, 1, -1)}
    with pytest.raises(ValueError, match=r"need pixels \[G, I, H, W, 3\].*'when': 'data'"):
        applied(bind(), made._replace(media=flat))


def test_each_use_in_a_drawn_context_is_a_picture_of_its_own(processor, tmp_path):
    rows = [toy.row(), toy.row(chosen="a green square ."), toy.row(corrupted_images=["1.png"])]
    prepared = toy.prepare(
        toy.write(tmp_path, rows),
        tmp_path / "cache",
        processor,
        branches=LAYOUT.branches,
        contexts={"corrupted": NOISE},
    )
    assert prepared.counts.distinct_images == 2  # nothing was made for the context
    assert dict(prepared.counts.contexts["corrupted"]) == {
        "drawn from own": 2,
        "drawn from column": 1,
    }
    assert prepared.counts.fell_back == 0
    np.testing.assert_array_equal(prepared.index["images"], [2, 2, 2])
    plan = loading.plan(prepared, batch_size=4, shuffle=False)
    source = loading.open(prepared)
    made, _ = next(iter(loading.batches(source, plan, toy.media, stop=1)))
    table = [(-1, -1, -1), (1, 0, 0), (1, 1, 0), (1, 2, 0)]
    np.testing.assert_array_equal(made.media[drawn.TABLE][0, :4], table)
    np.testing.assert_array_equal(made.media["pixels"][0, 1], made.media["pixels"][0, 0])
    assert not np.array_equal(made.media["pixels"][0, 3], made.media["pixels"][0, 0])
    seen = made.media["index"].max(axis=-1) // toy.PATCHES  # [B, M], the picture of each prompt
    np.testing.assert_array_equal(seen[:3], [[0, 1], [0, 2], [0, 3]])
    text = audit.table(prepared, plan)
    assert "the row's own, corrupted in every step" in text
