"""Rubrics as records: what is valid, and how an error reads."""

import json

import pydantic
import pytest

from rubric_jax.rubrics import records


def criterion(**changes):
    value = {"id": "a", "text": "Right.", "kind": "essential", "weight": 3, "axis": "correctness"}
    return {k: v for k, v in (value | changes).items() if v is not ...}


def rubric(*criteria, **changes):
    return {"key": "k", "criteria": list(criteria or [criterion()])} | changes


def test_a_rubric_survives_its_own_json():
    value = rubric(
        criterion(scale="1-5", levels={"1": "bad", "5": "good"}),
        criterion(id="b", kind="additional", penalty=True, check={"about": "format"}),
        source="me",
    )
    parsed = records.parse(value, where="x")
    assert records.parse(json.loads(records.to_json(parsed)), where="y") == parsed
    assert "\n" not in records.to_json(parsed)


def test_records_are_frozen():
    parsed = records.parse(rubric(), where="x")
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        parsed.criteria[0].weight = 2.0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (rubric(criterion(kind="additional")), r"p:3: criteria: no essential criterion; mark"),
        (rubric(criterion(), criterion()), r"p:3: criteria: the id 'a' occurs twice; give"),
        (rubric(criteria=[]), r"p:3: criteria: an empty rubric; give it"),
        (rubric(criterion(weight=0)), r"criteria: all weights are zero; give every"),
        (rubric(criterion(), criterion(id="b", weight=0)), r"criteria\[1\].weight: 0; a weight"),
        (rubric(criterion(weight=float("nan"))), r"criteria\[0\].weight: "),
        (rubric(criterion(weight=float("inf"))), r"criteria\[0\].weight: "),
        (rubric(criterion(weight="much")), r"criteria\[0\].weight: found 'much'; "),
        (rubric(criterion(kind="esential")), r"\[0\].kind: 'esential'.*mean 'essential'"),
        (rubric(criterion(axis="grounding ")), r"axis 'grounding ' of 'a'.*mean 'grounding'"),
        (rubric(criterion(wieght=2)), r"\[0\].wieght: unknown field.*Did you mean 'weight'"),
        (rubric(criterion(text=...)), r"\[0\].text: missing; add it"),
        (rubric(criterion(id="a b")), r"\[0\].id: 'a b'; an id has"),
        (rubric(criterion(scale="1-6")), r"\[0\].scale: '1-6' is no scale.*Did you mean '1-5'"),
        (rubric(criterion(levels={"2": "x"})), r"\[0\]: level '2' is not on the scale halves"),
        (rubric(kee="x"), r"p:3: kee: unknown field"),
        ([1], r"p:3: rubric: found \[1\]"),
        (None, r"p:3: rubric: found None"),
    ],
)
def test_an_error_names_place_field_and_mend(value, message):
    with pytest.raises(ValueError, match=message):
        records.parse(value, where="p:3", axes=("correctness", "grounding"))


def test_without_axes_any_axis_is_good():
    assert records.parse(rubric(criterion(axis="taste")), where="x").criteria[0].axis == "taste"


def test_the_key_depends_on_every_image_their_order_and_the_text():
    keys = [
        records.instance_key(images, text)
        for images, text in (
            ([], "a"),
            ([b"1"], "a"),
            ([b"1", b"2"], "a"),
            ([b"2", b"1"], "a"),
            ([b"12"], "a"),
            ([b"1"], "b"),
        )
    ]
    assert len(set(keys)) == len(keys)
    assert records.Instance(instruction="a", images=(b"1",)).key == keys[1]


def test_the_digest_tells_rubrics_apart_by_their_criteria_only():
    one = records.parse(rubric(), where="x")
    assert one.digest == records.parse(rubric(key="other", source="s"), where="x").digest
    assert one.digest != records.parse(rubric(criterion(weight=2)), where="x").digest
