"""A data path to plain records: dicts of columns, in order, with their position.

JSON Lines, JSON, Parquet, a directory written by `datasets` save_to_disk, or a hub name. JSON is
read with the json module, so that an error names the line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet

from rubric_jax import config as config_lib

_FORMATS = "JSON Lines (.jsonl), JSON (.json), Parquet (.parquet), a saved datasets directory"


def records(path: str, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or row number from 1, columns) of a data path.

    Args:
      path: a file, a directory, or a hub name.
      split: of a DatasetDict or a hub name; ignored by single files.

    Raises:
      ValueError: no such data, or a row that cannot be parsed.
    """
    if os.path.isdir(path):
        yield from _arrow(_saved(path, split))
    elif os.path.isfile(path):
        kind = os.path.splitext(path)[1].lower()
        if kind not in _READERS:
            raise ValueError(f"{path}: unknown kind of file {kind!r}; it must be {_FORMATS}.")
        yield from _READERS[kind](path)
    else:
        yield from _arrow(_hub(path, split))


def fingerprint(path: str, split: str) -> str:
    """Hash of the data's bytes; images that are referenced by path are not part of it."""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256(split.encode())
    if not os.path.isdir(path):
        return hashlib.sha256((split + _hub(path, split)._fingerprint).encode()).hexdigest()
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            with open(os.path.join(folder, name), "rb") as file:
                data = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{os.path.relpath(folder, path)}/{name} {data}\n".encode())
    return total.hexdigest()


def _json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _object(path, number, _parse(f"{path}:{number}", line))


def _json(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        head = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head[:1] == b"{":  # JSON Lines under another name
        yield from _json_lines(path)
        return
    with open(path, "rb") as file:
        values = _parse(path, file.read())
    if not isinstance(values, list):
        raise ValueError(f"{path}: holds {type(values).__name__}; it must be a list of rows.")
    for number, value in enumerate(values, 1):
        yield number, _object(path, number, value)


def _parse(where: str, data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not JSON at line {error.lineno} column {error.colno} of it ({error.msg}); "
            "mend or remove the row."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error}); save the file as UTF-8.") from error


def _object(path: str, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(
            f"{path}:{number}: the row is {type(value).__name__}; it must be an object of columns."
        )
    return value


def _parquet(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from error
    number = 0
    for batch in file.iter_batches(batch_size=64):  # rows may hold images: megabytes each
        for record in batch.to_pylist():
            number += 1
            yield number, record


_READERS = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet}


def _saved(path: str, split: str) -> datasets.Dataset:
    try:
        data = datasets.load_from_disk(path)
    except (FileNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: a directory that `datasets` did not save ({error}); it must be {_FORMATS}."
        ) from error
    return _choose(path, data, split)


def _hub(path: str, split: str) -> datasets.Dataset:
    local = path.startswith((".", "/", "~")) or os.path.splitext(path)[1].lower() in _READERS
    if not path or local or path.count("/") > 1:
        raise ValueError(f"No data at {path!r}; config.data.path must name {_FORMATS}.")
    try:
        data = datasets.load_dataset(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No data at {path!r}, and no hub data set of that name can be fetched "
            f"({type(error).__name__}: {error}). Give a local path, or go online once to cache it."
        ) from error
    return _choose(path, data, split)


def _choose(path, data, split: str) -> datasets.Dataset:
    if not isinstance(data, datasets.DatasetDict):
        return data
    if split not in data:
        raise ValueError(f"{path}: no split {split!r}; it must be {config_lib.one_of(split, data)}")
    return data[split]


def _arrow(data: datasets.Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows as Arrow holds them: images stay the encoded bytes they came in."""
    number = 0
    for table in data.with_format("arrow").iter(batch_size=64):
        for record in table.to_pylist():
            number += 1
            yield number, record
