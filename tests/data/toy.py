"""A word-level LLaVA processor, small pictures and rows for the tests of the data path."""

import json
import os

import numpy as np
import PIL.Image
import tokenizers
import transformers

from rubric_jax import config, types
from rubric_jax.data import preparing

WORDS = [
    "<unk>", "<pad>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:", "what", "is", "this",
    "?", "a", "red", "blue", "green", "circle", "square", "the", "two", "pictures", "show",
    "colour", "of", "how", "many", "none", "one", "and", ".", "yes", "no",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}[m['role']] }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} "
    "{% endif %}{% endfor %}{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
PATCHES = 4  # of a 28 x 28 picture in patches of 14


def processor(template=TEMPLATE):
    """A transformers LlavaProcessor whose images are 28 x 28 and 4 tokens."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    # Like Llama's tokenizer, it puts <s> in front of whatever it is not told to leave alone.
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )


def ids(text):
    """Token ids of words; '<image>*4' stands for four of them."""
    parts = (word.partition("*") for word in text.split())
    return [WORDS.index(word) for word, _, times in parts for _ in range(int(times or 1))]


def picture(seed, size=(40, 30)):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return PIL.Image.fromarray(values)


def write(folder, rows, *, pictures=3, name="prefs.jsonl"):
    """Writes rows as JSON Lines and the pictures 0.png, 1.png, ... beside them; gives the path."""
    for seed in range(pictures):
        path = os.path.join(folder, f"{seed}.png")
        if not os.path.exists(path):
            picture(seed).save(path)
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def row(**columns):
    """A good row with one picture; columns replace or, as None, remove its own."""
    made = {
        "prompt": "USER: <image> what is this ? ASSISTANT:",
        "chosen": "a red circle .",
        "rejected": "a blue square .",
        "images": ["0.png"],
        **columns,
    }
    return {name: value for name, value in made.items() if value is not None}


def prepare(path, cache, processor, *, branches=("chosen", "rejected"), **settings):
    data = config.Data(branches=branches, **settings)
    return preparing.prepare(
        data,
        types.Layout.of(branches),
        processor,
        path=str(path),
        split="train",
        cache_dir=str(cache),
    )


def media(prompts, tables, slots, size, cells):
    """A family's media in small: every group's images padded, and where each placeholder reads."""
    pixels = np.zeros((len(tables), size, 28, 28, 3), np.float32)
    for g, table in enumerate(tables):
        for i, image in enumerate(table):
            pixels[g, i] = image.pixels
    index = np.full(prompts.shape, -1, np.int32)
    for b, contexts in enumerate(slots):
        for m, images in enumerate(contexts):
            places = np.flatnonzero(prompts[b, m] == WORDS.index("<image>"))
            for k, image in enumerate(images):
                part = places[k * PATCHES : (k + 1) * PATCHES]
                index[b, m, part] = image * PATCHES + np.arange(len(part))
    return {"pixels": pixels, "index": index}
