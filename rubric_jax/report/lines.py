"""Reads the JSON files of a run; every error begins with 'file:line:'."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from rubric_jax.rubrics import pool


class Row(NamedTuple):
    where: str  # 'file:line'
    value: dict[str, Any]

    def get(self, field: str, kind: type | tuple[type, ...]) -> Any:
        """A field that must be there; ValueError names it."""
        if field not in self.value:
            raise ValueError(f"{self.where}: no field {field!r}; run the stage again.")
        found = self.value[field]
        if not isinstance(found, kind):
            shown = repr(found)[:80]
            raise ValueError(f"{self.where}: {field} is {shown}; run the stage again.")
        return found


def lines(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """('file:line', line) of each line that is not blank, half-written last one left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not pool.half_written(line):
                yield f"{path}:{number}", line


def ends_half_written(path: pathlib.Path) -> bool:
    """Whether a kill cut the last line of a file short."""
    if not path.exists() or not path.stat().st_size:
        return False
    last = b""
    with path.open("rb") as file:
        for line in file:
            last = line
    return pool.half_written(last)


def row(where: str, line: bytes) -> Row:
    return Row(where, _object(where, line))


def rows(path: pathlib.Path) -> Iterator[Row]:
    """The objects of a JSON Lines file; none where there is no file."""
    return (row(where, line) for where, line in lines(path))


def whole(path: pathlib.Path) -> Row | None:
    """The object of a JSON file, or None where there is no file."""
    return Row(str(path), _object(str(path), path.read_bytes())) if path.exists() else None


def number(value: Any) -> float | None:
    """A plain number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def numbers(values: Any) -> dict[str, float]:
    """What of a mapping is a number."""
    values = values if isinstance(values, Mapping) else {}
    return {str(k): number(v) for k, v in values.items() if number(v) is not None}


def _object(where: str, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); mend the file or remove it.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {str(value)[:80]!r} is no JSON object; mend or remove it.")
    return value
