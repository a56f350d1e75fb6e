"""The questions that the judge `vlm` asks of a response, as tokens and as batches.

All questions about a response begin alike, up to where its criterion is named:

  prefix    <image> .. instruction .. response .. Is this statement true of the response? ..
  branch    The answer is two. <assistant>          the rest of each, up to where the answer stands
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rubric_jax import types
from rubric_jax.data import processing
from rubric_jax.judges import verdicts

# The smallest padded sizes, powers of two.
_LEAST = {"prompt": 64, "response": 8, "branches": 2, "images": 2, "cells": 16}


class Row(NamedTuple):
    """One request as tokens."""

    prefix: np.ndarray  # int32, common to all questions
    branches: tuple[np.ndarray, ...]  # int32 each, the rest of each question
    images: tuple[bytes, ...]  # files, in the order of their placeholders

    @property
    def length(self) -> int:
        return len(self.prefix) + max(map(len, self.branches)) + 1


@dataclasses.dataclass(frozen=True, eq=False)
class Asker:
    """Puts questions into the tokens of a checkpoint."""

    processor: processing.Processor
    words: tuple[str, str]  # yes and no
    ask: Callable[..., str]  # (instance, response, criterion, "yes or no") -> text

    @functools.cached_property
    def answers(self) -> tuple[int, int]:
        """The tokens of yes and of no."""
        return self.question("?", ())[1]

    @functools.cached_property
    def special(self) -> tuple[str, ...]:
        """The texts that the tokenizer turns into something else than text."""
        added = self.processor.hf.tokenizer.added_tokens_decoder.values()
        found = {self.processor.image_text, *(t.content for t in added if t.special)}
        return tuple(sorted((text for text in found if len(text) > 1), key=len, reverse=True))

    def row(self, request: verdicts.Request, pictures: Sequence[types.Picture]) -> Row:
        """The questions about a response; FieldError where the processor refuses one."""
        instance = request.instance.model_copy(
            update={"instruction": self.plain(request.instance.instruction)}
        )
        response, words = self.plain(request.response), " or ".join(self.words)
        questions = []
        for criterion in request.rubric.criteria:
            criterion = criterion.model_copy(update={"text": self.plain(criterion.text)})
            text = self.ask(instance, response, criterion, words)
            ids, answers = self.question(text, pictures)
            if answers != self.answers:
                raise processing.FieldError("answers", f"{answers}, elsewhere {self.answers}.")
            questions.append(ids)
        shared = _shared(questions)
        branches = tuple(ids[shared:] for ids in questions)
        if any(self.processor.image_token in ids for ids in branches):
            raise processing.FieldError("images", "the chat template puts them behind the text.")
        return Row(questions[0][:shared], branches, request.instance.images)

    def question(
        self, text: str, pictures: Sequence[types.Picture]
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Token ids up to where the answer stands, and the tokens of yes and no there."""
        prompt, found = self.processor.encode(
            [{"role": "user", "content": text}],
            {word: [{"role": "assistant", "content": word}] for word in self.words},
            pictures,
        )
        yes, no = (found[word] for word in self.words)
        same = _shared([yes, no])  # such as a space that is a token of its own
        if same == min(len(yes), len(no)):
            raise processing.FieldError(
                "answers",
                f"{self.words[0]!r} {yes.tolist()} and {self.words[1]!r} {no.tolist()} cannot be "
                "told apart by their first tokens; choose other words for yes and no.",
            )
        return np.concatenate([prompt, yes[:same]]), (int(yes[same]), int(no[same]))

    def plain(self, text: str) -> str:
        """The text with a space inside of all that the tokenizer would not read as text."""
        for special in self.special:
            text = text.replace(special, f"{special[0]} {special[1:]}")
        return text


def collate(
    rows: Sequence[Row],
    picture: Callable[[bytes], types.Picture],
    media: Callable[..., Mapping[str, np.ndarray]],
    *,
    size: int,
    groups: int = 1,
) -> types.Batch:
    """A batch of `size` rows, the last ones padding; each distinct image of a group once.

    The mask is 1 where the answer of a branch stands. Shapes are rounded up, so that they are few.
    """
    p, n, t = np.max([shape(row) for row in rows], axis=0)
    tokens, lengths = np.zeros((size, 1, p), np.int32), np.zeros((size, 1), np.int32)
    responses, mask = np.zeros((size, n, t), np.int32), np.zeros((size, n, t), np.float32)
    tables: list[dict[bytes, int]] = [{} for _ in range(groups)]
    slots: list[list[list[int]]] = [[[]] for _ in range(size)]
    for b, row in enumerate(rows):
        tokens[b, 0, : len(row.prefix)], lengths[b] = row.prefix, len(row.prefix)
        for c, ids in enumerate(row.branches):
            responses[b, c, : len(ids)] = ids
            mask[b, c, len(ids)] = 1.0  # no state that is used has seen the token here
        table = tables[b * groups // size]
        slots[b][0] = [table.setdefault(data, len(table)) for data in row.images]
    pictures = [[picture(data) for data in table] for table in tables]
    room = max(sum(each.entries for each in table) for table in pictures)
    room = _round_up(room, _LEAST["images"]) if room else 0
    cells = max((each.cells for table in pictures for each in table), default=1)
    cells = _round_up(cells, _LEAST["cells"]) if cells > 1 else 1
    return types.Batch(
        prompts=tokens,
        prompt_lengths=lengths,
        media=media(tokens, pictures, slots, room, cells),
        responses=responses,
        mask=mask,
        labels=None,
    )


def shape(row: Row) -> tuple[int, ...]:
    """Rows of equal shape stand together, those of one instance, too: the sort is stable."""
    longest = max(map(len, row.branches)) + 1
    sizes = (("prompt", len(row.prefix)), ("branches", len(row.branches)), ("response", longest))
    return tuple(_round_up(length, _LEAST[name]) for name, length in sizes)


def _round_up(length: int, least: int) -> int:
    """The next of least * (1, 1.5, 2, 3, 4, 6, 8, ...): a third of padding at most."""
    size = least
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def _shared(sequences: Sequence[np.ndarray]) -> int:
    """How many first tokens are the same in all."""
    least = min(map(len, sequences))
    first = sequences[0][:least]
    same = np.all([ids[:least] == first for ids in sequences], axis=0)
    return least if same.all() else int(np.argmin(same))
