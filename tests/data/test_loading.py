"""Plans and batches: every row once, bounded shapes, and the same data however it is loaded."""

import functools

import jax
import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.data import loading, planning, references
from rubric_jax.models import interleaved
from tests.data import toy

LENGTHS = np.random.default_rng(0).integers(1, 60, 43)


def rows():
    """43 rows of many lengths, with 0, 1 or 2 of 5 pictures."""
    made = []
    for i, length in enumerate(LENGTHS):
        pictures = [f"{(i + k) % 5}.png" for k in range(i % 3)]
        made.append(
            toy.row(
                prompt="<image> " * len(pictures) + "what " * int(length // 2 + 1),
                chosen="red " * int(length),
                rejected="blue a",
                images=pictures,
                weight=1.0 + i,
            )
        )
    return made


@pytest.fixture(scope="module")
def source(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    path = toy.write(folder, rows(), pictures=5)
    return loading.open(toy.prepare(path, folder / "cache", processor))


def take(count, *args, **kwargs):
    iterator = loading.batches(*args, **kwargs)
    made = [jax.tree.map(np.array, next(iterator)) for _ in range(count)]
    iterator.close()
    return made


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def index_of(prompts, responses, images=None):
    """The part of Prepared.index that a plan reads, from hand-written lengths."""

    class Lengths:
        index = {  # noqa: RUF012 (a stand-in)
            "number": np.arange(len(prompts)),
            "prompt_lengths": np.array(prompts)[:, None],
            "response_lengths": np.array(responses)[:, None],
            "images": np.array(images if images else [1] * len(prompts)),
            "cells": np.ones(len(prompts), int),
        }

    return Lengths


def test_two_lengths_get_two_tight_shapes():
    lengths = index_of([10, 100, 12, 97], [5, 40, 6, 33], [1, 2, 1, 1])
    plan = loading.plan(lengths, batch_size=2, buckets=3)
    assert plan.shapes == ((16, 16, 2, 1), (112, 48, 3, 1))
    assert plan.steps_per_epoch == 2
    assert sorted(sorted(plan(step)[1].tolist()) for step in range(2)) == [[0, 2], [1, 3]]


def test_long_prompts_and_long_responses_get_shapes_of_their_own():
    lengths = index_of([100] * 4 + [10] * 4, [10] * 4 + [100] * 4)
    plan = loading.plan(lengths, batch_size=2, buckets=3)
    assert {shape[:2] for shape in plan.shapes} == {(16, 112), (112, 16)}
    # One row of each is left over, and only the largest shape holds both.
    plan = loading.plan(lengths, batch_size=3, buckets=3)
    assert [shape[:2] for shape in plan.shapes][-1] == (112, 112)
    left = [members[members >= 0] for shape, members in map(plan, range(3)) if shape[0] == shape[1]]
    assert [len(members) for members in left] == [2]
    assert {int(row) // 4 for row in left[0]} == {0, 1}


def test_in_input_order_short_rows_bring_their_images_into_long_batches():
    lengths = index_of([10, 100, 12, 97], [5, 40, 6, 33], [5, 1, 1, 1])
    plan = loading.plan(lengths, batch_size=2, buckets=2, shuffle=False)
    assert [plan(step)[1].tolist() for step in range(2)] == [[0, 1], [2, 3]]
    assert plan.shapes == ((112, 48, 6, 1),)


def test_one_bucket_holds_everything():
    plan = loading.plan(index_of([10, 100, 12], [5, 4, 300]), batch_size=2, buckets=1)
    assert plan.shapes == ((112, 320, 2, 1),)


def test_the_cuts_are_the_cheapest():
    lengths = np.random.default_rng(1).integers(1, 200, 24)
    plan = loading.plan(index_of(lengths, np.ones(24, int)), batch_size=4, buckets=3)
    used = sum(sum(plan(step)[0][:2]) for step in range(6))
    padded = np.sort(-(-lengths // 16) * 16).reshape(6, 4).max(axis=1) + 16
    cheapest = min(
        i * padded[i - 1] + (j - i) * padded[j - 1] + (6 - j) * padded[5]
        for i in range(1, 5)
        for j in range(i + 1, 6)
    )
    assert used == cheapest


@pytest.mark.parametrize(("batch_size", "buckets"), [(4, 3), (8, 2), (64, 3), (1, 5)])
def test_an_epoch_visits_every_row_once(source, batch_size, buckets):
    plan = loading.plan(source, batch_size=batch_size, buckets=buckets)
    orders = []
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        visited = np.concatenate([plan(step)[1] for step in steps])
        orders.append(visited.tolist())
        assert sorted(visited[visited >= 0]) == list(range(len(source)))
        assert (visited < 0).sum() == -len(source) % batch_size
    assert orders[0] != orders[1]


def test_every_row_fits_its_shape_and_shapes_are_bounded(source):
    for shuffle in (True, False):
        plan = loading.plan(source, batch_size=4, groups=2, buckets=3, shuffle=shuffle)
        assert len(plan.shapes) <= 3
        seen = set()
        for step in range(3 * plan.steps_per_epoch):
            shape, members = plan(step)
            seen.add(shape)
            for group in np.split(members, 2):
                examples = [source[i] for i in group if i >= 0]
                assert all(len(p) <= shape.prompt for e in examples for p in e.prompts)
                assert all(len(r) <= shape.response for e in examples for r in e.responses)
                assert len({i for e in examples for c in e.images for i in c}) <= shape.images
        assert seen == set(plan.shapes)


def test_buckets_save_padding(source):
    def padded(buckets):
        plan = loading.plan(source, batch_size=4, buckets=buckets)
        return sum(
            plan(step)[0].prompt + 2 * plan(step)[0].response
            for step in range(plan.steps_per_epoch)
        )

    assert padded(3) < padded(2) < padded(1)


def test_without_shuffling_rows_come_in_input_order(source):
    plan = loading.plan(source, batch_size=4, shuffle=False)
    visited = np.concatenate([plan(step)[1] for step in range(plan.steps_per_epoch)])
    assert visited.tolist() == [*range(43), -1]
    some = loading.plan(source, batch_size=2, shuffle=False, rows=[7, 3, 9])
    assert [some(step)[1].tolist() for step in range(2)] == [[7, 3], [9, -1]]


def test_plans_depend_on_the_seed_alone(source):
    def order(seed):
        plan = loading.plan(source, batch_size=4, seed=seed)
        return [plan(step)[1].tolist() for step in (0, 5, 23)]

    assert order(0) == order(0) != order(1)


def test_a_batch_holds_its_rows(source):
    plan = loading.plan(source, batch_size=4, groups=2)
    for batch, members in take(plan.steps_per_epoch, source, plan, toy.media):
        for b, row in enumerate(members):
            if row < 0:
                assert not batch.prompts[b].any()
                assert not batch.mask[b].any()
                assert batch.labels.weight[b] == 0
                assert (batch.media["index"][b] == -1).all()
                continue
            example = source[row]
            length = batch.prompt_lengths[b, 0]
            assert batch.prompts[b, 0, :length].tolist() == example.prompts[0].tolist()
            assert not batch.prompts[b, 0, length:].any()
            for n, ids in enumerate(example.responses):
                assert batch.responses[b, n][batch.mask[b, n] == 1].tolist() == ids.tolist()
            assert batch.labels.weight[b] == example.weight
            # The features that a prompt reads are those of its own pictures.
            table = batch.media["pixels"][b // 2]
            slots = batch.media["index"][b, 0, :length]
            shown = slots[slots >= 0][:: toy.PATCHES] // toy.PATCHES
            for slot, image in zip(shown, example.images[0], strict=True):
                np.testing.assert_array_equal(table[slot], source.picture(image).pixels)


def test_a_group_holds_each_image_once(processor, tmp_path):
    path = toy.write(tmp_path, [toy.row(images=[f"{i}.png"]) for i in (0, 0, 1, 0)])
    made = loading.open(toy.prepare(path, tmp_path / "cache", processor))
    plan = loading.plan(made, batch_size=4, groups=2, shuffle=False)
    ((batch, _),) = take(1, made, plan, toy.media)
    assert (batch.media["index"][:, 0].max(axis=1) // toy.PATCHES).tolist() == [0, 0, 0, 1]
    pixels = batch.media["pixels"]
    assert pixels.shape == (2, 2, 28, 28, 3)
    np.testing.assert_array_equal(pixels[0, 0], made.picture(0).pixels)
    assert not pixels[0, 1].any()
    np.testing.assert_array_equal(pixels[1], [made.picture(i).pixels for i in (1, 0)])


def test_without_images_there_are_no_slots(processor, tmp_path):
    path = toy.write(tmp_path, [toy.row(images=[], prompt="what ?")])
    made = loading.open(toy.prepare(path, tmp_path / "cache", processor))
    plan = loading.plan(made, batch_size=2)
    assert plan.shapes == ((16, 16, 0, 1),)
    ((batch, members),) = take(1, made, plan, toy.media)
    assert batch.media["pixels"].shape == (1, 0, 28, 28, 3)
    assert sorted(members.tolist()) == [-1, 0]


def test_two_processes_together_load_what_one_does(source):
    plan = loading.plan(source, batch_size=8, groups=4)
    whole = take(6, source, plan, toy.media)
    parts = [take(6, source, plan, toy.media, process=p, processes=2) for p in range(2)]
    for step in range(6):
        both = jax.tree.map(lambda *xs: np.concatenate(xs), parts[0][step], parts[1][step])
        assert_same(both, whole[step])


def test_a_resumed_run_loads_what_the_uninterrupted_one_does(source):
    plan = loading.plan(source, batch_size=8)
    whole = take(9, source, plan, toy.media)
    for a, b in zip(take(4, source, plan, toy.media, start=5), whole[5:], strict=True):
        assert_same(a, b)
    iterator = loading.batches(source, plan, toy.media)
    next(iterator)
    state = iterator.get_state()
    next(iterator)
    iterator.set_state(state)
    assert_same(next(iterator), whole[1])
    iterator.close()


def test_a_pass_ends_where_it_is_told_to(source):
    plan = loading.plan(source, batch_size=8, shuffle=False)
    steps = list(loading.batches(source, plan, toy.media, stop=plan.steps_per_epoch))
    assert len(steps) == 6


def test_worker_processes_change_nothing(source):
    plan = loading.plan(source, batch_size=8, groups=2)
    alone = take(5, source, plan, toy.media, start=3)
    for a, b in zip(take(5, source, plan, toy.media, start=3, workers=2), alone, strict=True):
        assert_same(a, b)


def test_groups_and_processes_must_divide_the_batch(source):
    with pytest.raises(ValueError, match="8 rows does not split into 3 image groups"):
        loading.plan(source, batch_size=8, groups=3)
    plan = loading.plan(source, batch_size=8, groups=2)
    with pytest.raises(ValueError, match="do not split over 4 processes"):
        loading.batches(source, plan, toy.media, processes=4)
    with pytest.raises(ValueError, match="made for 2 image groups, not 4"):
        loading.batches(source, plan, toy.media, groups=4)
    with pytest.raises(ValueError, match="no rows"):
        loading.plan(source, batch_size=8, rows=[])


def test_references_fill_their_places(source, tmp_path):
    plan = loading.plan(source, batch_size=8)
    store = references.References(str(tmp_path / "refs.sqlite"), "model", "float32")
    with pytest.raises(ValueError, match="reference log-probabilities are not in"):
        take(1, source, plan, toy.media, references=store)
    keys = source.prepared.keys(range(len(source)))
    lengths = source.index["response_lengths"].reshape(-1)
    value = {key: -np.arange(1, n + 1) / 7 for key, n in zip(keys, lengths, strict=True)}
    store.put(value.items())
    for batch, members in take(6, source, plan, toy.media, references=store):
        for b, row in enumerate(members):
            for n in range(2):
                kept = batch.ref_logps[b, n][batch.mask[b, n] == 1]
                expected = [] if row < 0 else value[source[row].keys[n]]
                np.testing.assert_allclose(kept, expected, rtol=1e-6)
        assert (batch.ref_logps[batch.mask == 0] == 0).all()


def test_contexts_and_rewards_reach_the_batch(processor, tmp_path):
    row = toy.row(
        rejected_images=["1.png"],
        chosen_rewards={"grounding": 1.0, "format": 0.5},
        rejected_rewards={"grounding": 0.25, "format": 0.0},
        axis="format",
        margin=0.5,
    )
    path = toy.write(tmp_path, [row])
    prepared = toy.prepare(
        path,
        tmp_path / "cache",
        processor,
        branches=("chosen", "rejected@corrupted"),
        axes=("grounding", "format"),
    )
    made = loading.open(prepared)
    ((batch, _),) = take(1, made, loading.plan(made, batch_size=1), toy.media)
    assert isinstance(batch, types.Batch)
    assert batch.prompts.shape == (1, 2, 16)
    assert batch.prompt_lengths.tolist() == [[10, 10]]
    assert (batch.media["index"].max(axis=2) // toy.PATCHES).tolist() == [[0, 1]]
    labels = batch.labels
    np.testing.assert_array_equal(labels.rewards, np.float32([[[1.0, 0.5], [0.25, 0.0]]]))
    assert (labels.axis.tolist(), labels.margin.tolist()) == ([1], [0.5])
    assert batch.ref_logps is None


def test_lengths_are_rounded_up_to_few_values():
    found = planning._round_up(np.array([1, 16, 17, 256, 257, 1024, 1025]))
    assert found.tolist() == [16, 16, 32, 256, 288, 1024, 1152]


def test_the_llava_family_lays_out_the_same_media(source):
    arrangement = interleaved.Arrangement(
        toy.WORDS.index("<image>"),
        functools.partial(interleaved.squares, 28),
        functools.partial(interleaved.runs, toy.PATCHES),
    )
    media = functools.partial(interleaved.media, arrangement)
    plan = loading.plan(source, batch_size=8, groups=2)
    for a, b in zip(take(6, source, plan, media), take(6, source, plan, toy.media), strict=True):
        assert_same(a, b)
