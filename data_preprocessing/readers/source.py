"""What the readers of all kinds of files share: an opened file, and the reasons for which one is refused."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

# Pixels a side: below, nothing can be seen; above, it is no ultrasound screen but may fill the memory.
SMALLEST_SIDE = 16
LARGEST_SIDE = 10_000
LARGEST_AREA = 50_000_000
# Deflate packs at most 1032 to 1: a header that claims more than the file can hold is refused unread.
MOST_PACKED = 1032


class Unreadable(Exception):
    """The picture cannot be used; the message is the reason for rejected.csv.

    A reason may quote a file's own words, so it is made one printable line here.
    """

    def __init__(self, reason: str):
        line = " ".join(reason.split())[:300]
        super().__init__("".join(mark if mark.isprintable() else "?" for mark in line))


@dataclass(frozen=True)
class Source:
    """An opened file."""

    # Number of frames.
    count: Callable[[], int]
    # Yields the frames with these ascending numbers, (H, W) or (H, W, 3) of any number type.
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]


def check_size(width: int, height: int) -> None:
    """Refuse sizes in pixels that no ultrasound image has.

    Raises:
        Unreadable: when a side or the area is too small or too large.
    """
    if min(width, height) < SMALLEST_SIDE:
        raise Unreadable(f"{width} x {height} pixels, wanted at least {SMALLEST_SIDE} a side")
    if max(width, height) > LARGEST_SIDE or width * height > LARGEST_AREA:
        raise Unreadable(
            f"{width} x {height} pixels, wanted at most {LARGEST_SIDE} a side and {LARGEST_AREA} in all"
        )


def check_number(number: int, count: int) -> None:
    """Refuse a frame that the file does not have.

    Raises:
        Unreadable: says how many there are.
    """
    if number >= count:
        raise Unreadable(f"no frame {number}: the file has {count}")


def volume_axis(shape: Sequence[int], axis: int) -> tuple[tuple[int, int, int], int]:
    """Three axes and the slice axis among them, for an array of 2 to 4 axes (channels not counted).

    Raises:
        Unreadable: for another number of axes.
    """
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


def check_block(shape_ZYX: tuple[int, int, int], axis: int, needed: int, held: int) -> None:
    """Refuse impossible sizes before any memory is taken.

    Args:
        shape_ZYX: of the volume.
        axis: the slice axis among them.
        needed: bytes that its numbers take.
        held: bytes that the file can hold at most.

    Raises:
        Unreadable: when there are no pixels, too many or too few in a slice, or the file is too small.
    """
    if min(shape_ZYX) < 1:
        raise Unreadable(f"no pixels: {' x '.join(map(str, shape_ZYX))[:60]}")
    height, width = np.delete(np.array(shape_ZYX, object), axis)
    check_size(width, height)
    if needed > held:
        raise Unreadable(f"truncated: its header claims {needed} bytes, the file can hold {held}")


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silence: sizes are checked before decoding, and pydicom's warnings quote values, maybe a name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
