"""Small processors of the families that cut pictures into tiles of 16 x 16 pixels."""

import json

import transformers

from rubric_jax.data import stand_ins

SMOL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "video_token": "<video>",
}
SPECIAL = {  # the first is the one that stands for a feature
    "llava_next": {"image_token": "<image>"},
    "internvl": {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    },
    "idefics3": SMOL,
    "smolvlm": SMOL,
}
MARKS = {kind: next(iter(special.values())) for kind, special in SPECIAL.items()}
MARKERS = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
CLASSES = {"InternVL": "InternVLProcessor", "SmolVLM": "SmolVLMProcessor"}  # of stand-ins


def rename(directory):
    """Lets the saved configuration name the class that published checkpoints name."""
    file = directory / "processor_config.json"
    values = json.loads(file.read_text())
    name = values["processor_class"]
    file.write_text(json.dumps(values | {"processor_class": CLASSES.get(name, name)}))


def llava_next(tokenizer, template):
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32], [48, 16]],
    )
    return transformers.LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def internvl(tokenizer, template):
    size = {"height": 16, "width": 16}
    # Checkpoints leave the cutting off here; the processor turns it on.
    images = transformers.GotOcr2ImageProcessorPil(size=size, crop_to_patches=False, max_patches=4)
    return stand_ins.InternVL(images, tokenizer, image_seq_length=1, chat_template=template)


def idefics3(tokenizer, template):
    images = transformers.Idefics3ImageProcessorPil(**SPLIT)
    return transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=4, chat_template=template
    )


def smolvlm(tokenizer, template):
    images = transformers.SmolVLMImageProcessorPil(**SPLIT)
    return stand_ins.SmolVLM(images, tokenizer, image_seq_len=4, chat_template=template)


SPLIT = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}


def tokens(kind, pictures):
    """Image tokens that the processor puts in for pictures of 20 x 12 and 30 x 44, by hand.

    LLaVA-NeXT: 4 of the whole, and
      20 x 12 is padded to 32 x 16: 2 rows of 4 features. 3.3 columns show it: none is left out.
      30 x 44 is padded to 32 x 32: 4 rows of 4 features. 2.7 columns show it: two are left out.
    InternVL, 1 a tile: 2 side by side or 2 x 1 one above the other, and the whole.
    Idefics3, 4 a tile: 32 x 19 becomes 32 x 32, 22 x 32 too: 2 x 2 tiles, and the whole.
    """
    counts = {
        "llava_next": (4 + 2 * (4 + 1), 4 + 4 * (2 + 1)),
        "internvl": (3, 3),
        "idefics3": (5 * 4, 5 * 4),
        "smolvlm": (5 * 4, 5 * 4),
    }[kind]
    return sum(dict(zip(((20, 12), (30, 44)), counts))[image.size] for image in pictures)
