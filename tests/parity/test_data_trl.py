"""Token ids and masks against TRL 1.16's collator for vision preferences, row by row."""

import copy

import numpy as np
import pytest
from trl.trainer import dpo_trainer

from rubric_jax.data import loading, processing
from tests.data import toy


def user(content):
    return [{"role": "user", "content": content}]


def assistant(content):
    return [{"role": "assistant", "content": content}]


def text(value):
    return {"type": "text", "text": value}


IMAGE = {"type": "image"}
ROWS = {
    "string prompt": ("USER: <image> what is this ? ASSISTANT:", "a red circle", "blue", 1),
    "string prompt, two images": ("<image> and <image> show ?", "the two", "one . </s>", 2),
    "string prompt, no image": ("what is a circle ?", "red", "a blue square .", 0),
    "image block": (
        user([IMAGE, text("what is this ?")]),
        assistant([text("a red circle")]),
        assistant([text("a blue square .")]),
        1,
    ),
    "image blocks among text": (
        user([text("what"), IMAGE, text("and"), IMAGE, text("?")]),
        assistant("a red circle"),
        assistant("none"),
        2,
    ),
    "plain strings": (user("what is this ?"), assistant("red"), assistant("a blue one"), 1),
    "plain strings, three images": (user("how many ?"), assistant("two"), assistant("one"), 3),
    "plain strings, no image": (user("how many ?"), assistant("two"), assistant("one"), 0),
    "several turns": (
        [*user("what is this ?"), *assistant("a circle"), *user("of what colour ?")],
        assistant("red"),
        assistant("blue"),
        1,
    ),
    "prompt that ends in the answer's beginning": (
        [*user("what is this ?"), *assistant("a red")],
        assistant("circle"),
        assistant("square"),
        1,
    ),
}
# The second template renders the prompt alone ("ASSISTANT: yes") otherwise than with a response
# behind it, so that the response begins where the two part.
TEMPLATES = {
    "plain": toy.TEMPLATE,
    "diverging": toy.TEMPLATE.replace("}ASSISTANT: {%", "}ASSISTANT: yes {%"),
}


def collated(hf, prompt, chosen, rejected, pictures):
    """(ids, completion mask) of chosen and of rejected, without padding."""
    example = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "images": pictures}
    made = dpo_trainer.DataCollatorForVisionPreference(hf)([copy.deepcopy(example)])
    rows = []
    for ids, attention, mask in zip(
        made["input_ids"], made["attention_mask"], made["completion_mask"], strict=True
    ):
        keep = attention.numpy() == 1
        rows.append((ids.numpy()[keep], mask.numpy()[keep]))
    return rows, made.get("pixel_values")


@pytest.fixture(scope="module", params=TEMPLATES)
def processors(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    hf = toy.processor(TEMPLATES[request.param])
    hf.save_pretrained(path)
    return processing.load(str(path)), hf


@pytest.mark.parametrize("name", ROWS)
def test_ids_and_masks_equal_trl(processors, name):
    ours, hf = processors
    prompt, chosen, rejected, count = ROWS[name]
    # Different sizes, so that the number of tokens per image is derived from the image.
    pictures = [toy.picture(i, size=(40 + 20 * i, 30)) for i in range(count)]
    theirs, pixels = collated(hf, prompt, chosen, rejected, pictures)
    ids, responses = ours.encode(prompt, {"chosen": chosen, "rejected": rejected}, pictures)
    for response, (expected_ids, expected_mask) in zip(
        (responses["chosen"], responses["rejected"]), theirs, strict=True
    ):
        np.testing.assert_array_equal(np.concatenate([ids, response]), expected_ids)
        mask = np.concatenate([np.zeros(len(ids), int), np.ones(len(response), int)])
        np.testing.assert_array_equal(mask, expected_mask)
    if count:
        mine = np.stack([np.moveaxis(ours.picture(picture).pixels, -1, 0) for picture in pictures])
        # TRL hands over the pictures twice, for chosen and for rejected.
        np.testing.assert_array_equal(mine, pixels.numpy()[:count])


def test_a_batch_from_disk_equals_trl(processors, tmp_path):
    ours, hf = processors
    rows = []
    for prompt, chosen, rejected, count in ROWS.values():
        images = [f"{i}.png" for i in range(count)]
        rows.append(toy.row(prompt=prompt, chosen=chosen, rejected=rejected, images=images))
    path = toy.write(tmp_path, rows)
    source = loading.open(toy.prepare(path, tmp_path / "cache", ours))
    plan = loading.plan(source, batch_size=len(rows), shuffle=False)
    batch, numbers = next(loading.batches(source, plan, toy.media))
    np.testing.assert_array_equal(numbers, np.arange(len(rows)))
    for b, (prompt, chosen, rejected, count) in enumerate(ROWS.values()):
        theirs, _ = collated(hf, prompt, chosen, rejected, [toy.picture(i) for i in range(count)])
        for n, (ids, mask) in enumerate(theirs):
            length = batch.prompt_lengths[b, 0]
            kept = batch.responses[b, n][batch.mask[b, n] == 1]
            np.testing.assert_array_equal(np.concatenate([batch.prompts[b, 0, :length], kept]), ids)
            assert mask.sum() == batch.mask[b, n].sum()
            assert mask[:length].sum() == 0
