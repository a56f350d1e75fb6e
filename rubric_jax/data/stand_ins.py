"""Processor classes that transformers cannot build without torchvision, without their videos.

These classes demand a video processor, which needs torchvision and torch. A subclass that takes
none keeps everything else: chat template, placeholders, the call on texts and pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import transformers
from transformers import processing_utils, video_utils


class _Pictures:
    """Mixed into a processor class: it is built of an image processor and a tokenizer alone."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def apply_chat_template(self, *args, **kwargs) -> str:
        # SmolVLM's own asks its video processor for a number of frames first.
        return processing_utils.ProcessorMixin.apply_chat_template(self, *args, **kwargs)


# transformers reads from the signatures what a class is built of, and what it takes from files.
class InternVL(_Pictures, transformers.InternVLProcessor):
    def __init__(self, image_processor, tokenizer, image_seq_length: int = 256, chat_template=None):
        super().__init__(
            image_processor,
            tokenizer,
            image_seq_length=image_seq_length,
            chat_template=chat_template,
        )


class SmolVLM(_Pictures, transformers.SmolVLMProcessor):
    def __init__(self, image_processor, tokenizer, image_seq_len: int = 169, chat_template=None):
        # Not its parent's, which also demands a package that spells numbers, for videos.
        processing_utils.ProcessorMixin.__init__(
            self, image_processor, tokenizer, chat_template=chat_template
        )
        self.image_seq_len = image_seq_len
        for name, usual in (
            ("fake_image_token", "<fake_token_around_image>"),
            ("image_token", "<image>"),
            ("end_of_utterance_token", "<end_of_utterance>"),
            ("global_image_token", "<global-img>"),
            ("video_token", "<video>"),
        ):
            setattr(self, name, getattr(tokenizer, name, usual))
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)


class _Frames(_Pictures):
    """A processor class that places the frames of videos, given as pictures, in time."""

    @property
    def video_processor(self):
        return self.image_processor  # as far as sizes of patches go

    @property
    def video_text(self) -> str:
        """What stands for a video in text."""
        return self.video_token

    def written(self, rows: int, columns: int, frames: int, fps: float) -> str:
        """What takes its place: an image token per cell of every entry, and what tells the time."""
        merge, together = (
            getattr(self.image_processor, name) for name in ("merge_size", "temporal_patch_size")
        )
        grid = (-(-frames // together), rows * merge, columns * merge)
        facts = video_utils.VideoMetadata(frames, fps=fps, frames_indices=list(range(frames)))
        inputs = {"video_grid_thw": np.array([grid]), "video_metadata": [facts]}
        text = self.replace_video_token(inputs, video_idx=0)
        return text.replace(self.video_token, self.image_token)


class Qwen25(_Frames, transformers.Qwen2_5_VLProcessor):
    def __init__(self, image_processor, tokenizer, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


class Qwen3(_Frames, transformers.Qwen3VLProcessor):
    def __init__(self, image_processor, tokenizer, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @property
    def video_text(self) -> str:
        # Each entry has a begin and an end of its own, behind its time.
        return self.vision_start_token + self.video_token + self.vision_end_token


PROCESSORS = {
    "InternVLProcessor": InternVL,
    "SmolVLMProcessor": SmolVLM,
    "Qwen2_5_VLProcessor": Qwen25,
    "Qwen3VLProcessor": Qwen3,
}


def processor(name: str) -> Any:
    """The class that stands for transformers' processor class of this name, or that class."""
    return PROCESSORS.get(name) or getattr(transformers, name)
