"""Prompts without the placeholders of pictures that are left out."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np


def without(prompt: str | list, gone: Collection[int], image_text: str) -> str | list:
    """A prompt that asks for fewer pictures.

    Text loses the placeholder and one blank or line break behind it; messages lose the image block.
    Messages without image blocks stay: they get one per picture when they are rendered.

    Args:
      prompt: text or messages.
      gone: positions of the pictures that are left out, from 0.
      image_text: the placeholder in text.

    >>> without("USER: <image> <image> What changed?", {0}, "<image>")
    'USER: <image> What changed?'
    """
    if isinstance(prompt, str):
        first, *parts = prompt.split(image_text)
        for i, part in enumerate(parts):
            cut = part[1:] if part[:1].isspace() else part
            first += cut if i in gone else image_text + part
        return first
    seen, messages = 0, []
    for message in prompt:
        content = message.get("content")
        if isinstance(content, list):
            is_image = np.array([_is_image(block) for block in content], bool)
            number = seen + np.cumsum(is_image) - 1
            seen += int(is_image.sum())
            keep = [not is_image[i] or number[i] not in gone for i in range(len(content))]
            content = [block for block, kept in zip(content, keep) if kept]
        messages.append({**message, "content": content})
    return messages


def _is_image(block) -> bool:
    return isinstance(block, dict) and block.get("type") == "image"
