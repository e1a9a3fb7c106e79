"""One clear line and exit code 2 for a wrong flag or input; other faults keep their traceback."""

import errno
import os
import signal
from dataclasses import dataclass, make_dataclass
from pathlib import Path

import pytest
import torch

from usvar import cli, signals
from usvar.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Settings of a made-up script."""

    # Folder of images.
    data_root: Path

    # Learning rate.
    rate: float = 0.5

    # Tokens per side.
    patch_nums: tuple[int, ...] = (1, 2)

    # A weight a scale.
    weights: tuple[float, ...] = ()


def test_flags_become_settings():
    parsed = cli.parse(Settings, "Doc.", ["--data-root", "x", "--patch-nums", "1", "3"])
    assert parsed == Settings(data_root=Path("x"), patch_nums=(1, 3))


def test_of_a_single_value_the_last_one_counts():
    parsed = cli.parse(Settings, "Doc.", ["--data-root", "x", "--rate", "1", "--rate", "2"])
    assert parsed.rate == 2


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--data-root", "x", "--rat", "1"], ["--rat,", "did you mean --rate?"]),
        (["--data-root", "x", "--rate", "fast"], ["--rate", "'fast'"]),
        ([], ["--data-root", "required"]),
        (["--data-rot", "x"], ["--data-root", "--data-rot"]),
        (["--data-root", "x", "--rate", "nan"], ["--rate nan", "finite"]),
        (["--data-root", "x", "--weights", "1", "inf"], ["--weights inf", "finite"]),
        (["--data-root", "x", "--weights", "1", "--weights", "2"], ["--weights was given twice"]),
        (["--data-root", "x", "--patch-nums=1", "--patch_nums", "2"], ["--patch-nums was given twice"]),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(arguments, wanted, capsys):
    """tyro's own answer is a framed box of many lines."""
    with pytest.raises(SystemExit) as stop:
        cli.parse(Settings, "Doc.", arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "│" not in printed
    for text in wanted:
        assert text in printed


def run(main, monkeypatch, arguments=("--data-root", "x")):
    monkeypatch.setattr("sys.argv", ["script.py", *arguments])
    cli.run(main, Settings, "Doc.")


def test_wrong_input_is_one_line_and_exit_code_2(monkeypatch, capsys):
    def main(settings):
        raise InputError("found 3,\n   wanted 4: do this")

    with pytest.raises(SystemExit) as stop:
        run(main, monkeypatch)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: found 3, wanted 4: do this\n"


@pytest.mark.parametrize("name", ["file/sub", "file", "x" * 300])
def test_no_place_for_a_folder_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        run(lambda _: (tmp_path / name).mkdir(), monkeypatch)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "move it or name another place" in printed and printed.count("\n") == 1


def test_a_full_disk_is_one_line_and_exit_code_3(monkeypatch, capsys):
    def main(settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit) as stop:
        run(main, monkeypatch)
    assert stop.value.code == 3
    printed = capsys.readouterr().err
    assert "No space left" in printed and "make room" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_full_memory_is_one_line_and_exit_code_3(error, monkeypatch, capsys):
    def main(settings):
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main, monkeypatch)
    assert stop.value.code == 3
    printed = capsys.readouterr().err
    assert "--batch-size" in printed and printed.count("\n") == 1


@pytest.mark.parametrize("fault", [ValueError, RuntimeError])
def test_a_fault_of_the_code_keeps_its_traceback(fault, monkeypatch):
    def main(settings):
        raise fault("not the user's doing")

    with pytest.raises(fault, match="not the user's doing"):
        run(main, monkeypatch)


def test_a_stop_by_signal_ends_with_128_plus_its_number(monkeypatch, capsys):
    def main(settings):
        raise signals.Stopped(signal.SIGTERM, "step 3 is saved")

    with pytest.raises(SystemExit) as stop:
        run(main, monkeypatch)
    assert stop.value.code == 143
    assert "step 3 is saved" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out_dir", "out_root"])
def test_an_output_folder_that_is_a_file_is_refused_before_the_script_starts(name, tmp_path, capsys):
    settings = make_dataclass("WithOutput", [(name, Path, Path("runs"))], frozen=True)
    flag = f"--{name.replace('_', '-')}"
    (tmp_path / "file").write_text("kept")
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as stop:
            cli.parse(settings, None, [flag, str(wrong)])
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1
        assert f"{flag} {wrong} was given, but {tmp_path / 'file'} is a file" in said
    assert cli.parse(settings, None, [flag, str(tmp_path / "new" / "folder")])
