"""Files are there whole or not at all."""

import pytest

from usvar import files


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path):
    target = tmp_path / "a.txt"
    files.write_text(target, "old")
    with pytest.raises(RuntimeError), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_makes_its_folder_and_keeps_the_suffix(tmp_path):
    with files.atomic_path(tmp_path / "new" / "a.png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"x")
    assert (tmp_path / "new" / "a.png").read_bytes() == b"x"


def test_stale_temporaries_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / f"{files.TEMPORARY_PREFIX}1-a.pth").write_bytes(b"half")
    # No run's, for a run's have its number.
    (tmp_path / f"{files.TEMPORARY_PREFIX}mine").write_bytes(b"whole")
    (tmp_path / "a.pth").write_bytes(b"whole")
    files.remove_stale_temporaries(tmp_path)
    files.remove_stale_temporaries(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{files.TEMPORARY_PREFIX}mine", "a.pth"]


def test_json_refuses_numbers_that_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_the_same_is_left_alone(tmp_path):
    target = tmp_path / "a.csv"
    assert files.write_if_new(target, ["one\n", "twö\n"])
    before = target.stat().st_mtime_ns, target.stat().st_ino
    assert not files.write_if_new(target, iter(["one\ntwö", "\n"]))
    assert (target.stat().st_mtime_ns, target.stat().st_ino) == before
    assert files.write_if_new(target, ["one\n"])
    assert target.read_text() == "one\n" and [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_text_that_fails_half_way_leaves_the_old_one(tmp_path):
    def pieces():
        yield "new"
        raise RuntimeError

    files.write_text(tmp_path / "a.csv", "old")
    with pytest.raises(RuntimeError):
        files.write_if_new(tmp_path / "a.csv", pieces())
    assert (tmp_path / "a.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
