"""Preparation: what is stored, what is dropped, what is refused, and what survives."""

import errno
import glob
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import pytest

from rubric_jax import config, types
from rubric_jax.data import loading, preparing, processing, records
from tests.data import toy

KILLED = """
import os, signal, sys
from rubric_jax.data import processing, records
from tests.data import toy
write = records.write

def killed(directory, kind, stream):
    if kind == "rows":
        os.kill(os.getpid(), signal.SIGKILL)
    write(directory, kind, stream)

records.write = killed
toy.prepare(sys.argv[2], sys.argv[3], processing.load(sys.argv[1]))
"""


def user(content):
    return [{"role": "user", "content": content}]


def assistant(content):
    return [{"role": "assistant", "content": content}]


def source(path, cache, processor, **settings):
    return loading.open(toy.prepare(path, cache, processor, **settings))


def prepared_dirs(cache):
    return sorted(name for name in os.listdir(cache) if not name.startswith("."))


def test_a_row_is_stored_as_it_was_read(processor, tmp_path):
    row = toy.row(
        id="first",
        weight=2.0,
        margin=0.5,
        axis="format",
        chosen_rewards={"grounding": 0.75, "format": 1.0},
        rejected_rewards={"grounding": 0.25, "format": 0.0},
    )
    path = toy.write(tmp_path, [row, toy.row(images=[], prompt="what ?")])
    made = source(path, tmp_path / "cache", processor, axes=("grounding", "format"))
    first, second = made[0], made[1]
    assert first.prompts[0].tolist() == toy.ids("USER: <image>*4 what is this ? ASSISTANT:")
    assert [ids.tolist() for ids in first.responses] == [
        toy.ids("a red circle ."),
        toy.ids("a blue square ."),
    ]
    assert (first.id, first.number, first.weight, first.margin) == ("first", 1, 2.0, 0.5)
    np.testing.assert_array_equal(first.rewards, np.float32([[0.75, 1.0], [0.25, 0.0]]))
    assert (first.has_rewards, first.axis, first.images) == (True, 1, ((0,),))
    assert (second.id, second.number, second.has_rewards, second.images) == ("2", 2, False, ((),))
    assert np.array_equal(np.asarray(made.image(0)), np.asarray(toy.picture(0)))
    assert made.prepared.counts.unrewarded == 1


def test_images_are_stored_once_as_the_bytes_they_came_in(processor, tmp_path):
    rows = [toy.row(images=["0.png"]), toy.row(images=["copy.png"]), toy.row(images=["1.png"])]
    path = toy.write(tmp_path, rows)
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    made = source(path, tmp_path / "cache", processor)
    assert [made[i].images for i in range(3)] == [((0,),), ((0,),), ((1,),)]
    stored = records.read(made.prepared.directory, "images")
    assert [stored[i]["data"] for i in range(len(stored))] == [
        (tmp_path / name).read_bytes() for name in ("0.png", "1.png")
    ]
    counts = made.prepared.counts
    assert (counts.images, counts.distinct_images) == (3, 2)


def test_unusable_rows_are_dropped_and_counted(processor, tmp_path):
    rows = [
        toy.row(),
        toy.row(chosen=" "),
        toy.row(prompt=user("?"), chosen=assistant(""), rejected=assistant("a")),
        toy.row(chosen="a blue square ."),
        toy.row(prompt="<image> " + "what " * 30),
        toy.row(chosen="a red circle . " * 3, rejected="a red circle . " * 2),
        toy.row(chosen="a red circle . " * 3, rejected="blue " * 12),
    ]
    path = toy.write(tmp_path, rows)
    made = source(path, tmp_path / "cache", processor, max_prompt=20, max_response=6)
    counts = made.prepared.counts
    assert (counts.rows, counts.kept) == (7, 2)
    assert counts.dropped == {"empty response": 2, "identical responses": 2, "long prompt": 1}
    assert counts.examples["empty response"][0].startswith(f"{path}:2: chosen: is empty")
    assert f"{path}:4: rejected: chosen and rejected" in counts.examples["identical responses"][0]
    assert counts.examples["long prompt"][0].startswith(f"{path}:5: prompt: has 34 tokens")
    assert counts.cut == 2
    assert [made[i].number for i in range(2)] == [1, 7]
    assert [len(ids) for ids in made[1].responses] == [6, 6]


def test_responses_that_leave_no_token_are_dropped(checkpoint, tmp_path):
    # A template that forgets the assistant's turn.
    toy.processor(toy.TEMPLATE.replace("{{ c['text'] }} ", "")).save_pretrained(tmp_path / "mute")
    mute = processing.load(str(tmp_path / "mute"))
    template = mute.hf.chat_template.replace("</s>", "").replace("'ASSISTANT: '}[", "''}[")
    mute.hf.chat_template = template.replace(
        "{% if add_generation_prompt %}ASSISTANT: ", "{% if 0 %}"
    )
    row = toy.row(prompt=user("?"), chosen=assistant("a"), rejected=assistant("red"))
    path = toy.write(tmp_path, [row])
    with pytest.raises(ValueError, match="all 1 rows were dropped:\n  1 x fully masked, such as"):
        toy.prepare(path, tmp_path / "cache", mute)


def test_when_nothing_is_left_the_reasons_are_named(processor, tmp_path):
    path = toy.write(tmp_path, [toy.row(chosen=""), toy.row(rejected="")])
    with pytest.raises(
        ValueError, match=r"all 2 rows were dropped:\n  2 x empty response, such as"
    ):
        toy.prepare(path, tmp_path / "cache", processor)
    assert prepared_dirs(tmp_path / "cache") == []
    with pytest.raises(ValueError, match="holds no rows"):
        toy.prepare(toy.write(tmp_path, []), tmp_path / "cache", processor)


def test_lists_of_responses_may_repeat_themselves(processor, tmp_path):
    branches = ("response_0", "response_1", "response_2")
    base = {"prompt": "<image> ?", "images": ["0.png"], "response_0": "red", "response_1": "red"}
    path = toy.write(tmp_path, [{**base, "response_2": "blue"}, {**base, "response_2": "red"}])
    prepared = toy.prepare(path, tmp_path / "cache", processor, branches=branches)
    assert (prepared.counts.kept, prepared.counts.dropped) == (1, {"identical responses": 1})


def test_a_corrupted_context_has_its_own_images(processor, tmp_path):
    branches = ("chosen", "rejected@corrupted", "chosen@corrupted")
    path = toy.write(tmp_path, [toy.row(rejected_images=["1.png"]), toy.row()])
    made = source(path, tmp_path / "cache", processor, branches=branches)
    assert made[0].images == ((0,), (1,))
    assert made[1].images == ((0,), (0,))
    assert made.prepared.counts.fell_back == 1
    assert [len(made[0].prompts), len(made[0].responses)] == [2, 3]
    keys = made[0].keys
    assert len(set(keys)) == 3
    # The same response under the same picture is the same content, whatever the context is called.
    assert made[1].keys[0] == made[1].keys[2] == keys[0]


def test_content_keys_follow_what_determines_the_log_probabilities(processor, tmp_path):
    rows = [
        toy.row(weight=3.0),
        toy.row(),
        toy.row(images=["1.png"]),
        toy.row(prompt="<image> ?"),
        toy.row(chosen="red"),
    ]
    made = source(toy.write(tmp_path, rows), tmp_path / "cache", processor)
    chosen = [made[i].keys[0] for i in range(5)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) == 4
    assert made.prepared.keys([0, 4]) == [*made[0].keys, *made[4].keys]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"images": ["absent.png"]}, {}, "images: image 1: no image at "),
        ({"images": ["0.png", "torn.png"]}, {}, "images: image 2: a broken image (700 bytes"),
        ({"images": None, "image": "text.png"}, {}, "image: image 1: a broken image (4 bytes"),
        ({"images": []}, {}, "images: 0 image(s) for 1 placeholder(s) '<image>'"),
        ({"images": ["0.png", "1.png"]}, {}, "images: 2 image(s) for 1 placeholder(s)"),
        (
            {"prompt": user([{"type": "image"}, {"type": "image"}])}
            | {"chosen": assistant("a"), "rejected": assistant("red")},
            {},
            "images: 1 image(s) for 2 image block(s)",
        ),
        ({"chosen": assistant("a")}, {}, "chosen: is a list of messages while the prompt is"),
        ({}, {"max_image_pixels": 1199}, "images: image 1: an image of 40 x 30 = 1200 pixels"),
        ({"images": ["bomb.png"]}, {}, "images: image 1: Image size (400000000 pixels) exceeds"),
    ],
)
def test_bad_images_and_prompts_name_file_row_and_field(
    processor, tmp_path, columns, settings, message
):
    path = toy.write(tmp_path, [toy.row(images=[], prompt="what ?"), toy.row(**columns)])
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:700])
    (tmp_path / "text.png").write_bytes(b"text")
    if columns.get("images") == ["bomb.png"]:
        PIL.Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is checked below)
        toy.prepare(path, tmp_path / "cache", processor, **settings)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert prepared_dirs(tmp_path / "cache") == []


def test_the_first_bad_row_is_the_one_reported(processor, tmp_path):
    rows = [toy.row(), toy.row(images=["absent.png"]), toy.row(weight=-1.0)]
    with pytest.raises(ValueError, match=r"prefs.jsonl:2: images: image 1"):
        toy.prepare(toy.write(tmp_path, rows), tmp_path / "cache", processor)


def test_messages_without_a_chat_template_name_the_row(tmp_path):
    toy.processor(template=None).save_pretrained(tmp_path / "bare")
    row = toy.row(prompt=user("?"), chosen=assistant("a"), rejected=assistant("red"))
    path = toy.write(tmp_path, [row])
    with pytest.raises(ValueError, match=r"prefs.jsonl:1: prompt: holds messages, but the check"):
        toy.prepare(path, tmp_path / "cache", processing.load(str(tmp_path / "bare")))


def test_a_second_start_does_nothing(processor, tmp_path, monkeypatch):
    path = toy.write(tmp_path, [toy.row()])
    first = toy.prepare(path, tmp_path / "cache", processor)
    monkeypatch.setattr(records, "write", None)
    lines = []
    monkeypatch.setattr(preparing.logging, "info", lambda text, *args: lines.append(text % args))
    again = toy.prepare(path, tmp_path / "cache", processor)
    assert again.directory == first.directory
    assert again.counts == first.counts
    assert lines == [f"Prepared data found in {first.directory}; nothing to do."]


def test_changes_that_matter_are_prepared_anew(processor, tmp_path):
    cache = tmp_path / "cache"
    path = toy.write(tmp_path, [toy.row()])
    first = toy.prepare(path, cache, processor)
    assert toy.prepare(path, cache, processor, max_response=3).directory != first.directory
    toy.picture(9).save(tmp_path / "0.png")  # same name, other picture
    second = toy.prepare(path, cache, processor)
    assert second.directory != first.directory
    assert second.keys([0]) != first.keys([0])
    assert toy.prepare(path, cache, processor).directory == second.directory
    toy.write(tmp_path, [toy.row(), toy.row(chosen="red")])
    assert len(toy.prepare(path, cache, processor)) == 2


def test_images_beyond_one_part_are_read_back(processor, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "PART_BYTES", 5000)  # one picture is about 3.6 kB
    rows = [toy.row(images=[f"{i}.png"]) for i in range(5)]
    made = source(toy.write(tmp_path, rows, pictures=5), tmp_path / "cache", processor)
    assert len(glob.glob(os.path.join(made.prepared.directory, "images", "*"))) == 3
    for i in range(5):
        assert np.array_equal(np.asarray(made.image(i)), np.asarray(toy.picture(i)))


def test_a_killed_preparation_leaves_nothing_that_counts(checkpoint, processor, tmp_path):
    path, cache = toy.write(tmp_path, [toy.row()]), tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", KILLED, checkpoint, path, cache], check=False)
    assert done.returncode == -signal.SIGKILL
    assert prepared_dirs(cache) == []
    assert len([name for name in os.listdir(cache) if not name.endswith(".lock")]) == 1
    assert len(toy.prepare(path, cache, processor)) == 1
    assert [name for name in os.listdir(cache) if not name.endswith(".lock")] == prepared_dirs(
        cache
    )


def test_two_that_start_at_once_prepare_once(processor, tmp_path, monkeypatch):
    built, build = [], preparing._build
    monkeypatch.setattr(preparing, "_build", lambda *args: (built.append(1), build(*args)))
    path, found = toy.write(tmp_path, [toy.row()]), []
    threads = [
        threading.Thread(
            target=lambda: found.append(toy.prepare(path, tmp_path / "cache", processor).directory)
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert found[0] == found[1]


def test_only_the_writer_writes(processor, tmp_path):
    path, cache = toy.write(tmp_path, [toy.row()]), str(tmp_path / "cache")

    def prepare(**settings):
        layout = types.Layout.of(("chosen", "rejected"))
        return preparing.prepare(
            config.Data(), layout, processor, path=path, split="train", cache_dir=cache, **settings
        )

    with pytest.raises(ValueError, match="the writing process did not finish"):
        prepare(is_writer=False)
    # The barrier is where the others wait for the writer.
    reader = prepare(is_writer=False, wait=lambda: prepare(is_writer=True))
    assert len(reader) == 1


def test_an_unwritable_cache_says_so(processor, tmp_path):
    path = toy.write(tmp_path, [toy.row()])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"Cannot write prepared data below .*config.data.cache"):
        toy.prepare(path, tmp_path / "file" / "cache", processor)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write() failed: No space")],
)
def test_a_full_disk_says_so(processor, tmp_path, monkeypatch, error):
    def full(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(records.Records, "download_and_prepare", full)
    path = toy.write(tmp_path, [toy.row()])
    with pytest.raises(ValueError, match=r"Cannot write prepared data below .*: .*No space"):
        toy.prepare(path, tmp_path / "cache", processor)
    assert prepared_dirs(tmp_path / "cache") == []
