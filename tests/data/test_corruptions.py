"""Corruptions: worked values, what all of them promise, partners, columns and names."""

import inspect
import io

import numpy as np
import PIL.Image
import pytest

from rubric_jax import config, types
from rubric_jax.data import corruptions, processing
from rubric_jax.data import images as images_lib
from rubric_jax.data.corruptions import (
    frames,
    inputs,
    masks,
    noise,
    partners,
    placeholders,
    whole,
)
from tests.data import toy

PAIR = ("chosen", "rejected", "chosen@corrupted")
LAYOUT = types.Layout.of(PAIR)
# Knobs and columns with which every corruption changes pictures().
EXAMPLES = {
    "gaussian_noise": {"std": 0.2},
    "diffusion_noise": {"step": 500},
    "region_noise": {"step": 500, "maps": [np.eye(8, dtype=np.float32)] * 3},
    "blur": {"radius": 40.0},
    "crop": {},
    "black": {},
    "drop": {},
    "region_mask": {"boxes": [np.array([[2.0, 2.0, 9.0, 9.0]])] * 3},
    "random_region_mask": {},
    "saliency_mask": {"maps": [np.eye(8, dtype=np.float32)] * 3},
    "token_mask": {"share": 0.5},
    "frame_shuffle": {},
    "frame_reverse": {},
    "frame_drop": {},
    "frame_mask": {},
}


class Drawn:
    """Stands for a generator whose normal numbers are all the same."""

    def __init__(self, value):
        self.value = value

    def standard_normal(self, shape, dtype):
        return np.full(shape, self.value, dtype)


def grey(*rows):
    """A picture of grey levels."""
    return np.repeat(np.array(rows, np.uint8)[..., None], 3, axis=2)


def levels(image):
    """The grey levels of a grey picture."""
    assert (image == image[..., :1]).all()
    return image[..., 0].tolist()


def pictures(sizes=((40, 30), (30, 40), (28, 28))):
    return [np.asarray(toy.picture(seed, size)) for seed, size in enumerate(sizes)]


def rng(seed=0):
    return np.random.default_rng(seed)


def bind(**values):
    return corruptions.bind({"corrupted": values}, LAYOUT)["corrupted"]


def test_gaussian_noise_adds_shares_of_the_range_and_is_cut():
    (made,) = noise.gaussian_noise([grey([0, 50], [100, 255])], Drawn(1.0), std=0.2)
    assert levels(made) == [[51, 101], [151, 255]]  # 0.2 * 255 = 51
    (made,) = noise.gaussian_noise([grey([0, 50], [100, 255])], Drawn(-1.0), std=0.2)
    assert levels(made) == [[0, 0], [49, 204]]


def test_diffusion_without_noise_shrinks_towards_the_mean_colour():
    # sqrt(signal) = 0.8630171; red's mean is 0.4814547: 255 (0.8630171 v + 0.1369829 * 0.4814547)
    (made,) = noise.diffusion_noise([grey([0, 255])], Drawn(0.0), step=500)
    assert made[0, :, 0].tolist() == [17, 237]
    # sqrt(1 - signal) = 0.5051747 of red's deviation 0.2686295: 255 * 0.1357 = 34.6 more
    (made,) = noise.diffusion_noise([grey([0, 255])], Drawn(1.0), step=500)
    assert made[0, :, 0].tolist() == [51, 255]


def test_signals_are_those_of_vcd_and_ddpm():
    assert noise.signal("sigmoid")[500] ** 0.5 == pytest.approx(0.8630171, abs=1e-6)
    assert noise.signal("sigmoid")[999] ** 0.5 == pytest.approx(0.2850424, abs=1e-6)
    assert noise.signal("linear")[0] == pytest.approx(1 - 1e-4)
    assert noise.signal("linear")[1] == pytest.approx((1 - 1e-4) * (1 - 1e-4 - 0.0199 / 999))
    assert noise.signal("linear")[999] == pytest.approx(4.0e-5, rel=0.02)


def test_noise_has_side_cells_along_the_shorter_edge():
    (made,) = noise.gaussian_noise([grey(*[[128] * 8] * 4)], rng(), std=0.1, side=2)
    blocks = made.reshape(2, 2, 4, 2, 3)  # cells of 2 x 2 pixels
    assert (blocks == blocks[:, :1, :, :1]).all()
    assert len(np.unique(blocks[:, 0, :, 0].reshape(-1, 3), axis=0)) == 8
    (fine,) = noise.gaussian_noise([grey(*[[128] * 8] * 4)], rng(), std=0.1, side=0)
    assert len(np.unique(fine.reshape(-1, 3), axis=0)) == 32


def test_region_noise_is_diffusion_where_the_map_is_one_and_nothing_where_it_is_zero():
    image, found = pictures()[0], np.zeros((30, 40), np.float32)
    found[:15] = 1
    (made,) = noise.region_noise([image], rng(), maps=[found], step=500)
    (whole_picture,) = noise.diffusion_noise([image], rng(), step=500)
    assert np.array_equal(made[:15], whole_picture[:15])
    assert np.array_equal(made[15:], image[15:])


def test_blur_is_measured_at_the_size_the_model_sees():
    image = pictures()[0]
    (made,) = whole.blur([image], rng(), radius=2.0, side=15)  # the shorter edge is 30
    (same,) = whole.blur([image], rng(), radius=4.0, side=0)
    assert np.array_equal(made, same)
    assert made.std() < 0.3 * image.std()
    assert levels(whole.blur([grey([9, 9], [9, 9])], rng(), radius=3.0)[0]) == [[9, 9], [9, 9]]


def test_a_crop_of_a_quarter_of_four_pixels_is_one_of_them():
    found = set()
    for seed in range(40):
        (made,) = whole.crop([grey([1, 2], [3, 4])], rng(seed), share=(0.25, 0.25))
        assert len(np.unique(made)) == 1
        found.add(int(made[0, 0, 0]))
    assert found == {1, 2, 3, 4}
    (made,) = whole.crop([grey([1, 2], [3, 4])], rng(), share=(1.0, 1.0))
    assert levels(made) == [[1, 2], [3, 4]]


def test_masks_hide_what_they_are_told():
    image = grey([0, 50], [100, 250])
    (made,) = masks.region_mask([image], rng(), boxes=[np.array([[0, 0, 1, 1.0]])], fill=7)
    assert levels(made) == [[7, 50], [100, 250]]
    box = np.array([[0.5, 0, 1, 1]])
    (made,) = masks.region_mask([image], rng(), boxes=[box], units="shares")
    assert levels(made) == [[0, 100], [100, 100]]  # the mean of 0, 50, 100 and 250
    found = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    (made,) = masks.saliency_mask([image], rng(), maps=[found], share=0.5, fill=7)
    assert levels(made) == [[7, 50], [100, 7]]
    (made,) = masks.token_mask([image], rng(), share=0.5, patch=1, side=0, fill=7)
    assert (np.array(levels(made)) == 7).sum() == 2
    (made,) = masks.random_region_mask([image], rng(), share=(0.25, 0.25), fill=7)
    assert (np.array(levels(made)) == 7).sum() == 1


def test_token_masks_lie_on_the_patches_of_the_centred_square():
    image = np.zeros((28, 40, 3), np.uint8)
    (made,) = masks.token_mask([image], rng(1), share=0.25, patch=14, side=28, fill=255)
    edges = np.flatnonzero(np.diff(made[..., 0].astype(int), axis=1).any(axis=0)) + 1
    assert set(edges) <= {6, 20, 34}  # columns 6 to 34 are the square
    assert np.isin(made.reshape(2, 14, 40, 3).sum(axis=1), [0, 14 * 255]).all()
    # Twice the size, the same picture for the model.
    (large,) = masks.token_mask(
        [np.zeros((56, 80, 3), np.uint8)], rng(1), share=0.25, patch=14, side=28, fill=255
    )
    assert np.array_equal(large[::2, ::2], made)


def test_frames_change_their_order_or_number():
    clip = [grey([i]) for i in range(4)]

    def order(made):
        return [None if image is None else int(image[0, 0, 0]) for image in made]

    assert order(frames.frame_reverse(clip, rng())) == [3, 2, 1, 0]
    assert order(frames.frame_reverse(clip, rng(), groups=2)) == [2, 3, 0, 1]
    assert order(frames.frame_shuffle(clip[:2], rng())) == [1, 0]
    for seed in range(20):
        shuffled = order(frames.frame_shuffle(clip, rng(seed)))
        assert shuffled != [0, 1, 2, 3]
        assert sorted(shuffled) == [0, 1, 2, 3]
        dropped = order(frames.frame_drop(clip, rng(seed), share=0.5))
        assert [i for i in dropped if i is not None] == sorted({0, 1, 2, 3} & {*dropped})
        assert dropped.count(None) == 2
        assert order(frames.frame_drop(clip, rng(seed), share=1.0)).count(None) == 3
        groups = order(frames.frame_drop(clip, rng(seed), share=0.5, groups=2))
        assert groups in ([None, None, 2, 3], [0, 1, None, None])
    assert order(frames.frame_mask(clip[1:], rng(), share=0.0)).count(0) == 1
    for function in (frames.frame_shuffle, frames.frame_reverse, frames.frame_drop):
        assert order(function(clip[1:2], rng())) == [1]


def test_every_corruption_is_tried_here():
    assert EXAMPLES.keys() == corruptions.CORRUPTIONS.keys()
    assert not corruptions.CORRUPTIONS.keys() & corruptions.PARTNERS.keys()


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_every_corruption_keeps_number_sizes_and_dtype_and_draws_by_its_generator(name):
    function, own = corruptions.CORRUPTIONS[name], pictures()
    before = [image.copy() for image in own]
    made, again = (function(own, rng(3), **EXAMPLES[name]) for _ in range(2))
    assert len(made) == len(own)
    for old, new, repeated in zip(own, made, again):
        if new is not None and name not in ("frame_shuffle", "frame_reverse"):
            assert (new.shape, new.dtype) == (old.shape, np.uint8)
            assert np.array_equal(new, repeated)
    assert any(new is None or not np.array_equal(old, new) for old, new in zip(own, made))
    for old, copy in zip(own, before):
        assert np.array_equal(old, copy)
    columns = {key: [] for key in ("maps", "boxes") if key in EXAMPLES[name]}
    assert function([], rng(), **EXAMPLES[name] | columns) == []


@pytest.mark.parametrize("name", [*corruptions.CORRUPTIONS, *corruptions.PARTNERS])
def test_every_corruption_says_what_it_does_and_annotates_its_knobs(name):
    function = {**corruptions.CORRUPTIONS, **corruptions.PARTNERS}[name]
    assert function.__doc__
    knobs = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert all(knob.annotation.startswith("knobs.") for knob in knobs)


def survey(hashes, ids=None, load=None):
    ids = [str(i) for i in range(len(hashes))] if ids is None else ids
    return partners.Survey(ids, [tuple(found) for found in hashes], load)


def test_a_swap_is_a_derangement_that_does_not_know_the_order_of_rows():
    hashes = [("a",), ("b",), ("a",), ("c",), ("d",), (), ("a", "b"), ("b", "c"), ("d", "e")]
    partner = partners.swap(survey(hashes), "key")
    lent = {found: hashes[i] for found, i in zip(hashes, partner)}
    singles = [lent[(name,)] for name in "abcd"]
    assert sorted(singles) == [("a",), ("b",), ("c",), ("d",)]
    assert all(lent[(name,)] != (name,) for name in "abcd")
    assert lent[()] == ()
    assert lent["a", "b"] == lent["b", "c"] == ("d", "e")  # the other one shares a picture
    turned = hashes[::-1]
    again = partners.swap(survey(turned), "key")
    assert {found: turned[i] for found, i in zip(turned, again)} == lent
    keys = {tuple(partners.swap(survey(hashes), f"{i} corrupted 0")) for i in range(10)}
    assert len(keys) > 1


def test_without_another_picture_there_is_no_partner():
    assert partners.swap(survey([("a",), ("a",), ("b", "a")]), "key").tolist() == [-1, -1, -1]
    load = [[grey([1])], [grey([1])], [grey([2]), grey([1])]].__getitem__
    found = partners.nearest(survey([("a",), ("a",), ("b", "a")], load=load), "key")
    assert found.tolist() == [-1, -1, -1]


def test_the_nearest_by_descriptor_is_the_most_similar_picture():
    colours = [(200, 0, 0), (0, 0, 200), (180, 0, 0), (0, 20, 230)]
    images = [np.full((20, 24, 3), colour, np.uint8) for colour in colours]
    hashes = [("red",), ("blue",), ("dark red",), ("sky",)]
    found = partners.nearest(survey(hashes, load=lambda i: [images[i]]), "key")
    assert found.tolist() == [2, 3, 0, 1]


def test_a_descriptor_holds_colours_and_edge_directions():
    flat = partners.descriptor(np.full((64, 64, 3), 51, np.uint8))
    np.testing.assert_allclose(flat, [0.2] * 48 + [0.0] * 32, atol=1e-6)
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255  # an edge whose gradient points right, direction 0: bin 4 of 8
    found = partners.descriptor(image)
    assert found[:12].tolist() == [0.0] * 6 + [1.0] * 6
    np.testing.assert_allclose(found[48:].reshape(4, 8)[:, 4], 0.5)
    assert np.count_nonzero(found[48:]) == 4


def test_the_nearest_by_embedding_is_the_largest_cosine(tmp_path):
    path = str(tmp_path / "found.npz")
    vectors = np.array([[1.0, 0], [10, 1], [0, 3], [0.1, 1]])
    np.savez(path, ids=["x", "y", "z", "w"], embeddings=vectors)
    rows = survey([("a",), ("b",), ("c",), ("d",)], ids=["w", "z", "y", "x"])
    assert partners.nearest(rows, "key", embeddings=path).tolist() == [1, 0, 3, 2]
    same = survey([("a",), ("a",), ("c",), ("d",)], ids=["w", "z", "y", "x"])
    assert partners.nearest(same, "key", embeddings=path).tolist() == [2, 2, 3, 2]
    with pytest.raises(ValueError, match=r"found.npz: no embedding of 1 of 1 rows, .* id 'v'"):
        partners.nearest(survey([("a",)], ids=["v"]), "key", embeddings=path)
    np.savez(path, ids=["x"], embeddings=vectors)
    with pytest.raises(ValueError, match=r"ids \(1,\) and embeddings \(4, 2\)"):
        partners.nearest(rows, "key", embeddings=path)
    np.savez(path, other=vectors)
    with pytest.raises(ValueError, match=r"not an .npz file with"):
        partners.nearest(rows, "key", embeddings=path)


@pytest.mark.parametrize(
    ("value", "count", "expected"),
    [
        ([1, 2, 3, 4], 1, [[[1, 2, 3, 4]]]),
        ([[1, 2, 3, 4], [0, 0, 0.5, 1]], 1, [[[1, 2, 3, 4], [0, 0, 0.5, 1]]]),
        ([], 1, [[]]),
        ([[1, 2, 3, 4], None], 2, [[[1, 2, 3, 4]], []]),
        ([[[1, 2, 3, 4]], []], 2, [[[1, 2, 3, 4]], []]),
    ],
)
def test_boxes_are_read_per_picture(value, count, expected):
    found = inputs.boxes("box", value, count)
    assert [boxes.tolist() for boxes in found] == expected
    assert all(boxes.shape[1] == 4 for boxes in found)


@pytest.mark.parametrize(
    ("value", "count"),
    [("all", 1), ([1, 2, 3], 1), ([3, 0, 1, 1], 1), ([[1, 2, 3, 4]], 2), ([True, 0, 2, 2], 1)],
)
def test_other_boxes_are_refused(value, count):
    with pytest.raises(processing.FieldError, match=r"^box: "):
        inputs.boxes("box", value, count)


def test_maps_are_grey_pictures_or_arrays():
    def ref(save):
        buffer = io.BytesIO()
        save(buffer)
        return images_lib.Ref(data=buffer.getvalue())

    values = np.array([[0.0, 0.2], [0.4, 1.0]], np.float32)
    array = ref(lambda buffer: np.save(buffer, values))
    picture = PIL.Image.fromarray(np.uint8(values * 255))
    grey_map = ref(lambda buffer: picture.save(buffer, "PNG"))
    for found in inputs.maps("heat", (array, grey_map), 2):
        np.testing.assert_allclose(found, values, atol=1e-6)
    with pytest.raises(processing.FieldError, match=r"1 map.* for 2 picture"):
        inputs.maps("heat", (array,), 2)
    wrong = ref(lambda buffer: np.save(buffer, values * 2))
    with pytest.raises(processing.FieldError, match=r"heat: map 1: an array .* in \[0, 1\]"):
        inputs.maps("heat", (wrong,), 1)


def test_placeholders_leave_with_their_pictures():
    def without(prompt, *gone):
        return placeholders.without(prompt, gone, "<image>")

    assert without("USER: <image>\nWhat?", 0) == "USER: What?"
    assert without("<image><image> a <image>b", 0, 2) == "<image> a b"
    assert without("<image> a", 5) == without("<image> a") == "<image> a"
    image, text = {"type": "image"}, {"type": "text", "text": "?"}
    turns = [{"role": "user", "content": [image, text, image]}, {"role": "user", "content": "a"}]
    assert without(turns, 1)[0]["content"] == [image, text]
    assert without(turns, 0, 1)[0]["content"] == [text]
    assert without(turns, 0)[1] == turns[1]
    assert turns[0]["content"] == [image, text, image]


def test_defaults_are_filled_in_and_steps_follow_each_other():
    context = bind(corruption="blur", radius=2, seed=7, then=[{"corruption": "crop"}])
    assert (context.name, context.seed) == ("corrupted", 7)
    assert [(step.name, dict(step.knobs)) for step in context.steps] == [
        ("blur", {"radius": 2.0, "side": 336}),
        ("crop", {"share": (0.01, 0.2)}),
    ]
    own = pictures()
    made = context.apply(own, rng(5), columns={}, partners={})
    drawn = rng(5)
    assert context.columns == {}
    expected = whole.crop(whole.blur(own, drawn, radius=2.0), drawn)
    assert all(np.array_equal(a, b) for a, b in zip(made, expected, strict=True))


def test_what_is_left_out_stays_out_in_later_steps():
    context = bind(
        corruption="frame_drop",
        then=[{"corruption": "region_mask", "boxes": "box", "fill": 7}],
    )
    own = [grey([i, 100]) for i in range(2)]
    boxes = [[0, 0, 1, 1], [1, 0, 2, 1]]
    made = context.apply(own, rng(1), columns={"box": boxes}, partners={})
    (kept,) = (i for i, image in enumerate(made) if image is not None)
    assert levels(made[kept]) == [[[7, 100]], [[1, 7]]][kept]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"corupted": {"corruption": "crop"}}, "contexts.corupted: no branch .* mean 'corrupted'"),
        ({"clean": {"corruption": "crop"}}, "contexts.clean: no branch .* one of corrupted"),
        ({"corrupted": "crop"}, "contexts.corrupted is 'crop'; it must be a group"),
        ({"corrupted": {"radius": 2}}, "contexts.corrupted is .* it must name its corruption"),
        ({"corrupted": {"corruption": "blurr"}}, "Unknown corruption 'blurr'.*mean 'blur'"),
        ({"corrupted": {"corruption": "blur"}}, r"corruption 'blur' needs the knob\(s\) radius"),
        ({"corrupted": {"corruption": "crop", "shares": 1}}, "no knob 'shares'.* mean 'share'"),
        ({"corrupted": {"corruption": "crop", "share": (0.3, 0.2)}}, "share is .*least <= most"),
        ({"corrupted": {"corruption": "blur", "radius": -1}}, "radius is -1; it should be greater"),
        ({"corrupted": {"corruption": "blur", "radius": "2"}}, "radius is '2'; it should be a val"),
        ({"corrupted": {"corruption": "diffusion_noise", "step": 1000}}, "step is 1000; it should"),
        (
            {"corrupted": {"corruption": "diffusion_noise", "step": 5, "schedule": "cosine"}},
            "schedule is 'cosine'; it must be one of sigmoid, linear",
        ),
        ({"corrupted": {"corruption": "token_mask", "share": 1.5}}, "share is 1.5; it should be l"),
        ({"corrupted": {"corruption": "token_mask", "share": 0.5, "fill": 256}}, "fill is 256; it"),
        ({"corrupted": {"corruption": "region_mask"}}, r"needs the knob\(s\) boxes"),
        ({"corrupted": {"corruption": "region_mask", "boxes": 3}}, "boxes is 3; it must name a co"),
        ({"corrupted": {"corruption": "nearest", "embeddings": "no.npz"}}, "there is no such file"),
        ({"corrupted": {"corruption": "crop", "seed": "a"}}, "corrupted.seed is 'a'; it must be"),
        ({"corrupted": {"corruption": "crop", "then": "blur"}}, "corrupted.then is 'blur'; it mus"),
        (
            {"corrupted": {"corruption": "crop", "then": [{"corruption": "blurr"}]}},
            r"contexts.corrupted.then\[0\]: Unknown corruption 'blurr'",
        ),
    ],
)
def test_a_slip_names_the_field(values, message):
    with pytest.raises(ValueError, match=message) as error:
        corruptions.bind(values, LAYOUT)
    assert str(error.value).startswith("config.data.contexts.")


def test_layouts_without_other_contexts_have_nothing_to_corrupt():
    values = {"corrupted": {"corruption": "crop"}}
    assert corruptions.bind(values, types.PROMPTS) == {}
    with pytest.raises(ValueError, match="they read 'clean'"):
        corruptions.bind(values, types.Layout.of(("chosen",)))


def test_contexts_of_a_config_file_are_plain_values():
    values = config.default()
    values.data.contexts = {"corrupted": {"corruption": "crop", "then": [{"corruption": "black"}]}}
    built = config.build(values)
    assert [s.name for s in corruptions.bind(built.data.contexts, LAYOUT)["corrupted"].steps] == [
        "crop",
        "black",
    ]
