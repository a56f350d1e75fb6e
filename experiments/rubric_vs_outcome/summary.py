"""Tables and plots of results.json: per arm the mean over seeds, with 95 % t-intervals."""

from __future__ import annotations

import collections
import json
import math
import pathlib
from collections.abc import Callable, Iterable

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_MEASURES = ("reward", "all essentials", "right answer", "reward/grounding", "response tokens")
_BUCKETS = ((0.0, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 1.01))  # true differences of reward


def write(results: dict, out: pathlib.Path) -> None:
    """Writes plots beside README.md and the tables between its markers."""
    text = "\n\n".join([arms_table(results), judges_table(results)])
    readme = out / "README.md"
    begin, end = "<!-- tables -->", "<!-- end of tables -->"
    old = readme.read_text() if readme.exists() else f"{begin}\n{end}\n"
    head, _, rest = old.partition(begin)
    readme.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")
    plot(results, out / "arms.svg")


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % t-interval; half width NaN for one value."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, _T.get(n - 1, 1.96) * deviation / math.sqrt(n)


def by_arm(results: dict) -> dict[tuple[str, str], dict[int, dict]]:
    found: dict[tuple[str, str], dict[int, dict]] = collections.defaultdict(dict)
    for run in results["runs"]:
        found[run["arm"], run["loss"]][run["seed"]] = run
    return found


def gains(results: dict, measure: str) -> dict[tuple[str, str], list[float]]:
    """Per arm the change against the base of the same seed, seed by seed."""
    runs = by_arm(results)
    base = runs["base", "none"]
    return {
        arm: [
            run["measures"][measure] - base[seed]["measures"][measure]
            for seed, run in sorted(seeds.items())
        ]
        for arm, seeds in runs.items()
        if arm != ("base", "none")
    }


def arms_table(results: dict) -> str:
    runs = by_arm(results)
    change = gains(results, "reward")
    lines = [
        "| arm | loss | pairs | " + " | ".join(_MEASURES) + " | change of reward |",
        "|---|---|---:|" + "---:|" * (len(_MEASURES) + 1),
    ]
    for arm, seeds in runs.items():
        cells = [_cell([run["measures"][m] for run in seeds.values()]) for m in _MEASURES]
        rows = sum(run["rows"] for run in seeds.values()) / len(seeds)
        gain = _cell(change[arm], sign="+") if arm in change else ""
        name, loss = arm
        lines.append(
            f"| {name} | {'' if loss == 'none' else loss} | {rows:.0f} | {' | '.join(cells)} "
            f"| {gain} |"
        )
    return "\n".join(lines)


def judges_table(results: dict) -> str:
    """Agreement with the true order by noise and true difference, pooled over seeds."""
    counts: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for row in results["judges"]:
        entry = counts[row["noise"], row["judge"], tuple(row["bucket"])]
        entry[0] += row["agree"]
        entry[1] += row["pairs"]
    heads = [f"{low:g} to {min(high, 1):g}" for low, high in _BUCKETS]
    lines = [
        "| noise | judge | " + " | ".join(heads) + " |",
        "|---:|---|" + "---:|" * len(heads),
    ]
    for noise, judge in dict.fromkeys((key[0], key[1]) for key in counts):
        cells = []
        for bucket in _BUCKETS:
            agree, pairs = counts.get((noise, judge, bucket), (0, 0))
            cells.append(f"{agree / pairs:.3f} (n={pairs})" if pairs else "")
        lines.append(f"| {noise:g} | {judge} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement(
    seed: int, noise: float, *, truth, judged: dict, groups: Iterable, score: Callable
) -> list[dict]:
    """Rows of `judges`: for each judge and bucket of true difference, how many pairs it orders
    right; a tie of the judge counts one half."""
    counts: dict[tuple, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for instance, row, rubric in groups:
        texts = list(dict.fromkeys(response["text"] for response in row["responses"]))
        true = score(truth, instance, rubric, texts)
        for name, judge in judged.items():
            said = score(judge, instance, rubric, texts)
            for i in range(len(texts)):
                for j in range(i):
                    _count(counts, name, true[i] - true[j], said[i] - said[j])
    return [
        {"seed": seed, "noise": noise, "judge": name, "bucket": bucket, "agree": a, "pairs": n}
        for (name, bucket), (a, n) in sorted(counts.items())
    ]


def plot(results: dict, path: pathlib.Path) -> None:
    """Change of reward against the base: one dot per seed, mean and interval per arm."""
    change = gains(results, "reward")
    arms = list(dict.fromkeys(arm for arm, _ in change))
    figure, axes = pyplot.subplots(figsize=(7.5, 0.5 + 0.42 * len(arms)), layout="constrained")
    colours = {"dpo": "#2f6fb0", "mpo": "#d9822b"}
    for (arm, loss), values in change.items():
        y = arms.index(arm) + (0.16 if loss == "mpo" else -0.16)
        mean, half = interval(values)
        axes.plot(values, [y] * len(values), "o", ms=3, alpha=0.4, color=colours.get(loss))
        first = arm == arms[0]
        axes.errorbar(
            mean,
            y,
            xerr=None if math.isnan(half) else half,
            fmt="o",
            ms=6,
            capsize=3,
            color=colours.get(loss),
            label=loss.upper() if first else None,
        )
    axes.axvline(0, color="#888888", lw=1)
    axes.set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
    axes.invert_yaxis()
    axes.set_xlabel("change of held-out reward against the base (dots: seeds; bars: 95 %)")
    axes.legend(loc="best", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    matplotlib.rcParams["svg.hashsalt"] = "rubric_jax"  # equal results, equal bytes
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _count(counts, name: str, true: float, said: float) -> None:
    if abs(true) < 1e-9:
        return
    bucket = next(b for b in _BUCKETS if b[0] <= abs(true) < b[1])
    entry = counts[name, bucket]
    entry[0] += 0.5 if abs(said) < 1e-9 else float((said > 0) == (true > 0))
    entry[1] += 1


def _cell(values: list[float], sign: str = "") -> str:
    mean, half = interval(values)
    digits = 1 if abs(mean) >= 5 else 3
    around = "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return f"{mean:{sign}.{digits}f}{around}"


if __name__ == "__main__":  # the tables once more, from the results that are there
    folder = pathlib.Path(__file__).parent
    write(json.loads((folder / "results.json").read_text()), folder)
