"""Checkpoints in Hugging Face layout: a weight map, reading onto shards, and writing.

A family lists one `Weight` per tensor of its checkpoint. Layers are stacked here, separate there:

  checkpoint tensor                                        parameter
  language_model.model.layers.3.self_attn.q_proj.weight    decoder/layers/attn/q/kernel [3]
    [H*h, D]                                                 [L, D, H, h]
"""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_dtypes  # noqa: F401  (teaches NumPy, and so safetensors, bfloat16)
import numpy as np
import safetensors
import safetensors.numpy
import tqdm

from rubric_jax import paths
from rubric_jax.models import directories, shards

INDEX, SINGLE = directories.INDEX, directories.SINGLE
_AHEAD = 10**9  # bytes of parameters under way, beside two of them
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


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
    # (regex of a canonical name, replacement): as the torch model of transformers 5 calls it.
    modules: tuple[tuple[str, str], ...] = ()

    def canonical(self, name: str) -> str:
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def module(self, name: str) -> str:
        """The module of the torch model with this canonical name."""
        for pattern, replacement in self.modules:
            name = re.sub(pattern, replacement, name)
        return name


class Tensor(NamedTuple):
    """Where one tensor of a checkpoint directory lies."""

    file: pathlib.Path
    name: str  # as spelled in the file
    shape: tuple[int, ...]
    dtype: str  # as in safetensors: F32, BF16, F16
    start: int  # byte of the file that it begins with

    def __str__(self) -> str:
        return f"{self.name} in {self.file.name}"


def tensors(directory: str | pathlib.Path, spec: Map) -> dict[str, Tensor]:
    """{canonical name: Tensor} of a directory, read from the headers alone.

    Raises ValueError if there are no safetensors (pickle files are refused), if a file is cut off,
    if the index and the files disagree, or if a tensor is there twice.
    """
    directory = pathlib.Path(directory)
    index = directory / INDEX
    if index.exists():
        named = json.loads(index.read_text()).get("weight_map")
        if not isinstance(named, dict):
            raise ValueError(f"{index} has no 'weight_map'; fetch or copy it again.")
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
    for tensor in itertools.chain.from_iterable(map(_header, files)):
        name = spec.canonical(tensor.name)
        if name in found:
            raise ValueError(f"{directory} holds {name} twice: as {found[name]} and as {tensor}.")
        found[name] = tensor
    if named is not None:
        gone = sorted(set(named) - {tensor.name for tensor in found.values()})
        if gone:
            raise ValueError(f"{index} names tensors that no file holds: {_some(gone)}.")
    return found


def _header(file: pathlib.Path) -> list[Tensor]:
    try:
        safetensors.safe_open(file, "np").__exit__(None, None, None)  # checks that it is whole
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); fetch or copy it again."
        ) from error
    # The library does not tell where a tensor lies: 8 bytes of length, JSON, and then the data.
    with open(file, "rb") as source:
        size = int.from_bytes(source.read(8), "little")
        named = json.loads(source.read(size))
    named.pop("__metadata__", None)
    return [
        Tensor(file, name, tuple(t["shape"]), t["dtype"], 8 + size + t["data_offsets"][0])
        for name, t in named.items()
    ]


def check(found: Mapping[str, Tensor], spec: Map, directory) -> dict[str, str]:
    """Compares a directory with the map; returns {ignored name: why}. ValueError names faults."""
    wanted = {weight.name: weight for weight in spec.weights}
    ignored = {
        name: why
        for name in found
        for pattern, why in spec.ignored
        if name not in wanted and re.fullmatch(pattern, name)
    }
    here = [(found[name], weight) for name, weight in wanted.items() if name in found]
    faults = {
        "missing": [name for name in wanted if name not in found],
        "surplus": [found[n].name for n in found if n not in wanted and n not in ignored],
        "misshapen": [
            f"{tensor.name} is {list(tensor.shape)}, expected {list(weight.shape)}"
            for tensor, weight in here
            if tensor.shape != weight.shape
        ],
        "of a dtype that is not read (quantised?)": [
            f"{tensor.name} is {tensor.dtype}" for tensor, _ in here if tensor.dtype not in _DTYPES
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise ValueError(
            f"The weights in {directory} do not fit the model of its config.json. {told}. "
            "Is this a checkpoint of another architecture, or is config.json from another one?"
        )
    return ignored


def fingerprint(directory, spec: Map) -> str:
    """Hex digest of a checkpoint's weights: names, shapes, dtypes and every byte of every tensor.

    Spelling, files and ignored tensors do not count. A few tensors are in memory at a time.
    """
    found = tensors(directory, spec)
    check(found, spec, directory)
    names = sorted(weight.name for weight in spec.weights)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        parts = list(pool.map(lambda name: _digest(name, found[name]), names))
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _digest(name: str, tensor: Tensor) -> str:
    with safetensors.safe_open(tensor.file, "np") as reader:
        array = np.ascontiguousarray(reader.get_tensor(tensor.name))
    digest = hashlib.sha256(f"{name} {tensor.shape} {tensor.dtype}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def load(
    directory,
    spec: Map,
    shapes,
    *,
    dtype,
    shardings=None,
    progress: bool = False,
    change: Callable[[str, jax.Array], Any] = lambda path, leaf: leaf,
):
    """Reads a checkpoint, each tensor straight into the shards of its parameter, several at a time.

    Host memory holds the shards of the parameters under way: those that are filled while the one
    before is placed, up to 1 GB beyond two of them. A device in host memory takes them over. With
    several processes each reads the rows that its own devices need.

    Args:
      directory: with safetensors files.
      spec: the family's map.
      shapes: tree of ShapeDtypeStructs (`jax.eval_shape` of init); decides structure and shapes.
      dtype: of the parameters.
      shardings: tree of NamedShardings; None = the default device.
      change: what becomes of a parameter as soon as it is placed: (path, array) -> array or tree.

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
    params: list[jax.Array] = []
    begun: collections.deque[_Begun] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_threads()) as pool:
        for path, leaf in flat.items():
            if path not in by_path:
                raise ValueError(f"The weight map has no tensor for the parameter {path!r}.")
            begun.append(_begin(pool, path, leaf, by_path[path], found, places[path], dtype))
            while len(begun) > 2 and sum(one.size for one in begun) > _AHEAD:
                params.append(_finish(begun.popleft(), bar, change))
        while begun:
            params.append(_finish(begun.popleft(), bar, change))
    bar.close()
    return jax.tree.unflatten(jax.tree.structure(shapes), params)


def write(
    directory: str | pathlib.Path,
    params,
    spec: Map,
    *,
    source: str | pathlib.Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = 2_000_000_000,
) -> int:
    """Writes parameters as safetensors under the names and dtypes that `source` uses.

    Args:
      directory: made if needed.
      params: the parameters, on the host or on this process's devices; or anything that gives an
        array for leaf[layer], or leaf[...] where there are no layers.
      source: the checkpoint directory that the parameters came from; its spelling of names, its
        dtypes and its other files (config, tokenizer, processor) are kept. None: canonical names.
      dtype: 'float32' or 'bfloat16' to override.
      shard_bytes: size of the files, unless one tensor is larger; host memory holds one file.

    Returns the number of tensors. The weights appear under their final names only once complete.
    """
    directory = pathlib.Path(directory)
    known = tensors(source, spec) if source else {}
    directory.mkdir(parents=True, exist_ok=True)
    if source:
        directories.copy_others(pathlib.Path(source), directory)
        if dtype:
            directories.set_dtype(directory / "config.json", dtype)
    names, total = [], 0  # names[i]: the tensors of file i
    for shard in directories.files(tensors_of(params, spec, known, dtype), shard_bytes):
        safetensors.numpy.save_file(
            shard, directory / directories.PART.format(len(names)), {"format": "pt"}
        )
        names.append(list(shard))
        total += directories.size(shard)
        del shard  # or it would stay while the next one is filled
    directories.publish(directory, names, total)
    return sum(map(len, names))


def tensors_of(
    params, spec: Map, known: Mapping[str, Tensor], dtype: str | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of every tensor of a checkpoint, in the spelling and dtypes of `known`."""
    flat = paths.flatten(params)
    for weight in spec.weights:
        leaf = flat[weight.path]
        # A slice even of the whole: a jax.Array keeps its host copy for as long as it lives.
        array = np.asarray(leaf[...] if weight.layer is None else leaf[weight.layer])
        turned = tuple(weight.shape[axis] for axis in weight.axes)
        array = array.reshape(turned).transpose(np.argsort(weight.axes))
        tensor = known.get(weight.name)
        kind = dtype or (_DTYPES[tensor.dtype] if tensor else array.dtype)
        yield tensor.name if tensor else weight.name, np.asarray(array, np.dtype(kind), order="C")


class _Begun(NamedTuple):
    """A parameter whose shards are being filled."""

    path: str
    shape: tuple[int, ...]
    place: Any
    targets: dict[shards.Index, np.ndarray]
    tasks: list[concurrent.futures.Future]

    @property
    def size(self) -> int:
        return sum(target.nbytes for target in self.targets.values())


def _begin(pool, path: str, leaf, listed: list[Weight], found, place, dtype) -> _Begun:
    """Hands the tensors of a parameter to the pool; replicas share their memory."""
    shape = tuple(leaf.shape)
    here = place.addressable_devices_indices_map(shape).values()
    targets = {
        index: shards.empty([stop - start for start, stop in index], dtype)
        for index in {shards.normal(index, shape) for index in here}
    }
    tasks = []
    for weight in listed:
        own, inner = targets, shape
        if weight.layer is not None:
            if any(index[0] != (0, shape[0]) for index in targets):
                raise ValueError(
                    f"{weight.path!r} stacks layers on its leading axis, which {place} would cut; "
                    "leave that axis of its partition rule None."
                )
            own = {index[1:]: target[weight.layer] for index, target in targets.items()}
            inner = shape[1:]
        tasks.append(pool.submit(_fill, found[weight.name], weight, inner, own))
    return _Begun(path, shape, place, targets, tasks)


def _fill(tensor: Tensor, weight: Weight, shape: tuple[int, ...], targets) -> None:
    parts = shards.parts(tensor.shape, weight.axes, shape, targets)
    if parts is None or not tensor.shape:
        whole = read(tensor, weight, shape)
        for index, target in targets.items():
            target[...] = whole[tuple(slice(*cut) for cut in index)].astype(target.dtype)
        return
    dtype = np.dtype(_DTYPES[tensor.dtype])
    shards.fill(tensor.file, tensor.start, tensor.shape, dtype, parts)


def _finish(begun: _Begun, bar, change: Callable[[str, jax.Array], Any]) -> Any:
    for task in begun.tasks:
        task.result()
        bar.update()
    made = jax.make_array_from_callback(
        begun.shape,
        begun.place,
        lambda index: begun.targets[shards.normal(index, begun.shape)],
    )
    # Waited for, or transfers to the device would pile up on the host.
    return jax.block_until_ready(change(begun.path, made.block_until_ready()))


def _threads() -> int:
    """More than processors, for a slow disk keeps several of them waiting."""
    return min(32, 2 + (os.cpu_count() or 1))


def read(tensor: Tensor, weight: Weight, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of a checkpoint as (a layer of) its parameter, in the shape that this has."""
    with safetensors.safe_open(tensor.file, "np") as reader:
        return reader.get_tensor(tensor.name).transpose(weight.axes).reshape(shape)


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def count(shapes) -> int:
    """Number of parameters in a tree of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
