"""Edits, continuations, references: pairs with a side that the policy did not sample."""

import random
import re

import pytest

from rubric_jax import recipes
from rubric_jax.data import scenes
from rubric_jax.recipes import continuation, controls, edits, pairing, perturbation
from tests.recipes import toy

REFERENCE = "i see a red circle at top left . so the answer is two ."


def mine(recipe, *groups, **knobs):
    return recipe(groups, toy.AXES, seed=0, **knobs)


def slots(text, lists, **knobs):
    found = edits.find(text, lists, **{"same_length": False, **knobs})
    return [(text[slot.start : slot.end], slot.options) for slot in found]


def test_slots_are_whole_words_longest_first_in_the_texts_case():
    lists = (("red", "blue"), ("left", "right"), ("top left", "top right", "below"), ("2", "3"))
    text = "Red is top left , left of RED ; redder , red-haired , 2.5 and 2"
    assert slots(text, lists) == [
        ("Red", ("Blue",)),
        ("top left", ("top right", "below")),
        ("left", ("right",)),
        ("RED", ("BLUE",)),
        ("2", ("3",)),
    ]
    assert slots("top left", lists, same_length=True) == [("top left", ("top right",))]


def test_a_swap_keeps_the_article_right():
    lists = (("red", "orange", "blue"),)
    assert slots("a red cup", lists) == [("red", ("blue",))]
    assert slots("an orange cup", lists) == []
    assert slots("the red cup", lists) == [("red", ("orange", "blue"))]


def test_swaps_replace_that_many_slots():
    found = edits.find(REFERENCE, edits.SLOTS, same_length=True)
    for swaps, changed in ((1, 1), (2, 2), (9, 4)):
        edit = edits.swap(REFERENCE, found, swaps, random.Random(0))
        pieces = re.fullmatch(
            r"i see a (\w+) (\w+) at (\w+ \w+) \. so the answer is (\w+) \.", edit
        ).groups()
        assert sum(a != b for a, b in zip(pieces, ("red", "circle", "top left", "two"))) == changed


def test_the_default_slots_hold_each_word_once():
    words = [word for words in edits.SLOTS for word in words]
    assert len(words) == len(set(words))


def test_style_constrained_changes_exactly_one_slot_and_no_length():
    for i in range(50):
        text = scenes.reference(scenes.instance(0, i))
        ((chosen, rejected),) = toy.texts(
            mine(perturbation.style_constrained, toy.group([], reference=text, name=f"g{i}"))
        )
        assert chosen == text
        changed = [k for k, (a, b) in enumerate(zip(chosen.split(), rejected.split())) if a != b]
        assert len(chosen.split()) == len(rejected.split())
        assert changed in ([changed[0]], [changed[0], changed[0] + 1])  # "top left" is two words


def test_perturbation_of_the_reference_or_of_the_best_response():
    responses = [toy.response("a red cup", (1, 0)), toy.response("a blue cup", (1, 1))]
    group = toy.group(responses, reference=REFERENCE)
    lists = (("red", "blue"), ("two", "three"))
    ((chosen, rejected),) = toy.texts(mine(perturbation.perturbation, group, swaps=2, slots=lists))
    assert chosen == REFERENCE
    assert rejected == "i see a blue circle at top left . so the answer is three ."
    (row,) = mine(perturbation.perturbation, group, of="best", slots=lists).rows
    assert row.branches == {"chosen": "a blue cup", "rejected": "a red cup"}
    assert row.rewards == {"chosen": {"correctness": 1, "style": 1}, "rejected": {}}
    assert (row.sample, row.axis) == ({"chosen": 1}, None)


def test_perturbation_gives_different_edits():
    mined = mine(perturbation.perturbation, toy.group([], reference=REFERENCE), pairs=6)
    assert len({rejected for _, rejected in toy.texts(mined)}) == 6
    few = mine(
        perturbation.perturbation,
        toy.group([], reference="a red cup"),
        pairs=6,
        slots=(("red", "blue"),),
    )
    assert toy.texts(few) == [("a red cup", "a blue cup")]


@pytest.mark.parametrize(
    ("fields", "knobs", "reason"),
    [
        ({"reference": ""}, {}, pairing.NO_REFERENCE),
        ({"reference": "nothing here"}, {}, "no slot to swap"),
        ({"reference": REFERENCE}, {"of": "best"}, "no judged response that ended"),
    ],
)
def test_groups_that_cannot_be_edited_are_counted(fields, knobs, reason):
    mined = mine(perturbation.perturbation, toy.group(toy.scored(None), **fields), **knobs)
    assert mined.skipped == {reason: 1}


def test_a_response_is_cut_at_half_its_words_and_continued():
    group = toy.group([*toy.scored((0, 0)), toy.response("one two three four five", (1, 1))])
    (start,) = continuation.prompts([group])
    assert start == ("g", "one two three four five", "one two")
    continued = [
        toy.response(text, policy="continued", **fields)
        for text, fields in (
            ("one two three four five", {}),
            ("something else", {}),
            ("one two and so on", {"finished": False}),
            ("one two eyes shut", {}),
            ("one two more", {}),
        )
    ]
    mined = mine(continuation.continuation, toy.group([*group.responses, *continued]))
    (row,) = mined.rows
    assert row.branches == {"chosen": start.text, "rejected": "one two eyes shut"}
    assert row.sample == {"chosen": 1, "rejected": 5}
    assert row.rewards == {"chosen": {"correctness": 1, "style": 1}, "rejected": {}}
    assert mined.left_out == {
        "continuation equal to the chosen response": 1,
        "continuation of another text": 1,
        pairing.CUT_OFF: 1,
    }
    assert mine(continuation.continuation, group).skipped == {"no usable continuation": 1}


def test_what_is_continued_follows_the_knobs_of_the_recipe():
    group = toy.group(toy.scored((1, 1)), reference="a b c d")
    spec = {"recipe": "continuation", "of": "reference", "ratio": 0.75, "pairs": 3}
    assert recipes.prompts(spec)([group]) == [("g", "a b c d", "a b c")]
    assert recipes.prompts({"recipe": "rubric"}) is None


def test_a_response_is_cut_behind_its_first_sentence_judged_or_not():
    texts = ("cut off. no", "Two cups. One is 3.5 cm high. So two.")
    responses = [toy.response(texts[0], finished=False), toy.response(texts[1])]
    knobs = {"of": "first", "cut": "sentence"}
    group = toy.group(responses)
    (start,) = continuation.prompts([group], **knobs)
    assert start == ("g", texts[1], "Two cups.")
    blind = toy.response("Two cups. One is red.", policy="continued")
    (row,) = mine(continuation.continuation, toy.group([*responses, blind]), **knobs).rows
    assert row.branches == {"chosen": texts[1], "rejected": "Two cups. One is red."}
    assert row.rewards == {"chosen": {}, "rejected": {}}
    one = toy.group([toy.response("One sentence 3.5 long.")])
    assert mine(continuation.continuation, one, **knobs).skipped == {
        "response too short to be cut": 1
    }
    none = toy.group(responses[:1])
    assert mine(continuation.continuation, none, **knobs).skipped == {"no response that ended": 1}


@pytest.mark.parametrize(
    ("text", "ratio", "reason"),
    [
        ("", 0.5, pairing.NO_REFERENCE),
        ("one", 0.5, "response too short to be cut"),
        ("one two", 1.0, "response too short to be cut"),
    ],
)
def test_what_cannot_be_cut_is_counted(text, ratio, reason):
    group = toy.group([], reference=text)
    mined = mine(continuation.continuation, group, of="reference", ratio=ratio)
    assert mined.skipped == {reason: 1}
    assert continuation.prompts([group], of="reference", ratio=ratio) == []


def test_reference_against_the_worst_own_response():
    group = toy.group(toy.scored((1, 1), (0, 0.5), (0, 0), None), reference="text 2")
    (row,) = mine(controls.reference_pairs, group).rows
    assert row.branches == {"chosen": "text 2", "rejected": "text 1"}  # 2 is the reference itself
    assert row.rewards == {"chosen": {}, "rejected": {"correctness": 0, "style": 0.5}}


@pytest.mark.parametrize(
    ("scores", "reference", "reason"),
    [
        ([(1, 1)], "", pairing.NO_REFERENCE),
        ([(1, 1)], "r", "all responses reach high"),
        ([None], "r", "no judged response besides the reference"),
    ],
)
def test_groups_without_a_reference_pair_are_counted(scores, reference, reason):
    mined = mine(controls.reference_pairs, toy.group(toy.scored(*scores), reference=reference))
    assert mined.skipped == {reason: 1}
