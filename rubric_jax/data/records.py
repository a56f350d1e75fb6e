"""Records on disk: two ArrayRecord data sets written and read by TFDS, without TensorFlow.

  images   index, hash (sha256 of the bytes), data (the encoded file)      each distinct image once
  rows     token ids per context and per response, the numbers of its images, labels, content keys

Ragged values are stored flat beside their lengths. Encoded images stand in a `Text` feature: the
image features of TFDS would decode them while reading.
"""

from __future__ import annotations

import bisect
import contextlib
import glob
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

_ints = tfds.features.Tensor(shape=(None,), dtype=np.int32)
_floats = tfds.features.Tensor(shape=(None,), dtype=np.float32)

# TFDS holds a data set in memory while writing it, up to 1 GB; beyond, it needs TensorFlow.
PART_BYTES = 256 * 2**20

FEATURES = {
    "images": {
        "index": np.int64,
        "hash": tfds.features.Text(),
        "data": tfds.features.Text(),
    },
    "rows": {
        "row": np.int64,  # position in the prepared data, from 0
        "number": np.int64,  # line or row of the source, from 1
        "id": tfds.features.Text(),
        "prompts": _ints,  # M prompts, one after the other
        "prompt_lengths": _ints,  # [M]
        "responses": _ints,  # N responses
        "response_lengths": _ints,  # [N]
        "images": _ints,  # numbers of the images of M contexts
        "image_counts": _ints,  # [M]
        "rewards": _floats,  # [N * A]
        "span_names": _ints,  # S numbers of the names of the row's spans, see Counts.spans
        "span_weights": _floats,  # per name the weight of every token of N responses
        "preference": _floats,  # [A] weights that the prompts state, or [0]
        "has_rewards": np.int64,  # 1 if every branch has a reward on every axis
        "axis": np.int64,
        "weight": np.float32,
        "margin": np.float32,
        "keys": tfds.features.Tensor(shape=(None,), dtype=np.object_),  # [N] sha256, hex
    },
}


class _Info(tfds.core.DatasetInfo):
    """Facts about our records; TFDS would ask a server for those of a published data set."""

    def initialize_from_bucket(self) -> None:
        pass


with tfds.core.registered.skip_registration():

    class Records(tfds.core.GeneratorBasedBuilder):
        """A data set whose records come from an iterator, in its order."""

        VERSION = tfds.core.Version("1.0.0")

        def __init__(self, records: Iterator[dict[str, Any]], features: dict, **kwargs):
            self._records, self._features = records, features
            super().__init__(**kwargs)

        def _info(self):
            features = tfds.features.FeaturesDict(self._features)
            return _Info(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"records": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(self._records)


def write(directory: str, kind: str, records: Iterator[dict[str, Any]]) -> None:
    """Writes records of a kind (see FEATURES) below `directory`, in parts of at most PART_BYTES.

    Raises:
      OSError: the disk is full or not writable.
    """
    tfds.disable_progress_bar()
    first = next(records, None)
    for number in itertools.count():
        if first is None:
            return
        builder = Records(
            _part(first, records),
            FEATURES[kind],
            data_dir=os.path.join(directory, kind, f"{number:05d}"),
            file_format="array_record",
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints where it writes, twice
                builder.download_and_prepare()
        except RuntimeError as error:  # how ArrayRecord reports a failed write
            raise OSError(str(error)) from error
        first = next(records, None)


def read(directory: str, kind: str) -> Parts:
    """Random access to the records of a kind, over all parts."""
    paths = sorted(glob.glob(os.path.join(glob.escape(directory), kind, "*", "records", "1.0.0")))
    return Parts([tfds.builder_from_directory(p).as_data_source(split="records") for p in paths])


class Parts:
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Any]):
        self._sources = sources
        self._ends = list(itertools.accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, i: int) -> dict[str, Any]:
        part = bisect.bisect_right(self._ends, i)
        return self._sources[part][i - (self._ends[part - 1] if part else 0)]


def _part(first: dict[str, Any], records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    size = _size(first)
    yield first
    while size < PART_BYTES:
        record = next(records, None)
        if record is None:
            return
        size += _size(record)
        yield record


def _size(record: dict[str, Any]) -> int:
    """About the bytes of a record."""
    return sum(
        value.nbytes if isinstance(value, np.ndarray) else len(value)
        for value in record.values()
        if isinstance(value, np.ndarray | bytes)
    )
