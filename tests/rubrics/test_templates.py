"""Hand-written templates, built in and a user's own."""

import json

import pytest

from rubric_jax.rubrics import templates


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_a_built_in_template_is_a_valid_rubric_with_words_for_its_levels(name):
    rubric = templates.load(name)
    assert all(c.levels for c in rubric.criteria)
    assert {c.scale for c in rubric.criteria} == {"1-5", "binary"}


def test_the_general_template_asks_what_it_says():
    rubric = templates.load("general")
    assert [c.id for c in rubric.criteria] == [
        "visual_fidelity",
        "contextual_relevance",
        "object_accuracy",
        "hallucination",
        "style",
    ]
    hallucination = rubric.criteria[3]
    assert (hallucination.kind, hallucination.scale) == ("essential", "binary")
    assert set(hallucination.levels) == {"true", "false"}


def test_defaults_are_filled_in_and_yaml_and_json_agree(tmp_path):
    (tmp_path / "t.yaml").write_text(
        "# mine\nObject accuracy:\n  description: Right.\n  scale: 1-5\n  levels: {1: a, 5: b}\n"
    )
    (tmp_path / "t.json").write_text(
        json.dumps(
            {"Object accuracy": {"description": "Right.", "scale": "1-5",
                                 "levels": {"1": "a", "5": "b"}}}
        )
    )  # fmt: skip
    one = templates.load(str(tmp_path / "t.yaml"))
    (criterion,) = one.criteria
    assert (criterion.id, criterion.axis) == ("Object_accuracy", "Object_accuracy")
    assert (criterion.kind, criterion.weight) == ("essential", 1.0)
    assert criterion.levels == {"1": "a", "5": "b"}
    assert templates.load(str(tmp_path / "t.json")) == one


def test_an_applied_template_differs_in_its_key_alone():
    rubric = templates.load("documents")
    applied = templates.apply(rubric, "k")
    assert applied.key == "k"
    assert applied.digest == rubric.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  description: x\nb:\n  scale: 1-5\n", r"t.yaml:3: b: description: missing"),
        ("a:\n  descripton: x\n", r"t.yaml:1: a: descripton: .*Did you mean 'description'"),
        ("a: yes\n", r"t.yaml:1: a: True; it must be a mapping"),
        ("a:\n  description: x\n\na:\n  description: y\n", r"t.yaml:4: a: occurs twice"),
        ("a:\n  description: x\n  scale: 1-7\n", r"t.yaml:1: a: scale: '1-7' is no scale"),
        ("a:\n  description: x\n  levels: {2: y}\n", r"t.yaml:1: a: .*level '2' is not on"),
        ("a:\n  description: x\n  kind: esential\n", r"t.yaml:1: a: kind: 'esential'.*essential"),
        ("a:\n  description: x\n  axis: gronding\n", r"t.yaml:1: a: axis: .*mean 'grounding'"),
        ("a:\n  description: x\n  weight: -1\n", r"t.yaml:1: a: weight: -1; a weight must be"),
        (
            "a:\n  description: x\n  kind: additional\n  axis: format\n",
            r"t.yaml: criteria: no essential criterion",
        ),
        ("a:\n  description: x\n b: [\n", r"t.yaml:3: not YAML"),
        ("- a\n", "not a mapping from criterion"),
        ("", "not a mapping from criterion"),
    ],
)
def test_an_error_names_line_field_and_mend(tmp_path, text, message):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        templates.load(str(path), axes=("a", "b", "grounding", "format"))


def test_repeats_in_json_are_refused(tmp_path):
    (tmp_path / "t.json").write_text('{"a": {"description": "x"}, "a": {"description": "y"}}')
    with pytest.raises(ValueError, match="a: occurs twice"):
        templates.load(str(tmp_path / "t.json"))


def test_an_unknown_name_lists_the_built_in_ones():
    with pytest.raises(ValueError, match=r"'genral' is no template.*Did you mean 'general'"):
        templates.load("genral")
    with pytest.raises(ValueError, match="Cannot read the template"):
        templates.load("absent.yaml")
