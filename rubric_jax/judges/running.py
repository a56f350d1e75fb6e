"""Judging many responses against a store: nothing twice, nothing lost, everything counted."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from rubric_jax.judges import store as store_lib
from rubric_jax.judges import verdicts
from rubric_jax.rubrics import records

_CHUNK = 2048  # requests looked up in the store together


@dataclasses.dataclass
class Tally:
    """What a run of a judge came to; filled while it goes on."""

    requests: int = 0
    from_store: int = 0  # answered by the store
    shared: int = 0  # equal to another request of this run, and judged with it
    judged: int = 0  # asked of the judge, failures included
    statuses: Counter = dataclasses.field(default_factory=Counter)  # of all requests
    problems: Counter = dataclasses.field(default_factory=Counter)  # by kind: missing, surplus, ..
    usage: verdicts.Usage = dataclasses.field(default_factory=verdicts.Usage)  # of those judged now
    failures: list[str] = dataclasses.field(default_factory=list)  # the first few, in words

    def lines(self) -> list[str]:
        """A summary for people."""
        counted = ", ".join(f"{n} {status}" for status, n in sorted(self.statuses.items()))
        lines = [
            f"{self.requests} verdicts ({counted or 'none'}): {self.from_store} from the store, "
            f"{self.shared} equal to another, {self.judged} judged now"
        ]
        if self.usage.calls or self.usage.retries:
            cost = f", cost {self.usage.cost:.4f}" if self.usage.cost else ""
            lines.append(
                f"{self.usage.calls} calls, {self.usage.prompt_tokens} prompt and "
                f"{self.usage.completion_tokens} completion tokens{cost}"
            )
        for what, counts in (("retries", self.usage.retries), ("problems", self.problems)):
            if counts:
                lines.append(f"{what}: " + ", ".join(f"{n} x {k}" for k, n in counts.items()))
        return lines + [f"failed: {reason}" for reason in self.failures]


def stream(
    judge: verdicts.Judge,
    requests: Iterable[verdicts.Request],
    store: store_lib.Store,
    *,
    again: Collection[str] = (),
    tally: Tally | None = None,
) -> Iterator[tuple[verdicts.Request, verdicts.Verdict]]:
    """A verdict for every request, each as soon as it is there; order as it comes.

    Requests are taken lazily. One that the store answers costs no call, so a finished run replays
    with the server gone. Equal requests (two samples with the same text, say) are judged once. A
    verdict is in the store before it is yielded; a failed one never is, and is asked for again the
    next time. The requests that come back name the rubric that was judged, which for a holistic
    judge is not the one that was given.

    Args:
      judge: the judge.
      requests: what to judge.
      store: where verdicts live.
      again: statuses of stored verdicts to ask for once more, such as ('unparsable',).
      tally: filled along the way.

    Raises:
      verdicts.Unreachable: the judge's server is of no use; everything judged so far is stored.
    """
    tally = Tally() if tally is None else tally
    requests, asked = iter(requests), set()
    while chunk := list(itertools.islice(requests, _CHUNK)):
        chunk = [_under(request, judge.rubric(request.rubric)) for request in chunk]
        tally.requests += len(chunk)
        keys = [verdicts.key(judge.identity, request) for request in chunk]
        stored = store.get_many(keys)
        stale = {k for k, v in stored.items() if v.status in again and k not in asked}
        waiting: dict[str, list[verdicts.Request]] = {}  # by key: all that one verdict answers
        for key, request in zip(keys, chunk):
            if key in stored and key not in stale:
                tally.from_store += 1
                yield _counted(request, stored[key], tally)
            else:
                waiting.setdefault(key, []).append(request)
        asked |= waiting.keys()
        missing = [each[0] for each in waiting.values()]
        names = {id(each[0]): key for key, each in waiting.items()}
        for request, verdict in judge.score(missing, _journal(judge, store)):
            key = names[id(request)]
            tally.judged += 1
            tally.shared += len(waiting[key]) - 1
            tally.usage += verdict.usage
            if verdict.status in verdicts.LASTING:
                verdict = store.put(key, judge.identity, verdict, replace=key in stale)
            elif len(tally.failures) < 5:
                tally.failures.append("; ".join(verdict.problems))
            for each in waiting.pop(key):
                yield _counted(each, verdict, tally)


def collect(
    judge: verdicts.Judge,
    requests: Iterable[verdicts.Request],
    store: store_lib.Store,
    *,
    again: Collection[str] = (),
    progress: Callable[[Tally], None] = lambda tally: None,
) -> tuple[dict[str, verdicts.Verdict], Tally]:
    """`stream` to the end: verdicts by request id, and the tally. Ids must differ."""
    tally, found = Tally(), {}
    for request, verdict in stream(judge, requests, store, again=again, tally=tally):
        if request.id in found:
            raise ValueError(f"Two requests have the id {request.id!r}; ids must differ.")
        found[request.id] = verdict
        progress(tally)
    return found, tally


def _under(request: verdicts.Request, rubric: records.Rubric) -> verdicts.Request:
    if rubric is request.rubric:
        return request
    return dataclasses.replace(request, rubric=rubric)


def _journal(judge: verdicts.Judge, store: store_lib.Store) -> verdicts.Journal:
    return lambda request: store.journal(verdicts.key(judge.identity, request))


def _counted(request, verdict, tally: Tally):
    tally.statuses[verdict.status] += 1
    tally.problems.update(problem.partition(":")[0] for problem in verdict.problems)
    return request, verdict
