"""What runs in the worker processes: choose frames, look at pictures, write them, draw a contact sheet."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_preprocessing.catalogue import read_outline
from data_preprocessing.crop import Frame, cut, find_frame, letterbox
from data_preprocessing.discover import Record
from data_preprocessing.flags import find_flags
from data_preprocessing.near_copies import Signature, signature
from data_preprocessing.readers import (
    Unreadable,
    check_content,
    count_frames,
    even_frames,
    labelled_frames,
    read_frames,
    to_grey,
    turned,
)
from data_preprocessing.report import contact_sheet, pair_tile
from usvar.errors import InputError
from usvar.files import TEMPORARY_PREFIX, full_disk_named


@dataclass(frozen=True, slots=True)
class Look:
    """What one picture turned out to be; stored between runs, so that no picture is looked at twice."""

    # Why the picture cannot be used; then all else is empty.
    reason: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    signature: Signature | None = None
    frame: Frame | None = None
    # What was detected in it, see flags.FLAGS.
    flags: tuple[str, ...] = ()

    def as_json(self) -> dict:
        """Plain values for a JSON line."""
        # dataclasses.asdict copies deeply, which takes most of the time of saving an index.
        return {
            name: _shallow(value) if is_dataclass(value) else value for name, value in _shallow(self).items()
        }

    @classmethod
    def from_json(cls, values: dict) -> "Look":
        """The inverse of `as_json`."""
        frame, flags, seen = (values.pop(name) for name in ("frame", "flags", "signature"))
        if frame:
            frame = Frame(frame["kind"], tuple(frame["box"]), tuple(map(tuple, frame["polygon"])))
        return cls(frame=frame, flags=tuple(flags), signature=Signature(**seen) if seen else None, **values)


def _shallow(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def frames_of(raw_root: Path, record: Record, wanted: int) -> list[int] | str:
    """Numbers of at most `wanted` frames to take from a file, evenly spaced, or why there are none."""
    try:
        among: Sequence[int] = record.frames
        if record.take == "labelled":
            labels = raw_root / record.labels
            if not labels.is_file():
                return f"its label file {labels.name} is missing"
            among = labelled_frames(labels, record.axis)
            if not among:
                return "no frame with a label"
        if not among:
            among = range(count_frames(raw_root / record.source, record.axis))
    except Unreadable as error:
        return str(error)
    except OSError as error:
        return f"cannot be opened: {error.strerror}"
    return [among[i] for i in even_frames(len(among), wanted)]


def read_pictures(raw_root: Path, records: Sequence[Record]) -> list[np.ndarray]:
    """The pictures of records of one file, (H, W) or (H, W, 3) uint8, probe at the top.

    Raises:
        Unreadable, OSError: when the file cannot be read.
    """
    first = records[0]
    numbers = None if first.take == "still" else [r.number for r in records]
    frames = read_frames(raw_root / first.source, numbers, first.axis, first.array)
    return [turned(frame, first.turn) for frame in frames]


def look(raw_root: Path, records: Sequence[Record]) -> list[Look]:
    """Read the pictures of one file, find their scan areas, flags and hashes."""
    try:
        pictures = read_pictures(raw_root, records)
    except Unreadable as error:
        return [Look(reason=str(error))] * len(records)
    except OSError as error:
        return [Look(reason=f"cannot be opened: {error.strerror}")] * len(records)
    looks = []
    for record, picture in zip(records, pictures, strict=True):
        try:
            looks.append(_look(raw_root, record, picture))
        except Exception as error:
            # A fault of the code; the traceback alone would not say which of all the pictures it needs.
            error.add_note(f"the picture was {record.id}")
            raise
    return looks


def _look(raw_root: Path, record: Record, picture: np.ndarray) -> Look:
    grey_HW = to_grey(picture)
    try:
        check_content(grey_HW)
    except Unreadable as error:
        return Look(reason=str(error))
    outline = read_outline(raw_root / record.outline) if record.outline else None
    frame = find_frame(grey_HW, record.frame, outline)
    pixels = hashlib.sha256(repr(grey_HW.shape).encode())
    pixels.update(np.ascontiguousarray(grey_HW))
    return Look(
        width=grey_HW.shape[1],
        height=grey_HW.shape[0],
        sha256=pixels.hexdigest(),
        signature=signature(cut(grey_HW, frame)),
        frame=frame,
        flags=find_flags(picture, frame),
    )


def write(raw_root: Path, jobs: Sequence[tuple[Record, Frame, Path]], size: int) -> list[tuple[str, int]]:
    """Crop the pictures of one file, scale them and write them as grey stored as RGB.

    Args:
        jobs: each record of the file with its frame and the output's path.

    Returns:
        Of each, hex SHA-256 of the output's RGB pixels, and the length of its file in bytes.

    Raises:
        InputError: when the file was changed or removed since `look`.
    """
    records = [record for record, _, _ in jobs]
    try:
        greys = [to_grey(picture) for picture in read_pictures(raw_root, records)]
    except (OSError, Unreadable) as error:
        raise InputError(
            f"{records[0].source} changed while it was prepared ({error}): leave the raw data alone, "
            "run again"
        ) from None
    return [
        _write_png(letterbox(cut(grey_HW, frame), size), target)
        for grey_HW, (_, frame, target) in zip(greys, jobs, strict=True)
    ]


def _write_png(grey_HW: np.ndarray, target: Path) -> tuple[str, int]:
    rgb = Image.fromarray(grey_HW).convert("RGB")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole, but not forced to the disk one by one, which can cost more than all else: after a
    # crash of the machine the index notices a file whose length is wrong.
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}")
    try:
        with full_disk_named(target):
            # Level 3 packs speckle as small as the default 6 does, in less than half the time.
            rgb.save(temporary, compress_level=3)
        length = temporary.stat().st_size
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return hashlib.sha256(rgb.tobytes()).hexdigest(), length


def draw_sheet(raw_root: Path, rows: list[tuple[Record, Frame, Path]], target: Path, title: str) -> None:
    """Draw a class's contact sheet from raw pictures, their frames and the prepared images."""
    tiles = []
    for record, frame, prepared in rows:
        grey_HW = to_grey(read_pictures(raw_root, [record])[0])
        with Image.open(prepared) as picture:
            result_HW = np.asarray(picture.convert("L"))
        tiles.append(pair_tile(grey_HW, frame, result_HW, f"{frame.kind} | {record.id[-50:]}"))
    contact_sheet(target, tiles, title)
