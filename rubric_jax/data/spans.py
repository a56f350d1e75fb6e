"""Spans of a response whose tokens weigh more or less than the others.

  "chosen": "Two cups stand on the table.",
  "chosen_spans": [{"start": 0, "end": 8, "weight": 3.0}, {"text": "table", "weight": 0.5}]

  start, end   characters of the response's text, `end` excluded; in messages, of the text of the
               last assistant message
  text         in their place: every occurrence of it
  weight       >= 0 (1)
  name         of a kind of spans (""); an objective's terms choose one

A token belongs to a span if they share a character; white space at the ends of a span does not
count. Of several spans of one name the last in the list has the token.

config.data.differences = ("chosen", "rejected") makes spans of the words in which two responses
differ, for rows that have no column of spans for either.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data import processing

_FIELDS = ("start", "end", "text", "weight", "name")
_WORD = re.compile(r"\w+|[^\w\s]")
_LARGEST = float(np.finfo(np.float32).max)


class Span(NamedTuple):
    start: int  # characters of the response's text
    end: int
    weight: float
    name: str


def read(column: str, value: Any, response: str | Sequence[Mapping[str, Any]]) -> tuple[Span, ...]:
    """The spans of one column, checked against the response.

    Raises:
      processing.FieldError: naming column and entry.
    """
    if not isinstance(value, list):
        raise processing.FieldError(
            column, f"is {value!r}; it must be a list such as [{{'start': 0, 'end': 4}}]."
        )
    text = processing.answer(column, response)[1] if value else ""
    return tuple(
        span for i, entry in enumerate(value) for span in _spans(f"{column}[{i}]", entry, text)
    )


def weights(spans: Sequence[Span], name: str, offsets: np.ndarray) -> np.ndarray:
    """float32 [T], the weight that the spans of a name give each token, OUTSIDE for none.

    Args:
      offsets: int [T, 2], the characters of each token (see processing.Processor.offsets).
    """
    found = np.full(len(offsets), types.OUTSIDE, np.float32)
    for span in spans:
        if span.name == name:
            found[touched(span, offsets)] = span.weight
    return found


def check_differences(names: Sequence[str], layout: types.Layout) -> None:
    """Raises ValueError where `config.data.differences` does not name two responses."""
    for name in names if layout.branches else ():
        if name not in layout.responses:
            raise ValueError(
                f"config.data.differences is {tuple(names)}; {name!r} must be "
                f"{config_lib.one_of(name, dict.fromkeys(layout.responses))}"
            )
    if names and (len(names) != 2 or names[0] == names[1]):
        raise ValueError(
            f"config.data.differences is {tuple(names)}; it must name two different responses."
        )


def differing(one: str, other: str) -> tuple[list[Span], list[Span]]:
    """Spans of weight 1 of the words that one text has and the other lacks, and the reverse.

    >>> differing("a red cup", "a blue cup .")
    ([Span(2, 5, 1.0, '')], [Span(2, 6, 1.0, ''), Span(11, 12, 1.0, '')])
    """
    words = [list(_WORD.finditer(text)) for text in (one, other)]
    texts = [[word.group() for word in part] for part in words]
    found: tuple[list[Span], list[Span]] = ([], [])
    match = difflib.SequenceMatcher(None, *texts, autojunk=False)
    for kind, *ends in match.get_opcodes():
        for spans, part, (first, last) in zip(found, words, (ends[:2], ends[2:]), strict=True):
            if kind != "equal" and first < last:
                spans.append(Span(part[first].start(), part[last - 1].end(), 1.0, ""))
    return found


def touched(span: Span, offsets: np.ndarray) -> np.ndarray:
    """bool [T], the tokens that share a character with the span."""
    start, end = offsets[:, 0], offsets[:, 1]
    return np.maximum(start, span.start) < np.minimum(end, span.end)


def _spans(where: str, entry: Any, text: str) -> list[Span]:
    if not isinstance(entry, Mapping):
        raise processing.FieldError(
            where, f"is {entry!r}; a span is {{'start': 0, 'end': 4, 'weight': 2.0}}."
        )
    for field in entry:
        if field not in _FIELDS:
            raise processing.FieldError(
                where, f"has the field {field!r}; it must be {config_lib.one_of(field, _FIELDS)}"
            )
    weight, name = entry.get("weight", 1.0), entry.get("name", "")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise processing.FieldError(where, f"weight is {weight!r}; it must be a number.")
    if not 0 <= weight <= _LARGEST:  # false for NaN too
        raise processing.FieldError(where, f"weight is {weight}; it must be finite and >= 0.")
    if not isinstance(name, str):
        raise processing.FieldError(where, f"name is {name!r}; it must be text.")
    places = [_trimmed(*place, text) for place in _places(where, entry, text)]
    return [Span(*place, float(weight), name) for place in places]


def _places(where: str, entry: Mapping[str, Any], text: str) -> list[tuple[int, int]]:
    if "text" in entry:
        part = entry["text"]
        if "start" in entry or "end" in entry or not isinstance(part, str) or not part:
            raise processing.FieldError(
                where, f"is {dict(entry)!r}; it must have a text, or start and end."
            )
        found = [match.span() for match in re.finditer(re.escape(part), text)]
        if not found:
            raise processing.FieldError(
                where, f"the text {part!r} does not occur in the response; copy it from there."
            )
        return found
    place = entry.get("start"), entry.get("end")
    if not all(isinstance(p, int) and not isinstance(p, bool) for p in place):
        raise processing.FieldError(
            where, f"start and end are {place}; they must be whole numbers (or give a text)."
        )
    if not 0 <= place[0] < place[1] <= len(text):
        raise processing.FieldError(
            where,
            f"runs from {place[0]} to {place[1]}; it must have 0 <= start < end <= {len(text)}, "
            "the length of the response's text in characters.",
        )
    return [place]


def _trimmed(start: int, end: int, text: str) -> tuple[int, int]:
    """Without white space at the ends, which tokenizers put into the neighbouring token."""
    part = text[start:end]
    if not part.strip():
        return start, end
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
