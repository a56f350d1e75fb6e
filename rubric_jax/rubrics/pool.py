"""The pool on disk: one rubric per line of JSON (see records.py), keyed by instance content.

Lines are only ever appended, each in one write under a lock, so several processes may fill one pool
and a killed one leaves at most half a line at the end. Such a line is dropped and counted when the
pool is read, and cut off by the next append.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence

from rubric_jax.rubrics import records


@dataclasses.dataclass(frozen=True)
class Pool:
    path: str
    rubrics: Mapping[str, records.Rubric]  # by instance key, in the order of the file
    dropped: int  # half-written last lines: 0 or 1
    repeated: int  # lines that say again what an earlier line says

    def of(self, key: str) -> records.Rubric:
        """The rubric of an instance; ValueError if the pool has none."""
        if key not in self.rubrics:
            raise ValueError(
                f"No rubric for the instance {key[:12]} in {self.path!r}, which has "
                f"{len(self.rubrics)}. Do the instructions and the pool belong together? Write "
                "the missing ones with the command `rubrics`."
            )
        return self.rubrics[key]


def load(path: str, *, axes: Sequence[str] = ()) -> Pool:
    """Reads and checks a pool; no file is an empty pool.

    Args:
      path: the file.
      axes: the run's reward axes; empty = any.

    Raises:
      ValueError: 'file:line: field: what is wrong, and the mend'.
    """
    if not os.path.exists(path):
        return Pool(path, {}, 0, 0)
    with open(path, "rb") as file:
        return _parse(path, file.read(), axes)


def half_written(line: bytes) -> bool:
    """Whether a kill cut this last line of a JSON Lines file short: no newline, and not JSON."""
    if line.endswith(b"\n") or not line.strip():
        return False
    try:
        json.loads(line)
    except ValueError:  # covers broken UTF-8 too
        return True
    return False


def append(path: str, rubrics: Iterable[records.Rubric]) -> int:
    """Adds the rubrics of instances that the pool has none of; returns how many were added.

    Takes rubrics as they come (a generator that calls a server, say): each is on disk before the
    next is asked for. What another process added meanwhile is seen.

    Raises:
      ValueError: the pool cannot be read or written.
    """
    added, keys, end = 0, set(), 0
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    for rubric in rubrics:
        try:
            with open(path, "a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
                keys, end = _catch_up(path, file, keys, end)
                if rubric.key in keys:
                    continue
                file.write(records.to_json(rubric).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                end = file.tell()
        except OSError as error:
            raise ValueError(
                f"Cannot write the rubric pool {path!r}: {error}. Free space there, or point it "
                "at a writable place; what is in it stays good."
            ) from error
        keys.add(rubric.key)
        added += 1
    return added


def _catch_up(path: str, file, keys: set[str], end: int) -> tuple[set[str], int]:
    """Mends the end of the file and takes in the keys written since `end`."""
    size = file.seek(0, os.SEEK_END)
    if size == end:
        return keys, end
    if size < end:  # another file took its place
        keys, end = set(), 0
    file.seek(end)
    data = file.read()
    whole, half = _split_tail(data)
    if half:
        file.truncate(end + len(whole))
    elif data and not data.endswith(b"\n"):
        file.write(b"\n")
    pool = _parse(path, whole, (), first=None)
    return keys | set(pool.rubrics), file.seek(0, os.SEEK_END)


def _split_tail(data: bytes) -> tuple[bytes, bytes]:
    """(whole lines, half-written last line). A last line without its newline may be whole."""
    head, newline, tail = data.rpartition(b"\n")
    return (head + newline, tail) if half_written(tail) else (data, b"")


def _parse(path: str, data: bytes, axes: Sequence[str], first: int | None = 1) -> Pool:
    """first: line number of the data's first line; None = somewhere in the file."""
    whole, half = _split_tail(data)
    rubrics: dict[str, records.Rubric] = {}
    lines: dict[str, str] = {}
    repeated = 0
    for i, line in enumerate(whole.split(b"\n")):
        if not line.strip():
            continue
        where = f"{path}:{first + i}" if first else path
        try:
            value = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON ({error}); mend or remove it.") from None
        rubric = records.parse(value, where=where, axes=axes)
        if rubric.key not in rubrics:
            rubrics[rubric.key], lines[rubric.key] = rubric, where
        elif rubrics[rubric.key].criteria == rubric.criteria:
            repeated += 1
        else:
            raise ValueError(
                f"{where}: key: another rubric for the instance of {lines[rubric.key]}; "
                "remove one of the two lines."
            )
    return Pool(path, rubrics, int(bool(half)), repeated)
