"""Videos for families without time: their frames become images of their own.

A row lists a video among its images as a list of frames, and its prompt has one placeholder for it:

  {"prompt": [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Who?"}]}],
   "images": [["clip/0.jpg", "clip/1.jpg", "clip/2.jpg", "clip/3.jpg"]], ...}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rubric_jax import types
from rubric_jax.data import images, reading

VIDEO, IMAGE = {"type": "video"}, {"type": "image"}


def apart(row: reading.Row) -> reading.Row:
    """The row with an image, and a block of its messages, per frame; text stays as it is."""
    if not any(ref.frames for refs in row.images.values() for ref in refs):
        return row
    # Contexts that share their images still do.
    spread = {
        id(refs): tuple(frame for ref in refs for frame in ref.frames or (ref,))
        for refs in row.images.values()
    }
    prompts = {name: _spread(row.prompts[name], refs) for name, refs in row.images.items()}
    return dataclasses.replace(
        row,
        images={name: spread[id(refs)] for name, refs in row.images.items()},
        prompts=prompts,
        prompt=prompts.get(types.CLEAN, row.prompt),
    )


def _spread(prompt: str | list, refs: Sequence[images.Ref]) -> str | list:
    if isinstance(prompt, str):
        return prompt
    left, messages = iter(refs), []
    for message in prompt:
        content = message.get("content")
        if isinstance(content, list):
            content = [part for block in content for part in _parts(block, left)]
        messages.append({**message, "content": content})
    return messages


def _parts(block: Any, left) -> list:
    """What stands for a block: of a picture or a video, the next of those that are left."""
    if block not in (VIDEO, IMAGE):
        return [block]
    ref = next(left, images.Ref())
    return [IMAGE] * len(ref.frames) if ref.frames and block == VIDEO else [block]
