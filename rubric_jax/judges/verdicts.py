"""What a judge is asked, what it says, and what a judge is.

A request names an instance, a response and a rubric, and nothing else that a judge may read: no
arm, no policy, no rank. A verdict tells a score from the lack of one:

  status       scores             meaning                                         kept for good
  scored       every criterion    usable                                          yes
  partial      some criteria      the rest was missing or off the scale           yes, raw
  unparsable   none               an answer, but not one that could be read       yes, raw
  refused      none               the judge declined                              yes, raw
  failed       none               no answer: server down, slow, cut, error        no; asked again
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rubric_jax.rubrics import records

STATUSES = ("scored", "partial", "unparsable", "refused", "failed")
LASTING = frozenset(STATUSES) - {"failed"}


@dataclasses.dataclass(frozen=True)
class Request:
    id: str  # the caller's name for it; no judge reads it
    instance: records.Instance
    response: str
    rubric: records.Rubric


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a verdict took."""

    calls: int = 0  # answered calls
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0  # in the currency of the prices that were given
    retries: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by reason: '429', ...

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
            dict(Counter(self.retries) + Counter(other.retries)),
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    status: str  # one of STATUSES
    scores: Mapping[str, float]  # criterion id -> [0, 1]; only what was understood
    problems: tuple[str, ...] = ()  # 'missing: answer', 'surplus: c9', 'no JSON', ...
    raw: tuple[str, ...] = ()  # what a model said, call by call
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by criterion id
    usage: Usage = Usage()

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))  # ASCII: half a surrogate pair has no UTF-8

    @classmethod
    def from_json(cls, text: str) -> Verdict:
        value = json.loads(text)
        tuples = {name: tuple(value.pop(name)) for name in ("problems", "raw")}
        return cls(**value | tuples | {"usage": Usage(**value["usage"])})


class Identity(NamedTuple):
    """What a verdict depends on besides the request's content."""

    judge: str  # name in JUDGES
    model: str = ""  # of a server, or fingerprint of a checkpoint
    prompt: str = ""  # version of the prompt
    settings: str = ""  # canonical JSON of the knobs that change verdicts


class Judge(NamedTuple):
    """A judge is a value.

    score(requests, journal) takes requests lazily, as many as it works on at a time, and yields
    (request, verdict) in the order of completion; the requests are the very objects it took.
    `journal(request)` is a mapping in which a judge that needs several calls for one verdict keeps
    the replies it has got (see store.py).
    """

    identity: Identity
    score: Callable[[Iterable[Request], Journal], Iterator[tuple[Request, Verdict]]]
    # The rubric that it scores in place of the given one: another one for holistic judges.
    rubric: Callable[[records.Rubric], records.Rubric] = lambda rubric: rubric


Journal = Callable[[Request], Any]  # -> MutableMapping[str, str]


def no_journal(request: Request) -> dict[str, str]:
    return {}


def key(identity: Identity, request: Request) -> str:
    """sha256 of all that determines a verdict. The request's id is not among it."""
    content = [*identity, request.instance.key, request.response, request.rubric.digest]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def holistic_rubric(rubric: records.Rubric) -> records.Rubric:
    """One mark for the whole, in place of any rubric: criterion and axis are `overall`."""
    facts = (rubric.criteria[0].check or {}).get("facts")
    criterion = records.Criterion(
        id="overall",
        text="The response as a whole: is it right, true to the image, complete and clear?",
        kind="essential",
        weight=1,
        axis="overall",
        scale="1-5",
        check=facts and {"about": "overall", "facts": facts},  # for the oracle
    )
    return records.Rubric(key=rubric.key, source="holistic", criteria=(criterion,))


def settings(**knobs: Any) -> str:
    return json.dumps(knobs, sort_keys=True)


class Unreachable(ValueError):
    """The judge's server cannot be used at all: down, or it refuses every call."""
