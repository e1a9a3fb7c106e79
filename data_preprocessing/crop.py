"""Find the scan area of an ultrasound screen, cut it out and bring it to one square size.

A scanner's screen shows the echo image as a rectangle (linear probe) or a fan (curved or phased array)
among text, rulers, grey bars and icons. `find_frame` returns what to keep: the published scan area where
there is one, else the sector (two straight sides, two arcs) that agrees best with the recognised echoes, else
the bounding box of the echoes. A fan that the screen or the publisher has cut off at a side is the part of
the sector that lies in the box.

Axes: H W pixels; P corners. Points are (x, y) with pixel centres on whole numbers; boxes are (left, top,
right, bottom), right and bottom exclusive, like Pillow's.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from data_preprocessing.sector import WORKING_SIDE, fit_sector, sector_around

# Grey levels that JPEG's noise stays within.
FLAT = 5
# The screen's black is at most this grey, and takes up at least this share of the picture's border.
DARKEST_SCREEN = 40
SCREEN_SHARE = 0.1
# A page or a software window around the screen has few greys over at least this share of the border, and the
# screen has at least this share of its area.
PAGE_SHARE = 0.3
SMALLEST_SCREEN = 0.15
# Text and rulers fill no more than this share of the screen around the image.
MOST_TEXT = 0.15
# Lines, bars and rows of text are thinner than this share of the longer side.
THICKNESS = 1 / 30


@dataclass(frozen=True)
class Search:
    """What counts as image: a window in which enough pixels are brighter than the black of the screen."""

    # Grey levels above black that count as echo.
    margin: int
    # Side of the window, as a share of the longer side.
    window: float
    # Share of the window: 1 inside the image, 0.5 on a straight edge, 0.2 to 0.6 on text.
    occupancy: float


SEARCHES = {
    # Careful: rather keep some text than lose dark tissue. The margin is above JPEG's ringing.
    "auto": Search(5, 1 / 30, 0.5),
    # Lossless, exactly 0 outside the scan area apart from bars and text: even the darkest tissue is seen.
    "clean": Search(0, 1 / 80, 0.6),
    # Much text close to the image, on a screen that is black to two grey levels.
    "text": Search(2, 1 / 30, 0.75),
    "rectangle": Search(5, 1 / 30, 0.75),
}
# Parts that a dark cyst or shadow cuts off belong to the image from this share of the largest part on.
SMALL_PART = 0.03
# How much of the published outline a sector fitted around it must be.
OUTLINE_COVER = 0.85


@dataclass(frozen=True, slots=True)
class Frame:
    """What to keep of a screen."""

    # "full", "rectangle", "fan" (fitted sector), "outline" (published), "zero border" (exact).
    kind: str
    # left, top, right, bottom in pixels of the source.
    box: tuple[int, int, int, int]
    # Corners of the area to keep, (x, y) in the source; empty when the whole box is kept.
    polygon: tuple[tuple[float, float], ...] = ()


def find_frame(grey_HW: np.ndarray, hint: str, outline: list[tuple[float, float]] | None = None) -> Frame:
    """The scan area of one picture.

    Args:
        grey_HW: uint8.
        hint: what the catalogue knows of the data set: "full" (the publisher has cropped), "zero border"
            (pixels outside the scan area are exactly 0), "clean", "text", "rectangle" or "auto" (SEARCHES).
        outline: the scan area as published, (x, y); wins over the hint unless it misses much of the image.

    Returns:
        The frame; the whole picture when nothing stands out from its border.
    """
    height, width = grey_HW.shape
    whole = (0, 0, width, height)
    if outline is not None and len(outline) >= 3:
        frame = _from_outline(grey_HW, outline)
        if frame is not None:
            return frame
    if hint == "full":
        return Frame("full", _without_flat_margin(grey_HW))
    if hint == "zero border":
        box = _bounds(grey_HW > 0)
        return Frame("zero border", box or whole)

    page = _without_page(grey_HW)
    left, top, right, bottom = page
    frame = _search(grey_HW[top:bottom, left:right], hint)
    if page == whole:
        return frame
    box = tuple(edge + offset for edge, offset in zip(frame.box, (left, top, left, top), strict=True))
    if not frame.polygon and box[2] - box[0] > 0.9 * (right - left):
        # What a window shows on its whole width is the screen, dark tissue at the bottom included.
        return Frame("rectangle", page)
    return Frame(frame.kind, box, tuple((x + left, y + top) for x, y in frame.polygon))


def cut(grey_HW: np.ndarray, frame: Frame) -> np.ndarray:
    """The box of a frame, black outside its polygon.

    Returns:
        (bottom - top, right - left) uint8, a copy.
    """
    left, top, right, bottom = frame.box
    piece_HW = grey_HW[top:bottom, left:right].copy()
    if frame.polygon:
        piece_HW[~inside(frame)] = 0
    return piece_HW


def inside(frame: Frame) -> np.ndarray:
    """(bottom - top, right - left) bool, True where the box of a frame is kept."""
    left, top, right, bottom = frame.box
    if not frame.polygon:
        return np.ones((bottom - top, right - left), bool)
    return _mask(frame.box, frame.polygon)


def letterbox(grey_HW: np.ndarray, size: int) -> np.ndarray:
    """Scale to fit a square, keeping the aspect ratio, centred on black.

    Shrinking averages areas (no aliasing); growing is bicubic.

    Returns:
        (size, size) uint8.
    """
    height, width = grey_HW.shape
    scale = size / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    small = Image.fromarray(grey_HW).resize((new_width, new_height), how)
    square = Image.new("L", (size, size))
    square.paste(small, ((size - new_width) // 2, (size - new_height) // 2))
    return np.asarray(square)


def _from_outline(grey_HW: np.ndarray, outline: list[tuple[float, float]]) -> Frame | None:
    """The published polygon, or None when it is something else.

    In AUL the outline of a few images is the organ's instead of the scan area's.
    """
    height, width = grey_HW.shape
    points_P2 = np.clip(np.asarray(outline, dtype=float), 0, [width - 1, height - 1])
    if len(points_P2) < 3 or _polygon_area(points_P2) < 1:
        return None
    box = _clip_box(points_P2.min(0), points_P2.max(0), width, height)
    kept = _mask(box, tuple(map(tuple, points_P2)))
    left, top, right, bottom = box
    echo = int((grey_HW[top:bottom, left:right][kept] > FLAT).sum())
    if echo < 0.7 * int((grey_HW > FLAT).sum()):
        return None
    polygon = tuple(map(tuple, points_P2.round(1).tolist()))
    # Drawn by hand with few corners, it cuts slices off the arcs: a sector that fits around it restores them.
    sector = sector_around(points_P2)
    if sector is not None:
        sector_box = _polygon_box(sector, width, height)
        if _polygon_area(points_P2) >= OUTLINE_COVER * _mask(sector_box, sector).sum():
            return Frame("outline", sector_box, sector)
    return Frame("outline", box, polygon)


def _without_flat_margin(grey_HW: np.ndarray) -> tuple[int, int, int, int]:
    """The box without the rows and columns at the border that are one flat grey; real shadow has noise."""
    height, width = grey_HW.shape
    rows = np.ptp(grey_HW, axis=1) > FLAT
    columns = np.ptp(grey_HW, axis=0) > FLAT
    if not rows.any() or not columns.any():
        return (0, 0, width, height)
    left, right = int(columns.argmax()), width - int(columns[::-1].argmax())
    top, bottom = int(rows.argmax()), height - int(rows[::-1].argmax())
    return (left, top, right, bottom)


def _without_page(grey_HW: np.ndarray) -> tuple[int, int, int, int]:
    """The box without a white page or a grey software window around the screen, of few flat greys."""
    left, top, right, bottom = 0, 0, grey_HW.shape[1], grey_HW.shape[0]
    # A screen in a window on a page.
    for _ in range(3):
        part_HW = grey_HW[top:bottom, left:right]
        border = _border(part_HW)
        near = ndimage.uniform_filter1d(np.bincount(border, minlength=256) / len(border), 5) * 5
        is_page = near >= PAGE_SHARE / 3
        is_page[: DARKEST_SCREEN + 1] = False
        if is_page[border].mean() < PAGE_SHARE:
            break
        is_page = ndimage.maximum_filter1d(is_page, 2 * FLAT + 1)
        step = max(1, max(part_HW.shape) // WORKING_SIDE)
        other_HW = ~is_page[part_HW[::step, ::step]]
        # Buttons and letters are small, the screen is the largest part of what is left.
        side = max(3, round(THICKNESS * max(other_HW.shape)) | 1)
        parts_HW, number = ndimage.label(
            ndimage.uniform_filter(other_HW.astype(np.float32), side, mode="constant") >= 0.5
        )
        if number == 0:
            break
        sizes = np.bincount(parts_HW.ravel())
        sizes[0] = 0
        box = _bounds(parts_HW == sizes.argmax())
        if _box_area(box) < SMALLEST_SCREEN * other_HW.size or min(box[2] - box[0], box[3] - box[1]) < 5:
            break
        # A step inwards, so that nothing is left of the page.
        right, bottom = left + (box[2] - 1) * step, top + (box[3] - 1) * step
        left, top = left + (box[0] + 1) * step, top + (box[1] + 1) * step
    return left, top, right, bottom


def _search(grey_HW: np.ndarray, hint: str) -> Frame:
    """The scan area of a screen by its echoes."""
    height, width = grey_HW.shape
    whole = (0, 0, width, height)
    found = _echoes(grey_HW, SEARCHES[hint])
    if found is None:
        return Frame("full", whole)
    kept_HW, echo_HW = found
    # Pixel centres of the small picture lie between those of the source.
    scale = np.array([width / kept_HW.shape[1], height / kept_HW.shape[0]])
    low, high = np.array(_bounds(kept_HW)).reshape(2, 2)
    box = _clip_box((low + 0.5) * scale - 0.5, (high - 0.5) * scale - 0.5, width, height)
    if hint == "rectangle":
        return Frame("rectangle", box)
    fitted = fit_sector(kept_HW, echo_HW)
    if fitted is not None:
        sector, cuts = fitted
        polygon = (np.array(sector.polygon()) + 0.5) * scale - 0.5
        polygon = tuple(map(tuple, polygon.round(1).tolist()))
        sides = zip(_polygon_box(polygon, width, height), box, cuts, strict=True)
        return Frame("fan", tuple(b if cut_off else s for s, b, cut_off in sides), polygon)
    left, top, right, bottom = box
    beside = int((grey_HW > FLAT).sum()) - int((grey_HW[top:bottom, left:right] > FLAT).sum())
    if hint == "auto" and beside > MOST_TEXT * (grey_HW.size - _box_area(box)):
        # Dim speckle lies outside: this is no screen but a shadow at the border of a cropped picture.
        return Frame("full", whole)
    return Frame("rectangle", box)


def _bounds(mask_HW: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, columns = mask_HW.any(1).nonzero()[0], mask_HW.any(0).nonzero()[0]
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _border(grey_HW: np.ndarray) -> np.ndarray:
    return np.concatenate([grey_HW[0], grey_HW[-1], grey_HW[:, 0], grey_HW[:, -1]])


def _clip_box(low: np.ndarray, high: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    left, top = np.floor(low).astype(int)
    right, bottom = np.ceil(high).astype(int) + 1
    return max(int(left), 0), max(int(top), 0), min(int(right), width), min(int(bottom), height)


def _polygon_box(
    polygon: tuple[tuple[float, float], ...], width: int, height: int
) -> tuple[int, int, int, int]:
    points_P2 = np.asarray(polygon)
    return _clip_box(points_P2.min(0), points_P2.max(0), width, height)


def _box_area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _polygon_area(points_P2: np.ndarray) -> float:
    x, y = points_P2.T
    return 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))


def _mask(box: tuple[int, int, int, int], polygon: tuple[tuple[float, float], ...]) -> np.ndarray:
    """(bottom - top, right - left) bool, True inside the polygon."""
    left, top, right, bottom = box
    picture = Image.new("1", (right - left, bottom - top))
    ImageDraw.Draw(picture).polygon([(x - left, y - top) for x, y in polygon], fill=1, outline=1)
    return np.asarray(picture)


def _echoes(grey_HW: np.ndarray, search: Search) -> tuple[np.ndarray, np.ndarray] | None:
    """What is image and what is brighter than the screen, on a small copy of the picture.

    Returns:
        The image without text and other furniture, and all that is brighter than black, (H, W) bool both;
        None when there is no screen around the image, or no image.
    """
    factor = max(grey_HW.shape) / WORKING_SIDE
    small_HW = grey_HW
    if factor > 1:
        size = (max(1, round(grey_HW.shape[1] / factor)), max(1, round(grey_HW.shape[0] / factor)))
        small_HW = np.asarray(Image.fromarray(grey_HW).resize(size, Image.Resampling.BOX))
    border = _border(small_HW)
    # The screen is the commonest dark grey of the border; a picture that fills its frame has none.
    counts = np.bincount(border, minlength=256)[:DARKEST_SCREEN]
    black = int(counts.argmax())
    if counts[max(black - 2, 0) : black + 3].sum() < SCREEN_SHARE * len(border):
        return None
    echo_HW = small_HW > black + search.margin
    longer = max(small_HW.shape)
    window, thickness = (max(3, round(longer * share) | 1) for share in (search.window, THICKNESS))
    dense_HW = ndimage.uniform_filter(echo_HW.astype(np.float32), window, mode="nearest") >= search.occupancy
    thick_HW = ndimage.minimum_filter(dense_HW, thickness, mode="constant")
    dense_HW = ndimage.maximum_filter(thick_HW, thickness, mode="constant")
    parts_HW, count = ndimage.label(dense_HW)
    if count == 0:
        return None
    sizes = np.bincount(parts_HW.ravel())
    sizes[0] = 0
    kept_HW = (sizes >= SMALL_PART * sizes.max())[parts_HW]
    # Corners were rounded off; echoes close by belong to the image.
    near_HW = ndimage.uniform_filter(kept_HW.astype(np.float32), thickness // 2 | 1, mode="nearest") > 0
    kept_HW |= near_HW & echo_HW
    if min(kept_HW.any(0).sum(), kept_HW.any(1).sum()) < 3:
        return None
    return kept_HW, echo_HW
