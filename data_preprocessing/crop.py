"""Find the scan area of an ultrasound screen, cut it out and bring it to one square size.

A scanner's screen shows the echo image as a rectangle (linear probe) or a fan (curved or phased array)
among text, rulers, grey bars and icons. `find_frame` returns what to keep. It never cuts what it has
recognised as image: the fan is the tightest sector *around* the recognised pixels, and where no sector is
tight the convex hull or the bounding box is kept instead.

Axes: H W pixels; P corners, E edge pixels, Q echo pixels. Points are (x, y) with pixel centres on whole
numbers; boxes are (left, top, right, bottom), right and bottom exclusive, like Pillow's.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.spatial import ConvexHull

# The screen is searched at this length of its longer side: speckle averages out, time is constant.
WORKING_SIDE = 400
# Grey levels that JPEG's noise stays within.
FLAT = 5
# The screen's black is at most this grey, and takes up at least this share of the picture's border.
DARKEST_SCREEN = 40
SCREEN_SHARE = 0.1
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
    # Much text close to the image.
    "text": Search(5, 1 / 30, 0.75),
    "rectangle": Search(5, 1 / 30, 0.75),
}
# Parts that a dark cyst or shadow cuts off belong to the image from this share of the largest part on.
SMALL_PART = 0.03
# How much of a sector or a box must be covered by the hull of the echoes for it to be believed.
SECTOR_COVER = 0.75
BOX_COVER = 0.93
OUTLINE_COVER = 0.85
# How far above the recognised image the bright arcs at the probe may lie, as a share of the longer side.
NEAR_FIELD = 0.06


@dataclass(frozen=True)
class Frame:
    """What to keep of a screen."""

    # "full", "rectangle", "fan" (fitted sector), "hull", "outline" (published), "zero border" (exact).
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

    found = _echo_hull(grey_HW, SEARCHES[hint])
    if found is None:
        return Frame("full", whole)
    hull_P2, edge_E2, echo_Q2 = found
    box = _clip_box(hull_P2.min(0), hull_P2.max(0), width, height)
    if hint == "rectangle":
        return Frame("rectangle", box)
    covered = _polygon_area(hull_P2)
    sector = _fit_sector(hull_P2, edge_E2, echo_Q2, max(1.0, max(grey_HW.shape) / WORKING_SIDE))
    if sector is not None:
        sector_box = _polygon_box(sector, width, height)
        area = _mask(sector_box, sector).sum()
        if covered >= SECTOR_COVER * area and area < 0.98 * _box_area(sector_box):
            return Frame("fan", sector_box, sector)
    left, top, right, bottom = box
    beside = int((grey_HW > FLAT).sum()) - int((grey_HW[top:bottom, left:right] > FLAT).sum())
    if hint == "auto" and beside > MOST_TEXT * (grey_HW.size - _box_area(box)):
        # Dim speckle lies outside: this is no screen but a shadow at the border of a cropped picture.
        return Frame("full", whole)
    if covered >= BOX_COVER * _box_area(box):
        return Frame("rectangle", box)
    hull = tuple(map(tuple, hull_P2.round(1).tolist()))
    # A dark corner of a rectangle still has echoes, the screen beside a fan only a few letters.
    outside = ~_mask(box, hull)
    if (grey_HW[top:bottom, left:right][outside] > FLAT).mean() > MOST_TEXT:
        return Frame("rectangle", box)
    return Frame("hull", box, hull)


def cut(grey_HW: np.ndarray, frame: Frame) -> np.ndarray:
    """The box of a frame, black outside its polygon.

    Returns:
        (bottom - top, right - left) uint8, a copy.
    """
    left, top, right, bottom = frame.box
    piece_HW = grey_HW[top:bottom, left:right].copy()
    if frame.polygon:
        piece_HW[~_mask(frame.box, frame.polygon)] = 0
    return piece_HW


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
    box = _clip_box(points_P2.min(0), points_P2.max(0), width, height)
    inside = _mask(box, tuple(map(tuple, points_P2)))
    left, top, right, bottom = box
    echo = int((grey_HW[top:bottom, left:right][inside] > FLAT).sum())
    if echo < 0.7 * int((grey_HW > FLAT).sum()):
        return None
    polygon = tuple(map(tuple, points_P2.round(1).tolist()))
    # Drawn by hand with few corners, it cuts slices off the arcs: a sector that fits around it restores them.
    hull_P2 = points_P2[ConvexHull(points_P2).vertices]
    ahead_P2 = np.roll(hull_P2, -1, axis=0)
    steps = np.linspace(0, 1, 50, endpoint=False)[:, None, None]
    edge_E2 = (hull_P2 + steps * (ahead_P2 - hull_P2)).reshape(-1, 2)
    sector = _fit_sector(hull_P2, edge_E2)
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


def _bounds(mask_HW: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, columns = mask_HW.any(1).nonzero()[0], mask_HW.any(0).nonzero()[0]
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


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


def _echo_hull(grey_HW: np.ndarray, search: Search) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Convex hull and edge pixels of the echoes, text and other furniture left out.

    Returns:
        Hull corners (P, 2), edge points (E, 2) and all echoes, furniture too, (Q, 2) in source pixels; None
        when there is no screen around the image, or no image.
    """
    factor = max(grey_HW.shape) / WORKING_SIDE
    small_HW = grey_HW
    if factor > 1:
        size = (max(1, round(grey_HW.shape[1] / factor)), max(1, round(grey_HW.shape[0] / factor)))
        small_HW = np.asarray(Image.fromarray(grey_HW).resize(size, Image.Resampling.BOX))
    border = np.concatenate([small_HW[0], small_HW[-1], small_HW[:, 0], small_HW[:, -1]])
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
    edge_HW = kept_HW & ~ndimage.binary_erosion(kept_HW, border_value=0)
    y_E, x_E = edge_HW.nonzero()
    edge_E2 = np.stack([x_E, y_E], 1).astype(float)
    if len(edge_E2) < 3 or np.ptp(edge_E2, axis=0).min() < 2:
        return None
    y_Q, x_Q = echo_HW.nonzero()
    scale = np.array([grey_HW.shape[1] / small_HW.shape[1], grey_HW.shape[0] / small_HW.shape[0]])
    points = edge_E2[ConvexHull(edge_E2).vertices], edge_E2, np.stack([x_Q, y_Q], 1)
    # Pixel centres of the small picture lie between those of the source.
    hull_P2, edge_E2, echo_Q2 = ((p + 0.5) * scale - 0.5 for p in points)
    return hull_P2, edge_E2, echo_Q2


def _fit_sector(
    hull_P2: np.ndarray, edge_E2: np.ndarray, echo_Q2: np.ndarray | None = None, step: float = 1.0
) -> tuple[tuple[float, float], ...] | None:
    """The tightest sector around the hull, opening downwards.

    It has two straight sides and two arcs about their meeting point. Each side is the supporting line
    (nothing lies beyond it) that most edge pixels touch, out of all slopes.

    Returns:
        The sector as a polygon, or None when a side has too little support or is upright.
    """
    low, high = edge_E2.min(0), edge_E2.max(0)
    tolerance = 0.008 * float((high - low).max())
    # Pixels on the border of the hull's box say nothing about a slanted side.
    inner = ((edge_E2 > low + tolerance) & (edge_E2 < high - tolerance)).all(1)
    angle_A = np.radians(np.arange(8, 87, 0.5))
    sides = []
    for sign in (-1, 1):  # left, right
        normal_A2 = np.stack([sign * np.cos(angle_A), -np.sin(angle_A)], 1)
        support_A = (hull_P2 @ normal_A2.T).max(0)
        touching_AE = edge_E2[inner] @ normal_A2.T > support_A - tolerance
        touched_A = touching_AE.sum(0)
        best = int(touched_A.argmax())
        along = edge_E2[inner][touching_AE[:, best]]
        if len(along) == 0 or np.hypot(*np.ptp(along, axis=0)) < 0.2 * (high - low).max():
            return None
        sides.append((normal_A2[best], support_A[best]))
    apex = np.linalg.solve(np.stack([side[0] for side in sides]), np.array([side[1] for side in sides]))
    # Angles from straight down; a side's direction is at right angles to its outward normal.
    left, right = (float(np.arctan2(-normal[1], abs(normal[0]))) for normal, _ in sides)
    radius_E = np.hypot(*(edge_E2 - apex).T)
    inner_radius, outer_radius = float(radius_E.min()), float(np.hypot(*(hull_P2 - apex).T).max())
    if echo_Q2 is not None:
        inner_radius = _near_field(apex, inner_radius, (left, right), echo_Q2, step)
    # Side normal (cos a, -sin a) means direction (sin a, cos a): the half-opening is a itself.
    turn_T = np.linspace(-left, right, 65)
    arc_T2 = np.stack([np.sin(turn_T), np.cos(turn_T)], 1)
    outer_T2, inner_T2 = apex + outer_radius * arc_T2, apex + inner_radius * arc_T2[::-1]
    polygon = np.concatenate([outer_T2, inner_T2]).round(1)
    return tuple(map(tuple, polygon.tolist()))


def _near_field(
    apex: np.ndarray, inner_radius: float, sides: tuple[float, float], echo_Q2: np.ndarray, step: float
) -> float:
    """The inner radius with the bright arcs next to the probe, which are thin and were taken for a bar.

    Going inwards ring by ring, a ring belongs to the image when echoes fill half of it.

    Args:
        sides: angles of the left and right side from straight down.
        echo_Q2: all echoes, (x, y) in the source.
        step: distance of two neighbouring echoes.
    """
    to_Q2 = echo_Q2 - apex
    radius_Q, angle_Q = np.hypot(*to_Q2.T), np.arctan2(to_Q2[:, 0], to_Q2[:, 1])
    between_Q = (angle_Q > -sides[0]) & (angle_Q < sides[1])
    ring_Q = np.floor((inner_radius - radius_Q) / (2 * step)).astype(int)
    rings = np.arange(round(NEAR_FIELD * WORKING_SIDE / 2))
    near_Q = between_Q & (ring_Q >= 0) & (ring_Q < len(rings))
    count_R = np.bincount(ring_Q[near_Q], minlength=len(rings))
    middle_R = np.maximum(inner_radius - (rings + 0.5) * 2 * step, step)
    filled_R = count_R * step**2 / (sum(sides) * middle_R * 2 * step)
    full = (filled_R > 0.5).nonzero()[0]
    return max(0.0, inner_radius - (full[-1] + 1) * 2 * step) if len(full) else inner_radius
