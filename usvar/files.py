"""Files that are there whole or not at all, in folders that one run writes at a time."""

import errno
import fcntl
import filecmp
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.lib.format import open_memmap

from usvar.errors import InputError, RunError

TEMPORARY_PREFIX = ".tmp-"
# What Windows and macOS leave among pictures, in lower case.
SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
# Held by the run that writes to a folder, or by each in turn.
LOCK_NAME = ".lock"
# No room on the device, over the user's quota, over the largest size of a file that is allowed.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_half_written(name: str) -> bool:
    """Whether a killed run left this: the prefix, and the number of its process."""
    return re.match(rf"{re.escape(TEMPORARY_PREFIX)}\d+-", name) is not None


def is_hidden(name: str) -> bool:
    """Whether what has this name is no part of the data: a file manager or a killed run left it."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it takes that name, on failure it goes.

    The suffix is kept, because image writers choose their format by it. Data and rename reach the disk
    before the block ends, so that a crash of the machine leaves the old file or the new one.

    Args:
        path: where the file is wanted; its folder is made if missing.

    Raises:
        RunError: when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with full_disk_named(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` because the disk is full into one clear line.

    Raises:
        RunError: in place of the OSError. torch.save raises a RuntimeError on top of it, and numpy an OSError
            without a number.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        is_full = isinstance(cause, OSError) and (
            cause.errno in NO_ROOM or re.search(r"requested and \d+ written", str(cause))
        )
        if not is_full or isinstance(error, RunError):
            raise
        raise RunError(
            f"no room to write {path} ({cause.strerror or cause}): what was saved before is whole; free some "
            "room and give the same command again"
        ) from error


def new_memmap(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    """A new .npy file as a writable memory map, its room on the disk taken at once.

    In a file with holes, the first page that the disk has no room for would kill the process (SIGBUS).

    Raises:
        RunError: when the disk has no room for it.
    """
    with full_disk_named(path):
        array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def lock_folder(path: Path, flag: str = "--out-dir") -> TextIO:
    """Make a folder and keep other runs out of it until the returned file is closed or the process ends.

    The kernel drops the lock when its process dies, so that a dead run never blocks.

    Args:
        path: the folder.
        flag: the setting that names it, for the message.

    Raises:
        InputError: when a run that is alive writes to the folder, or the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / LOCK_NAME, "a+", encoding="ascii")  # noqa: SIM115 - held until the process ends
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another {flag}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        process = lock.read(20).strip() or "unknown"
        lock.close()
        raise InputError(
            f"another run writes to {path} (process {process}): wait for it or choose another {flag}"
        ) from error
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is inside such a block for the folder, and keep others out meanwhile.

    For a short piece of work that several runs share. The lock is on a file of its own, opened for writing,
    because network file systems lock nothing that is open for reading only.
    """
    with open(folder / LOCK_NAME, "a", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what a killed run left half-written in `folder` (not in its subfolders)."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if is_half_written(path.name):
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_if_new(path: Path, pieces: Iterable[str]) -> bool:
    """Write UTF-8 text piece by piece, atomically; a file that holds it already is left alone.

    Returns:
        Whether the file was written.
    """
    draft = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-draft-{path.name}")
    try:
        with full_disk_named(path), open(draft, "w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)
        if path.is_file() and filecmp.cmp(draft, path, shallow=False):
            return False
        with atomic_path(path) as temporary:
            os.replace(draft, temporary)
        return True
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinity are refused, since JSON has no such numbers."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_record(path: Path, *names: str) -> dict[str, Any] | None:
    """Some entries of the JSON that an earlier run left with `write_json`; None when there is no such file.

    Raises:
        InputError: when it cannot be read or lacks an entry.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: content[name] for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no record of this script ({error}): choose another --out-dir") from error
