"""What is recovered from a judge's text, and what never becomes a score."""

import json

import pytest

from rubric_jax.judges import parsing
from rubric_jax.rubrics import records


def criterion(ident, scale="halves"):
    return records.Criterion(id=ident, text="t", kind="essential", weight=1, axis="x", scale=scale)


A, B = criterion("a"), criterion("b", "1-5")
RIGHT = {"a": {"reason": "seen", "score": 0.5}, "b": {"reason": "hm", "score": 4}}
SCORES = {"a": 0.5, "b": 0.75}


def test_the_asked_form_is_read():
    parsed = parsing.parse(json.dumps(RIGHT), [A, B])
    assert parsed == (SCORES, {"a": "seen", "b": "hm"}, [], False)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps(RIGHT, indent=2)}\n```",
        f"```\n{json.dumps(RIGHT)}\n```\nI hope this helps {{really}}!",
        f"Here you are: {json.dumps(RIGHT)} and [1] that is all.",
        f'<think>Is {{\'a\': 1}} right? {{"a": 1, "b": 1}}</think>{json.dumps(RIGHT)}',
        '{"a": {"score": "0.5", }, "b": {"score": "4"},}',
        '{"a": "1/2", "b": "4/5"}',
        '{"a": 0.5, "b": 4.0}',
        json.dumps([{"id": "a", "score": 0.5}, {"id": "b", "score": "4"}]),
        json.dumps({"verdicts": [{"criterion": "a", "score": 0.5}, {"name": "b", "score": 4}]}),
        json.dumps({"scores": {"a": 0.5, "b": 4}}),
        json.dumps({"summary": "fine", **RIGHT})[:-1] + ', "a": {"score": 0.5}}',
    ],
)
def test_scores_are_recovered_from(text):
    assert parsing.parse(text, [A, B]).scores == SCORES


def test_a_single_criterion_may_be_answered_without_its_name():
    assert parsing.parse('{"reason": "r", "score": 1}', [A]).scores == {"a": 1.0}
    assert parsing.parse('{"score": 1}', [A, B]).scores == {}


@pytest.mark.parametrize(
    ("text", "scores", "problems"),
    [
        ('{"a": 1}', {"a": 1.0}, ["missing: b"]),
        ('{"a": null, "b": 5}', {"b": 1.0}, ["missing: a"]),
        ('{"a": 1, "b": 5, "c": 1}', {"a": 1.0, "b": 1.0}, ["surplus: c"]),
        ('{"a": 0.7, "b": 5}', {"b": 1.0}, ["off the scale: a"]),
        ('{"a": 1, "b": 6}', {"a": 1.0}, ["off the scale: b"]),
        ('{"a": 1, "b": true}', {"a": 1.0}, ["off the scale: b"]),
        ('{"a": NaN, "b": 5}', {"b": 1.0}, ["off the scale: a"]),
        ('{"a": {"score": [1]}, "b": 5}', {"b": 1.0}, ["off the scale: a"]),
        (
            '[{"id": "a", "score": 1}, {"id": "a", "score": 0}, {"id": "b", "score": 5}]',
            {"b": 1.0},
            ["contradiction: a"],
        ),
        ("", {}, ["an empty answer"]),
        ("The response is good, 5 of 5.", {}, ["no JSON object"]),
        ('{"a": {"reason": "it was cut', {}, ["no JSON object"]),
        ("[" * 5000, {}, ["no JSON object"]),
        ("{" * 100_000, {}, ["no JSON object"]),
        ("[]", {}, ["no JSON object"]),
        ("{}", {}, ["missing: a", "missing: b"]),
        ("[1, 0.5]", {}, ["no JSON object"]),
    ],
)
def test_what_is_wrong_is_named_and_scores_nothing(text, scores, problems):
    parsed = parsing.parse(text, [A, B])
    assert parsed.scores == scores
    assert not parsed.refused
    assert len(parsed.problems) == len(problems)
    for found, expected in zip(parsed.problems, problems):
        assert found.startswith(expected)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot grade this image.",
        "<think>Hm.</think>\nSorry, no.",
        "As an AI, I do not look at people.",
        "I am unable to see the image.",
    ],
)
def test_a_refusal_is_told_from_garbage(text):
    assert parsing.parse(text, [A]) == ({}, {}, ["refusal"], True)


def test_an_apology_before_an_answer_is_an_answer():
    assert parsing.parse('I\'m sorry for the delay: {"a": 1}', [A]).scores == {"a": 1.0}
