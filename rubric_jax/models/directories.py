"""A checkpoint directory in Hugging Face layout: its files, filled one by one, then published."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PART = "part-{:05d}.tmp"


def files(items: Iterable, limit: int) -> Iterator[dict[str, np.ndarray]]:
    """(name, array) pairs as the contents of files of so many bytes, if no array has more."""
    shard: dict[str, np.ndarray] = {}
    for name, array in items:
        if shard and size(shard) + array.nbytes > limit:
            yield shard
            shard = {}
        shard[name] = array
    yield shard


def size(shard: Mapping[str, np.ndarray]) -> int:
    """Bytes of a file's arrays."""
    return sum(array.nbytes for array in shard.values())


def publish(directory: pathlib.Path, names: list[list[str]], total: int) -> None:
    """Gives the parts of `weights.write` their final names, and an index if there are several."""
    for old in (*directory.glob("model*.safetensors"), directory / INDEX):
        old.unlink(missing_ok=True)
    count, index = len(names), {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else SINGLE
        (directory / PART.format(i)).rename(directory / file)
        index |= dict.fromkeys(names[i], file)
    if count > 1:
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (directory / INDEX).write_text(text + "\n")


def copy_others(source: pathlib.Path, target: pathlib.Path) -> None:
    """Everything but weights: config, tokenizer, processor, chat template, licence."""
    if source.resolve() == target.resolve():
        raise ValueError(f"Refusing to export onto the checkpoint it came from: {target}.")
    for file in source.iterdir():
        weights = file.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
        if file.is_file() and not weights and not file.name.endswith(".index.json"):
            shutil.copyfile(file, target / file.name)


def set_dtype(file: pathlib.Path, dtype: str) -> None:
    """Lets config.json say what the weights are: transformers loads in the dtype that it names."""
    config = json.loads(file.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in {"dtype", "torch_dtype"} & part.keys():
            part[key] = dtype
    file.write_text(json.dumps(config, indent=2) + "\n")
