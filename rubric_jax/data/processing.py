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
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import PIL.Image
import transformers
from transformers.models.auto import processing_auto

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
    _expansions: dict = dataclasses.field(default_factory=dict, repr=False)

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
          images: in the order of the placeholders; only `.size` (width, height) is read.
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
        found = text.count(self.image_text)
        if found != len(images):
            raise FieldError(
                "images",
                f"{len(images)} image(s) for {found} placeholder(s) {self.image_text!r} in the "
                "prompt; there must be one placeholder per image.",
            )
        for name, response in texts.items():
            if self.image_text in response:
                raise FieldError(
                    name,
                    f"contains the image placeholder {self.image_text!r}, which only the prompt "
                    "may; remove it.",
                )
        expand = iter([self._expansion(image.size) for image in images])
        parts = text.split(self.image_text)
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

    def pixels(self, image: PIL.Image.Image) -> np.ndarray:
        """Float32 [H, W, 3], normalised as the checkpoint's image processor does."""
        values = self.hf.image_processor(image, return_tensors="np")["pixel_values"][0]
        return np.ascontiguousarray(np.moveaxis(values, 0, -1), np.float32)

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """Text of token ids; special tokens are left out unless `special`."""
        ids = [int(token) for token in ids]
        return self.hf.tokenizer.decode(ids, skip_special_tokens=not special)

    def _ids(self, text: str) -> np.ndarray:
        ids = self.hf.tokenizer(text, add_special_tokens=False)["input_ids"]
        return np.asarray(ids, np.int32)

    def _expansion(self, size: tuple[int, int]) -> str:
        # The number of features depends on an image's size alone, so a blank one stands in and the
        # costly resizing is done once per size, not once per row.
        if size not in self._expansions:
            blank = PIL.Image.new("RGB", size)
            inputs = self.hf.image_processor([blank], return_tensors="np")
            self._expansions[size] = self.hf.replace_image_token(inputs, image_idx=0)
        return self._expansions[size]

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


def load(directory: str) -> Processor:
    """Loads the processor of a Hugging Face directory (see models.directory for hub names).

    Raises:
      ValueError: no such directory, or files are missing in it.
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
        hf = getattr(transformers, name).from_pretrained(directory, backend="pil")
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"Cannot load the processor of {directory!r}: {error}") from error
    if getattr(hf, "patch_size", 0) is None:  # older LLaVA directories leave it to the model config
        vision = config.get("vision_config", {})
        hf.patch_size = vision.get("patch_size")
        hf.vision_feature_select_strategy = config.get("vision_feature_select_strategy", "default")
        hf.num_additional_image_tokens = 1  # the CLIP class token
    if hasattr(hf.image_processor, "do_pan_and_scan"):  # Gemma 3: pictures are read whole
        hf.image_processor.do_pan_and_scan = False
    tokenizer = hf.tokenizer
    paligemma = isinstance(hf, transformers.PaliGemmaProcessor)
    eos = _json(directory, "generation_config.json").get("eos_token_id", tokenizer.eos_token_id)
    eos_ids = tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,))
    pad = next((i for i in (tokenizer.pad_token_id, *eos_ids) if i is not None), 0)
    return Processor(
        hf=hf,
        fingerprint=_fingerprint(directory, hf),
        image_token=hf.image_token_ids[0],
        image_text=hf.image_token,
        pad_id=pad,
        eos_ids=eos_ids,
        around=(tokenizer.bos_token, "\n") if paligemma else ("", ""),
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
            front = [{"type": "image"} for _ in images] if role == "user" and not included else []
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
            if block["type"] == "image":
                if set(block) & {"image", "path", "url", "base64"}:
                    raise FieldError(
                        field,
                        'has an image inside a message; write {"type": "image"} there and list '
                        "the image in the column `images`.",
                    )
                found += 1
                block = {**block, "image": next(pictures, None)}
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


def _fingerprint(directory: str, hf: Any) -> str:
    numbers = [
        getattr(hf, key, None)
        for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    ]
    total = hashlib.sha256(json.dumps([type(hf).__name__, *numbers]).encode())
    for file in _FILES:
        path = os.path.join(directory, file)
        if os.path.exists(path):
            with open(path, "rb") as stream:
                data = stream.read()
            total.update(f"{file} {len(data)} ".encode() + data)
    return total.hexdigest()
