"""Lists and dicts on the disk behave like those in memory, and faults of the disk are one line."""

import sqlite3
from contextlib import closing

import pytest

from data_preprocessing.on_disk import DiskDict, DiskList, database_faults_named, private_database
from usvar.errors import RunError


def test_a_list_is_like_one_in_memory():
    values = ["", "ä\n'\"", 3, 0.5, None, ["a", [1]], True]
    stored = DiskList(private_database(), "list")
    assert not stored and list(stored) == []
    for value in values:
        stored.append(value)
    assert list(stored) == values and len(stored) == len(values)
    assert [stored[n] for n in range(len(values))] == values
    with pytest.raises(IndexError):
        stored[len(values)]


def test_a_dict_is_like_one_in_memory():
    """Also in its order: a key that is set again keeps its place."""
    db = private_database()
    stored, wanted = DiskDict(db, "one"), {}
    assert not stored and list(stored.items()) == []
    for key, value in (("b", 1), ("ä", "text"), ("a", [1, "x"]), ("", None), ("b", 2)):
        stored[key] = wanted[key] = value
    stored.update({"z": 0})
    wanted["z"] = 0
    del stored["ä"], wanted["ä"]
    assert list(stored.items()) == list(wanted.items()) and stored == wanted and len(stored) == 4
    assert list(stored.sorted()) == sorted(wanted.items())
    assert "b" in stored and "c" not in stored and stored.get("c") is None
    with pytest.raises(KeyError):
        stored["c"]
    with pytest.raises(KeyError):
        del stored["c"]
    # A second look at the same table finds it again.
    assert DiskDict(db, "one") == wanted


def test_a_list_may_be_read_while_a_dict_grows():
    """Also by several readers at once: this is how pictures pass from one step to the next."""
    db = private_database()
    numbers, squares = DiskList(db, "numbers"), DiskDict(db, "squares")
    for n in range(1000):
        numbers.append(n)
    for n, again in zip(numbers, numbers, strict=True):
        squares[str(n)] = n * again
        db.commit()
    assert list(squares.values()) == [n * n for n in range(1000)]


def test_a_full_disk_is_one_line(tmp_path):
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as db:
        db.execute("PRAGMA max_page_count = 20")
        stored = DiskDict(db, "a")
        wanted = pytest.raises(RunError, match=r"no room to write .*a\.sqlite.*free some room")
        with wanted, database_faults_named(tmp_path / "a.sqlite"):
            for n in range(10_000):
                stored[str(n)] = "x" * 100


def test_damage_that_shows_under_way_is_one_line(tmp_path):
    path = tmp_path / "a.sqlite"
    with closing(sqlite3.connect(path)) as db:
        stored = DiskDict(db, "a")
        stored.update({str(n): "x" * 100 for n in range(1000)})
        db.commit()
    with open(path, "r+b") as file:
        file.seek(8 * 4096)
        file.write(b"\xff" * 4096 * 8)
    with (
        closing(sqlite3.connect(path)) as db,
        pytest.raises(RunError, match=r"a\.sqlite is damaged .*delete it"),
        database_faults_named(path),
    ):
        dict(DiskDict(db, "a"))


def test_a_fault_of_the_code_stays_what_it_is(tmp_path):
    with pytest.raises(sqlite3.OperationalError, match="no such table"), database_faults_named(tmp_path):
        private_database().execute("SELECT * FROM missing")
