"""What is known of each picture, one row each on the disk, so that memory does not grow with their number.

Two databases of SQLite behind one connection. `.index.sqlite` in the out root lasts: what was found in each
raw picture and which images were written, so that a run does only what is missing. A kill at any moment
leaves it as it was at the last `save`; with the journal that may lie beside it then, SQLite undoes what was
half-written. The other database (see on_disk.py) holds what this run alone needs.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby, islice
from pathlib import Path

from data_preprocessing.discover import Found, Record
from data_preprocessing.on_disk import DiskDict, DiskList, private_database
from data_preprocessing.splits import Place
from data_preprocessing.work import Look

INDEX = ".index.sqlite"
# In place of a class.
NO_CLASS = "(no class)"
# Frames of one file that are in memory together.
PART = 32
# A change in one of these files makes the index and all outputs stale.
VERSIONED = (
    *("catalogue/entry.py", "crop.py", "flags.py", "index.py", "near_copies.py", "readers/*.py", "sector.py"),
    "work.py",
)

# The key is a digest of all that must be unchanged for an earlier look at a picture to hold.
LASTING = """
CREATE TABLE lasting.made_by (stamp TEXT);
CREATE TABLE lasting.look (key BLOB PRIMARY KEY, reason TEXT, look TEXT);
CREATE TABLE lasting.output (key BLOB PRIMARY KEY, file TEXT, size INTEGER, sha256 TEXT, bytes INTEGER);
CREATE INDEX lasting.output_file ON output (file);
-- What this script wrote below the out root, or is about to write: nothing else may be deleted there.
CREATE TABLE lasting.ours (file TEXT PRIMARY KEY) WITHOUT ROWID;
"""
OF_THIS_RUN = """
CREATE TABLE picture (n INTEGER PRIMARY KEY, id, source, class, name, key, record);
CREATE INDEX picture_id ON picture (id);
CREATE INDEX picture_key ON picture (key);
-- Where a kept picture goes ("part" is its group), and whether the image is there already.
CREATE TABLE place (n INTEGER PRIMARY KEY, key, split, part, file, done);
CREATE INDEX place_file ON place (file);
"""
# The steps of a run: what is left to do, and what came of it.
STEPS = """
CREATE TEMP VIEW unseen AS
    SELECT n, source, record FROM picture LEFT JOIN look USING (key) WHERE look.key IS NULL;
CREATE TEMP VIEW unreadable AS
    SELECT n, id, reason FROM picture JOIN look USING (key) WHERE reason != '';
CREATE TEMP VIEW readable AS
    SELECT n, record, look FROM picture JOIN look USING (key)
    WHERE reason = '' AND id NOT IN (SELECT key FROM left_out);
CREATE TEMP VIEW unwritten AS
    SELECT n, source, record, look, file FROM place JOIN picture USING (n) JOIN look ON look.key = place.key
    WHERE NOT done;
CREATE TEMP VIEW written AS
    SELECT place.file, record, look, split, part, size, sha256 FROM place JOIN picture USING (n)
    JOIN look ON look.key = place.key JOIN output ON output.key = place.key;
"""


class Index:
    """The rows of all pictures, and what each step of a run asks of them and adds to them."""

    def __init__(self) -> None:
        self.db = private_database()
        self.db.executescript(OF_THIS_RUN)
        # Filled by discover().
        self.found = Found(
            DiskList(self.db, "found", Record.to_json, Record.from_json),
            *(DiskDict(self.db, table) for table in ("rejected", "left_out", "names", "rejected_of")),
        )
        # The manifest's.
        self.rows = DiskList(self.db, "manifest")

    @contextmanager
    def opened(self, out_root: Path) -> Iterator[None]:
        """Go on from the index of an out root, less what failed; an absent, damaged or outdated one is empty.

        Only which files are ours is taken over from a damaged or outdated one, as far as it can be read.
        What is known is saved at the end of the block, also of one that fails.
        """
        path = out_root / INDEX
        with closing(self.db):
            there = _is_whole(path)
            if not there:
                earlier = DiskList(self.db, "earlier")
                for file in _ours_in(path):
                    earlier.append(file)
                # SQLite drops a journal that lies beside a new database.
                path.unlink(missing_ok=True)
            self.db.commit()
            self.db.execute("ATTACH ? AS lasting", (str(path),))
            if not there:
                self.db.executescript(LASTING)
                self.add_ours(earlier)
            # Of videos and volumes, by `frames_key`: numbers of the chosen frames, or why there are none.
            self.frames = DiskDict(self.db, "lasting.frames")
            # What failed is asked again: a missing file may have come, or a right been given.
            self.db.execute("DELETE FROM look WHERE reason != ''")
            self.db.execute("DELETE FROM lasting.frames WHERE json_type(value) = 'text'")
            self.db.executescript(STEPS)
            if not there:
                # Last: an index without it counts as outdated.
                self.db.execute("INSERT INTO made_by VALUES (?)", (stamp(),))
            self.save()
            try:
                yield
            finally:
                self.save()

    def save(self) -> None:
        """Bring to the disk what is known now."""
        self.db.commit()
        self.saved = time.monotonic()

    def save_if_due(self, seconds: float) -> None:
        """Save when the last time is so long ago."""
        if time.monotonic() - self.saved >= seconds:
            self.save()

    def count(self, step: str) -> int:
        """Number of rows of a table or view."""
        return self.db.execute(f"SELECT count(*) FROM {step}").fetchone()[0]

    def parts(self, step: str) -> int:
        """How many lists `unseen` or `unwritten` gives."""
        counts = self.db.execute(f"SELECT count(*) FROM {step} GROUP BY source")
        return sum(-(-count // PART) for (count,) in counts)

    def add(self, record: Record) -> None:
        """Add a picture, after those before it."""
        words = (record.id, record.source, record.class_name, record.name, key(record), record.to_json())
        self.db.execute("INSERT INTO picture VALUES (NULL, ?, ?, ?, ?, ?, ?)", words)

    def unseen(self) -> Iterator[list[Record]]:
        """Pictures that nobody looked at, those of one file together, at most PART of them."""
        rows = self.db.execute("SELECT source, record FROM unseen ORDER BY n")
        for part in _parts(rows):
            yield [Record.from_json(record) for _, record in part]

    def add_look(self, record: Record, look: Look) -> None:
        """Keep what was found in a picture."""
        values = (key(record), look.reason, json.dumps(look.as_json()))
        self.db.execute("INSERT OR REPLACE INTO look VALUES (?, ?, ?)", values)

    def forget_other_looks(self) -> None:
        """Keep no look at what is not among the pictures of this run."""
        self.db.execute("DELETE FROM look WHERE key NOT IN (SELECT key FROM picture)")

    def unreadable(self) -> Iterator[tuple[str, str]]:
        """Id and reason of each picture that cannot be used."""
        return self.db.execute("SELECT id, reason FROM unreadable ORDER BY n")

    def class_counts(self) -> Counter[tuple[str, str]]:
        """Pictures by class and what became of them: a split, "rejected" or "left_out".

        What was not even looked at, such as a link that leads out or a mask, counts as of NO_CLASS.
        """
        rows = self.db.execute(
            """
            SELECT class, became, count(*) FROM (
                SELECT class, split AS became FROM place JOIN picture USING (n)
                UNION ALL SELECT class, 'rejected' FROM picture WHERE id IN (SELECT key FROM rejected)
                UNION ALL SELECT class, 'left_out' FROM picture WHERE id IN (SELECT key FROM left_out)
                UNION ALL SELECT ?1, 'rejected' FROM rejected WHERE key NOT IN (SELECT id FROM picture)
                UNION ALL SELECT ?1, 'left_out' FROM left_out WHERE key NOT IN (SELECT id FROM picture)
            ) GROUP BY class, became
        """,
            (NO_CLASS,),
        )
        return Counter({(name, became): count for name, became, count in rows})

    def readable(self) -> Iterator[tuple[Record, Look]]:
        """Pictures that can be used and are not left out."""
        for record, look in self.db.execute("SELECT record, look FROM readable"):
            yield Record.from_json(record), Look.from_json(json.loads(look))

    def place(self, places: Iterable[tuple[str, Place]], out_root: Path, size: int) -> None:
        """Say where pictures go: an output stays when it was made from the same look for that place and size.

        Args:
            places: id and place of each kept picture.
            out_root: where the outputs are.
            size: side of the images in pixels.
        """
        self.db.executemany(
            "INSERT INTO place SELECT n, key, ?1, ?2, ?1 || '/' || class || '/' || name || '.png', 0 "
            "FROM picture WHERE id = ?3",
            ((place.split, place.group, name) for name, place in places),
        )
        self.db.create_function("length_of", 1, lambda file: _length_of(out_root / file))
        self.db.execute(
            "UPDATE place SET done = EXISTS (SELECT 1 FROM output WHERE output.key = place.key "
            "AND output.file = place.file AND size = ? AND bytes = length_of(place.file))",
            (size,),
        )

    def stays(self, file: str) -> bool:
        """Whether an image that is there is as it is wanted."""
        return self.db.execute("SELECT 1 FROM place WHERE file = ? AND done", (file,)).fetchone() is not None

    def add_ours(self, files: Iterable[str]) -> None:
        """Note files below the out root that this script wrote."""
        self.db.executemany("INSERT OR IGNORE INTO ours VALUES (?)", ((file,) for file in files))

    def is_ours(self, file: str) -> bool:
        """Whether this script wrote a file below the out root, or is about to."""
        return self.db.execute("SELECT 1 FROM ours WHERE file = ?", (file,)).fetchone() is not None

    def is_wanted(self, file: str) -> bool:
        """Whether an image of this run has this path."""
        return self.db.execute("SELECT 1 FROM place WHERE file = ?", (file,)).fetchone() is not None

    def note_places(self) -> None:
        """Note all images of this run as ours, before one is written: a killed run knows its leftovers."""
        self.db.execute("INSERT OR IGNORE INTO ours SELECT file FROM place")
        self.save()

    def keep_ours(self, others: list[str]) -> None:
        """Forget which files were ours but the images of this run and `others`: the rest was deleted."""
        self.db.execute(
            "DELETE FROM ours WHERE file NOT IN (SELECT file FROM place) "
            "AND file NOT IN (SELECT value FROM json_each(?))",
            (json.dumps(others),),
        )
        self.save()

    def forget_other_outputs(self) -> None:
        """Keep no output that does not stay, and save that: a killed run never leaves the index wrong."""
        self.db.execute("DELETE FROM output WHERE key NOT IN (SELECT key FROM place WHERE done)")
        self.save()

    def unwritten(self) -> Iterator[list[tuple[Record, Look, str]]]:
        """Pictures whose images are missing, with the image's path; of one raw file at most PART together."""
        rows = self.db.execute("SELECT source, record, look, file FROM unwritten ORDER BY n")
        for part in _parts(rows):
            yield [(Record.from_json(r), Look.from_json(json.loads(seen)), file) for _, r, seen, file in part]

    def add_output(self, record: Record, file: str, size: int, sha256: str, length: int) -> None:
        """Keep that an image was written: hash of its pixels and length of its file."""
        values = (key(record), file, size, sha256, length)
        self.db.execute("INSERT OR REPLACE INTO output VALUES (?, ?, ?, ?, ?)", values)

    def written(self, file: str | None = None) -> Iterator[tuple[str, Record, Look, Place, int, str]]:
        """Of each image, or of one, by its path: path, picture, look, place, size and hash."""
        one, values = ("", ()) if file is None else ("WHERE file = ?", (file,))
        rows = self.db.execute(f"SELECT * FROM written {one} ORDER BY file", values)
        for path, record, look, split, part, size, sha256 in rows:
            seen = Look.from_json(json.loads(look))
            yield path, Record.from_json(record), seen, Place(split, part), size, sha256


def _parts(rows: Iterable[tuple]) -> Iterator[list[tuple]]:
    """Rows of one source, which comes first in them, at most PART at a time."""
    for _, of_one in groupby(rows, key=lambda row: row[0]):
        while part := list(islice(of_one, PART)):
            yield part


def stamp() -> str:
    """A digest of the code that decides how a picture is read and cropped."""
    here = Path(__file__).resolve().parent
    paths = [path for pattern in VERSIONED for path in sorted(here.glob(pattern))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def key(record: Record) -> bytes:
    """What must be unchanged for an earlier look at a picture to hold, as a digest."""
    return _digest(
        *(record.source, record.bytes, record.modified_ns, record.name, record.number),
        *(record.frame, record.turn, record.outline, record.outline_ns, record.axis, record.array),
        record.take,
    )


def frames_key(record: Record, wanted: int) -> str:
    """What must be unchanged for an earlier choice of frames to hold, as a digest."""
    return _digest(
        *(record.source, record.bytes, record.modified_ns, record.take, record.axis, record.array),
        *(record.frames, record.labels, record.labels_ns, wanted),
    ).hex()


def _digest(*values: object) -> bytes:
    return hashlib.sha256(json.dumps(values).encode()).digest()[:16]


def _is_whole(path: Path) -> bool:
    """Whether a lasting index is there, of this code, and not damaged as far as SQLite can tell."""
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(path)) as db:
            made_by = db.execute("SELECT stamp FROM made_by").fetchall()
            return made_by == [(stamp(),)] and db.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except sqlite3.DatabaseError:
        return False


def _ours_in(path: Path) -> Iterator[str]:
    """The files that an index which cannot be used otherwise says are ours, as far as it can be read."""
    if not path.is_file():
        return
    # Indexes of earlier versions had the outputs alone.
    for table in ("ours", "output"):
        try:
            with closing(sqlite3.connect(path)) as db:
                yield from (file for (file,) in db.execute(f"SELECT file FROM {table}") if file)
        except sqlite3.DatabaseError:
            continue


def _length_of(path: Path) -> int:
    """Length of a file in bytes, -1 when it is missing."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
