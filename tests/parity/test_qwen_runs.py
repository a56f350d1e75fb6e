"""The way in and out of Qwen2.5-VL and Qwen3-VL: processor, config, a short run, the export."""

import importlib
import json
import pickle

import numpy as np
import PIL.Image
import pytest
import tokenizers
import torch
import transformers

from rubric_jax import config as config_lib
from rubric_jax import stages
from rubric_jax.data import loading, pictures, processing
from rubric_jax.train import setup as setup_lib
from tests.data import toy
from tests.parity import checkpoints
from tests.parity.test_family_runs import WORDS, picture, write_data
from tests.parity.test_qwen import inputs

CLASSES = {"qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor"}
PAD = "<|image_pad|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' or 'image' in c %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


class WithoutVideo:
    """For a processor class of transformers: built without the part that torchvision serves."""

    def check_argument_for_proper_class(self, name, argument):
        if argument is not None:
            super().check_argument_for_proper_class(name, argument)


def processor(family):
    """transformers' own."""
    special = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    words = [*WORDS, "assistant"]
    words += [f"w{i}" for i in range(checkpoints.IMAGE_TOKEN - len(words) - len(special))]
    words += [*special, PAD, "<|video_pad|>"]
    ids = {word: i for i, word in enumerate(words)}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=[*special, PAD, "<|video_pad|>"],
    )
    images = transformers.Qwen2VLImageProcessorPil(patch_size=2, min_pixels=64, max_pixels=400)
    own = getattr(transformers, CLASSES[family])
    kind = type(own.__name__, (WithoutVideo, own), {})
    kind.__init__ = own.__init__  # its signature says what a processor is made of
    return kind(images, tokenizer, None, chat_template=TEMPLATE)


def save(made, directory, layout):
    """Writes a processor as on the Hub (transformers 4; its template in a file of its own, or the
    tokenizer's), or as transformers 5 does."""
    name = type(made).__name__
    made.tokenizer.save_pretrained(directory)
    if layout != "transformers 5":
        made.image_processor.save_pretrained(directory)
        own, field = directory / "tokenizer_config.json", {"chat_template": TEMPLATE}
        values = json.loads(own.read_text()) if layout == "tokenizer" else {}
        file = own if layout == "tokenizer" else directory / "chat_template.json"
        file.write_text(json.dumps(values | field))
        file = directory / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"processor_class": name}))
    else:
        images = json.loads(made.image_processor.to_json_string())
        video = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 2}
        values = {"image_processor": images, "video_processor": video, "processor_class": name}
        (directory / "processor_config.json").write_text(json.dumps(values))
        (directory / "chat_template.jinja").write_text(TEMPLATE)


@pytest.fixture(params=CLASSES, scope="module")
def saved(request, tmp_path_factory):
    """(family, directory with model and processor, transformers' processor)."""
    family = request.param
    directory = tmp_path_factory.mktemp(family)
    getattr(checkpoints, family)(directory)
    made = processor(family)
    save(made, directory, "hub")
    return family, directory, made


def test_ids_and_pixels_are_those_of_the_processor(saved, tmp_path):
    _, directory, made = saved
    places = [directory]
    for layout in ("transformers 5", "tokenizer"):
        places.append(tmp_path / layout)
        places[-1].mkdir()
        (places[-1] / "config.json").write_text((directory / "config.json").read_text())
        save(made, places[-1], layout)
    for where in places:
        ours = pickle.loads(pickle.dumps(processing.load(str(where))))
        assert (ours.image_text, ours.image_token) == (PAD, checkpoints.IMAGE_TOKEN)
        pictures = [picture(1, (20, 12)), picture(2, (9, 31))]
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what is this ?"}]
        messages = [{"role": "user", "content": content}]
        text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        theirs = made(images=[pictures], text=[text])
        answer = [{"role": "assistant", "content": "a red circle"}]
        prompt, responses = ours.encode(messages, {"chosen": answer}, pictures)
        np.testing.assert_array_equal(prompt, theirs["input_ids"][0])
        assert ours.decode(responses["chosen"], special=True) == "a red circle <|im_end|>"
        pixels = np.asarray(theirs["pixel_values"])
        for image, (t, h, w) in zip(pictures, np.asarray(theirs["image_grid_thw"])):
            found = ours.picture(image)
            assert found.pixels.shape[:3] == (t, h // 2, w // 2)
            flat = found.pixels.reshape(-1, pixels.shape[1])
            np.testing.assert_array_equal(flat, pixels[: len(flat)])
            pixels = pixels[len(flat) :]
            assert (found.entries, found.cells) == ours.extent(image.size)


def test_a_video_is_its_frames_in_time(saved):
    family, directory, _ = saved
    ours = processing.load(str(directory), fps=4.0)
    files = [picture(i, (20, 12)) for i in range(3)]
    stills = [ours.picture(file) for file in files]
    video = ours.picture(files)
    assert (video.entries, video.interval) == (2, 0.5)
    assert (video.entries, video.cells) == ours.extent(files[0].size, 3)
    # Channels, frames of a patch, its pixels; the last frame fills up.
    parts = [shown.pixels.reshape(*shown.pixels.shape[:4], 3, 2, 4) for shown in (video, *stills)]
    for entry, place, frame in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 2)):
        np.testing.assert_array_equal(
            parts[0][entry, ..., place, :], parts[1 + frame][0, ..., 0, :]
        )
    content = [{"type": "video"}, {"type": "image"}, {"type": "text", "text": "what is this ?"}]
    shown = [pictures.Picture(None, "", files[0].size, None, frames) for frames in (3, 0)]
    prompt, _ = ours.encode([{"role": "user", "content": content}], {}, shown)
    text = ours.decode(prompt, special=True)
    cells = " ".join([PAD] * 15)
    begin, end = "<|vision_start|>", "<|vision_end|>"
    times = {  # those of the middle of two frames; a bracketed time is no word of this tokenizer
        "qwen2_5_vl": f"{begin} {cells} {cells} {end}",
        "qwen3_vl": f"<unk> <unk> {begin} {cells} {end} <unk> <unk> {begin} {cells} {end}",
    }
    assert f"user {times[family]} {begin} {cells} {end} what" in text
    with pytest.raises(processing.FieldError, match="an image stands where"):
        ours.encode([{"role": "user", "content": content}], {}, shown[::-1])
    if family == "qwen3_vl":
        assert ours.hf.written(3, 5, 3, 4.0).split(begin)[0] == "<0.1 seconds>"
        assert "<0.5 seconds>" in ours.hf.written(3, 5, 3, 4.0)


def test_no_context_is_made_of_a_video(saved, tmp_path):
    path = with_videos(write_data(tmp_path / "data", saved[0]))
    contexts = {"corrupted": {"corruption": "drop"}}
    with pytest.raises(ValueError, match=r"prefs\.jsonl:2: images: holds a video"):
        toy.prepare(
            path,
            tmp_path / "cache",
            processing.load(str(saved[1])),
            branches=("chosen", "rejected@corrupted"),
            contexts=contexts,
        )


def test_a_picture_that_the_processor_refuses_is_named(saved):
    ours = processing.load(str(saved[1]))
    with pytest.raises(processing.FieldError, match=r"images: .* 2 x 900 pixels .absolute aspect"):
        ours.encode(f"{PAD} what", {}, [picture(0, (2, 900))])


def test_pixels_bound_the_size_of_pictures(saved):
    directory = str(saved[1])
    small, own = processing.load(directory, (16, 64)), processing.load(directory)
    image = picture(0, (40, 40))
    assert own.picture(image).pixels.shape[1:3] == (5, 5)  # 400 pixels, 16 a cell
    assert small.picture(image).pixels.shape[1:3] == (2, 2)
    assert small.extent((40, 40)) == (1, 4)
    assert small.fingerprint != own.fingerprint
    with pytest.raises(ValueError, match="least, most"):
        processing.load(directory, (64, 16))


def test_a_picture_that_the_processor_refuses_is_named_by_its_row(saved, tmp_path):
    path = write_data(tmp_path / "data", saved[0])
    PIL.Image.new("RGB", (1, 5000)).save(tmp_path / "data" / "2.png")
    with pytest.raises(ValueError, match=r"prefs\.jsonl:3: images: .* 1 x 5000 pixels .* ratio"):
        toy.prepare(path, tmp_path / "cache", processing.load(str(saved[1])))


def with_videos(path):
    """Row 1 shows a video of three frames, and the same answer is chosen in every row: these
    features of random pictures say too little."""
    rows = [json.loads(line) for line in path.open()]
    rows = [row | {name: rows[0][name] for name in ("chosen", "rejected")} for row in rows]
    rows[1]["images"] = [["1.png", "3.png", "5.png"]]
    rows[1]["prompt"][0]["content"][0] = {"type": "video"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved", ["qwen3_vl", pytest.param("qwen2_5_vl", marks=pytest.mark.sweep)], indirect=True
)
def test_dpo_trains_by_the_familys_config_and_transformers_reads_the_result(saved, tmp_path):
    family, directory, _ = saved
    values = importlib.import_module(f"configs.{family}").get_config()
    with values.unlocked():
        values.model.checkpoint = str(directory)
        values.data.path = str(with_videos(write_data(tmp_path / "data", family)))
        values.data.pixels = (64, 256)
        values.train.update({"steps": 6, "batch_size": 4, "tensorboard": False, "log_every": 1})
        values.mesh.data, values.mesh.fsdp, values.mesh.tensor = 2, 2, 2
        values.optimizer.learning_rate = 1e-2
    config = config_lib.build(values)
    assert stages.train(config, str(tmp_path / "run")).finished
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert abs(losses[0] - np.log(2)) < 1e-4
    assert losses[-1] < 0.9 * losses[0]

    stages.export(str(tmp_path / "run"), str(tmp_path / "hf"))
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", attn_implementation="eager", dtype=torch.float32
    ).eval()
    values.model.checkpoint = str(tmp_path / "hf")
    exported = config_lib.build(values)
    arrays = stages.score(exported, str(tmp_path / "logps.npz"), str(tmp_path / "run"))
    setup = setup_lib.build(exported)
    cache = setup_lib.cache_directory(exported, str(tmp_path / "run"))
    source = setup_lib.source(setup, exported.data.path, "", cache)
    assert isinstance(source, loading.Source)
    for row, branch in ((0, 0), (1, 1)):
        example = source[row]
        prompt, response = example.prompts[0], example.responses[branch]
        shown = [source.picture(number) for number in example.images[0]]
        assert shown[0].entries == (1, 2)[row]
        ids = np.concatenate([prompt, response])
        media = setup.vlm.media(ids[None, None], [shown], [[[0]]], 2, shown[0].cells)
        # Those of a video are ours: test_qwen.py says why.
        positions = torch.tensor(media["positions"][0, 0].T[:, None]).long()
        given = inputs(model, ids.tolist(), shown)
        with torch.no_grad():
            logits = model(**given, position_ids=positions).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)[range(len(response)), response].numpy()
        got = arrays["logps"][row, branch, : len(wanted)]
        np.testing.assert_allclose(got, wanted, atol=1e-4)
