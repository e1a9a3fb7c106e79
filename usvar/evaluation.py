"""Measures that compare sets of images: arrays in, numbers out; evaluate_var.py says between which sets.

All of them are written for sets of tens to thousands of images: the kernel distance has no bias from the size
of a set, and every measure of neighbours is meant to be read beside the same measure of real images.

Axes: N and M images of two sets, D features, C classes, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from usvar.metrics import ssim

# Rows at a time where a table of all pairs would not fit in memory.
ROWS = 1024


@dataclass
class ImageSet:
    """Images with their classes and, once the extractor is there, their features."""

    grey_NHW: np.ndarray
    label_N: np.ndarray
    features_ND: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label_N)

    def of_class(self, label: int) -> "ImageSet":
        """The images of one class."""
        return self.take(np.flatnonzero(self.label_N == label))

    def take(self, rows: np.ndarray) -> "ImageSet":
        """Some of the images."""
        features_ND = None if self.features_ND is None else self.features_ND[rows]
        return ImageSet(self.grey_NHW[rows], self.label_N[rows], features_ND)


def kernel_distance(
    fake_ND: np.ndarray,
    real_MD: np.ndarray,
    fake_label_N: np.ndarray | None = None,
    real_label_M: np.ndarray | None = None,
    *,
    paired: bool = False,
    subsets: int = 100,
    seed: int = 0,
) -> tuple[float, float | None]:
    """Squared maximum mean discrepancy with the cubic kernel of KID, without bias from the number of images.

    A. Gretton et al., "A Kernel Two-Sample Test", JMLR 2012, equation 3; kernel (x.y / D + 1)^3 of
    M. Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4. With labels each class weighs the same
    on its side, so that two sets of other class shares compare; each pair of classes is then an average
    without bias. The value may be below 0: it scatters around 0 when the two sets come from one source.

    The spread is the deviation over random halves of each class. Halves without replacement scatter about
    the whole as the whole does about the truth (J. Shao and C. Wu, "A general theory for jackknife variance
    estimation", Annals of Statistics 1989), so it is a standard error.

    Args:
        fake_ND: features of one set.
        real_MD: features of the other.
        fake_label_N: class of each row; None: one class. Classes with a single image are left out.
        real_label_M: likewise.
        paired: row i of both sets stems from the same picture (a reconstruction and its original); such pairs
            are left out, as in equation 4 of Gretton et al., for they would count as likeness.
        subsets: random halves for the spread.
        seed: of those halves.

    Returns:
        The squared distance, and its spread or None when a class has fewer than 4 images to halve.

    Raises:
        ValueError: when a set has no class of two or more images.
    """
    fake, real = np.asarray(fake_ND, np.float64), np.asarray(real_MD, np.float64)
    fake_NC, real_MC = _one_hot(fake_label_N, len(fake)), _one_hot(real_label_M, len(real))
    if not fake_NC.shape[1] or not real_MC.shape[1]:
        raise ValueError(
            f"found sets of {len(fake)} and {len(real)} images, wanted two or more of a class in each"
        )
    tables = [_cubic_kernel(fake, fake), _cubic_kernel(real, real), _cubic_kernel(fake, real)]
    for table in tables[: 3 if paired else 2]:
        np.fill_diagonal(table, 0.0)

    def estimate(fake_NC: np.ndarray, real_MC: np.ndarray) -> float:
        sides = ((fake_NC, fake_NC, True), (real_MC, real_MC, True), (fake_NC, real_MC, paired))
        means = []
        for table, (left, right, without_diagonal) in zip(tables, sides, strict=True):
            pairs_CC = np.outer(left.sum(0), right.sum(0))
            if without_diagonal:
                pairs_CC = pairs_CC - left.T @ right
            means.append((left.T @ table @ right / pairs_CC).mean())
        return float(means[0] + means[1] - 2 * means[2])

    value = estimate(fake_NC, real_MC)
    if min(fake_NC.sum(0).min(), real_MC.sum(0).min()) < 4:
        return value, None
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(subsets):
        half_NC = _random_half(fake_NC, rng)
        halves.append(estimate(half_NC, half_NC if paired else _random_half(real_MC, rng)))
    return value, float(np.std(halves))


def _one_hot(label_N: np.ndarray | None, count: int) -> np.ndarray:
    """(N, C) of 0 and 1, a column for each class that has two images or more."""
    label_N = np.zeros(count, dtype=np.int64) if label_N is None else np.asarray(label_N)
    kept = [label for label in np.unique(label_N) if (label_N == label).sum() >= 2]
    return (label_N[:, None] == np.array(kept, dtype=np.int64)[None]).astype(np.float64)


def _random_half(one_hot_NC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same table with half the images of each class struck out."""
    half_NC = np.zeros_like(one_hot_NC)
    for column in range(one_hot_NC.shape[1]):
        rows = np.flatnonzero(one_hot_NC[:, column])
        half_NC[rng.permutation(rows)[: len(rows) // 2], column] = 1.0
    return half_NC


def _cubic_kernel(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1) ** 3


def manifold_measures(
    fake_ND: np.ndarray, real_MD: np.ndarray, neighbours: int = 3, *, paired: bool = False
) -> dict[str, float]:
    """How many fakes look real, and how many real images are reached.

    Precision and recall after T. Kynkaanniemi et al., "Improved Precision and Recall Metric", NeurIPS 2019;
    density and coverage after M. Naeem et al., "Reliable Fidelity and Diversity Metrics", ICML 2020.

    Each image has a ball that reaches to its k-th nearest neighbour of its own set. Precision: share of fakes
    inside a ball of a real image. Recall: share of real images inside a ball of a fake one. Density: balls of
    real images around a fake one, over k. Coverage: share of real images with a fake in their own ball.

    Args:
        fake_ND: features of the generated set.
        real_MD: features of the real set.
        neighbours: k; both sets need more images than that.
        paired: row i of both sets stems from the same picture: such pairs do not count.

    Raises:
        ValueError: when a set has k images or fewer.
    """
    if min(len(fake_ND), len(real_MD)) <= neighbours:
        raise ValueError(
            f"found sets of {len(fake_ND)} and {len(real_MD)} images, wanted more than {neighbours} in each"
        )
    between_NM = _distances(fake_ND, real_MD)
    if paired:
        np.fill_diagonal(between_NM, np.inf)
    # Column 0 of the sorted distances within a set is the image itself.
    real_radius_M = np.partition(_distances(real_MD, real_MD), neighbours, axis=1)[:, neighbours]
    fake_radius_N = np.partition(_distances(fake_ND, fake_ND), neighbours, axis=1)[:, neighbours]
    in_real_NM = between_NM <= real_radius_M[None]
    return {
        "precision": float(in_real_NM.any(1).mean()),
        "recall": float((between_NM <= fake_radius_N[:, None]).any(0).mean()),
        "density": float(in_real_NM.sum(1).mean() / neighbours),
        "coverage": float(in_real_NM.any(0).mean()),
    }


def _distances(x_ND: np.ndarray, y_MD: np.ndarray) -> np.ndarray:
    """Euclidean, (N, M) float32, from differences: the product formula would lose small distances."""
    x, y = (torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for v in (x_ND, y_MD))
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()


def nearest(query_ND: np.ndarray, reference_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest reference of each query.

    Returns:
        (N,) distances and (N,) rows of `reference_MD`.
    """
    distance_N, row_N = np.empty(len(query_ND), np.float32), np.empty(len(query_ND), np.int64)
    for start in range(0, len(query_ND), ROWS):
        block = _distances(query_ND[start : start + ROWS], reference_MD)
        row_N[start : start + ROWS] = block.argmin(1)
        distance_N[start : start + ROWS] = block.min(1)
    return distance_N, row_N


def thumbnails(grey_NHW: np.ndarray, side: int = 32) -> np.ndarray:
    """Pictures as vectors for a comparison of pixels.

    Scaled so that the Euclidean distance of two is the root mean square difference of their grey levels on
    [0, 1]. Averaging over areas takes out the speckle, which no two acquisitions share.

    Args:
        grey_NHW: uint8.
        side: pixels a side after averaging.

    Returns:
        (N, side * side) float32.
    """
    rows = [
        F.adaptive_avg_pool2d(torch.from_numpy(np.array(grey_NHW[i : i + ROWS]))[:, None].float(), side)
        for i in range(0, len(grey_NHW), ROWS)
    ]
    return (torch.cat(rows).flatten(1) / (255 * side)).numpy()


def draw_pairs(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """Up to `most` different unordered pairs of different items, (P, 2)."""
    first, second = np.triu_indices(count, k=1)
    chosen = rng.permutation(len(first))[:most]
    return np.stack([first[chosen], second[chosen]], axis=1)


def pairwise_ssim(grey_NHW: np.ndarray, pair_P2: np.ndarray) -> np.ndarray:
    """Structural similarity of the two pictures of each pair, (P,)."""
    values = []
    for start in range(0, len(pair_P2), 64):
        first, second = (
            torch.from_numpy(np.array(grey_NHW[pair_P2[start : start + 64, side]]))[:, None].float() / 255
            for side in (0, 1)
        )
        values.append(ssim(first, second))
    return torch.cat(values).numpy()


def radial_power_spectrum(grey_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean power of the pictures over rings of spatial frequency.

    The mean grey level is taken off and a Hann window applied, so that the frame's edges do not count as
    detail.

    Args:
        grey_NHW: uint8, square.

    Returns:
        (F,) frequencies in cycles a pixel, above 0 to 0.5, and (F,) mean power.
    """
    side = grey_NHW.shape[-1]
    window_HW = torch.outer(torch.hann_window(side), torch.hann_window(side))
    frequency_HW = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    ring_HW = (frequency_HW * side).round().long()
    kept_HW = (ring_HW >= 1) & (ring_HW <= side // 2)
    total = torch.zeros_like(frequency_HW, dtype=torch.float64)
    for start in range(0, len(grey_NHW), 64):
        x_BHW = torch.from_numpy(np.array(grey_NHW[start : start + 64])).float() / 255
        x_BHW = (x_BHW - x_BHW.mean((1, 2), keepdim=True)) * window_HW
        total += torch.fft.rfft2(x_BHW, norm="ortho").abs().square().sum(0).double()
    rings = ring_HW[kept_HW].numpy()
    power = np.bincount(rings, (total[kept_HW] / len(grey_NHW)).numpy())[1:]
    return np.arange(1, side // 2 + 1) / side, power / np.bincount(rings)[1:]


def grey_shares(grey_NHW: np.ndarray) -> np.ndarray:
    """Share of pixels at each grey level, (256,)."""
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, len(grey_NHW), ROWS):
        counts += np.bincount(np.asarray(grey_NHW[start : start + ROWS]).ravel(), minlength=256)
    return counts / counts.sum()


def token_nats(logits_BLV: Tensor, idx_BL: Tensor, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Minus log-likelihood in nats of each image's tokens, (B, S): mean over the tokens of a scale."""
    nats_BL = F.cross_entropy(logits_BLV.float().transpose(1, 2), idx_BL, reduction="none")
    return torch.stack([nats_BL[:, start:end].mean(1) for start, end in spans], dim=1).cpu().numpy()


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95% confidence interval of a share (E. Wilson, JASA 1927, right for small counts too)."""
    z = 1.96
    share, weight = hits / count, 1 + z**2 / count
    centre = (share + z**2 / (2 * count)) / weight
    half = z / weight * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
