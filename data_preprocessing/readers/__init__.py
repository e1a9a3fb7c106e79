"""Any picture, volume or video file to uint8 frames, or one line that says why not.

A training loader must never meet a bad file, so everything doubtful is refused here, and nothing is replaced.
Frames are read one by one: a volume or a video is never whole in memory, whatever its size.

Here is what the other modules call; each kind of file has a module of its own beside this one.
"""

import functools
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from data_preprocessing.readers.arrays import ARRAY_ERRORS, HDF5_SUFFIXES, NPY_SUFFIXES, open_hdf5, open_npy
from data_preprocessing.readers.blocks import (
    BLOCK_ERRORS,
    META_SUFFIXES,
    NIFTI_SUFFIXES,
    open_meta,
    open_nifti,
)
from data_preprocessing.readers.dicom import DICOM_ERRORS, DICOM_SUFFIXES, open_dicom
from data_preprocessing.readers.pictures import PILLOW_ERRORS, PILLOW_SUFFIXES, open_pillow
from data_preprocessing.readers.source import Source, Unreadable, check_size
from data_preprocessing.readers.video import VIDEO_ERRORS, VIDEO_SUFFIXES, open_video

# Suffixes; what opens such a file, given `path, axis, array` of `read_frames`; what it raises on broken ones.
READERS = (
    (PILLOW_SUFFIXES, open_pillow, PILLOW_ERRORS),
    (NIFTI_SUFFIXES, open_nifti, BLOCK_ERRORS),
    (META_SUFFIXES, open_meta, BLOCK_ERRORS),
    (NPY_SUFFIXES, open_npy, ARRAY_ERRORS),
    (HDF5_SUFFIXES, open_hdf5, ARRAY_ERRORS),
    (DICOM_SUFFIXES, open_dicom, DICOM_ERRORS),
    (VIDEO_SUFFIXES, open_video, VIDEO_ERRORS),
)


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
def _open(path: Path, axis: int, array: str) -> Iterator[Source]:
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


def _read(source: Source, numbers: Sequence[int], origin: tuple[Path, int, str]) -> list[np.ndarray]:
    """`read_frames` for an open file, whose path, axis and data set are `origin`."""
    wanted = sorted(set(numbers))
    if wanted and wanted[0] < 0:
        raise Unreadable(f"no frame {wanted[0]}: frames count from 0")
    frames = {}
    for number, frame in zip(wanted, source.read(wanted), strict=True):
        check_size(frame.shape[1], frame.shape[0])
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


def _short(error: Exception) -> str:
    """The last line of an exception's text, without the folder that the file lies in."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).split("'/")[0].strip()[:120]
