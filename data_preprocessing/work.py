"""What runs in the worker processes: look at one picture, write one picture, draw one contact sheet."""

import hashlib
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_preprocessing.catalogue import read_outline
from data_preprocessing.copies import Signature, signature
from data_preprocessing.crop import Frame, cut, find_frame, letterbox
from data_preprocessing.discover import Record
from data_preprocessing.readers import Unreadable, read_grey
from data_preprocessing.report import contact_sheet, pair_tile
from usvar.errors import InputError
from usvar.files import TEMPORARY_PREFIX


@dataclass(frozen=True)
class Look:
    """What one picture turned out to be; stored between runs, so that no picture is looked at twice."""

    # Why the picture cannot be used; then all else is empty.
    reason: str = ""
    width: int = 0
    height: int = 0
    sha256: str = ""
    signature: Signature | None = None
    frame: Frame | None = None

    def as_json(self) -> dict:
        """Plain values for a JSON line."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict) -> "Look":
        """The inverse of `as_json`."""
        seen, frame = values.pop("signature"), values.pop("frame")
        if frame:
            frame = Frame(frame["kind"], tuple(frame["box"]), tuple(map(tuple, frame["polygon"])))
        return cls(signature=Signature(**seen) if seen else None, frame=frame, **values)


def look(raw_root: Path, record: Record) -> Look:
    """Read a picture, find its scan area and its hashes."""
    try:
        grey_HW = read_grey(raw_root / record.source, record.turn)
    except Unreadable as error:
        return Look(reason=str(error))
    except OSError as error:
        return Look(reason=f"cannot be opened: {error.strerror}")
    outline = read_outline(Path(record.outline)) if record.outline else None
    frame = find_frame(grey_HW, record.frame, outline)
    pixels = hashlib.sha256(repr(grey_HW.shape).encode())
    pixels.update(np.ascontiguousarray(grey_HW))
    return Look(
        width=grey_HW.shape[1],
        height=grey_HW.shape[0],
        sha256=pixels.hexdigest(),
        signature=signature(cut(grey_HW, frame)),
        frame=frame,
    )


def write(raw_root: Path, record: Record, frame: Frame, size: int, target: Path) -> tuple[str, int]:
    """Crop one picture, scale it and write it as grey stored as RGB.

    Returns:
        Hex SHA-256 of the output's RGB pixels, and the length of its file in bytes.

    Raises:
        InputError: when the picture was changed or removed since `look`.
    """
    try:
        grey_HW = letterbox(cut(read_grey(raw_root / record.source, record.turn), frame), size)
    except (OSError, Unreadable) as error:
        raise InputError(
            f"{record.source} changed while it was prepared ({error}): leave the raw data alone, run again"
        ) from None
    rgb = Image.fromarray(grey_HW).convert("RGB")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when whole, but not forced to the disk one by one, which can cost more than all else: after a
    # crash of the machine the index notices a file whose length is wrong.
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{target.name}")
    try:
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
        grey_HW = read_grey(raw_root / record.source, record.turn)
        with Image.open(prepared) as picture:
            result_HW = np.asarray(picture.convert("L"))
        tiles.append(pair_tile(grey_HW, frame, result_HW, f"{frame.kind} | {record.source[-50:]}"))
    contact_sheet(target, tiles, title)
