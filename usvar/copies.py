"""Is a picture a copy? The nearest training picture in pixels, in features and in tokens.

Every search gives a distance to the nearest training picture and which one it is. Whether a distance is small
is judged by the same distance of real test pictures: a model that copies lies nearer to its training pictures
than new real pictures do.

Axes: N queries, M training pictures, P pixels of a thumbnail, T movements, K candidates, L tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from usvar.evaluation import nearest, wilson_interval
from usvar.physics import LEAST_GREY

# Side of the thumbnails, and at how many places the nearest unregistered ones are looked at closer.
SIDE, CANDIDATES = 32, 6
# Movements tried: degrees, and thumbnail pixels in both directions.
ROTATIONS, SHIFTS = (-10.0, -5.0, 0.0, 5.0, 10.0), (-2, 0, 2)
# Queries at a time.
ROWS = 128
# Fewer test pictures than this: the 5% quantile of their distances says nothing.
LEAST_FOR_QUANTILE = 10


def mirrored(grey_NHW: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return np.ascontiguousarray(grey_NHW[:, :, ::-1])


def nearest_in_features(
    query_ND: np.ndarray, train_MD: np.ndarray, mirrored_MD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (N,) to, and rows (N,) of, the nearest training picture or its mirror image."""
    distance_N, row_N = nearest(query_ND, np.concatenate([train_MD, mirrored_MD]))
    return distance_N, row_N % len(train_MD)


def thumbnails(grey_NHW: np.ndarray) -> Tensor:
    """Pictures averaged over areas to SIDE pixels, (N, SIDE, SIDE) float32.

    Averaging takes out the speckle, which no two acquisitions share.
    """
    rows = [
        F.adaptive_avg_pool2d(torch.from_numpy(np.array(grey_NHW[i : i + 512]))[:, None].float(), SIDE)[:, 0]
        for i in range(0, len(grey_NHW), 512)
    ]
    return torch.cat(rows)


class PixelSearch:
    """Nearest training pictures by grey levels: masked by the scan area, registered, whatever the gain.

    The distance is sqrt(1 - r), where r is the correlation of the two pictures over the training picture's
    scan area: 0 for a copy, about 1 for pictures that have nothing in common. Brightness and contrast do not
    matter. The query is turned by up to 10 degrees, moved by up to 2 of 32 pixels and mirrored, and the best
    of all counts. Only the nearest thumbnails before registration are looked at, CANDIDATES for each of three
    rotations.

    Args:
        train_MHW: uint8.
    """

    def __init__(self, train_MHW: np.ndarray) -> None:
        self.count = len(train_MHW)
        both_MHW = torch.cat([thumbnails(train_MHW), thumbnails(train_MHW).flip(2)])
        self.train_MP = both_MHW.flatten(1)
        self.inside_MP = (self.train_MP > LEAST_GREY).float()
        wanted = min(CANDIDATES, len(both_MHW))
        self.index = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(_standard(self.train_MP))

    def __call__(self, grey_NHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distances (N,) to, and rows (N,) of, the nearest training pictures."""
        found = [self._block(thumbnails(grey_NHW[i : i + ROWS])) for i in range(0, len(grey_NHW), ROWS)]
        return np.concatenate([d for d, _ in found]), np.concatenate([r for _, r in found])

    def _block(self, query_BHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
        moved_BTP, valid_TP = _moved(query_BHW)
        per_rotation = len(SHIFTS) ** 2
        unshifted = [i * per_rotation + per_rotation // 2 for i in (0, len(ROTATIONS) // 2, -1)]
        unshifted = [i % moved_BTP.shape[1] for i in unshifted]
        candidate_BK = np.concatenate(
            [self.index.kneighbors(_standard(moved_BTP[:, i]), return_distance=False) for i in unshifted], 1
        )
        y_BKP, inside_BKP = self.train_MP[candidate_BK], self.inside_MP[candidate_BK]

        def summed(x_BTP: Tensor, y_BKP: Tensor) -> Tensor:
            return torch.einsum("btp,bkp->btk", x_BTP, y_BKP)

        # Weighted sums over the pixels that lie in the scan area and came from inside the moved picture.
        valid_BTP = valid_TP[None].expand_as(moved_BTP)
        x_BTP = moved_BTP * valid_BTP
        count_BTK = summed(valid_BTP, inside_BKP).clamp(min=1)
        x_mean, x_square = summed(x_BTP, inside_BKP) / count_BTK, summed(x_BTP**2, inside_BKP) / count_BTK
        y_in_BKP = y_BKP * inside_BKP
        y_mean, y_square = summed(valid_BTP, y_in_BKP) / count_BTK, summed(valid_BTP, y_in_BKP**2) / count_BTK
        covariance = summed(x_BTP, y_in_BKP) / count_BTK - x_mean * y_mean
        # 1 grey level^2 keeps flat pictures from correlating by rounding.
        variances = (x_square - x_mean**2).clamp(min=0) + 1, (y_square - y_mean**2).clamp(min=0) + 1
        r_BTK = covariance / (variances[0] * variances[1]).sqrt()
        # Too little left to compare: no likeness.
        r_BTK = r_BTK.masked_fill(count_BTK < 0.1 * self.train_MP.shape[1], 0.0)
        best_BK = r_BTK.amax(1)
        chosen_B = best_BK.argmax(1)
        rows = torch.arange(len(chosen_B))
        distance_B = (1 - best_BK[rows, chosen_B]).clamp(min=0).sqrt()
        return distance_B.numpy(), candidate_BK[rows, chosen_B] % self.count


def _standard(x_BP: Tensor) -> np.ndarray:
    """Each row with mean 0 and length 1."""
    centred_BP = x_BP - x_BP.mean(1, keepdim=True)
    return F.normalize(centred_BP, dim=1, eps=1e-3).numpy()


def _moved(x_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """All movements of each picture (B, T, P), and where they show what was inside it (T, P)."""
    affine_T23 = []
    for degrees in ROTATIONS:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        for down in SHIFTS:
            for right in SHIFTS:
                affine_T23.append([[cos, -sin, 2 * right / SIDE], [sin, cos, 2 * down / SIDE]])
    affine_T23 = torch.tensor(affine_T23, dtype=torch.float32)
    grid_THW2 = F.affine_grid(affine_T23, [len(affine_T23), 1, SIDE, SIDE], align_corners=False)
    # The pictures of a block are the channels: one grid serves them all.
    stack_TBHW = torch.cat([x_BHW, torch.ones(1, SIDE, SIDE)])[None].expand(len(affine_T23), -1, -1, -1)
    moved_TBHW = F.grid_sample(stack_TBHW, grid_THW2, align_corners=False)
    return moved_TBHW[:, :-1].transpose(0, 1).flatten(2), (moved_TBHW[:, -1] > 0.99).float().flatten(1)


def nearest_in_tokens(
    query_NL: np.ndarray, train_ML: np.ndarray, spans: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest token map: the share of tokens that differ, averaged over the scales.

    Scales weigh alike, because the finest alone has a third of all tokens, and those differ between any two
    pictures.

    Args:
        query_NL: token maps.
        train_ML: training token maps, all views.
        spans: first and last + 1 column of each scale.

    Returns:
        (N,) distances, 0 to 1, and (N,) rows of `train_ML`.
    """
    train_ML = np.ascontiguousarray(train_ML)
    distance_N, row_N = np.empty(len(query_NL)), np.empty(len(query_NL), np.int64)
    for i, query_L in enumerate(np.asarray(query_NL).astype(train_ML.dtype)):
        differs_ML = train_ML != query_L
        total_M = np.zeros(len(train_ML))
        for start, end in spans:
            total_M += differs_ML[:, start:end].sum(1) / (end - start)
        row_N[i] = total_M.argmin()
        distance_N[i] = total_M[row_N[i]] / len(spans)
    return distance_N, row_N


def copy_numbers(
    generated: tuple[np.ndarray, np.ndarray],
    test_N: np.ndarray,
    train_count: int,
    planted: dict[str, tuple[np.ndarray, np.ndarray]],
    source_N: np.ndarray,
) -> dict[str, Any]:
    """What the distances of one search say.

    Args:
        generated: distances and rows of the generated pictures.
        test_N: distances of real test pictures to the training pictures.
        train_count: number of training pictures.
        planted: kind of copy -> distances and rows of planted copies of training pictures.
        source_N: the training picture that each planted copy was made from.

    Returns:
        Medians, counts and shares; where there are LEAST_FOR_QUANTILE test pictures, also the 5% quantile of
        their distances, the generated ones below it, and the share of planted copies that are found so.
    """
    generated_N, row_N = generated
    numbers: dict[str, Any] = {
        "generated_images": len(generated_N),
        "test_images": len(test_N),
        "train_images": train_count,
        "median_generated_to_train": float(np.median(generated_N)),
        "median_test_to_train": float(np.median(test_N)),
        "share_of_train_that_is_nearest": len(np.unique(row_N)) / train_count,
    }
    if len(test_N) < LEAST_FOR_QUANTILE:
        return numbers
    threshold = float(np.quantile(test_N, 0.05))
    hits = int((generated_N < threshold).sum())
    return numbers | {
        "threshold_5_percent_of_test": threshold,
        "generated_below": hits,
        "share_below": hits / len(generated_N),
        "share_below_interval_95": wilson_interval(hits, len(generated_N)),
        "test_below": int((test_N < threshold).sum()),
        "share_below_expected": 0.05,
        "planted_copies_detected": {
            kind: {
                "planted": len(distance_N),
                "share_below_threshold": float((distance_N < threshold).mean()),
                "share_whose_source_is_nearest": float((found_N == source_N).mean()),
            }
            for kind, (distance_N, found_N) in planted.items()
        },
    }
