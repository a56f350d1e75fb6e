"""What a run says while it trains: metrics of each step, speed, the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import tqdm

from rubric_jax import metrics, sharding, types
from rubric_jax.train import setup as setup_lib


class Log:
    """Metrics of a step are read once the next one is under way, so the device never waits."""

    def __init__(
        self,
        setup: setup_lib.Setup,
        writer: metrics.Writer,
        *,
        schedule: Callable[[int], float],
        passes: int,
        first: int,
        steps: int,
    ):
        """For steps `first` + 1 to `steps` of a run.

        Args:
          schedule: learning rate of each step, from 0.
          passes: forward passes that a step's model FLOPs amount to.
        """
        self._setup, self._writer, self._schedule = setup, writer, schedule
        self._passes = passes
        self._every = setup.config.train.log_every
        self._speed = metrics.Throughput(jax.devices())
        self._pending: tuple[int, Mapping, float] | None = None
        self._timed = 0  # steps in the window of the clock
        self._window: list[dict[str, float]] = []
        self._last = first  # the step of the window's newest entry
        self._shapes: set = set()
        self._steps = steps
        self._bar = tqdm.tqdm(
            total=steps, initial=first, desc="train", unit=" steps", disable=not setup.is_writer
        )

    def add(
        self, step: int, values: Mapping[str, Any], batch: types.Batch, flops: float = 0.0
    ) -> None:
        """Takes a step that was dispatched, and reads the one before it.

        flops: of one forward pass over all processes' rows; 0 = unknown.
        """
        shape = (batch.prompts.shape, batch.responses.shape)
        compiled = shape not in self._shapes
        if compiled:  # not a time to measure, neither for this step nor for the one before it
            self._shapes.add(shape)
            self.restart()
        self.flush(timed=not compiled)
        self._pending = (step, values, self._passes * flops)
        if compiled:
            self.flush(timed=False)
            self.restart()

    def restart(self) -> None:
        """Forgets the time since the last reading: it was not spent on training."""
        self._timed = 0
        self._speed.restart()

    def flush(self, *, timed: bool = True) -> None:
        """Reads the step that is pending; FloatingPointError if its loss is not finite.

        timed: whether the clock ran for this step and nothing else.
        """
        if self._pending is None:
            return
        (step, values, flops), self._pending = self._pending, None
        read = {name: float(value) for name, value in sharding.to_host(values).items()}
        norms = {name: read[name] for name in ("loss", "grad_norm", "update_norm")}
        if not all(map(math.isfinite, norms.values())):
            shown = ", ".join(f"{name} {value}" for name, value in norms.items())
            raise FloatingPointError(
                f"Step {step}: {shown}. Nothing was "
                "saved after the last checkpoint; lower the learning rate, or look at the rows of "
                "this step."
            )
        pairs, tokens = read.pop("rows"), read.pop("tokens")
        if timed:
            self._speed.add(pairs=pairs, tokens=tokens, flops=flops)
            self._timed += 1
        self._window.append(read)
        self._bar.update()
        self._last = step
        if step % self._every == 0 or step == self._steps:
            self._write()

    def _write(self) -> None:
        """Means over the steps since the last line."""
        names = self._window[-1]
        means = {name: float(np.mean([values[name] for values in self._window])) for name in names}
        means["learning_rate"] = float(self._schedule(self._last - 1))
        speed = self._speed.read() if self._timed else {}
        self._writer.write(self._last, means | speed)
        self._timed = 0
        self._window.clear()
        self._bar.set_postfix_str(_short(means))

    def pause(self, step: int, found: Mapping[str, float]) -> None:
        """Writes an evaluation, whose time does not count as training."""
        self.flush()
        if found:
            self._writer.write(step, {f"eval/{name}": value for name, value in found.items()})
        self.restart()

    def close(self, *, final: bool = False) -> None:
        """Ends the log. `final`: the run is over, so what is left of a line is written, too."""
        self.flush()
        if final and self._window:
            self._write()
        self._bar.close()


def _short(means: Mapping[str, float]) -> str:
    shown = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
    return " ".join(f"{label} {means[name]:.3f}" for name, label in shown.items() if name in means)
