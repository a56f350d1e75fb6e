"""questions: preference pairs -> instructions that ask which of the two answers is better.

  {"id": "a-17/ab", "prompt": [{"role": "user", "content": [{"type": "image"}, ..]}],
   "images": ["images/17.png"], "answer": "A", "source": "a-17"}

Each pair is asked in both orders, so that "always A" earns nothing: a judge is trained on them by
verifiable rewards (LLaVA-Critic-R1, arXiv:2509.00676; the wording is ours).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from rubric_jax import checkpoint, types
from rubric_jax import config as config_lib
from rubric_jax.data import instructions, processing, reading
from rubric_jax.stages import pair

TEXT = """Here is a question about what you see, and two answers to it.

Question: {question}

Answer A: {a}

Answer B: {b}

Which answer is better? Think first, between <think> and </think>, then end with either \
"The answer is A." or "The answer is B.\""""


def write_questions(config: config_lib.Data, out: str) -> int:
    """Writes two instructions per row of preference data; returns how many.

    Raises:
      ValueError: 'file:row: field: what is wrong', or a file that cannot be written.
    """
    root, count = os.path.dirname(os.path.abspath(out)), 0
    with checkpoint.disk_errors(root):
        os.makedirs(root, exist_ok=True)
        with open(out + ".tmp", "w", encoding="utf-8") as stream:
            for row in _rows(config, root):
                stream.write(json.dumps(row) + "\n")
                count += 1
        os.replace(out + ".tmp", out)
    return count


def _rows(config: config_lib.Data, root: str) -> Iterator[dict[str, Any]]:
    if not config.path:
        raise ValueError("config.data.path is empty; point it at preference data.")
    layout = types.Layout.of(("chosen", "rejected"))
    for row in reading.rows(
        config.path, config.split, layout=layout, confine=config.confine_images
    ):
        images = [pair.image(ref, root) for ref in row.images[types.CLEAN]]
        texts = {name: _text(response) for name, response in row.responses.items()}
        for order, names in (("ab", ("chosen", "rejected")), ("ba", ("rejected", "chosen"))):
            a, b = (texts[name] for name in names)
            text = TEXT.format(question=instructions.words(row.prompt), a=a, b=b)
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
            yield {
                "id": f"{row.id}/{order}",
                "prompt": [{"role": "user", "content": content}],
                "images": images,
                "answer": "A" if names[0] == "chosen" else "B",
                "source": row.id,
            }


def _text(response: str | list) -> str:
    found = response if isinstance(response, str) else processing.text_of(response)
    return found.replace("<image>", "").strip()
