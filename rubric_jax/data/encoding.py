"""Rows to records: text tokenised, unusable rows dropped and counted.

Everything streams: a window of rows has its images in memory, and of the whole data only lengths,
numbers and hashes are kept.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data import conditioning as conditioning_lib
from rubric_jax.data import corruptions, forms, images, pictures, processing, reading
from rubric_jax.data import spans as spans_lib
from rubric_jax.data.corruptions import placeholders

EXAMPLES = 3  # rows named per cause of dropping


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the rows of the data."""

    rows: int
    kept: int
    dropped: Mapping[str, int]  # cause -> rows
    examples: Mapping[str, tuple[str, ...]]  # cause -> 'file:row: field: what'
    cut: int  # responses longer than max_response
    unrewarded: int  # kept rows without a reward on every axis for every branch
    fell_back: int  # kept rows whose other contexts read their own images
    images: int  # image uses in kept rows
    distinct_images: int
    unread: tuple[str, ...]  # columns that nothing reads
    # context -> kept rows whose images there came from: column, corruption, unchanged (a corruption
    # that left them as they were), shared (the row's own, under the context's own prompt), own (for
    # want of others); "drawn from" one of them where the step corrupts them
    contexts: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    prompts: Mapping[str, int] = dataclasses.field(default_factory=dict)  # context -> kept rows
    # that give it a prompt of its own
    spans: Mapping[str, int] = dataclasses.field(default_factory=dict)  # name -> kept rows with
    # spans of that name; records count the names in this order
    copies: int = 0  # of each row, each with weights in its prompt; 0 = the row as it is
    cut_spans: int = 0  # spans that no token of a response is left of


class Coded(NamedTuple):
    """A context of a row in tokens."""

    prompt: np.ndarray  # int32 [P]
    responses: Mapping[str, np.ndarray]  # int32 [T] by response
    offsets: Mapping[str, np.ndarray]  # int [T, 2] by response that has spans; see processing


class Dropped(Exception):
    """A row that cannot be used: (cause, field, what is the matter)."""


class Encoder:
    """Encodes rows one by one and keeps the books."""

    def __init__(
        self,
        config: config_lib.Data,
        layout: types.Layout,
        processor: processing.Processor,
        album: pictures.Album,
        conditioning: conditioning_lib.Conditioning | None = None,
    ):
        self.config, self.layout, self.processor, self.album = config, layout, processor, album
        self.conditioning = conditioning
        self.image_ids: dict[str, int] = {}  # hash -> number of the stored image
        self.rows = self.cut = self.unrewarded = self.fell_back = self.uses = 0
        self.cut_spans = 0
        self.spans: dict[str, int] = {}  # name -> rows
        self.dropped: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, list[str]] = collections.defaultdict(list)
        self.unread: set[str] = set()
        self._ids: list[str] = []
        self._numbers, self._entries = array.array("q"), array.array("i")
        self._cells = array.array("i")
        self._extents: list[tuple[int, int]] = []  # by number of the stored image
        self._prompt_lengths, self._response_lengths = array.array("i"), array.array("i")
        self._axes = array.array("i")
        self._preferences = array.array("f")
        self._rewards, self._levels = array.array("f"), array.array("d")
        self._keys = bytearray()
        self._drawn = tuple(corruptions.in_step(config.contexts, layout))
        if self._drawn and processor.form != forms.WHOLE:
            name = layout.contexts[self._drawn[0]]
            raise ValueError(
                f"config.data.contexts.{name} has 'when': 'step', but this checkpoint's processor "
                "cuts pictures to pieces before the step sees them; take 'when': 'data'."
            )
        others = [context for context in layout.contexts if context != types.CLEAN]
        self.origins = {context: collections.Counter() for context in others}
        self.prompts: collections.Counter[str] = collections.Counter()

    def records(self, rows: Iterator[reading.Row]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields ('images', record) before the first ('rows', record) that uses the image."""
        for row, found in self.album.of_rows(rows):
            self.rows += 1
            self.unread |= row.unread
            for copy, preference in self._copies(row):
                yield from self._one(copy, preference, found)

    def _copies(self, row: reading.Row) -> list[tuple[reading.Row, np.ndarray]]:
        """(the row as it is prepared, the weights that its prompts state), once per copy."""
        if self.conditioning is None:
            return [(row, np.zeros(0, np.float32))]
        try:
            return self.conditioning.apply(row)
        except processing.FieldError as error:
            raise row.error(error.field, error.message) from error

    def _one(self, row: reading.Row, preference: np.ndarray, found: pictures.Found):
        """The records of a row, or of a copy of it."""
        try:
            record = self._encode(row, found)
        except processing.FieldError as error:
            raise row.error(error.field, error.message) from error
        except Dropped as drop:
            cause, field, message = drop.args
            self.dropped[cause] += 1
            if len(self.examples[cause]) < EXAMPLES:
                self.examples[cause].append(str(row.error(field, message)))
            return
        used = [_kept(found[context]) for context in self.layout.contexts]
        for picture in (picture for context in used for picture in context):
            if picture.hash not in self.image_ids:
                self.image_ids[picture.hash] = number = len(self.image_ids)
                self._extents.append(self.processor.extent(picture.size, picture.frames))
                data = images.read(picture.ref) if picture.data is None else picture.data
                yield "images", {"index": number, "hash": picture.hash, "data": data}
        ids = [[self.image_ids[picture.hash] for picture in context] for context in used]
        record["preference"] = preference
        self._preferences.extend(preference.tolist())
        self._note(row, record, ids)
        self._note_origins(row, found)
        yield "rows", record

    def counts(self) -> Counts:
        return Counts(
            rows=self.rows,
            kept=len(self._ids),
            dropped=dict(self.dropped),
            examples={cause: tuple(lines) for cause, lines in self.examples.items()},
            cut=self.cut,
            unrewarded=self.unrewarded,
            fell_back=self.fell_back,
            images=self.uses,
            distinct_images=len(self.image_ids),
            unread=tuple(sorted(self.unread)),
            contexts={context: dict(counter) for context, counter in self.origins.items()},
            prompts=dict(self.prompts),
            spans=self.spans,
            cut_spans=self.cut_spans,
            copies=self.conditioning.copies if self.conditioning else 0,
        )

    def index(self) -> dict[str, np.ndarray]:
        """What planning needs of every kept row; see preparing.Prepared.index."""
        rows, branches = len(self._ids), len(self.layout.branches)
        return {
            "id": np.array(self._ids, str),
            "number": np.array(self._numbers, np.int64),
            "images": np.array(self._entries, np.int32),
            "cells": np.array(self._cells, np.int32),
            "axis": np.array(self._axes, np.int32),
            "preference": np.array(self._preferences, np.float32).reshape(
                rows, len(self.config.axes) if self.conditioning else 0
            ),
            "rewards": np.array(self._rewards, np.float32).reshape(
                rows, branches, len(self.config.axes)
            ),
            "level": np.array(self._levels, np.float64),
            "prompt_lengths": np.array(self._prompt_lengths, np.int32).reshape(rows, -1),
            "response_lengths": np.array(self._response_lengths, np.int32).reshape(rows, branches),
            "keys": np.frombuffer(bytes(self._keys), np.uint8).reshape(rows, branches, 32),
        }

    def _encode(self, row: reading.Row, found: pictures.Found) -> dict[str, Any]:
        if row.tied:
            raise Dropped(
                "equal ratings",
                "rejected",
                "is rated like the best response of its list, so there is nothing to prefer.",
            )
        for name, response in row.responses.items():
            if not _text(response).strip():
                raise Dropped("empty response", name, "is empty; write a response.")
        coded = [self._coded(row, m, found) for m in range(len(self.layout.contexts))]
        whole = [
            coded[m].responses[r] for m, r in zip(self.layout.context_of, self.layout.responses)
        ]
        responses = [ids[: self.config.max_response] for ids in whole]
        for name, ids in zip(self.layout.responses, responses, strict=True):
            if not len(ids):
                raise Dropped("fully masked", name, "leaves no token to train on.")
        self._check_differ(responses)
        # A response that two branches read is cut once.
        names = dict(zip(self.layout.responses, whole, strict=True))
        self.cut += sum(len(ids) > self.config.max_response for ids in names.values())
        record = self._record(row, [part.prompt for part in coded], responses, found)
        return record | self._spans(row, coded, responses)

    def _coded(self, row: reading.Row, m: int, found: pictures.Found) -> Coded:
        """What a context reads: its own prompt and pictures, and the responses behind them."""
        context = self.layout.contexts[m]
        if found[context] is None:
            raise Dropped(
                "no partner",
                row.image_field[context],
                f"no other row has as many other pictures to lend to the context {context!r}.",
            )
        gone = {i for i, picture in enumerate(found[context]) if picture is None}
        prompt = placeholders.without(row.prompts[context], gone, self.processor.image_text)
        used = _kept(found[context])  # only `.size` of an image counts here
        spanned = {
            self.layout.responses[n]
            for n in self.layout.branches_of(m)
            if row.spans[self.layout.branches[n]]
        }
        try:
            ids, responses = self.processor.encode(prompt, row.responses, used)
            offsets = {
                name: self.processor.offsets(name, prompt, row.responses, used) for name in spanned
            }
        except processing.FieldError as error:
            raise _named(error, row, context) from error
        if len(ids) > self.config.max_prompt:
            raise Dropped(
                "long prompt",
                row.prompt_field[context],
                f"has {len(ids)} tokens with its images, config.data.max_prompt is "
                f"{self.config.max_prompt}; raise it or shorten the prompt.",
            )
        return Coded(ids, responses, offsets)

    def _spans(self, row: reading.Row, coded: list[Coded], responses) -> dict[str, Any]:
        """span_names and span_weights of a record."""
        layout, tokens = self.layout, []
        for n, (branch, m, name) in enumerate(
            zip(layout.branches, layout.context_of, layout.responses, strict=True)
        ):
            spans = row.spans[branch]
            offsets = coded[m].offsets.get(name, np.zeros((len(responses[n]), 2), np.int64))
            tokens.append((spans, offsets[: len(responses[n])]))
            self.cut_spans += sum(not spans_lib.touched(s, tokens[-1][1]).any() for s in spans)
        names = dict.fromkeys(span.name for spans, _ in tokens for span in spans)
        numbers = []
        for name in names:
            self.spans[name] = self.spans.get(name, 0) + 1
            numbers.append(list(self.spans).index(name))
        weights = [
            spans_lib.weights(spans, name, offsets) for name in names for spans, offsets in tokens
        ]
        return {
            "span_names": np.array(numbers, np.int32),
            "span_weights": np.concatenate([np.zeros(0, np.float32), *weights]),
        }

    def _check_differ(self, responses: list[np.ndarray]) -> None:
        """Drops a row whose branches do not differ under a context.

        Members of a numbered list (response_0, response_1, ...) may repeat as long as two differ: a
        model samples the same answer twice.
        """
        layout = self.layout
        for m in range(len(layout.contexts)):
            groups: dict[str, list[int]] = collections.defaultdict(list)
            for n in layout.branches_of(m):
                listed = re.fullmatch(r"(.+_)\d+", layout.responses[n])
                groups[listed[1] if listed else ""].append(n)
            for group, members in groups.items():
                distinct = len({responses[n].tobytes() for n in members})
                if len(members) > 1 and distinct < (2 if group else len(members)):
                    names = " and ".join(layout.responses[n] for n in members)
                    raise Dropped(
                        "identical responses",
                        layout.responses[members[-1]],
                        f"{names} hold the same tokens (at most config.data.max_response = "
                        f"{self.config.max_response} count), so there is nothing to prefer.",
                    )

    def _record(self, row, prompts, responses, found) -> dict[str, Any]:
        axes = self.config.axes
        known = [row.rewards[branch] for branch in self.layout.branches]
        rewards = [reward.get(axis, 0.0) for reward in known for axis in axes]
        hashes = [[p.hash for p in _kept(found[context])] for context in self.layout.contexts]
        keys = [
            _content_key(self.processor.fingerprint, prompts[m], hashes[m], ids)
            for m, ids in zip(self.layout.context_of, responses, strict=True)
        ]
        return {
            "row": len(self._ids),
            "number": row.number,
            "id": row.id,
            "prompts": np.concatenate(prompts),
            "prompt_lengths": np.array([len(ids) for ids in prompts], np.int32),
            "responses": np.concatenate([np.zeros(0, np.int32), *responses]),
            "response_lengths": np.array([len(ids) for ids in responses], np.int32),
            "rewards": np.array(rewards, np.float32),
            "has_rewards": int(all(axis in reward for reward in known for axis in axes)),
            "axis": 0 if row.axis is None else axes.index(row.axis),
            "weight": row.weight,
            "margin": row.margin,
            "keys": keys,
        }

    def _note(self, row: reading.Row, record: dict[str, Any], ids: list[list[int]]) -> None:
        flat = [number for context in ids for number in context]
        record["images"] = np.array(flat, np.int32)
        record["image_counts"] = np.array([len(context) for context in ids], np.int32)
        self.uses += len(flat)
        self.unrewarded += not record["has_rewards"]
        drawn = {self.layout.contexts[m] for m in self._drawn}
        self.fell_back += any(context not in drawn for context in row.fallback)
        self._ids.append(row.id)
        self._numbers.append(row.number)
        kept = [number for m, own in enumerate(ids) if m not in self._drawn for number in own]
        used = [*set(kept), *(number for m in self._drawn for number in ids[m])]
        self._entries.append(sum(self._extents[number][0] for number in used))
        self._cells.append(max((self._extents[number][1] for number in used), default=1))
        self._axes.append(-1 if row.axis is None else record["axis"])
        self._rewards.extend(record["rewards"].tolist())
        self._levels.append(np.nan if row.level is None else row.level)
        self._prompt_lengths.extend(record["prompt_lengths"].tolist())
        self._response_lengths.extend(record["response_lengths"].tolist())
        self._keys += bytes.fromhex("".join(record["keys"]))

    def _note_origins(self, row: reading.Row, found: pictures.Found) -> None:
        for context, counter in self.origins.items():
            if row.prompt_field[context] != "prompt":
                self.prompts[context] += 1
            if context in row.made:
                here, own = _kept(found[context]), found[pictures.OWN]
                same = [picture.hash for picture in here] == [picture.hash for picture in own]
                origin = "unchanged" if same else "corruption"
            elif context in row.fallback:
                origin = "own"
            else:
                shared = row.image_field[context] == row.image_field[types.CLEAN]
                origin = "shared" if shared else "column"
            is_drawn = self.layout.contexts.index(context) in self._drawn
            counter[f"drawn from {origin}" if is_drawn else origin] += 1


def _named(error: processing.FieldError, row: reading.Row, context: str) -> processing.FieldError:
    """The error under the name of the column that the context reads."""
    prompt, pictures = row.prompt_field[context], row.image_field[context]
    if error.field == "prompt":
        return processing.FieldError(prompt, error.message)
    if error.field != "images":
        return error
    if prompt == "prompt":
        return processing.FieldError(pictures, error.message)
    return processing.FieldError(
        prompt,
        f"{error.message} The context {context!r} reads the images of the column {pictures!r}; "
        f"`{context}_images` gives it others ([] = none).",
    )


def _kept(found: list[pictures.Picture | None]) -> list[pictures.Picture]:
    return [picture for picture in found if picture is not None]


def _text(response: str | list) -> str:
    """What the author of a response wrote, without the template around it."""
    if isinstance(response, str):
        return response
    calls = any(message.get("tool_calls") for message in response)
    return processing.text_of(response) + ("call" if calls else "")


def _content_key(fingerprint: str, prompt, hashes: list[str], response) -> str:
    """Hash of everything on the data's side that determines a branch's log-probabilities."""
    total = hashlib.sha256(fingerprint.encode())
    for part in (prompt.tobytes(), "".join(hashes).encode(), response.tobytes()):
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()
