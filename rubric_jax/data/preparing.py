"""Data prepared once: rows and images to records on disk, keyed by content.

  CACHE/<key>-<n>/
    rows/ images/    ArrayRecord data sets (records.py)
    index.npz        lengths, ids and content keys of all rows, for planning
    counts.json      what was read, kept, dropped and cut
    paths.json       size and modification time of every image file that was read

The key covers the bytes of the data file, the processor's files, and every setting that changes a
record, so a second start finds the directory and does nothing; <n> counts up when image files
behind the same data file changed. A directory appears whole, by renaming: a preparation that is
killed leaves only a hidden directory, which the next one removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import glob
import hashlib
import json
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tqdm
from absl import logging

from rubric_jax import config as config_lib
from rubric_jax import types
from rubric_jax.data import (
    conditioning,
    corruptions,
    encoding,
    pictures,
    processing,
    rated,
    reading,
    records,
    sources,
    spans,
    videos,
)

FORMAT = 4  # goes up when records change their meaning


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """Prepared data. Picklable; arrays are read on first use."""

    directory: str
    layout: types.Layout
    axes: tuple[str, ...]
    processor: processing.Processor
    drawn: tuple[int, ...] = ()  # contexts whose pictures are corrupted in the step, each time anew

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes read the arrays themselves, if they need them.
        return {field.name: self.__dict__[field.name] for field in dataclasses.fields(self)}

    @functools.cached_property
    def index(self) -> dict[str, np.ndarray]:
        """R kept rows, in the order of the data:

        number          int64 [R], line or row of the source, from 1
        id              str [R]
        prompt_lengths  int32 [R, M], tokens
        response_lengths int32 [R, N], tokens
        images          int32 [R], table entries of the row: those of its distinct images, and of
                        each use in a drawn context
        cells           int32 [R], cells of its largest image (see types.Picture)
        axis            int32 [R], the axis that ordered the pair; -1 where the row names none
        preference      float32 [R, A], the weights that the row's prompt states; [R, 0] if none
        rewards         float32 [R, N, A]; 0 where nothing is known
        level           float64 [R], the column `level`; NaN where the row has no number there
        keys            uint8 [R, N, 32], content keys
        """
        with np.load(os.path.join(self.directory, "index.npz")) as arrays:
            return dict(arrays)

    @functools.cached_property
    def counts(self) -> encoding.Counts:
        with open(os.path.join(self.directory, "counts.json"), encoding="utf-8") as file:
            return encoding.Counts(**json.load(file))

    def __len__(self) -> int:
        return len(self.index["number"])

    def keys(self, rows) -> list[str]:
        """Content keys (hex) of all branches of these rows, row by row."""
        return [bytes(key).hex() for key in self.index["keys"][rows].reshape(-1, 32)]


def prepare(
    config: config_lib.Data,
    layout: types.Layout,
    processor: processing.Processor,
    *,
    path: str,
    split: str,
    cache_dir: str,
    is_writer: bool = True,
    wait: Callable[[], Any] = lambda: None,
) -> Prepared:
    """Finds the prepared records of some data, or makes them.

    Args:
      config: contexts, differences, weights, rated, max_prompt, max_response, axes,
        max_image_pixels and confine_images count.
      layout: the branches, whose responses and contexts every row must have.
      processor: of the checkpoint.
      path, split: the data (see reading.py).
      cache_dir: where prepared data lies; made if needed.
      is_writer: whether this process writes. Of several on one file system, one does.
      wait: a barrier over all processes; everyone calls it once.

    Raises:
      ValueError: a row that is wrong, all rows dropped, or a directory that cannot be written.
    """
    contexts = corruptions.bind(config.contexts, layout)
    spans.check_differences(config.differences, layout)
    _rated(config, layout)
    key = _key(config, layout, contexts, processor, path, split)
    try:
        if is_writer:
            _ensure(config, layout, contexts, processor, path, split, cache_dir, key)
    finally:
        wait()  # also when writing failed, so that the others end as well
    found = _find(cache_dir, key)
    if found is None:
        raise ValueError(
            f"No prepared data for {path!r} in {cache_dir!r}: the writing process did not finish, "
            "or the processes do not share this directory (config.data.cache)."
        )
    drawn = tuple(corruptions.in_step(config.contexts, layout))
    return Prepared(found, layout, config.axes, processor, drawn)


def _ensure(config, layout, contexts, processor, path, split, cache_dir, key) -> None:
    started = time.monotonic()
    try:
        os.makedirs(cache_dir, exist_ok=True)
        with _lock(os.path.join(cache_dir, f".{key}.lock")):
            found = _find(cache_dir, key)
            if found is not None:
                logging.info("Prepared data found in %s; nothing to do.", found)
                return
            for stale in glob.glob(os.path.join(glob.escape(cache_dir), f".{key}-*")):
                shutil.rmtree(stale, ignore_errors=True)
            building = tempfile.mkdtemp(prefix=f".{key}-", dir=cache_dir)
            try:
                _build(config, layout, contexts, processor, path, split, building)
                number = len(glob.glob(os.path.join(glob.escape(cache_dir), f"{key}-*")))
                os.rename(building, os.path.join(cache_dir, f"{key}-{number}"))
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"Cannot write prepared data below {cache_dir!r}: {error.strerror or error}. Free "
            "space there, or point config.data.cache at a writable directory."
        ) from error
    logging.info("Prepared %s in %.1f s.", path, time.monotonic() - started)


def _build(config, layout, contexts, processor, path, split, directory: str) -> None:
    """Writes everything below an empty directory. Images go straight to their data set; rows are
    spooled beside it, for TFDS writes one data set at a time."""
    album = pictures.Album(config.max_image_pixels, contexts)
    stated = conditioning.bind(config.weights, layout, config.axes)
    encoder = encoding.Encoder(config, layout, processor, album, stated)
    rows = functools.partial(
        _rows,
        processor,
        path,
        split,
        layout=layout,
        axes=config.axes,
        confine=config.confine_images,
        contexts=contexts,
        differences=config.differences if layout.branches else (),
        rated=_rated(config, layout),
    )
    lent = os.path.join(directory, "lent")
    if album.needs_partners:
        album.find_partners(tqdm.tqdm(rows(), desc=f"partners in {path}", disable=None), lent)
    source = tqdm.tqdm(rows(), desc=f"preparing {path}", unit=" rows", disable=None)
    spool_path = os.path.join(directory, "spool")
    with open(spool_path, "wb") as spool:
        records.write(directory, "images", _spooled(encoder.records(source), spool))
    counts = encoder.counts()
    _check_kept(path, counts)
    records.write(directory, "rows", _unspool(spool_path))
    os.remove(spool_path)
    shutil.rmtree(lent, ignore_errors=True)
    np.savez(os.path.join(directory, "index.npz"), **encoder.index())
    for name, value in (("counts", dataclasses.asdict(counts)), ("paths", album.paths)):
        with open(os.path.join(directory, f"{name}.json"), "w", encoding="utf-8") as file:
            json.dump(value, file)
    # A full disk must not pass for a finished preparation.
    for kind, expected in (("rows", counts.kept), ("images", counts.distinct_images)):
        if len(records.read(directory, kind)) != expected:
            raise OSError(None, f"the {kind} that were written cannot be read back")


def _rows(processor: processing.Processor, *args, **options) -> Iterator[reading.Row]:
    """reading.rows; where the family has no time, a frame of a video is an image of its own."""
    rows = reading.rows(*args, videos=True, **options)
    return rows if processor.form.video else map(videos.apart, rows)


def _rated(config, layout) -> rated.Rated | None:
    """How rated lists become pairs. Prompts alone (for sampling) have no responses to rate."""
    return rated.bind(config.rated, config.axes) if layout.branches else None


def _spooled(stream, spool) -> Iterator[dict[str, Any]]:
    """The image records of a stream; its rows go to the spool."""
    for kind, record in stream:
        if kind == "images":
            yield record
        else:
            pickle.dump(record, spool)


def _unspool(path: str) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as spool:
        while spool.peek(1):
            yield pickle.load(spool)


def _check_kept(path: str, counts: encoding.Counts) -> None:
    if not counts.rows:
        raise ValueError(f"{path}: holds no rows.")
    if not counts.kept:
        lines = [
            f"  {counts.dropped[cause]} x {cause}, such as {line}"
            for cause, lines in counts.examples.items()
            for line in lines[:1]
        ]
        raise ValueError("\n".join([f"{path}: all {counts.rows} rows were dropped:", *lines]))


def _key(config, layout, contexts, processor, path, split) -> str:
    parts = {
        "format": FORMAT,
        "data": sources.fingerprint(path, split),
        # Relative image paths start from here.
        "root": os.path.dirname(os.path.abspath(path)) if os.path.exists(path) else "",
        "processor": processor.fingerprint,
        "branches": layout.branches,
        "axes": config.axes,
        "max_prompt": config.max_prompt,
        "max_response": config.max_response,
        "max_image_pixels": config.max_image_pixels,
        "confine_images": config.confine_images,
    }
    stated = conditioning.bind(config.weights, layout, config.axes)
    if config.differences and layout.branches:
        parts["differences"] = config.differences
    if stated:
        parts["weights"] = stated.settings()
    lists = _rated(config, layout)
    if lists:
        parts["rated"] = dataclasses.asdict(lists)
    drawn = corruptions.in_step(config.contexts, layout)
    if drawn:
        parts["drawn"] = sorted(drawn)  # with which knobs is the step's affair
    if contexts:
        parts["contexts"] = {name: contexts[name].settings() for name in sorted(contexts)}
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _find(cache_dir: str, key: str) -> str | None:
    """The prepared directory of a key whose image files are as they were, or None."""
    for directory in sorted(glob.glob(os.path.join(glob.escape(cache_dir), f"{key}-*"))):
        with open(os.path.join(directory, "paths.json"), encoding="utf-8") as file:
            paths = json.load(file)
        if all(_stat(path) == tuple(known) for path, known in paths.items()):
            return directory
    return None


def _stat(path: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def _lock(path: str) -> Iterator[None]:
    """One preparation of a key at a time; the system frees the lock of a killed process."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
