"""Checkpoints in Hugging Face layout: a weight map, reading onto shards, and writing.

A family lists one `Weight` per tensor of its checkpoint. Layers are stacked here, separate there:

  checkpoint tensor                                        parameter
  language_model.model.layers.3.self_attn.q_proj.weight    decoder/layers/attn/q/kernel [3]
    [H*h, D]                                                 [L, D, H, h]
"""

from __future__ import annotations

import collections
import hashlib
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (teaches NumPy, and so safetensors, bfloat16)
import numpy as np
import safetensors
import safetensors.numpy
import tqdm

from rubric_jax import paths

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Weight(NamedTuple):
    """One tensor. The parameter is `transpose(tensor, axes)` in the parameter's shape."""

    name: str  # in the checkpoint, canonical spelling
    shape: tuple[int, ...]  # in the checkpoint
    path: str  # of the parameter
    axes: tuple[int, ...]
    layer: int | None = None  # index on the parameter's leading axis, if it stacks layers


class Map(NamedTuple):
    """All tensors of a family, and the spellings under which checkpoints are found."""

    weights: tuple[Weight, ...]
    spellings: tuple[tuple[str, str], ...]  # (regex, canonical replacement), applied in order
    ignored: tuple[tuple[str, str], ...]  # (regex of the canonical name, why it carries nothing)

    def canonical(self, name: str) -> str:
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name


class Tensor(NamedTuple):
    """Where one tensor of a checkpoint directory lies."""

    file: pathlib.Path
    name: str  # as spelled in the file
    shape: tuple[int, ...]
    dtype: str  # as in safetensors: F32, BF16, F16


def tensors(directory: str | pathlib.Path, spec: Map) -> dict[str, Tensor]:
    """{canonical name: Tensor} of a directory, read from the headers alone.

    Raises ValueError if there are no safetensors (pickle files are refused), or if the index and
    the files disagree.
    """
    directory = pathlib.Path(directory)
    index = directory / INDEX
    if index.exists():
        named = json.loads(index.read_text())["weight_map"]
        files = sorted({directory / file for file in named.values()})
        gone = [file.name for file in files if not file.exists()]
        if gone:
            raise ValueError(f"{index} names files that are missing: {', '.join(gone)}.")
    elif (directory / SINGLE).exists():
        named, files = None, [directory / SINGLE]
    else:
        pickles = [file.name for pattern in _PICKLES for file in directory.glob(pattern)]
        hint = (
            f"{', '.join(sorted(pickles))} hold pickled weights, which can run code when loaded "
            "and are refused; convert them to safetensors with transformers' save_pretrained."
            if pickles
            else f"expected {SINGLE} or {INDEX}."
        )
        raise ValueError(f"No safetensors weights in {directory}: {hint}")
    found = {}
    for file in files:
        with safetensors.safe_open(file, "np") as reader:
            for name in reader.keys():  # noqa: SIM118  (not a dict)
                part = reader.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                found[spec.canonical(name)] = Tensor(file, name, shape, dtype)
    if named is not None:
        gone = sorted(set(named) - {tensor.name for tensor in found.values()})
        if gone:
            raise ValueError(f"{index} names tensors that no file holds: {_some(gone)}.")
    return found


def check(found: Mapping[str, Tensor], spec: Map, directory) -> dict[str, str]:
    """Compares a directory with the map; returns {ignored name: why}. ValueError names faults."""
    wanted = {weight.name: weight for weight in spec.weights}
    missing = [name for name in wanted if name not in found]
    surplus, ignored = [], {}
    for name in found:
        if name in wanted:
            continue
        why = [why for pattern, why in spec.ignored if re.fullmatch(pattern, name)]
        if why:
            ignored[name] = why[0]
        else:
            surplus.append(found[name].name)
    shapes = [
        f"{found[name].name} is {list(found[name].shape)}, expected {list(weight.shape)}"
        for name, weight in wanted.items()
        if name in found and found[name].shape != weight.shape
    ]
    faults = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("surplus", surplus), ("misshapen", shapes))
        if names
    ]
    if faults:
        raise ValueError(
            f"The weights in {directory} do not fit the model of its config.json. "
            + "; ".join(faults)
            + ". Is this a checkpoint of another architecture, or is config.json from another one?"
        )
    return ignored


def fingerprint(directory, spec: Map) -> str:
    """Hex digest of a checkpoint's weights: names, shapes, dtypes and both ends of every tensor.

    Training moves nearly every entry of a tensor, so its ends tell; reading all of a large
    checkpoint would cost minutes at every start.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors(directory, spec).items()):
        digest.update(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
        with safetensors.safe_open(tensor.file, "np") as reader:
            part, size = reader.get_slice(tensor.name), tensor.shape[0]
            ends = part[:1], part[size - 1 : size]
        for end in ends:
            digest.update(np.ascontiguousarray(end).tobytes())
    return digest.hexdigest()


def load(directory, spec: Map, shapes, *, dtype, shardings=None, progress: bool = False):
    """Reads a checkpoint tensor by tensor, each straight onto the shards of its parameter.

    Host memory holds one tensor at a time. With several processes every process reads the files and
    keeps its own shards.

    Args:
      directory: with safetensors files.
      spec: the family's map.
      shapes: tree of ShapeDtypeStructs (`jax.eval_shape` of init); decides structure and shapes.
      dtype: of the parameters.
      shardings: tree of NamedShardings; None = the default device.

    Returns parameters. Raises ValueError naming missing, surplus and misshapen tensors.
    """
    found = tensors(directory, spec)
    check(found, spec, directory)
    flat = paths.flatten(shapes)
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = dict.fromkeys(flat, device)
    else:
        places = paths.flatten(shardings)
    by_path = collections.defaultdict(list)
    for weight in spec.weights:
        by_path[weight.path].append(weight)
    bar = tqdm.tqdm(total=len(spec.weights), desc="weights", disable=not progress)
    params = {}
    for path, leaf in flat.items():
        if path not in by_path:
            raise ValueError(f"The weight map has no tensor for the parameter {path!r}.")
        loaded = None
        for weight in by_path[path]:
            shape = leaf.shape if weight.layer is None else leaf.shape[1:]
            array = _read(found[weight.name], weight, shape)
            if weight.layer is None:
                loaded = _place(array, places[path], dtype)
            else:
                loaded = loaded if loaded is not None else _empty(leaf.shape, dtype, places[path])
                place = _without_leading(places[path])
                loaded = _set_layer(loaded, _place(array, place, dtype), weight.layer)
            bar.update()
        params[path] = loaded
    bar.close()
    return jax.tree_util.tree_unflatten(jax.tree.structure(shapes), [params[path] for path in flat])


def write(
    directory,
    params,
    spec: Map,
    *,
    source: str | pathlib.Path | None = None,
    dtype: str | None = None,
    fetch: Callable[[jax.Array], np.ndarray] = np.asarray,
    is_writer: bool = True,
    shard_bytes: int = 2_000_000_000,
) -> int:
    """Writes parameters as safetensors under the names and dtypes that `source` uses.

    Args:
      directory: made if needed.
      params: the parameters, possibly sharded.
      source: the checkpoint directory that the parameters came from; its spelling of names, its
        dtypes and its other files (config, tokenizer, processor) are kept. None: canonical names.
      dtype: 'float32' or 'bfloat16' to override.
      fetch: brings an array to the host, on every process.
      is_writer: False on the processes that only take part in `fetch`.
      shard_bytes: size of the files; host memory holds one.

    Returns the number of tensors. The weights appear under their final names only once complete.
    """
    directory = pathlib.Path(directory)
    known = tensors(source, spec) if source else {}
    if is_writer:
        directory.mkdir(parents=True, exist_ok=True)
        if source:
            _copy_others(pathlib.Path(source), directory)
    flat = paths.flatten(params)
    shards = _shards(_tensors_of(flat, spec, known, dtype, fetch), shard_bytes)
    files = []
    for shard in shards:
        files.append((f"part-{len(files):05d}.tmp", list(shard), _bytes(shard)))
        if is_writer:
            safetensors.numpy.save_file(shard, directory / files[-1][0], {"format": "pt"})
    if is_writer:
        _rename(directory, files)
    return sum(len(names) for _, names, _ in files)


def _read(tensor: Tensor, weight: Weight, shape: tuple[int, ...]) -> np.ndarray:
    with safetensors.safe_open(tensor.file, "np") as reader:
        return reader.get_tensor(tensor.name).transpose(weight.axes).reshape(shape)


def _place(array: np.ndarray, sharding, dtype) -> jax.Array:
    # The callback casts one shard at a time, so the host never holds the tensor in two dtypes.
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: np.ascontiguousarray(array[index]).astype(dtype)
    )


def _empty(shape, dtype, sharding) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


def _without_leading(sharding):
    """The sharding of one layer of a stacked parameter; layers themselves are never sharded."""
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    spec = sharding.spec
    if len(spec) and spec[0] is not None:
        raise ValueError(f"Layers are stacked on the leading axis, which {spec} would shard.")
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec[1:]))


def _set_layer(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return _setter(stack.sharding)(stack, layer, index)


_SETTERS: dict = {}


def _setter(sharding):
    if sharding not in _SETTERS:
        # Donated, so that the stack is filled in place.
        _SETTERS[sharding] = jax.jit(
            lambda stack, layer, index: jax.lax.dynamic_update_index_in_dim(
                stack, layer, index, axis=0
            ),
            donate_argnums=0,
            out_shardings=sharding,
        )
    return _SETTERS[sharding]


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def _tensors_of(flat, spec: Map, known, dtype, fetch) -> Iterator[tuple[str, np.ndarray]]:
    for weight in spec.weights:
        leaf = flat[weight.path]
        array = fetch(leaf if weight.layer is None else leaf[weight.layer])
        turned = tuple(weight.shape[axis] for axis in weight.axes)
        array = array.reshape(turned).transpose(np.argsort(weight.axes))
        tensor = known.get(weight.name)
        kind = dtype or (_DTYPES[tensor.dtype] if tensor else str(array.dtype))
        name = tensor.name if tensor else weight.name
        yield name, np.ascontiguousarray(array.astype(np.dtype(kind)))


def _shards(items, limit: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    for name, array in items:
        if shard and _bytes(shard) + array.nbytes > limit:
            yield shard
            shard = {}
        shard[name] = array
    yield shard


def _bytes(shard: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in shard.values())


def _rename(directory: pathlib.Path, files) -> None:
    for old in (*directory.glob("model*.safetensors"), directory / INDEX):
        old.unlink(missing_ok=True)
    if len(files) == 1:
        (directory / files[0][0]).rename(directory / SINGLE)
        return
    named = {}
    for number, (part, names, _) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (directory / part).rename(directory / final)
        named.update(dict.fromkeys(names, final))
    total = sum(size for _, _, size in files)
    index = {"metadata": {"total_size": total}, "weight_map": named}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _copy_others(source: pathlib.Path, target: pathlib.Path) -> None:
    """Everything but weights: config, tokenizer, processor, chat template, licence."""
    if source.resolve() == target.resolve():
        raise ValueError(f"Refusing to export onto the checkpoint it came from: {target}.")
    for file in source.iterdir():
        weights = file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
        if file.is_file() and not weights and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def count(shapes) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
