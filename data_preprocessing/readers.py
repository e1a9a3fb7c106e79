"""Any picture, volume or video file to uint8 frames, or one line that says why not.

A training loader must never meet a bad file, so everything doubtful is refused here, and nothing is replaced.
Frames are read one by one: a volume or a video is never whole in memory, whatever its size.

NIfTI and MetaImage are a short header before plain or deflated numbers, and are read here by hand, in the
axis order of SimpleITK (z, y, x): SimpleITK itself fills the missing part of a truncated NIfTI file with
zeros, opens `a.nii` when asked for `a.nii.gz`, and follows a header's `ElementDataFile` to any file.
"""

import functools
import os
import stat
import struct
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Pillow would also start an external program for some formats; these it decodes itself.
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
META_SUFFIXES = (".mha", ".mhd")
NPY_SUFFIXES = (".npy",)
HDF5_SUFFIXES = (".h5", ".hdf5")
DICOM_SUFFIXES = (".dcm",)
VIDEO_SUFFIXES = (".avi", ".mp4", ".mpeg", ".mpg", ".mov", ".webm", ".mkv")
# Other containers (playlists above all) name further files or addresses, which FFmpeg would open.
VIDEO_FORMATS = "avi,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegvideo,mpegts,matroska,webm"
# Pixels a side: below, nothing can be seen; above, it is no ultrasound screen but may fill the memory.
SMALLEST_SIDE = 16
LARGEST_SIDE = 10_000
LARGEST_AREA = 50_000_000
# Deflate packs at most 1032 to 1: a header that claims more than the file can hold is refused unread.
MOST_PACKED = 1032
# Bytes of one piece of an HDF5 file, which is unpacked whole.
LARGEST_PIECE = 1 << 28


class Unreadable(Exception):
    """The picture cannot be used; the message is the reason for rejected.csv.

    A reason may quote a file's own words, so it is made one printable line here.
    """

    def __init__(self, reason: str):
        line = " ".join(reason.split())[:300]
        super().__init__("".join(mark if mark.isprintable() else "?" for mark in line))


@dataclass(frozen=True)
class _Source:
    """An opened file."""

    # Number of frames.
    count: Callable[[], int]
    # Yields the frames with these ascending numbers, (H, W) or (H, W, 3) of any number type.
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]


def is_picture_name(name: str) -> bool:
    """Whether a file's suffix is one that can be read."""
    return name.lower().endswith(tuple(suffix for suffixes, _, _ in READERS for suffix in suffixes))


def may_have_frames(name: str) -> bool:
    """Whether a file with this suffix may be a volume or a video."""
    stills = set(PILLOW_SUFFIXES) - {".gif"}
    return is_picture_name(name) and not name.lower().endswith(tuple(stills))


def count_frames(path: Path, axis: int = 0, array: str = "") -> int:
    """Frames of a file, without decoding them; 1 for a still picture.

    Args:
        path: a regular file.
        axis: the slice axis of a volume in the order (z, y, x), see `read_frames`.
        array: name of the array in an HDF5 file; "" when it holds only one.

    Raises:
        Unreadable: with the reason.
    """
    with _open(path, axis, array) as source:
        return source.count()


def read_frames(
    path: Path, numbers: Sequence[int] | None, axis: int = 0, array: str = ""
) -> list[np.ndarray]:
    """Read some frames of a picture, volume or video in one pass over the file.

    Alpha is dropped, EXIF and video rotation are applied, and a DICOM file is cropped to its ultrasound
    region. Values beyond 8 bits are scaled by the range of the whole file (see `to_8_bit`), so that the
    frames of a volume keep their brightness relative to each other.

    Args:
        path: a regular file.
        numbers: frames wanted, from 0, in any order. None wants a still picture, and then a file of several
            frames is refused, because which one is meant cannot be known here.
        axis: the slice axis of a volume in SimpleITK's order (z, y, x); -1 is x. Of a 4D file with axis
            -1, the first index of the first axis is taken (a label file with one structure an index).
        array: name of the array in an HDF5 file; "" when it holds only one.

    Returns:
        One (H, W) or (H, W, 3) uint8 array for each of `numbers`.

    Raises:
        Unreadable: with the reason.
    """
    with _open(path, axis, array) as source:
        if numbers is None and (count := source.count()) != 1:
            raise Unreadable(f"{count} frames, wanted a still picture: export the frames you want")
        return _read(source, [0] if numbers is None else numbers, (path, axis, array))


def labelled_frames(path: Path, axis: int = 0, array: str = "") -> list[int]:
    """Numbers of the frames of a label volume in which any value is above 0, read frame by frame.

    Args:
        path: a label file beside the pictures.
        axis: see `read_frames`; with -1 and a 4D file, the first structure counts.
        array: name of the array in an HDF5 file; "" when it holds only one.

    Raises:
        Unreadable: with the reason.
    """
    with _open(path, axis, array) as source:
        return [
            number for number, frame in enumerate(source.read(range(source.count()))) if (frame > 0).any()
        ]


def even_frames(count: int, wanted: int) -> list[int]:
    """Evenly spaced frame numbers: the middles of `wanted` equal parts; all frames when there are no more."""
    return (
        sorted({(2 * part + 1) * count // (2 * wanted) for part in range(wanted)})
        if count > wanted
        else [*range(count)]
    )


def read_grey(
    path: Path, turn: str = "", number: int | None = None, axis: int = 0, array: str = ""
) -> np.ndarray:
    """Read one picture or one frame as grey.

    Args:
        path: a regular file.
        turn: what brings the probe to the top, see `turned`.
        number: the frame; None for a still picture, and then a file of several frames is refused, because
            which one is meant cannot be known here.
        axis: see `read_frames`.
        array: see `read_frames`.

    Returns:
        (H, W) uint8.

    Raises:
        Unreadable: with the reason.
    """
    numbers = None if number is None else [number]
    grey_HW = turned(to_grey(read_frames(path, numbers, axis, array)[0]), turn)
    check_content(grey_HW)
    return grey_HW


def check_content(grey_HW: np.ndarray) -> None:
    """Refuse a picture of one grey.

    Raises:
        Unreadable: when there is nothing in it.
    """
    if int(grey_HW.max()) - int(grey_HW.min()) <= 2:
        raise Unreadable(f"nothing in it: all pixels are {grey_HW.flat[0]}")


def to_8_bit(array: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Pixel values of any type to uint8.

    Values in 0 to 255 are rounded, fractions in 0 to 1 multiplied by 255, truth values become 0 and 255; any
    other range is stretched from its smallest to its largest value.

    Args:
        array: any shape and number type.
        limits: smallest and largest value of all that belongs together; None for those of `array`.

    Raises:
        Unreadable: when a value is not finite.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    low, high = limits or _limits([array])
    values = array.astype(np.float64)
    if low < 0 or high > 255:
        values = (values - low) * (255 / (high - low) if high > low else 0)
    elif 0 < high <= 1 and array.dtype.kind == "f":
        values *= 255
    return values.round().astype(np.uint8)


def to_grey(frame: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 to (H, W) uint8; colour becomes luma (ITU-R BT.601)."""
    return frame if frame.ndim == 2 else np.asarray(Image.fromarray(frame).convert("L"))


def turned(frame: np.ndarray, turn: str) -> np.ndarray:
    """Turn (H, W) or (H, W, 3) so that the probe is at the top.

    Args:
        frame: any number type.
        turn: "", "transpose", "rotate 180" or "flip vertical".

    Raises:
        ValueError: on another word.
    """
    turns = {
        "": lambda: frame,
        "transpose": lambda: frame.swapaxes(0, 1),
        "rotate 180": lambda: frame[::-1, ::-1],
        "flip vertical": lambda: frame[::-1],
    }
    if turn not in turns:
        raise ValueError(f"turn {turn!r}, wanted one of {', '.join(map(repr, turns))}")
    return np.ascontiguousarray(turns[turn]())


@contextmanager
def _open(path: Path, axis: int, array: str) -> Iterator[_Source]:
    """Open a file by its suffix, and turn what its library raises into one line."""
    name = path.name.lower()
    opener, errors = next(
        ((opener, errors) for suffixes, opener, errors in READERS if name.endswith(suffixes)), (None, ())
    )
    if opener is None:
        raise Unreadable("not a picture, volume or video by its suffix")
    try:
        information = path.stat()
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(information.st_mode):
        raise Unreadable("no regular file")
    if information.st_size == 0:
        raise Unreadable("empty file (0 bytes)")
    try:
        with opener(path, axis, array) as source:
            yield source
    except PermissionError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from None
    except UnidentifiedImageError as error:
        raise Unreadable(f"not a picture: {_short(error)}") from None
    except errors as error:
        raise Unreadable(f"damaged or truncated: {_short(error)}") from None


def _read(source: _Source, numbers: Sequence[int], origin: tuple[Path, int, str]) -> list[np.ndarray]:
    """`read_frames` for an open file, whose path, axis and data set are `origin`."""
    wanted = sorted(set(numbers))
    if wanted and wanted[0] < 0:
        raise Unreadable(f"no frame {wanted[0]}: frames count from 0")
    frames = {}
    for number, frame in zip(wanted, source.read(wanted), strict=True):
        _check_size(frame.shape[1], frame.shape[0])
        frames[number] = frame
    deep = [frame for frame in frames.values() if frame.dtype not in (np.uint8, np.bool_)]
    if not deep:
        limits = None
    elif len(frames) == source.count():
        limits = _limits(deep)
    else:
        path, axis, array = origin
        information = path.stat()
        limits = _file_limits(path, information.st_mtime_ns, information.st_size, axis, array)
    return [to_8_bit(frames[number], limits) for number in numbers]


@functools.lru_cache(maxsize=64)
def _file_limits(path: Path, modified_ns: int, size: int, axis: int, array: str) -> tuple[float, float]:
    """Smallest and largest value of all frames; remembered, because frames are often read one at a time."""
    with _open(path, axis, array) as source:
        return _limits(source.read(range(source.count())))


def _limits(arrays: Sequence[np.ndarray] | Iterator[np.ndarray]) -> tuple[float, float]:
    extremes = np.array([(array.min(), array.max()) for array in arrays], np.float64)
    low, high = float(extremes[:, 0].min()), float(extremes[:, 1].max())
    if not np.isfinite([low, high, high - low]).all():
        raise Unreadable("pixels that are not finite numbers")
    return low, high


def _check_size(width: int, height: int) -> None:
    if min(width, height) < SMALLEST_SIDE:
        raise Unreadable(f"{width} x {height} pixels, wanted at least {SMALLEST_SIDE} a side")
    if max(width, height) > LARGEST_SIDE or width * height > LARGEST_AREA:
        raise Unreadable(
            f"{width} x {height} pixels, wanted at most {LARGEST_SIDE} a side and {LARGEST_AREA} in all"
        )


def _short(error: Exception) -> str:
    """The last line of an exception's text, without the folder that the file lies in."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).split("'/")[0].strip()[:120]


@contextmanager
def _no_warnings() -> Iterator[None]:
    # Sizes are checked before decoding, and pydicom's warnings quote values, which may be a patient's name.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check_number(number: int, count: int) -> None:
    if number >= count:
        raise Unreadable(f"no frame {number}: the file has {count}")


# Pictures


@contextmanager
def _open_pillow(path: Path, axis: int, array: str) -> Iterator[_Source]:
    with _no_warnings(), Image.open(path, formats=PILLOW_FORMATS) as picture:
        _check_size(*picture.size)
        if picture.format == "GIF" and not _ends_with(path, b";"):
            # Else its first frames would pass for all of them.
            raise Unreadable("truncated: no end mark")
        # A phone's JPEG may carry a preview as a second frame.
        count = 1 if picture.format in ("JPEG", "MPO") else getattr(picture, "n_frames", 1)

        def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
            for number in numbers:
                _check_number(number, count)
                if count > 1:
                    picture.seek(number)
                    _check_size(*picture.size)
                picture.load()
                turns = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
                upright = ImageOps.exif_transpose(picture) if turns else picture
                as_it_is = upright.mode in ("L", "1", "RGB") or upright.mode.startswith(("I", "F"))
                yield np.asarray(upright if as_it_is else upright.convert("RGB"))

        yield _Source(lambda: count, read)


def _ends_with(path: Path, mark: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 512, 0))
        return file.read().rstrip(b"\0\r\n ").endswith(mark)


# Volumes: numbers in a block


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


def _volume_axis(shape: Sequence[int], axis: int) -> tuple[tuple[int, int, int], int]:
    """Three axes and the slice axis among them, for an array of 2 to 4 axes (channels not counted)."""
    extra = list(shape)
    while len(extra) > 3 and 1 in extra:
        extra.remove(1)
    if len(extra) == 4 and axis == -1:
        # One structure an index: the first.
        extra = extra[1:]
    if len(extra) == 2:
        return (1, *extra), 0
    if len(extra) != 3:
        raise Unreadable(f"{len(shape)} axes ({' x '.join(map(str, shape))[:60]}), wanted 2 or 3")
    if not -3 <= axis <= 2:
        raise ValueError(f"axis {axis}, wanted -3 to 2")
    return tuple(extra), axis % 3


def _check_block(shape_ZYX: tuple[int, int, int], axis: int, needed: int, held: int) -> None:
    """Refuse impossible sizes before any memory is taken."""
    if min(shape_ZYX) < 1:
        raise Unreadable(f"no pixels: {' x '.join(map(str, shape_ZYX))[:60]}")
    height, width = np.delete(np.array(shape_ZYX, object), axis)
    _check_size(width, height)
    if needed > held:
        raise Unreadable(f"truncated: its header claims {needed} bytes, the file can hold {held}")


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
) -> _Source:
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
    shape_ZYX, axis = _volume_axis(shape, axis)
    if channels not in (1, 3, 4):
        raise Unreadable(f"{channels} numbers a pixel, wanted 1, 3 or 4")
    count = shape_ZYX[axis]
    slice_bytes = shape_ZYX[1] * shape_ZYX[2] * channels * dtype.itemsize
    needed = shape_ZYX[0] * slice_bytes
    held = path.stat().st_size - offset
    _check_block(shape_ZYX, axis, needed, held * MOST_PACKED if packed else held)
    # memmap wants at least one axis for the channels of a pixel, which then go or stay in `finish`.
    shape_ZYXC = (*shape_ZYX, channels)

    def finish(frame_HWC: np.ndarray) -> np.ndarray:
        frame = frame_HWC[..., 0] if channels == 1 else frame_HWC[..., :3]
        frame = frame.astype(dtype.newbyteorder("="))
        return frame if (slope, intercept) == (1.0, 0.0) else frame * slope + intercept

    def read_plain(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            _check_number(number, count)
            # Mapped anew for each frame, so that the pages of those before do not stay in memory.
            block_ZYXC = np.memmap(path, dtype, "r", offset, shape_ZYXC)
            yield finish(block_ZYXC[(slice(None),) * axis + (number,)])

    def read_packed(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        _check_number(numbers[-1], count)
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

    return _Source(lambda: count, read_packed if packed else read_plain)


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
def _open_nifti(path: Path, axis: int, array: str) -> Iterator[_Source]:
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
def _open_meta(path: Path, axis: int, array: str) -> Iterator[_Source]:
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


def _array_frames(opened: Callable[[], Any], axis: int) -> _Source:
    """Frames of an array that is sliced from disk: (H, W), (N, H, W), or either with 1, 3 or 4 channels.

    Args:
        opened: gives the array; called for each frame, so that a mapped one leaves the memory after it.
        axis: the slice axis.
    """
    array = opened()
    if array.dtype.kind not in "buif":
        raise Unreadable(f"an array of {str(array.dtype)[:40]}, wanted whole numbers or floats")
    # No picture is 4 pixels wide, so the last axis tells (H, W, 3) from (N, H, W).
    channels = array.shape[-1] if array.ndim in (3, 4) and array.shape[-1] in (1, 3, 4) else None
    shape = array.shape[:-1] if channels else array.shape
    still = len(shape) == 2
    shape_ZYX, axis = _volume_axis(shape, axis)
    if len(shape) > 3:
        raise Unreadable(f"an array of {' x '.join(map(str, array.shape))[:60]}, wanted 2 or 3 axes")
    _check_block(shape_ZYX, axis, 0, 0)
    count = shape_ZYX[axis]

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            _check_number(number, count)
            frame = np.asarray(opened()[() if still else (slice(None),) * axis + (number,)])
            if channels:
                frame = frame[..., 0] if channels == 1 else frame[..., :3]
            # Half floats and foreign byte orders become the machine's own.
            yield np.array(frame, frame.dtype.newbyteorder("="))

    return _Source(lambda: count, read)


@contextmanager
def _open_npy(path: Path, axis: int, array: str) -> Iterator[_Source]:
    # Refuses Python objects, which only unpickling, that is running code, could load.
    yield _array_frames(lambda: np.lib.format.open_memmap(path, "r"), axis)


@contextmanager
def _open_hdf5(path: Path, axis: int, array: str) -> Iterator[_Source]:
    import h5py

    with h5py.File(path, "r") as file:
        if not array:
            # Whether a link leads to an array is not asked, since that would open the other file.
            own = [name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
            arrays = [name for name in own if file.get(name, getclass=True) is h5py.Dataset]
            if len(arrays) != 1:
                names = ", ".join(arrays)[:100] or "none"
                raise Unreadable(f"{len(arrays)} arrays in it ({names}), wanted one or a name")
            array = arrays[0]
        stored = hdf5_array(file, array)
        yield _array_frames(lambda: stored, axis)


def hdf5_array(file: Any, name: str) -> Any:
    """A data set of an open h5py.File whose numbers lie in this very file.

    Raises:
        Unreadable: when it is missing, is stored elsewhere, or claims more than the file holds.
    """
    import h5py

    place: Any = file
    for part in name.strip("/").split("/"):
        link = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if link is None:
            raise Unreadable(f"no array {name!r} in it, found {', '.join(file)[:100] or 'nothing'}")
        if not isinstance(link, h5py.HardLink):
            raise Unreadable(f"array {name!r} is a link, wanted an array in this file")
        place = place[part]
    if not isinstance(place, h5py.Dataset):
        raise Unreadable(f"{name!r} in it is no array")
    if place.external or place.is_virtual:
        raise Unreadable(f"array {name!r} is stored in other files")
    stored = place.id.get_storage_size()
    if place.shape is None or place.nbytes > stored * MOST_PACKED:
        raise Unreadable(f"array {name!r} claims {place.nbytes} bytes, the file holds {stored}")
    if place.chunks and int(np.prod(place.chunks, dtype=object)) * place.dtype.itemsize > LARGEST_PIECE:
        raise Unreadable(f"array {name!r} is stored in pieces of more than {LARGEST_PIECE} bytes")
    return place


# DICOM

DICOM_TAGS = (
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "PhotometricInterpretation",
    "BurnedInAnnotation",
    "SequenceOfUltrasoundRegions",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "PaletteColorLookupTableUID",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
)


def _dicom_header(path: Path) -> Any:
    # Slow to import, and needed by few data sets. Nothing that names a patient is parsed.
    import pydicom

    syntax = pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        # The library would unpack it at once, whatever its size.
        raise Unreadable("a deflated DICOM file: unpack it first")
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(DICOM_TAGS))
    if "Rows" not in header or "Columns" not in header:
        raise Unreadable("a DICOM file without a picture")
    return header


def _region(header: Any) -> tuple[int, int, int, int] | None:
    """The first 2D tissue region, to which frames are cropped; None when the header names none.

    DICOM PS3.3 C.8.5.5: Sequence of Ultrasound Regions (0018,6011), spatial format 1, data type 1.

    Returns:
        left, top, right, bottom in pixels, right and bottom exclusive.
    """
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        if region.get("RegionSpatialFormat") == 1 and region.get("RegionDataType") == 1:
            left, top = int(region.RegionLocationMinX0), int(region.RegionLocationMinY0)
            # The standard's corners belong to the region; some scanners write the size instead.
            right = min(int(region.RegionLocationMaxX1) + 1, header.Columns)
            bottom = min(int(region.RegionLocationMaxY1) + 1, header.Rows)
            if not (0 <= left < right and 0 <= top < bottom):
                raise Unreadable("its ultrasound region (0018,6011) lies outside the picture")
            return left, top, right, bottom
    return None


@contextmanager
def _open_dicom(path: Path, axis: int, array: str) -> Iterator[_Source]:
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with _no_warnings():
            yield _dicom_frames(path)
    except (*DICOM_ERRORS, BytesLengthException, InvalidDicomError) as error:
        # The library's own words may quote a value, hence a name.
        raise Unreadable(f"damaged or truncated DICOM file ({type(error).__name__})") from None


def _dicom_frames(path: Path) -> _Source:
    from pydicom.pixels import apply_color_lut, get_decoder, iter_pixels

    header = _dicom_header(path)
    _check_size(header.Columns, header.Rows)
    count = int(header.get("NumberOfFrames") or 1)
    syntax = header.file_meta.TransferSyntaxUID
    try:
        readable = syntax in LOSSLESS_JPEG or get_decoder(syntax).is_available
    except NotImplementedError:
        readable = False
    if not readable:
        raise Unreadable(f"its compression is not read ({syntax.name[:60]}): decompress it first")
    frame_bytes = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
    # A compressed frame takes at least the header of its item; two pixels may share their colour.
    least = 8 if syntax.is_compressed else frame_bytes // 2
    if count < 1 or count * least > path.stat().st_size:
        raise Unreadable(f"truncated: its header claims {count} frames of {frame_bytes} bytes")
    region = _region(header)
    if region is None and str(header.get("BurnedInAnnotation", "")).strip().upper() == "YES":
        raise Unreadable("names burnt in (0028,0301), and no ultrasound region (0018,6011) to cut them off")
    left, top, right, bottom = region or (0, 0, header.Columns, header.Rows)
    colours = header.PhotometricInterpretation

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        _check_number(numbers[-1], count)
        if syntax in LOSSLESS_JPEG:
            frames = _lossless_jpeg_frames(path, numbers, count)
        else:
            frames = iter_pixels(path, indices=numbers)
        for frame in frames:
            if frame.shape[:2] != (header.Rows, header.Columns):
                raise Unreadable("damaged: a frame of another size than its header says")
            if colours == "PALETTE COLOR":
                frame = apply_color_lut(frame, header)
                frame = frame if frame.dtype == np.uint8 else (frame >> 8).astype(np.uint8)
            if colours == "MONOCHROME1":
                frame = np.invert(frame)
            yield frame[top:bottom, left:right]

    return _Source(lambda: count, read)


# Transfer syntax -> FFmpeg's decoder, for what pydicom leaves to packages that are not needed otherwise.
LOSSLESS_JPEG = {
    "1.2.840.10008.1.2.4.57": "mjpeg",
    "1.2.840.10008.1.2.4.70": "mjpeg",
    "1.2.840.10008.1.2.4.80": "jpegls",
    "1.2.840.10008.1.2.4.81": "jpegls",
}


def _lossless_jpeg_frames(path: Path, numbers: Sequence[int], count: int) -> Iterator[np.ndarray]:
    import av
    from pydicom import dcmread
    from pydicom.encaps import get_frame
    from pydicom.pixels import convert_color_space

    tags = ["PixelData", "PixelRepresentation", "PhotometricInterpretation", "ExtendedOffsetTable"]
    data = dcmread(path, specific_tags=tags)
    for number in numbers:
        packed = get_frame(data.PixelData, number, number_of_frames=count)
        decoder = av.CodecContext.create(LOSSLESS_JPEG[data.file_meta.TransferSyntaxUID], "r")
        decoder.options = {"err_detect": "explode", "max_pixels": str(LARGEST_AREA)}
        try:
            frames = [*decoder.decode(av.Packet(packed)), *decoder.decode(None)]
        except av.FFmpegError as error:
            raise Unreadable(f"damaged or truncated at frame {number}: {error.strerror}") from None
        if len(frames) != 1 or frames[0].is_corrupt:
            raise Unreadable(f"damaged or truncated at frame {number}")
        pixels = frames[0].format.name
        if pixels in ("gray", "gray16le"):
            array = frames[0].to_ndarray()
            yield array.view(array.dtype.str.replace("u", "i")) if data.PixelRepresentation else array
        elif pixels in ("rgb24", "bgr24"):
            array = frames[0].to_ndarray(format="rgb24")
            ybr = data.PhotometricInterpretation.startswith("YBR_FULL")
            yield convert_color_space(array, "YBR_FULL", "RGB") if ybr else array
        else:
            raise Unreadable(f"pixels of kind {pixels} in lossless JPEG, wanted grey or RGB")


# Video


@contextmanager
def _open_video(path: Path, axis: int, array: str) -> Iterator[_Source]:
    import av

    options = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
    # An absolute path is never taken for an address.
    try:
        with av.open(os.path.abspath(path), options=options) as container:
            yield _video_frames(container)
    except av.FFmpegError as error:
        raise Unreadable(f"damaged or truncated: {error.strerror}") from None


def _video_frames(container: Any) -> _Source:
    stream = next(iter(container.streams.video), None)
    if stream is None or stream.codec_context is None:
        raise Unreadable("no video stream in it that can be decoded")
    _check_size(stream.width, stream.height)
    # One thread, since many files are read side by side; faults are told instead of painted over.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(LARGEST_AREA)}

    def count() -> int:
        # Counted packet by packet, which decodes nothing: the header of a truncated file is wrong, and that
        # of an MPEG stream is silent.
        packets = sum(bool(packet.size) and not packet.is_discard for packet in container.demux(stream))
        if not packets:
            raise Unreadable("truncated: no whole frame in it")
        return packets

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        wanted = set(numbers)
        number = -1
        for number, frame in enumerate(container.decode(stream) if wanted else ()):
            if frame.is_corrupt:
                raise Unreadable(f"damaged at frame {number}")
            if number in wanted:
                _check_size(frame.width, frame.height)
                colours = "gray" if frame.format.name.startswith("gray") else "rgb24"
                yield np.rot90(frame.to_ndarray(format=colours), round(frame.rotation / 90))
                if number == numbers[-1]:
                    return
        if wanted:
            raise Unreadable(f"no frame {numbers[-1]}: the file has {number + 1}")

    return _Source(count, read)


# What each library raises on broken files, found by feeding it truncated and scrambled ones.
PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
BLOCK_ERRORS = (OSError, EOFError, ValueError, KeyError, OverflowError, zlib.error)
ARRAY_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    RuntimeError,
    OverflowError,
    tokenize.TokenError,
)
DICOM_ERRORS = (*PILLOW_ERRORS, AttributeError, RuntimeError)
VIDEO_ERRORS = (OSError, ValueError, RuntimeError, EOFError)

READERS = (
    (PILLOW_SUFFIXES, _open_pillow, PILLOW_ERRORS),
    (NIFTI_SUFFIXES, _open_nifti, BLOCK_ERRORS),
    (META_SUFFIXES, _open_meta, BLOCK_ERRORS),
    (NPY_SUFFIXES, _open_npy, ARRAY_ERRORS),
    (HDF5_SUFFIXES, _open_hdf5, ARRAY_ERRORS),
    (DICOM_SUFFIXES, _open_dicom, DICOM_ERRORS),
    (VIDEO_SUFFIXES, _open_video, VIDEO_ERRORS),
)
