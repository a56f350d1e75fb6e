"""When to stop early: a held-out metric that no longer improves.

The count of evaluations is a function of the values seen, and goes into every checkpoint, so a run
that is resumed stops where one that was not interrupted does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rubric_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Patience:
    """How much a run still hopes for. Every evaluation gives the next one."""

    metric: str  # name in the evaluation
    mode: str  # max or min
    allowed: int  # evaluations in a row without an improvement; 0 = never stop
    min_delta: float  # by how much a value must beat the best, >= 0
    every: int  # steps between evaluations
    best: float | None = None  # value that the later ones are held against
    at: int = 0  # step of it
    stale: int = 0  # evaluations since

    @classmethod
    def of(cls, train: config_lib.Train) -> Patience:
        return cls(
            train.best_metric, train.best_mode, train.patience, train.min_delta, train.eval_every
        )

    def seen(self, step: int, value: float) -> Patience:
        """After an evaluation at this step; a value that is not a number improves on nothing."""
        sign = 1 if self.mode == "max" else -1
        first = self.best is None and math.isfinite(value)
        if first or (self.best is not None and sign * (value - self.best) > self.min_delta):
            return dataclasses.replace(self, best=value, at=step, stale=0)
        return dataclasses.replace(self, stale=self.stale + 1)

    @property
    def over(self) -> bool:
        """Whether to stop now."""
        return 0 < self.allowed <= self.stale

    def why(self) -> str:
        """For people."""
        if self.best is None:
            return f"held-out {self.metric} was not a number in {self.stale} evaluations"
        beyond = "above" if self.mode == "max" else "below"
        return (
            f"held-out {self.metric} has not come more than {self.min_delta:g} {beyond} "
            f"{self.best:.6g} (step {self.at}) in {self.stale} evaluations"
        )

    def position(self) -> dict[str, Any]:
        """Plain values for a checkpoint; {} if the run never stops early."""
        return dataclasses.asdict(self) if self.allowed else {}

    def restored(self, position: Mapping[str, Any]) -> Patience:
        """This one, where a checkpoint left it.

        Raises:
          ValueError: the checkpoint counted by another metric or measure.
        """
        if not self.allowed:
            return self
        rule = {name: getattr(self, name) for name in _RULE}
        changed = config_lib.differences({name: position.get(name) for name in _RULE}, rule)
        if changed:
            raise ValueError(
                f"The run stops early by another rule than it began with: {'; '.join(changed)}. "
                "Set config.train.best_metric, best_mode, patience, min_delta and eval_every back, "
                "or take a new --workdir."
            )
        return Patience(**position)


_RULE = ("metric", "mode", "allowed", "min_delta", "every")
