"""Instructions: what a policy is asked, and what is known about the right answer.

{"id": "a-17", "prompt": "How many cups stand on the table?", "images": ["images/17.png"],
 "answer": "two", "reference": "Two cups stand on the table, so two."}

prompt, images | image   as in preference data (see reading.py)
id           unique; the row number by default
answer       the right final answer, for recipes and evaluations that check it
reference    a right response, for writers of rubrics and for off-policy recipes
candidates   responses of mixed quality, for writers of rubrics
facts        ground truth of any shape, for an oracle, or for rules (boxes, items)
source       which data set the row comes from, for recipes that cap each source
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from rubric_jax import types
from rubric_jax.data import images, processing, reading, sources
from rubric_jax.rubrics import records


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """One checked row."""

    id: str
    where: str  # 'file:row', for errors
    prompt: str | list  # as the file has it
    text: str  # the words of the prompt, without placeholders
    images: tuple[images.Ref, ...]
    answer: str = ""
    reference: str = ""
    candidates: tuple[str, ...] = ()
    facts: Mapping[str, Any] | None = None
    source: str = ""

    @functools.cached_property
    def key(self) -> str:
        """Content key of pictures and text, under which rubrics and verdicts are kept."""
        return self.instance().key

    def instance(self) -> records.Instance:
        """Text and encoded pictures, as judges read them; reads the files."""
        try:
            data = tuple(images.read(ref) for ref in self.images)
        except ValueError as error:
            raise ValueError(f"{self.where}: images: {error}") from error
        return records.Instance(instruction=self.text, images=data)


def read(path: str, split: str = "train", *, confine: bool = False) -> Iterator[Instruction]:
    """Instructions of a data path, in order.

    Raises:
      ValueError: 'file:row: field: what is wrong, and the mend'; two rows with one id.
    """
    seen: dict[str, int] = {}
    rows = reading.rows(path, split, layout=types.PROMPTS, confine=confine)
    for row, (_, record) in zip(rows, sources.records(path, split), strict=True):
        if row.id in seen:
            raise row.error("id", f"{row.id!r} is the id of row {seen[row.id]} too; ids differ.")
        seen[row.id] = row.number
        yield _instruction(row, record)


def words(prompt: str | list) -> str:
    """What a prompt says: a single turn's text, or 'role: text' lines of several turns.

    The placeholder `<image>` of plain prompts is left out.

    >>> words([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi?"}]}])
    'Hi?'
    """
    if isinstance(prompt, str):
        return prompt.replace("<image>", "").strip()
    turns = [(message["role"], processing.text_of([message]).strip()) for message in prompt]
    turns = [(role, text) for role, text in turns if text]
    if len(turns) == 1:
        return turns[0][1]
    return "\n".join(f"{role}: {text}" for role, text in turns)


def _instruction(row: reading.Row, record: Mapping[str, Any]) -> Instruction:
    text = {f: _text(row, f, record.get(f)) for f in ("answer", "reference", "source")}
    candidates = record.get("candidates") or ()
    if not isinstance(candidates, list | tuple) or not all(isinstance(c, str) for c in candidates):
        raise row.error("candidates", f"is {candidates!r}; it must be a list of texts.")
    facts = record.get("facts")
    if facts is not None and not isinstance(facts, Mapping):
        raise row.error("facts", f"is {facts!r}; it must be an object.")
    return Instruction(
        id=row.id,
        where=f"{row.file}:{row.number}",
        prompt=row.prompt,
        text=words(row.prompt),
        images=row.images[types.CLEAN],
        candidates=tuple(candidates),
        facts=facts,
        **text,
    )


def _text(row: reading.Row, field: str, value: Any) -> str:
    """Text, or a number as text; "" for nothing. Columns with gaps hold 2.0 for 2, NaN for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str | int | float):
        raise row.error(field, f"is {value!r}; it must be text.")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
