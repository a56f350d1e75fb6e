"""Judges behind any server that speaks OpenAI's protocol: vLLM, SGLang, a commercial one.

What one verdict takes: `votes` times one call with all criteria, or one call per criterion. Where
an answer lacks criteria, those are asked for again, `reasks` times; then they stay without a score.
The criteria come in an order that is shuffled anew for every vote, so that none profits from its
place. Every reply is journalled, so no call is paid for twice.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from rubric_jax import config as config_lib
from rubric_jax.judges import client as client_lib
from rubric_jax.judges import parsing, prompts, verdicts
from rubric_jax.rubrics import records

_PER = ("response", "criterion")


class _Plan(NamedTuple):
    """How a verdict comes about."""

    identity: verdicts.Identity
    messages: Callable[..., list[dict]]
    per: str
    votes: int
    reasks: int
    shuffle: bool
    seed: int


def openai(
    *,
    model: str,
    base_url: str,
    per: str = "response",
    votes: int = 1,
    reasks: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    server: Mapping[str, Any] | None = None,
) -> verdicts.Judge:
    """Criterion by criterion, under the rubric.

    Args:
      model: as the server calls it.
      base_url: of the server, such as http://localhost:8000/v1.
      per: 'response': one call with all criteria; 'criterion': one call for each.
      votes: independent judgements, averaged per criterion; more than one asks for a temperature.
      reasks: further calls for criteria that an answer left out or garbled.
      shuffle: put the criteria in another order for every vote.
      seed: of the order, and of the server's sampling.
      server: further fields of client.Server: temperature, concurrency, timeout, prices, ...
    """
    if per not in _PER:
        raise ValueError(f"per is {per!r}; it must be {config_lib.one_of(per, _PER)}")
    judged_by = client_lib.server(model, base_url, server)
    identity = _identity(
        "openai", judged_by, per=per, votes=votes, reasks=reasks, shuffle=shuffle, seed=seed
    )
    return _judge(
        judged_by,
        _Plan(
            identity,
            prompts.judge_messages,
            per=per,
            votes=votes,
            reasks=reasks,
            shuffle=shuffle,
            seed=seed,
        ),
    )


def openai_holistic(
    *,
    model: str,
    base_url: str,
    votes: int = 1,
    reasks: int = 1,
    seed: int = 0,
    server: Mapping[str, Any] | None = None,
) -> verdicts.Judge:
    """One score from 1 to 5 for the whole response, without a rubric. Arguments as in `openai`."""
    judged_by = client_lib.server(model, base_url, server)
    identity = _identity("openai_holistic", judged_by, votes=votes, reasks=reasks, seed=seed)
    judge = _judge(
        judged_by,
        _Plan(
            identity,
            prompts.holistic_messages,
            per="response",
            votes=votes,
            reasks=reasks,
            shuffle=False,
            seed=seed,
        ),
    )
    return judge._replace(rubric=verdicts.holistic_rubric)


def _identity(name: str, server: client_lib.Server, **knobs: Any) -> verdicts.Identity:
    for knob, least in (("votes", 1), ("reasks", 0)):
        if knobs[knob] < least:
            raise ValueError(f"{knob} is {knobs[knob]}; it must be at least {least}.")
    # The address, patience and prices change no verdict: another server with the model may go on.
    asked = {
        "temperature": server.temperature,
        "max_tokens": server.max_tokens,
        "structured": server.structured,
        "extra": dict(server.extra),
    }
    return verdicts.Identity(
        name, server.model, prompts.VERSION, verdicts.settings(**knobs, **asked)
    )


def _judge(server: client_lib.Server, plan: _Plan) -> verdicts.Judge:
    def score(requests: Iterable[verdicts.Request], journal: verdicts.Journal) -> Iterator:
        client = client_lib.Client(server)
        done = client_lib.each(
            lambda request: _Work(client, plan, request, journal(request)).verdict(),
            requests,
            concurrency=server.concurrency,
            stop=client.close,
        )
        failed = 0  # in a row
        for request, verdict in done:
            yield request, verdict
            failed = failed + 1 if verdict.status == "failed" else 0
            if failed >= server.give_up_after:
                done.close()
                raise verdicts.Unreachable(
                    f"{failed} verdicts in a row failed at {server.base_url}; the last: "
                    f"{'; '.join(verdict.problems)}. What was judged is stored: mend the server "
                    "or the settings and run the same command again."
                )

    return verdicts.Judge(plan.identity, score)


class _Work:
    """One verdict in the making."""

    def __init__(
        self,
        client: client_lib.Client,
        plan: _Plan,
        request: verdicts.Request,
        replies: MutableMapping[str, str],
    ):
        self.client, self.plan, self.request, self.replies = client, plan, request, replies
        self.key = verdicts.key(plan.identity, request)
        self.criteria = request.rubric.criteria
        self.usage = verdicts.Usage()
        self.raw: list[str] = []
        self.problems: list[str] = []
        self.reasons: dict[str, str] = {}
        self.refused = False

    def verdict(self) -> verdicts.Verdict:
        given: dict[str, list[float]] = {}
        try:
            for vote in range(self.plan.votes):
                for ident, score in self._vote(vote).items():
                    given.setdefault(ident, []).append(score)
        except client_lib.Failed as error:
            self.usage += verdicts.Usage(retries=error.retries)
            problems = (*self.problems, f"failed: {error.reason}")
            return verdicts.Verdict("failed", {}, problems, tuple(self.raw), usage=self.usage)
        scores = {c.id: sum(given[c.id]) / len(given[c.id]) for c in self.criteria if c.id in given}
        if len(scores) == len(self.criteria):
            status = "scored"
        elif scores:
            status = "partial"
        else:
            status = "refused" if self.refused else "unparsable"
        return verdicts.Verdict(
            status, scores, tuple(self.problems), tuple(self.raw), self.reasons, self.usage
        )

    def _vote(self, vote: int) -> dict[str, float]:
        order = list(self.criteria)
        if self.plan.shuffle:
            random.Random(f"{self.plan.seed}/{self.key}/{vote}").shuffle(order)
        groups = [[c] for c in order] if self.plan.per == "criterion" else [order]
        scores: dict[str, float] = {}
        for group in groups:
            for attempt in range(self.plan.reasks + 1):
                missing = [c for c in group if c.id not in scores]
                if missing:
                    scores |= self._ask(missing, vote, attempt)
        return scores

    def _ask(
        self, criteria: Sequence[records.Criterion], vote: int, attempt: int
    ) -> dict[str, float]:
        part = json.dumps([vote, attempt, [c.id for c in criteria]])
        if part not in self.replies:
            seed = self.plan.seed + 1000 * attempt + vote
            reply, retries = self.client.ask(
                self.plan.messages(self.request.instance, self.request.response, criteria),
                prompts.scores_schema(criteria),
                seed=seed,
            )
            self.usage += verdicts.Usage(retries=retries)
            self.replies[part] = reply.to_json()
        reply = client_lib.Reply.from_json(self.replies[part])
        self._account(reply)
        parsed = parsing.parse(reply.text, criteria)
        problems = parsed.problems
        if reply.finish == "length":
            problems = ["cut at max_tokens", *problems]
        if reply.refused and not parsed.scores:
            problems = ["refusal"]
        self.refused |= reply.refused or parsed.refused
        self.problems += problems
        self.reasons |= parsed.reasons
        return parsed.scores

    def _account(self, reply: client_lib.Reply) -> None:
        self.raw.append(reply.text)
        server = self.client.server
        cost = reply.prompt_tokens * server.prompt_price
        cost += reply.completion_tokens * server.completion_price
        self.usage += verdicts.Usage(
            1, reply.prompt_tokens, reply.completion_tokens, cost / 1e6, Counter()
        )
