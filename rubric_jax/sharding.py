"""The mesh, where arrays live on it, and the way of a batch onto it and of results off it.

The mesh has three axes; any of them may have size 1:

  data    rows of the batch; parameters are copied along it
  fsdp    rows of the batch too, and parameters and moments are cut along it
  tensor  parameters and activations are cut along it; rows are copied

A family's partition rules are ordered (regex, PartitionSpec) pairs over parameter paths:

  ((r".*/mlp/up/kernel", P(None, "fsdp", "tensor")), (r".*", P()))

They serve a whole train state: optimizer moments lie where their parameters lie.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rubric_jax import config, paths, types

AXES = ("data", "fsdp", "tensor")

_STATE = "params/"  # a tree with leaves under this path is a train state, any other is parameters


def initialize(mesh: config.Mesh) -> None:
    """Joins the processes of a run when `mesh.distributed`; a second call does nothing.

    Comes before anything that touches a device. Fields left at their defaults are found by jax (TPU
    pods, SLURM, ...). On CPU the processes talk through gloo. ValueError if a field is missing.
    """
    if not mesh.distributed or jax.distributed.is_initialized():
        return
    # checkpoint.Preemption owns SIGTERM; jax's service would swallow the signal outside of it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator_address=mesh.coordinator or None,
            num_processes=mesh.processes or None,
            process_id=None if mesh.process < 0 else mesh.process,
        )
    except ValueError as error:
        raise ValueError(
            f"config.mesh.distributed is set, but the processes cannot find each other: {error} "
            f"Found config.mesh.coordinator={mesh.coordinator!r}, processes={mesh.processes}, "
            f"process={mesh.process}; give all three (coordinator as host:port, process from 0 to "
            "processes - 1) where jax finds no cluster by itself."
        ) from error


def make(mesh: config.Mesh, devices=None) -> jax.sharding.Mesh:
    """The mesh over `devices` (default: all of all processes); one axis may be -1, "the rest"."""
    devices = jax.devices() if devices is None else list(devices)
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    found = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    found += f" on {len(devices)} device(s)"
    rest = [axis for axis, size in sizes.items() if size == -1]
    if len(rest) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"{found}: sizes are at least 1, or -1 (the rest) for one axis.")
    known = math.prod(size for size in sizes.values() if size != -1)
    if rest:
        sizes[rest[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"{found}: the product of the axes must be the number of devices, and {known} "
            f"{'does not divide' if rest else 'is not'} {len(devices)}. Change them, or set one to "
            "-1 to take the rest."
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices
    )


def specs(rules: paths.Rules, tree) -> Any:
    """PartitionSpecs for parameters or for a whole train state, as a tree like `tree`.

    A train state is a tree with a `params` field or key; those leaves follow the rules. Every other
    leaf follows the parameter whose path its own path ends with:

      params/decoder/mlp/up/kernel             (4, 8, 16)  P(None, "fsdp", "tensor")  by the rule
      opt_state/0/mu/decoder/mlp/up/kernel     (4, 8, 16)  P(None, "fsdp", "tensor")  same shape
      opt_state/0/v_row/decoder/mlp/up/kernel  (4, 8)      P(None, "fsdp")            one axis less
      opt_state/0/count                        ()          P()                        no parameter

    A factored moment of a square parameter, whose missing axis is ambiguous, is replicated.
    ValueError if no rule matches a parameter, or a spec has more entries than its array has axes.
    """
    shapes = {path: np.shape(leaf) for path, leaf in paths.flatten(tree).items()}
    prefix = _prefix(shapes)
    parameters = {
        path.removeprefix(prefix): (shape, _rule(rules, path.removeprefix(prefix), shape))
        for path, shape in shapes.items()
        if path.startswith(prefix)
    }

    def spec(path: str, leaf) -> PartitionSpec:
        if path.startswith(prefix):
            return parameters[path.removeprefix(prefix)][1]
        parts = path.split("/")
        for start in range(1, len(parts)):  # the longest suffix first
            owner = parameters.get("/".join(parts[start:]))
            if owner is not None:
                return _follow(owner[1], owner[0], np.shape(leaf))
        return PartitionSpec()

    return paths.map_named(spec, tree)


def place(mesh: jax.sharding.Mesh, rules: paths.Rules, shapes) -> tuple[Any, list[str]]:
    """NamedShardings for a tree of arrays or shapes, and what could not be cut as the rules ask.

    A mesh axis that does not divide a dimension is dropped for that dimension, which is then
    replicated along it. The messages name each such parameter once (its moments go the same way).
    """
    prefix = _prefix(paths.flatten(shapes))
    messages = []

    def sharding(path: str, leaf, spec: PartitionSpec) -> NamedSharding:
        fitted, dropped = _fit(spec, np.shape(leaf), mesh)
        if path.startswith(prefix):
            messages.extend(
                f"{path.removeprefix(prefix)} {np.shape(leaf)}: mesh axis {axis!r} "
                f"({mesh.shape[axis]}) does not divide dimension {i} ({np.shape(leaf)[i]}); "
                "replicated along it."
                for i, axis in dropped
            )
        return NamedSharding(mesh, fitted)

    tree = jax.tree_util.tree_map_with_path(
        lambda key, leaf, spec: sharding(paths.name(key), leaf, spec), shapes, specs(rules, shapes)
    )
    return tree, messages


def data_shards(mesh: jax.sharding.Mesh) -> int:
    """Into how many blocks the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in types.ROWS)


def process_block(mesh: jax.sharding.Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal blocks of rows this process loads.

    Processes that hold the same rows (`tensor` spans them) get the same index. ValueError if the
    processes' rows are unequal in number or overlap in part.
    """
    owner = np.vectorize(lambda device: device.process_index, otypes=[int])(mesh.devices)
    owner = owner.reshape(data_shards(mesh), -1)  # [data shard, tensor]
    rows = {
        process: tuple(np.flatnonzero((owner == process).any(axis=1)))
        for process in np.unique(owner)
    }
    blocks = sorted(set(rows.values()))
    if sum(len(block) for block in blocks) != len(owner) or len({len(b) for b in blocks}) != 1:
        raise ValueError(
            f"On a mesh {dict(mesh.shape)} the processes hold the rows {rows}: neither equal "
            "blocks nor shared ones. Choose config.mesh.tensor so that it divides, or is a "
            "multiple of, the devices of a process."
        )
    mine = rows.get(jax.process_index())
    if mine is None:
        raise ValueError(f"Process {jax.process_index()} has no device on the mesh {mesh}.")
    return blocks.index(mine), len(blocks)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis (rows, groups) cut along `data` and `fsdp`; all else replicated."""
    return NamedSharding(mesh, PartitionSpec(types.ROWS))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch, mesh: jax.sharding.Mesh):
    """Global arrays from each process's block of rows and groups; None leaves stay None.

    Args:
      batch: a pytree of numpy arrays [rows (or groups) / count, ...], this process's block of
        `process_block`.
    """
    _, count = process_block(mesh)
    local = data_shards(mesh) // count
    sharding = batch_sharding(mesh)

    def put(path: str, leaf) -> jax.Array:
        leaf = np.asarray(leaf)
        if leaf.ndim == 0 or leaf.shape[0] % local:
            raise ValueError(
                f"Batch field {path!r} {leaf.shape} cannot be cut into the {local} data shard(s) "
                f"of this process. config.train.batch_size must be a multiple of "
                f"config.mesh.data * config.mesh.fsdp = {data_shards(mesh)}."
            )
        shape = (leaf.shape[0] * count, *leaf.shape[1:])
        return jax.make_array_from_process_local_data(sharding, leaf, shape)

    return paths.map_named(put, batch)


def to_host(tree):
    """Numpy copies of global arrays, whole, on every process. A collective when several run."""

    def fetch(x) -> np.ndarray:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)


def _prefix(flat) -> str:
    """What stands before the parameters' own paths: 'params/' in a train state, else nothing."""
    return _STATE if any(path.startswith(_STATE) for path in flat) else ""


def _rule(rules: paths.Rules, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    try:
        spec = paths.lookup(rules, path, what="partition rule")
    except ValueError as error:
        raise ValueError(
            f"{error} The parameter has shape {shape}; its rule belongs to the partition rules of "
            "the model's family, in rubric_jax/models."
        ) from error
    if len(spec) > len(shape):
        raise ValueError(
            f"The partition rule for {path!r} is {spec}, with {len(spec)} entries for the "
            f"{len(shape)} axes of {shape}."
        )
    return spec


def _follow(spec: PartitionSpec, full: tuple, shape: tuple) -> PartitionSpec:
    """The spec of an array that belongs to a parameter of shape `full`."""
    if shape == full:
        return spec
    entries = tuple(spec) + (None,) * (len(full) - len(spec))
    without = {
        entries[:i] + entries[i + 1 :]
        for i in range(len(full))
        if full[:i] + full[i + 1 :] == shape
    }
    return _spec(without.pop()) if len(without) == 1 else PartitionSpec()


def _fit(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: jax.sharding.Mesh
) -> tuple[PartitionSpec, list[tuple[int, str]]]:
    """The spec without the mesh axes that do not divide their dimension, and those as (i, axis)."""
    entries, dropped = [], []
    for i, entry in enumerate(spec):
        kept, pieces = [], 1
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            if shape[i] % (pieces * mesh.shape[axis]):
                dropped.append((i, axis))
            else:
                kept.append(axis)
                pieces *= mesh.shape[axis]
        entries.append(kept[0] if len(kept) == 1 else tuple(kept) or None)
    return _spec(entries), dropped


def _spec(entries) -> PartitionSpec:
    """Without trailing Nones: equal placements compare equal, so that nothing compiles twice."""
    entries = list(entries)
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)
