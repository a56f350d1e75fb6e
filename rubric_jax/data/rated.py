"""Rated lists to pairs: one record with several rated responses becomes several rows.

  config.data.rated = {"pairs": "best_vs_rest", "weights": {"helpfulness": 1.0}}

  {"prompt": .., "images": [..], "response_0": .., "response_0_rewards": {"helpfulness": 0.9},
   "response_1": .., "response_1_rewards": {"helpfulness": 0.2}, ...}

turns into rows with chosen, rejected, their rewards and `level`: 1 for the pair of the record with
the largest gap, 2 for the next. Everything else of the record is copied.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rubric_jax import config as config_lib
from rubric_jax.data import processing


def best_vs_rest(ranked: Sequence[int]) -> list[tuple[int, int]]:
    """(win, lose), the largest gap first: of ranks 0 to 3 it is (0, 3), (0, 2), (0, 1)."""
    return [(ranked[0], other) for other in reversed(ranked[1:])]


def best_vs_worst(ranked: Sequence[int]) -> list[tuple[int, int]]:
    """The one pair of the largest gap."""
    return [(ranked[0], ranked[-1])]


PAIRS: dict[str, Callable[[Sequence[int]], list[tuple[int, int]]]] = {
    "best_vs_rest": best_vs_rest,
    "best_vs_worst": best_vs_worst,
}


@dataclasses.dataclass(frozen=True)
class Rated:
    """How lists become pairs."""

    name: str  # in PAIRS
    weights: Mapping[str, float]  # of the axes in the total that ranks responses

    def rows(self, record: Mapping[str, Any], where: str) -> Iterator[tuple[dict[str, Any], bool]]:
        """(row, whether both of its responses are rated alike) for every pair of a record.

        Args:
          where: names the record where it has no `id`.

        Raises:
          FieldError: fewer than two responses, or one without a rating.
        """
        numbers = sorted(
            int(found[1])
            for name, value in record.items()
            if value is not None and (found := re.fullmatch(r"response_(\d+)", name))
        )
        if len(numbers) < 2:
            raise processing.FieldError(
                "response_0",
                f"{len(numbers)} rated responses in the row; config.data.rated makes pairs of at "
                "least two, in the columns response_0, response_1, ...",
            )
        totals = {k: self._total(record, k) for k in numbers}
        ranked = sorted(numbers, key=lambda k: (-totals[k], k))
        common = {
            name: value
            for name, value in record.items()
            if not re.fullmatch(r"response_\d+(_rewards)?", name)
        }
        for level, (win, lose) in enumerate(PAIRS[self.name](ranked), 1):
            row = {
                **common,
                "id": f"{record.get('id', where)}/{level}",
                "chosen": record[f"response_{win}"],
                "rejected": record[f"response_{lose}"],
                "chosen_rewards": record[f"response_{win}_rewards"],
                "rejected_rewards": record[f"response_{lose}_rewards"],
                "level": level,
            }
            yield row, totals[win] == totals[lose]

    def _total(self, record: Mapping[str, Any], number: int) -> float:
        name = f"response_{number}_rewards"
        rewards = record.get(name)
        rewards = dict(rewards) if isinstance(rewards, list) else rewards
        total = 0.0
        for axis, weight in self.weights.items():
            value = rewards.get(axis) if isinstance(rewards, Mapping) else None
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise processing.FieldError(
                    name,
                    f"is {rewards!r}; config.data.rated ranks responses by the axis {axis!r}, so "
                    f"every response needs a number there: {{{axis!r}: 0.5}}.",
                )
            total += weight * value
        return total


def bind(values: Mapping[str, Any], axes: Sequence[str]) -> Rated | None:
    """`config.data.rated` checked; None if there is none.

    Raises:
      ValueError: an unknown way, field or axis, or data without axes.
    """
    if not values:
        return None
    where = "config.data.rated"
    for key in values:
        if key not in ("pairs", "weights"):
            known = config_lib.one_of(key, ("pairs", "weights"))
            raise ValueError(f"{where}: unknown field {key!r}; it must be {known}")
    name = values.get("pairs")
    if not isinstance(name, str) or name not in PAIRS:
        raise ValueError(f"{where}.pairs is {name!r}; it must be {config_lib.one_of(name, PAIRS)}")
    if not axes:
        raise ValueError(
            f"{where} ranks responses by rewards; name their axes in config.data.axes."
        )
    weights = values.get("weights", dict.fromkeys(axes, 1.0))
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{where}.weights is {weights!r}; it must map axes to numbers.")
    for axis, weight in weights.items():
        if axis not in axes:
            known = config_lib.one_of(axis, axes)
            raise ValueError(f"{where}.weights.{axis} is no axis of config.data.axes: {known}")
        fine = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not fine or not math.isfinite(weight):
            raise ValueError(f"{where}.weights.{axis} is {weight!r}; it must be a finite number.")
    return Rated(name, dict(weights))
