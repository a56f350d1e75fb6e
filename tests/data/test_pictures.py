"""Pictures of contexts in prepared data: made, lent, dropped, counted; and a run on them."""

import os
import random

import datasets
import numpy as np
import pytest

from rubric_jax import stages
from rubric_jax.data import audit, loading
from tests.data import toy
from tests.train import runs

PAIR = ("chosen", "rejected", "chosen@corrupted")


def prepare(rows, folder, processor, *, branches=PAIR, pictures=3, **values):
    path = toy.write(folder, rows, pictures=pictures)
    made = toy.prepare(
        path, folder / "cache", processor, branches=branches, contexts={"corrupted": values}
    )
    return loading.open(made)


def stored(source, row, context):
    return [np.asarray(source.image(number)) for number in source[row].images[context]]


def rows_of(count=3, **columns):
    return [toy.row(images=[f"{i}.png"], id=f"row {i}", **columns) for i in range(count)]


def test_a_row_s_pictures_are_the_corruption_of_its_own(processor, tmp_path):
    made = prepare(rows_of(), tmp_path, processor, corruption="gaussian_noise", std=0.1)
    for i in range(3):
        own = np.asarray(toy.picture(i))
        assert np.array_equal(stored(made, i, 0)[0], own)
        difference = stored(made, i, 1)[0] / 255 - own / 255
        assert 0.05 < difference.std() < 0.1  # 0.1, less what is cut
    counts = made.prepared.counts
    assert counts.contexts == {"corrupted": {"corruption": 3}}
    assert (counts.fell_back, counts.distinct_images) == (0, 6)
    keys = made[0].keys
    assert len(set(keys)) == 3
    text = audit.table(made.prepared, loading.plan(made, batch_size=1))
    assert "images of corrupted: made of the row's own" in text


@pytest.mark.parametrize(
    "values",
    [
        {"corruption": "diffusion_noise", "step": 500},
        {"corruption": "swap"},
        {"corruption": "nearest", "then": [{"corruption": "crop"}]},
    ],
)
def test_pictures_do_not_depend_on_order_threads_or_other_rows_texts(processor, tmp_path, values):
    rows = rows_of(6)
    first = prepare(rows, tmp_path, processor, pictures=6, **values)
    random.Random(0).shuffle(rows)
    rows = [{**row, "rejected": "no ."} for row in rows]
    second = prepare(rows, tmp_path, processor, pictures=6, **values)
    places = {second[i].id: i for i in range(6)}
    for i in range(6):
        (a,), (b,) = stored(first, i, 1), stored(second, places[first[i].id], 1)
        assert np.array_equal(a, b)
        assert not np.array_equal(a, stored(first, i, 0)[0])


def test_seed_and_context_draw_anew_and_equal_rows_share_their_pictures(processor, tmp_path):
    branches = ("chosen", "chosen@corrupted", "chosen@other")
    rows = [toy.row(), toy.row(rejected="no ."), toy.row(prompt="<image> ?")]
    path = toy.write(tmp_path, rows)
    noisy = {"corruption": "gaussian_noise", "std": 0.1}
    found = [
        loading.open(
            toy.prepare(path, tmp_path / "cache", processor, branches=branches, contexts=values)
        )
        for values in (
            {"corrupted": noisy, "other": noisy},
            {"corrupted": {**noisy, "seed": 1}, "other": noisy},
        )
    ]
    first, second = found
    assert first[0].images == first[1].images
    assert len({first[i].images[m] for i in (0, 2) for m in (0, 1, 2)}) == 5
    assert first.prepared.directory != second.prepared.directory
    assert np.array_equal(stored(first, 0, 2), stored(second, 0, 2))
    assert not np.array_equal(stored(first, 0, 1), stored(second, 0, 1))


def test_equal_results_are_stored_once_and_a_second_start_finds_them(processor, tmp_path):
    made = prepare(rows_of(), tmp_path, processor, corruption="black")
    assert made.prepared.counts.distinct_images == 4
    assert {made[i].images[1] for i in range(3)} == {made[0].images[1]}
    again = prepare(rows_of(), tmp_path, processor, corruption="black")
    assert again.prepared.directory == made.prepared.directory
    assert not os.path.exists(os.path.join(made.prepared.directory, "lent"))


def test_a_column_goes_first_and_rows_that_stay_as_they_are_are_counted(processor, tmp_path):
    rows = [toy.row(), toy.row(rejected_images=["1.png"]), toy.row(prompt="what ?", images=[])]
    two = toy.row(prompt="<image> <image> ?", images=["0.png", "1.png"])
    made = prepare([*rows, two], tmp_path, processor, corruption="frame_reverse")
    assert made.prepared.counts.contexts == {
        "corrupted": {"unchanged": 2, "column": 1, "corruption": 1}
    }
    assert [made[i].images for i in range(4)] == [
        ((0,), (0,)),
        ((0,), (1,)),
        ((), ()),
        ((0, 1), (1, 0)),
    ]
    assert made.prepared.counts.distinct_images == 2  # nothing new to store


def test_dropped_pictures_take_their_placeholders_along(processor, tmp_path):
    messages = {
        "prompt": [{"role": "user", "content": "what ?"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "red"}],
    }
    rows = [toy.row(), toy.row(**messages)]
    made = prepare(rows, tmp_path, processor, corruption="drop")
    assert made[0].images == ((0,), ())
    assert made[0].prompts[0].tolist() == toy.ids("USER: <image>*4 what is this ? ASSISTANT:")
    assert made[0].prompts[1].tolist() == toy.ids("USER: what is this ? ASSISTANT:")
    assert made[1].prompts[1].tolist() == toy.ids("USER: what ? ASSISTANT:")
    assert made.prepared.counts.contexts == {"corrupted": {"corruption": 2}}


def test_a_swap_lends_stored_pictures_of_rows_with_as_many(processor, tmp_path):
    two = toy.row(prompt="<image> <image> ?", images=["0.png", "1.png"])
    made = prepare([*rows_of(), two], tmp_path, processor, corruption="swap")
    lent = [made[i].images[1][0] for i in range(3)]
    assert sorted(lent) == [0, 1, 2]
    assert all(lent[i] != i for i in range(3))
    counts = made.prepared.counts
    assert (counts.distinct_images, counts.kept) == (3, 3)
    assert counts.dropped == {"no partner": 1}
    assert "no other row has as many other pictures" in counts.examples["no partner"][0]


def test_embedded_pictures_are_lent_too(processor, tmp_path):
    columns = {
        "prompt": ["<image> ?"] * 3,
        "chosen": ["a"] * 3,
        "rejected": ["red"] * 3,
        "images": [[toy.picture(i)] for i in range(3)],
    }
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("prompt", "chosen", "rejected")}
        | {"images": datasets.Sequence(datasets.Image())}
    )
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "saved")
    made = loading.open(
        toy.prepare(
            tmp_path / "saved",
            tmp_path / "cache",
            processor,
            branches=PAIR,
            contexts={"corrupted": {"corruption": "swap"}},
        )
    )
    assert made.prepared.counts.distinct_images == 3
    assert sorted(made[i].images[1] for i in range(3)) == [(0,), (1,), (2,)]
    assert all(made[i].images[1] != made[i].images[0] for i in range(3))
    assert os.listdir(made.prepared.directory).count("lent") == 0


def test_columns_are_read_and_their_files_watched(processor, tmp_path):
    found = np.zeros((30, 40), np.float32)
    found[:10] = 1
    np.save(tmp_path / "0.npy", found)
    rows = [toy.row(heat=["0.npy"])]
    knobs = {"corruption": "saliency_mask", "maps": "heat", "share": 1 / 3, "fill": 0}
    made = prepare(rows, tmp_path, processor, **knobs)
    expected = np.asarray(toy.picture(0)).copy()
    expected[:10] = 0
    assert np.array_equal(stored(made, 0, 1)[0], expected)
    assert not made.prepared.counts.unread
    np.save(tmp_path / "0.npy", found[::-1].astype(np.float64))
    assert prepare(rows, tmp_path, processor, **knobs).prepared.directory != (
        made.prepared.directory
    )


@pytest.mark.parametrize(
    ("columns", "knobs", "message"),
    [
        ({}, {"corruption": "region_mask", "boxes": "box"}, "box: is missing; config.data.cont"),
        (
            {"box": [1]},
            {"corruption": "region_mask", "boxes": "box"},
            r"box: holds \[1\]; a box is",
        ),
        ({"heat": ["no.png"]}, {"corruption": "saliency_mask", "maps": "heat"}, "heat: map 1: no "),
    ],
)
def test_bad_columns_name_file_row_and_field(processor, tmp_path, columns, knobs, message):
    with pytest.raises(ValueError, match=f"prefs.jsonl:1: {message}"):
        prepare([toy.row(**columns)], tmp_path, processor, **knobs)


def test_a_slip_stops_before_any_data_is_read(processor, tmp_path):
    with pytest.raises(ValueError, match=r"config\.data\.contexts\.corrupted: Unknown corruption"):
        toy.prepare(
            tmp_path / "absent.jsonl",
            tmp_path / "cache",
            processor,
            branches=PAIR,
            contexts={"corrupted": {"corruption": "blurr"}},
        )


@pytest.mark.sweep
def test_conditional_preference_trains_on_made_pictures(tmp_path):
    run = runs.config(
        data={
            "branches": ("chosen", "chosen@corrupted"),
            "contexts": {"corrupted": {"corruption": "diffusion_noise", "step": 700, "side": 0}},
        },
        objective={"dpo": {"win": "chosen", "lose": "chosen@corrupted", "beta": 0.1}},
        train={"steps": 2, "log_every": 1},
        mesh={"data": -1},
    )
    assert stages.train(run, str(tmp_path)).finished
    first, second = (line for line in runs.metrics(tmp_path) if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-4)  # the policy is the reference
    assert second["loss"] < first["loss"]
