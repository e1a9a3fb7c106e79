"""Still pictures and animations, decoded by Pillow."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from data_preprocessing.readers.source import Source, Unreadable, check_number, check_size, no_warnings

# Pillow would also start an external program for some formats; these it decodes itself.
PILLOW_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")
PILLOW_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm")
# What Pillow raises on broken files, found by feeding it truncated and scrambled ones.
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


@contextmanager
def open_pillow(path: Path, axis: int, array: str) -> Iterator[Source]:
    """Open a picture, an animation or a TIFF of several pages; `axis` and `array` mean nothing here."""
    with no_warnings(), Image.open(path, formats=PILLOW_FORMATS) as picture:
        check_size(*picture.size)
        if picture.format == "GIF" and not _ends_with(path, b";"):
            # Else its first frames would pass for all of them.
            raise Unreadable("truncated: no end mark")
        # A phone's JPEG may carry a preview as a second frame.
        count = 1 if picture.format in ("JPEG", "MPO") else getattr(picture, "n_frames", 1)

        def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
            for number in numbers:
                check_number(number, count)
                if count > 1:
                    picture.seek(number)
                    check_size(*picture.size)
                picture.load()
                turns = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
                upright = ImageOps.exif_transpose(picture) if turns else picture
                as_it_is = upright.mode in ("L", "1", "RGB") or upright.mode.startswith(("I", "F"))
                yield np.asarray(upright if as_it_is else upright.convert("RGB"))

        yield Source(lambda: count, read)


def _ends_with(path: Path, mark: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 512, 0))
        return file.read().rstrip(b"\0\r\n ").endswith(mark)
