"""Parts of the fit of a sector; as a whole it is tested on drawn screens, in test_crop."""

import numpy as np
import pytest
from scipy import ndimage

from data_preprocessing import sector


def test_a_polygon_drawn_along_a_sector_gives_its_sides_and_far_arc():
    """The arc at the probe is a hollow, which no tightest sector around the polygon has to reach."""
    true = sector.Sector(np.array([320.0, -40.0]), 90, 480, -0.6, 0.5)
    found = np.array(sector.sector_around(true.polygon()))
    assert np.abs(found - true.polygon())[:33].max() < 4


def test_a_polygon_without_slanted_sides_has_no_sector():
    assert sector.sector_around(np.array([[0.0, 0.0], [300.0, 0.0], [300.0, 200.0], [0.0, 200.0]])) is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (9, 12)])
def test_the_edge_is_what_an_erosion_takes_away_also_at_the_border(shape):
    rng = np.random.default_rng(0)
    for share in (0, 0.4, 0.9, 1):
        mask_HW = rng.random(shape) < share
        y_E, x_E = (mask_HW & ~ndimage.binary_erosion(mask_HW)).nonzero()
        assert np.array_equal(sector._edge(mask_HW), np.stack([x_E, y_E], 1))
