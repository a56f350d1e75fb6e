"""The pictures of rows, context by context: read, checked and, where a context asks for it, made.

A pool of threads works ahead of whoever takes the rows; a row's pictures do not depend on it.
"""

from __future__ import annotations

import collections
import concurrent.futures
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import PIL.Image

from rubric_jax import types
from rubric_jax.data import corruptions, images, processing, reading
from rubric_jax.data.corruptions import partners

OWN = ""  # stands for the row's own pictures among those of its contexts
_WINDOW = 32  # rows whose images are read ahead
_THREADS = 8


class Picture(NamedTuple):
    """A checked image. `data` is left out when its path was read before."""

    ref: images.Ref
    hash: str
    size: tuple[int, int]
    data: bytes | None
    frames: int = 0  # of a video


# context -> its pictures; None in the list is one that is left out, None for the list says that
# another instance should lend its pictures and there is none.
Found = Mapping[str, list[Picture | None] | None]


class Album:
    """Reads the pictures of rows."""

    def __init__(self, max_pixels: int, contexts: Mapping[str, corruptions.Context] | None = None):
        self.max_pixels, self.contexts = max_pixels, contexts or {}
        self.paths: dict[str, tuple[int, int]] = {}  # image path -> (bytes, mtime in ns)
        self._checked: dict[str, tuple[str, tuple[int, int]]] = {}  # image path -> hash, size
        # (context, step) -> number of a row -> the pictures it is lent
        self._lent: dict[tuple[str, int], dict[int, tuple[Picture, ...]]] = {}

    @property
    def needs_partners(self) -> bool:
        return any(step.is_partner for context in self.contexts.values() for step in context.steps)

    def of_rows(self, rows: Iterable[reading.Row]) -> Iterator[tuple[reading.Row, Found]]:
        """(row, its pictures) in order.

        Raises:
          ValueError: 'file:row: field: what is wrong' of the first bad row.
        """
        yield from _ahead(rows, self._made)

    def find_partners(self, rows: Iterable[reading.Row], directory: str) -> None:
        """Reads all rows once to find out whose pictures each is lent.

        Args:
          rows: those that `of_rows` will see.
          directory: a new one, for pictures that no path leads to; needed as long as the album.
        """
        os.mkdir(directory)
        numbers, ids, kept = [], [], []
        for row, found in _ahead(rows, self._own):
            numbers.append(row.number)
            ids.append(row.id)
            if any(picture.frames for picture in found):
                found = []  # a video is lent to nobody
            kept.append(tuple(_to_disk(picture, directory) for picture in found))
        survey = partners.Survey(
            ids,
            [tuple(picture.hash for picture in found) for found in kept],
            lambda i: [_array(picture) for picture in kept[i]],
        )
        for context in self.contexts.values():
            for number, step in enumerate(context.steps):
                if step.is_partner:
                    chosen = step.function(survey, context.key(number), **step.knobs)
                    self._lent[context.name, number] = {
                        numbers[i]: kept[j] for i, j in enumerate(chosen) if j >= 0
                    }

    def _made(self, row: reading.Row) -> dict[str, list[Picture | None] | None]:
        found: dict[int, list[Picture]] = {}
        for context, refs in row.images.items():
            if id(refs) not in found:  # else another context reads the row's own images too
                found[id(refs)] = self._pictures(row, context)
        made: dict[str, list[Picture | None] | None] = {
            context: list(found[id(refs)]) for context, refs in row.images.items()
        }
        for context in row.made:
            made[OWN] = found[id(row.images[context])]
            made[context] = self._corrupted(row, self.contexts[context], made[OWN])
        return made

    def _own(self, row: reading.Row) -> list[Picture]:
        # A row whose contexts all have columns of their own lends pictures all the same.
        contexts = [*row.made, *(name for name in row.images if name == types.CLEAN), *row.images]
        return self._pictures(row, contexts[0])

    def _pictures(self, row: reading.Row, context: str) -> list[Picture]:
        pictures = []
        if row.made and any(ref.frames for ref in row.images[context]):
            raise row.error(
                row.image_field[context],
                f"holds a video, of which the context {row.made[0]!r} cannot be made; give the row "
                f"a column `{row.made[0]}_images`, or write its frames as images.",
            )
        for number, ref in enumerate(row.images[context], 1):
            try:
                pictures.append(self._picture(ref))
            except ValueError as error:
                raise row.error(row.image_field[context], f"image {number}: {error}") from error
        return pictures

    def _picture(self, ref: images.Ref) -> Picture:
        if ref.path in self._checked:
            return Picture(ref, *self._checked[ref.path], None)
        data = images.read(ref)
        size, frames = images.check(data, self.max_pixels), images.frames(data)
        picture = Picture(ref, images.digest(data), size, data, frames)
        for frame in ref.frames:
            if frame.path:
                self._note_path(frame.path)
        if ref.path:
            self._note_path(ref.path)
            self._checked[ref.path] = (picture.hash, picture.size)
        return picture

    def _note_path(self, path: str) -> None:
        stat = os.stat(path)
        self.paths[path] = (stat.st_size, stat.st_mtime_ns)

    def _corrupted(
        self, row: reading.Row, context: corruptions.Context, own: list[Picture]
    ) -> list[Picture | None] | None:
        """The context's pictures: those that stay as they were are the stored ones, others PNG."""
        steps = [number for number, step in enumerate(context.steps) if step.is_partner]
        lent = {number: self._lent[context.name, number].get(row.number) for number in steps}
        if None in lent.values():
            return None
        arrays = [_array(picture) for picture in own]
        others = {number: [_array(p) for p in pictures] for number, pictures in lent.items()}
        stored = list(zip(arrays, own))
        for number, pictures in lent.items():
            stored += zip(others[number], pictures)
        rng = context.rng(row.prompt, [picture.hash for picture in own])
        try:
            made = context.apply(arrays, rng, columns=row.inputs, partners=others)
        except processing.FieldError as error:
            raise row.error(error.field, error.message) from error
        for column, kind in context.columns.items():
            for ref in row.inputs[column] if kind == "maps" else ():
                if ref.path:
                    self._note_path(ref.path)
        return [None if image is None else _stored(image, stored) for image in made]


def _ahead(rows: Iterable[reading.Row], work) -> Iterator[tuple[reading.Row, object]]:
    """(row, work(row)) in order."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        window: collections.deque = collections.deque()
        error = None
        rows = iter(rows)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            except ValueError as found:  # rows before it come first, and so do their errors
                error = found
                break
            window.append((row, pool.submit(work, row)))
            if len(window) > _WINDOW:
                row, future = window.popleft()
                yield row, future.result()
        for row, future in window:
            yield row, future.result()
        if error is not None:
            raise error


def _stored(image: np.ndarray, stored: list[tuple[np.ndarray, Picture]]) -> Picture:
    """The picture that the pixels were read from, or a new one."""
    for array, picture in stored:
        if array is image or np.array_equal(array, image):
            return picture
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    data = buffer.getvalue()
    height, width = image.shape[:2]
    return Picture(images.Ref(data=data), images.digest(data), (width, height), data)


def _array(picture: Picture) -> np.ndarray:
    """uint8 [H, W, 3]."""
    data = images.read(picture.ref) if picture.data is None else picture.data
    return np.asarray(images.decode(data).convert("RGB"))


def _to_disk(picture: Picture, directory: str) -> Picture:
    """A picture that is read again when it is needed."""
    if picture.ref.path:
        return picture._replace(data=None)
    path = os.path.join(directory, picture.hash)
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.write(picture.data)
    return Picture(images.Ref(path=path), picture.hash, picture.size, None)
