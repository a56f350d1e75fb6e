"""Spans of responses: which tokens they weigh, through templates, cuts and batches."""

import numpy as np
import pytest

from rubric_jax import types
from rubric_jax.data import audit, loading, processing, reading, spans
from tests.data import toy

OUT = types.OUTSIDE
#         a red circle and a blue square .
OFFSETS = np.array([[0, 1], [1, 5], [5, 12], [12, 16], [16, 18], [18, 23], [23, 30], [30, 32]])
TEXT = "a red circle and a blue square ."


def said(text):
    return [{"role": "assistant", "content": text}]


def weigh(entries, name="", offsets=OFFSETS, text=TEXT):
    return spans.weights(spans.read("chosen_spans", entries, text), name, offsets).tolist()


def source(folder, processor, rows, **settings):
    return loading.open(
        toy.prepare(toy.write(folder, rows), folder / "cache", processor, **settings)
    )


def given(example, branch, name=""):
    return example.spans[name][branch].tolist()


def test_a_token_that_shares_a_character_with_a_span_has_its_weight():
    assert weigh([{"start": 2, "end": 5, "weight": 3.0}]) == [OUT, 3, OUT, OUT, OUT, OUT, OUT, OUT]
    # "ed cir" covers parts of two tokens.
    assert weigh([{"start": 3, "end": 9, "weight": 0.5}])[:4] == [OUT, 0.5, 0.5, OUT]
    assert weigh([]) == [OUT] * 8


def test_white_space_at_the_ends_of_a_span_reaches_no_neighbour():
    # These tokens begin with the space before the word, as those of most checkpoints.
    assert weigh([{"start": 1, "end": 6, "weight": 3.0}])[:3] == [OUT, 3, OUT]  # " red "
    assert weigh([{"start": 1, "end": 2, "weight": 3.0}])[:3] == [OUT, 3, OUT]  # " " alone


def test_of_several_spans_the_last_has_the_token():
    outer, inner = {"start": 0, "end": 12, "weight": 2.0}, {"start": 2, "end": 5, "weight": 0.0}
    assert weigh([outer, inner])[:4] == [2, 0, 2, OUT]
    assert weigh([inner, outer])[:4] == [2, 2, 2, OUT]


def test_a_text_stands_for_every_occurrence_and_names_keep_kinds_apart():
    entries = [{"text": "a ", "weight": 2.0}, {"text": "red", "name": "colour"}]
    assert weigh(entries) == [2, OUT, OUT, OUT, 2, OUT, OUT, OUT]
    assert weigh(entries, "colour") == [OUT, 1, OUT, OUT, OUT, OUT, OUT, OUT]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"start": 0, "end": 2}, r"chosen_spans: is \{.*must be a list"),
        ([{"start": 4, "end": 4}], r"chosen_spans\[0\]: runs from 4 to 4; .* <= 14"),
        ([{"start": 0, "end": 15}], r"chosen_spans\[0\]: runs from 0 to 15"),
        ([{"start": -1, "end": 2}], r"runs from -1 to 2"),
        ([{"start": 0}], r"start and end are \(0, None\)"),
        ([{"text": "red"}, {"text": "green"}], r"chosen_spans\[1\]: the text 'green' does not"),
        ([{"text": "red", "start": 0}], "must have a text, or start and end"),
        ([{"text": "red", "weight": -1}], r"weight is -1; it must be finite and >= 0"),
        ([{"text": "red", "weight": float("nan")}], "weight is nan"),
        ([{"text": "red", "weight": "2"}], "weight is '2'; it must be a number"),
        ([{"text": "red", "wieght": 2}], "field 'wieght'.* Did you mean 'weight'"),
        ([{"text": "red", "name": 3}], "name is 3; it must be text"),
        (["red"], "is 'red'; a span is"),
    ],
)
def test_a_bad_span_names_file_row_and_entry(tmp_path, entries, message):
    path = toy.write(tmp_path, [toy.row(), toy.row(chosen_spans=entries)])
    with pytest.raises(ValueError, match=rf"prefs.jsonl:2: .*{message}"):
        list(reading.rows(path, "train", layout=types.Layout.of(("chosen", "rejected"))))


def test_strings_and_messages_weigh_the_same_words(processor, tmp_path):
    marks = {"chosen_spans": [{"text": "circle", "weight": 3.0}]}
    user = [{"role": "user", "content": "what is this ?"}]
    messages = {"prompt": user, "chosen": said("a red circle ."), "rejected": said("none")}
    rows = [toy.row(**marks), toy.row(**messages, **marks), toy.row()]
    plain, rendered, without = source(tmp_path, processor, rows)
    assert given(plain, 0) == [OUT, OUT, 3, OUT]
    assert given(plain, 1) == [OUT] * 4
    assert rendered.responses[0].tolist() == toy.ids("a red circle . </s>")
    assert given(rendered, 0) == [OUT, OUT, 3, OUT, OUT]
    assert without.spans == {}


def test_spans_count_in_the_last_assistant_message(processor, tmp_path):
    turns = [*said("a circle"), {"role": "user", "content": "how many ?"}, *said("one circle .")]
    row = toy.row(
        prompt=[{"role": "user", "content": "what is this ?"}],
        chosen=turns,
        rejected=said("none"),
        chosen_spans=[{"start": 4, "end": 10, "weight": 2.0}],
    )
    (example,) = source(tmp_path, processor, [row])
    words = "a circle </s> USER: how many ? ASSISTANT: one circle . </s>"
    assert example.responses[0].tolist() == toy.ids(words)
    assert given(example, 0) == [OUT] * 9 + [2, OUT, OUT]


def test_a_text_that_also_ends_the_template_is_found_in_the_message(processor):
    user = [{"role": "user", "content": "what ?"}]
    # The end mark </s> holds the letter s as well.
    found = processor.offsets("chosen", user, {"chosen": said("s")}, [])
    assert found.tolist() == [[0, 1], [2, 6]]


def test_a_template_that_strips_keeps_the_count(tmp_path):
    toy.processor(toy.TEMPLATE.replace("c['text']", "c['text'] | trim")).save_pretrained(tmp_path)
    strips = processing.load(str(tmp_path))
    user = [{"role": "user", "content": "what ?"}]
    found = strips.offsets("chosen", user, {"chosen": said("  red circle ")}, [])
    assert found[:2].tolist() == [[2, 5], [6, 12]]


def test_a_template_that_changes_the_text_is_refused(tmp_path):
    toy.processor(toy.TEMPLATE.replace("c['text']", "c['text'] | upper")).save_pretrained(tmp_path)
    shouts = processing.load(str(tmp_path))
    user = [{"role": "user", "content": "what ?"}]
    with pytest.raises(processing.FieldError, match="chosen_spans: cannot be found"):
        shouts.offsets("chosen", user, {"chosen": said("red")}, [])


def test_spans_behind_the_cut_are_counted_and_the_table_shows_them(processor, tmp_path):
    marks = [{"text": "a red", "weight": 2.0}, {"text": ".", "name": "end"}]
    rows = [toy.row(chosen_spans=marks), toy.row()]
    data = source(tmp_path, processor, rows, max_response=3)
    counts = data.prepared.counts
    assert (counts.spans, counts.cut_spans) == ({"": 1, "end": 1}, 1)
    assert given(data[0], 0) == [2, 2, OUT]
    assert given(data[0], 0, "end") == [OUT] * 3
    text = audit.table(data.prepared, loading.plan(data, batch_size=2))
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    for expected in ("with spans 1", "with spans end 1", "spans that no token is left of 1"):
        assert expected in lines


def test_a_branch_may_have_spans_of_its_own(processor, tmp_path):
    row = toy.row(
        chosen_spans=[{"text": "red", "weight": 2.0}],
        **{"chosen@corrupted_spans": [{"text": "circle", "weight": 4.0}]},
        corrupted_images=["1.png"],
    )
    (example,) = source(tmp_path, processor, [row], branches=("chosen", "chosen@corrupted"))
    assert given(example, 0) == [OUT, 2, OUT, OUT]
    assert given(example, 1) == [OUT, OUT, 4, OUT]


def test_batches_carry_the_spans_that_are_asked_for(processor, tmp_path):
    rows = [toy.row(chosen_spans=[{"text": "red", "weight": 2.0}]), toy.row()]
    data = source(tmp_path, processor, rows)
    plan = loading.plan(data, batch_size=3, shuffle=False)
    (plain, _), (batch, _) = (
        next(loading.batches(data, plan, toy.media, spans=names)) for names in ((), ("",))
    )
    assert plain.spans is None
    table = batch.spans[""]
    assert table.shape == batch.mask.shape
    assert table.dtype == np.float32
    assert np.argwhere(table != OUT).tolist() == [[0, 0, 1]]
    assert table[0, 0, 1] == 2
    np.testing.assert_array_equal(batch.mask, plain.mask)


def test_differing_words_by_hand():
    Span = spans.Span
    assert spans.differing("a red cup", "a blue cup .") == (
        [Span(2, 5, 1, "")],
        [Span(2, 6, 1, ""), Span(11, 12, 1, "")],
    )
    assert spans.differing("one", "one") == ([], [])
    # Punctuation is a word of its own; several words in a row are one span.
    assert spans.differing("Two cups.", "Two big cups, red.") == (
        [],
        [Span(4, 7, 1, ""), Span(12, 17, 1, "")],
    )


def test_differences_are_spans_of_rows_that_have_none(processor, tmp_path):
    user = [{"role": "user", "content": "what is this ?"}]
    rows = [
        toy.row(),
        toy.row(prompt=user, chosen=said("a red circle ."), rejected=said("a red square .")),
        toy.row(rejected_spans=[{"text": "square", "weight": 2.0}]),
    ]
    path = toy.write(tmp_path, rows)
    settings = {"branches": ("chosen", "rejected", "chosen@corrupted")}
    prepared = toy.prepare(
        path, tmp_path / "cache", processor, differences=("chosen", "rejected"), **settings
    )
    plain, messages, own = loading.open(prepared)
    assert given(plain, 0) == given(plain, 1) == given(plain, 2) == [OUT, 1, 1, OUT]
    assert given(messages, 0) == given(messages, 1) == [OUT, OUT, 1, OUT, OUT]
    assert (given(own, 0), given(own, 1)) == ([OUT] * 4, [OUT, OUT, 2, OUT])
    assert toy.prepare(path, tmp_path / "cache", processor, **settings).counts.spans == {"": 1}


@pytest.mark.parametrize("names", [("chosen", "edited"), ("chosen",), ("chosen", "chosen")])
def test_differences_need_two_responses(processor, tmp_path, names):
    path = toy.write(tmp_path, [toy.row()])
    with pytest.raises(ValueError, match=r"config\.data\.differences is \('chosen',"):
        toy.prepare(path, tmp_path / "cache", processor, differences=names)


def test_every_process_has_the_spans_of_its_rows(processor, tmp_path):
    marks = [[{"text": "red", "weight": 2.0}], [], [], [{"text": "circle", "weight": 4.0}]]
    data = source(tmp_path, processor, [toy.row(chosen_spans=spans) for spans in marks])
    plan = loading.plan(data, batch_size=4, groups=2, shuffle=False)
    parts = [
        next(loading.batches(data, plan, toy.media, process=p, processes=2, spans=[""]))[0]
        for p in range(2)
    ]
    whole, _ = next(loading.batches(data, plan, toy.media, spans=[""]))
    np.testing.assert_array_equal(
        np.concatenate([part.spans[""] for part in parts]), whole.spans[""]
    )
    assert (parts[1].spans[""][1, 0, :4]).tolist() == [OUT, OUT, 4, OUT]


def test_spans_change_no_content_key_but_the_prepared_data(processor, tmp_path):
    plain, marked = (
        toy.prepare(
            toy.write(tmp_path, [toy.row(**columns)], name=f"{len(columns)}.jsonl"),
            tmp_path / "cache",
            processor,
        )
        for columns in ({}, {"chosen_spans": [{"text": "red"}]})
    )
    assert plain.directory != marked.directory
    assert plain.keys([0]) == marked.keys([0])
