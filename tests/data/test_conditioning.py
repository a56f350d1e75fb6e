"""Weights of axes in prompts: what is drawn, where it is written, and how it reaches the batch."""

import re

import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.data import audit, conditioning, loading
from tests.data import toy

AXES = ("correctness", "grounding")
LAYOUT = types.Layout.of(("chosen", "rejected"))
DIRICHLET = {"draw": "dirichlet", "copies": 2}
VECTORS = {"draw": "choice", "vectors": [[1.0, 0.0], [0.25, 0.75]], "copies": 2}
PROMPT = "USER: <image> {weights}what is this ? ASSISTANT:"


def bind(values, axes=AXES):
    return conditioning.bind(values, LAYOUT, axes)


def source(folder, processor, rows, values, **settings):
    path = toy.write(folder, rows)
    made = toy.prepare(path, folder / "cache", processor, axes=AXES, weights=values, **settings)
    return loading.open(made)


def draw(values, number=1):
    return conditioning.DRAWS[values["draw"]](
        np.random.default_rng((0, number)), values["copies"], AXES, **bind(values).knobs
    )


def test_a_dirichlet_draw_sums_to_one_and_concentration_evens_it_out():
    many = {"draw": "dirichlet", "copies": 2000}
    wide, narrow = draw(many), draw({**many, "concentration": 50.0})
    for drawn in (wide, narrow):
        np.testing.assert_allclose(drawn.sum(axis=1), 1.0)
        assert (drawn >= 0).all()
        np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.02)
    # Variances of a Dirichlet of two axes: 1 / (4 (2 c + 1)).
    np.testing.assert_allclose(wide[:, 0].var(), 1 / 12, rtol=0.1)
    np.testing.assert_allclose(narrow[:, 0].var(), 1 / 404, rtol=0.1)
    floored = draw({**many, "least": 0.2})
    assert floored.min() >= 0.2
    np.testing.assert_allclose(floored.sum(axis=1), 1.0)


def test_copies_take_each_vector_once_before_one_again():
    drawn = draw({**VECTORS, "copies": 4})
    assert sorted(drawn[:2].tolist()) == [[0.25, 0.75], [1.0, 0.0]]
    np.testing.assert_array_equal(drawn[:2], drawn[2:])


def test_rounding_keeps_the_sum():
    np.testing.assert_allclose(
        conditioning.rounded(np.array([[0.336, 0.332, 0.332], [0.125, 0.375, 0.5]]), 2),
        [[0.34, 0.33, 0.33], [0.13, 0.37, 0.5]],
    )
    drawn = np.random.default_rng(0).dirichlet(np.ones(5), 200)
    np.testing.assert_allclose(conditioning.rounded(drawn, 2).sum(axis=1), 1.0)


def test_the_statement_reads_back_as_the_weights():
    bound = bind({**DIRICHLET, "item": "{axis}*{weight}", "join": " + ", "text": "<{weights}>"})
    assert bound.state(np.array([0.7, 0.3])) == "<correctness*0.70 + grounding*0.30>"
    (weights,) = conditioning.rounded(draw({**DIRICHLET, "copies": 1}), 2)
    said = re.findall(r"(\w+): (\d\.\d+)", bind(DIRICHLET).state(weights))
    assert {axis: float(weight) for axis, weight in said} == dict(zip(AXES, weights, strict=True))


def test_where_the_statement_stands():
    def write(prompt):
        return conditioning.written("prompt", prompt, "S. ")

    user = {"role": "user", "content": "what ?"}
    image, text = {"type": "image"}, {"type": "text", "text": "what ?"}
    assert write("a {weights}b") == "a S. b"
    assert write([user]) == [{"role": "user", "content": "S. what ?"}]
    turns = [
        user,
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [image, text]},
    ]
    assert write(turns)[:2] == turns[:2]
    assert write(turns)[2]["content"] == [image, {"type": "text", "text": "S. what ?"}]
    marked = [{"role": "system", "content": "{weights}"}, user]
    assert write(marked) == [{"role": "system", "content": "S. "}, user]


def test_copies_of_a_row_state_their_weights_and_carry_them(processor, tmp_path):
    rows = [toy.row(prompt=PROMPT, id="one"), toy.row(prompt=PROMPT, id="two")]
    data = source(
        tmp_path, processor, rows, {**VECTORS, "text": "{weights} ", "item": "{weight} {axis}"}
    )
    assert [example.id for example in data] == ["one/0", "one/1", "two/0", "two/1"]
    assert [example.number for example in data] == [1, 1, 2, 2]
    for pair in ((0, 1), (2, 3)):
        said = [data[row].preference.tolist() for row in pair]
        assert sorted(said) == [[0.25, 0.75], [1.0, 0.0]]
        # The toy tokenizer knows none of "1.00 correctness, 0.00 grounding".
        unknown = [data[row].prompts[0].tolist().count(toy.WORDS.index("<unk>")) for row in pair]
        assert unknown == [4, 4]
    counts = data.prepared.counts
    assert (counts.rows, counts.kept, counts.copies, counts.distinct_images) == (2, 4, 2, 1)
    batch, rows = next(loading.batches(data, loading.plan(data, batch_size=6), toy.media))
    for b, row in enumerate(rows):
        expected = data[row].preference if row >= 0 else [0, 0]
        np.testing.assert_array_equal(batch.labels.preference[b], expected)
    np.testing.assert_array_equal(
        data.index["preference"], [example.preference for example in data]
    )
    table = audit.table(data.prepared, loading.plan(data, batch_size=2))
    assert "copies of each, with weights in the prompt" in table


def test_draws_depend_on_seed_row_and_copy_alone(processor, tmp_path):
    rows = [toy.row(prompt=PROMPT) for _ in range(3)]

    def drawn(name, rows, **values):
        (tmp_path / name).mkdir()
        return source(tmp_path / name, processor, rows, {**DIRICHLET, **values}).index["preference"]

    first = drawn("a", rows)
    assert len(np.unique(first, axis=0)) > 4  # of 101 that have two digits
    np.testing.assert_array_equal(drawn("b", rows[:2]), first[:4])
    assert not np.array_equal(drawn("c", rows, seed=1), first)


def test_without_weights_labels_and_rows_are_as_ever(processor, tmp_path):
    data = source(tmp_path, processor, [toy.row()], {})
    batch, _ = next(loading.batches(data, loading.plan(data, batch_size=1), toy.media))
    assert batch.labels.preference is None
    assert data.index["preference"].shape == (1, 0)


def test_the_prepared_data_depend_on_the_draw(processor, tmp_path):
    rows = [toy.row(prompt=PROMPT)]
    kinds = [{}, DIRICHLET, {**DIRICHLET, "seed": 1}, {**DIRICHLET, "join": "; "}]
    made = [source(tmp_path, processor, rows, values).prepared.directory for values in kinds]
    assert len(set(made)) == 4


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"prompt: does not say where .* write \{weights\} there"),
        (
            {
                "prompt": [{"role": "user", "content": [{"type": "image"}]}],
                "chosen": [{"role": "assistant", "content": "red"}],
                "rejected": [{"role": "assistant", "content": "blue"}],
            },
            "prompt: has no text in its last user message",
        ),
    ],
)
def test_a_prompt_without_a_place_is_an_error(processor, tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"prefs.jsonl:1: {message}"):
        source(tmp_path, processor, [toy.row(**row)], DIRICHLET)


@pytest.mark.parametrize(
    ("values", "axes", "message"),
    [
        (DIRICHLET, (), "name them in config.data.axes"),
        ({"draw": "dirichlett"}, AXES, "Unknown draw 'dirichlett'.* Did you mean 'dirichlet'"),
        ({"copies": 2}, AXES, "Unknown draw ''"),
        ({**DIRICHLET, "concentration": 0.0}, AXES, "concentration is 0.0"),
        ({**DIRICHLET, "least": 0.6}, AXES, "least is 0.6; 2 axes leave at most 0.5"),
        ({**DIRICHLET, "copies": 0}, AXES, "copies is 0"),
        ({**DIRICHLET, "copys": 2}, AXES, "no knob 'copys'"),
        ({**DIRICHLET, "text": "weights"}, AXES, r"text must hold \{weights\}"),
        ({**DIRICHLET, "item": "{axis}"}, AXES, "item"),
        ({"draw": "choice", "vectors": []}, AXES, r"vectors is \[\]"),
        ({"draw": "choice", "vectors": [[1, 0, 0]]}, AXES, "list of 2 numbers >= 0 each"),
        ({"draw": "choice", "vectors": [[0, 0]]}, AXES, "each needs a finite weight > 0"),
    ],
)
def test_wrong_settings_are_named(values, axes, message):
    with pytest.raises(ValueError, match=rf"config\.data\.weights.*{message}"):
        bind(values, axes)


def test_prompts_alone_are_read_as_they_are():
    assert conditioning.bind(DIRICHLET, types.PROMPTS, AXES) is None
