"""Prompts of a context's own: what is read, which pictures go with them, what is refused."""

import pytest

from rubric_jax import types
from rubric_jax.data import audit, loading, reading
from tests.data import toy

BRANCHES = ("chosen", "rejected", "chosen@other")
MINE = "USER: <image> how many ? ASSISTANT:"


def source(folder, processor, rows, branches=BRANCHES, **settings):
    path = toy.write(folder, rows)
    return loading.open(
        toy.prepare(path, folder / "cache", processor, branches=branches, **settings)
    )


def prompts(example):
    return [ids.tolist() for ids in example.prompts]


def test_a_context_reads_its_own_prompt_or_that_of_the_row(processor, tmp_path):
    first, second = source(tmp_path, processor, [toy.row(other_prompt=MINE), toy.row()])
    clean = toy.ids("USER: <image>*4 what is this ? ASSISTANT:")
    assert prompts(first) == [clean, toy.ids("USER: <image>*4 how many ? ASSISTANT:")]
    assert prompts(second) == [clean, clean]
    assert first.images == ((0,), (0,))


def test_its_pictures_are_its_own_column_or_those_of_the_row(processor, tmp_path):
    rows = [
        toy.row(other_prompt=MINE, other_images=["1.png"]),
        toy.row(other_prompt="USER: how many ? ASSISTANT:", other_images=[]),
        toy.row(other_prompt=MINE),
        toy.row(),
    ]
    data = source(tmp_path, processor, rows)
    assert [example.images for example in data] == [
        ((0,), (1,)), ((0,), ()), ((0,), (0,)), ((0,), (0,)),
    ]  # fmt: skip
    counts = data.prepared.counts
    assert counts.prompts == {"other": 3}
    assert counts.contexts == {"other": {"column": 2, "shared": 1, "own": 1}}
    assert counts.fell_back == 1
    text = audit.table(data.prepared, loading.plan(data, batch_size=2))
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "prompts of other: from a column 3" in lines
    assert "images of other: the row's own, under a prompt of the context's own 1" in lines


def test_messages_are_rendered_under_each_prompt(processor, tmp_path):
    row = toy.row(
        prompt=[{"role": "user", "content": "what is this ?"}],
        other_prompt=[
            {"role": "user", "content": "how many ?"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "circle ?"},
        ],
        chosen=[{"role": "assistant", "content": "yes ."}],
        rejected=[{"role": "assistant", "content": "no ."}],
    )
    (example,) = source(tmp_path, processor, [row])
    words = "USER: <image>*4 how many ? ASSISTANT: two </s> USER: circle ? ASSISTANT:"
    assert prompts(example)[1] == toy.ids(words)
    assert [ids.tolist() for ids in example.responses] == [
        toy.ids("yes . </s>"),
        toy.ids("no . </s>"),
        toy.ids("yes . </s>"),
    ]


def test_made_pictures_and_own_prompts_go_together(processor, tmp_path):
    rows = [toy.row(other_prompt="USER: <image> how many ?")]
    (example,) = source(tmp_path, processor, rows, contexts={"other": {"corruption": "drop"}})
    # The placeholder of the picture that is left out leaves the context's own prompt.
    assert prompts(example)[1] == toy.ids("USER: how many ?")
    assert example.images == ((0,), ())


def test_content_keys_cover_the_prompt_of_the_context(processor, tmp_path):
    rows = [toy.row(other_prompt=MINE), toy.row(), toy.row(prompt=MINE)]
    keys = [example.keys for example in source(tmp_path, processor, rows)]
    assert keys[0][0] == keys[1][0] == keys[1][2]
    assert keys[0][2] != keys[0][0]
    assert keys[0][2] == keys[2][0]


def test_a_long_prompt_of_a_context_drops_its_row(processor, tmp_path):
    rows = [toy.row(), toy.row(other_prompt=MINE + " what" * 20)]
    counts = source(tmp_path, processor, rows, max_prompt=20).prepared.counts
    assert counts.dropped == {"long prompt": 1}
    assert "prefs.jsonl:2: other_prompt: has 29 tokens" in counts.examples["long prompt"][0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"other_prompt": "USER: how many ?"},
            r"other_prompt: 1 image\(s\) for 0 placeholder\(s\).* reads the images of the "
            r"column 'images'; `other_images` gives it others \(\[\] = none\)",
        ),
        (
            {"other_prompt": MINE, "other_images": []},
            r"other_prompt: 0 image\(s\) for 1 placeholder\(s\).* column 'other_images'",
        ),
        ({"other_images": ["0.png", "1.png"]}, r"other_images: 2 image\(s\) for 1 placeholder"),
        ({"other_prompt": ""}, "other_prompt: is empty; write a prompt"),
        ({"other_prompt": 3}, "other_prompt: is int 3; it must be text or a list of messages"),
        (
            {"other_prompt": [{"role": "user", "content": "how many ?"}]},
            "other_prompt: must be in the form of the row's prompt",
        ),
    ],
)
def test_what_does_not_fit_names_the_row_and_the_column(processor, tmp_path, columns, message):
    with pytest.raises(ValueError, match=rf"prefs.jsonl:2: {message}"):
        source(tmp_path, processor, [toy.row(), toy.row(**columns)])


def test_a_prompt_of_a_context_that_no_branch_reads_is_reported(tmp_path):
    path = toy.write(tmp_path, [toy.row(other_prompt=MINE, clean_prompt=MINE)])
    (row,) = reading.rows(path, "train", layout=types.Layout.of(("chosen", "rejected")))
    assert row.unread == {"other_prompt", "clean_prompt"}
