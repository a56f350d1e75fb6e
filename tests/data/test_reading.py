"""Rows from every kind of source, and the message for every kind of bad row."""

import io
import json

import datasets
import pytest

from rubric_jax import types
from rubric_jax.data import images, reading
from tests.data import toy

PAIR = types.Layout.of(("chosen", "rejected"))


def read(path, layout=PAIR, split="train", **settings):
    return list(reading.rows(str(path), split, layout=layout, **settings))


def png(seed):
    buffer = io.BytesIO()
    toy.picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def said(role, content):
    return {"role": role, "content": content}


def test_json_lines(tmp_path):
    path = toy.write(tmp_path, [toy.row(), toy.row(id="second", weight=2, margin=-0.5)])
    first, second = read(path)
    assert (first.id, first.number, first.weight, first.margin) == ("1", 1, 1.0, 0.0)
    assert (second.id, second.number, second.weight, second.margin) == ("second", 2, 2.0, -0.5)
    assert first.prompt == toy.row()["prompt"]
    assert first.responses == {"chosen": "a red circle .", "rejected": "a blue square ."}
    assert first.images["clean"] == (images.Ref(path=str(tmp_path / "0.png")),)
    assert (first.axis, first.rewards["chosen"], first.unread) == (None, {}, frozenset())


def test_json_lists_parquet_and_saved_datasets_read_the_same(tmp_path):
    rows = [toy.row(id=f"r{i}", images=[f"{i}.png"]) for i in range(3)]
    expected = read(toy.write(tmp_path, rows))
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(tmp_path / "rows.parquet")
    for name in ("list.json", "lines.json", "rows.parquet"):
        found = read(tmp_path / name)
        assert [(row.id, row.number, row.prompt, row.responses, row.images) for row in found] == [
            (row.id, row.number, row.prompt, row.responses, row.images) for row in expected
        ]
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=data.select([0]), test=data).save_to_disk(tmp_path / "splits")
    assert [row.id for row in read(tmp_path / "one")] == ["r0", "r1", "r2"]
    assert [row.id for row in read(tmp_path / "splits", split="test")] == ["r0", "r1", "r2"]
    with pytest.raises(ValueError, match=r"no split 'tst'.*Did you mean 'test'"):
        read(tmp_path / "splits", split="tst")


def test_images_as_pil_bytes_and_structs(tmp_path):
    row = toy.row(images=[toy.picture(1), toy.picture(2)])
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("prompt", "chosen", "rejected")},
            "images": datasets.List(datasets.Image()),
        }
    )
    datasets.Dataset.from_list([row], features=features).save_to_disk(tmp_path / "saved")
    (found,) = read(tmp_path / "saved")
    stored = [images.decode(images.read(ref)) for ref in found.images["clean"]]
    assert [image.tobytes() for image in stored] == [
        toy.picture(1).tobytes(),
        toy.picture(2).tobytes(),
    ]
    raw = {**toy.row(images=None), "image": {"bytes": png(1), "path": None}}
    datasets.Dataset.from_list([raw]).to_parquet(tmp_path / "raw.parquet")
    (found,) = read(tmp_path / "raw.parquet")
    assert found.images["clean"] == (images.Ref(data=png(1)),)
    assert found.image_field["clean"] == "image"


def test_messages_lose_the_nulls_that_arrow_adds(tmp_path):
    block = {"type": "image", "text": None}
    prompt = [said("user", [block, {"type": "text", "text": "what is this ?"}])]
    row = toy.row(
        prompt=prompt, chosen=[said("assistant", "red")], rejected=[said("assistant", "blue")]
    )
    (found,) = read(toy.write(tmp_path, [row]))
    assert found.prompt[0]["content"][0] == {"type": "image"}


def test_an_implicit_prompt_is_the_common_beginning(tmp_path):
    turns = [said("user", "what is this ?"), said("assistant", "a circle"), said("user", "how ?")]
    row = toy.row(
        chosen=[*turns, said("assistant", "red")], rejected=[*turns, said("assistant", "blue")]
    )
    del row["prompt"]
    (found,) = read(toy.write(tmp_path, [row]))
    assert found.prompt == turns
    assert found.responses == {
        "chosen": [said("assistant", "red")],
        "rejected": [said("assistant", "blue")],
    }
    # A prompt in words beside whole conversations is the same thing said twice, as in TRL.
    (found,) = read(toy.write(tmp_path, [{**row, "prompt": "how ?"}]))
    assert found.prompt == turns


def test_the_layout_says_what_is_read(tmp_path):
    path = toy.write(tmp_path, [toy.row(rejected=None, response_3="a circle")])
    (row,) = read(path, types.Layout.of(("chosen", "response_3")))
    assert list(row.responses) == ["chosen", "response_3"]
    (row,) = read(path, types.Layout.of(("chosen",)))
    assert row.unread == {"response_3"}
    with pytest.raises(ValueError, match=r"prefs.jsonl:1: rejected: is missing; .*branches"):
        read(path)


def test_the_corrupted_context_reads_other_images(tmp_path):
    layout = types.Layout.of(("chosen", "rejected@corrupted"))
    path = toy.write(tmp_path, [toy.row(rejected_images=["1.png"]), toy.row()])
    other, own = read(path, layout)
    assert [ref.path for ref in other.images["corrupted"]] == [str(tmp_path / "1.png")]
    assert [ref.path for ref in other.images["clean"]] == [str(tmp_path / "0.png")]
    assert other.fallback == ()
    assert own.images["corrupted"] == own.images["clean"]
    assert own.fallback == ("corrupted",)


def test_rewards_by_axis(tmp_path):
    row = toy.row(
        chosen_rewards={"grounding": 1, "format": 0.5},
        rejected_rewards={"grounding": 0.25, "format": None},
        axis="format",
    )
    path = toy.write(tmp_path, [row])
    (found,) = read(path, axes=("grounding", "format"))
    assert found.rewards == {
        "chosen": {"grounding": 1.0, "format": 0.5},
        "rejected": {"grounding": 0.25},
    }
    assert found.axis == "format"
    (found,) = read(path)
    assert found.unread == {"chosen_rewards", "rejected_rewards", "axis"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ""}, "prompt: the row has neither a prompt nor messages"),
        ({"prompt": 3}, "prompt: is int 3; it must be text or a list of messages"),
        ({"chosen": 3.5}, "chosen: is float 3.5; it must be text"),
        ({"chosen": [{"content": "a"}]}, "chosen: holds {'content': 'a'}; a message is"),
        ({"rejected": None}, "rejected: is missing"),
        ({"weight": float("nan")}, "weight: is nan; it must be finite"),
        ({"weight": -1}, "weight: is -1.0; a weight must be at least 0"),
        ({"weight": "1"}, "weight: is '1'; it must be a number"),
        ({"margin": float("inf")}, "margin: is inf; it must be finite"),
        (
            {"chosen_rewards": {"grounding": float("nan")}},
            "chosen_rewards.grounding: is nan; it must be finite",
        ),
        (
            {"chosen_rewards": {"grounding": 7}},
            "chosen_rewards.grounding: is 7; rewards are in [0, 1]",
        ),
        (
            {"rejected_rewards": {"groundin": 0.5}},
            "rejected_rewards: 'groundin' is not an axis of config.data.axes: one of grounding, "
            "format. Did you mean 'grounding'?",
        ),
        ({"chosen_rewards": 0.5}, "chosen_rewards: is 0.5; it must map axes to numbers"),
        (
            {"axis": "grounded"},
            "axis: 'grounded' is not an axis of config.data.axes: one of grounding, format. "
            "Did you mean 'grounding'?",
        ),
        ({"image": "0.png"}, "image: the row has both `image` and `images`"),
        ({"images": [5]}, "images: an image is int; it must be a path"),
        ({"images": ["https://x.org/a.png"]}, "is an address; download the image"),
    ],
)
def test_bad_rows_name_file_row_and_field(tmp_path, columns, message):
    path = toy.write(tmp_path, [toy.row(), toy.row(**columns)])
    if columns.get("rejected", 0) is None:
        path = toy.write(tmp_path, [toy.row(), {**toy.row(), "rejected": None}])
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is checked below)
        read(path, axes=("grounding", "format"))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)


def test_conversations_without_a_common_turn(tmp_path):
    row = toy.row(
        prompt=None,
        chosen=[said("user", "how ?"), said("assistant", "a")],
        rejected=[said("user", "what ?"), said("assistant", "a")],
    )
    with pytest.raises(ValueError, match=r":1: chosen: shares no first turn with rejected"):
        read(toy.write(tmp_path, [row]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"a\.jsonl:2: not JSON at line"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: the row is list"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
        ("a.json", b"[{]", r"a\.json: not JSON at line 1"),
        ("a.json", b'"a"', r"a\.json: holds str; it must be a list"),
        ("a.parquet", b"no", r"a\.parquet: not a Parquet file"),
        ("a.csv", b"prompt", r"unknown kind of file '\.csv'; it must be JSON Lines"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name, types.Layout.of(("prompt",)))


def test_data_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="No data at"):
        read(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="a directory that `datasets` did not save"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no hub data set of that name can be fetched"):
        read("nobody/has-this")


def test_paths_may_leave_the_data_directory_unless_confined(tmp_path):
    toy.picture(0).save(tmp_path / "outside.png")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    inside = toy.write(folder, [toy.row()])
    read(inside, confine=True)
    for name in ("../outside.png", str(tmp_path / "outside.png"), "link.png"):
        path = toy.write(folder, [toy.row(images=[name])])
        read(path)
        with pytest.raises(ValueError, match=r":1: images: .* leaves the data directory"):
            read(path, confine=True)
