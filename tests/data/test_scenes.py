"""The embedded scenes: balance, scoring, files, and the toy model's directory."""

import collections
import itertools
import json
import random
import re

import jax
import numpy as np
import PIL.Image
import pytest
import transformers

from rubric_jax import models
from rubric_jax.data import instructions, scenes
from rubric_jax.data.scenes import files, instances, toy, world
from rubric_jax.models import weights

RED = scenes.Thing(0, "small", "red", "circle")
BLUE = scenes.Thing(4, "large", "blue", "square")
TWO = scenes.Instance(
    id="by-hand",
    kind="describe",
    text="what is in the picture , and how many shapes ?",
    options=("one", "two", "three"),
    answer="two",
    scene=scenes.Scene((RED, BLUE)),
)
RIGHT = (
    "i see a small red circle at top left and a large blue square at middle center . "
    "so the answer is two ."
)
WHERE = scenes.Instance(
    "where", "locate", "where is the circle ?", world.POSITIONS, "top left", TWO.scene
)
SAMPLE = [scenes.instance(3, index) for index in range(400)]


def test_reference_worked_by_hand():
    assert scenes.reference(TWO) == RIGHT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RIGHT, (1, 1, 1, 1)),
        (RIGHT.upper() + "</s>", (1, 1, 1, 1)),
        (RIGHT.replace("two .", "2."), (1, 1, 1, 1)),
        ("i see a small red circle at top left . so the answer is two .", (1, 1, 0.5, 1)),
        # One of four attributes wrong: half a thing on both axes.
        (RIGHT.replace("square", "triangle"), (1, 0.75, 0.75, 1)),
        # Two wrong: nothing for that thing.
        (RIGHT.replace("blue square", "green triangle"), (1, 0.5, 0.5, 1)),
        # What is left open is not wrong, but not described either.
        ("i see a red circle . so the answer is one .", (0, 1, 0, 1)),
        ("i see a red circle at top left . so the answer is one .", (0, 1, 0.25, 1)),
        # A thing mentioned twice counts once.
        (RIGHT.replace("i see", "i see a small red circle at top left and"), (1, 2 / 3, 1, 1)),
        # Format: half for evidence, then "so" and an answer; nothing otherwise.
        (RIGHT.replace("i see ", ""), (1, 1, 1, 0.5)),
        (RIGHT.replace(" .", ""), (1, 1, 1, 0.5)),
        (RIGHT + " so the answer is three .", (0, 1, 1, 0.5)),
        ("two . i see a small red circle at top left", (1, 1, 0.5, 0)),
        # Hedging is no answer.
        ("so the answer is one or two .", (0, 0, 0, 0)),
        ("yes", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
        # The picture has one circle, so one of fifty is grounded.
        ("circle " * 50, (0, 1 / 50, 0, 0)),
        ("<image> \x00 ☃ a a at at so so . . is is", (0, 0, 0, 0)),
    ],
)
def test_score_worked_by_hand(text, expected):
    assert scenes.score(TWO, text) == pytest.approx(dict(zip(scenes.AXES, expected)))


def test_an_answer_is_read_apart_from_the_evidence():
    said = "i see a small red circle at top left and a large blue square at middle center . {} ."
    assert scenes.check(WHERE, said.format("top left")).correct
    assert scenes.check(WHERE, said.format("top right")).answer == "top right"
    assert scenes.check(WHERE, said.format("done")).answer is None
    assert scenes.check(WHERE, said.format("top left or top right")).answer is None
    assert scenes.check(WHERE, "so the answer is top right or top left .").answer is None


def test_pairing_of_mentions_is_the_best_one():
    # The first mention fits both things by half; only leaving one to the second mention gives 1.5.
    scene = scenes.Scene((RED, scenes.Thing(1, "small", "red", "circle")))
    pair = scenes.Instance("pair", "describe", TWO.text, TWO.options, "two", scene)
    text = "i see a small red circle at top center and a small red circle at top right ."
    assert scenes.check(pair, text).grounded == (1.0, 0.5)
    assert scenes.check(pair, text).described == (0.5, 1.0)


def test_check_says_which_things_are_described():
    found = scenes.check(TWO, RIGHT.replace("large ", "").replace("red", "green"))
    assert found.mentions[1] == scenes.Thing(4, None, "blue", "square")
    assert (found.grounded, found.described) == ((0.5, 1.0), (0.5, 0.5))


def test_references_score_one_on_every_axis():
    for instance in SAMPLE:
        text = scenes.reference(instance)
        assert scenes.score(instance, text) == dict.fromkeys(scenes.AXES, 1.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_corruption_lowers_exactly_the_axes_it_names(count):
    rng = random.Random(0)
    for instance, axes in itertools.product(SAMPLE, itertools.combinations(scenes.AXES, count)):
        text = scenes.corrupt(instance, axes, rng)
        scores = scenes.score(instance, text)
        assert {axis for axis, value in scores.items() if value < 1} == set(axes), (instance, text)
        assert all(0 <= value <= 1 for value in scores.values())


def test_corrupting_nothing_gives_the_reference_and_an_unknown_axis_is_named():
    assert scenes.corrupt(TWO, (), random.Random(0)) == RIGHT
    with pytest.raises(ValueError, match="Unknown axis 'style'; it must be one of correctness"):
        scenes.corrupt(TWO, ("style",), random.Random(0))


def test_answers_are_true_of_the_scene():
    truths = {q.text: q for questions in instances.QUESTIONS.values() for q in questions}
    for instance in SAMPLE:
        question = truths[instance.text]
        assert question.truth(instance.scene) == instance.answer
        assert instance.options == question.options


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("how many small shapes are there ?", "one"),
        ("how many triangles are there ?", "zero"),
        ("which is larger , the red shape or the blue shape ?", "blue"),
        ("which is higher , the blue shape or the red shape ?", "red"),
        ("which is further left , the red shape or the blue shape ?", "red"),
        ("which is larger , the red shape or the green shape ?", None),
        ("where is the square ?", "middle center"),
        ("where is the triangle ?", None),
        ("is there a red circle ?", "yes"),
        ("is there a red square ?", "no"),
        ("is the blue shape small ?", "no"),
        ("is the circle small ?", "yes"),
    ],
)
def test_questions_answered_by_hand(text, answer):
    found = [q for questions in instances.QUESTIONS.values() for q in questions if q.text == text]
    assert [question.truth(TWO.scene) for question in found] == [answer]


def test_an_instance_is_the_same_whatever_else_is_made():
    assert scenes.instance(3, 7) == SAMPLE[7]
    other_seed = [scenes.instance(4, index).scene for index in range(5)]
    assert other_seed != [instance.scene for instance in SAMPLE[:5]]
    again = list(scenes.pairs(3, [2, 5]))
    assert again == [row for n, row in enumerate(scenes.pairs(3, range(6))) if n in (2, 5)]


def test_a_known_instance_has_not_changed():
    # Data made elsewhere, by another version of Python, must be the same.
    instance = scenes.instance(0, 4)
    assert instance.text == "which is higher , the blue shape or the yellow shape ?"
    assert (instance.answer, instance.scene.key) == ("blue", "0lbc-4syc-5srt")


def test_answers_are_uniform_given_the_text():
    # Chi-squared per text over its options; with 80 or so texts the largest of them stays small.
    counts = collections.defaultdict(collections.Counter)
    options = {}
    for index in range(8000):
        instance = scenes.instance(1, index)
        counts[instance.text][instance.answer] += 1
        options[instance.text] = instance.options
    total, freedom = 0.0, 0
    for text, answers in counts.items():
        mean = sum(answers.values()) / len(options[text])
        total += sum((answers[option] - mean) ** 2 / mean for option in options[text])
        freedom += len(options[text]) - 1
    assert abs(total - freedom) < 4 * (2 * freedom) ** 0.5


def test_without_the_picture_the_best_is_chance():
    seen = collections.defaultdict(collections.Counter)
    for index in range(6000):
        instance = scenes.instance(2, index)
        seen[instance.text][instance.answer] += 1
    right, chance, variance = 0, 0.0, 0.0
    for index in range(6000, 9000):
        instance = scenes.instance(2, index)
        right += seen[instance.text].most_common(1)[0][0] == instance.answer
        p = 1 / len(instance.options)
        chance, variance = chance + p, variance + p * (1 - p)
    assert abs(right - chance) < 4 * variance**0.5


def test_a_fixed_description_is_almost_never_grounded():
    scores = [scenes.score(instance, RIGHT) for instance in SAMPLE]
    assert np.mean([score["grounding"] for score in scores]) < 0.1
    assert np.mean([score["completeness"] for score in scores]) < 0.1


def test_chosen_is_better_on_the_axis_and_in_the_weighted_mean():
    rows = list(scenes.pairs(0, range(300), quality=0.5, gap=0.1))
    for row in rows:
        chosen, rejected = row["chosen_rewards"], row["rejected_rewards"]
        assert chosen[row["axis"]] > rejected[row["axis"]]
        gap = sum(w * (chosen[axis] - rejected[axis]) for axis, w in files.WEIGHTS.items())
        assert gap >= 0.1 - 1e-9
    conflict = [
        any(row["chosen_rewards"][axis] < row["rejected_rewards"][axis] for axis in scenes.AXES)
        for row in rows
    ]
    assert np.mean(conflict) > 0.2
    assert {row["axis"] for row in rows} == set(scenes.AXES)


def test_quality_is_the_share_of_right_responses_among_chosen():
    for quality in (0.0, 0.5, 1.0):
        rows = list(scenes.pairs(0, range(200), quality=quality))
        right = np.mean([min(row["chosen_rewards"].values()) == 1 for row in rows])
        assert right == pytest.approx(quality, abs=0.12)
    with pytest.raises(ValueError, match="quality is 2"):
        next(scenes.pairs(0, [0], quality=2))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("scenes")
    scenes.write(directory, demos=30, pairs=20, heldout=10, seed=5)
    return directory


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_writing_twice_gives_the_same_bytes(written, tmp_path):
    scenes.write(tmp_path, demos=30, pairs=20, heldout=10, seed=5)
    names = sorted(p.relative_to(written) for p in written.rglob("*.*"))
    assert names == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.*"))
    assert all((written / n).read_bytes() == (tmp_path / n).read_bytes() for n in names)


def test_embellished_demonstrations_see_one_thing_too_many():
    def rewards(share):
        rows = list(scenes.demonstrations(0, range(400), embellished=share))
        return [row["chosen_rewards"] for row in rows]

    assert all(min(each.values()) == 1 for each in rewards(0.0))
    for each in rewards(1.0):
        assert each["grounding"] < 1
        assert each["correctness"] == each["completeness"] == each["format"] == 1
    assert np.mean([each["grounding"] < 1 for each in rewards(0.7)]) == pytest.approx(0.7, abs=0.06)
    with pytest.raises(ValueError, match="embellished is 2"):
        list(scenes.demonstrations(0, range(1), embellished=2))


def test_instructions_have_what_is_known_about_the_right_answer(written):
    for name, split in (("instructions", "train"), ("heldout_instructions", "heldout")):
        pairs = read(written / f"{split}.jsonl")
        for pair, task in zip(
            pairs, instructions.read(str(written / f"{name}.jsonl")), strict=True
        ):
            instance = scenes.from_facts(task.facts)
            assert (task.id, task.text) == (pair["id"], instance.text)
            assert task.answer == instance.answer
            assert scenes.score(instance, task.reference) == dict.fromkeys(scenes.AXES, 1.0)


def test_a_larger_data_set_begins_with_the_smaller_one(written, tmp_path):
    scenes.write(tmp_path, demos=5, pairs=25, heldout=10, seed=5)
    assert read(tmp_path / "demos.jsonl") == read(written / "demos.jsonl")[:5]
    assert read(tmp_path / "train.jsonl")[:20] == read(written / "train.jsonl")


def test_rows_have_the_columns_of_trl(written):
    rows = {name: read(written / f"{name}.jsonl") for name in ("demos", "train", "heldout")}
    assert {name: len(found) for name, found in rows.items()} == {
        "demos": 30,
        "train": 20,
        "heldout": 10,
    }
    common = {"id", "prompt", "images", "chosen", "chosen_rewards"}
    for row in rows["demos"]:
        assert set(row) == common
    for row in rows["train"] + rows["heldout"]:
        assert set(row) == common | {"rejected", "rejected_rewards", "axis"}
        assert row["prompt"][0]["content"][0] == {"type": "image"}
        for name in ("chosen", "rejected"):
            (message,) = row[name]
            assert message["role"] == "assistant"
            assert message["content"][0]["type"] == "text"


def test_splits_share_no_scene(written):
    images = [
        {row["images"][0] for row in read(written / f"{name}.jsonl")}
        for name in ("demos", "train", "heldout")
    ]
    assert all(not a & b for a, b in itertools.combinations(images, 2))


def test_facts_and_pictures_give_back_the_instances(written):
    facts = {row["id"]: row for row in read(written / "facts.jsonl")}
    rows = [
        row for name in ("demos", "train", "heldout") for row in read(written / f"{name}.jsonl")
    ]
    assert len(facts) == len(rows) == 60
    for row in rows:
        instance = scenes.from_facts(facts[row["id"]])
        seed, index = map(int, re.findall(r"\d+", instance.id))
        assert instance == scenes.instance(seed, index)
        assert facts[row["id"]]["image"] == row["images"][0]
        text = row["chosen"][0]["content"][0]["text"]
        assert scenes.score(instance, text) == row["chosen_rewards"]
        with PIL.Image.open(written / row["images"][0]) as image:
            np.testing.assert_array_equal(image, scenes.draw(instance.scene))
    pictures = {row["images"][0] for row in rows}
    assert {f"images/{p.name}" for p in (written / "images").iterdir()} == pictures


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="heldout is to have -1 rows"):
        scenes.write(tmp_path, demos=0, pairs=0, heldout=-1)
    with pytest.raises(ValueError, match="No field 'answer' in the facts of 'by-hand'"):
        scenes.from_facts({k: v for k, v in TWO.facts.items() if k != "answer"})


def test_a_picture_drawn_has_its_colours_where_its_things_are():
    pixels = np.asarray(scenes.draw(TWO.scene))
    assert pixels.shape == (48, 48, 3)
    assert tuple(pixels[8, 8]) == world.COLOURS["red"]
    assert tuple(pixels[24, 24]) == world.COLOURS["blue"]
    coloured = (pixels != 255).any(-1)
    assert coloured[16:32, 16:32].sum() == 14 * 14
    # A circle of radius 4 in a cell of its own; nothing elsewhere.
    assert 45 <= coloured[:16, :16].sum() <= 64
    assert coloured.sum() == coloured[:16, :16].sum() + 14 * 14


def test_all_looks_differ_in_the_picture():
    things = itertools.product(world.SIZES, world.COLOURS, world.SHAPES)
    looks = [np.asarray(scenes.draw(scenes.Scene((scenes.Thing(4, *t),))), float) for t in things]
    for a, b in itertools.combinations(looks, 2):
        # At least eight pixels by a quarter of the range, in some channel.
        assert (np.abs(a - b).max(-1) > 64).sum() >= 8


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    directory = tmp_path_factory.mktemp("toy")
    scenes.write_processor(directory)
    return transformers.AutoProcessor.from_pretrained(directory)


def test_every_text_goes_through_the_tokenizer_and_back(processor):
    tokenizer = processor.tokenizer
    rng = random.Random(0)
    for instance in SAMPLE:
        axes = rng.sample(scenes.AXES, 2)
        for text in (
            instance.text,
            scenes.reference(instance),
            scenes.corrupt(instance, axes, rng),
        ):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
    assert len(toy.vocabulary()) < 100


def test_the_prompt_is_a_prefix_of_the_conversation(processor):
    row = next(scenes.pairs(0, [0]))
    prompt = processor.apply_chat_template(row["prompt"], add_generation_prompt=True)
    whole = processor.apply_chat_template(row["prompt"] + row["chosen"])
    text = row["chosen"][0]["content"][0]["text"]
    asked = row["prompt"][0]["content"][1]["text"]
    assert prompt == f"<s><user><image>{asked}<assistant>"
    assert whole == prompt + text + "</s>"
    image = scenes.draw(scenes.instance(0, 0).scene)
    ids = processor(text=[whole], images=[image], return_tensors="np")["input_ids"][0]
    named = processor.tokenizer.convert_ids_to_tokens(ids)
    assert named[:3] == ["<s>", "<user>", "<image>"]
    assert named.count("<image>") == 9
    assert named == [
        *("<s>", "<user>"),
        *["<image>"] * 9,
        *asked.split(),
        "<assistant>",
        *text.split(),
        "</s>",
    ]
    assert processor.tokenizer.decode(ids[-8:], skip_special_tokens=True) in text


def test_the_image_processor_changes_no_pixel(processor):
    image = scenes.draw(TWO.scene)
    pixels = processor.image_processor(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(
        (pixels + 1) * 127.5, np.asarray(image).transpose(2, 0, 1), atol=1e-4
    )


def test_the_toy_model_is_a_llava_of_one_million_parameters(tmp_path):
    scenes.write_processor(tmp_path)
    vlm = models.build("llava", tmp_path)
    assert vlm.vocab >= len(toy.vocabulary())
    sizes = [leaf.size for leaf in jax.tree.leaves(jax.eval_shape(vlm.init, jax.random.key(0)))]
    assert 500_000 < sum(sizes) < 2_000_000


def test_written_weights_depend_on_the_seed_alone_and_load(tmp_path):
    small = {"width": 16, "depth": 1, "vision_width": 8, "vision_depth": 1}
    found = {}
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        scenes.write_model(tmp_path / name, seed=seed, **small)
        found[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert found["first"] == found["again"] != found["other"]
    vlm = models.build("llava", tmp_path / "first")
    assert not weights.check(
        weights.tensors(tmp_path / "first", vlm.weights), vlm.weights, tmp_path
    )
