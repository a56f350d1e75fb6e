"""One self-contained HTML page of a run: no network, no other file.

Texts of models and judges are untrusted. Jinja escapes what stands in the page; what the browser of
instances shows travels as JSON and is only ever set as text; and a content security policy admits
no script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

from rubric_jax.report import browse, collect, plots

_FOLDER = pathlib.Path(__file__).parent
STATUSES = ("scored", "partial", "unparsable", "refused", "failed")
# Metrics that are shown first, by the end of their names; the others wait behind a click.
_FIRST = ("loss", "accuracies", "margins", "rewards/chosen", "rewards/rejected", "grad_norm")


class Bar(NamedTuple):
    """An interval on a scale, in percent of the plot's width."""

    series: int
    policy: str
    mean: float
    low: float
    high: float


class Measure(NamedTuple):
    name: str
    values: tuple[collect.Interval | None, ...]  # per policy
    change: float | None  # from the first policy that has it to the last
    verdict: str  # higher, lower, overlap
    bars: tuple[Bar, ...]
    ends: tuple[str, str]  # of the scale


def render(run: collect.Run) -> str:
    """The page; equal runs give equal text."""
    script, style = ((_FOLDER / f"page.{kind}").read_text("utf-8") for kind in ("js", "css"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "count": count,
        "counts": counts_of,
    }
    return environment.get_template("page.html.jinja").render(
        run=run,
        policies=[e.policy for e in run.evaluations],
        measures=measures(run.evaluations),
        facts=facts(run),
        panels=panels(run.curves),
        first_panels=_FIRST,
        gaps=gaps(run.pairs),
        fronts=fronts(run),
        statuses=[s for s in _statuses(run) if any(s in c for c in run.verdicts.values())],
        series_of=series_of,
        kinds=list(zip(plots.kinds(run.points), itertools.cycle(plots.MARKERS.values()))),
        on_front=lambda point: plots.on_front(point, run.points, run.axes),
        config=json.dumps(run.config, indent=2, sort_keys=True),
        data=safe_json(browser_data(run.browser)),
        script=markupsafe.Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=markupsafe.Markup(style),
    )


def safe_json(value: Any) -> markupsafe.Markup:
    """JSON that may stand in a script element: '<', '>' and '&' are written as escapes."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)


def series_of(where: str) -> int:
    """Colour number of a policy or a round: base 0, round_1 1, .."""
    number = where.split("/")[0].rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def facts(run: collect.Run) -> list[tuple[str, str, str]]:
    """(title, value, remark) of what matters most."""
    found = []
    rewards = [e.measures["reward"] for e in run.evaluations if "reward" in e.measures]
    if rewards:
        before, after = rewards[0], rewards[-1]
        value = number(after.mean) if len(rewards) == 1 else f"{before.mean:.2f} → {after.mean:.2f}"
        remark = f"95 % interval {number(after.low)} to {number(after.high)}"
        found.append(("Held-out reward", value, remark))
    if run.pairs:
        rows = sum(pairs.rows for pairs in run.pairs)
        groups = [pairs.groups for pairs in run.pairs]
        remark = "" if None in groups else f"of {count(sum(groups))} judged groups"
        found.append(("Preference rows", count(rows), remark))
    if run.verdicts:
        total = sum(sum(counts.values()) for counts in run.verdicts.values())
        scored = sum(counts.get("scored", 0) for counts in run.verdicts.values())
        value = f"{100 * scored / total:.1f} %"
        found.append(("Verdicts fully scored", value, f"of {count(total)}"))
    if run.curves:
        steps = sum(max(points[-1][0] for points in c.series.values()) for c in run.curves)
        rounds = len(run.curves)
        found.append(("Training steps", count(steps), f"in {rounds} round{'s' * (rounds > 1)}"))
    return found


def measures(evaluations: Sequence[collect.Evaluation]) -> list[Measure]:
    """Every measure of any evaluation, in their order."""
    names = dict.fromkeys(name for e in evaluations for name in e.measures)
    return [_measure(name, evaluations) for name in names]


def _measure(name: str, evaluations: Sequence[collect.Evaluation]) -> Measure:
    values = tuple(e.measures.get(name) for e in evaluations)
    there = [v for v in values if v is not None]
    low, high = min(v.low for v in there), max(v.high for v in there)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    else:
        margin = 0.1 * (high - low) or 1.0
        low, high = low - margin, high + margin
    bars = tuple(
        Bar(
            series_of(e.policy),
            e.policy,
            *(_percent(x, low, high) for x in (v.mean, v.low, v.high)),
        )
        for e, v in zip(evaluations, values, strict=True)
        if v is not None
    )
    change, verdict = None, ""
    if len(there) > 1:
        change = there[-1].mean - there[0].mean
        verdict = "overlap"
        if there[0].apart(there[-1]):
            verdict = "higher" if change > 0 else "lower"
    return Measure(name, values, change, verdict, bars, (number(low), number(high)))


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def panels(curves: Sequence[collect.Curves]) -> list[tuple[str, list, markupsafe.Markup]]:
    """(metric, [(round, last value)], plot), what matters most first."""
    names = {name.removeprefix("eval/") for c in curves for name in c.series}
    out = []
    for name in sorted(names, key=lambda name: (_rank(name), name)):
        lines, last = [], []
        for c in curves:
            for series, held_out in ((name, False), (f"eval/{name}", True)):
                if series in c.series:
                    lines.append((series_of(c.where), held_out, c.series[series]))
            if name in c.series:
                last.append((series_of(c.where), c.where, c.series[name][-1][1]))
        out.append((name, last, plots.curves(lines, name=f"curve {name}")))
    return out


def _rank(name: str) -> int:
    return next((i for i, end in enumerate(_FIRST) if name.endswith(end)), len(_FIRST))


def gaps(pairs: Sequence[collect.Pairs]) -> markupsafe.Markup | None:
    groups = [(series_of(p.where), p.gaps) for p in pairs if p.gaps]
    if not groups:
        return None
    label = "total reward of chosen − rejected"
    return plots.histogram(groups, label=label, name="histogram of reward gaps")


def fronts(run: collect.Run) -> list[markupsafe.Markup]:
    if not run.points:
        return []
    return [
        plots.pareto(run.points, x, y, name=f"rewards on {x} and {y}")
        for x, y in plots.pairs_of(run.axes)
    ]


def _statuses(run: collect.Run) -> list[str]:
    found = {status for counts in run.verdicts.values() for status in counts}
    return [*STATUSES, *sorted(found - set(STATUSES))]


def browser_data(browser: browse.Browser) -> dict[str, Any]:
    """What the script of the page reads. Equal rubrics are written once."""
    rubrics: dict[str, int] = {}
    table = []
    for one in browser.instances:
        if one.rubric is not None and one.rubric.digest not in rubrics:
            rubrics[one.rubric.digest] = len(table)
            table.append(
                {
                    "source": one.rubric.source,
                    "criteria": [
                        c.model_dump(mode="json", exclude={"check"}, exclude_none=True)
                        for c in one.rubric.criteria
                    ],
                }
            )
    return {
        "axes": list(browser.axes),
        "pictures": list(browser.pictures),
        "rubrics": table,
        "instances": [
            {
                "id": one.id,
                "text": one.text,
                "answer": one.answer,
                "reference": one.reference,
                "pictures": list(one.pictures),
                "rubric": None if one.rubric is None else rubrics[one.rubric.digest],
                "responses": [_response(r, one.rubric) for r in one.responses],
                "pairs": None if one.pairs is None else [_pair(p) for p in one.pairs],
                "reason": one.reason,
            }
            for one in browser.instances
        ],
    }


def _response(response: browse.Response, rubric) -> dict[str, Any]:
    ids = [c.id for c in rubric.criteria] if rubric else []
    return {
        "text": response.text,
        "tokens": response.tokens,
        "finished": response.finished,
        "status": response.status,
        "scores": [response.scores.get(i) for i in ids],
        "reasons": [response.reasons.get(i, "") for i in ids],
        "problems": list(response.problems),
        "total": _rounded(response.total),
        "axes": {axis: _rounded(value) for axis, value in response.axes.items()},
    }


def _pair(pair: browse.Pair) -> dict[str, Any]:
    total = {name: _rounded(value) for name, value in pair.total.items()}
    return {"sample": dict(pair.sample), "axis": pair.axis, "total": total}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def number(value: float) -> str:
    """Three digits that matter: 0.613, 24.7, 5320, 1.2e-06.

    >>> [number(x) for x in (0.6134, 24.68, 5320.4, 0.0000012, 0, 1)]
    ['0.613', '24.7', '5320', '1.2e-06', '0', '1']
    """
    size = abs(value)
    if size == int(size) and size < 1e6:
        text = str(int(size))
    elif size < 1e-3 or size >= 1e6:
        text = f"{size:.2g}"
    else:
        text = f"{size:.{max(0, 3 - len(str(int(size))) + (size < 1))}f}"
    return ("−" if value < 0 else "") + text


def signed(value: float) -> str:
    """With its sign: +0.12, −3.1, 0."""
    return ("+" if value > 0 else "") + number(value)


def count(value: Any) -> str:
    """12345 -> '12 345', with narrow spaces; anything else as it is."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}".replace(",", "\u202f") if is_count else str(value)


def counts_of(counts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Flat (name, count) of a manifest's counts."""
    flat = []
    for name, value in counts.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}: {inner}", count(v)) for inner, v in value.items()]
        else:
            flat.append((name.replace("_", " "), count(value)))
    return flat
