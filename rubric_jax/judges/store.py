"""The verdict store: one SQLite file, keyed by the content that determines a verdict.

  key = sha256(judge, model, prompt version, settings, image bytes, instruction, response, rubric)

WAL mode: many processes read and write at once. A verdict is written when it is complete; the
replies of the calls for it are journalled one by one until then, so that a crash loses at most the
calls in flight. The first verdict for a key stays: what a run has read never changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, MutableMapping

from rubric_jax.judges import verdicts

FORMAT = 1  # of the tables and the JSON in them; stored as SQLite's user_version
_CHUNK = 500  # keys per query; SQLite's smallest limit is 999
_local = threading.local()  # a connection serves one thread of one process

_TABLES = (
    "CREATE TABLE verdicts (key TEXT PRIMARY KEY, judge TEXT NOT NULL, model TEXT NOT NULL, "
    "status TEXT NOT NULL, verdict TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE calls (key TEXT NOT NULL, part TEXT NOT NULL, reply TEXT NOT NULL, "
    "PRIMARY KEY (key, part)) WITHOUT ROWID",
    f"PRAGMA user_version = {FORMAT}",
)


@dataclasses.dataclass(frozen=True)
class Store:
    """Verdicts on disk. Picklable; every thread of every process opens its own connection."""

    path: str  # the SQLite file; made when first used

    def get(self, key: str) -> verdicts.Verdict | None:
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, verdicts.Verdict]:
        """The verdicts there are, by key."""
        keys, found = list(dict.fromkeys(keys)), {}
        with self._connection() as connection:
            for i in range(0, len(keys), _CHUNK):
                chunk = keys[i : i + _CHUNK]
                marks = ",".join("?" * len(chunk))
                query = f"SELECT key, verdict FROM verdicts WHERE key IN ({marks})"
                for key, text in connection.execute(query, chunk):
                    found[key] = verdicts.Verdict.from_json(text)
        return found

    def put(
        self,
        key: str,
        identity: verdicts.Identity,
        verdict: verdicts.Verdict,
        *,
        replace: bool = False,
    ) -> verdicts.Verdict:
        """Stores a verdict and forgets the calls for it; returns the one that now stands.

        Raises:
          ValueError: a failed verdict, which is to be asked for again, or an unwritable file.
        """
        if verdict.status not in verdicts.LASTING:
            raise ValueError(f"A verdict with status {verdict.status!r} is not to be stored.")
        row = (key, identity.judge, identity.model, verdict.status, verdict.to_json())
        either = "REPLACE" if replace else "IGNORE"
        with self._connection() as connection, connection:
            connection.execute(f"INSERT OR {either} INTO verdicts VALUES (?, ?, ?, ?, ?)", row)
            connection.execute("DELETE FROM calls WHERE key = ?", (key,))
            query = "SELECT verdict FROM verdicts WHERE key = ?"
            return verdicts.Verdict.from_json(connection.execute(query, (key,)).fetchone()[0])

    def journal(self, key: str) -> MutableMapping[str, str]:
        """The replies got so far towards the verdict `key`, by part; written through to disk."""
        return _Calls(self, key)

    def counts(self) -> dict[str, int]:
        """Verdicts by status."""
        with self._connection() as connection:
            return dict(connection.execute("SELECT status, COUNT(*) FROM verdicts GROUP BY status"))

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # A connection must cross neither a fork nor a thread.
        open_ones = _local.__dict__.setdefault("connections", {})
        here = (os.getpid(), os.path.abspath(self.path))
        try:
            if here not in open_ones or not os.path.exists(self.path):
                os.makedirs(os.path.dirname(here[1]), exist_ok=True)
                open_ones[here] = _open(self.path)
            yield open_ones[here]
        except sqlite3.OperationalError as error:
            raise ValueError(
                f"Cannot use the verdict store {self.path!r}: {error}. Free space there, or point "
                "it at a writable place; what is in it stays good."
            ) from error
        except (sqlite3.DatabaseError, OSError) as error:
            raise ValueError(
                f"{self.path!r} is no verdict store ({error}); name another file."
            ) from error


def _open(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=60.0)
    try:
        _check(connection, path)
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # one of several processes makes the tables
            if not _check(connection, path):
                for statement in _TABLES:
                    connection.execute(statement)
    except (sqlite3.Error, ValueError):
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: str) -> int:
    """The file's format; 0 = an empty file. ValueError for another format than ours."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if version == 0 and not tables:
        return 0
    if version != FORMAT or not {"verdicts", "calls"} <= tables:
        raise ValueError(
            f"{path!r} is a store of format {version}, and this version of rubric_jax reads "
            f"format {FORMAT}. Use the version that wrote it, or name a new file for the store."
        )
    return version


class _Calls(MutableMapping):
    """Replies by part, of one verdict. Reads once, writes through."""

    def __init__(self, store: Store, key: str):
        self._store, self._key = store, key
        with store._connection() as connection:
            query = "SELECT part, reply FROM calls WHERE key = ?"
            self._replies = dict(connection.execute(query, (key,)))

    def __getitem__(self, part: str) -> str:
        return self._replies[part]

    def __setitem__(self, part: str, reply: str) -> None:
        with self._store._connection() as connection, connection:
            row = (self._key, part, reply)
            connection.execute("INSERT OR REPLACE INTO calls VALUES (?, ?, ?)", row)
        self._replies[part] = reply

    def __delitem__(self, part: str) -> None:
        with self._store._connection() as connection, connection:
            query = "DELETE FROM calls WHERE key = ? AND part = ?"
            connection.execute(query, (self._key, part))
        del self._replies[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._replies)

    def __len__(self) -> int:
        return len(self._replies)
