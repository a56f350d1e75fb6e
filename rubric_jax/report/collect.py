"""What a run directory holds, as plain records; every part may be missing.

  config.json, */*.json manifests     what ran and what came of it     Run.config, Run.stages
  base/eval.json, round_1/eval.json   before and after                 Run.evaluations
  round_1/train/metrics.jsonl         training curves                  Run.curves
  round_1/pairs.jsonl                 reward gaps, groups without      Run.pairs
  round_1/verdicts.jsonl              how judging went                 Run.verdicts
  round_1/samples.jsonl               responses to look at             Run.browser, see browse.py
  weightings.json                     several weightings of one run    Run.points

weightings.json, where axes were weighted in several ways:

  {"axes": ["correctness", "format"],
   "points": [{"name": "3:1", "kind": "modpo", "weights": {"correctness": 0.75, "format": 0.25},
               "rewards": {"correctness": {"mean": 0.7, "low": 0.66, "high": 0.74}, ..}}, ..]}
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rubric_jax import config as config_lib
from rubric_jax.report import browse, lines
from rubric_jax.rubrics import aggregation


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int = 0  # instances; 0 = unknown

    def apart(self, other: Interval) -> bool:
        """Whether the intervals do not overlap."""
        return self.low > other.high or other.low > self.high


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage file and its manifest."""

    where: str  # 'round_1/samples'
    counts: Mapping[str, Any]
    finished: bool
    version: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    policy: str  # base, round_1, ..
    instances: int
    measures: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Metrics of one round's training."""

    where: str
    series: Mapping[str, tuple[tuple[int, float], ...]]  # name -> (step, value)
    nonfinite: int  # values that were NaN or infinite


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Mined preference data of one round."""

    where: str
    rows: int
    groups: int | None  # instances that were mined; None = no manifest says
    skipped: Mapping[str, int]  # instances without a row, by reason
    left_out: Mapping[str, int]  # single pairs of instances that have others, by reason
    gaps: tuple[float, ...]  # total reward of chosen - rejected (a list: of best - worst)


@dataclasses.dataclass(frozen=True)
class Point:
    """A policy trained (or merged) under one weighting of the axes."""

    name: str
    kind: str  # modpo, dpo, soup
    weights: Mapping[str, float]
    rewards: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True)
class Run:
    name: str
    config: Mapping[str, Any]
    version: str  # of the package that wrote the newest manifest; "" = unknown
    stages: tuple[Stage, ...]
    evaluations: tuple[Evaluation, ...]
    curves: tuple[Curves, ...]
    pairs: tuple[Pairs, ...]
    verdicts: Mapping[str, Mapping[str, int]]  # where -> status -> count
    axes: tuple[str, ...]  # of the weightings
    points: tuple[Point, ...]
    browser: browse.Browser
    notes: tuple[str, ...]  # what is missing or was left out, in sentences


def collect(workdir, *, instances: int = 200, lookup: browse.Lookup | None = None) -> Run:
    """Reads a run directory.

    Args:
      workdir: the directory.
      instances: how many instances to show at most, evenly spread over the last round.
      lookup: gives what was asked, by id; None = the instructions that the run's config names.

    Raises:
      ValueError: no such directory, or a file that cannot be read: 'file:line: what is wrong'.
    """
    root = pathlib.Path(workdir)
    if not root.is_dir():
        raise ValueError(f"No run directory {str(root)!r}; give the --workdir of a run.")
    if instances < 0:
        raise ValueError(f"instances is {instances}; it must be at least 0.")
    config = lines.whole(root / "config.json")
    config = config.value if config else {}
    notes = [
        f"{path.relative_to(root)}: its last line is half-written and left out."
        for path in sorted(root.glob("**/*.jsonl"))
        if lines.ends_half_written(path)
    ]
    stages = tuple(_stages(root))
    axes, points = _weightings(root / "weightings.json")
    browser = browse.read(
        root,
        _places(root),
        instances=instances,
        lookup=lookup or browse.instructions_of(config),
        aggregate=_aggregation(config),
        axes=tuple(_group(config, "data").get("axes") or ()),
    )
    return Run(
        name=root.resolve().name,
        config=config,
        version=next((s.version for s in reversed(stages) if s.version), ""),
        stages=stages,
        evaluations=tuple(_evaluations(root)),
        curves=tuple(_curves(root)),
        pairs=tuple(_pairs(root)),
        verdicts=_verdicts(root),
        axes=axes,
        points=points,
        browser=browser,
        notes=(*notes, *browser.notes),
    )


def _rounds(root: pathlib.Path) -> list[pathlib.Path]:
    """round_1, round_2, .. in order of their numbers."""
    numbers = {path: re.fullmatch(r"round_(\d+)", path.name) for path in root.glob("round_*")}
    return sorted((p for p, m in numbers.items() if m), key=lambda p: int(numbers[p][1]))


def _policies(root: pathlib.Path) -> list[pathlib.Path]:
    return [root / "base", *_rounds(root)]


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    """Where samples and verdicts may lie, in the order of the run."""
    rounds = [folder for path in _rounds(root) for folder in (path, path / "eval")]
    return [root / "base" / "eval", *rounds]


def _places(root: pathlib.Path) -> list[pathlib.Path]:
    """Where to look for instances to show: the last round, or else the last evaluation."""
    rounds = _rounds(root)
    return [*reversed(rounds), *(p / "eval" for p in reversed(_policies(root)))]


def _stages(root: pathlib.Path) -> Iterable[Stage]:
    manifests = [root / "rubrics.json"]
    for folder in _folders(root):
        manifests += [folder / f"{name}.json" for name in ("samples", "verdicts", "pairs")]
        if folder.name != "eval":
            manifests.append(folder / "train" / "metrics.jsonl")
    for path in manifests:
        where = str(path.relative_to(root).with_suffix(""))
        if path.suffix == ".jsonl":
            last = max((int(row.get("step", int)) for row in lines.rows(path)), default=None)
            if last is not None:
                yield Stage(str(path.parent.relative_to(root)), {"steps": last}, True)
        elif (manifest := lines.whole(path)) is not None:
            counts = manifest.value.get("counts") or {}
            finished = bool(manifest.value.get("finished", True))
            yield Stage(where, counts, finished, str(manifest.value.get("version", "")))


def _evaluations(root: pathlib.Path) -> Iterable[Evaluation]:
    for folder in _policies(root):
        row = lines.whole(folder / "eval.json")
        if row is not None:
            measures = row.get("measures", dict)
            yield Evaluation(
                policy=str(row.value.get("policy", folder.name)),
                instances=int(row.value.get("instances", 0)),
                measures={name: _interval(row, name, value) for name, value in measures.items()},
            )


def _interval(row: lines.Row, name: str, value: Any) -> Interval:
    found = lines.numbers(value)
    if "mean" not in found:
        raise ValueError(f"{row.where}: {name}: no mean; run the stage again.")
    mean = found["mean"]
    n = int(found.get("n", 0))
    return Interval(mean, found.get("low", mean), found.get("high", mean), n)


def _curves(root: pathlib.Path) -> Iterable[Curves]:
    for folder in _rounds(root):
        series, nonfinite = collections.defaultdict(list), 0
        for row in lines.rows(folder / "train" / "metrics.jsonl"):
            step = row.get("step", int)
            values = lines.numbers(row.value)
            nonfinite += int(values.pop("nonfinite", 0))
            for name in values.keys() - {"step"}:
                series[name].append((step, values[name]))
        if series:
            ordered = {name: tuple(series[name]) for name in sorted(series)}
            yield Curves(folder.name, ordered, nonfinite)


def _pairs(root: pathlib.Path) -> Iterable[Pairs]:
    for folder in _rounds(root):
        path = folder / "pairs.jsonl"
        manifest = lines.whole(path.with_suffix(".json"))
        if not path.exists() and manifest is None:
            continue
        gaps, count = [], 0
        for row in lines.rows(path):
            count += 1
            mined = row.value.get("mined")
            totals = lines.numbers(mined.get("total") if isinstance(mined, dict) else None)
            if len(totals) > 1:
                least, most = min(totals.values()), max(totals.values())
                gaps.append(totals.get("chosen", most) - totals.get("rejected", least))
        counts = (manifest.value.get("counts") if manifest else None) or {}
        yield Pairs(
            where=folder.name,
            rows=count,
            groups=counts.get("groups"),
            skipped=counts.get("skipped") or {},
            left_out=counts.get("left_out") or {},
            gaps=tuple(gaps),
        )


def _verdicts(root: pathlib.Path) -> dict[str, dict[str, int]]:
    found = {}
    for folder in _folders(root):
        counts = collections.Counter()
        for row in lines.rows(folder / "verdicts.jsonl"):
            counts.update(browse.status(row, verdict) for verdict in row.get("verdicts", list))
        if counts:
            found[str(folder.relative_to(root))] = dict(counts)
    return found


def _weightings(path: pathlib.Path) -> tuple[tuple[str, ...], tuple[Point, ...]]:
    row = lines.whole(path)
    if row is None:
        return (), ()
    axes = tuple(map(str, row.get("axes", list)))
    points = []
    for i, value in enumerate(row.get("points", list)):
        point = lines.Row(f"{path}: points[{i}]", value)
        rewards = point.get("rewards", dict)
        missing = [axis for axis in axes if axis not in rewards]
        if missing:
            raise ValueError(f"{point.where}: no reward on the axis {missing[0]!r}; add it.")
        points.append(
            Point(
                name=str(point.get("name", str)),
                kind=str(point.get("kind", str)),
                weights=lines.numbers(point.value.get("weights")),
                rewards={axis: _interval(point, axis, rewards[axis]) for axis in axes},
            )
        )
    return axes, tuple(points)


def _aggregation(config: Mapping[str, Any]) -> Callable[..., aggregation.Rewards]:
    """The aggregation that the run's pairs were ordered by; the weighted mean by default."""
    knobs = dict(_group(_group(config, "pair"), "aggregation"))
    name = knobs.pop("aggregation", "weighted_mean")
    function = config_lib.bind(aggregation.AGGREGATIONS, name, knobs, what="aggregation")
    return lambda scores: function(scores, **knobs)


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
