"""Stage files: JSON Lines that are appended, survive a kill, and know what they were made from.

  samples.jsonl     one line per instruction, written as they come
  samples.json      its manifest: {"stage": "sample", "version": "0.1.0", "config": {...},
                    "inputs": {"policy": "5f1c.."}, "counts": {...}, "finished": true}

A stage that finds its file finished does nothing; half-done, it goes on; made from something else,
it refuses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from absl import logging

import rubric_jax
from rubric_jax import checkpoint
from rubric_jax import config as config_lib
from rubric_jax.rubrics import pool as pool_lib


@dataclasses.dataclass(frozen=True)
class File:
    """A stage's output."""

    path: str
    stage: str
    config: Mapping[str, Any]  # what of the config determines the content
    inputs: Mapping[str, str]  # name -> hash of what it is made from

    @property
    def manifest(self) -> str:
        return manifest_path(self.path)


def manifest_path(path: str) -> str:
    return str(pathlib.Path(path).with_suffix(".json"))


def begin(file: File) -> bool:
    """Makes or checks the manifest; True if the file is finished.

    Raises:
      ValueError: the file was made from other inputs or by other settings (they are shown), or by
        another stage, or not by a stage at all.
    """
    old = read_manifest(file.path)
    new = _plain({"config": file.config, "inputs": file.inputs})
    with checkpoint.disk_errors(os.path.dirname(os.path.abspath(file.path))):
        if old is None:
            if os.path.exists(file.path):
                raise ValueError(
                    f"{file.path} is there, but no {file.manifest} says how it was made, so "
                    f"`{file.stage}` will not touch it. Move it away, or go on with the next stage."
                )
            os.makedirs(os.path.dirname(os.path.abspath(file.path)), exist_ok=True)
            _write(file, {"counts": {}, "finished": False})
            return False
    lines = config_lib.differences({k: old.get(k, {}) for k in new}, new)
    if old.get("stage") != file.stage:
        lines.insert(0, f"stage: {old.get('stage')!r} -> {file.stage!r}")
    if lines:
        shown = "\n  ".join(lines)
        raise ValueError(
            f"{file.path} was made differently:\n  {shown}\nSet these back to go on with it, "
            f"take another --workdir, or remove {os.path.basename(file.path)} and its manifest to "
            "make it again."
        )
    return bool(old.get("finished")) and os.path.exists(file.path)


def finish(file: File, counts: Mapping[str, Any], **more: Any) -> None:
    """Marks a file as complete; `more` are further fields of its manifest."""
    _write(file, {"counts": _plain(counts), **_plain(more), "finished": True})


def read_manifest(path: str) -> dict[str, Any] | None:
    """The manifest of a stage file; None if it has none."""
    try:
        with open(manifest_path(path), encoding="utf-8") as stream:
            return json.load(stream)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{manifest_path(path)} is not JSON ({error}); remove it and {path} to make it again."
        ) from None


class Appender:
    """Adds lines; each batch is on disk before the next. Cuts off a half-written last line."""

    def __init__(self, path: str):
        self._directory = os.path.dirname(os.path.abspath(path))
        with checkpoint.disk_errors(self._directory):
            self._stream = open(path, "a+b")  # noqa: SIM115, closed by `close`
            whole = _whole(self._stream)
            self._stream.seek(whole)
            tail = self._stream.read()
            if pool_lib.half_written(tail) or not tail.strip():
                self._stream.truncate(whole)
            else:
                self._stream.write(b"\n")

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines through to the disk."""
        text = "".join(map(_line, rows))
        with checkpoint.disk_errors(self._directory):
            self._stream.write(text.encode())
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


def write_whole(
    file: File, rows: Iterable[Mapping[str, Any]], counts: Mapping[str, Any], **more: Any
) -> None:
    """Writes all lines, then the manifest. The file appears whole; `counts` is read at the end."""
    temporary = file.path + ".tmp"
    with checkpoint.disk_errors(os.path.dirname(os.path.abspath(file.path))):
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.writelines(map(_line, rows))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file.path)
    finish(file, counts, **more)


def lines(path: str, *, made_by: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """('file:line', row) of a stage file. A half-written last line is left out, with a warning.

    Args:
      made_by: the command that writes such files, for the error.

    Raises:
      ValueError: no such file, or a line that is no JSON object.
    """
    if not os.path.exists(path):
        raise ValueError(f"No {path}; make it with the command `{made_by}`.")
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path}:{number}"
            if pool_lib.half_written(line):
                logging.warning("%s: half-written last line, left out.", where)
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where}: not JSON ({error}); mend or remove the line.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{where}: {type(row).__name__}; it must be an object.")
            yield where, row


def field(where: str, row: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field of a row, of a type; ValueError names file, line and field."""
    if not isinstance(row.get(name), kind):
        raise ValueError(
            f"{where}: {name}: found {row.get(name)!r}; it must be of type {kind.__name__}."
        )
    return row[name]


def need_finished(path: str, *, made_by: str) -> None:
    """Raises ValueError for a file that its stage has begun and not finished."""
    manifest = read_manifest(path)
    if manifest is not None and not manifest.get("finished"):
        raise ValueError(f"{path} is not finished; run the command `{made_by}` to its end.")


def digest(path: str) -> str:
    """sha256 of a file's bytes; "" if it is not there."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """sha256 of a plain value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write(file: File, state: Mapping[str, Any]) -> None:
    value = {
        "stage": file.stage,
        "version": rubric_jax.__version__,
        "config": _plain(file.config),
        "inputs": dict(file.inputs),
        **state,
    }
    temporary = file.manifest + ".tmp"
    with checkpoint.disk_errors(os.path.dirname(os.path.abspath(file.path))):
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file.manifest)


def _line(row: Mapping[str, Any]) -> str:
    # ASCII: half a surrogate pair, as a tokenizer or a judge may give, has no UTF-8.
    return json.dumps(row) + "\n"


def _whole(stream) -> int:
    """Bytes up to the end of the last whole line."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        stream.seek(start)
        newline = stream.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples, text for keys."""
    return json.loads(json.dumps(value))
