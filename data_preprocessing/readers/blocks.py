"""NIfTI and MetaImage: a short header before a block of plain or deflated numbers.

They are read here by hand, in the axis order of SimpleITK (z, y, x): SimpleITK itself fills the missing part
of a truncated NIfTI file with zeros, opens `a.nii` when asked for `a.nii.gz`, and follows a header's
`ElementDataFile` to any file.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_preprocessing.readers.source import (
    MOST_PACKED,
    Source,
    Unreadable,
    check_block,
    check_number,
    volume_axis,
)

NIFTI_SUFFIXES = (".nii", ".nii.gz")
META_SUFFIXES = (".mha", ".mhd")
# What reading raises on broken files, found by feeding it truncated and scrambled ones.
BLOCK_ERRORS = (OSError, EOFError, ValueError, KeyError, OverflowError, zlib.error)


class _Inflated:
    """Reads a deflated file (zlib or gzip, one member or several) forwards, checksums included."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.inflater = zlib.decompressobj(47)
        self.packed = b""

    def read(self, size: int) -> bytes:
        """The next `size` bytes.

        Raises:
            EOFError: when the file ends before.
        """
        parts = []
        while size:
            if self.inflater.eof:
                self.packed = self.inflater.unused_data
                self.inflater = zlib.decompressobj(47)
            self.packed = self.packed or self.file.read(1 << 18)
            if not self.packed:
                raise EOFError("the file ends before its last frame")
            part = self.inflater.decompress(self.packed, size)
            self.packed = self.inflater.unconsumed_tail
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Read past `size` bytes with little memory."""
        while size:
            size -= len(self.read(min(size, 1 << 20)))

    def check_end(self) -> None:
        """Read up to the checksum, which follows the last byte.

        Raises:
            EOFError: when the file ends before.
            zlib.error: when the checksum is wrong.
        """
        while not self.inflater.eof:
            self.packed = self.packed or self.file.read(1 << 18)
            if not self.packed:
                raise EOFError("the file ends before its checksum")
            if self.inflater.decompress(self.packed, 1):
                return  # more than the header claims: no concern of its frames
            self.packed = self.inflater.unconsumed_tail


def _block_frames(
    path: Path,
    offset: int,
    skip: int,
    packed: bool,
    dtype: np.dtype,
    shape: Sequence[int],
    channels: int,
    axis: int,
    slope: float = 1.0,
    intercept: float = 0.0,
) -> Source:
    """Frames of a block of numbers behind a header.

    Args:
        path: the file with the block.
        offset: where it starts in the file.
        skip: bytes of it before the first number, in a deflated block.
        packed: whether it is deflated.
        dtype: of one number, with its byte order.
        shape: slowest axis first, without channels.
        channels: numbers a pixel.
        axis: the slice axis.
        slope: value = number * slope + intercept.
        intercept: see `slope`.
    """
    shape_ZYX, axis = volume_axis(shape, axis)
    if channels not in (1, 3, 4):
        raise Unreadable(f"{channels} numbers a pixel, wanted 1, 3 or 4")
    count = shape_ZYX[axis]
    slice_bytes = shape_ZYX[1] * shape_ZYX[2] * channels * dtype.itemsize
    needed = shape_ZYX[0] * slice_bytes
    held = path.stat().st_size - offset
    check_block(shape_ZYX, axis, needed, held * MOST_PACKED if packed else held)
    # memmap wants at least one axis for the channels of a pixel, which then go or stay in `finish`.
    shape_ZYXC = (*shape_ZYX, channels)

    def finish(frame_HWC: np.ndarray) -> np.ndarray:
        frame = frame_HWC[..., 0] if channels == 1 else frame_HWC[..., :3]
        frame = frame.astype(dtype.newbyteorder("="))
        return frame if (slope, intercept) == (1.0, 0.0) else frame * slope + intercept

    def read_plain(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            check_number(number, count)
            # Mapped anew for each frame, so that the pages of those before do not stay in memory.
            block_ZYXC = np.memmap(path, dtype, "r", offset, shape_ZYXC)
            yield finish(block_ZYXC[(slice(None),) * axis + (number,)])

    def read_packed(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        check_number(numbers[-1], count)
        with open(path, "rb") as file:
            file.seek(offset)
            stream = _Inflated(file)
            stream.skip(skip)
            done = 0
            parts = []
            for z in numbers if axis == 0 else range(shape_ZYX[0]):
                stream.skip((z - done) * slice_bytes)
                slice_YXC = np.frombuffer(stream.read(slice_bytes), dtype).reshape(shape_ZYXC[1:])
                done = z + 1
                if axis == 0:
                    yield finish(slice_YXC)
                else:
                    parts.append(slice_YXC.take(numbers, axis - 1))
            # A fault before the last frame may show only in the checksum.
            stream.skip((shape_ZYX[0] - done) * slice_bytes)
            stream.check_end()
            if axis != 0:
                # (Z, n, X, C) or (Z, Y, n, C): only what is asked for was kept.
                block = np.stack(parts)
                for index in range(len(numbers)):
                    yield finish(block.take(index, axis))

    return Source(lambda: count, read_packed if packed else read_plain)


# NIfTI-1 and -2: code -> number type and channels (nifti1.h, "datatype").
NIFTI_TYPES = {
    2: ("u1", 1),
    4: ("i2", 1),
    8: ("i4", 1),
    16: ("f4", 1),
    64: ("f8", 1),
    128: ("u1", 3),
    256: ("i1", 1),
    512: ("u2", 1),
    768: ("u4", 1),
    1024: ("i8", 1),
    1280: ("u8", 1),
    2304: ("u1", 4),
}


@contextmanager
def open_nifti(path: Path, axis: int, array: str) -> Iterator[Source]:
    """Open a single NIfTI-1 or -2 file, plain or gzipped; `array` means nothing here."""
    with open(path, "rb") as file:
        # Told by the first bytes: a plain file under a .gz name, or the other way round, does occur.
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        header = _Inflated(file).read(348) if packed else file.read(348)
    if len(header) < 348:
        raise Unreadable(f"truncated: {len(header)} bytes, a NIfTI header has 348")
    order = next((order for order in "<>" if struct.unpack(order + "i", header[:4])[0] in (348, 540)), None)
    if order is None:
        raise Unreadable("no NIfTI file: its header does not say so")
    if struct.unpack(order + "i", header[:4])[0] == 348:
        single = header[344:348] == b"n+1\0"
        axes, *dims = struct.unpack(order + "8h", header[40:56])
        code = struct.unpack(order + "h", header[70:72])[0]
        offset, slope, intercept = struct.unpack(order + "3f", header[108:120])
    else:
        single = header[4:8] == b"n+2\0"
        axes, *dims = struct.unpack(order + "8q", header[16:80])
        code = struct.unpack(order + "h", header[12:14])[0]
        offset, slope, intercept = struct.unpack(order + "q2d", header[168:192])
    if not single:
        raise Unreadable("no single NIfTI file (pairs of .hdr and .img are not read)")
    if not 2 <= axes <= 7:
        raise Unreadable(f"a header of {axes} axes, NIfTI has 2 to 7")
    if code not in NIFTI_TYPES:
        raise Unreadable(f"NIfTI data type {code}, wanted whole numbers, floats or RGB")
    kind, channels = NIFTI_TYPES[code]
    if not np.isfinite([offset, slope, intercept]).all() or slope == 0:
        # The standard: a slope of 0 means that there is no scaling.
        slope, intercept = 1.0, 0.0
    start = max(int(offset), 352)
    yield _block_frames(
        path,
        0 if packed else start,
        start if packed else 0,
        packed,
        np.dtype(order + kind),
        dims[:axes][::-1],
        channels,
        axis,
        slope,
        intercept,
    )


META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@contextmanager
def open_meta(path: Path, axis: int, array: str) -> Iterator[Source]:
    """Open an MHA file, or an MHD file with its numbers beside it; `array` means nothing here."""
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        # A tracked sweep has some lines a frame, so the header may be long; a binary file has no line ends.
        while "elementdatafile" not in fields:
            line = file.readline(1 << 16)
            key, sign, value = line.decode("latin-1").partition("=")
            if not sign or file.tell() > 1 << 26:
                raise Unreadable("no MetaImage file: wanted lines `key = value` up to ElementDataFile")
            fields[key.strip().lower()] = value.strip()
        offset = file.tell()

    missing = [key for key in ("NDims", "DimSize", "ElementType") if key.lower() not in fields]
    if missing:
        raise Unreadable(f"no {' or '.join(missing)} in its header")

    def flag(*keys: str) -> bool:
        return any(fields.get(key, "").lower() in ("true", "1", "yes") for key in keys)

    shape = [int(size) for size in fields["dimsize"].split()][::-1]
    if len(shape) != int(fields["ndims"]):
        raise Unreadable(f"NDims is {fields['ndims'][:20]}, DimSize has {len(shape)} numbers")
    kind = fields["elementtype"].upper().removesuffix("_ARRAY")
    if kind not in META_TYPES:
        raise Unreadable(f"ElementType {kind[:30]!r}, wanted whole numbers or floats")
    if fields.get("binarydata", "true").lower() not in ("true", "1"):
        raise Unreadable("numbers written as text, wanted binary data")
    order = ">" if flag("elementbyteordermsb", "binarydatabyteordermsb") else "<"
    packed = flag("compresseddata")
    block = path
    if fields["elementdatafile"].lower() != "local":
        block = _beside(path, fields["elementdatafile"])
        offset = int(fields.get("headersize", 0))
        if offset == -1:
            bytes_needed = np.dtype(META_TYPES[kind]).itemsize * int(fields.get("elementnumberofchannels", 1))
            for size in shape:
                bytes_needed *= size
            offset = block.stat().st_size - bytes_needed
        if offset < 0:
            raise Unreadable(f"truncated: {block.name} holds less than its header claims")
    yield _block_frames(
        block,
        offset,
        0,
        packed,
        np.dtype(order + META_TYPES[kind]),
        shape,
        int(fields.get("elementnumberofchannels", 1)),
        axis,
    )


def _beside(path: Path, name: str) -> Path:
    """The file that a header names; only one in its own folder is opened."""
    block = (path.parent / name).resolve()
    if not block.is_relative_to(path.parent.resolve()):
        raise Unreadable("its ElementDataFile leads out of its folder")
    if not block.is_file():
        raise Unreadable(f"its ElementDataFile {name[:60]!r} does not lie beside it")
    return block
