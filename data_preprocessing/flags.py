"""What a scanner or a person has drawn over the echo image: colour Doppler, a second view, calipers, text.

Training images with such marks teach a model to draw them, and a class that has more of them than another
can be told by the marks alone, so each image carries flags. They are found by simple rules, without training:
they miss marks and now and then take tissue for one. "dual" and "doppler" rather miss one than raise a
false one.

Axes: H W pixels, h w pixels of the half-size picture, C colour channels, G glyphs.
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
# Colour Doppler covers a connected area of at least this share of the picture, so thick that something is
# left when this many half-size pixels are taken off all around: lines and letters are not.
DOPPLER_AREA = 0.0006
DOPPLER_THICK = 1
# Height up to which a wide area of colour may be a highlighted line of text, in pixels.
LINE = 16
# Grey levels that a drawn line is brighter than its surroundings, and at least; side of the surroundings.
CONTRAST, BRIGHT = 50, 130
SURROUNDINGS = 14
# Distances from the centre of a cross at which each of its arms has a pixel: small and large crosses.
ARMS = ((3, 4, 5), (5, 6, 7))
# Where the lines go on that only cross: beyond the arms of the largest cross.
LINES_ON = ((0, 16), (0, -16), (16, 0), (-16, 0))
# Height of letters, in pixels, and the number of bright parts from which on they are speckle.
LETTER = (6, 34)
MOST_PARTS = 1500
# The step across the seam of two views is so many times the usual one, so many times those beside it, and so
# many grey levels.
SEAM_TIMES, SEAM_ALONE, SEAM_LEVELS = 1.8, 2.2, 12
# A gap between two views is at most this bright, and this share of the width wide.
GAP_LEVEL, GAP_WIDTH = 12, 0.01


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
    if min(kept_HW.shape) < 32:
        return ()
    grey = piece.convert("L")
    marks_HW = _marks(grey) & kept_HW
    found = set()
    colour_hw = None
    if piece.mode == "RGB":
        half_hwC = np.asarray(piece.reduce(2))
        colour_hw = _colour(
            half_hwC, np.asarray(kept.resize(half_hwC.shape[1::-1], Image.Resampling.NEAREST))
        )
        doppler_hw = _doppler(half_hwC, colour_hw)
        if doppler_hw.any():
            found.add("doppler")
            marks_HW &= ~_double(doppler_hw, marks_HW.shape)
            colour_hw &= ~doppler_hw
    grey_HW = np.asarray(grey)
    if _has_cross(marks_HW, grey_HW):
        found.add("calipers")
    if _has_row(marks_HW, colour_hw):
        found.add("text")
    if _is_dual(grey_HW, kept_HW):
        found.add("dual")
    return tuple(sorted(found))


def _double(small_hw: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A half-size picture at full size; Image.reduce rounds sizes up."""
    return small_hw.repeat(2, 0).repeat(2, 1)[: shape[0], : shape[1]]


def _marks(grey: Image.Image) -> np.ndarray:
    """Thin bright strokes, (H, W) bool: much brighter than their surroundings."""
    grey_HW = np.asarray(grey)
    around_hw = np.asarray(grey.reduce(2).filter(ImageFilter.BoxBlur(SURROUNDINGS // 4)))
    # In uint8: no wrap-around, as 255 - CONTRAST is the largest level that can be exceeded.
    level_hw = np.minimum(around_hw, 255 - CONTRAST) + np.uint8(CONTRAST)
    return grey_HW > _double(np.maximum(level_hw, BRIGHT), grey_HW.shape)


def _colour(pixels_hwC: np.ndarray, kept_hw: np.ndarray) -> np.ndarray:
    """Where the picture has a colour that its grey map has not, (h, w) bool."""
    red_hw, green_hw, blue_hw = (pixels_hwC[..., channel] for channel in range(3))
    high_hw = np.maximum(np.maximum(red_hw, green_hw), blue_hw)
    chroma_hw = high_hw - np.minimum(np.minimum(red_hw, green_hw), blue_hw)
    colour_hw = (chroma_hw > COLOURED) & kept_hw
    if colour_hw.any():
        # The tint of a grey map grows with the brightness; most pixels have it.
        bright_hw = kept_hw & (high_hw > 20)
        tint = float(np.median(chroma_hw[bright_hw][::7] / high_hw[bright_hw][::7]))
        colour_hw &= chroma_hw > tint * high_hw + COLOURED / 2
    return colour_hw


def _doppler(pixels_hwC: np.ndarray, colour_hw: np.ndarray) -> np.ndarray:
    """The areas of colour flow, (h, w) bool: red to orange or blue to cyan, and thick."""
    if not colour_hw.any():
        return colour_hw
    red_hw, green_hw, blue_hw = (pixels_hwC[..., channel].astype(np.int16) for channel in range(3))
    # Yellow letters have as much green as red, green frames more.
    flow_hw = (red_hw > np.maximum(green_hw, blue_hw) + COLOURED) | (
        (blue_hw > red_hw + COLOURED) & (blue_hw > green_hw)
    )
    flow_hw &= colour_hw
    flow_hw = ndimage.binary_closing(flow_hw)
    areas_hw, number = ndimage.label(flow_hw)
    if number == 0:
        return flow_hw
    core_hw = ndimage.binary_erosion(flow_hw, np.ones((3, 3)), iterations=DOPPLER_THICK)
    sizes = np.bincount(areas_hw.ravel())
    kept = (sizes >= DOPPLER_AREA * flow_hw.size) & (np.bincount(areas_hw[core_hw], minlength=number + 1) > 0)
    kept[0] = False
    places = ndimage.find_objects(areas_hw)
    for index in kept.nonzero()[0]:
        height, width = (2 * (side.stop - side.start) for side in places[index - 1])
        kept[index] = height > LINE or width < 1.5 * height
    return kept[areas_hw]


def _has_cross(marks_HW: np.ndarray, grey_HW: np.ndarray) -> bool:
    """Whether there is an upright cross, with or without an open centre: four arms, nothing between."""
    height, width = marks_HW.shape
    for steps in ARMS:
        reach = max(steps) + 3
        middle_HW = np.ones((height - 2 * reach, width - 2 * reach), bool)
        for step in steps:
            for down, across in ((0, step), (0, -step), (step, 0), (-step, 0)):
                rows = slice(reach + down, height - reach + down)
                middle_HW &= marks_HW[rows, reach + across : width - reach + across]
        arms, between = _cross(steps, reach)
        for y, x in zip(*divmod(np.flatnonzero(middle_HW)[:300], middle_HW.shape[1]), strict=True):
            square = slice(y, y + 2 * reach + 1), slice(x, x + 2 * reach + 1)
            grey = grey_HW[square].astype(int)
            drawn = grey[arms]
            # Where four lines go on, two interfaces cross.
            ends = [(y + reach + down, x + reach + across) for down, across in LINES_ON]
            if all(0 <= v < height and 0 <= u < width and marks_HW[v, u] for v, u in ends):
                continue
            # Letters and arrows are drawn between the arms too.
            empty = marks_HW[square][between].mean() < 0.1
            if empty and np.ptp(drawn) < 110 and drawn.mean() - grey[between].mean() > CONTRAST:
                return True
    return False


@cache
def _cross(steps: tuple[int, ...], reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Arms of a cross and the four quarters between them, in a square of 2 reach + 1 pixels, bool both."""
    away = abs(np.arange(-reach, reach + 1))
    on_arm, on_axis = np.isin(away, steps), away == 0
    arms = (on_arm[:, None] & on_axis) | (on_axis[:, None] & on_arm)
    return arms, (away[:, None] >= 3) & (away >= 3)


def _has_row(marks_HW: np.ndarray, colour_hw: np.ndarray | None) -> bool:
    """Whether there are three glyphs side by side with the same top and foot, or two coloured ones."""
    parts_HW, number = ndimage.label(marks_HW, np.ones((3, 3)))
    if not 1 < number < MOST_PARTS:
        return False
    y_N, x_N = divmod(np.flatnonzero(marks_HW), marks_HW.shape[1])
    part_N = parts_HW[y_N, x_N]
    order = part_N.argsort(kind="stable")
    y_N, x_N, starts = y_N[order], x_N[order], np.searchsorted(part_N[order], np.arange(1, number + 1))
    # Bounding boxes of all parts at once.
    low_y, high_y = np.minimum.reduceat(y_N, starts), np.maximum.reduceat(y_N, starts) + 1
    low_x, high_x = np.minimum.reduceat(x_N, starts), np.maximum.reduceat(x_N, starts) + 1
    height, width = high_y - low_y, high_x - low_x
    solid = np.diff(np.append(starts, len(y_N))) >= 0.75 * height * width
    glyph = (height >= LETTER[0]) & (height <= LETTER[1]) & (width <= 1.5 * height)
    # An I is solid, and so are bright grains, but those are wide.
    glyph &= ~solid | (width < 0.35 * height)
    top_G, foot_G, left_G, right_G = (edge[glyph] for edge in (low_y, high_y, low_x, high_x))
    height_G = foot_G - top_G
    slack_G = np.maximum(1, np.round(0.1 * height_G))
    gap_GG = left_G[None] - right_G[:, None]
    aligned_GG = (gap_GG > 0) & (abs(top_G[None] - top_G[:, None]) <= slack_G)
    aligned_GG &= abs(foot_G[None] - foot_G[:, None]) <= slack_G
    follows_GG = aligned_GG & (gap_GG <= 1.3 * height_G)
    if (follows_GG.any(0) & follows_GG.any(1)).any():
        return True
    # A hyphen may lie between two coloured letters.
    follows_GG = aligned_GG & (gap_GG <= 2 * height_G)
    if colour_hw is None or not follows_GG.any():
        return False
    coloured_G = np.array(
        [
            colour_hw[top // 2 : foot // 2 + 1, left // 2 : right // 2 + 1].mean() > 0.12
            for top, foot, left, right in zip(top_G, foot_G, left_G, right_G, strict=True)
        ]
    )
    return bool((follows_GG & coloured_G & coloured_G[:, None]).any())


def _is_dual(grey_HW: np.ndarray, kept_HW: np.ndarray) -> bool:
    """Whether a seam or a dark gap runs from top to foot near the middle, with echoes on both sides."""
    height, width = grey_HW.shape
    near, far = round(0.3 * width), round(0.7 * width)
    # Every second row says enough.
    middle_HW = grey_HW[: height // 16 * 16 : 2, near:far].astype(np.int16)
    # Mean step from each column to the next, in eight bands; speckle is wider than a pixel, a seam is not.
    step_8W = abs(np.diff(middle_HW, axis=1)).reshape(8, -1, middle_HW.shape[1] - 1).mean(1)
    usual_81 = np.median(step_8W, axis=1, keepdims=True)
    found_8W = (step_8W > SEAM_TIMES * usual_81) & (step_8W > SEAM_LEVELS / 2)
    # A shadow begins below the skin; far down both views may be dark.
    seam_W = found_8W[0] & (found_8W.sum(0) >= 5)
    step_W = step_8W.mean(0)
    # A drawn line has an edge on both sides, and the edge of a shadow is not sharp.
    around = np.arange(-6, 7) != 0
    alone_W = step_W > SEAM_ALONE * ndimage.maximum_filter(step_W, footprint=around)
    seams = (seam_W & alone_W & (step_W > SEAM_LEVELS)).nonzero()[0]
    if len(seams):
        left = right = near + int(seams[0]) + 1
    else:
        dark_W = (grey_HW[::2, near:far] > GAP_LEVEL).mean(0) <= 0.01
        whole_W = kept_HW[::2, near:far].mean(0) > 0.8
        gap_W = ndimage.binary_opening(dark_W & whole_W, np.ones(max(2, round(GAP_WIDTH * width))))
        if not gap_W.any():
            return False
        left, right = near + int(gap_W.argmax()), far - int(gap_W[::-1].argmax())
    return all((view > 2 * GAP_LEVEL).mean() > 0.3 for view in (grey_HW[:, :left], grey_HW[:, right:]))
