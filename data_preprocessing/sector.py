"""Fit a sector, the shape of a fan, to the echoes that were recognised on a screen.

A sector is two straight sides that meet in an apex, and two arcs about it: what a curved or phased array
shows. It is chosen by how well it agrees with the image on a coarse grid, then moved to the edge pixels.

Axes: H W pixels; P corners, E edge pixels, N cells of a coarse grid, A angles, R rings. Points are (x, y)
with pixel centres on whole numbers.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

# The screen is searched at this length of its longer side: speckle averages out, time is constant.
WORKING_SIDE = 320
# Working pixels per side of a cell of the coarse grid on which sectors are compared.
CELL = 4
# How well a sector must agree with the echoes to be believed (shared cells over cells of either).
SECTOR_COVER = 0.75
# A side of the sector that is drawn in by a few stray cells must gain this much agreement.
GAIN = 0.004
# A side is believed from this share of its length on.
STRAIGHT = 0.5
# An image whose upper edge is straight over more than this share of its width is a rectangle, unless both
# slanted sides are there.
FLAT_TOP = 0.75
# Most fans are symmetric: agreement that a wholly lopsided one must have more.
LOPSIDED = 0.05
# Straight edges along both sides are worth this much agreement each.
SUPPORTED = 0.02
# So many of the proposed sectors are looked at closely.
FINALISTS = 3
# Shares of the image that may lie beyond a side of the sector.
STRAYS = (0.003, 0.01, 0.03)
# No side is further from straight down, in radians.
WIDEST = 1.5
# Step of angle, in radians, in which a side's edge pixels are counted.
BIN = 0.008
# How much agreement the other side of a symmetric sector may cost, where it lies in the dark.
MIRRORED = 0.2
# How far above the recognised image the bright arcs at the probe may lie, as a share of the longer side.
NEAR_FIELD = 0.06


@dataclass(frozen=True)
class Sector:
    """Two straight sides that meet in the apex, and two arcs about it."""

    apex: np.ndarray
    # Radii of the arc at the probe and of the far one.
    near: float
    far: float
    # Angles of the sides from straight down, radians; left is negative.
    left: float
    right: float

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """What `_Polar` judges about an apex."""
        return self.near, self.far, self.left, self.right

    @property
    def lopsided(self) -> float:
        """How much further one side is from straight down than the other, 0 to 1."""
        return abs(self.left + self.right) / max(self.right - self.left, 0.01)

    def polygon(self) -> np.ndarray:
        """Corners (P, 2); the arcs are chords so short that they stay within a pixel."""
        outer_T, inner_T = np.linspace(self.left, self.right, 33), np.linspace(self.right, self.left, 17)
        turn_T = np.concatenate([outer_T, inner_T])
        radius_T = np.repeat([self.far, self.near], [len(outer_T), len(inner_T)])
        return self.apex + radius_T[:, None] * np.stack([np.sin(turn_T), np.cos(turn_T)], 1)


class _Polar:
    """The cells of a coarse grid seen from an apex, and how well sectors about it agree with them."""

    def __init__(self, share_HW: np.ndarray, cell: int, apex: np.ndarray):
        height, width = share_HW.shape
        x = (np.arange(width) + 0.5) * cell - 0.5 - apex[0]
        y = ((np.arange(height) + 0.5) * cell - 0.5 - apex[1])[:, None]
        self.apex, self.cell = apex, cell
        self.radius_N = np.hypot(x, y).ravel()
        self.angle_N = np.arctan2(x, y).ravel()
        self.share_N = share_HW.ravel()
        self.total = float(self.share_N.sum())

    def agreement(self, near: float, far: float, left: float, right: float) -> float:
        """Cells that sector and echoes share, over the cells of either."""
        inside_N = (self.radius_N >= near) & (self.radius_N <= far)
        inside_N &= (self.angle_N >= left) & (self.angle_N <= right)
        shared = float(self.share_N[inside_N].sum())
        return shared / (np.count_nonzero(inside_N) + self.total - shared)

    def fit(self) -> tuple[float, list[float]]:
        """The sector about this apex: around all cells, drawn in where only strays lie beyond."""
        held_N = self.share_N > 0.5
        radius_N, angle_N = np.sort(self.radius_N[held_N]), np.sort(self.angle_N[held_N])
        last = len(radius_N) - 1
        half = self.cell / 2
        sector = [
            max(radius_N[0] - half, 0.0),
            radius_N[-1] + half,
            *np.clip(angle_N[[0, -1]], -WIDEST, WIDEST),
        ]
        best = self.agreement(*sector)
        for _ in range(2):
            for place, values_N in enumerate((radius_N, radius_N, angle_N, angle_N)):
                # Sides are ragged by shadows and text; beyond an arc lies little but the last dim echoes.
                for stray in STRAYS if place > 1 else STRAYS[:2]:
                    rank = round((stray if place in (0, 2) else 1 - stray) * last)
                    tried = sector.copy()
                    tried[place] = values_N[rank]
                    agreement = self.agreement(*tried)
                    if agreement > best + GAIN:
                        best, sector = agreement, tried
        return best, sector


def fit_sector(kept_HW: np.ndarray, echo_HW: np.ndarray) -> tuple[Sector, tuple[bool, ...]] | None:
    """The sector that agrees best with the image, opening downwards.

    Apexes are proposed by pairs of straight sides and by the centres of the two arcs. Each is judged by how
    well the best sector about it agrees with the image, on a coarse grid; the best is then moved to the edge
    pixels.

    Args:
        kept_HW: bool, the image without text and other furniture, on a copy of the screen whose longer side
            is at most WORKING_SIDE.
        echo_HW: bool, all that is brighter than black.

    Returns:
        The sector in pixels of the small copy, and at which sides of the image's box (left, top, right,
        bottom) it is cut off; None when no sector agrees, or the image is a rectangle.
    """
    edge_E2 = _edge(kept_HW)
    low, high = edge_E2.min(0), edge_E2.max(0)
    extent = float((high - low).max())
    tolerance = max(1.0, 0.008 * extent)
    # A straight edge along the box says nothing about a slanted side, but that the fan is cut off there.
    along_E4 = np.concatenate([edge_E2 < low + tolerance, edge_E2 > high - tolerance], 1)
    inner_E2 = edge_E2[~along_E4.any(1)]
    if len(inner_E2) < 20:
        return None
    share_HW = _cells(kept_HW)
    # Black cysts and shadows between echoes above and below belong to the image: no sector is hollow there.
    held_HW = share_HW > 0.5
    below_HW = np.maximum.accumulate(held_HW, 0) & np.maximum.accumulate(held_HW[::-1], 0)[::-1]
    share_HW = np.maximum(share_HW, below_HW)
    coarse_HW = _cells(share_HW, 2)
    if not (coarse_HW > 0.5).any():  # so small an area fills no cell
        return None
    proposed = []
    for apex in _apexes(edge_E2, inner_E2, kept_HW, tolerance):
        agreement, limits = _Polar(coarse_HW, 2 * CELL, apex).fit()
        sector = Sector(apex, *limits)
        proposed.append((agreement - LOPSIDED * sector.lopsided, sector))
    proposed.sort(key=lambda fit: -fit[0])
    fits = []
    for _, sector in proposed[:FINALISTS]:
        sector = _snapped(sector, inner_E2)
        refined = _refined(sector, inner_E2)
        for tried in (sector,) if refined is sector else (sector, _snapped(refined, inner_E2)):
            agreement = _Polar(share_HW, CELL, tried.apex).agreement(*tried.limits)
            supports = [_support(tried, side, inner_E2, low, high, tolerance) for side in tried.limits[2:]]
            score = agreement - LOPSIDED * tried.lopsided + SUPPORTED * sum(supports)
            fits.append((score, agreement, supports, tried))
    if not fits:
        return None
    _, agreement, supports, sector = max(fits, key=lambda fit: fit[0])
    box_agreement = float(share_HW.sum()) / float(np.prod((high - low + 1) / CELL))
    if agreement < max(SECTOR_COVER, box_agreement):
        return None
    if _flat_top(kept_HW, tolerance) and min(supports) < STRAIGHT / 1.5:
        return None
    # A side in the dark is where the other one is.
    left, right = sector.left, sector.right
    if supports[0] < STRAIGHT <= supports[1]:
        left = min(left, -right)
    elif supports[1] < STRAIGHT <= supports[0]:
        right = max(right, -left)
    mirrored = replace(sector, left=left, right=right)
    if _Polar(share_HW, CELL, sector.apex).agreement(*mirrored.limits) > agreement - MIRRORED:
        sector = mirrored
    sector = replace(sector, near=_near_field(sector, echo_HW))
    straight = along_E4.sum(0) > STRAIGHT * np.tile((high - low)[::-1], 2)
    return sector, tuple(straight.tolist())


def _flat_top(kept_HW: np.ndarray, tolerance: float) -> bool:
    """Whether the upper edge of the image is straight, without the hollow that a curved probe leaves."""
    columns = kept_HW.any(0).nonzero()[0]
    first = kept_HW[:, columns].argmax(0)
    flat = first <= first.min() + 2 * tolerance
    third = len(flat) // 3
    return flat.mean() > FLAT_TOP and flat[third : 2 * third + 1].mean() > 0.9


def _support(
    sector: Sector, side: float, edge_E2: np.ndarray, low: np.ndarray, high: np.ndarray, tolerance: float
) -> float:
    """The share of a side of the sector, as far as it lies in the box, that an edge of the image lies beside.

    Returns:
        0 to 1; 0 when so little of the side is in the box that it says nothing.
    """
    radius_T = np.arange(sector.near, sector.far)
    line_T2 = sector.apex + radius_T[:, None] * [np.sin(side), np.cos(side)]
    visible = ((line_T2 > low + tolerance) & (line_T2 < high - tolerance)).all(1)
    if visible.sum() < 0.1 * float((high - low).max()):
        return 0.0
    to_E2 = edge_E2 - sector.apex
    radius_E = to_E2 @ [np.sin(side), np.cos(side)]
    beside_E = abs(to_E2 @ [np.cos(side), -np.sin(side)]) < 2 * tolerance
    hit = np.zeros(len(radius_T), bool)
    index = np.round(radius_E[beside_E] - sector.near).astype(int)
    hit[index[(index >= 0) & (index < len(hit))]] = True
    hit = ndimage.maximum_filter1d(hit, 3)
    return float(hit[visible].mean())


def _refined(sector: Sector, edge_E2: np.ndarray) -> Sector:
    """The sector with its apex where the lines through the edge pixels beside its two sides meet."""
    lines = []
    for side in (sector.left, sector.right):
        point, along = sector.apex, np.array([np.sin(side), np.cos(side)])
        for reach in (CELL, CELL / 2):
            to_E2 = edge_E2 - point
            beside_E = abs(to_E2 @ [along[1], -along[0]]) < reach
            depth_E = to_E2[beside_E] @ along
            if len(depth_E) < 20 or np.ptp(depth_E) < 0.4 * (sector.far - sector.near):
                return sector
            point = edge_E2[beside_E].mean(0)
            *_, axes = np.linalg.svd(edge_E2[beside_E] - point, full_matrices=False)
            along = axes[0] * np.sign(axes[0, 1])
        lines.append((point, along))
    (left_point, left), (right_point, right) = lines
    if left[0] >= right[0]:
        return sector
    lengths = _solved(np.stack([left, -right], 1), right_point - left_point)
    if lengths is None:
        return sector
    apex = left_point + lengths[0] * left
    lift = sector.apex[1] - apex[1]
    if np.hypot(*(apex - sector.apex)) > 0.3 * sector.far:
        return sector
    angles = (float(np.arctan2(*along)) for along in (left, right))
    return Sector(apex, max(sector.near + lift, 0.0), sector.far + lift, *angles)


def _solved(lines_22: np.ndarray, values_2: np.ndarray) -> np.ndarray | None:
    """Where two lines meet; None when they are parallel, or one has no direction."""
    return None if abs(np.linalg.det(lines_22)) < 1e-6 else np.linalg.solve(lines_22, values_2)


def _snapped(sector: Sector, edge_E2: np.ndarray) -> Sector:
    """The sector with sides and arcs moved from whole cells to the edge pixels beside them."""
    radius_E = np.hypot(*(edge_E2 - sector.apex).T)
    angle_E = np.arctan2(*(edge_E2 - sector.apex).T)
    limits = {}
    reach = 2 * CELL
    between_E = (angle_E > sector.left) & (angle_E < sector.right)
    for name, outwards in (("near", 0.1), ("far", 0.9)):
        beside_E = radius_E[between_E & (abs(radius_E - getattr(sector, name)) < reach)]
        limits[name] = float(np.quantile(beside_E, outwards)) if len(beside_E) > 10 else getattr(sector, name)
    # The straight side that most edge pixels lie on, looked for outwards: dark tissue bites into the sector.
    for name, sign in (("left", -1), ("right", 1)):
        side = sign * getattr(sector, name)
        within_E = sign * angle_E > side - np.radians(4)
        outer_E, depth_E = sign * angle_E[within_E], radius_E[within_E]
        count_A = np.bincount(np.floor((outer_E - side + np.radians(4)) / BIN).astype(int), minlength=3)
        count_A = np.convolve(count_A, np.ones(3, int), "same")
        best = int(count_A.argmax())
        if count_A[best] > 0.2 * (sector.far - sector.near):
            side += (best + 0.5) * BIN - np.radians(4)
        beside_E = outer_E[(abs(outer_E - side) < 0.5) & (abs(depth_E * np.sin(outer_E - side)) < CELL)]
        limits[name] = sign * (float(np.quantile(beside_E, 0.85)) if len(beside_E) > 10 else side)
    return replace(sector, **limits)


def _edge(mask_HW: np.ndarray) -> np.ndarray:
    """Points (E, 2) of the pixels that have a neighbour outside the mask, or beyond the picture."""
    # By hand: scipy.ndimage.binary_erosion takes four times as long, on each picture.
    around_HW = np.pad(mask_HW, 1)
    within_HW = around_HW[:-2, 1:-1] & around_HW[2:, 1:-1] & around_HW[1:-1, :-2] & around_HW[1:-1, 2:]
    y_E, x_E = (mask_HW & ~within_HW).nonzero()
    return np.stack([x_E, y_E], 1).astype(float)


def _cells(share_HW: np.ndarray, side: int = CELL) -> np.ndarray:
    """Mean over cells of side x side pixels; pixels beyond the last whole cell are dropped."""
    height, width = (max(1, length // side) for length in share_HW.shape)
    whole_HW = share_HW[: height * side, : width * side].astype(np.float32)
    if min(share_HW.shape) < side:
        return whole_HW.mean(keepdims=True)
    return whole_HW.reshape(height, side, width, side).mean((1, 3))


def _sides(
    edge_E2: np.ndarray, inner_E2: np.ndarray, tolerance: float
) -> list[list[tuple[np.ndarray, float]]]:
    """Lines that may be the left and the right side: outward normal and distance from the origin.

    A side is the supporting line that most edge pixels touch, out of all slopes; a few stray pixels, or a
    few more, may lie beyond it.
    """
    angle_A = np.radians(np.arange(3, 87))
    # A few hundred pixels show a line as well as all.
    edge_E2, inner_E2 = (points[:: max(1, len(points) // 400)] for points in (edge_E2, inner_E2))
    both = []
    for sign in (-1, 1):  # left, right
        normal_A2 = np.stack([sign * np.cos(angle_A), -np.sin(angle_A)], 1)
        reach_EA = np.sort(edge_E2 @ normal_A2.T, axis=0)
        inner_EA = inner_E2 @ normal_A2.T
        sides = []
        for strays in (0, 0.02, 0.08):
            support_A = reach_EA[round((1 - strays) * (len(reach_EA) - 1))]
            if strays:
                support_A = support_A + tolerance
            touched_A = ((inner_EA > support_A - tolerance) & (inner_EA <= support_A)).sum(0)
            best = int(touched_A.argmax())
            sides.append((normal_A2[best], float(support_A[best])))
        both.append(sides)
    return both


def _apexes(
    edge_E2: np.ndarray, inner_E2: np.ndarray, kept_HW: np.ndarray, tolerance: float
) -> list[np.ndarray]:
    """Points where the sides of the sector may meet, (x, y), each proposed once."""
    proposed = []
    for left, right in product(*_sides(edge_E2, inner_E2, tolerance)):
        apex = _solved(np.stack([left[0], right[0]]), np.array([left[1], right[1]]))
        if apex is not None:
            proposed.append(apex)
    columns = kept_HW.any(0).nonzero()[0]
    middle = kept_HW[:, columns]
    first, last = middle.argmax(0), len(kept_HW) - 1 - middle[::-1].argmax(0)
    # The far arc is the lower edge of the image, the arc at the probe the hollow of its upper edge.
    proposed.append(_centre(columns, last, -1, tolerance, len(kept_HW)))
    hollow = slice(
        int(first[: len(first) // 2].argmin()), len(first) // 2 + int(first[len(first) // 2 :].argmin()) + 1
    )
    proposed.append(_centre(columns[hollow], first[hollow], 1, tolerance, len(kept_HW)))
    low, high = edge_E2.min(0), edge_E2.max(0)
    reach = high - low
    apexes = []
    for apex in proposed:
        if apex is None or not (low - [reach[0], 2 * max(reach)] < apex).all():
            continue
        if apex[0] > high[0] + reach[0] or apex[1] > low[1] + 0.1 * reach[1]:
            continue
        if all(np.hypot(*(apex - other)) > CELL for other in apexes):
            apexes.append(apex)
    return apexes


def _centre(x: np.ndarray, y: np.ndarray, sign: int, tolerance: float, height: int) -> np.ndarray | None:
    """Centre of the circle through a lower (sign -1) or upper edge, dark bites out of it left aside."""
    free = (y > 1) & (y < height - 2)
    points_P2 = np.stack([x[free], y[free]], 1).astype(float)
    for allowed in (8, 4, 2, 2, 2):
        if len(points_P2) < 15:
            return None
        design = np.concatenate([2 * points_P2, np.ones((len(points_P2), 1))], 1)
        solution, *_ = np.linalg.lstsq(design, (points_P2**2).sum(1))
        centre = solution[:2]
        radius = float(np.sqrt(max(solution[2] + (centre**2).sum(), 0.0)))
        beyond_P = sign * (radius - np.hypot(*(points_P2 - centre).T))
        # Dark tissue moves the edge into the image, text and rulers out of it.
        points_P2 = points_P2[abs(beyond_P) < allowed * tolerance]
    return centre if centre[1] < points_P2[:, 1].min() else None


def _near_field(sector: Sector, echo_HW: np.ndarray) -> float:
    """The inner radius with the bright arcs next to the probe, which are thin and were taken for a bar.

    Going inwards ring by ring, a ring belongs to the image when echoes fill half of it.

    Args:
        sector: in pixels of `echo_HW`.
        echo_HW: bool, all that is brighter than black.
    """
    y_Q, x_Q = echo_HW[: max(1, int(sector.apex[1] + sector.near) + 1)].nonzero()
    x_Q, y_Q = x_Q - sector.apex[0], y_Q - sector.apex[1]
    ring_Q = np.floor((sector.near - np.hypot(x_Q, y_Q)) / 2).astype(int)
    angle_Q = np.arctan2(x_Q, y_Q)
    rings = np.arange(round(NEAR_FIELD * WORKING_SIDE / 2))
    near_Q = (angle_Q > sector.left) & (angle_Q < sector.right) & (ring_Q >= 0) & (ring_Q < len(rings))
    count_R = np.bincount(ring_Q[near_Q], minlength=len(rings))
    middle_R = np.maximum(sector.near - 2 * (rings + 0.5), 1)
    full = (count_R > 0.5 * (sector.right - sector.left) * middle_R * 2).nonzero()[0]
    return max(0.0, sector.near - 2 * (full[-1] + 1)) if len(full) else sector.near


def sector_around(points_P2: np.ndarray) -> tuple[tuple[float, float], ...] | None:
    """Corners of the tightest sector around the polygon (P, 2); None when a side has too little support."""
    hull_P2 = points_P2[ConvexHull(points_P2).vertices]
    ahead_P2 = np.roll(hull_P2, -1, axis=0)
    steps = np.linspace(0, 1, 50, endpoint=False)[:, None, None]
    edge_E2 = (hull_P2 + steps * (ahead_P2 - hull_P2)).reshape(-1, 2)
    low, high = edge_E2.min(0), edge_E2.max(0)
    extent = float((high - low).max())
    tolerance = 0.008 * extent
    inner_E2 = edge_E2[((edge_E2 > low + tolerance) & (edge_E2 < high - tolerance)).all(1)]
    sides = [side[0] for side in _sides(edge_E2, inner_E2, tolerance)]
    for normal, support in sides:
        touching_E2 = inner_E2[inner_E2 @ normal > support - tolerance]
        if len(touching_E2) == 0 or np.hypot(*np.ptp(touching_E2, axis=0)) < 0.2 * extent:
            return None
    apex = _solved(np.stack([side[0] for side in sides]), np.array([side[1] for side in sides]))
    if apex is None:
        return None
    left, right = (float(np.arctan2(np.sign(n[0]) * -n[1], abs(n[0]))) for n, _ in sides)
    near, far = np.hypot(*(edge_E2 - apex).T).min(), np.hypot(*(hull_P2 - apex).T).max()
    return tuple(map(tuple, Sector(apex, float(near), float(far), left, right).polygon().round(1).tolist()))
