"""Lists and dicts on the disk: what is known of a million pictures does not fit in memory as Python objects.

They lie in SQLite. `private_database` keeps what one run needs: nobody else sees it, it goes with the
process, however that ends, and its files are in the folder for temporary files (SQLITE_TMPDIR or TMPDIR, else
/var/tmp). All values are plain (numbers, texts, lists), stored as JSON.
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from usvar.errors import RunError

# What of a database may be in memory, in kB.
CACHE_KB = 2000


def private_database() -> sqlite3.Connection:
    """An empty database on the disk that ends with the process."""
    db = sqlite3.connect("")
    db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
    # Nothing in it is worth a way back.
    db.execute("PRAGMA journal_mode = OFF")
    return db


@contextmanager
def database_faults_named(path: Path) -> Iterator[None]:
    """Turn a fault of a database inside the block into one clear line.

    Args:
        path: the database that lasts, for the message.

    Raises:
        RunError: when there is no room, or the database turns out to be damaged.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorname", "")
        if code == "SQLITE_FULL" or code.startswith("SQLITE_IOERR"):
            raise RunError(
                f"no room to write {path} or temporary files ({error}): free some room and give the same "
                "command again"
            ) from error
        if code.startswith("SQLITE_CORRUPT") or code == "SQLITE_NOTADB":
            raise RunError(
                f"{path} is damaged ({error}): delete it and give the same command again"
            ) from error
        raise


class DiskList(Sequence):
    """A list that can only grow.

    Args:
        db: where it lies.
        table: name of its table, which must be new.
        encode, decode: value -> JSON and back.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        table: str,
        encode: Callable[[Any], str] = json.dumps,
        decode: Callable[[str], Any] = json.loads,
    ) -> None:
        self.db, self.table, self.encode, self.decode = db, table, encode, decode
        db.execute(f"CREATE TABLE {table} (n INTEGER PRIMARY KEY, value TEXT)")

    def append(self, value: Any) -> None:
        self.db.execute(f"INSERT INTO {self.table} (value) VALUES (?)", (self.encode(value),))

    def __len__(self) -> int:
        return self.db.execute(f"SELECT count(*) FROM {self.table}").fetchone()[0]

    def __getitem__(self, place: int) -> Any:
        row = self.db.execute(f"SELECT value FROM {self.table} WHERE n = ?", (place + 1,)).fetchone()
        if row is None:
            raise IndexError(f"{place} of {len(self)}")
        return self.decode(row[0])

    def __iter__(self) -> Iterator[Any]:
        for (value,) in self.db.execute(f"SELECT value FROM {self.table} ORDER BY n"):
            yield self.decode(value)


class DiskDict(MutableMapping[str, Any]):
    """A dict of texts to plain values, in the order of insertion.

    Args:
        db: where it lies.
        table: name of its table, which is made where it is missing: columns n, key, value.
    """

    def __init__(self, db: sqlite3.Connection, table: str) -> None:
        self.db, self.table = db, table
        db.execute(f"CREATE TABLE IF NOT EXISTS {table} (n INTEGER PRIMARY KEY, key TEXT UNIQUE, value TEXT)")

    def __setitem__(self, key: str, value: Any) -> None:
        self.db.execute(
            f"INSERT INTO {self.table} (key, value) VALUES (?, ?) "
            "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, json.dumps(value)),
        )

    def __getitem__(self, key: str) -> Any:
        row = self.db.execute(f"SELECT value FROM {self.table} WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return json.loads(row[0])

    def __delitem__(self, key: str) -> None:
        if not self.db.execute(f"DELETE FROM {self.table} WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)

    def __len__(self) -> int:
        return self.db.execute(f"SELECT count(*) FROM {self.table}").fetchone()[0]

    def sorted(self) -> Iterator[tuple[str, Any]]:
        """The items in the order of their keys."""
        for key, value in self.db.execute(f"SELECT key, value FROM {self.table} ORDER BY key"):
            yield key, json.loads(value)

    def __iter__(self) -> Iterator[str]:
        for (key,) in self.db.execute(f"SELECT key FROM {self.table} ORDER BY n"):
            yield key
