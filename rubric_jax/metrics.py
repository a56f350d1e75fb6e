"""What a run reports: metrics.jsonl, TensorBoard, Weights & Biases; speed and utilisation.

{"step": 10, "loss": 0.69, "accuracy": 0.5}                   one line per step
{"step": 20, "loss": null, "accuracy": 0.5, "nonfinite": 1}   NaN and infinities are null, counted
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import tensorboardX

# Dense bfloat16 matmul peak in FLOP/s of one jax device, by a regex over its `device_kind`; first
# match wins. NVIDIA: data sheets and architecture whitepapers, the dense figure with float32
# accumulation (half of the one "with sparsity"). TPU: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e,
# tpu7x; a v7 chip is two jax devices.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"NVIDIA GB200.*", 2500e12),
    (r"NVIDIA (B200|B300).*", 2250e12),
    (r"NVIDIA (H100|H200|H800) NVL.*", 835e12),
    (r"NVIDIA (H100|H800) PCIe.*", 756e12),
    (r"NVIDIA (H100|H200|H800|GH200).*", 989e12),
    (r"NVIDIA (A100|A800).*", 312e12),
    (r"NVIDIA A30.*", 165e12),
    (r"NVIDIA A40.*", 149.7e12),
    (r"NVIDIA A10G.*", 70e12),
    (r"NVIDIA A10( .*|-.*|)", 125e12),
    (r"NVIDIA L40S.*", 362e12),
    (r"NVIDIA L40.*", 181e12),
    (r"NVIDIA L4", 121e12),
    (r"NVIDIA RTX 6000 Ada.*", 364.2e12),
    (r"NVIDIA RTX A6000.*", 154.8e12),
    (r"NVIDIA GeForce RTX 5090", 209.5e12),
    (r"NVIDIA GeForce RTX 4090", 165.2e12),
    (r"NVIDIA GeForce RTX 3090", 71e12),
    (r"TPU v4", 275e12),
    (r"TPU v5( lite|e).*", 197e12),
    (r"TPU v5p?", 459e12),
    (r"TPU v6( lite|e).*", 918e12),
    (r"TPU ?(v7|7)x?", 2307e12 / 2),
)


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 FLOP/s of a device, or None where it is not in the table."""
    for pattern, peak in PEAKS:
        if re.fullmatch(pattern, device.device_kind):
            return peak
    return None


class Writer:
    """Writes one record per step; processes that are not the writer do nothing."""

    def __init__(
        self,
        workdir: str,
        *,
        tensorboard: bool,
        wandb_project: str,
        config: Mapping[str, Any],
        is_writer: bool,
        step: int | None = None,
    ):
        """Opens WORKDIR/metrics.jsonl for appending.

        Args:
          wandb_project: "" = off.
          config: plain values, shown by Weights & Biases.
          step: the restored step, 0 for a run that starts over: later lines, which a killed run
            wrote and this one writes again, are dropped. None = keep all.

        Raises:
          ValueError: Weights & Biases is asked for and not installed, or the file is not writable.
        """
        self._path = self._board = self._wandb = None
        if not is_writer:
            return
        self._wandb = _wandb(wandb_project, workdir, config) if wandb_project else None
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        with self._disk_errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = _kept(self._path, step)
        self._last = json.loads(lines[-1]) if lines else {"step": -1}
        self._start = sum(map(len, lines[:-1]))  # where the line of the newest step begins
        if tensorboard:
            # The suffix: files are named by the second, and a restart may be quicker.
            self._board = tensorboardX.SummaryWriter(
                str(self._path.parent / "tensorboard"),
                purge_step=None if step is None else step + 1,
                filename_suffix=f".from{step or 0}",
            )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a step's values; a second call for the newest step adds to its line.

        Raises:
          ValueError: the step is before the newest, or the disk is full.
        """
        if self._path is None:
            return
        if step < self._last["step"]:
            raise ValueError(
                f"Metrics of step {step} after those of step {self._last['step']}: write steps in "
                "order, and give Writer the restored step."
            )
        values = {name: float(value) for name, value in values.items()}
        with self._disk_errors(), open(self._path, "r+b") as file:
            if step > self._last["step"]:
                self._start, self._last = file.seek(0, os.SEEK_END), {"step": step}
            finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
            bad = self._last.pop("nonfinite", 0) + sum(v is None for v in finite.values())
            self._last |= finite | ({"nonfinite": bad} if bad else {})
            file.seek(self._start)
            file.write(json.dumps(self._last).encode() + b"\n")
            file.truncate()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        """Flushes and closes everything; further writes do nothing."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
        self._path = self._board = self._wandb = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(
                f"Cannot write {self._path}: {error.strerror or error}. Free space there or make "
                "it writable, or take another --workdir."
            ) from error


class Throughput:
    """Speed between logged steps, from wall time.

      speed = Throughput(jax.devices())
      for each step: speed.add(pairs=8, tokens=12000, flops=3.1e12)
      every log_every steps: writer.write(step, {... , **speed.read()})

    Counts are of all devices together. Call `restart` after what is not training (compiling,
    evaluating, saving), so that it does not count.
    """

    def __init__(self, devices: Sequence[jax.Device], clock: Callable[[], float] | None = None):
        """`clock` returns seconds; default: time.perf_counter."""
        peaks = [peak_flops(device) for device in devices]
        self._peak = None if None in peaks else sum(peaks)
        self._clock = clock or time.perf_counter
        self.restart()

    def restart(self) -> None:
        """Forgets the steps added since the last `read` and starts the clock again."""
        self._since = self._clock()
        self._pairs = self._tokens = self._flops = 0.0

    def add(self, *, pairs: float, tokens: float, flops: float = 0.0) -> None:
        """One step. flops: of the model, recomputation left out; 0 = unknown."""
        self._pairs += pairs
        self._tokens += tokens
        self._flops += flops

    def read(self) -> dict[str, float]:
        """pairs_per_second, tokens_per_second; where flops and peak are known, mfu in [0, 1]."""
        seconds = self._clock() - self._since
        speed = {
            "pairs_per_second": self._pairs / seconds,
            "tokens_per_second": self._tokens / seconds,
        }
        if self._peak and self._flops:
            speed["mfu"] = self._flops / seconds / self._peak
        self.restart()
        return speed


def _kept(path: pathlib.Path, step: int | None) -> list[bytes]:
    """The lines of the file up to a step, after dropping the others from it (all kept if None)."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    # A kill may leave the last line half-written.
    kept = [line for line in lines if line.endswith(b"\n")]
    if step is not None:
        kept = [line for line in kept if json.loads(line)["step"] <= step]
    if kept != lines or not path.exists():
        temporary = path.with_suffix(".jsonl.tmp")
        temporary.write_bytes(b"".join(kept))
        os.replace(temporary, path)
    return kept


def _wandb(project: str, workdir: str, config: Mapping[str, Any]):
    """The Weights & Biases run of this work directory, continued if there is one."""
    try:
        import wandb  # optional, so not at the top
    except ImportError as error:
        raise ValueError(
            f"config.train.wandb_project is {project!r}, but the package wandb is not installed; "
            "`pip install wandb`, or set it to ''."
        ) from error
    name = pathlib.Path(workdir) / "wandb_id"
    name.parent.mkdir(parents=True, exist_ok=True)
    if not name.exists():
        name.write_text(uuid.uuid4().hex)
    return wandb.init(
        project=project, id=name.read_text(), resume="allow", dir=workdir, config=dict(config)
    )
