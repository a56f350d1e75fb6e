"""Text and images of a row to token ids and pixels, with a checkpoint's own processor.

Everything comes from the Hugging Face directory of the checkpoint, through transformers and
without torch: tokenizer, chat template and image processor (PIL backend). Both layouts are read:

  transformers 4 and the Hub   tokenizer*.json, preprocessor_config.json, chat_template.json
  transformers 5               tokenizer*.json, processor_config.json,    chat_template.jinja

Token ids are those of TRL 1.16's `DataCollatorForVisionPreference`, id for id:

  strings    ids of the prompt (one image token per patch) and of the response, separately,
             with no special token added: no BOS in front, no EOS behind
  messages   the chat template renders the prompt, and prompt + response; the response's text is
             what follows their common beginning; then as for strings
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import PIL.Image
import transformers
from transformers.models.auto import processing_auto

from rubric_jax import types
from rubric_jax.data import forms, stand_ins

# Files that determine tokens and pixels; weights and READMEs do not.
_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_MARK = "\ue000"  # private use: stands in for a text to see where a template puts it
_ROLES = ("system", "user", "assistant", "tool")

Messages = Sequence[Mapping[str, Any]]


class FieldError(ValueError):
    """What is wrong with one field of a row; whoever knows the row adds file and number."""

    def __init__(self, field: str, message: str):
        super().__init__(f"{field}: {message}")
        self.field, self.message = field, message


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
    """A checkpoint's tokenizer, chat template and image processor. Picklable."""

    hf: Any  # the transformers processor
    fingerprint: str  # sha256 of the files that determine tokens and pixels
    image_token: int  # id of the placeholder that stands for one image feature
    image_text: str  # what stands for a picture in text, such as '<image>'
    pad_id: int
    eos_ids: tuple[int, ...]  # ids that end a generation
    # What the processor puts behind the last picture of a prompt, and at its end.
    around: tuple[str, str] = ("", "")
    form: forms.Form = forms.WHOLE  # of a picture's pixels
    fps: float = 2.0  # of the frames of videos
    _sizes: dict = dataclasses.field(default_factory=dict, repr=False)

    def encode(
        self,
        prompt: str | Messages,
        responses: Mapping[str, str | Messages],
        images: Sequence[Any],
        tools: Sequence[Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Token ids of a prompt and of responses to it.

        Args:
          prompt: text with image placeholders, or messages (image blocks, or plain strings, which
            get their image blocks in front of the first user message).
          responses: name -> text or messages, in the form of the prompt.
          images: in the order of the placeholders; only `.size` (width, height) is read, and
            `.frames` of those that have it: how many a video has, 0 of a picture.
          tools: handed to the chat template.

        Returns:
          int32 [P] with every image placeholder repeated once per feature, and name -> int32 [T].

        Raises:
          FieldError: naming the field that does not fit.
        """
        for name, response in responses.items():
            if isinstance(response, str) != isinstance(prompt, str):
                raise FieldError(
                    name,
                    f"is {_form(response)} while the prompt is {_form(prompt)}; write both as "
                    "strings, or both as lists of messages.",
                )
        if isinstance(prompt, str):
            text, texts = prompt, dict(responses)
        else:
            text, texts = self._render(prompt, responses, images, tools)
        marks = [mark for mark in (self.video_text, self.image_text) if mark]
        pattern = "|".join(map(re.escape, marks))
        found = re.findall(pattern, text)
        if len(found) != len(images):
            raise FieldError(
                "images",
                f"{len(images)} image(s) for {len(found)} placeholder(s) {self.image_text!r} in "
                "the prompt; there must be one placeholder per image.",
            )
        for mark, image in zip(found, images, strict=True):
            if (mark == self.video_text) != bool(_frames(image)):
                raise FieldError(
                    "images",
                    f"{'a video' if _frames(image) else 'an image'} stands where the prompt has "
                    f"{mark!r}; write the blocks, or placeholders, in the order of `images`.",
                )
        for name, response in texts.items():
            for mark in marks:
                if mark in response:
                    raise FieldError(
                        name,
                        f"contains the image placeholder {mark!r}, which only the prompt may; "
                        "remove it.",
                    )
        expand = iter([self._expansion(image) for image in images])
        parts = re.split(pattern, text)
        parts[-1] = self.around[0] + parts[-1] + self.around[1]
        text = parts[0] + "".join(next(expand) + part for part in parts[1:])
        return self._ids(text), {name: self._ids(response) for name, response in texts.items()}

    def offsets(
        self,
        name: str,
        prompt: str | Messages,
        responses: Mapping[str, str | Messages],
        images: Sequence[Any],
        tools: Sequence[Any] | None = None,
    ) -> np.ndarray:
        """int [T, 2], where each token of a response begins and ends in its text (`answer`).

        Tokens of what the template puts around the text lie outside of it: below 0 or behind its
        end. The response is one of those that `encode` was given, with the same arguments.

        Raises:
          FieldError: a tokenizer or a chat template that does not tell.
        """
        if not self.hf.tokenizer.is_fast:
            raise FieldError(
                f"{name}_spans",
                "need a tokenizer that knows the place of its tokens; add tokenizer.json to the "
                "checkpoint, or remove the column.",
            )
        rendered, shift = responses[name], 0
        if not isinstance(prompt, str):
            text, texts = self._render(prompt, responses, images, tools)
            rendered = texts[name]
            shift = self._start(name, prompt, responses[name], images, tools) - len(text)
        found = self.hf.tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        return np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2) - shift

    @property
    def video_text(self) -> str:
        """What stands for a video in text; "" where the family has no time."""
        return self.hf.video_text if self.form.video else ""

    def picture(self, image: PIL.Image.Image | list[PIL.Image.Image]) -> types.Picture:
        """The image as the checkpoint's image processor gives it to the model; or a video."""
        if isinstance(image, list):
            pixels = self.form.video([self.form.pixels(self._processed(frame)) for frame in image])
            extent, interval = self.form.extent(pixels.shape), self.form.together / self.fps
            return types.Picture(pixels, image[0].size, *extent, interval)
        pixels = np.ascontiguousarray(self.form.pixels(self._processed(image)), np.float32)
        return types.Picture(pixels, image.size, *self.form.extent(pixels.shape))

    def extent(self, size: tuple[int, int], frames: int = 0) -> tuple[int, int]:
        """(entries, cells) of a picture of this width and height, or of a video; see
        types.Picture."""
        shape = self._measured(size)[1]
        if frames:
            shape = (-(-frames // self.form.together), *shape[1:])
        return self.form.extent(shape)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of token ids; special tokens are left out unless `special`."""
        ids = [int(token) for token in ids]
        return self.hf.tokenizer.decode(ids, skip_special_tokens=not special)

    def _ids(self, text: str) -> np.ndarray:
        ids = self.hf.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, np.int32)

    def _expansion(self, image) -> str:
        text, shape = self._measured(image.size)
        frames = _frames(image)
        return self.hf.written(*shape[1:3], frames, self.fps) if frames else text

    def _measured(self, size: tuple[int, int]) -> tuple[str, tuple[int, ...]]:
        """(expansion of the placeholder, shape of the pixels) of pictures of this size."""
        # Both depend on the size alone, so a blank picture stands in and the costly resizing is
        # done once per size, not once per row.
        if size not in self._sizes:
            inputs = self._processed(PIL.Image.new("RGB", size))
            shape = self.form.pixels(inputs).shape
            self._sizes[size] = self.hf.replace_image_token(inputs, image_idx=0), shape
        return self._sizes[size]

    def _processed(self, image: PIL.Image.Image) -> Mapping[str, Any]:
        """What the image processor gives, called as the processor calls it."""
        try:
            return self.hf.image_processor(
                [image], return_tensors="np", **getattr(self.hf, "images_kwargs", {})
            )
        except ValueError as error:  # of Qwen-VL's, for a picture 200 times as long as wide
            raise FieldError(
                "images",
                f"the image processor refuses a picture of {image.width} x {image.height} pixels "
                f"({error}); crop it, or remove the row.",
            ) from error

    def _render(self, prompt, responses, images, tools) -> tuple[str, dict[str, str]]:
        """Texts of a prompt and its responses by the chat template, as TRL splits them."""
        if not self.hf.chat_template:
            raise FieldError(
                "prompt",
                "holds messages, but the checkpoint has no chat template; add chat_template.jinja "
                "to its directory, or write prompt and responses as strings.",
            )
        prompt = _blocks("prompt", prompt, images, self.image_text)
        last = prompt[-1]["role"]
        if last == "system":
            raise FieldError("prompt", "ends with a 'system' message; it must end with 'user'.")
        continued = last == "assistant"
        apply = functools.partial(self._apply, tools=list(tools) if tools else None)
        text = apply(
            "prompt", prompt, continue_final_message=continued, add_generation_prompt=not continued
        )
        whole = {}
        for name, response in responses.items():
            blocks = _blocks(name, response, (), self.image_text)
            whole[name] = apply(name, prompt + blocks)
            # A template may render the prompt alone differently from the prompt followed by a
            # response; the response starts where they part.
            same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, whole[name]))
            text = "".join(character for character, _ in same)
        return text, {name: rendered[len(text) :] for name, rendered in whole.items()}

    def _start(self, name, prompt, response, images, tools) -> int:
        """Where the text of a response begins in the rendered conversation."""
        blocks = [
            *_blocks("prompt", prompt, images, self.image_text),
            *_blocks(name, response, (), self.image_text),
        ]
        place, text = answer(name, response)
        place += len(prompt)
        marked = [*blocks]
        marked[place] = {**blocks[place], "content": [{"type": "text", "text": _MARK}]}
        whole, front = (
            self._apply(name, messages, tools=list(tools) if tools else None)
            for messages in (blocks, marked)
        )
        start = front.find(_MARK)
        lost = len(text) - len(text.lstrip())  # of a template that strips
        for shift in (0, lost):
            if start >= 0 and whole[start:].startswith(text[shift:].rstrip()):
                return start - shift
        raise FieldError(
            f"{name}_spans",
            "cannot be found in the conversation: the chat template changes the text of the "
            "message. Remove the column, or write prompt and responses as strings.",
        )

    def _apply(self, field: str, messages: list, **options) -> str:
        try:
            return self.hf.apply_chat_template(messages, tokenize=False, **options)
        except (ValueError, TypeError, jinja2.exceptions.TemplateError) as error:
            raise FieldError(field, f"the chat template refuses these messages: {error}") from error


def load(directory: str, pixels: tuple[int, ...] = (), fps: float = 2.0) -> Processor:
    """Loads the processor of a Hugging Face directory (see models.directory for hub names).

    Args:
      pixels: least and most pixels of a picture after resizing; () = as the checkpoint says.
      fps: frames per second of videos, > 0; read where the family places them in time.

    Raises:
      ValueError: no such directory, files are missing in it, or `pixels` do not fit.
    """
    if not os.path.isdir(directory):
        raise ValueError(f"No directory {directory!r}; config.model.checkpoint must name one.")
    config = _json(directory, "config.json")
    name = _class_name(directory, config)
    if name is None or not hasattr(transformers, name):
        raise ValueError(
            f"{directory!r} names no processor class that transformers {transformers.__version__} "
            f"knows (found {name!r}); it must be the directory of a vision-language checkpoint "
            "with processor_config.json or config.json."
        )
    try:
        hf = stand_ins.processor(name).from_pretrained(directory, backend="pil")
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"Cannot load the processor of {directory!r}: {error}") from error
    if getattr(hf, "patch_size", 0) is None:  # older LLaVA directories leave it to the model config
        vision = config.get("vision_config", {})
        hf.patch_size = vision.get("patch_size")
        hf.vision_feature_select_strategy = config.get("vision_feature_select_strategy", "default")
        hf.num_additional_image_tokens = 1  # the CLIP class token
    if hasattr(hf.image_processor, "do_pan_and_scan"):  # Gemma 3: pictures are read whole
        hf.image_processor.do_pan_and_scan = False
    if pixels:
        forms.resize(hf.image_processor, pixels)
    tokenizer = hf.tokenizer
    hf.chat_template = hf.chat_template or tokenizer.chat_template
    form = forms.of(name, config)
    if form.video and not fps > 0:
        raise ValueError(f"config.data.fps is {fps}; it must be above 0.")
    paligemma = isinstance(hf, transformers.PaliGemmaProcessor)
    eos = _json(directory, "generation_config.json").get("eos_token_id", tokenizer.eos_token_id)
    eos_ids = tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,))
    pad = next((i for i in (tokenizer.pad_token_id, *eos_ids) if i is not None), 0)
    return Processor(
        hf=hf,
        fingerprint=_fingerprint(directory, hf, (*pixels, *((fps,) if form.video else ()))),
        image_token=hf.image_token_ids[0],
        image_text=hf.image_token,
        pad_id=pad,
        eos_ids=eos_ids,
        around=(tokenizer.bos_token, "\n") if paligemma else ("", ""),
        form=form,
        fps=fps,
    )


def text_of(messages: Messages) -> str:
    """The text of messages, one after the other, without roles and pictures."""
    parts = []
    for message in messages:
        content = message.get("content") or ""
        blocks = content if isinstance(content, list) else [{"text": content}]
        parts += [str(block.get("text", "")) for block in blocks if isinstance(block, Mapping)]
    return "".join(parts)


def answer(field: str, response: str | Messages) -> tuple[int, str]:
    """(its message, the text of a response): of messages, the last assistant message's text.

    Raises:
      FieldError: no assistant message with one text.
    """
    if isinstance(response, str):
        return 0, response
    for place in reversed(range(len(response))):
        if response[place].get("role") == "assistant":
            content = response[place].get("content")
            texts = (
                [content]
                if isinstance(content, str)
                else [block.get("text") for block in content or () if isinstance(block, Mapping)]
            )
            if len(texts) == 1 and isinstance(texts[0], str):
                return place, texts[0]
    raise FieldError(
        field, "needs a last assistant message with one text, whose characters it counts."
    )


def _blocks(field: str, messages: Messages, images: Sequence[Any], image_text: str) -> list[dict]:
    """Messages whose contents are lists of blocks, image blocks filled.

    A plain string becomes a text block; the first user message, if plain, gets one image block per
    image in front. As `trl.data_utils.prepare_multimodal_messages`.
    """
    filled, included = [], False
    for message in messages:
        role, content = message["role"], message.get("content")
        if role not in _ROLES:
            raise FieldError(field, f"has role {role!r}; it must be one of {', '.join(_ROLES)}.")
        if isinstance(content, str):
            front = [{"type": "video" if _frames(image) else "image"} for image in images]
            front = front if role == "user" and not included else []
            included = included or role == "user"
            message = {**message, "content": [*front, {"type": "text", "text": content}]}
        filled.append(message)
    found, pictures = 0, iter(images)
    for i, message in enumerate(filled):
        if not message.get("content") or message["role"] == "tool":
            continue
        content = []
        if not isinstance(message["content"], Sequence):
            raise FieldError(
                field, f"has the content {message['content']!r}; it must be text or a list."
            )
        for block in message["content"]:
            if not isinstance(block, Mapping) or "type" not in block:
                raise FieldError(
                    field, f"has the content block {block!r}; it needs a 'type' (text or image)."
                )
            if block["type"] in ("image", "video"):
                if set(block) & {"image", "video", "path", "url", "base64"}:
                    raise FieldError(
                        field,
                        'has an image inside a message; write {"type": "image"} there and list '
                        "the image in the column `images`.",
                    )
                found += 1
                block = {**block, block["type"]: next(pictures, None)}
            content.append(block)
        filled[i] = {**message, "content": content}
    if found != len(images):
        raise FieldError(
            "images" if images or field == "prompt" else field,
            f"{len(images)} image(s) for {found} image block(s) in {field}; there must be one "
            'block {"type": "image"} per image, in the prompt (none at all when the first user '
            f"message is a plain string; {image_text!r} is not written out in messages).",
        )
    return filled


def _frames(image) -> int:
    return getattr(image, "frames", 0)


def _form(value: str | Messages) -> str:
    return "a string" if isinstance(value, str) else "a list of messages"


def _class_name(directory: str, config: Mapping[str, Any]) -> str | None:
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        name = _json(directory, file).get("processor_class")
        if name:
            return name
    return processing_auto.PROCESSOR_MAPPING_NAMES.get(config.get("model_type"))


def _json(directory: str, file: str) -> dict[str, Any]:
    path = os.path.join(directory, file)
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def _fingerprint(directory: str, hf: Any, settings: tuple[float, ...]) -> str:
    numbers = [
        getattr(hf, key, None)
        for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    ]
    total = hashlib.sha256(json.dumps([type(hf).__name__, *numbers, *settings]).encode())
    for file in _FILES:
        path = os.path.join(directory, file)
        if os.path.exists(path):
            with open(path, "rb") as stream:
                data = stream.read()
            total.update(f"{file} {len(data)} ".encode() + data)
    return total.hexdigest()
