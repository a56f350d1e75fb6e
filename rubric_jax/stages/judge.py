"""judge: responses under their rubrics -> verdicts.

  {"id": "scenes-0-7", "key": "<content key>", "rubric": {...}, "verdicts":
    [{"status": "scored", "scores": {"answer": 1.0}, "reasons": {}, "problems": []}, ...]}

Every verdict goes to the verdict store first; the file is a copy of those that a run needs, in the
order of the samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from rubric_jax import config as config_lib
from rubric_jax import judges
from rubric_jax.data import instructions
from rubric_jax.judges import verdicts
from rubric_jax.rubrics import pool as pool_lib
from rubric_jax.rubrics import records
from rubric_jax.stages import files

Assign = Callable[..., Mapping[str, str]]  # (ids, *, seed) -> id -> id whose rubric judges it


def write_verdicts(
    judge: judges.Judge,
    asked: Mapping[str, instructions.Instruction],
    samples: Mapping[str, Mapping[str, Any]],
    pool: pool_lib.Pool,
    store: judges.Store,
    file: files.File,
    *,
    assign: Assign | None = None,
    seed: int = 0,
    again: Sequence[str] = (),
    failures: float = 0.0,
) -> dict[str, Any]:
    """Judges every response, and writes the verdicts' file; returns the counts.

    Args:
      judge: the judge.
      asked: instructions by id.
      samples: rows of a samples file by id.
      pool: rubrics of the instructions.
      store: where verdicts live.
      file: the output.
      assign: whose rubric judges whose responses, for controls; None = everyone's own.
      seed: of `assign`.
      again: statuses of stored verdicts to ask for once more.
      failures: share of verdicts that may be lacking in the end.

    Raises:
      ValueError: samples and instructions that do not belong together, an instruction without a
        rubric, no such status, more failures than allowed; what was judged stays in the store.
    """
    for status in again:
        if status not in verdicts.STATUSES:
            raise ValueError(
                f"again: {status!r} is no status of a verdict; it must be "
                f"{config_lib.one_of(status, verdicts.STATUSES)}"
            )
    check_together(asked, samples, file.path)
    if files.begin(file) and not again:
        return files.read_manifest(file.path)["counts"]
    rubric_of = assign(tuple(samples), seed=seed) if assign else {i: i for i in samples}
    rubrics = {i: judge.rubric(pool.of(asked[rubric_of[i]].key)) for i in samples}
    total = sum(len(row["responses"]) for row in samples.values())
    tally = judges.Tally()
    requests = _requests(asked, samples, rubrics)
    bar = tqdm.tqdm(total=total, desc="judge")
    for _ in judges.stream(judge, requests, store, again=again, tally=tally):
        bar.update()
        if tally.judged % 64 == 0:
            calls = f"{tally.from_store} from the store, {tally.usage.calls} calls"
            bar.set_postfix_str(calls, refresh=False)
    bar.close()
    for line in tally.lines():
        tqdm.tqdm.write(line)
    failed = tally.statuses["failed"]
    if failed > failures * total:
        raise ValueError(
            f"{failed} of {total} verdicts failed, such as: {tally.failures[0]}. The others are "
            f"stored in {store.path}. Run the same command again to ask for these, or let "
            "config.judging.failures allow them."
        )
    counts = {
        "instructions": len(samples),
        "verdicts": total,
        "statuses": dict(sorted(tally.statuses.items())),
        "problems": dict(sorted(tally.problems.items())),
    }
    files.write_whole(file, _rows(judge, asked, samples, rubrics, store), counts)
    return counts


def read_verdicts(path: str, samples: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows of a finished verdicts file by id, with `rubric` parsed.

    A file that `judge` made may lack the instructions that it was told to leave out.

    Raises:
      ValueError: 'file:line: field: what is wrong, and the mend'; samples without verdicts.
    """
    files.need_finished(path, made_by="judge")
    found = {}
    for where, row in files.lines(path, made_by="judge"):
        ident = files.field(where, row, "id", str)
        if ident not in samples:
            raise ValueError(
                f"{where}: id: no responses of {ident!r}; verdicts and samples are of two runs."
            )
        if ident in found:
            raise ValueError(f"{where}: id: {ident!r} occurs twice; remove one of the lines.")
        keys = row.get("key") or "", samples[ident].get("key") or ""
        if all(keys) and keys[0] != keys[1]:
            raise ValueError(
                f"{where}: key: found {keys[0]!r}, and the samples of {ident!r} have {keys[1]!r}: "
                "another text or other pictures. Judge the samples again."
            )
        row["rubric"] = records.parse(row.get("rubric"), where=f"{where}: rubric")
        own = files.field(where, row, "verdicts", list)
        if len(own) != len(samples[ident]["responses"]):
            raise ValueError(
                f"{where}: verdicts: {len(own)} for {len(samples[ident]['responses'])} responses; "
                "judge the samples again."
            )
        for n, verdict in enumerate(own):
            _check_verdict(f"{where}: verdicts[{n}]", verdict, row["rubric"])
        found[ident] = row
    _check_complete(path, found, samples)
    return found


def check_together(
    asked: Mapping[str, instructions.Instruction],
    samples: Mapping[str, Mapping[str, Any]],
    where: str,
) -> None:
    """Raises ValueError unless every sample answers one of these very instructions."""
    for ident, row in samples.items():
        if ident not in asked:
            raise ValueError(
                f"{where}: the samples answer {ident!r}, which is not among the {len(asked)} "
                "instructions of config.pool; do they belong together?"
            )
        if row.get("key", "") not in ("", asked[ident].key):
            raise ValueError(
                f"{asked[ident].where}: text or pictures of {ident!r} are not those that the "
                "samples answer; sample again, or use the instructions they were made with."
            )


def _check_verdict(where: str, verdict: Any, rubric: records.Rubric) -> None:
    if not isinstance(verdict, Mapping) or verdict.get("status") not in verdicts.STATUSES:
        raise ValueError(f"{where}.status: must be one of {', '.join(verdicts.STATUSES)}.")
    if verdict["status"] not in ("scored", "partial"):
        return
    scores = verdict.get("scores")
    if not isinstance(scores, Mapping):
        raise ValueError(
            f"{where}.scores: found {scores!r}; it must map criteria to scores in [0, 1]."
        )
    known = [criterion.id for criterion in rubric.criteria]
    for ident, score in scores.items():
        if ident not in known:
            raise ValueError(
                f"{where}.scores: the rubric has no criterion {ident!r}; it must be "
                f"{config_lib.one_of(ident, known)}"
            )
        number = isinstance(score, int | float) and not isinstance(score, bool)
        if not number or not math.isfinite(score) or not 0 <= score <= 1:
            raise ValueError(
                f"{where}.scores.{ident}: found {score!r}; it must be a number in [0, 1]."
            )
    lacking = [ident for ident in known if ident not in scores]
    if lacking and verdict["status"] == "scored":
        raise ValueError(
            f"{where}.scores: no score of {lacking[0]!r}; add it, or make the status 'partial'."
        )


def _check_complete(path: str, found: Mapping[str, Any], samples: Mapping[str, Any]) -> None:
    manifest = files.read_manifest(path)
    counted = manifest["counts"].get("instructions", len(found)) if manifest else len(samples)
    if len(found) != counted:
        lacking = next((i for i in samples if i not in found), "")
        raise ValueError(
            f"{path}: verdicts on {len(found)} instructions, not on {counted}; {lacking!r} has "
            "none, for one. Judge the samples again."
        )


def _requests(asked, samples, rubrics) -> Iterator[judges.Request]:
    for ident, row in samples.items():
        instance = asked[ident].instance()
        for k, response in enumerate(row["responses"]):
            yield judges.Request(f"{ident}/{k}", instance, response["text"], rubrics[ident])


def _rows(judge, asked, samples, rubrics, store) -> Iterator[dict[str, Any]]:
    for ident, row in samples.items():
        requests = list(_requests(asked, {ident: row}, rubrics))
        keys = [verdicts.key(judge.identity, request) for request in requests]
        found = store.get_many(keys)
        yield {
            "id": ident,
            "key": asked[ident].key,
            "rubric": json.loads(records.to_json(rubrics[ident])),
            "verdicts": [_verdict(found.get(key)) for key in keys],
        }


def _verdict(verdict: verdicts.Verdict | None) -> dict[str, Any]:
    if verdict is None:
        verdict = verdicts.Verdict("failed", {})
    return {
        "status": verdict.status,
        "scores": dict(verdict.scores),
        "reasons": dict(verdict.reasons),
        "problems": list(verdict.problems),
    }
