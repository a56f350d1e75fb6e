"""Videos among the images of a row, for a family without time (with: parity/test_qwen_runs.py)."""

import numpy as np
import pytest

from rubric_jax.data import images, instructions, loading
from tests.data import toy

CONTENT = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "what is this ?"}]
CLIP = ["1.png", "2.png", "1.png"]


def messages(content, answer):
    return [{"role": "user", "content": content}], [{"role": "assistant", "content": answer}]


def row(content, pictures, **columns):
    prompt, chosen = messages(content, "a red circle .")
    _, rejected = messages(content, "a blue square .")
    return toy.row(prompt=prompt, chosen=chosen, rejected=rejected, images=pictures, **columns)


def test_frames_are_images_of_their_own(tmp_path, processor):
    apart = [CONTENT[0], *[{"type": "image"}] * 3, CONTENT[2]]
    rows = [row(CONTENT, ["0.png", CLIP]), row(apart, ["0.png", *CLIP])]
    source = loading.open(toy.prepare(toy.write(tmp_path, rows), tmp_path / "cache", processor))
    assert source[0].images == source[1].images == ((0, 1, 2, 1),)
    np.testing.assert_array_equal(source[0].prompts[0], source[1].prompts[0])
    assert (source[0].prompts[0] == processor.image_token).sum() == 4 * toy.PATCHES


def test_text_has_a_placeholder_per_frame(tmp_path, processor):
    text = "USER: <image> <image> <image> what is this ? ASSISTANT:"
    rows = [toy.row(prompt=text, images=[CLIP])]
    source = loading.open(toy.prepare(toy.write(tmp_path, rows), tmp_path / "cache", processor))
    assert source[0].images == ((0, 1, 0),)


def test_a_video_travels_as_the_files_of_its_frames(tmp_path):
    toy.write(tmp_path, [])
    paths = [images.of(name, root=str(tmp_path)) for name in CLIP]
    data = images.read(images.Ref(frames=tuple(paths)))
    assert data == images.read(images.Ref(frames=tuple(paths)))
    assert (images.frames(data), images.frames(images.read(paths[0]))) == (3, 0)
    assert images.check(data, 10_000) == (40, 30)
    for frame, path in zip(images.decode(data), paths, strict=True):
        np.testing.assert_array_equal(frame, images.decode(images.read(path)))


def test_frames_of_two_sizes_are_refused(tmp_path):
    toy.write(tmp_path, [])
    toy.picture(0, (20, 30)).save(tmp_path / "narrow.png")
    names = ("0.png", "narrow.png")
    frames = tuple(images.of(name, root=str(tmp_path)) for name in names)
    with pytest.raises(ValueError, match="frames of sizes"):
        images.check(images.read(images.Ref(frames=frames)), 10_000)


def test_an_archive_is_no_video(tmp_path):
    toy.write(tmp_path, [])
    frames = tuple(images.of(name, root=str(tmp_path)) for name in CLIP)
    (tmp_path / "clip.zip").write_bytes(images.read(images.Ref(frames=frames)))
    with pytest.raises(ValueError, match="ZIP archive"):
        images.read(images.of("clip.zip", root=str(tmp_path)))


def test_instructions_to_sample_from_have_no_videos(tmp_path):
    path = toy.write(tmp_path, [row(CONTENT, ["0.png", CLIP])])
    with pytest.raises(ValueError, match=r"prefs\.jsonl:1: images: .*list"):
        list(instructions.read(path))
