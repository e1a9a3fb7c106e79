"""What a scanner or a person has drawn over the echo image: colour Doppler, a second view, calipers, text.

Training images with such marks teach a model to draw them, and a class that has more of them than another
can be told by the marks alone, so each image carries flags. They are found by simple rules, without training:
they miss marks and now and then take tissue for one. "dual" and "doppler" rather miss one than raise a
false one.

Axes: H W pixels, C colour channels.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageFilter
from scipy import ndimage

from data_preprocessing.crop import Frame, inside

FLAGS = ("calipers", "doppler", "dual", "text")
# Larger scan areas are halved (or more) to at most this many pixels on their longer side.
LONGEST = 1000
# Difference of the largest and smallest channel from which on a pixel has a colour.
COLOURED = 60
# Colour Doppler covers a connected area of at least this share of the scan area that survives taking off this
# many pixels all around (lines and letters do not), and not more than this share (a tinted picture).
DOPPLER_AREA = 0.0006
DOPPLER_THICK = 3
# Height up to which a wide area of colour may be a highlighted line of text, in pixels.
LINE = 16
# Grey levels that a drawn line is brighter than its surroundings, and at least.
CONTRAST, BRIGHT = 50, 130
# Side of the surroundings in pixels.
SURROUNDINGS = 15
# Distances from the centre of a cross at which each of its arms has a pixel.
ARM = (3, 4, 5)
# Height of letters, in pixels, and the number of bright parts above which it is speckle.
LETTER = (6, 34)
MOST_PARTS = 1500
# How much larger the step across the seam of two views is than the usual one.
SEAM = 2.5


def find_flags(picture: np.ndarray, frame: Frame) -> tuple[str, ...]:
    """The flags of one picture, sorted.

    Args:
        picture: (H, W, 3) RGB or (H, W) grey, uint8; colours are needed for "doppler".
        frame: what is kept of it, as found by crop.find_frame.

    Returns:
        Those of FLAGS that apply: "doppler" (a connected area of saturated red or blue), "dual" (two views
        side by side), "calipers" (crosses of a measurement), "text" (a row of letters or digits).
    """
    left, top, right, bottom = frame.box
    piece, kept = Image.fromarray(picture[top:bottom, left:right]), Image.fromarray(inside(frame))
    factor = -(-max(piece.size) // LONGEST)
    if factor > 1:
        piece = piece.reduce(factor)
        kept = kept.resize(piece.size, Image.Resampling.NEAREST)
    kept_HW = np.asarray(kept)
    grey = piece.convert("L")
    grey_HW = np.where(kept_HW, np.asarray(grey), 0)
    colour_HW = _colour(piece, kept_HW)
    marks_HW = _marks(grey, kept_HW)
    found = []
    if colour_HW is not None:
        doppler_HW = _doppler(np.asarray(piece), colour_HW)
        if doppler_HW.any():
            found.append("doppler")
            colour_HW = colour_HW & ~ndimage.binary_dilation(doppler_HW, iterations=4)
            marks_HW &= ~doppler_HW
    if _has_cross(marks_HW, grey_HW) or (colour_HW is not None and _has_cross(colour_HW, grey_HW)):
        found.append("calipers")
    if _has_row(marks_HW, 3) or (colour_HW is not None and _has_row(colour_HW, 2)):
        found.append("text")
    if _is_dual(grey_HW):
        found.append("dual")
    return tuple(sorted(found))


def _colour(piece: Image.Image, kept_HW: np.ndarray) -> np.ndarray | None:
    """Where the picture has colours that its grey map has not, (H, W) bool; None for a grey picture."""
    if piece.mode != "RGB":
        return None
    pixels_HWC = np.asarray(piece)
    red_HW, green_HW, blue_HW = (pixels_HWC[..., channel] for channel in range(3))
    high_HW = np.maximum(np.maximum(red_HW, green_HW), blue_HW)
    low_HW = np.minimum(np.minimum(red_HW, green_HW), blue_HW)
    colour_HW = (high_HW - low_HW > COLOURED) & kept_HW
    if not colour_HW.any():
        return None
    # The tint of a grey map depends on the brightness alone; most pixels of a level have it.
    tint_L = np.bincount(high_HW[kept_HW], high_HW[kept_HW] - low_HW[kept_HW], 256)
    tint_L /= np.maximum(np.bincount(high_HW[kept_HW], minlength=256), 1)
    return colour_HW & (high_HW - low_HW > tint_L[high_HW] + COLOURED / 2)


def _doppler(pixels_HWC: np.ndarray, colour_HW: np.ndarray) -> np.ndarray:
    """The areas of colour flow, (H, W) bool: red to yellow or blue to cyan, thick, and not everywhere."""
    red_HW, green_HW, blue_HW = (pixels_HWC[..., channel].astype(np.int16) for channel in range(3))
    # Yellow letters have as much green as red, green frames more.
    flow_HW = colour_HW & (
        (red_HW > np.maximum(green_HW, blue_HW) + COLOURED)
        | (blue_HW > red_HW + COLOURED) & (blue_HW > green_HW)
    )
    if not flow_HW.any():
        return flow_HW
    # JPEG keeps colours at half the resolution: single pixels are missing.
    dense_HW = ndimage.uniform_filter(flow_HW.astype(np.float32), 5) > 0.5
    core_HW = ndimage.binary_erosion(dense_HW, iterations=DOPPLER_THICK - 1)
    if np.count_nonzero(core_HW) < DOPPLER_AREA / 4 * core_HW.size:
        return np.zeros_like(flow_HW)
    areas_HW, number = ndimage.label(dense_HW)
    sizes = np.bincount(areas_HW.ravel(), minlength=number + 1)
    thick = np.bincount(areas_HW[core_HW], minlength=number + 1) > 0
    thick[0] = False
    large = thick & (sizes >= DOPPLER_AREA * core_HW.size)
    places = ndimage.find_objects(areas_HW)
    for index in large.nonzero()[0]:
        rows, columns = places[index - 1]
        # A highlighted line of text is flat and wide.
        height, width = rows.stop - rows.start, columns.stop - columns.start
        large[index] = height > LINE or width < 2 * height
    return large[areas_HW]


def _marks(grey: Image.Image, kept_HW: np.ndarray) -> np.ndarray:
    """Thin bright strokes, (H, W) bool: much brighter than their surroundings."""
    around = np.asarray(grey.filter(ImageFilter.BoxBlur(SURROUNDINGS // 2)))
    grey_HW = np.asarray(grey)
    return (grey_HW > BRIGHT) & (grey_HW - np.minimum(around, grey_HW) > CONTRAST) & kept_HW


def _has_cross(marks_HW: np.ndarray, grey_HW: np.ndarray) -> bool:
    """Whether there is an upright cross, with or without an open centre: four arms, nothing between."""
    height, width = marks_HW.shape
    reach = max(ARM) + 3
    if min(height, width) <= 2 * reach:
        return False
    middle_HW = np.ones((height - 2 * reach, width - 2 * reach), bool)
    for step in ARM:
        for down, across in ((0, step), (0, -step), (step, 0), (-step, 0)):
            rows = slice(reach + down, height - reach + down)
            middle_HW &= marks_HW[rows, reach + across : width - reach + across]
    for y, x in np.argwhere(middle_HW)[:500] + reach:
        marks = marks_HW[y - reach : y + reach + 1, x - reach : x + reach + 1]
        grey = grey_HW[y - reach : y + reach + 1, x - reach : x + reach + 1].astype(int)
        arms = np.concatenate([grey[_arms(reach)[0]], grey[_arms(reach)[1]]])
        between = _between(reach)
        if (
            marks[between].mean() < 0.2
            and np.ptp(arms) < 110
            and arms.mean() - grey[between].mean() > CONTRAST
        ):
            return True
    return False


@cache
def _arms(reach: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Indices of the pixels of the arms of a cross in a square of 2 reach + 1 pixels."""
    along = np.array([reach + sign * step for step in ARM for sign in (-1, 1)])
    across = np.full(len(along), reach)
    return (across, along), (along, across)


@cache
def _between(reach: int) -> np.ndarray:
    """The four quarters between the arms, (2 reach + 1, 2 reach + 1) bool."""
    away = abs(np.arange(-reach, reach + 1)) >= 3
    return away[:, None] & away


def _has_row(marks_HW: np.ndarray, fewest: int) -> bool:
    """Whether there are at least `fewest` glyphs side by side with the same top and foot."""
    parts_HW, number = ndimage.label(marks_HW, np.ones((3, 3)))
    if not 0 < number < MOST_PARTS:
        return False
    sizes = np.bincount(parts_HW.ravel())
    glyphs = []
    for index, place in enumerate(ndimage.find_objects(parts_HW), 1):
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not LETTER[0] <= height <= LETTER[1] or not 1 <= width <= 1.5 * height:
            continue
        if sizes[index] < 0.75 * height * width or width < 0.35 * height:
            glyphs.append((columns.start, columns.stop, rows.start, rows.stop))
    glyphs.sort()
    # Length of the row that ends with each glyph.
    length = [1] * len(glyphs)
    for last, (start, _, top, foot) in enumerate(glyphs):
        for before in range(last):
            _, stop, other_top, other_foot = glyphs[before]
            height = foot - top
            slack = max(1, round(0.1 * height))
            aligned = abs(top - other_top) <= slack and abs(foot - other_foot) <= slack
            if aligned and 0 < start - stop <= 1.3 * height:
                length[last] = max(length[last], length[before] + 1)
                if length[last] >= fewest:
                    return True
    return False


def _is_dual(grey_HW: np.ndarray) -> bool:
    """Whether a seam or a dark gap runs from top to foot near the middle, with echoes on both sides."""
    height, width = grey_HW.shape
    if width < 64 or height < 64:
        return False
    near, far = round(0.3 * width), round(0.7 * width)
    grey_HW = grey_HW[: height // 4 * 4].astype(np.int16)
    # Mean step from each column to the next, in four bands; speckle is wider than a pixel, a seam is not.
    step_4W = abs(np.diff(grey_HW, axis=1)).reshape(4, -1, width - 1).mean(1)
    usual_41 = np.median(step_4W[:, near:far], axis=1, keepdims=True) + 0.5
    spike_4W = step_4W[:, near:far] / usual_41
    return bool((np.sort(spike_4W, axis=0)[1] > SEAM).any())
