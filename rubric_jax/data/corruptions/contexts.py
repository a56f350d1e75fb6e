"""A context whose pictures are made: its steps, and one row's pictures through them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rubric_jax.data.corruptions import inputs

Pictures = list[np.ndarray | None]  # uint8 [H, W, 3]; None = left out, with its placeholder


@dataclasses.dataclass(frozen=True)
class Step:
    """One corruption with its knobs."""

    name: str
    function: Callable
    knobs: Mapping[str, Any]  # all of them, defaults too
    columns: Mapping[str, tuple[str, str]]  # parameter -> (column, boxes or maps)
    is_partner: bool  # takes the pictures of another instance; see partners.py
    files: tuple[str, ...]  # whose content counts


@dataclasses.dataclass(frozen=True)
class Context:
    """A context whose pictures are made of the row's own, step by step."""

    name: str
    steps: tuple[Step, ...]
    seed: int

    @property
    def columns(self) -> dict[str, str]:
        """Columns that the steps read -> boxes or maps."""
        return dict(pair for step in self.steps for pair in step.columns.values())

    def key(self, number: int) -> str:
        """What a step that chooses partners draws by."""
        return f"{self.seed} {self.name} {number}"

    def rng(self, prompt: str | list, hashes: Sequence[str]) -> np.random.Generator:
        """Random numbers of a row: a function of seed, context, prompt and own pictures."""
        content = json.dumps([self.seed, self.name, prompt, list(hashes)], default=repr)
        digest = hashlib.sha256(content.encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "big"))

    def apply(
        self,
        own: list[np.ndarray],
        rng: np.random.Generator,
        *,
        columns: Mapping[str, Any],
        partners: Mapping[int, list[np.ndarray]],
    ) -> Pictures:
        """The pictures of the context, as many as the row's own.

        Args:
          own: uint8 [H, W, 3] each.
          rng: see `rng`.
          columns: what the row holds in `self.columns`; image references for maps.
          partners: number of a step that takes another instance's pictures -> those pictures.

        Raises:
          FieldError: a column of another form.
        """
        now: Pictures = list(own)
        for number, step in enumerate(self.steps):
            if step.is_partner:
                now = list(partners[number])
                continue
            kept = [i for i, image in enumerate(now) if image is not None]
            given = {
                name: [_READERS[kind](column, columns[column], len(own))[i] for i in kept]
                for name, (column, kind) in step.columns.items()
            }
            made = step.function([now[i] for i in kept], rng, **step.knobs, **given)
            for i, image in zip(kept, made, strict=True):
                now[i] = image
        return now

    def settings(self) -> dict[str, Any]:
        """Everything but the rows that determines the pictures, as plain values."""
        return {
            "seed": self.seed,
            "steps": [
                {
                    "corruption": step.name,
                    "knobs": dict(step.knobs),
                    "columns": dict(step.columns),
                    "files": [_digest(path) for path in step.files],
                }
                for step in self.steps
            ],
        }


_READERS = {"boxes": inputs.boxes, "maps": inputs.maps}


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
