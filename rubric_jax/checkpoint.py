"""A run's place on disk: its work directory, its checkpoints, and leaving when told to.

  WORKDIR/config.json                   the config that the directory belongs to (`claim`)
  WORKDIR/checkpoints/200/state/        every leaf of the train state, by its '/'-path
  WORKDIR/checkpoints/200/position/     where the data stand, as the loader gave it
  WORKDIR/checkpoints/200/config/       the config of the run that saved
  WORKDIR/checkpoints/200/metrics/      by which the best checkpoints are chosen

A checkpoint counts once it is complete: what a killed process leaves half-written is ignored, and
removed before the next save. Leaves are stored by name, so a checkpoint is read without the code
that made its containers, and onto any mesh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from rubric_jax import config as config_lib
from rubric_jax import paths

# Fields in which two configs may differ and still be the same run: they change where, how fast and
# how often, not what is learned.
HARMLESS = (
    r"mesh\..*",
    r"data\.(workers|prefetch|cache)",
    r"model\.(remat|attention|logps_chunk)",
    r"train\.(log_every|eval_every|checkpoint_every|keep|keep_best|best_metric|best_mode)",
    r"train\.(tensorboard|wandb_project)",
    r"online\.shown",
)


def claim(workdir: str, config: Mapping[str, Any], *, force: bool = False) -> list[str]:
    """Makes the work directory and writes config.json, unless it belongs to another config.

    Args:
      config: plain values, `config.to_dict`.
      force: take the directory over whatever differs.

    Returns:
      The differences to the config that was there and were let pass, also logged; [] if new.

    Raises:
      ValueError: the directory belongs to another config (the differences are shown), holds a
        config.json that is not JSON, or cannot be written.
    """
    path = pathlib.Path(workdir) / "config.json"
    with disk_errors(workdir):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = config_lib.differences(_read(path), config) if path.exists() else []
        refused = [line for line in lines if not harmless(line)]
        if refused and not force:
            shown = "\n  ".join(refused)
            raise ValueError(
                f"The work directory {workdir} belongs to another config:\n  {shown}\n"
                "Take a new --workdir, or set these fields back to resume the run that is there."
            )
        for line in lines:
            logging.info("%s resumes with another config: %s", workdir, line)
        if jax.process_index() == 0:
            temporary = path.with_suffix(".json.tmp")
            with open(temporary, "w") as file:
                json.dump(config, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    return lines


class Manager:
    """Saves and restores train states below a work directory; keeps the newest and the best."""

    def __init__(
        self,
        workdir: str,
        *,
        keep: int,
        keep_best: int = 0,
        best_metric: str = "accuracy",
        best_mode: str = "max",
    ):
        """Opens WORKDIR/checkpoints, and makes it.

        Args:
          keep: newest checkpoints kept, >= 1.
          keep_best: besides those, the best by `best_metric`; checkpoints without it never count.
          best_mode: "max" or "min".
        """
        self._workdir = workdir
        with disk_errors(workdir):
            self._manager = _open(workdir, _Keep(keep, keep_best, best_metric, best_mode))

    def save(
        self,
        step: int,
        state,
        *,
        position: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        wait: bool = False,
    ) -> bool:
        """Starts writing a checkpoint; True unless the step is there already (and is left alone).

        The state is copied off the devices before this returns, so the next step may donate it. An
        error in the background is raised by the next `save`, `wait` or `close`.

        Args:
          state: a pytree of arrays, possibly sharded over several processes.
          position, config, metrics: plain values, the same on every process.
          wait: return only when the checkpoint is complete.
        """
        saved = step not in self._manager.all_steps()
        if saved:
            items = ocp.args.Composite(
                state=ocp.args.PyTreeSave({k: _array(k, v) for k, v in _leaves(state).items()}),
                position=ocp.args.JsonSave(dict(position)),
                config=ocp.args.JsonSave(dict(config)),
            )
            numbers = {k: float(v) for k, v in (metrics or {}).items() if math.isfinite(v)}
            with disk_errors(self._workdir):
                # force: whether to save is the caller's decision.
                self._manager.save(step, args=items, metrics=numbers, force=True)
        if wait:
            self.wait()
        return saved

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def restore(self, abstract, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads (state, position), bit for bit, onto the shardings of `abstract`.

        Args:
          abstract: a tree like the saved state of jax.ShapeDtypeStruct with shardings (or arrays);
            a leaf without a sharding comes back as numpy.
          step: which checkpoint; None = the latest.

        Raises:
          ValueError: no such checkpoint, or its leaves differ in path, shape or dtype.
        """
        step = _existing(self._manager, self._workdir, step)
        leaves = _leaves(abstract)
        _check(leaves, _saved(self._manager, step), f"checkpoint {step} of {self._workdir}")
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=_restore(leaves),
                position=ocp.args.JsonRestore(),
            ),
        )
        state = [items.state[path] for path in leaves]
        return jax.tree.unflatten(jax.tree.structure(abstract), state), dict(items.position)

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        with disk_errors(self._workdir):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the background threads."""
        with disk_errors(self._workdir):
            self._manager.close()

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def params(workdir: str, step: int | str | None = None, abstract=None):
    """Only the parameters of a checkpoint (the leaves below `params/`), for scoring or export.

    Args:
      step: a step, None for the latest, or "best" by the config's best_metric and best_mode.
      abstract: the parameters as jax.ShapeDtypeStruct with shardings to read onto; None = numpy
        arrays, in nested dicts.

    Raises:
      ValueError: no such checkpoint, or parameters that differ from `abstract`.
    """
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
        raise ValueError(f"No checkpoints in {workdir}; is it the --workdir of a run?")
    with contextlib.closing(_open(workdir, None)) as manager:
        step = _best(manager, workdir) if step == "best" else _existing(manager, workdir, step)
        found = {
            path.removeprefix("params/"): leaf
            for path, leaf in _saved(manager, step).items()
            # A module without parameters leaves an empty dict in the tree, which has no shape.
            if path.startswith("params/") and hasattr(leaf, "shape")
        }
        if abstract is None:
            leaves = {path: np.empty(0) for path in found}
        else:
            leaves = _leaves(abstract)
            _check(leaves, found, f"checkpoint {step} of {workdir}")
        wanted = {f"params/{path}": leaf for path, leaf in leaves.items()}
        state = manager.restore(step, args=ocp.args.Composite(state=_restore(wanted))).state
    if abstract is not None:
        return jax.tree.unflatten(jax.tree.structure(abstract), [state[path] for path in wanted])
    nested: dict[str, Any] = {}
    for path in leaves:
        *parents, last = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = state[f"params/{path}"]
    return nested


class Preemption:
    """Turns SIGTERM, and the first SIGINT, into a flag that the loop reads once a step.

      with checkpoint.Preemption() as preemption:
          for step in ...:
              ...
              if preemption.reached():
                  save and leave

    With several processes a signal to any of them stops all after the same step: the flags are
    combined on the devices, and `reached` answers for the flags of the call before, so that no
    process waits for the step in flight. A second SIGINT interrupts as usual.
    """

    def __init__(self):
        self.received: str | None = None  # the signal that this process got, such as "SIGTERM"
        self._pending: jax.Array | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(number, self._previous[number])

    def reached(self) -> bool:
        """Whether to stop now. Call it once a step, on every process."""
        if jax.process_count() == 1:
            return self.received is not None
        before, self._pending = self._pending, _any_process(self.received is not None)
        return before is not None and bool(np.asarray(before.addressable_data(0)))


@contextlib.contextmanager
def disk_errors(directory: str) -> Iterator[None]:
    """Turns a full disk or an unwritable directory into a ValueError that names the directory."""
    try:
        yield
    except OSError as error:
        raise ValueError(_disk_message(directory, error.strerror or str(error))) from error
    except ValueError as error:
        # The array writer reports what the system said in the text of a ValueError.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise ValueError(_disk_message(directory, os.strerror(int(code[1])))) from error


def _disk_message(directory: str, reason: str) -> str:
    return (
        f"Cannot write to {directory}: {reason}. Free space there or make it writable, or name "
        "another directory; checkpoints that were complete are unharmed."
    )


def _any_process(flag: bool) -> jax.Array:
    """Replicated bool []: whether any process says True. A collective; does not wait for it."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.NamedSharding(mesh, jax.P("all"))
    flags = jax.make_array_from_process_local_data(cut, np.full(jax.local_device_count(), flag))
    return jax.jit(jnp.any, out_shardings=jax.NamedSharding(mesh, jax.P()))(flags)


@dataclasses.dataclass(frozen=True)
class _Keep:
    """Orbax preservation policy: the newest `latest`, and the `best` of those with the metric."""

    latest: int
    best: int
    metric: str
    mode: str

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        metrics = {info.step: info.metrics or {} for info in checkpoints}
        kept = {
            *sorted(metrics)[-self.latest :],
            *_ranked(metrics, self.metric, self.mode)[: self.best],
        }
        return [info.step in kept for info in checkpoints]


def _ranked(metrics: Mapping[int, Mapping], metric: str, mode: str) -> list[int]:
    """Steps that have the metric, best first; of equals the later first."""
    sign = 1 if mode == "max" else -1
    having = [step for step in metrics if metric in metrics[step]]
    return sorted(having, key=lambda step: (sign * metrics[step][metric], step), reverse=True)


def _open(workdir: str, keep: _Keep | None) -> ocp.CheckpointManager:
    """Orbax's manager over WORKDIR/checkpoints; without `keep` it is only read."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    arrays, plain = ocp.PyTreeCheckpointHandler(), ocp.JsonCheckpointHandler()
    registry.add("state", ocp.args.PyTreeSave, arrays)
    registry.add("state", ocp.args.PyTreeRestore, arrays)
    for item in ("position", "config"):
        registry.add(item, ocp.args.JsonSave, plain)
        registry.add(item, ocp.args.JsonRestore, plain)
    options = ocp.CheckpointManagerOptions(
        create=keep is not None,
        cleanup_tmp_directories=keep is not None,
        preservation_policy=keep,
        best_fn=lambda metrics: 0.0,  # makes Orbax store the metrics; `_Keep` ranks them
    )
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    return ocp.CheckpointManager(directory, options=options, handler_registry=registry)


def _existing(manager: ocp.CheckpointManager, workdir: str, step: int | None) -> int:
    steps = sorted(manager.all_steps())
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise ValueError(f"No {wanted} in {workdir}; it has {steps or 'none'}.")
    return steps[-1] if step is None else step


def _best(manager: ocp.CheckpointManager, workdir: str) -> int:
    train = _read(pathlib.Path(workdir) / "config.json")["train"]
    metrics = {step: manager.metrics(step) or {} for step in manager.all_steps()}
    ranked = _ranked(metrics, train["best_metric"], train["best_mode"])
    if not ranked:
        raise ValueError(
            f"No checkpoint in {workdir} has the metric {train['best_metric']!r}; found {metrics}. "
            "Name a step instead, or set config.train.best_metric and config.train.eval_every."
        )
    return ranked[0]


def _saved(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """{path: metadata with shape and dtype} of a checkpoint's state."""
    return dict(manager.item_metadata(step)["state"].tree)


def _leaves(tree) -> dict[str, Any]:
    leaves = paths.flatten(tree)
    if len(leaves) != len(jax.tree.leaves(tree)):
        raise ValueError("Two leaves of the state have the same '/'-path; rename one.")
    return leaves


def _array(path: str, leaf) -> jax.Array | np.ndarray:
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(f"State leaf {path!r} is a typed random key; keep jax.random.key_data.")
    return leaf


def _restore(leaves: Mapping[str, Any]) -> ocp.args.PyTreeRestore:
    def args(leaf):
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    return ocp.args.PyTreeRestore(
        item=dict.fromkeys(leaves, 0),
        restore_args={path: args(leaf) for path, leaf in leaves.items()},
        partial_restore=True,
    )


def _check(wanted: Mapping[str, Any], found: Mapping[str, Any], what: str) -> None:
    """ValueError listing the leaves in which two flat states differ."""
    lines = [f"missing {path}" for path in wanted if path not in found]
    lines += [f"surplus {path}" for path in found if path not in wanted]
    for path in wanted.keys() & found.keys():
        a = (tuple(found[path].shape), np.dtype(found[path].dtype))
        b = (np.shape(wanted[path]), np.dtype(wanted[path].dtype))
        if a != b:
            lines.append(f"{path} is {a[1]} {a[0]}, expected {b[1]} {b[0]}")
    if lines:
        more = f"\n  and {len(lines) - 10} more" if len(lines) > 10 else ""
        shown = "\n  ".join(lines[:10])
        raise ValueError(f"The {what} does not fit this model or optimizer:\n  {shown}{more}")


def harmless(line: str) -> bool:
    field = line.split(":", 1)[0]
    return any(re.fullmatch(pattern, field) for pattern in HARMLESS)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); remove it or take a new --workdir."
        ) from error
