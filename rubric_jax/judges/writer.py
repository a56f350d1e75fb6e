"""Rubrics written by a model behind an OpenAI-compatible server.

The writer sees the images and the instruction, and on request a right answer and candidate answers
of mixed quality. A checklist that is not valid is sent back with the reason; a second pass, if
asked for, makes it sharper. What cannot be read even then is kept raw and counted, and the
instance stays without a rubric until the next run.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rubric_jax.judges import client as client_lib
from rubric_jax.judges import parsing, prompts, verdicts
from rubric_jax.rubrics import records


@dataclasses.dataclass(frozen=True)
class Task:
    instance: records.Instance
    reference: str = ""  # a right answer
    candidates: tuple[str, ...] = ()  # answers of mixed quality


@dataclasses.dataclass(frozen=True)
class Written:
    rubric: records.Rubric | None  # None: see problems
    problems: tuple[str, ...]  # 'kind: detail'
    raw: tuple[str, ...]  # what the writer said, call by call
    usage: verdicts.Usage


def write(
    server: client_lib.Server,
    tasks: Iterable[Task],
    *,
    axes: Sequence[str],
    sharpen: bool = False,
    reasks: int = 1,
    most: int = 10,
    seed: int = 0,
) -> Iterator[tuple[Task, Written]]:
    """A rubric for each task, in the order of completion; tasks are taken lazily.

    Append the rubrics to a pool as they come (rubrics/pool.py), and leave out of `tasks` what the
    pool has: then nothing is written twice and a killed run loses the calls in flight.

    Args:
      server: where, and which model.
      tasks: what to write rubrics for.
      axes: the run's reward axes; every criterion names one of them.
      sharpen: ask for a second, harder version. If that one is not valid, the first stands.
      reasks: how often an invalid checklist is sent back.
      most: criteria at most; a rubric with more is invalid.
      seed: of the server's sampling.

    Raises:
      verdicts.Unreachable: the server is of no use.
    """
    if not axes:
        raise ValueError("A writer of rubrics needs the reward axes; name them in the config.")
    client = client_lib.Client(server)
    ask = _Ask(client, tuple(axes), reasks, most, seed)
    done = client_lib.each(
        lambda task: _write(ask, task, sharpen),
        tasks,
        concurrency=server.concurrency,
        stop=client.close,
    )
    failed = 0  # in a row
    for task, written in done:
        yield task, written
        lost = any(problem.startswith("failed:") for problem in written.problems)
        failed = failed + 1 if lost and written.rubric is None else 0
        if failed >= server.give_up_after:
            done.close()
            raise verdicts.Unreachable(
                f"{failed} rubrics in a row failed at {server.base_url}; the last: "
                f"{'; '.join(written.problems)}. Mend the server or the settings and run the "
                "same command again."
            )


@dataclasses.dataclass(frozen=True)
class _Ask:
    client: client_lib.Client
    axes: tuple[str, ...]
    reasks: int
    most: int
    seed: int


class _Log:
    def __init__(self):
        self.problems: list[str] = []
        self.raw: list[str] = []
        self.usage = verdicts.Usage()

    def written(self, rubric: records.Rubric | None) -> Written:
        return Written(rubric, tuple(self.problems), tuple(self.raw), self.usage)


def _write(ask: _Ask, task: Task, sharpen: bool) -> Written:
    log, rubric = _Log(), None
    try:
        messages = prompts.writer_messages(
            task.instance,
            axes=ask.axes,
            most=ask.most,
            reference=task.reference,
            candidates=task.candidates,
        )
        rubric = _valid(ask, task, messages, log)
        if rubric is not None and sharpen:
            turn = [*messages, *prompts.sharpen_message(rubric)]
            rubric = _valid(ask, task, turn, log) or rubric
    except client_lib.Failed as error:
        log.usage += verdicts.Usage(retries=error.retries)
        log.problems.append(f"failed: {error.reason}")
    return log.written(rubric)


def _valid(ask: _Ask, task: Task, messages: list[dict], log: _Log) -> records.Rubric | None:
    """A valid rubric, after `reasks` corrections at most."""
    for attempt in range(ask.reasks + 1):
        reply, retries = ask.client.ask(
            messages, prompts.rubric_schema(ask.axes), seed=ask.seed + attempt
        )
        log.raw.append(reply.text)
        log.usage += _usage(reply, retries, ask.client.server)
        try:
            return _read(reply, ask, task)
        except ValueError as error:
            problem = str(error)
            log.problems.append(problem)
        correction = f"That is no valid checklist ({problem}). Answer with all of it, mended."
        messages = [
            *messages,
            {"role": "assistant", "content": reply.text},
            {"role": "user", "content": correction},
        ]
    return None


def _usage(reply: client_lib.Reply, retries, server: client_lib.Server) -> verdicts.Usage:
    cost = reply.prompt_tokens * server.prompt_price
    cost += reply.completion_tokens * server.completion_price
    return verdicts.Usage(
        1, reply.prompt_tokens, reply.completion_tokens, cost / 1e6, Counter(retries)
    )


def _read(reply: client_lib.Reply, ask: _Ask, task: Task) -> records.Rubric:
    """The rubric in a reply; ValueError 'kind: what is wrong'."""
    found = [value for value in parsing.objects(reply.text) if value]
    if reply.finish == "length":
        raise ValueError("cut at max_tokens: raise max_tokens or lower the number of criteria")
    if reply.refused or (not found and parsing.refusal(reply.text)):
        raise ValueError("refusal: no checklist was written")
    if not found:
        raise ValueError("no JSON object: the answer must be JSON and nothing else")
    criteria = _criteria(found[0])
    if len(criteria) > ask.most:
        raise ValueError(f"too long: {len(criteria)} criteria, at most {ask.most}")
    source = f"writer:{ask.client.server.model}:{prompts.VERSION}"
    value = {"key": task.instance.key, "source": source, "criteria": criteria}
    return records.parse(value, where="invalid", axes=ask.axes)


def _criteria(value: Any) -> list[Any]:
    criteria = value.get("criteria") if isinstance(value, dict) else value
    if not isinstance(criteria, list):
        raise ValueError('wrong shape: the answer must be {"criteria": [...]}')
    return [
        {**c, "id": re.sub(r"[^A-Za-z0-9_.-]+", "_", c["id"].strip())[:64]}
        if isinstance(c, dict) and isinstance(c.get("id"), str)
        else c
        for c in criteria
    ]
