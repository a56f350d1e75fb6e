import json

import pandas as pd
import pytest

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data import instructions, loading, planning, preparing, processing, scenes


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    scenes.write(root / "data", demos=0, pairs=6, heldout=0)
    scenes.write_processor(root / "model")
    rows = []
    for line in (root / "data" / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.append({name: row[name] for name in ("id", "prompt", "images")})
    return root, rows


def _write(root, rows, name="pool.jsonl"):
    path = root / "data" / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_row_has_its_text_and_the_key_of_its_content(pool):
    root, rows = pool
    rows = [dict(rows[0], answer=2, reference="two .", facts={"a": 1}, source="s"), rows[1]]
    first, second = instructions.read(_write(root, rows))
    assert first.text == rows[0]["prompt"][0]["content"][1]["text"]
    assert (first.answer, first.reference, first.facts, first.source) == (
        "2",
        "two .",
        {"a": 1},
        "s",
    )
    assert second.answer == ""
    assert second.facts is None
    assert first.key == first.instance().key != second.key
    picture = (root / "data" / rows[0]["images"][0]).read_bytes()
    assert first.instance().images == (picture,)


@pytest.mark.parametrize(
    ("answer", "text"),
    [(0, "0"), (0.0, "0"), (2.0, "2"), (2.5, "2.5"), (float("nan"), ""), (None, ""), ("", "")],
)
def test_numbers_are_answers_too(pool, answer, text):
    root, rows = pool
    (found,) = instructions.read(_write(root, [dict(rows[0], answer=answer)]))
    assert found.answer == text


def test_a_column_of_numbers_with_gaps_keeps_its_numbers(pool):
    root, rows = pool
    frame = pd.DataFrame([dict(rows[0], answer=0), dict(rows[1], answer=None)])
    frame.to_parquet(root / "data" / "pool.parquet")
    found = list(instructions.read(str(root / "data" / "pool.parquet")))
    assert [task.answer for task in found] == ["0", ""]


def test_several_turns_are_told_apart():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    assert instructions.words(turns) == "system: Be brief.\nuser: Hi?"
    assert instructions.words("<image>\nWhat is it?") == "What is it?"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": "one"}, r"pool.jsonl:1: candidates: is 'one'; it must be a list"),
        ({"answer": ["a"]}, r"pool.jsonl:1: answer: is \['a'\]; it must be text"),
        ({"facts": "x"}, r"pool.jsonl:1: facts: is 'x'"),
        ({"facts": 0}, r"pool.jsonl:1: facts: is 0"),
        ({"prompt": None}, r"pool.jsonl:1: prompt: the row has neither"),
        ({"images": ["no.png"]}, r"pool.jsonl:1: images: no image at"),
    ],
)
def test_bad_rows_name_file_row_and_field(pool, change, message):
    root, rows = pool
    with pytest.raises(ValueError, match=message):
        _ = [i.key for i in instructions.read(_write(root, [rows[0] | change]))]


def test_ids_must_differ(pool):
    root, rows = pool
    with pytest.raises(ValueError, match=r"pool.jsonl:2: id: .* is the id of row 1 too"):
        list(instructions.read(_write(root, [rows[0], rows[0]])))


def test_prompts_alone_are_prepared_and_batched(pool, tmp_path):
    root, rows = pool
    path = _write(root, rows)
    processor = processing.load(str(root / "model"))
    prepared = preparing.prepare(
        config_lib.Data(),
        types.PROMPTS,
        processor,
        path=path,
        split="train",
        cache_dir=str(tmp_path),
    )
    source = loading.open(prepared)
    assert list(prepared.index["id"]) == [row["id"] for row in rows]
    plan = planning.plan(source, batch_size=4, shuffle=False)
    media = lambda prompts, tables, slots, size, cells: {"count": len(tables[0])}  # noqa: E731
    (batch, numbers), (_, last) = loading.batches(source, plan, media, stop=2)
    assert batch.prompts.shape[:2] == (4, 1)
    assert batch.responses.shape[:2] == (4, 0)
    # The prompt ends where the assistant begins.
    text = processor.decode(batch.prompts[0, 0, : batch.prompt_lengths[0, 0]], special=True)
    assert text.split()[-1] == "<assistant>"
    assert list(last) == [4, 5, -1, -1]
    assert list(numbers) == [0, 1, 2, 3]
