"""The audit's table."""

from rubric_jax.data import audit, loading
from tests.data import toy


def test_the_table_shows_rows_drops_lengths_and_shapes(processor, tmp_path):
    rows = [
        *[toy.row(chosen="red " * (i + 1)) for i in range(8)],
        toy.row(chosen=""),
        toy.row(chosen="a", rejected="a", note="mine"),
        toy.row(chosen="red " * 200),
    ]
    path = toy.write(tmp_path, rows)
    prepared = toy.prepare(path, tmp_path / "cache", processor, max_response=60)
    plan = loading.plan(prepared, batch_size=4, buckets=2)
    text = audit.table(prepared, plan, title="prefs", lines=["memory: 3 GB"])
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert lines[0] == "prefs"
    for expected in (
        "read 11",
        "dropped: empty response 1",
        "dropped: identical responses 1",
        "kept 9",
        "responses cut 1",
        "images, distinct 9, 1",
        "columns that nothing reads: note",
        f"dropped: {path}:9: chosen: is empty; write a response.",
        "batches of 4 rows",
        "16 x 16 4 per group 8 2 61%",  # 8 * 10 + 36 + 8 * 4 tokens of 8 * 48
        "16 x 64 1 per group 1 1 87%",  # 10 + 60 + 4 tokens of 4 * 144
        "compilations of the step to expect: 2 (one per shape)",
        "memory: 3 GB",
    ):
        assert expected in lines, text
    assert "without rewards on every axis" not in text


def test_padding_is_the_share_of_tokens_that_are_none(processor, tmp_path):
    # 10 prompt tokens in 16; 4 and 4 response tokens in 16 and 16; one row of two is padding.
    prepared = toy.prepare(toy.write(tmp_path, [toy.row()]), tmp_path / "cache", processor)
    ((rows, batches, padding),) = audit.shapes(prepared, loading.plan(prepared, batch_size=2))
    assert (rows, batches) == (1, 1)
    assert padding == 1 - 18 / 96
