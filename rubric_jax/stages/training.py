"""The commands, as functions: files in, files out."""

from __future__ import annotations

import json
import math
import os
import pathlib
import sys
import tempfile

import jax
import numpy as np

from rubric_jax import checkpoint, models
from rubric_jax import config as config_lib
from rubric_jax.data import audit as audit_lib
from rubric_jax.models import adapter_files, combining, head_files, weights
from rubric_jax.models import heads as heads_lib
from rubric_jax.train import loop, memory, passes
from rubric_jax.train import setup as setup_lib


def audit(config: config_lib.Config, workdir: str | None) -> str:
    """What the data hold, what would be dropped and cut, and what a step would cost; as text.

    Also checks that the checkpoint fits, without reading its weights.
    """
    setup = setup_lib.build(config)
    ignored = weights.check(
        weights.tensors(setup.directory, setup.vlm.weights), setup.vlm.weights, setup.directory
    )
    with _cache(config, workdir) as cache:
        source = setup_lib.source(setup, config.data.path, config.data.split, cache)
        plan = setup_lib.plan(setup, source, shuffle=True)
        lines = memory.lines(setup, plan)
        lines += [f"tensor without use: {name} ({why})" for name, why in ignored.items()]
        return audit_lib.table(source.prepared, plan, title=config.data.path, lines=lines)


def train(config: config_lib.Config, workdir: str) -> loop.Outcome:
    """Trains, or goes on training; see train/loop.py."""
    if config.online.updates:
        raise ValueError(
            "config.online.updates samples in every step, which takes instructions and a judge: "
            "use the command `run`, or `train --round=1` for a round of it."
        )
    return loop.train(config, workdir)


def score(config: config_lib.Config, out: str, workdir: str | None) -> dict[str, np.ndarray]:
    """Writes log-probabilities of every branch of every row to an .npz file.

    Keys: ids, branches, logps float32 [rows, N, T] (nats), mask, sums [rows, N], and
    heads/<name> [rows, N, H] of a model with heads; rows in the order of the input, without those
    that were dropped (ids tell, and the count is printed).
    """
    setup = setup_lib.build(config)
    with _cache(config, workdir) as cache:
        source = setup_lib.source(setup, config.data.path, config.data.split, cache)
        counts = source.prepared.counts
        with jax.set_mesh(setup.mesh):
            arrays = passes.score(setup, setup_lib.load(setup), source)
    if setup.is_writer:
        with checkpoint.disk_errors(os.path.dirname(os.path.abspath(out))):
            pathlib.Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
            # Opened here: given a name, NumPy would add ".npz" to it.
            with open(out, "wb") as file:
                np.savez(file, **arrays)
        dropped = "".join(f", {n} dropped ({why})" for why, n in counts.dropped.items() if n)
        print(f"{out}: {counts.kept} of {counts.rows} rows{dropped}", file=sys.stderr)
    return arrays


def export(
    workdir: str,
    out: str,
    *,
    step: int | str | None = None,
    dtype: str | None = None,
    adapter: str = "",
) -> None:
    """Writes a checkpoint of a run as a Hugging Face directory that transformers loads.

    Args:
      workdir: of the run.
      out: the directory to write; an adapter is merged into its base. "" = only the adapter.
      step: which checkpoint; None = the latest, "best" = by the run's best_metric.
      dtype: float32 or bfloat16; None = as in the checkpoint that the run started from.
      adapter: the directory to write the run's adapter to, in PEFT's format; "" = none.

    Holds what was trained once in the memory of every host; the first process writes.
    """
    file = pathlib.Path(workdir) / "config.json"
    if not file.exists():
        raise ValueError(f"No config.json in {workdir}; is it the --workdir of a run?")
    config = config_lib.build(json.loads(file.read_text()))
    directory = models.directory(config.model.checkpoint)
    vlm = models.build(config.model.family, directory)
    heads = head_files.of_checkpoint(directory, config.model.heads)
    trained = adapter_files.open_adapter(config.model.adapter, vlm)
    if adapter and trained is None:
        raise ValueError(
            f"{workdir} trained no adapter (config.model.adapter); leave --adapter out."
        )
    params = checkpoint.params(workdir, step)  # a collective when several processes run
    if jax.process_index():
        return
    if adapter:
        with checkpoint.disk_errors(adapter):
            base = config.model.checkpoint
            written = adapter_files.write(adapter, trained, params, vlm.weights, base=base)
        print(f"{adapter}: {written} tensors of an adapter, for peft", file=sys.stderr)
    if not out:
        return
    params, own = heads_lib.split(params)
    if trained is not None:
        params = adapter_files.merged(directory, trained, params, vlm.weights)
    with checkpoint.disk_errors(out):
        written = weights.write(out, params, vlm.weights, source=directory, dtype=dtype)
        head_files.write(out, own, heads)
    also = f", and the heads {', '.join(heads)}" if heads else ""
    print(f"{out}: {written} tensors, with config, tokenizer and processor{also}", file=sys.stderr)


def combine(config: config_lib.Config, spec: str, out: str, *, by: str) -> None:
    """Makes one adapter of several on config.model.checkpoint, in PEFT's format.

    Args:
      spec: 'DIR=weight,DIR=weight': directories in PEFT's format.
      out: the directory to write.
      by: one of combining.COMBINATIONS.
    """
    directories, shares = {}, {}
    for part in spec.split(","):
        directory, _, share = part.strip().rpartition("=")
        try:
            shares[directory] = float(share)
        except ValueError:
            directory = ""
        if not directory or not math.isfinite(shares[directory]):
            raise ValueError(
                f"--adapters has {part!r}; give directories with weights: DIR=0.7,DIR=0.3."
            )
        directories[directory] = directory
    base = models.directory(config.model.checkpoint)
    vlm = models.build(config.model.family, base)
    function = config_lib.bind(combining.COMBINATIONS, by, {}, what="--by")
    made = function(adapter_files.read_named(directories, vlm), shares)
    with checkpoint.disk_errors(out):
        name = config.model.checkpoint
        written = adapter_files.write(out, made.adapter, made.leaves, vlm.weights, base=name)
    print(f"{out}: {written} tensors of an adapter of rank {made.adapter.rank}", file=sys.stderr)


def hand_on(workdir: str, out: str, *, dtype: str | None = None, adapter: str = "") -> None:
    """Exports what a run hands on to the next stage or round; `adapter` as `export` has it.

    The best checkpoint by its `best_metric` where the run keeps the best (config.train.keep_best),
    else the last.
    """
    file = pathlib.Path(workdir) / "config.json"
    config = config_lib.build(json.loads(file.read_text()))
    step = "best" if config.train.keep_best else None
    export(workdir, out, step=step, dtype=dtype, adapter=adapter)


def has_adapter(workdir: str) -> bool:
    """Whether a run trained an adapter."""
    config = json.loads((pathlib.Path(workdir) / "config.json").read_text())
    return bool(config["model"].get("adapter"))


def _cache(config: config_lib.Config, workdir: str | None):
    """Where a command without a run of its own prepares data: the config's cache, the work
    directory's, or one that is gone afterwards."""
    if config.mesh.distributed and not (config.data.cache or workdir):
        raise ValueError(
            "With several processes this command needs a directory that all of them share: "
            "give --workdir or config.data.cache."
        )
    if config.data.cache or workdir:
        return _Kept(setup_lib.cache_directory(config, workdir or ""))
    return tempfile.TemporaryDirectory(prefix="rubric_jax-")


class _Kept:
    """A directory that stays."""

    def __init__(self, path: str):
        self._path = path

    def __enter__(self) -> str:
        return self._path

    def __exit__(self, *_) -> None:
        pass
