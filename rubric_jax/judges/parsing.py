"""What can be recovered from the text of a judge: scores by criterion, and what was wrong with it.

Asked for is {"answer": {"reason": "..", "score": 1}, ..}. Understood are also code fences, text
before and after, a <think> block, trailing commas, bare scores ({"answer": 1}), lists of
{"id": .., "score": ..}, numbers as strings, and one level of wrapping ({"verdicts": [..]}).
Nothing is guessed: a criterion that is missing, contradicted or off its scale has no score.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rubric_jax.rubrics import records, scales

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_COMMA = re.compile(r",(\s*[}\]])")
_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very )?sorry|i am sorry|sorry\b|i can(not|['’]t| not)\b|as an ai\b"
    r"|i['’]m (unable|not able)|i am (unable|not able)|i must decline|i won['’]t)",
    re.IGNORECASE,
)
_STARTS = 200  # opening brackets tried at most; text with more is no answer


class Parsed(NamedTuple):
    scores: dict[str, float]  # criterion id -> [0, 1]
    reasons: dict[str, str]
    problems: list[str]  # 'kind: detail'
    refused: bool


def parse(text: str, criteria: Sequence[records.Criterion]) -> Parsed:
    """The scores that a text gives to these criteria."""
    best: Parsed | None = None
    for value in objects(text):
        for entries in _shapes(value, criteria):
            parsed = _scores(entries, criteria)
            if best is None or len(parsed.scores) > len(best.scores):
                best = parsed
    if best is not None:
        return best
    if refusal(text):
        return Parsed({}, {}, ["refusal"], True)
    return Parsed({}, {}, ["no JSON object" if text.strip() else "an empty answer"], False)


def refusal(text: str) -> bool:
    """Whether a text begins as refusals do."""
    return bool(_REFUSAL.match(_THOUGHT.sub("", text).strip()))


def objects(text: str) -> Iterator[Any]:
    """The JSON objects and lists in a text, outermost first; once more without trailing commas."""
    text = _THOUGHT.sub("", text)
    decoder = json.JSONDecoder()
    for source in dict.fromkeys((text, _COMMA.sub(r"\1", text))):
        position = 0
        for _ in range(_STARTS):
            start = re.compile(r"[{\[]").search(source, position)
            if not start:
                break
            try:
                value, position = decoder.raw_decode(source, start.start())
            except (ValueError, RecursionError):
                position = start.end()
                continue
            yield value


def _shapes(value: Any, criteria: Sequence[records.Criterion]) -> Iterator[list[tuple[str, Any]]]:
    """(id, entry) lists that the value may stand for."""
    if isinstance(value, list):
        named = [(_name(entry), entry) for entry in value]
        if any(name is not None for name, _ in named):
            yield [(name, entry) for name, entry in named if name is not None]
    elif isinstance(value, Mapping):
        if len(criteria) == 1 and "score" in value:
            yield [(criteria[0].id, value)]
        if _name(value) is not None and "score" in value:
            yield [(_name(value), value)]
        yield list(value.items())
        for inner in value.values():
            if isinstance(inner, list) or (
                isinstance(inner, Mapping) and len(value) == 1 and "score" not in inner
            ):
                yield from _shapes(inner, criteria)


def _name(entry: Any) -> str | None:
    if not isinstance(entry, Mapping):
        return None
    name = next((entry[k] for k in ("id", "criterion", "name") if k in entry), None)
    return name if isinstance(name, str) else None


def _scores(entries: list[tuple[str, Any]], criteria: Sequence[records.Criterion]) -> Parsed:
    scores, reasons, problems = {}, {}, []
    said: dict[str, list[Any]] = {}
    for name, entry in entries:
        said.setdefault(name, []).append(entry)
    known = {criterion.id for criterion in criteria}
    problems += [f"surplus: {str(name)[:64]}" for name in said if name not in known]
    for criterion in criteria:
        raws = [_raw(entry) for entry in said.get(criterion.id, [])]
        if not raws or all(raw is None for raw in raws):
            problems.append(f"missing: {criterion.id}")
            continue
        try:
            values = {scales.read(criterion.scale, raw) for raw in raws}
        except ValueError as error:
            problems.append(f"off the scale: {criterion.id}: {str(error)[:120]}")
            continue
        if len(values) > 1:
            problems.append(f"contradiction: {criterion.id}: {str(raws)[:80]}")
            continue
        scores[criterion.id] = values.pop()
        entry = said[criterion.id][0]
        if isinstance(entry, Mapping) and isinstance(entry.get("reason"), str):
            reasons[criterion.id] = entry["reason"]
    return Parsed(scores, reasons, problems, False)


def _raw(entry: Any) -> Any:
    return entry.get("score") if isinstance(entry, Mapping) else entry
