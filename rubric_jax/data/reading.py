"""A data path to rows, checked field by field.

TRL's preference layout, one row per line or record:

  {"prompt": "<image> What is this?", "chosen": "A cat.", "rejected": "A dog.", "images": ["a.png"]}
  {"prompt": [{"role": "user", "content": "What is this?"}], "image": "a.png",
   "chosen": [{"role": "assistant", "content": "A cat."}], "rejected": [...]}

  prompt           text or messages; left out when all responses are whole conversations, whose
                   common first turns are then the prompt
  <response>       one column per response of the layout's branches: chosen, rejected, response_3
  images | image   paths relative to the data file, bytes, {"bytes", "path"} or PIL images; a list
                   of them among the others is a video
  rejected_images  images of the context `corrupted` (also: corrupted_images; in general
                   <context>_images); a row without it reads its own images there, or what
                   config.data.contexts makes of them
  <context>_prompt text or messages, the prompt of a context other than `clean`; a row without it
                   reads its own prompt there
  <response>_spans tokens that weigh more or less (see spans.py); <branch>_spans goes before it
  <response>_rewards   axis -> number in [0, 1]; <branch>_rewards, such as chosen@corrupted_rewards,
                   goes before it
  axis, weight, margin, id   the axis that ordered the pair, >= 0, any number, any name
  level            how hard the row is, for curricula and views; read where it is a number
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data import corruptions, images, processing, sources
from rubric_jax.data import rated as rated_lib
from rubric_jax.data import spans as spans_lib

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Row:
    """One checked row of the data."""

    file: str
    number: int  # line of a JSON Lines file, else row, from 1
    id: str  # column `id`, else the number
    prompt: str | list
    prompts: Mapping[str, str | list]  # by context
    prompt_field: Mapping[str, str]  # the column they stood in, by context
    responses: Mapping[str, str | list]  # by response name
    images: Mapping[str, tuple[images.Ref, ...]]  # by context
    image_field: Mapping[str, str]  # the column they stood in, by context
    fallback: tuple[str, ...]  # contexts that read what `clean` reads, for want of others
    made: tuple[str, ...]  # contexts whose images are to be made of the row's own, given above
    inputs: Mapping[str, Any]  # columns that making them reads; references where they hold maps
    rewards: Mapping[str, Mapping[str, float]]  # by branch; {} where nothing is known
    spans: Mapping[str, tuple[spans_lib.Span, ...]]  # by branch
    axis: str | None
    weight: float
    margin: float
    level: float | None
    unread: frozenset[str]  # columns that nothing reads
    tied: bool = False  # of a rated list: the ratings of both responses are equal

    def error(self, field: str, message: str) -> ValueError:
        return ValueError(f"{self.file}:{self.number}: {field}: {message}")


def rows(
    path: str,
    split: str,
    *,
    layout: types.Layout,
    axes: Sequence[str] = (),
    confine: bool = False,
    contexts: Mapping[str, corruptions.Context] | None = None,
    differences: Sequence[str] = (),
    rated: rated_lib.Rated | None = None,
    videos: bool = False,
) -> Iterator[Row]:
    """Rows of a data path in their order, each checked.

    Args:
      path: a file, a directory, or a hub name.
      split: of a DatasetDict or a hub name.
      layout: says which responses and contexts a row needs.
      axes: names of the reward axes; without axes, rewards are not read.
      confine: refuse image paths that leave the directory of the data.
      contexts: those that are made of a row's own images where it has no column of them.
      differences: two responses whose differing words are spans, in rows without spans of them.
      rated: how records with rated responses become pairs, one after the other.
      videos: read lists of frames among the images; else they are refused.

    Raises:
      ValueError: 'file:row: field: what is wrong, and the mend'.
    """
    root = os.path.abspath(path if os.path.isdir(path) else os.path.dirname(path))
    for number, record in sources.records(path, split):
        where = f"{path}:{number}: "
        try:
            record = _strip(record)
            pairs = rated.rows(record, str(number)) if rated else [(record, False)]
            for part, tied in pairs:
                row = _row(path, number, part, layout, axes, root, confine, contexts or {}, videos)
                row = dataclasses.replace(row, tied=tied)
                yield _with_differences(row, part, layout, differences) if differences else row
        except processing.FieldError as error:
            raise ValueError(where + str(error)) from error


def _row(file, number, record, layout, axes, root, confine, contexts, videos) -> Row:
    responses, prompt = _texts(record, layout)
    prompts, prompt_fields = _prompts(record, layout, prompt)
    pictures, fields, made = _pictures(record, layout, root, confine, contexts, videos)
    fallback = [
        name
        for name in layout.contexts
        if name not in (types.CLEAN, *made)
        and (fields[name], prompt_fields[name]) == (fields[types.CLEAN], "prompt")
    ]
    known = {*fields.values(), *prompt_fields.values()}
    inputs = _inputs(record, [contexts[name] for name in made], root, confine)
    rewards, spans = {}, {}
    for branch, response in zip(layout.branches, layout.responses, strict=True):
        name = f"{branch}_rewards" if f"{branch}_rewards" in record else f"{response}_rewards"
        rewards[branch] = _rewards(name, record.get(name), axes) if axes else {}
        known.add(name if axes else "")
        name = f"{branch}_spans" if f"{branch}_spans" in record else f"{response}_spans"
        spans[branch] = spans_lib.read(name, record.get(name, []), responses[response])
        known.add(name)
    axis = record.get("axis") if axes else None
    if axis is not None and axis not in axes:
        raise processing.FieldError(
            "axis", f"{axis!r} is not an axis of config.data.axes: {config_lib.one_of(axis, axes)}"
        )
    weight = _number("weight", record.get("weight", 1.0))
    if weight < 0:
        raise processing.FieldError("weight", f"is {weight}; a weight must be at least 0.")
    known |= {"prompt", "id", "weight", "margin", *responses} | ({"axis"} if axes else set())
    known |= set(inputs)
    level = record.get("level")
    level = None if isinstance(level, bool) or not isinstance(level, int | float) else level
    known |= set() if level is None else {"level"}
    return Row(
        file=file,
        number=number,
        id=str(record.get("id", number)),
        prompt=prompt,
        prompts=prompts,
        prompt_field=prompt_fields,
        responses={name: responses[name] for name in dict.fromkeys(layout.responses)},
        images=pictures,
        image_field=fields,
        fallback=tuple(fallback),
        made=tuple(made),
        inputs=inputs,
        rewards=rewards,
        spans=spans,
        axis=axis,
        weight=weight,
        margin=_number("margin", record.get("margin", 0.0)),
        level=None if level is None else _number("level", level),
        unread=frozenset(record) - known,
    )


def _with_differences(row: Row, record, layout: types.Layout, names: Sequence[str]) -> Row:
    """The row with spans where two responses differ, if it has no column of spans for them."""
    read = [name for name in layout.branches if types.split_branch(name)[0] in names]
    if any(f"{name}_spans" in record for name in (*names, *read)):
        return row
    texts = [processing.answer(name, row.responses[name])[1] for name in names]
    found = dict(zip(names, map(tuple, spans_lib.differing(*texts)), strict=True))
    spans = {**row.spans, **{name: found[types.split_branch(name)[0]] for name in read}}
    return dataclasses.replace(row, spans=spans)


def _texts(record: Mapping[str, Any], layout: types.Layout) -> tuple[dict, str | list]:
    """(responses by name, prompt); takes the prompt out of whole conversations where needed."""
    responses = {}
    for name in dict.fromkeys(layout.responses):
        value = record.get(name)
        if value is None:
            raise processing.FieldError(
                name,
                f"is missing; the branches {', '.join(layout.branches)} read this column. Fill "
                "it, remove the row, or change config.data.branches.",
            )
        _check_form(name, value)
        responses[name] = value
    prompt = record.get("prompt")
    if prompt is not None:
        _check_form("prompt", prompt)
    conversations = all(isinstance(value, list) and value for value in responses.values())
    whole = conversations and all(value[0]["role"] != "assistant" for value in responses.values())
    whole = whole and bool(responses)
    if not prompt and not whole:
        raise processing.FieldError(
            "prompt",
            "the row has neither a prompt nor messages to take it from; add a `prompt` (text or "
            "messages), or write the responses as whole conversations.",
        )
    if isinstance(prompt, list) or not whole:
        return responses, prompt
    # Both TRL columns have a say in where the prompt ends, whichever of them the layout reads.
    for name in ("chosen", "rejected"):
        if isinstance(record.get(name), list):
            _check_form(name, record[name])
            responses.setdefault(name, record[name])
    return _extract_prompt(responses)


def _prompts(record, layout, prompt) -> tuple[dict[str, str | list], dict[str, str]]:
    """(prompt, column it stands in) of every context, each by context."""
    prompts, fields = {}, {}
    for context in layout.contexts:
        name = f"{context}_prompt"
        own = context == types.CLEAN or record.get(name) is None
        prompts[context] = prompt if own else record[name]
        fields[context] = "prompt" if own else name
        if own:
            continue
        _check_form(name, record[name])
        if not record[name]:
            raise processing.FieldError(name, "is empty; write a prompt, or remove the column.")
        if isinstance(record[name], str) != isinstance(prompt, str):
            raise processing.FieldError(
                name,
                "must be in the form of the row's prompt: both strings, or both lists of messages.",
            )
    return prompts, fields


def _extract_prompt(responses: Mapping[str, list]) -> tuple[dict, list]:
    """Splits the common first turns off conversations, as `trl.data_utils.extract_prompt`."""
    shortest = min(map(len, responses.values()))
    first = next(iter(responses.values()))
    # Like TRL, conversations that do not differ keep their last shared turn as the response.
    split = next(
        (i for i in range(shortest) if any(r[i] != first[i] for r in responses.values())),
        shortest - 1,
    )
    if split == 0:
        raise processing.FieldError(
            next(iter(responses)),
            f"shares no first turn with {', '.join(list(responses)[1:]) or 'a response'}, so there "
            "is no prompt; begin the conversations with the same user message, or add a `prompt`.",
        )
    return {name: value[split:] for name, value in responses.items()}, first[:split]


def _check_form(name: str, value: Any) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise processing.FieldError(
            name, f"is {type(value).__name__} {value!r}; it must be text or a list of messages."
        )
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise processing.FieldError(
                name,
                f"holds {message!r}; a message is "
                '{"role": "user" or "assistant" or "system", "content": ...}.',
            )


def _images(record, name, root, confine, videos=False) -> tuple[str, tuple[images.Ref, ...]]:
    value = record.get(name)
    if name == "images" and record.get("image") is not None:
        if value is not None:
            raise processing.FieldError(
                "image", "the row has both `image` and `images`; keep one of them."
            )
        name, value = "image", [record["image"]]
    if value is None:
        return name, ()
    refs = []
    for item in value if isinstance(value, list) else [value]:
        try:
            is_video = videos and isinstance(item, list | tuple) and len(item) > 0
            parts = item if is_video else [item]
            found = tuple(images.of(part, root=root, confine=confine) for part in parts)
            refs.append(images.Ref(frames=found) if is_video else found[0])
        except ValueError as error:
            raise processing.FieldError(name, str(error)) from error
    return name, tuple(refs)


def _pictures(record, layout, root, confine, contexts, videos) -> tuple[dict, dict, list[str]]:
    """(images by context, the column they stood in by context, contexts to be made)."""
    own_field, own = _images(record, "images", root, confine, videos)
    pictures, fields, made = {}, {types.CLEAN: own_field}, []
    for context in layout.contexts:
        names = [f"{context}_images", *(["rejected_images"] if context == "corrupted" else [])]
        name = next((name for name in names if record.get(name) is not None), None)
        if context == types.CLEAN or name is None:
            pictures[context], fields[context] = own, own_field
            if context in contexts:
                made.append(context)
        else:
            fields[context], pictures[context] = _images(record, name, root, confine, videos)
    return pictures, fields, made


def _inputs(record, contexts, root, confine) -> dict[str, Any]:
    found = {}
    for context in contexts:
        for column, kind in context.columns.items():
            if column not in record:
                raise processing.FieldError(
                    column,
                    f"is missing; config.data.contexts.{context.name} reads it. Fill it ([] = "
                    f"none), or give the row the column `{context.name}_images`.",
                )
            value = record[column]
            found[column] = _images(record, column, root, confine)[1] if kind == "maps" else value
    return found


def _rewards(name: str, value: Any, axes: Sequence[str]) -> dict[str, float]:
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(v, tuple) and len(v) == 2 for v in value):
        value = dict(value)  # how Arrow gives back a map
    if not isinstance(value, Mapping):
        raise processing.FieldError(
            name, f"is {value!r}; it must map axes to numbers, such as {{{axes[0]!r}: 0.5}}."
        )
    rewards = {}
    for axis, number in value.items():
        if axis not in axes:
            raise processing.FieldError(
                name,
                f"{axis!r} is not an axis of config.data.axes: {config_lib.one_of(axis, axes)}",
            )
        if number is None:
            continue
        rewards[axis] = _number(f"{name}.{axis}", number)
        if not 0 <= rewards[axis] <= 1:
            raise processing.FieldError(
                f"{name}.{axis}", f"is {number}; rewards are in [0, 1], rescale them."
            )
    return rewards


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise processing.FieldError(name, f"is {value!r}; it must be a number.")
    if not abs(value) <= _LARGEST:  # false for NaN too
        raise processing.FieldError(name, f"is {value}; it must be finite in float32.")
    return float(value)


def _strip(value: Any) -> Any:
    """Removes keys whose value is None: Arrow gives every struct of a column all the keys."""
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items() if item is not None}
    return [_strip(item) for item in value] if isinstance(value, list) else value
