"""Hypervolumes, tables and the plot of results.json."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot

KINDS = ("modpo", "dpo on the sum", "soup")
ENDS = "dpo on one axis"  # the ends of every front: MODPO with one weight is DPO on that axis
RESAMPLES = 2000


def hypervolume(
    points: Sequence[Sequence[float]], reference: Sequence[float] = (0.0, 0.0)
) -> float:
    """The area between a reference and the points that lie above it on both axes; exact.

    Points that another one dominates add nothing. Larger is better on both axes.
    """
    area, height = 0.0, reference[1]
    for x, y in sorted(map(tuple, points), reverse=True):  # from the right; steps upwards
        if x > reference[0] and y > height:
            area += (x - reference[0]) * (y - height)
            height = y
    return area


def fronts(points: list[dict]) -> dict[str, list[dict]]:
    """The points of each kind, with the ends that all kinds share."""
    ends = [point for point in points if point["kind"] == ENDS]
    return {kind: [p for p in points if p["kind"] == kind] + ends for kind in KINDS}


def hypervolumes(points: list[dict], axes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per kind the hypervolume above (0, 0) with its 95 % interval, and MODPO's lead over it.

    Intervals come from resampling held-out instructions, the same draw for every policy; what
    another training seed would change is not in them.
    """
    base = next(point for point in points if point["kind"] == "base")
    for point in points:
        if point["ids"] != base["ids"]:
            raise ValueError(f"{point['name']} was measured on other instructions than the base.")
    count = len(base["ids"])
    draws = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))

    def volumes(members: list[dict], rows: np.ndarray) -> np.ndarray:
        means = np.array(
            [
                [np.asarray(p["per_instance"][a], float)[rows].mean(-1) for a in axes]
                for p in members
            ]
        )  # [points, axes, R]
        return np.array([hypervolume(means[..., r]) for r in range(means.shape[-1])])

    kinds = {"base": [base], **fronts(points)}
    whole = {k: volumes(members, np.arange(count)[None])[0] for k, members in kinds.items()}
    drawn = {k: volumes(members, draws) for k, members in kinds.items()}
    found = {}
    for kind in kinds:
        low, high = np.percentile(drawn[kind], [2.5, 97.5])
        lead_low, lead_high = np.percentile(drawn["modpo"] - drawn[kind], [2.5, 97.5])
        found[kind] = {
            "hypervolume": float(whole[kind]),
            "low": float(low),
            "high": float(high),
            "lead of modpo": float(whole["modpo"] - whole[kind]),
            "lead low": float(lead_low),
            "lead high": float(lead_high),
        }
    return found


def write(results: dict, out: pathlib.Path) -> None:
    """Writes the tables between the markers of README.md, and front.svg."""
    axes = results["settings"]["axes"]
    tables = []
    for seed in results["seeds"]:
        tables += [f"Seed {seed['seed']}:", volume_table(seed, axes), point_table(seed, axes)]
    begin, end = "<!-- tables -->", "<!-- end of tables -->"
    readme = out / "README.md"
    old = readme.read_text() if readme.exists() else f"{begin}\n{end}\n"
    head, _, rest = old.partition(begin)
    text = "\n\n".join(tables)
    readme.write_text(f"{head}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")
    plot(results, out / "front.svg")


def volume_table(seed: dict, axes: Sequence[str]) -> str:
    lines = [
        "| front | hypervolume | 95 % interval | MODPO's lead | 95 % interval | s of training |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, v in hypervolumes(seed["points"], axes).items():
        lead = f"{v['lead of modpo']:+.4f} | {v['lead low']:+.4f} to {v['lead high']:+.4f}"
        seconds = seed["seconds"].get(kind, 0)
        lines.append(
            f"| {kind} | {v['hypervolume']:.4f} | {v['low']:.4f} to {v['high']:.4f} "
            f"| {' | ' if kind == 'modpo' else lead} | {seconds if seconds else ''} |"
        )
    return "\n".join(lines)


def point_table(seed: dict, axes: Sequence[str]) -> str:
    lines = [
        f"| policy | weight of {axes[0]} | " + " | ".join(axes) + " |",
        "|---|---:|" + "---:|" * len(axes),
    ]
    for point in seed["points"]:
        cells = [
            f"{r['mean']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
            for r in (point["rewards"][axis] for axis in axes)
        ]
        share = point["weights"].get(axes[0], "")
        lines.append(f"| {point['kind']} | {share} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict, path: pathlib.Path) -> None:
    """One panel per seed: every policy by its rewards on the two axes."""
    axes, seeds = results["settings"]["axes"], results["seeds"]
    with matplotlib.rc_context({"svg.hashsalt": "pareto", "svg.fonttype": "none"}):
        figure, panels = pyplot.subplots(
            1, len(seeds), figsize=(4.6 * len(seeds), 3.8), squeeze=False, layout="constrained"
        )
        for seed, panel in zip(seeds, panels[0]):
            for (kind, members), marker in zip(fronts(seed["points"]).items(), "os^"):
                members = sorted(members, key=lambda p: p["weights"][axes[0]])
                x, y = ([p["rewards"][axis]["mean"] for p in members] for axis in axes)
                panel.plot(x, y, marker=marker, markersize=5, linewidth=1, label=kind)
            ends = [p for p in seed["points"] if p["kind"] in (ENDS, "base")]
            for point, marker in zip(ends, "*DD"):
                x, y = (point["rewards"][axis]["mean"] for axis in axes)
                panel.plot(x, y, marker, color="black", markersize=8 if marker == "*" else 5)
                panel.annotate(
                    point["name"], (x, y), fontsize=7, xytext=(4, 4), textcoords="offset points"
                )
            panel.set(xlabel=axes[0], ylabel=axes[1], title=f"seed {seed['seed']}")
            panel.legend(frameon=False, fontsize=8)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
