"""Reference log-probabilities computed once: a store keyed by the content that determines them.

  key = sha256(model fingerprint, content key of the branch, dtype)  ->  float32 [T], nats per token

The content key (encoding.py) covers processor, prompt, image bytes and response, so an entry is
right wherever its key comes up: in another run, with other batches, after more rows were added.
One SQLite file in WAL mode: many processes read while one writes, and a killed writer loses at most
the transaction it was in.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

_CHUNK = 500  # keys per query; SQLite's smallest limit is 999
_local = threading.local()  # a connection serves one thread of one process


@dataclasses.dataclass(frozen=True)
class References:
    """The entries of one reference model. Picklable; every process opens its own connection."""

    path: str  # the SQLite file; made when first written
    model: str  # fingerprint of the reference's weights
    dtype: str  # of the computation, such as 'bfloat16'

    def missing(self, keys: Iterable[str]) -> list[str]:
        """The content keys without an entry, each once, in their order."""
        keys = list(dict.fromkeys(keys))
        found = self._fetch(keys, "key")
        return [key for key in keys if self._key(key) not in found]

    def put(self, items: Iterable[tuple[str, np.ndarray]]) -> None:
        """Stores (content key, log-probabilities [T]) pairs in one transaction.

        Raises:
          ValueError: not finite, or the file cannot be written.
        """
        rows = []
        for key, logps in items:
            values = np.ascontiguousarray(logps, "<f4")
            if values.ndim != 1 or not np.isfinite(values).all():
                raise ValueError(
                    f"Reference log-probabilities of {key[:12]} are not a finite vector "
                    f"(shape {values.shape}); check the reference checkpoint."
                )
            rows.append((self._key(key), values.tobytes()))
        try:
            os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            with self._connection() as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?)", rows)
        except (OSError, sqlite3.OperationalError) as error:
            raise ValueError(
                f"Cannot write reference log-probabilities to {self.path!r}: {error}. Free space "
                "there, or point config.data.cache at a writable directory."
            ) from error

    def get(self, keys: Sequence[str]) -> list[np.ndarray]:
        """Log-probabilities float32 [T] of each content key.

        Raises:
          ValueError: an entry is missing.
        """
        found = self._fetch(list(dict.fromkeys(keys)), "key, value")
        absent = [key for key in keys if self._key(key) not in found]
        if absent:
            raise ValueError(
                f"{len(absent)} of {len(keys)} reference log-probabilities are not in "
                f"{self.path!r} (first: {absent[0][:12]}). Compute them for the keys that "
                "`missing` names and `put` them, or set config.train.reference to 'step'."
            )
        return [np.frombuffer(found[self._key(key)], "<f4") for key in keys]

    def _key(self, key: str) -> bytes:
        return hashlib.sha256(f"{self.model}|{key}|{self.dtype}".encode()).digest()

    def _fetch(self, keys: list[str], columns: str) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        if not os.path.exists(self.path):
            return found
        hashes = [self._key(key) for key in keys]
        with self._connection() as connection:
            for i in range(0, len(hashes), _CHUNK):
                chunk = hashes[i : i + _CHUNK]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT {columns} FROM logps WHERE key IN ({marks})"
                found.update((row[0], row[-1]) for row in connection.execute(query, chunk))
        return found

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # A connection must cross neither a fork nor a thread.
        open_ones = _local.__dict__.setdefault("connections", {})
        here = (os.getpid(), self.path)
        if here not in open_ones:
            connection = sqlite3.connect(self.path, timeout=60.0)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, value BLOB NOT NULL) "
                "WITHOUT ROWID"
            )
            open_ones[here] = connection
        yield open_ones[here]
