"""Plots as inline SVG whose colours are CSS variables, so that they suit light and dark pages.

Text stays text and takes the page's font. Equal input gives equal SVG.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence

import markupsafe
import matplotlib
import numpy as np
from matplotlib import figure, ticker

from rubric_jax.report import collect

POINTS = 300  # of a curve; longer ones are drawn as means over stretches of steps
SMOOTH = 40  # points of the bold line over a curve that has more than twice as many
SERIES = 6  # colours of the page, --s0 to --s5

# Colours that stand for a variable of the page's CSS until the SVG is written.
_VARIABLES = {"#010203": "--ink", "#010204": "--quiet", "#010205": "--rule", "#010206": "--page"}
_VARIABLES |= {f"#0a0b0{i}": f"--s{i}" for i in range(SERIES)}
_OF = {name: colour for colour, name in _VARIABLES.items()}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 10,
    "axes.edgecolor": _OF["--rule"],
    "axes.labelcolor": _OF["--quiet"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _OF["--rule"],
    "grid.linewidth": 0.6,
    "text.color": _OF["--ink"],
    "xtick.color": _OF["--rule"],
    "ytick.color": _OF["--rule"],
    "xtick.labelcolor": _OF["--quiet"],
    "ytick.labelcolor": _OF["--quiet"],
    "ytick.major.size": 0,
}
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}  # and their glyphs


def curves(lines: Sequence[tuple[int, bool, Sequence[tuple[int, float]]]], *, name: str):
    """Lines over steps.

    Args:
      lines: (series number, held out?, points); what is held out is dashed with dots.
      name: for screen readers; unique on the page.
    """
    with matplotlib.rc_context(_STYLE):
        axes = _axes(3.3, 1.9)
        for series, held_out, points in lines:
            if not held_out and len(points) > 2 * SMOOTH:
                axes.plot(*_thinned(points, POINTS), color=_series(series), linewidth=1, alpha=0.3)
                points = _thinned(points, SMOOTH).T
            steps, values = _thinned(points, POINTS)
            dots = {"linestyle": "--", "marker": "o", "markersize": 3} if held_out else {}
            alone = {} if len(steps) > 1 else {"marker": "o", "markersize": 4}
            axes.plot(steps, values, color=_series(series), linewidth=1.5, **{**dots, **alone})
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=False)
        axes.yaxis.get_offset_text().set_color(_OF["--quiet"])
        axes.set_xlabel("step")
        return _svg(axes, name)


def histogram(groups: Sequence[tuple[int, Sequence[float]]], *, label: str, name: str):
    """Counts of values, one outline per series number."""
    with matplotlib.rc_context(_STYLE):
        axes = _axes(3.9, 2.5)
        everything = np.concatenate([np.asarray(values) for _, values in groups])
        low, high = min(0.0, float(everything.min())), float(everything.max())
        edges = np.linspace(low, max(high, low + 1e-3), 21)
        for series, values in groups:
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts, edges, fill=True, color=_series(series), alpha=0.18)
            axes.stairs(counts, edges, color=_series(series), linewidth=1.5)
        axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
        axes.set_xlabel(label)
        axes.set_ylabel("pairs")
        return _svg(axes, name)


def pareto(points: Sequence[collect.Point], x: str, y: str, *, name: str):
    """Rewards on two axes with their intervals; hollow = another point is as good on both."""
    with matplotlib.rc_context(_STYLE | {"axes.grid.axis": "both"}):
        axes = _axes(5.2, 3.6)
        for i, kind in enumerate(kinds(points)):
            own = sorted((p for p in points if p.kind == kind), key=lambda p: p.rewards[x].mean)
            at = np.array([(p.rewards[x].mean, p.rewards[y].mean) for p in own])
            colour = _series(i + 1)
            axes.plot(*at.T, color=colour, linewidth=1, alpha=0.5)
            for point, (a, b) in zip(own, at, strict=True):
                bars = {
                    f"{d}err": [[v.mean - v.low], [v.high - v.mean]]
                    for d, v in (("x", point.rewards[x]), ("y", point.rewards[y]))
                }
                axes.errorbar(a, b, **bars, color=colour, linewidth=0.7, alpha=0.5)
                fill = colour if on_front(point, points, (x, y)) else _OF["--page"]
                marker = list(MARKERS)[i % len(MARKERS)]
                style = {"markerfacecolor": fill, "markeredgecolor": colour, "markersize": 7}
                axes.plot(a, b, marker=marker, linestyle="", zorder=3, **style)
                axes.annotate(point.name, (a, b), (6, 5), textcoords="offset points", fontsize=9)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        return _svg(axes, name)


def kinds(points: Sequence[collect.Point]) -> list[str]:
    return list(dict.fromkeys(point.kind for point in points))


def on_front(point: collect.Point, points: Sequence[collect.Point], axes: Sequence[str]) -> bool:
    """Whether no other point is at least as good on every axis and better on one, by the means."""
    own = [point.rewards[axis].mean for axis in axes]
    for other in points:
        theirs = [other.rewards[axis].mean for axis in axes]
        if all(t >= o for t, o in zip(theirs, own, strict=True)) and theirs != own:
            return False
    return True


def pairs_of(axes: Sequence[str]) -> list[tuple[str, str]]:
    return list(itertools.combinations(axes, 2))


def _series(number: int) -> str:
    return _OF[f"--s{number % SERIES}"]


def _thinned(points: Sequence[tuple[int, float]], count: int) -> np.ndarray:
    """Steps and values [2, count at most], as means over stretches."""
    found = np.array(points, np.float64).T
    if found.shape[1] <= count:
        return found
    return np.array([part.mean(axis=1) for part in np.array_split(found, count, axis=1)]).T


def _axes(width: float, height: float):
    """One plot, in inches of 72 CSS pixels."""
    return figure.Figure((width, height), layout="constrained").subplots()


def _svg(axes, name: str) -> markupsafe.Markup:
    axes.patch.set_visible(False)
    buffer = io.StringIO()
    axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    prefix = re.sub(r"\W+", "-", name)  # ids are of the page, not of the plot
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(<svg [^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r"\1", svg, count=1)
    label = markupsafe.escape(name)
    return markupsafe.Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
