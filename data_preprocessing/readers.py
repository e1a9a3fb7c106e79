"""Any picture file to grey uint8 pixels, or one line that says why not.

A training loader must never meet a bad file, so everything doubtful is refused here, and nothing is replaced.
"""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow would also start an external program for some formats; these it decodes itself.
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm")
ITK_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd")
ARRAY_SUFFIXES = (".npy", ".h5", ".hdf5", ".dcm")
VIDEO_SUFFIXES = (".avi", ".mp4", ".mpeg", ".mpg", ".mov", ".gif", ".webm", ".mkv")
# Pixels a side: below, nothing can be seen; above, it is no ultrasound screen but may fill the memory.
SMALLEST_SIDE = 16
LARGEST_SIDE = 10_000
# What Pillow raises on broken files, found by feeding it truncated and scrambled ones.
BROKEN = (
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
)


class Unreadable(Exception):
    """The picture cannot be used; the message is the reason for rejected.csv."""


def is_picture_name(name: str) -> bool:
    """Whether a file's suffix is one that can be read."""
    return name.lower().endswith(PILLOW_SUFFIXES + ITK_SUFFIXES + ARRAY_SUFFIXES + VIDEO_SUFFIXES)


def may_have_frames(name: str) -> bool:
    """Whether a file with this suffix may be a volume or a video."""
    return name.lower().endswith(ITK_SUFFIXES + ARRAY_SUFFIXES + VIDEO_SUFFIXES)


def read_grey(path: Path, turn: str = "") -> np.ndarray:
    """Read one still picture.

    Colour becomes luma, alpha is dropped, EXIF rotation is applied. More than 8 bits are scaled by the
    picture's own range. Files with several frames are refused: which one is meant cannot be known here.

    Args:
        path: a regular file.
        turn: "" or "transpose", to bring the probe to the top.

    Returns:
        (H, W) uint8.

    Raises:
        Unreadable: with the reason.
    """
    if path.stat().st_size == 0:
        raise Unreadable("empty file (0 bytes)")
    array = _read_itk(path) if path.name.lower().endswith(ITK_SUFFIXES) else _read_pillow(path)
    grey_HW = to_8_bit(array)
    if turn == "transpose":
        grey_HW = np.ascontiguousarray(grey_HW.T)
    if int(grey_HW.max()) - int(grey_HW.min()) <= 2:
        raise Unreadable(f"nothing in it: all pixels are {grey_HW.flat[0]}")
    return grey_HW


def to_8_bit(array_HW: np.ndarray) -> np.ndarray:
    """Grey values of any type to uint8.

    Values that already lie in 0 to 255 are rounded; others are scaled by their own smallest and largest.

    Raises:
        Unreadable: when a value is not finite.
    """
    if array_HW.dtype == np.uint8:
        return array_HW
    values = array_HW.astype(np.float64)
    if not np.isfinite(values).all():
        raise Unreadable("pixels that are not finite numbers")
    low, high = values.min(), values.max()
    if low < 0 or high > 255 or (0 < high <= 1 and array_HW.dtype.kind == "f"):
        values = (values - low) * (255 / max(high - low, np.finfo(float).tiny))
    return values.round().astype(np.uint8)


def _check_size(width: int, height: int) -> None:
    if min(width, height) < SMALLEST_SIDE:
        raise Unreadable(f"{width} x {height} pixels, wanted at least {SMALLEST_SIDE} a side")
    if max(width, height) > LARGEST_SIDE:
        raise Unreadable(f"{width} x {height} pixels, wanted at most {LARGEST_SIDE} a side")


def _read_pillow(path: Path) -> np.ndarray:
    # The size is checked before decoding, so Pillow's own warning about large pictures has no news.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(path, formats=PILLOW_FORMATS)
        except Image.DecompressionBombError:
            raise Unreadable("more pixels than a picture may have") from None
        except BROKEN as error:
            raise Unreadable(f"not a picture: {_short(error)}") from None
        with picture:
            _check_size(*picture.size)
            try:
                frames = getattr(picture, "n_frames", 1)
                # A phone's JPEG may carry a preview as a second frame.
                if frames > 1 and picture.format not in ("JPEG", "MPO"):
                    raise Unreadable(f"{frames} frames, wanted a still picture: export the frames you want")
                upright = ImageOps.exif_transpose(picture)
                if upright.mode.startswith(("I", "F")):
                    return np.asarray(upright)
                return np.asarray(upright.convert("RGB").convert("L") if upright.mode != "L" else upright)
            except BROKEN as error:
                raise Unreadable(f"damaged or truncated: {_short(error)}") from None


def _read_itk(path: Path) -> np.ndarray:
    # Slow to import, and needed by few data sets.
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        _check_size(size[0], size[1])
        if any(extra > 1 for extra in size[2:]):
            raise Unreadable(f"a volume of {' x '.join(map(str, size))}, wanted one frame")
        array = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise Unreadable(f"not an image file that ITK reads: {_short(error)}") from None
    array = (
        array.reshape(array.shape[-2:]) if reader.GetNumberOfComponents() == 1 else array.mean(-1).squeeze()
    )
    return array


def _short(error: Exception) -> str:
    """The last line of an exception's text, without the folder that the file lies in."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).split("'/")[0].strip()[:120]
