"""Instances to look at: pictures, instruction, rubric, responses, verdicts, and what was mined.

Instances are read one line at a time and only those that are shown are kept, so a run may be of any
size. Pictures are scaled down, and each distinct one is kept once.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rubric_jax.data import images, instructions
from rubric_jax.report import lines
from rubric_jax.rubrics import arrays, records

SIDE = 320  # pixels of a picture's longer side, at most
MAX_PIXELS = 50_000_000  # of a picture; larger ones are not opened
UNJUDGED = "not judged"


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an instance asks, and the right answer where it is known."""

    text: str
    images: tuple[images.Ref, ...] = ()
    answer: str = ""
    reference: str = ""


# Ids of instances -> (id, what was asked) of those that are known, in any order.
Lookup = Callable[[frozenset[str]], Iterable[tuple[str, Asked]]]


@dataclasses.dataclass(frozen=True)
class Response:
    text: str
    tokens: int
    finished: bool
    status: str = UNJUDGED  # see judges/verdicts.py
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)  # by criterion id
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by criterion id
    problems: tuple[str, ...] = ()
    total: float | None = None  # reward; None without a score on every criterion
    axes: Mapping[str, float] = dataclasses.field(default_factory=dict)  # reward per axis


@dataclasses.dataclass(frozen=True)
class Pair:
    """A mined row: which responses it took as what, and why."""

    sample: Mapping[str, int]  # chosen, rejected or response_0, .. -> index of the response
    axis: str
    total: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Instance:
    id: str
    text: str
    answer: str
    reference: str
    pictures: tuple[int, ...]  # into Browser.pictures
    rubric: records.Rubric | None
    responses: tuple[Response, ...]
    pairs: tuple[Pair, ...] | None  # None = not mined (yet)
    reason: str = ""  # why it gave no pair, where the manifest says


@dataclasses.dataclass(frozen=True)
class Browser:
    where: str  # the folder shown; "" = there is nothing to show
    instances: tuple[Instance, ...]
    total: int  # instances of that folder
    axes: tuple[str, ...]
    pictures: tuple[str, ...]  # data URIs, each distinct picture once
    notes: tuple[str, ...]


def read(
    root: pathlib.Path,
    places: Sequence[pathlib.Path],
    *,
    instances: int,
    lookup: Lookup,
    aggregate: Callable,
    axes: tuple[str, ...],
) -> Browser:
    """Reads the first of the places that has samples.

    Args:
      root: the run directory; names are relative to it.
      places: folders that may have samples.jsonl.
      instances: show this many at most, evenly spread.
      lookup: what was asked.
      aggregate: from scores to rewards, see rubrics/aggregation.py.
      axes: the run's reward axes; empty = those that the rubrics name.
    """
    folder = next((p for p in places if (p / "samples.jsonl").exists()), None)
    if folder is None:
        return Browser("", (), 0, axes, (), ("There are no samples yet.",))
    rows, total = _spread(folder / "samples.jsonl", instances)
    samples = {row.get("id", str): row for row in rows}
    judged = _judged(folder / "verdicts.jsonl", samples.keys())
    pairs, prompts = _mined(folder / "pairs.jsonl", samples.keys())
    rubrics = {
        key: records.parse(row.get("rubric", dict), where=f"{row.where}: rubric", axes=axes)
        for key, row in judged.items()
    }
    axes = axes or tuple(dict.fromkeys(c.axis for r in rubrics.values() for c in r.criteria))
    responses = {key: _responses(row, judged.get(key)) for key, row in samples.items()}
    responses |= _rewarded(rubrics, {key: responses[key] for key in rubrics}, axes, aggregate)
    asked, notes = _asked(lookup, frozenset(samples), prompts)
    album = _Album()
    manifest = lines.whole(folder / "pairs.json")
    reasons = (manifest.value.get("reasons") if manifest else None) or {}
    found = [
        Instance(
            id=key,
            text=asked[key].text if key in asked else "",
            answer=asked[key].answer if key in asked else "",
            reference=asked[key].reference if key in asked else "",
            pictures=album.add(asked[key].images) if key in asked else (),
            rubric=rubrics.get(key),
            responses=responses[key],
            pairs=None if pairs is None else tuple(pairs[key]),
            reason=str(reasons.get(key, "")),
        )
        for key in samples
    ]
    notes += _differing(found)
    if album.broken:
        notes.append(f"{album.broken} pictures could not be read: {album.error}")
    where = str(folder.relative_to(root))
    return Browser(where, tuple(found), total, axes, tuple(album.uris), tuple(notes))


def instructions_of(config: Mapping[str, Any]) -> Lookup:
    """Looks in the instructions that a run's config names, held-out ones last."""
    pool = config.get("pool") if isinstance(config.get("pool"), Mapping) else {}
    places = [
        (pool.get("path"), pool.get("split")),
        (pool.get("eval_path"), pool.get("eval_split")),
    ]

    def lookup(ids: frozenset[str]) -> Iterable[tuple[str, Asked]]:
        missing = set(ids)
        for path, split in places:
            if not path or not missing:
                continue
            for one in instructions.read(path, split or "train"):
                if one.id in missing:
                    missing.discard(one.id)
                    yield one.id, Asked(one.text, one.images, one.answer, one.reference)
                if not missing:
                    break

    return lookup


def status(row: lines.Row, verdict: Any) -> str:
    """The status of a verdict of a row of verdicts.jsonl."""
    if not isinstance(verdict, dict) or not isinstance(verdict.get("status"), str):
        raise ValueError(f"{row.where}: a verdict without a status; run the stage again.")
    return verdict["status"]


def thumbnail(data: bytes) -> str:
    """A picture as a data URI, SIDE pixels at most; PNG or WebP, whichever is smaller.

    One that the page shows pixel by pixel (up to 96 of them a side) is a PNG, which loses none.

    Raises:
      ValueError: not an image, or a damaged or very large one.
    """
    images.check(data, MAX_PIXELS)
    image = images.decode(data)
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    image = image.convert("RGBA" if transparent else "RGB")
    image.thumbnail((SIDE, SIDE))
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("webp", {"quality": 80})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)  # without EXIF, so without places and names
        encoded[kind] = buffer.getvalue()
    kind = "png" if max(image.size) <= 96 else min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"


class _Album:
    """Distinct pictures, in the order they came."""

    def __init__(self):
        self.uris: list[str] = []
        self.broken, self.error = 0, ""
        self._index: dict[str, int] = {}

    def add(self, refs: Sequence[images.Ref]) -> tuple[int, ...]:
        found = []
        for ref in refs:
            try:
                data = images.read(ref)
                digest = images.digest(data)
                if digest not in self._index:
                    uri = thumbnail(data)
                    self._index[digest] = len(self.uris)
                    self.uris.append(uri)
            except ValueError as error:
                self.broken, self.error = self.broken + 1, self.error or str(error)
            else:
                found.append(self._index[digest])
        return tuple(found)


def _spread(path: pathlib.Path, count: int) -> tuple[list[lines.Row], int]:
    """`count` rows at most, evenly spread over the file, and how many it has."""
    total = sum(1 for _ in lines.lines(path))
    count = min(count, total)
    wanted = {i * total // count for i in range(count)}
    rows = [lines.row(*line) for i, line in enumerate(lines.lines(path)) if i in wanted]
    return rows, total


def _judged(path: pathlib.Path, ids) -> dict[str, lines.Row]:
    rows = ((row.get("id", str), row) for row in lines.rows(path))
    return {key: row for key, row in rows if key in ids}


def _mined(path: pathlib.Path, ids) -> tuple[dict[str, list[Pair]] | None, dict[str, Asked]]:
    """Pairs of each instance (None where nothing was mined), and what their prompts ask."""
    if not path.exists():
        return None, {}
    pairs, prompts = collections.defaultdict(list), {}
    for row in lines.rows(path):
        mined = row.value.get("mined")
        key = mined.get("instance") if isinstance(mined, dict) else None
        if key not in ids:
            continue
        sample = {k: int(v) for k, v in lines.numbers(mined.get("sample")).items()}
        axis = row.value.get("axis") or ""
        pairs[key].append(Pair(sample, str(axis), lines.numbers(mined.get("total"))))
        if key not in prompts:
            refs = row.value.get("images") or ()
            prompts[key] = Asked(
                text=instructions.words(row.get("prompt", (str, list))),
                images=tuple(images.of(ref, root=str(path.parent)) for ref in refs),
            )
    return pairs, prompts


def _responses(sample: lines.Row, judged: lines.Row | None) -> tuple[Response, ...]:
    texts = [lines.Row(sample.where, r) for r in sample.get("responses", list)]
    verdicts = judged.get("verdicts", list) if judged else [None] * len(texts)
    if len(verdicts) != len(texts):
        raise ValueError(
            f"{judged.where}: {len(verdicts)} verdicts on the {len(texts)} responses of "
            f"{sample.where}; the two files do not belong together. Run the stage `judge` again."
        )
    return tuple(_response(r, v, judged) for r, v in zip(texts, verdicts))


def _response(row: lines.Row, verdict: Any, judged: lines.Row | None) -> Response:
    ids = row.value.get("ids")
    found = Response(
        text=row.get("text", str),
        tokens=len(ids) if isinstance(ids, list) else 0,
        finished=bool(row.value.get("finished", True)),
    )
    if verdict is None:
        return found
    return dataclasses.replace(
        found,
        status=status(judged, verdict),
        scores=lines.numbers(verdict.get("scores")),
        reasons={str(k): str(v) for k, v in (verdict.get("reasons") or {}).items()},
        problems=tuple(map(str, verdict.get("problems") or ())),
    )


def _rewarded(rubrics, responses, axes, aggregate) -> dict[str, tuple[Response, ...]]:
    """The responses with their rewards."""
    if not rubrics:
        return {}
    try:
        scores = arrays.stack(
            list(rubrics.values()), [[r.scores for r in responses[key]] for key in rubrics], axes
        )
    except ValueError as error:
        raise ValueError(f"verdicts.jsonl does not fit its rubrics: {error}") from error
    rewards = aggregate(scores)
    total, per_axis, known = (
        np.asarray(value) for value in (rewards.total, rewards.axes, rewards.known)
    )
    out = {}
    for b, key in enumerate(rubrics):
        out[key] = tuple(
            dataclasses.replace(
                response,
                total=float(total[b, k]) if math.isfinite(total[b, k]) else None,
                axes={
                    axis: float(per_axis[b, k, a])
                    for a, axis in enumerate(axes)
                    if known[b, a] and math.isfinite(per_axis[b, k, a])
                },
            )
            for k, response in enumerate(responses[key])
        )
    return out


def _asked(lookup: Lookup, ids: frozenset[str], prompts: Mapping[str, Asked]):
    """What was asked, by id; from the mined rows where the lookup does not know."""
    notes = []
    try:
        known = dict(lookup(ids))
    except ValueError as error:
        known = {}
        notes.append(f"The instructions could not be read: {error}")
    asked = {**prompts, **known}
    if missing := len(ids - asked.keys()):
        notes.append(f"Instruction and picture of {missing} of the instances shown are unknown.")
    return asked, notes


def _differing(found: Sequence[Instance]) -> list[str]:
    """Says so where the rewards of the mined rows are not those of the page."""
    different = sum(
        total is not None and abs(total - pair.total[name]) > 1e-3
        for instance in found
        for pair in instance.pairs or ()
        for name, k in pair.sample.items()
        if name in pair.total and k < len(instance.responses)
        for total in [instance.responses[k].total]
    )
    if not different:
        return []
    return [
        f"{different} rewards in pairs.jsonl differ from those shown, which follow the config's "
        "aggregation; the pairs were ordered by another."
    ]
