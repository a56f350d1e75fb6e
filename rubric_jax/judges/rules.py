"""The judge `rules`: criteria that a program decides, and verifiable rewards made of them.

A criterion says in its `check` by which rule: {"rule": "answer", "right": "two"}. The rubric writer
`rules` puts them there from an instruction's own columns.

  rule           score of a response                              from the instruction's
  answer         1 if its final answer is the right one           answer
  pattern        1 if a regular expression is found in it
  length         1 up to so many words, then down to 0
  overlap        Jaccard index of the things it lists             facts.items
  boxes          1 if it holds a list of boxes as JSON            facts.boxes (1 - that if empty)
  box_precision  how well its boxes lie                           facts.boxes
  box_recall     how many of the right ones it found              facts.boxes

A rule may change with the step where every step samples: {"rule": .., "low": 0.5, "later": {"step":
1500, "low": 0.75}}. Elsewhere `later` is not read.
"""

from __future__ import annotations

import collections
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import pydantic

from rubric_jax import config as config_lib
from rubric_jax.data import instructions
from rubric_jax.judges import boxes as boxes_lib
from rubric_jax.judges import verdicts
from rubric_jax.recipes import answers, knobs
from rubric_jax.rubrics import records

VERSION = "1"  # of the rules below; part of the key of their verdicts
LATER = "later"


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression ({error})") from None
    return pattern


Expression = Annotated[str, pydantic.AfterValidator(_expression)]
Level = Annotated[float, pydantic.Field(ge=-1, le=1)]
Plain = Annotated[list[Any], pydantic.Field(strict=False)]


def answer(response: str, *, right: str, pattern: knobs.Pattern = "") -> float:
    """1 where the final answer, normalised, is the right one; pattern: as in recipes/answers.py."""
    found = answers.parse(response, pattern)
    return float(bool(found) and found == answers.normal(right))


def pattern(response: str, *, pattern: Expression, whole: bool = False) -> float:
    """1 where the expression is found; whole: where it is all of the response, spaces aside."""
    if whole:
        return float(re.fullmatch(pattern, response.strip()) is not None)
    return float(re.search(pattern, response) is not None)


def length(response: str, *, words: knobs.Positive, slack: knobs.Positive = 1) -> float:
    """1 up to `words` words, then linearly down to 0 at `slack` more."""
    return min(max(1 - (len(response.split()) - words) / slack, 0.0), 1.0)


def overlap(response: str, *, items: Plain, pattern: knobs.Pattern) -> float:
    """|found and right| / |found or right| of what the expression's group finds, normalised."""
    found = {answers.normal(match.group(1)) for match in re.finditer(pattern, response)}
    right = {answers.normal(str(item)) for item in items}
    return len(found & right) / len(found | right) if found | right else 1.0


def boxes(response: str, *, boxes: Plain) -> float:
    """1 where the response holds a list of boxes, if there are any to name; else 1 without one."""
    return float((boxes_lib.parse(response) is not None) == bool(boxes))


def box_precision(response: str, *, boxes: Plain, low: Level = 0.5, high: Level = 0.75) -> float:
    """Mean over the matches of their GIoU: 0 below `low`, 1 above `high`."""
    return boxes_lib.precision(response, boxes_lib.read(boxes), low=low, high=high)


def box_recall(
    response: str,
    *,
    boxes: Plain,
    low: Level = 0.5,
    high: Level = 0.5,
    floor: knobs.Share = 0.5,
    full: knobs.Share = 0.75,
) -> float:
    """Share of the right boxes that are hit (as in `box_precision`): 0 below `floor`, 1 above
    `full`."""
    right = boxes_lib.read(boxes)
    return boxes_lib.recall(response, right, low=low, high=high, floor=floor, full=full)


RULES: dict[str, Callable[..., float]] = {
    "answer": answer,
    "pattern": pattern,
    "length": length,
    "overlap": overlap,
    "boxes": boxes,
    "box_precision": box_precision,
    "box_recall": box_recall,
}


def _fact(name: str) -> Callable[[instructions.Instruction], Any]:
    return lambda task: (task.facts or {}).get(name)


# Arguments of rules that come from the instruction; None or "" = it does not say.
GIVEN: dict[str, Callable[[instructions.Instruction], Any]] = {
    "right": lambda task: task.answer,
    "items": _fact("items"),
    "boxes": _fact("boxes"),
}


def given(name: str) -> tuple[str, ...]:
    """The arguments of a rule that come from the instruction; none of what is no rule."""
    if name not in RULES:
        return ()
    return tuple(key for key in inspect.signature(RULES[name]).parameters if key in GIVEN)


def check(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a rule and its knobs as a writer's spec has them, `later` too."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{values!r}; it must be such as {{'rule': 'answer'}}.")
    name, knobs_of = values.get("rule", ""), dict(values)
    later = knobs_of.pop(LATER, None)
    known = given(name)
    if own := [key for key in known if key in knobs_of]:
        raise ValueError(f"rule {name!r}: {own[0]} comes from the instruction; leave it out.")
    stand_in = {key: "" if key == "right" else [] for key in known}
    bind({**knobs_of, **stand_in})
    if later is not None:
        step = later.get("step") if isinstance(later, Mapping) else None
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise ValueError(
                f"rule {name!r}: later is {later!r}; it must have a step, at least 1, and what "
                "changes then."
            )
        changed = {key: value for key, value in later.items() if key != "step"}
        bind({**knobs_of, **stand_in, **changed})


def bind(check: Mapping[str, Any]) -> Callable[[str], float]:
    """The rule of a criterion's `check` as a function of the response.

    Raises:
      ValueError: an unknown rule or knob, or a knob's value.
    """
    values = {key: value for key, value in check.items() if key not in ("rule", LATER)}
    name = check.get("rule", "")
    function = config_lib.bind(RULES, name, values, what="rule")
    values = config_lib.check(function, values, what=f"rule {name!r}")
    if "boxes" in values:
        boxes_lib.read(values["boxes"])
    return functools.partial(function, **values)


def at(rubric: records.Rubric, step: int) -> records.Rubric:
    """The rubric with its rules as they are after `step` optimizer steps."""
    if not any(LATER in (criterion.check or {}) for criterion in rubric.criteria):
        return rubric
    criteria = []
    for criterion in rubric.criteria:
        check = dict(criterion.check or {})
        later = dict(check.pop(LATER, {}))
        if later and step >= later.pop("step"):
            check |= later
        criteria.append(criterion.model_copy(update={"check": check or None}))
    return rubric.model_copy(update={"criteria": tuple(criteria)})


def judge(other: verdicts.Judge | None = None) -> verdicts.Judge:
    """Decides every criterion with a rule; asks another judge about the others.

    Args:
      other: None = every criterion must have a rule.
    """
    inner = json.dumps(other.identity) if other else ""
    identity = verdicts.Identity("rules", prompt=VERSION, settings=verdicts.settings(other=inner))

    def score(requests: Iterable[verdicts.Request], journal: verdicts.Journal) -> Iterator:
        whole: collections.deque = collections.deque()  # decided by rules alone
        waiting: dict[int, tuple] = {}  # by the id of what the other is asked

        def open_ones() -> Iterator[verdicts.Request]:
            for request in requests:
                scores, rest = decided(request)
                if rest and other is None:
                    raise ValueError(_no_rule(rest[0]))
                if rest:
                    asked = _about(request, rest)
                    waiting[id(asked)] = asked, request, scores
                    yield asked
                else:
                    whole.append((request, verdicts.Verdict("scored", scores)))

        def journal_of(asked: verdicts.Request):
            return journal(waiting[id(asked)][1])

        for asked, verdict in other.score(open_ones(), journal_of) if other else open_ones():
            _, request, scores = waiting.pop(id(asked))
            yield request, _merged(verdict, scores)
            while whole:
                yield whole.popleft()
        yield from whole

    return verdicts.Judge(identity, score)


def decided(request: verdicts.Request) -> tuple[dict[str, float], tuple[records.Criterion, ...]]:
    """Scores by criterion, and the criteria without a rule."""
    scores, rest = {}, []
    for criterion in request.rubric.criteria:
        if "rule" not in (criterion.check or {}):
            rest.append(criterion)
            continue
        try:
            scores[criterion.id] = bind(criterion.check)(request.response)
        except ValueError as error:
            raise ValueError(
                f"The criterion {criterion.id!r} of {request.rubric.key[:12]}: {error}"
            ) from error
    return scores, tuple(rest)


def _about(request, rest) -> verdicts.Request:
    """The request for these criteria alone; their number does not matter to a judge."""
    rubric = request.rubric.model_copy(update={"criteria": tuple(rest)})
    return verdicts.Request(request.id, request.instance, request.response, rubric)


def _merged(verdict: verdicts.Verdict, scores: Mapping[str, float]) -> verdicts.Verdict:
    """The other judge's verdict with the rules' scores; what it lacks stays lacking."""
    if verdict.status not in ("scored", "partial"):
        return verdict
    both = {**scores, **verdict.scores}
    return verdicts.Verdict(
        verdict.status, both, verdict.problems, verdict.raw, verdict.reasons, verdict.usage
    )


def _no_rule(criterion: records.Criterion) -> str:
    return (
        f"The judge `rules` cannot decide the criterion {criterion.id!r}: its check names no rule. "
        "Write the rubrics with the writer `rules`, or name a judge for such criteria: "
        '{"judge": "rules", "otherwise": {"judge": "openai", ..}}.'
    )
