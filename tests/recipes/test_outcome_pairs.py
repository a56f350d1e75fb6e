"""Pairs by the final answer, and how it is read."""

import collections

import pytest

from rubric_jax.data import scenes
from rubric_jax.recipes import answers, outcome, pairing
from tests.recipes import toy


def mine(*groups, recipe=outcome.outcome, **knobs):
    return recipe(groups, toy.AXES, seed=0, **knobs)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("i see a red circle at top left . so the answer is two .", "2"),
        ("i see a circle . so the answer is top left .", "top left"),
        ("The answer is: B. Because it is red.", "b"),
        ("Final answer: (C)", "c"),
        ("Answer: 42", "42"),
        ("Answer:\n-5 degrees", "-5 degrees"),
        ("**Answer:** 3.14", "3.14"),
        ("**Answer**: The red circle!", "red circle"),
        (r"The final answer is $\boxed{1,000}$.", "1000"),
        ("The answer is one. No, the answer is 2.", "2"),
        ("The answer is: the answer is two.", "2"),
        ("the answer is\tYes\nand more", "yes"),
        ("the answer is two</s>", "2"),
        ("The answer is a 3.5 m tall tree, I think. Yes.", "3.5 m tall tree i think"),
        ("so the answer is ", ""),
        ("yes", ""),
        ("He answered. It is two.", ""),
        ("", ""),
    ],
)
def test_the_final_answer_is_read(text, answer):
    assert answers.parse(text) == answer


def test_a_pattern_of_ones_own_reads_the_last_match_that_says_something():
    assert answers.parse("it is 1, no, 2", r"(\d)") == "2"
    assert answers.parse("Two.", r"(?s)(.*)") == "2"


@pytest.mark.parametrize(
    ("a", "b"),
    [("Two", "2"), ("a Red  circle.", "red circle"), ('"Paris"', "paris"), ("\u22125", "-5")],
)
def test_answers_that_are_the_same(a, b):
    assert answers.normal(a) == answers.normal(b)


@pytest.mark.parametrize(("a", "b"), [("-5", "5"), ("3.5", "35"), ("A", "B"), ("?", "!")])
def test_answers_that_are_not(a, b):
    assert answers.normal(a) != answers.normal(b)


def test_the_answer_of_every_reference_of_scenes_is_read_and_right():
    for i in range(200):
        instance = scenes.instance(0, i)
        text = scenes.reference(instance)
        assert answers.parse(text) == answers.normal(instance.answer) != ""


SIX = (
    "the answer is two .",
    "so , the answer is two .",
    "the answer is one .",
    "the answer is three .",
    "two",
    "the answer is two or three .",
)


def test_right_is_paired_with_wrong_and_unparsable():
    mined = mine(toy.outcomes(*SIX))
    assert set(toy.samples(mined)) == {(c, r) for c in (0, 1) for r in (2, 3, 4)}
    assert mined.left_out == {"wrong answer that contains the right one": 1}
    row = mined.rows[0]
    assert (row.axis, row.weight, row.margin) == (None, 1, 0)
    assert row.total == {"chosen": 1, "rejected": 0}
    assert row.rewards == {"chosen": {}, "rejected": {}}
    without = mine(toy.outcomes(*SIX), unparsable=False)
    assert set(toy.samples(without)) == {(c, r) for c in (0, 1) for r in (2, 3)}


def test_rewards_go_along_where_there_are_verdicts():
    group = toy.group(
        [toy.response(SIX[0], (1, 0)), toy.response(SIX[2], (0, 1)), toy.response(SIX[3])],
        answer="2",
    )
    rewards = {row.sample["rejected"]: row.rewards for row in mine(group).rows}
    assert rewards[1] == {
        "chosen": {"correctness": 1, "style": 0},
        "rejected": {"correctness": 0, "style": 1},
    }
    assert rewards[2]["rejected"] == {}


@pytest.mark.parametrize(
    ("texts", "answer", "reason"),
    [
        (SIX[:2], "two", "all responses are right"),
        (SIX[2:4], "two", "no response is right"),
        (SIX[2:5], "two", "no response is right"),
        (("two", "one"), "two", "no response has a final answer"),
        (SIX[:4], "", "no right answer known"),
        (SIX[:1], "two", pairing.FEW),
        ((SIX[0], SIX[5]), "two", "no response is clearly wrong"),
    ],
)
def test_groups_without_two_sides_are_counted_apart(texts, answer, reason):
    mined = mine(toy.outcomes(*texts, answer=answer))
    assert mined.skipped == {reason: 1}
    assert not mined.rows


def test_unparsable_responses_can_be_kept_out():
    group = toy.outcomes(SIX[0], SIX[4])
    assert toy.samples(mine(group)) == [(0, 1)]
    assert mine(group, unparsable=False).skipped == {"no response is clearly wrong": 1}


def test_a_right_answer_that_was_cut_off_is_not_chosen():
    group = toy.group(
        [toy.response(SIX[0], finished=False), toy.response(SIX[2], finished=False)], answer="two"
    )
    mined = mine(group)
    assert mined.skipped == {"every right response is cut off": 1}
    assert mined.left_out == {pairing.CUT_OFF: 1}


def test_pairs_are_drawn_evenly_from_all():
    texts = [f"{k} . the answer is {a} ." for k in range(4) for a in ("two", "one")]
    groups = [toy.outcomes(*texts, name=f"g{i}") for i in range(60)]
    counts = collections.Counter(toy.samples(mine(*groups, pairs=4)))
    assert counts.total() == 240
    assert len(counts) == 16  # every one of 4 x 4, 15 times in the mean
    assert 4 <= min(counts.values()) <= max(counts.values()) <= 28
    assert len(set(toy.samples(mine(toy.outcomes(*texts))))) == 15


def test_style_matched_pairs_are_as_long():
    long = "i see it all , so the answer is {} ."
    group = toy.outcomes(
        "the answer is two .", long.format("two"), "the answer is one .", long.format("one"), "one"
    )
    mined = mine(group, recipe=outcome.style_matched)
    assert set(toy.samples(mined)) == {(0, 2), (1, 3)}
    loose = mine(group, recipe=outcome.style_matched, tolerance=1.0)
    assert set(toy.samples(loose)) == {(0, 2), (1, 3), (0, 3), (1, 2)}
    apart = mine(
        toy.outcomes("the answer is two .", long.format("one")), recipe=outcome.style_matched
    )
    assert apart.skipped == {"no wrong response is as long as a right one": 1}
