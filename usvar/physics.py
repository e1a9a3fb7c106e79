"""What ultrasound pictures are made of: likeness of pairs, detail, grey levels, speckle, frame, depth.

Each measure is one of a set of pictures. `variety` and `differences_from_test` put the same measure of real
pictures beside it, class by class, since sets have other shares of the classes.

Axes: N pictures, H W pixels, F frequencies, P pairs, K lags or places of a curve, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage import measure
from torch import Tensor

from usvar.evaluation import ImageSet, balanced_share_interval, note
from usvar.metrics import ssim

# Pictures at a time.
CHUNK = 64
# Pairs per class for the variety.
PAIRS_PER_CLASS = 100
# Grey level that belongs to the scan area; a decoder leaves faint noise where real pictures are black.
LEAST_GREY = 6.0
# Grey level of an outline, higher than that: the glow around a soft fan is no frayed edge. Side that outlines
# are found at, and the bins of depth.
OUTLINE_GREY, OUTLINE_SIDE, DEPTH_BINS = 16.0, 64, 32
# Largest lag of the speckle's autocorrelation, and the window that its mean and contrast are taken off in.
LAGS, SPECKLE_WINDOW = 8, 9
# Real training pictures outside the limits of a well-formed frame, on each side of each quantity; how much
# looser the limits are drawn, as a share, since an edge softened by half a pixel of the outline is no broken
# frame; and how many pictures give a class limits of its own.
OUTSIDE_LIMITS, SLACK, LEAST_FOR_LIMITS = 0.01, 0.05, 20


def as_float(grey_BHW: np.ndarray) -> Tensor:
    """Pictures, uint8, as (B, 1, H, W) float32 of grey levels 0 to 255."""
    return torch.from_numpy(np.array(grey_BHW))[:, None].float()


def float_chunks(grey_NHW: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """CHUNK pictures at a time: their rows, and what `as_float` makes of them."""
    for start in range(0, len(grey_NHW), CHUNK):
        rows = slice(start, start + CHUNK)
        yield rows, as_float(grey_NHW[rows])


def draw_pairs(group_N: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `most` different unordered pairs of items of different groups, (P, 2)."""
    count = len(group_N)
    if count * (count - 1) // 2 <= 4 * most:
        drawn_P2 = np.stack(np.triu_indices(count, k=1), axis=1)
    else:  # a list of all pairs would not fit; draws that repeat are rare and dropped
        drawn_P2 = np.unique(np.sort(rng.integers(count, size=(4 * most, 2)), axis=1), axis=0)
    drawn_P2 = drawn_P2[group_N[drawn_P2[:, 0]] != group_N[drawn_P2[:, 1]]]
    return drawn_P2[np.sort(rng.permutation(len(drawn_P2))[:most])]


def pairwise_ssim(grey_NHW: np.ndarray, pair_P2: np.ndarray) -> np.ndarray:
    """Structural similarity of the two pictures of each pair, (P,)."""
    similarities = []
    # In pieces: together the pictures of all pairs are many times those of the set.
    for start in range(0, len(pair_P2), CHUNK):
        first, second = (as_float(grey_NHW[row_B]) / 255 for row_B in pair_P2[start : start + CHUNK].T)
        similarities.append(ssim(first, second))
    return torch.cat(similarities).numpy()


def radial_power_spectrum(grey_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean power of the pictures over rings of spatial frequency.

    The mean grey level is taken off and a Hann window applied, so that the frame's edges do not count as
    detail.

    Args:
        grey_NHW: uint8, square.

    Returns:
        (F,) frequencies in cycles per pixel, above 0 to 0.5, and (F,) mean power.
    """
    side = grey_NHW.shape[-1]
    window_HW = torch.outer(torch.hann_window(side), torch.hann_window(side))
    frequency_HW = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    ring_HW = (frequency_HW * side).round().long()
    kept_HW = (ring_HW >= 1) & (ring_HW <= side // 2)
    total = torch.zeros_like(frequency_HW, dtype=torch.float64)
    for _, x_B1HW in float_chunks(grey_NHW):
        x_BHW = x_B1HW[:, 0] / 255
        x_BHW = (x_BHW - x_BHW.mean((1, 2), keepdim=True)) * window_HW
        total += torch.fft.rfft2(x_BHW, norm="ortho").abs().square().sum(0).double()
    rings = ring_HW[kept_HW].numpy()
    power = np.bincount(rings, (total[kept_HW] / len(grey_NHW)).numpy())[1:]
    return np.arange(1, side // 2 + 1) / side, power / np.bincount(rings)[1:]


def grey_shares(grey_NHW: np.ndarray) -> np.ndarray:
    """Share of pixels at each grey level, (256,)."""
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(grey_NHW), CHUNK):
        counts += np.bincount(np.asarray(grey_NHW[start : start + CHUNK]).ravel(), minlength=256)
    return counts / counts.sum()


def speckle_autocorrelation(grey_NHW: np.ndarray) -> np.ndarray:
    """How alike grey levels some pixels apart are, once anatomy is taken off: the size and shape of speckle.

    R. F. Wagner et al., "Statistics of Speckle in Ultrasound B-Scans", IEEE Trans. Sonics Ultrason. 1983,
    describe speckle by its autocorrelation. From each pixel the mean of its neighbourhood is taken off and
    its deviation divided out, inside the scan area only; what is left is correlated with itself.

    Args:
        grey_NHW: uint8.

    Returns:
        (2, K): along depth (rows) and across (columns), for lags of 0 to LAGS pixels; NaN where no picture
        has any scan area.
    """
    product_2K, count = np.zeros((2, LAGS + 1)), np.zeros((2, LAGS + 1))
    for _, x_B1HW in float_chunks(grey_NHW):
        mean_B1HW, square_B1HW = (
            F.avg_pool2d(v, SPECKLE_WINDOW, 1, SPECKLE_WINDOW // 2, count_include_pad=False)
            for v in (x_B1HW, x_B1HW**2)
        )
        deviation_B1HW = (square_B1HW - mean_B1HW**2).clamp(min=0).sqrt()
        inside_B1HW = (mean_B1HW > LEAST_GREY) & (deviation_B1HW > 1)
        residual_B1HW = (x_B1HW - mean_B1HW) / deviation_B1HW.clamp(min=1) * inside_B1HW
        for axis in (0, 1):
            for lag in range(LAGS + 1):
                size = x_B1HW.shape[2 + axis] - lag
                near, far = (
                    (residual_B1HW.narrow(2 + axis, i, size), inside_B1HW.narrow(2 + axis, i, size))
                    for i in (0, lag)
                )
                product_2K[axis, lag] += float((near[0] * far[0]).double().sum())
                count[axis, lag] += float((near[1] & far[1]).sum())
    mean_2K = np.divide(product_2K, count, out=np.full_like(count, np.nan), where=count > 0)
    return mean_2K / mean_2K[:, :1]


def scan_areas(grey_NHW: np.ndarray) -> np.ndarray:
    """Where each picture shows echoes, holes filled: (N, side, side) bool, side OUTLINE_SIDE or less."""
    side = min(OUTLINE_SIDE, grey_NHW.shape[-1])
    area_Nhw = np.empty((len(grey_NHW), side, side), bool)
    disc = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), 2)
    for rows, x_B1HW in float_chunks(grey_NHW):
        small_Bhw = F.adaptive_avg_pool2d(x_B1HW, side)[:, 0].numpy()
        for row, small_hw in enumerate(small_Bhw, rows.start):
            # Padded, so that closing does not eat at the picture's border.
            bright_hw = np.pad(small_hw > OUTLINE_GREY, 3, mode="edge")
            closed_hw = ndimage.binary_closing(bright_hw, disc)[3:-3, 3:-3]
            area_Nhw[row] = ndimage.binary_fill_holes(closed_hw)
    return area_Nhw


def frame_shapes(area_Nhw: np.ndarray) -> np.ndarray:
    """Three numbers of each outline, (N, 3), all 0 for a black picture.

    Share of the scan area in its largest piece (broken frames are below 1); area of that piece over that of
    its convex hull (frayed edges lower it); and its share of the picture.
    """
    shape_N3 = np.zeros((len(area_Nhw), 3))
    for row, area_hw in enumerate(area_Nhw):
        pieces = measure.regionprops(measure.label(area_hw, connectivity=1))
        if pieces:
            largest = max(pieces, key=lambda piece: piece.area)
            shape_N3[row] = largest.area / area_hw.sum(), largest.solidity, largest.area / area_hw.size
    return shape_N3


@dataclass(frozen=True)
class FrameLimits:
    """What the frames of real training pictures look like."""

    # Class -> (2, 3): lowest and highest of each number of `frame_shapes`.
    of_class: dict[int, np.ndarray]
    # The same over all classes, for a class with few pictures.
    pooled: np.ndarray

    @staticmethod
    def fit(shape_N3: np.ndarray, label_N: np.ndarray) -> "FrameLimits":
        """Quantiles over real training pictures; a frame may be better than any of them, never worse."""

        def limits(values_N3: np.ndarray) -> np.ndarray:
            low_3, high_3 = np.quantile(values_N3, (OUTSIDE_LIMITS, 1 - OUTSIDE_LIMITS), axis=0)
            high_3[:2] = 1.0
            return np.stack([low_3 * (1 - SLACK), high_3 * (1 + SLACK)])

        of_class = {
            int(k): limits(shape_N3[label_N == k])
            for k in np.unique(label_N)
            if (label_N == k).sum() >= LEAST_FOR_LIMITS
        }
        return FrameLimits(of_class, limits(shape_N3))

    def well_formed(self, shape_N3: np.ndarray, label_N: np.ndarray) -> np.ndarray:
        """Whether each frame lies within the limits of its class, (N,) bool."""
        limit_N23 = np.array([self.of_class.get(int(k), self.pooled) for k in label_N]).reshape(-1, 2, 3)
        return ((shape_N3 >= limit_N23[:, 0]) & (shape_N3 <= limit_N23[:, 1])).all(1)


def root_mean_square(difference: np.ndarray) -> float | None:
    """Of the difference of two curves, where both have a value; None where they share none."""
    known = difference[np.isfinite(difference)]
    return float(np.sqrt(np.mean(known**2))) if len(known) else None


def detail_difference(
    frequency_F: np.ndarray, difference_db_F: np.ndarray, difference_256: np.ndarray
) -> dict[str, float]:
    """How far the spectrum (dB) and the grey levels (shares of pixels) of two sets of pictures lie apart.

    The fine detail is above a quarter of a cycle per pixel. Grey levels are compared by the earth mover's
    distance, the area between the cumulative shares, in levels.
    """
    return {
        "spectrum_difference_rms_db": root_mean_square(difference_db_F),
        "fine_detail_power_difference_db": float(difference_db_F[frequency_F > 0.25].mean()),
        "grey_level_distance": float(np.abs(np.cumsum(difference_256)).sum()),
    }


def depth_profile(grey_NHW: np.ndarray, area_Nhw: np.ndarray) -> np.ndarray:
    """Mean grey level of the scan area at each depth, (DEPTH_BINS,) from the top; NaN where there is none.

    Depth is the picture's row: in a fan, echoes of one depth lie on an arc, so the outer beams mix in from a
    little deeper, in real and generated pictures alike.
    """
    bins = min(DEPTH_BINS, area_Nhw.shape[1])
    total, count = np.zeros(bins), np.zeros(bins)
    bin_h = np.arange(area_Nhw.shape[1]) * bins // area_Nhw.shape[1]
    for rows, x_B1HW in float_chunks(grey_NHW):
        small_Bhw = F.adaptive_avg_pool2d(x_B1HW, area_Nhw.shape[1])[:, 0].numpy()
        inside_Bhw = area_Nhw[rows]
        np.add.at(total, bin_h, (small_Bhw * inside_Bhw).sum((0, 2)))
        np.add.at(count, bin_h, inside_Bhw.sum((0, 2)))
    return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)


def curves(grey_NHW: np.ndarray, area_Nhw: np.ndarray) -> dict[str, np.ndarray]:
    """Every curve of some pictures; "along" and "across" are of speckle, "power" is over "frequency"."""
    frequency_F, power_F = radial_power_spectrum(grey_NHW)
    along_K, across_K = speckle_autocorrelation(grey_NHW)
    return {
        "frequency": frequency_F,
        "power": power_F,
        "grey": grey_shares(grey_NHW),
        "along": along_K,
        "across": across_K,
        "depth": depth_profile(grey_NHW, area_Nhw),
    }


def mean_of_both(first_CK: np.ndarray, second_CK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means (K,) of two sets of curves, one per class, over the classes with a value in both; else NaN."""
    is_known_CK = np.isfinite(first_CK) & np.isfinite(second_CK)
    first_K, second_K = (
        np.ma.array(x_CK, mask=~is_known_CK).mean(0).filled(np.nan) for x_CK in (first_CK, second_CK)
    )
    return first_K, second_K


def curves_by_class(
    image_set: ImageSet, labels: np.ndarray, limits: FrameLimits
) -> tuple[dict[int, dict[str, np.ndarray]], np.ndarray]:
    """Label -> curves of its pictures, and which frames are well formed, (N,) bool, False of other labels."""
    by_class, is_well_formed_N = {}, np.zeros(len(image_set), bool)
    for k in labels:
        members = image_set.of_class(k)
        area_Nhw = scan_areas(members.grey_NHW)
        by_class[k] = curves(members.grey_NHW, area_Nhw)
        is_well_formed_N[image_set.label_N == k] = limits.well_formed(frame_shapes(area_Nhw), members.label_N)
    return by_class, is_well_formed_N


def mean_curves(
    first: dict[int, dict[str, np.ndarray]], second: dict[int, dict[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Means of the curves of two sets over the classes of the first; "power" becomes "spectrum" in dB."""
    means: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = {}, {}
    for key in next(iter(first.values())):
        both = (np.stack([by_class[k][key] for k in first]) for by_class in (first, second))
        means[0][key], means[1][key] = mean_of_both(*both)
    for of_set in means:
        of_set["spectrum"] = 10 * np.log10(of_set.pop("power") + 1e-12)
    return means


def variety(
    sets: dict[str, ImageSet], classes: tuple[str, ...], seed: int, left_out: list[dict[str, str]]
) -> dict[str, Any]:
    """How alike two images of a class are, in each set: SSIM and distance in features over random pairs.

    As in the kernel distance two images of one group are no pair: frames of one patient are no variety.

    Args:
        sets: images by name, with their features.
        classes: names; index = label.
        seed: of the pairs.
        left_out: classes of a single group are added here.

    Returns:
        Set -> class -> mean and deviation over the pairs.
    """
    rng, table = np.random.default_rng(seed), {}
    for name, image_set in sets.items():
        table[name] = {}
        for k, class_name in enumerate(classes):
            members = image_set.of_class(k)
            pair_P2 = draw_pairs(members.group_N, PAIRS_PER_CLASS, rng)
            if not len(pair_P2):
                note(left_out, f"variety, {class_name}, {name}", f"{members.in_words}, wanted 2 groups")
                continue
            measured = {"ssim": pairwise_ssim(members.grey_NHW, pair_P2)}
            for extractor, values_ND in members.features.items():
                first_PD, second_PD = values_ND[pair_P2[:, 0]], values_ND[pair_P2[:, 1]]
                measured[f"{extractor}-distance"] = np.linalg.norm(first_PD - second_PD, axis=1)
            row: dict[str, Any] = {"images": len(members), "pairs": len(pair_P2)}
            for key, values_P in measured.items():
                row |= {f"{key}_mean": float(values_P.mean()), f"{key}_deviation": float(values_P.std())}
            table[name][class_name] = row
    return table


def differences_from_test(
    sets: dict[str, ImageSet], train: ImageSet, test: ImageSet
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Detail, grey levels, speckle, frame and depth of each set beside the real test images'.

    As in the kernel distance classes weigh alike, whatever their counts: each set is compared with the test
    images over the classes that both have, and left out where there is none.

    Args:
        sets: images by name.
        train: real training images, which say what a well-formed frame is.
        test: real test images; "real_test" in what is returned.

    Returns:
        Numbers, and the curves that they are of, less those of the test images of the same classes:
        "spectrum" (dB), "grey" (shares), "along" and "across" (autocorrelation), "depth" (grey levels); and
        "frequency".
    """
    limits = FrameLimits.fit(frame_shapes(scan_areas(train.grey_NHW)), train.label_N)
    # Label -> curves of the test images, and set -> differences of the means over the labels.
    of_test: dict[int, dict[str, np.ndarray]] = {}
    differences: dict[str, dict[str, np.ndarray]] = {}
    numbers: dict[str, Any] = {}
    for name, image_set in {"real_test": test, **sets}.items():
        labels = np.intersect1d(image_set.label_N, test.label_N)
        if not len(labels):
            continue
        by_class, is_well_formed_N = curves_by_class(image_set, labels, limits)
        if name == "real_test":
            of_test = by_class
        mean, real = mean_curves(by_class, of_test)
        difference = {key: mean[key] - real[key] for key in real}
        differences[name] = difference | {"frequency": real["frequency"]}
        kept_N = np.isin(image_set.label_N, labels)
        numbers[name] = {
            "images": int(kept_N.sum()),
            "classes": len(labels),
            **detail_difference(real["frequency"], difference["spectrum"], difference["grey"]),
            "speckle_difference_rms": root_mean_square(
                np.concatenate([difference["along"], difference["across"]])
            ),
            "depth_difference_rms_levels": root_mean_square(difference["depth"]),
            "well_formed_frames": int(is_well_formed_N.sum()),
            "well_formed_share": float(
                np.mean([is_well_formed_N[image_set.label_N == k].mean() for k in labels])
            ),
            "well_formed_interval_95": balanced_share_interval(
                is_well_formed_N[None, kept_N], image_set.label_N[kept_N], image_set.group_N[kept_N]
            ),
        }
    return numbers, differences
