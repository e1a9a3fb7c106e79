"""Arrays that are sliced from disk: NPY and HDF5."""

import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_preprocessing.readers.source import (
    MOST_PACKED,
    Source,
    Unreadable,
    check_block,
    check_number,
    volume_axis,
)

NPY_SUFFIXES = (".npy",)
HDF5_SUFFIXES = (".h5", ".hdf5")
# Bytes of one piece of an HDF5 file, which is unpacked whole.
LARGEST_PIECE = 1 << 28
# What the libraries raise on broken files, found by feeding them truncated and scrambled ones.
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


def _array_frames(opened: Callable[[], Any], axis: int) -> Source:
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
    shape_ZYX, axis = volume_axis(shape, axis)
    if len(shape) > 3:
        raise Unreadable(f"an array of {' x '.join(map(str, array.shape))[:60]}, wanted 2 or 3 axes")
    check_block(shape_ZYX, axis, 0, 0)
    count = shape_ZYX[axis]

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        for number in numbers:
            check_number(number, count)
            frame = np.asarray(opened()[() if still else (slice(None),) * axis + (number,)])
            if channels:
                frame = frame[..., 0] if channels == 1 else frame[..., :3]
            # Half floats and foreign byte orders become the machine's own.
            yield np.array(frame, frame.dtype.newbyteorder("="))

    return Source(lambda: count, read)


@contextmanager
def open_npy(path: Path, axis: int, array: str) -> Iterator[Source]:
    """Open an NPY file; `array` means nothing here."""
    # Refuses Python objects, which only unpickling, that is running code, could load.
    yield _array_frames(lambda: np.lib.format.open_memmap(path, "r"), axis)


@contextmanager
def open_hdf5(path: Path, axis: int, array: str) -> Iterator[Source]:
    """Open an array of an HDF5 file; the only one when `array` is ""."""
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
