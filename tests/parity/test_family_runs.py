"""The way in and out of every other family: its processor, its config, a short run, the export."""

import importlib
import json

import numpy as np
import PIL.Image
import pytest
import tokenizers
import torch
import transformers

from rubric_jax import config as config_lib
from rubric_jax import stages
from rubric_jax.data import loading, processing
from rubric_jax.train import setup as setup_lib
from tests.parity import checkpoints, tiled, tiled_processors
from tests.parity import test_families as families
from tests.stages import jobs

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "what", "is", "this", "?", "a", "red", "blue",
         "circle", "square", "user", "model"]  # fmt: skip
SPECIAL = {
    "paligemma": {"image_token": "<image>"},
    "gemma3": {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    },
    **tiled_processors.SPECIAL,
}
MARKS = {"paligemma": "<image>", "gemma3": "<start_of_image>", **tiled_processors.MARKS}
TEMPLATE = (
    "<bos>{% for m in messages %}<turn> {{ 'model' if m['role'] == 'assistant' else m['role'] }} "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}MARK {% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<turn> model {% endif %}"
)


def tokenizer(kind):
    special = SPECIAL[kind]
    # The image token gets the id that the checkpoint's config names; the others get early ones.
    image = next(iter(special.values()))
    others = [token for token in special.values() if token != image]
    words = [*WORDS, *others, *tiled_processors.MARKERS]
    words += [f"w{i}" for i in range(checkpoints.IMAGE_TOKEN - len(words))]
    ids = {word: i for i, word in enumerate([*words, image])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens=special,
        additional_special_tokens=tiled_processors.MARKERS,
    )


def processor(kind):
    size, template = {"height": 16, "width": 16}, TEMPLATE.replace("MARK", MARKS[kind])
    if kind in tiled_processors.MARKS:
        return getattr(tiled_processors, kind)(tokenizer(kind), template)
    if kind == "paligemma":
        images = transformers.SiglipImageProcessorPil(size=size)
        images.image_seq_length = 4
        return transformers.PaliGemmaProcessor(images, tokenizer(kind))
    images = transformers.Gemma3ImageProcessorPil(size=size, do_pan_and_scan=True)
    return transformers.Gemma3Processor(
        images, tokenizer(kind), chat_template=template, image_seq_length=4
    )


@pytest.fixture(params=SPECIAL, scope="module")
def saved(request, tmp_path_factory):
    """(kind of processor, directory with model and processor, a transformers processor)."""
    kind = request.param
    directory = tmp_path_factory.mktemp(kind)
    # PaliGemma's processor adds 1152 words for places and segments.
    made = getattr(tiled if kind in tiled_processors.MARKS else checkpoints, kind)
    made(directory, vocab_size=1280)
    made = processor(kind)
    made.save_pretrained(directory)
    tiled_processors.rename(directory)
    return kind, directory, made


SIZES = ((20, 12), (30, 44))  # width and height of pictures


def picture(seed, size):
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return PIL.Image.fromarray(values)


def test_ids_and_pixels_are_those_of_the_processor(saved):
    kind, directory, made = saved
    ours = processing.load(str(directory))
    assert ours.image_token == checkpoints.IMAGE_TOKEN
    if kind == "gemma3":
        made.image_processor.do_pan_and_scan = False
    for count in (1, 2):
        pictures = [picture(i, SIZES[i]) for i in range(count)]
        text = f"{MARKS[kind]} " * count + "what is this ?"
        theirs = made(images=[pictures], text=[text], add_special_tokens=False)
        prompt, responses = ours.encode(text, {"chosen": "a red circle"}, pictures)
        np.testing.assert_array_equal(prompt, theirs["input_ids"][0])
        assert ours.decode(responses["chosen"]) == "a red circle"
        found = [ours.picture(image) for image in pictures]
        entries = [ours.extent(image.size)[0] for image in pictures]
        assert entries == [shown.entries for shown in found]
        pixels = np.concatenate([shown.pixels.reshape(-1, 16, 16, 3) for shown in found])
        assert len(pixels) == sum(entries)
        tiles = kind in tiled_processors.MARKS
        tokens = tiled_processors.tokens(kind, pictures) if tiles else 4 * count
        assert (prompt == checkpoints.IMAGE_TOKEN).sum() == tokens
        wanted = np.concatenate([np.asarray(part) for part in theirs["pixel_values"]])
        wanted = wanted.reshape(-1, 3, 16, 16)
        wanted = wanted[np.any(wanted, axis=(1, 2, 3))]  # without tiles that fill up a batch
        np.testing.assert_array_equal(pixels, np.moveaxis(wanted, 1, -1))


def write_data(folder, kind, rows=8):
    folder.mkdir()
    lines = []
    for i in range(rows):
        picture(i, SIZES[i % 2]).save(folder / f"{i}.png")
        answers = ("a red circle", "a blue square")
        row = {"images": [f"{i}.png"], "chosen": answers[i % 2], "rejected": answers[1 - i % 2]}
        if kind == "paligemma":
            row["prompt"] = "<image> what is this ?"
        else:
            content = [{"type": "image"}, {"type": "text", "text": "what is this ?"}]
            row["prompt"] = [{"role": "user", "content": content}]
            for name in ("chosen", "rejected"):
                row[name] = [{"role": "assistant", "content": row[name]}]
        lines.append(json.dumps(row))
    (folder / "prefs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "prefs.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved",
    [
        "paligemma",
        "internvl",
        pytest.param("gemma3", marks=pytest.mark.sweep),
        pytest.param("llava_next", marks=pytest.mark.sweep),
        pytest.param("idefics3", marks=pytest.mark.sweep),
    ],
    indirect=True,
)
def test_dpo_trains_by_the_familys_config_and_transformers_reads_the_result(saved, tmp_path):
    kind, directory, _ = saved
    family = tiled.FAMILIES.get(kind, kind)
    values = importlib.import_module(f"configs.{family}").get_config()
    with values.unlocked():
        values.model.checkpoint = str(directory)
        values.data.path = str(write_data(tmp_path / "data", kind))
        values.train.update({"steps": 6, "batch_size": 4, "tensorboard": False, "log_every": 1})
        values.mesh.data, values.mesh.fsdp, values.mesh.tensor = 2, 2, 2
        values.optimizer.learning_rate = 3e-3
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
    for row, branch in ((0, 0), (3, 1)):
        example = source[row]
        prompt, response = example.prompts[0], example.responses[branch]
        shown = [source.picture(number) for number in example.images[0]]
        given = families.inputs(family, prompt.tolist(), response.tolist(), shown)
        with torch.no_grad():
            logits = model(**given).logits[0, len(prompt) - 1 : -1]
        wanted = torch.log_softmax(logits, -1)[range(len(response)), response].numpy()
        got = arrays["logps"][row, branch, : len(wanted)]
        np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.sweep
@pytest.mark.parametrize("saved", ["internvl", "idefics3", "llava_next"], indirect=True)
def test_a_round_is_sampled_judged_by_the_model_itself_and_trained(saved, tmp_path):
    kind, directory, _ = saved
    own = {"checkpoint": str(directory), "family": kind}
    judge = {"judge": "vlm", "yes": "red", "no": "blue", **own}
    groups = {"model": own, "judging": {"judge": judge}, "data": {"max_prompt": 2048}}
    config = jobs.config(**groups, rounds={"count": 1})
    stages.Run(config, str(tmp_path)).all()
    verdicts = [json.loads(line) for line in (tmp_path / "round_1" / "verdicts.jsonl").open()]
    found = [verdict for row in verdicts for verdict in row["verdicts"]]
    assert len(found) == 8 * 3
    assert {verdict["status"] for verdict in found} == {"scored"}
    assert len({score for verdict in found for score in verdict["scores"].values()}) > 8
    assert (tmp_path / "round_1" / "policy" / "config.json").exists()
