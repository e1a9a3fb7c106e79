"""The index of the pictures: what is left to do, what a kill leaves, and what is not taken for an index."""

import inspect
import multiprocessing
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from data_preprocessing import index as module
from data_preprocessing import work
from data_preprocessing.crop import Frame
from data_preprocessing.discover import Record
from data_preprocessing.index import INDEX, Index, frames_key, key
from data_preprocessing.near_copies import Signature
from data_preprocessing.splits import Place
from data_preprocessing.work import Look

JOURNAL = f"{INDEX}-journal"


def record(n: int, **changes: object) -> Record:
    values = {"source": f"set/{n}.png", "dataset": "set", "organ": "o", "class_name": "A", "group": ""}
    return Record(**(values | {"split": "", "name": f"set__{n}", "bytes": 5} | changes))


def look(n: int, **changes: object) -> Look:
    frame = Frame("fan", (0, 0, 8, 6), ((0.5, 1.25), (7.0, 2.0), (3.0, 5.0)))
    values = {"width": 8, "height": 6, "sha256": f"{n:064x}", "frame": frame, "flags": ("text",)}
    return Look(**(values | {"signature": Signature(n, "AAAA", 0.25)} | changes))


def filled(index: Index, count: int = 4) -> list[Record]:
    records = [record(n) for n in range(count)]
    for each in records:
        index.add(each)
    return records


def test_the_steps_of_a_run(tmp_path):
    """Each picture is in the step that it is due for, in the order of addition, as it was put in."""
    index = Index()
    with index.opened(tmp_path):
        film = [record(9, take="even", number=n, name=f"set__9_f{n}") for n in (3, 5)]
        records = [*filled(index, 4), *film]
        for each in film:
            index.add(each)
        # Frames of one file come together.
        assert list(index.unseen()) == [[record(n)] for n in range(4)] + [film]
        assert index.count("unseen") == 6 and index.parts("unseen") == 5
        for n, each in enumerate(records[:5]):
            index.add_look(each, look(n) if n != 1 else Look(reason="broken"))
        assert list(index.unseen()) == [[film[1]]]
        assert list(index.unreadable()) == [("set/1.png", "broken")]
        index.found.left_out["set/2.png"] = "unwanted"
        readable = [(records[n], look(n)) for n in (0, 3, 4)]
        assert list(index.readable()) == readable
        index.place([(each.id, Place("val", "g")) for each, _ in readable], tmp_path, 32)
        to_write = [(each, seen, f"val/A/{each.name}.png") for each, seen in readable]
        assert list(index.unwritten()) == [[one] for one in to_write]
        for each, _, file in to_write:
            index.add_output(each, file, 32, "ab", 7)
        wanted = [(file, each, seen, Place("val", "g"), 32, "ab") for each, seen, file in to_write]
        assert list(index.written()) == wanted and list(index.written("val/A/set__3.png")) == wanted[1:2]


def test_many_frames_of_one_file_come_in_parts(tmp_path, monkeypatch):
    """A file of hundreds of patients would fill the memory."""
    monkeypatch.setattr("data_preprocessing.index.PART", 3)
    index = Index()
    with index.opened(tmp_path):
        film = [record(9, take="even", number=n, name=f"set__9_f{n}") for n in range(7)]
        for each in (*film, record(10)):
            index.add(each)
        assert list(index.unseen()) == [film[:3], film[3:6], film[6:], [record(10)]]
        assert index.parts("unseen") == 4


def test_what_is_known_serves_the_next_run_while_all_is_the_same(tmp_path):
    """An output stays for the same look, place and size, with its length on the disk."""
    places = [(f"set/{n}.png", Place("train", "g")) for n in range(4)]

    def run(changed: int | None = None, size: int = 32, places: list = places) -> tuple[int, int]:
        index = Index()
        with index.opened(tmp_path):
            records = [record(n, bytes=6 if n == changed else 5) for n in range(4)]
            for each in records:
                index.add(each)
            unseen, known = index.count("unseen"), index.count("output")
            for n, each in enumerate(records):
                index.add_look(each, look(n))
            index.forget_other_looks()
            index.place(places, tmp_path, size)
            assert index.count("output") == known  # a run that is refused here has lost nothing
            kept = [index.stays(f"{place.split}/A/set__{n}.png") for n, (_, place) in enumerate(places)]
            assert kept.count(False) == index.count("unwritten") and not index.stays("train/A/set__9.png")
            index.forget_other_outputs()
            unwritten = index.count("unwritten")
            for part in index.unwritten():
                for each, _, file in part:
                    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                    (tmp_path / file).write_bytes(b"1234567")
                    index.add_output(each, file, size, "ab", 7)
            assert index.count("look") == 4 and index.count("output") == 4
        return unseen, unwritten

    assert run() == (4, 4)
    assert run() == (0, 0)
    assert run(changed=2) == (1, 1)
    assert run() == (1, 1)  # the look at what it was is forgotten
    assert run(size=48) == (0, 4)
    (tmp_path / "train/A/set__1.png").write_bytes(b"cut")
    (tmp_path / "train/A/set__3.png").unlink()
    assert run(size=48) == (0, 2)
    assert run(size=48, places=[*places[:3], ("set/3.png", Place("test", "h"))]) == (0, 1)


def test_what_failed_is_asked_again_by_the_next_run(tmp_path):
    """Its cause may be gone: a .raw that was copied after its .mhd, rights, a disk that failed once."""
    index = Index()
    with index.opened(tmp_path):
        for n, each in enumerate(filled(index, 2)):
            index.add_look(each, Look(reason="cannot be opened") if n else look(n))
        index.frames["some"], index.frames["none"] = [1, 2], "cannot be opened"
    index = Index()
    with index.opened(tmp_path):
        filled(index, 2)
        assert list(index.unseen()) == [[record(1)]] and list(index.frames) == ["some"]


def test_the_key_covers_all_that_a_look_depends_on():
    first = record(0)
    for name, value in {
        **{"source": "x", "bytes": 9, "modified_ns": 9, "name": "x", "number": 9, "frame": "full"},
        **{"turn": "transpose", "outline": "x", "outline_ns": 9, "axis": 2, "array": "x", "take": "even"},
    }.items():
        assert key(record(0, **{name: value})) != key(first), name
    # Its class may change without a new look.
    assert key(record(0, class_name="B", split="test", group="g")) == key(first)
    assert len({frames_key(first, 2), frames_key(first, 3), frames_key(record(0, frames=(1,)), 2)}) == 3


def test_the_stamp_covers_the_code_that_a_look_depends_on():
    """All that work.py calls of this package; `read_outline`, which decides AUL's crop, was missing."""
    stamped = {path for pattern in module.VERSIONED for path in Path(module.__file__).parent.glob(pattern)}
    called = {
        name: inspect.getfile(value)
        for name, value in vars(work).items()
        if inspect.isfunction(value) and value.__module__.startswith("data_preprocessing")
    }
    # Pictures of the report.
    assert {n for n, file in called.items() if Path(file) not in stamped} == {"contact_sheet", "pair_tile"}


def test_an_index_of_an_earlier_version_says_which_files_are_ours(tmp_path):
    """It has no table of them: its outputs are."""
    with closing(sqlite3.connect(tmp_path / INDEX)) as db:
        db.execute("CREATE TABLE output (key BLOB PRIMARY KEY, file TEXT)")
        db.execute("INSERT INTO output VALUES (x'00', 'val/A/set__0.png')")
        db.commit()
    index = Index()
    with index.opened(tmp_path):
        assert index.is_ours("val/A/set__0.png")


def _killed(out: Path) -> None:
    """Save 10 looks, add so many that they no longer fit in memory, and die before they are saved."""
    index = Index()
    with index.opened(out):
        for n, each in enumerate(filled(index, 3000)):
            index.add_look(each, look(n, signature=Signature(n, "A" * 4000, 0)))
            if n == 9:
                index.save()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_kill_leaves_half_written_is_undone(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    # Half of it is in the file, and the way back beside it.
    assert (tmp_path / JOURNAL).stat().st_size > 0 and (tmp_path / INDEX).stat().st_size > 1 << 20
    index = Index()
    with index.opened(tmp_path):
        assert index.count("look") == 10
        filled(index, 12)
        assert index.count("unseen") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX]


@pytest.mark.parametrize("left", [None, b"", b"no database"])
def test_a_journal_whose_index_was_lost_is_harmless(tmp_path, left):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    process.start()
    process.join(60)
    (tmp_path / INDEX).unlink()
    if left is not None:
        (tmp_path / INDEX).write_bytes(left)
    for known in (0, 5):
        index = Index()
        with index.opened(tmp_path):
            assert index.count("look") == known
            for n, each in enumerate(filled(index, 5)):
                index.add_look(each, look(n))
    assert sorted(path.name for path in tmp_path.iterdir()) == [INDEX]


def test_a_block_that_fails_saves_what_is_known(tmp_path):
    index = Index()
    with pytest.raises(ZeroDivisionError), index.opened(tmp_path):
        index.add_look(record(0), look(0))
        raise ZeroDivisionError
    index = Index()
    with index.opened(tmp_path):
        assert index.count("look") == 1


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "empty": b"",
        "cut": content[:middle],
        "text": b"no database\n" * 1000,
        "head": b"\0" * 100 + content[100:],
        "a page": content[: middle // 4096 * 4096] + b"\xff" * 4096 + content[middle // 4096 * 4096 + 4096 :],
        "gone": None,
    }[how]
    path.unlink() if damaged is None else path.write_bytes(damaged)


@pytest.mark.parametrize("how", ["empty", "cut", "text", "head", "a page", "gone"])
@pytest.mark.parametrize("journal", [False, True])
def test_a_damaged_index_counts_as_empty(tmp_path, how, journal):
    """Also with a journal beside it that belongs to nothing."""
    index = Index()
    with index.opened(tmp_path):
        for n, each in enumerate(filled(index, 300)):
            index.add_look(each, look(n))
    _damage(tmp_path / INDEX, how)
    if journal:
        (tmp_path / JOURNAL).write_bytes(b"\xd9\xd5\x05\xf9 no journal" * 100)
    for known in (0, 20):
        index = Index()
        with index.opened(tmp_path):
            assert index.count("look") == known
            for n, each in enumerate(filled(index, 20)):
                index.add_look(each, look(n))


def test_an_index_of_other_code_counts_as_empty(tmp_path, monkeypatch):
    index = Index()
    with index.opened(tmp_path):
        index.add_look(record(0), look(0))
        index.add_ours(["val/A/set__0.png"])
    shutil.copy(tmp_path / INDEX, tmp_path / "kept")
    monkeypatch.setattr(module, "stamp", lambda: "later")
    index = Index()
    with index.opened(tmp_path):
        assert index.count("look") == 0
        # Whose files lie in the out root does not depend on the code.
        assert index.is_ours("val/A/set__0.png") and not index.is_ours("val/A/set__1.png")
    monkeypatch.undo()
    shutil.copy(tmp_path / "kept", tmp_path / INDEX)
    index = Index()
    with index.opened(tmp_path):
        assert index.count("look") == 1
