"""Rows by how hard they are: a curriculum over an epoch, and views that take a part of the rows.

  config.data.curriculum = {"by": "gap", "order": "descending", "phases": 3}
  config.data.view = {"by": "level", "low": 2, "high": 2}

Both rank rows by a key, one number per row:

  gap     reward of one branch above that of another, over the axes: a large gap is an easy pair
  level   the column `level` of the data, which data.rated writes too

A curriculum cuts the rows, sorted by the key, into phases of equal size; see planning.Plan. A view
keeps the rows whose key lies in [low, high], or the k-th of n equal parts of the sorted rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic

from rubric_jax import config as config_lib
from rubric_jax.data import preparing

Order = Literal["ascending", "descending"]
Count = Annotated[int, pydantic.Field(ge=1)]
Key = Callable[[preparing.Prepared], np.ndarray]  # -> float64 [R], finite


class Phases(NamedTuple):
    """A curriculum over the rows of a plan."""

    key: np.ndarray  # float64 [R]
    of: np.ndarray  # int64 [R], the phase of each, from 0


def gap(
    prepared: preparing.Prepared,
    *,
    win: str = "chosen",
    lose: str = "rejected",
    weights: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Weighted reward of branch `win` above that of `lose`: float64 [R].

    Args:
      weights: of the reward axes by name, 0 where none is given; None = the mean over all.

    Raises:
      ValueError: rows without rewards, a branch or an axis that is not there.
    """
    axes, counts = prepared.axes, prepared.counts
    if not axes or counts.unrewarded:
        found = f"{counts.unrewarded} of {counts.kept} rows lack a reward on some axis"
        raise ValueError(
            f"'gap' reads rewards on every axis, but {found if axes else 'data.axes is empty'}. "
            "Name the axes and fill chosen_rewards and rejected_rewards, or order by 'level'."
        )
    for name in weights or {}:
        if name not in axes:
            raise ValueError(
                f"weights.{name} is no axis of the data; it must be {config_lib.one_of(name, axes)}"
            )
    share = [1 / len(axes) if weights is None else weights.get(axis, 0.0) for axis in axes]
    rewards = prepared.index["rewards"].astype(np.float64)  # [R, N, A]
    layout = prepared.layout
    return (rewards[:, layout.index(win)] - rewards[:, layout.index(lose)]) @ np.array(share)


def level(prepared: preparing.Prepared) -> np.ndarray:
    """The column `level`: float64 [R]. ValueError names a row that lacks it."""
    found = prepared.index["level"].astype(np.float64)
    lacking = np.flatnonzero(np.isnan(found))
    if len(lacking):
        raise ValueError(
            f"'level' reads the column `level`, a number, which {len(lacking)} of {len(found)} "
            f"rows lack (first: row {prepared.index['number'][lacking[0]]}). Fill it, or order by "
            "'gap'."
        )
    return found


KEYS: dict[str, Callable[..., np.ndarray]] = {"gap": gap, "level": level}


def _curriculum(*, order: Order = "descending", phases: Count = 1) -> None:
    """Knobs of a curriculum; see `phases`."""


def _view(
    *,
    low: float = -np.inf,
    high: float = np.inf,
    part: Count = 1,
    of: Count = 1,
    order: Order = "descending",
) -> None:
    """Knobs of a view; see `rows`."""


def check(config: config_lib.Data) -> None:
    """ValueError on an unknown key or knob of the curriculum or the view, before any data."""
    if config.curriculum:
        _bind(config.curriculum, _curriculum, "config.data.curriculum")
    if config.view:
        knobs = _bind(config.view, _view, "config.data.view")[1]
        if knobs["part"] > knobs["of"] or knobs["low"] > knobs["high"]:
            raise ValueError(
                f"config.data.view is {dict(config.view)}: part must be in 1 .. of, and low at "
                "most high."
            )


def rows(prepared: preparing.Prepared, config: config_lib.Data) -> np.ndarray:
    """The rows that `config.data.view` keeps, ascending: int64.

    Raises:
      ValueError: none is left.
    """
    everything = np.arange(len(prepared))
    if not config.view:
        return everything
    key, knobs = _bind(config.view, _view, "config.data.view")
    values = _values(key, prepared, "config.data.view")
    inside = everything[(values >= knobs["low"]) & (values <= knobs["high"])]
    parts = np.array_split(_sorted(values, inside, knobs["order"]), knobs["of"])
    kept = np.sort(parts[knobs["part"] - 1])
    if not len(kept):
        raise ValueError(
            f"config.data.view {dict(config.view)} leaves none of {len(prepared)} rows; their key "
            f"goes from {values.min():g} to {values.max():g}."
        )
    return kept


def phases(
    prepared: preparing.Prepared, config: config_lib.Data, rows: np.ndarray
) -> Phases | None:
    """The curriculum over these rows, None without one. Equal keys keep the order of the data."""
    if not config.curriculum:
        return None
    key, knobs = _bind(config.curriculum, _curriculum, "config.data.curriculum")
    values = _values(key, prepared, "config.data.curriculum")[rows]
    order = _sorted(values, np.arange(len(rows)), knobs["order"])
    of = np.empty(len(rows), np.int64)
    for number, members in enumerate(np.array_split(order, min(knobs["phases"], len(rows)))):
        of[members] = number
    return Phases(values, of)


def _sorted(values: np.ndarray, rows: np.ndarray, order: str) -> np.ndarray:
    sign = -1 if order == "descending" else 1
    return rows[np.argsort(sign * values[rows], kind="stable")]


def _values(key: Key, prepared: preparing.Prepared, where: str) -> np.ndarray:
    try:
        return key(prepared)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _bind(values: Mapping[str, Any], own: Callable, where: str) -> tuple[Key, dict[str, Any]]:
    """The key with its knobs bound, and the other knobs, defaults filled in."""
    given = dict(values)
    name = given.pop("by", None)
    mine = {k: p.default for k, p in inspect.signature(own).parameters.items()}
    keys = {k: v for k, v in given.items() if k not in mine}
    if not isinstance(name, str):
        raise ValueError(
            f"{where} is {dict(values)}; it must say what to order by: "
            f"{{'by': {config_lib.one_of(name, KEYS)}"
        )
    try:
        function = config_lib.bind(KEYS, name, keys, what="key")
        keys = config_lib.check(function, keys, what=f"key {name!r}")
        knobs = config_lib.check(own, {k: v for k, v in given.items() if k in mine}, what=name)
    except ValueError as error:
        raise ValueError(f"{where}: {error} Beside them it takes {', '.join(mine)}.") from None
    return (lambda prepared: function(prepared, **keys)), mine | knobs
