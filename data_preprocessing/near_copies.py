"""Near copies: a picture at another size, re-encoded, mirrored, with calipers drawn on, or cropped a little.

Two steps, over all data sets together. A hash of 63 bits proposes pairs; the correlation of two small
versions, after a linear alignment, decides. Both look at the scan area in a frame of its own: the box of 1.5
standard deviations around the centre of its brightness, squeezed to a square. That frame moves with the
picture, so that a cropped border, another fit of the fan or another aspect ratio changes little, and it lies
inside the fan: two fans of one machine do not become alike by their outline.

- Grey levels are first compressed (power 0.7), or a caliper's white on a dark picture would move the frame.
- The hash is the sign of the lowest 8 x 8 cosine coefficients, without the constant. Mirroring turns the sign
  of the odd horizontal frequencies and nothing else, so one fixed XOR gives the mirrored picture's hash.
- The small version is a band-pass (difference of Gaussians) with its extremes clipped: brightness and shadows
  count little, and the lines of a caliper not more than other edges.

The two usual hashes (those of the library ImageHash, tried by definition, on the whole crop) are no match:
on 1,200 real pictures, at the distance that finds 98% of planted copies, the difference hash proposes 4.3% of
all pairs, the perceptual hash 2.5%, this one 0.02%. The thresholds below were chosen on the same pictures.

Axes: N pictures, H W pixels, K pixels of a small version, B basis of the alignment, C candidates.
"""

import base64
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image
from scipy import fft, ndimage
from tqdm import tqdm

from data_preprocessing.on_disk import private_database

SIDE = 32
COMPRESS = np.rint(255 * (np.arange(256) / 255) ** 0.7).astype(np.uint8)
# Half the box, in standard deviations of the brightness; 1.8 and 2.2 gave 3 to 6 times the candidates.
REACH = 1.5
# Gaussians of the band-pass in pixels of the small version, and where it is clipped, in standard deviations.
BAND = (1.0, 3.0)
CLIP = 2.0
FREQUENCIES = 8
# Two pictures are candidates when at most this many of the 63 bits differ ...
NEAR_BITS = 13
# ... and near copies when their aligned small versions correlate at least so well. Of real pictures, those of
# different people reach 0.88 in one pair of lungs, and 0.84 elsewhere.
NEAR_CORRELATION = 0.88
# Without the alignment the correlation is at least so high: the alignment mends a pixel or two, not more.
PLAIN_CORRELATION = 0.5
# Grey levels up to here count as black.
BLACK = 5


@dataclass(frozen=True, slots=True)
class Signature:
    """What is stored of a scan area to find its copies; plain values only, about 1.4 kB."""

    # Bits of the lowest frequencies, 63 of them.
    hash: int
    # Base64 of the small version, (SIDE, SIDE) int8.
    small: str
    # Share of the area's pixels that are black, 0 to 1.
    black_share: float


class Smalls:
    """Small versions on the disk, read by rows like an array (N, SIDE * SIDE) int8.

    Not a memory map: each page of it that was touched counts as memory of the process.
    """

    def __init__(self) -> None:
        self.db, self.chosen_N = private_database(), None
        self.db.execute("CREATE TABLE small (n INTEGER PRIMARY KEY, pixels BLOB)")

    def append(self, small: str) -> None:
        """Add a signature's small version as the next row."""
        self.db.execute("INSERT INTO small (pixels) VALUES (?)", (base64.b64decode(small),))

    def of(self, chosen_N: np.ndarray) -> Self:
        """The rows with these numbers, counted anew."""
        chosen = copy(self)
        chosen.chosen_N = chosen_N
        return chosen

    def __getitem__(self, index: int | np.ndarray) -> np.ndarray:
        number = index if self.chosen_N is None else self.chosen_N[index]
        rows = [
            self.db.execute("SELECT pixels FROM small WHERE n = ?", (n + 1,)).fetchone()[0]
            for n in np.atleast_1d(number).tolist()
        ]
        return np.frombuffer(b"".join(rows), np.int8).reshape(*np.shape(index), SIDE * SIDE)


@dataclass(frozen=True)
class Copies:
    """The near copies among N pictures."""

    # (P, 2) indices, the first smaller than the second.
    pair_P2: np.ndarray
    # (P,) correlation after the alignment, NEAR_CORRELATION to 1.
    correlation_P: np.ndarray
    # (P,) bool: the second picture is mirrored.
    mirrored_P: np.ndarray
    # Pairs whose hashes were compared, that is all.
    compared: int
    # Pairs with near hashes; those that needed no look, being already of one group and class; the rest.
    candidates: int
    already_joined: int
    examined: int


def signature(area_HW: np.ndarray) -> Signature:
    """The signature of a scan area.

    Args:
        area_HW: uint8, black outside the scan area.
    """
    small_HW = _own_frame(COMPRESS[area_HW])
    bits = fft.dctn(small_HW, norm="ortho")[:FREQUENCIES, :FREQUENCIES].ravel() > 0
    bits[0] = False
    band_HW = ndimage.gaussian_filter(small_HW, BAND[0]) - ndimage.gaussian_filter(small_HW, BAND[1])
    most = CLIP * max(float(band_HW.std()), 1e-3)
    small_HW = np.rint(band_HW.clip(-most, most) * (127 / most)).astype(np.int8)
    return Signature(
        int.from_bytes(np.packbits(bits).tobytes(), "big"),
        base64.b64encode(small_HW.tobytes()).decode(),
        round(float((area_HW <= BLACK).mean()), 4),
    )


def _own_frame(area_HW: np.ndarray) -> np.ndarray:
    """The area between REACH standard deviations of its brightness on each side; (SIDE, SIDE) float32."""
    box = []
    for profile in (area_HW.sum(0, dtype=np.float64), area_HW.sum(1, dtype=np.float64)):
        centres = np.arange(len(profile)) + 0.5
        weight = profile / max(profile.sum(), 1.0)
        middle = weight @ centres
        reach = max(REACH * np.sqrt(max(weight @ (centres - middle) ** 2, 0.0)), 0.5)
        box.append((max(0.0, middle - reach), min(float(len(profile)), middle + reach)))
    (left, right), (top, bottom) = box
    small = Image.fromarray(area_HW).resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
    )
    return np.asarray(small, np.float32)


def _mirror_bits() -> int:
    odd = np.zeros((FREQUENCIES, FREQUENCIES), bool)
    odd[:, 1::2] = True
    return int.from_bytes(np.packbits(odd.ravel()).tobytes(), "big")


# Turns the hash of a picture into that of its mirror image.
MIRROR_BITS = np.uint64(_mirror_bits())


def find_copies(
    hash_N: np.ndarray,
    small_NK: np.ndarray | Smalls,
    owner_N: np.ndarray,
    part_N: np.ndarray,
    label_N: np.ndarray,
) -> Copies:
    """All near copies that join two groups or carry two labels.

    Every hash is compared with every other, one row of the matrix of distances at a time: at 13 of 63 bits,
    bands of the hash (multi-index hashing) would have to agree in 4 bits only, which excludes nothing. A
    candidate of one label, or one owner, whose ends have already been joined is not examined, so that the
    frames of a video, all alike, cost one pass.

    Args:
        hash_N: uint64, hashes of N pictures. Their order decides which of two is aligned to which and which
            pairs are redundant, so give them in an order that does not depend on file names.
        small_NK: int8, their small versions.
        owner_N: number of the patient or video; pairs of one are not looked for.
        part_N: number of the group that patients already make, by exact copies; as coarse as owner_N or more.
        label_N: number of its class.

    Returns:
        The pairs; joined with the known groups they make the groups of connected copies.
    """
    mirror_K = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)[:, ::-1].ravel()
    part_N = np.array(part_N)
    seconds, correlations, mirrors = [], [], []
    candidates = already_joined = 0
    for i in tqdm(range(len(hash_N)), "near copies", mininterval=0.5, disable=len(hash_N) < 5000):
        differing_M = hash_N[i + 1 :] ^ hash_N[i]
        direct_M = np.bitwise_count(differing_M)
        mirror_M = np.bitwise_count(differing_M ^ MIRROR_BITS)
        found_C = (np.minimum(direct_M, mirror_M) <= NEAR_BITS).nonzero()[0]
        if not len(found_C):
            continue
        second_C = found_C + i + 1
        open_C = part_N[second_C] != part_N[i]
        open_C |= (owner_N[second_C] != owner_N[i]) & (label_N[second_C] != label_N[i])
        candidates += len(found_C)
        already_joined += int((~open_C).sum())
        if not open_C.any():
            continue
        second_C, found_C = second_C[open_C], found_C[open_C]
        mirrored_C = mirror_M[found_C] < direct_M[found_C]
        basis_BK = _alignment_basis(small_NK[i])
        correlation_C = np.zeros(len(second_C))
        for mirrored in (False, True):
            chosen_C = mirrored_C == mirrored
            if chosen_C.any():
                basis = basis_BK[:, mirror_K] if mirrored else basis_BK
                correlation_C[chosen_C] = _correlation(basis, small_NK, second_C[chosen_C])
        near_C = correlation_C >= NEAR_CORRELATION
        if near_C.any():
            joined = np.unique(part_N[second_C[near_C]])
            part_N[np.isin(part_N, joined)] = part_N[i]
            seconds.append(np.stack([np.full(near_C.sum(), i), second_C[near_C]], 1))
            correlations.append(correlation_C[near_C])
            mirrors.append(mirrored_C[near_C])
    count = len(hash_N)
    return Copies(
        np.concatenate([np.empty((0, 2), np.int64), *seconds]),
        np.concatenate([np.empty(0), *correlations]),
        np.concatenate([np.empty(0, bool), *mirrors]),
        count * (count - 1) // 2,
        candidates,
        already_joined,
        candidates - already_joined,
    )


def _alignment_basis(small_K: np.ndarray) -> np.ndarray:
    """What a picture can become by a small shift or stretch, to first order.

    Returns:
        (5, SIDE * SIDE) float32, orthonormal, without mean; the first is the picture itself. The span holds
        its slopes along x and y, and those times x and y.
    """
    small_HW = small_K.reshape(SIDE, SIDE).astype(np.float32)
    slope_y_HW, slope_x_HW = np.gradient(small_HW)
    position = np.linspace(-1, 1, SIDE, dtype=np.float32)
    basis_HWB = np.stack(
        [small_HW, slope_x_HW, slope_y_HW, slope_x_HW * position, slope_y_HW * position[:, None]], -1
    )
    basis_KB = basis_HWB.reshape(SIDE * SIDE, -1)
    basis_KB -= basis_KB.mean(0)
    orthonormal_KB, triangle_BB = np.linalg.qr(basis_KB)
    # All 0 where there is nothing in the picture: no other is its copy.
    return (orthonormal_KB * np.sign(triangle_BB[0, 0])).T


def _correlation(basis_BK: np.ndarray, small_NK: np.ndarray | Smalls, index_C: np.ndarray) -> np.ndarray:
    """Multiple correlation of pictures with a basis; 0 where the plain correlation is too low.

    Returns:
        (C,) 0 to 1.
    """
    correlation_C = np.empty(len(index_C))
    # In parts, because the frames of a video are all candidates of its first.
    for start in range(0, len(index_C), 4096):
        small_CK = small_NK[index_C[start : start + 4096]].astype(np.float32)
        small_CK -= small_CK.mean(1, keepdims=True)
        small_CK /= np.linalg.norm(small_CK, axis=1, keepdims=True) + 1e-6
        projected_CB = small_CK @ basis_BK.T
        enough_C = projected_CB[:, 0] >= PLAIN_CORRELATION
        correlation_C[start : start + 4096] = np.where(enough_C, np.linalg.norm(projected_CB, axis=1), 0)
    return correlation_C
