"""Six kinds of patients as acoustic maps: what the simulator looks at.

Each anatomy draws a patient from `rng`, always in the same order, and paints it at the points given. `off` is
the distance of the image plane from the middle of the organ, as a share of its radius; `x` and `z` are the
points' coordinates in the patient, mm, (Z, B).
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.special import expit

from data_preprocessing.pulse_echo import Tissue, uniform_tissue

# --- Shapes and textures -----------------------------------------------------------------------------


def smooth_field(
    rng: np.random.Generator, x: np.ndarray, z: np.ndarray, length_x: float, length_z: float
) -> np.ndarray:
    """A Gaussian random field of unit variance with the given correlation lengths (mm), at the points."""
    tile = ndimage.gaussian_filter(
        rng.standard_normal((192, 192), dtype=np.float32), 4 / np.sqrt(2), mode="wrap"
    )
    tile /= tile.std()
    return ndimage.map_coordinates(tile, [z * (4 / length_z), x * (4 / length_x)], order=1, mode="grid-wrap")


def ellipse(x: np.ndarray, z: np.ndarray, half_x: float, half_z: float) -> np.ndarray:
    """Signed distance (mm, first order) to an ellipse around the origin, negative inside."""
    k = np.hypot(x / half_x, z / half_z)
    return (k - 1) * k / np.hypot(x / half_x**2, z / half_z**2).clip(1e-6)


def turned(
    x: np.ndarray, z: np.ndarray, centre_x: float, centre_z: float, angle_deg: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame that is moved and turned."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    x, z = x - centre_x, z - centre_z
    return np.float32(c) * x + np.float32(s) * z, np.float32(c) * z - np.float32(s) * x


def segment(x: np.ndarray, z: np.ndarray, ax: float, az: float, bx: float, bz: float) -> np.ndarray:
    """Distance (mm) to the straight line from (ax, az) to (bx, bz)."""
    dx, dz = bx - ax, bz - az
    t = (((x - ax) * dx + (z - az) * dz) / (dx * dx + dz * dz)).clip(0, 1)
    return np.hypot(x - ax - t * dx, z - az - t * dz)


def fibres(
    tissue: Tissue,
    rng: np.random.Generator,
    distance: np.ndarray,
    length: tuple[float, float],
    echo_db: float,
    impedance: float,
    width: float = 0.12,
) -> None:
    """Sheets of collagen inside a region: the zero lines of a random field, wavy and branching."""
    field = smooth_field(rng, tissue.x, tissue.z, *length)
    # They leave the image plane and come back: no line runs through.
    there = expit((smooth_field(rng, tissue.x, tissue.z, 0.5 * length[0], 2 * length[1]) - 0.2) / 0.25)
    sheet = np.exp(-0.5 * (field / width) ** 2) * expit(-distance / 0.5) * there
    tissue.echo_db += echo_db * sheet
    tissue.impedance += impedance * sheet


# --- Patients ----------------------------------------------------------------------------------------


def breast(rng: np.random.Generator, off: float, x: np.ndarray, z: np.ndarray, malignant: bool) -> Tissue:
    """Skin, fat, gland, muscle and chest wall, with a mass in the gland."""
    u = rng.uniform
    wave = smooth_field(rng, x, z, 16, 16)
    skin, gland = u(1.2, 2.2), u(6, 12)
    muscle = gland + u(13, 18)
    chest = muscle + u(8, 13)
    tissue = uniform_tissue(x, z, -10)
    fat_top = skin - z
    fibres(tissue, rng, fat_top, (u(7, 11), u(2.0, 3.0)), 12, 0.06, 0.10)
    fibres(tissue, rng, fat_top, (4, 2.2), 10, 0.04, 0.10)
    tissue.echo_db += 1.5 * smooth_field(rng, x, z, 2, 1.2)
    # Gland: bright, streaky, with dark lobules of fat.
    in_gland = gland + 1.6 * wave - z
    texture = 3.0 * smooth_field(rng, x, z, 3.5, 1.0)
    lobules = expit((smooth_field(rng, x, z, 6, 2.0) - u(0.3, 1.0)) / 0.2)
    tissue.fill(in_gland, u(3, 7) + texture - 12 * lobules, 0.75, 1.66)
    fibres(tissue, rng, in_gland, (u(6, 10), 1.4), 7, 0.04, 0.12)
    # Pectoral muscle between two fasciae, then the chest wall.
    in_muscle = muscle + 0.8 * wave - z
    tissue.fill(in_muscle, -9, 0.8, 1.68)
    fibres(tissue, rng, in_muscle, (9, 0.8), 9, 0.05, 0.2)
    tissue.membrane(in_muscle, 0.05, 8)
    in_chest = chest + 0.8 * wave - z
    tissue.membrane(in_chest, 0.14, 8)
    tissue.fill(in_chest, -10, 1.5, 1.5)
    tissue.fill(z - skin, 6, 0.8, 1.7, soft=0.15)

    centre_z = u(gland + 2, gland + 8) if not malignant else u(gland + 1, gland + 7)
    cx, angle = u(-6, 6), u(-14, 14)
    wobble = smooth_field(rng, x, z, 7, 7)
    grain = smooth_field(rng, x, z, 2.2, 1.6)
    if not malignant:
        half = u(6, 11)
        ratio, cyst = u(0.5, 0.66), u(0, 1) < 0.35
        shrink = np.sqrt(1 - off**2)
        p, q = turned(x, z, cx, centre_z + 1, angle)
        d = ellipse(p, q, half * shrink, half * ratio * shrink) + 0.55 * wobble
        tissue.fill(d, -45 if cyst else u(-19, -14) + 1.2 * grain, 0.05 if cyst else 0.25, 1.56, soft=0.15)
        tissue.membrane(d, 0.10, 6)
        return tissue
    half = u(4.8, 6.5)
    p, q = turned(x, z, cx, centre_z + 2, angle)
    shrink = np.sqrt(1 - off**2)
    round_d = ellipse(p, q, half * shrink, half * u(1.25, 1.65) * shrink)
    # Spicules: narrow rays at random angles, longer where the tumour pulls.
    phi = np.arctan2(q, p)
    count = int(rng.integers(7, 12))
    at, long, thin = u(-np.pi, np.pi, 16), u(0.5, 3.2, 16), u(0.08, 0.2, 16)
    rays = np.zeros_like(x)
    for i in range(count):
        turn = np.abs((phi - at[i] + np.pi) % (2 * np.pi) - np.pi)
        rays = np.maximum(rays, long[i] * np.exp(-((turn / thin[i]) ** 2)))
    d = round_d + 0.9 * wobble + 0.6 * grain - rays
    halo = np.exp(-0.5 * ((d - 1.9) / 1.4) ** 2) * (d > 0)
    tissue.echo_db += u(4, 8) * halo
    tissue.fill(d, u(-19, -14) + 2.5 * grain, u(1.2, 1.8), 1.66, soft=0.45)
    specks = expit((smooth_field(rng, x, z, 0.7, 0.6) - 2.6) / 0.1) * (round_d < 0)
    tissue.echo_db += 24 * specks * (u(0, 1) < 0.5)
    return tissue


def breast_benign(rng: np.random.Generator, off: float, x: np.ndarray, z: np.ndarray) -> Tissue:
    """Layered breast with a smooth, wide, dark oval (fibroadenoma or cyst) that lets sound pass."""
    return breast(rng, off, x, z, malignant=False)


def breast_malignant(rng: np.random.Generator, off: float, x: np.ndarray, z: np.ndarray) -> Tissue:
    """Layered breast with a spiculated mass, taller than wide, that absorbs sound."""
    return breast(rng, off, x, z, malignant=True)


def thyroid_nodule(rng: np.random.Generator, off: float, x: np.ndarray, z: np.ndarray) -> Tissue:
    """Neck across: strap muscles, a lobe with a nodule, trachea on one side and carotid on the other."""
    u = rng.uniform
    side = rng.choice([-1.0, 1.0])
    wave = smooth_field(rng, x, z, 14, 14)
    skin, fat = u(1.0, 1.6), u(1.5, 3.5)
    strap = skin + fat + u(2.5, 4.5)
    tissue = uniform_tissue(x, z, 0)
    tissue.echo_db += 2 * smooth_field(rng, x, z, 3, 1.2)
    fibres(tissue, rng, skin - z, (7, 1.5), 7, 0.04, 0.12)
    tissue.fill(skin + fat + 0.5 * wave - z, -12, 0.8, 1.68)
    fibres(tissue, rng, skin + fat + 0.5 * wave - z, (9, 0.8), 8, 0.03, 0.2)
    tissue.membrane(skin + fat + 0.5 * wave - z, 0.05, 8)
    half_x, half_z = u(10, 13), u(8, 10.5)
    lobe_x, lobe_z = side * u(0, 3), strap + half_z + 0.5
    # Muscle behind the lobe, then the spine.
    behind = lobe_z + half_z + u(0, 1.5) + 0.6 * wave - z
    tissue.fill(behind, -10, 0.8, 1.68)
    fibres(tissue, rng, behind, (8, 1.0), 9, 0.04, 0.2)
    tissue.membrane(behind, 0.05, 6)
    spine = lobe_z + half_z + u(7, 10) + 2.0 * wave - z
    tissue.fill(spine, -4, 3, 1.95, soft=0.5)
    # Lobe and isthmus are one gland.
    trachea_x, trachea_r = lobe_x - side * (half_x + u(5, 7)), u(8, 9.5)
    trachea_z = strap + trachea_r + u(2.5, 4)
    p, q = turned(x, z, lobe_x, lobe_z, side * u(-12, 4))
    lobe = ellipse(p, q, half_x, half_z) + 0.9 * wave + 0.4 * smooth_field(rng, x, z, 5, 5)
    collar = np.abs(np.hypot(x - trachea_x, z - trachea_z) - trachea_r - 1.6) - u(1.4, 2.2)
    isthmus = np.maximum(collar, z - trachea_z + 3)
    gland = np.minimum(lobe, isthmus)
    bright = u(3, 7)
    tissue.fill(gland, bright + 1.0 * smooth_field(rng, x, z, 1.2, 0.9), 0.6, 1.66, soft=0.25)
    tissue.membrane(gland, 0.05, 5)
    # Carotid beside the lobe, with wall and blood.
    carotid_r = u(3.2, 4.2)
    cx, cz = lobe_x + side * (half_x + carotid_r + u(0, 1)), lobe_z + u(0, 4)
    d = np.hypot(x - cx, z - cz) - carotid_r
    tissue.fill(d - 0.9, 8, 0.6, 1.68)
    tissue.fill(d, -42, 0.15, 1.63)
    # Nodule: hypoechoic, with a halo, or partly cystic.
    kind = u(0, 1)
    nodule_r = u(5.0, 7.5) * np.sqrt(1 - off**2)
    p, q = turned(x, z, lobe_x + u(-0.3, 0.3) * half_x, lobe_z + u(-0.2, 0.2) * half_z, u(-40, 40))
    grain = smooth_field(rng, x, z, 2.0, 2.0)
    d = ellipse(p, q, nodule_r, nodule_r * u(0.72, 0.95)) + 0.3 * smooth_field(rng, x, z, 5, 5)
    caves = expit((smooth_field(rng, x, z, 3.0, 2.4) - 0.3) / 0.1)
    halo_db = bright - u(16, 21)
    solid_db = bright - u(12, 17)
    if kind < 0.45:
        tissue.fill(d, solid_db + grain, 0.5, 1.62, soft=0.25)
    elif kind < 0.7:
        tissue.fill(d, halo_db, 0.6, 1.62, soft=0.25)
        tissue.fill(d + 1.4, bright - 3 + 1.5 * grain, 0.6, 1.66, soft=0.25)
    else:
        tissue.fill(d, bright - 4 + grain - 40 * caves, 0.2, 1.6, soft=0.25)
        tissue.membrane(d, 0.08, 3)
    specks = expit((smooth_field(rng, x, z, 0.7, 0.6) - 2.6) / 0.1) * (d < -0.5)
    tissue.echo_db += 22 * specks * (u(0, 1) < 0.4)
    # Trachea: cartilage, then air that sends everything back.
    d = np.hypot(x - trachea_x, z - trachea_z) - trachea_r
    tissue.fill(d, -14, 0.9, 1.68)
    bands = np.cos(2 * np.pi * d / u(2.0, 2.6)) * 3
    tissue.fill(d + 1.3, -10 + bands, 3.2, 0.9, soft=0.3)
    tissue.fill(z - skin, 6, 0.8, 1.7, soft=0.15)
    return tissue


def belly_wall(tissue: Tissue, rng: np.random.Generator, wave: np.ndarray) -> float:
    """Skin, fat and muscle of the belly; returns their thickness, mm."""
    fat, muscle = rng.uniform(5, 12), rng.uniform(5, 8)
    z = tissue.z
    end = 2 + fat + muscle
    tissue.fill(z - end - 0.8 * wave, -6, 0.7, 1.68)
    fibres(tissue, rng, z - end - 0.8 * wave, (22, 1.6), 9, 0.05, 0.2)
    tissue.membrane(z - end - 0.8 * wave, 0.07, 6, width=0.5)
    tissue.fill(z - 2 - fat - 0.6 * wave, -4, 0.6, 1.5)
    fibres(tissue, rng, z - 2 - fat, (30, 4), 8, 0.06, 0.12)
    tissue.membrane(z - 2 - fat - 0.6 * wave, 0.07, 8, width=0.5)
    tissue.fill(z - 2, 6, 0.8, 1.7)
    return end


def fetal_head(rng: np.random.Generator, off: float, x: np.ndarray, z: np.ndarray) -> Tissue:
    """Head of a fetus in the womb, at the level of the thalami: skull, midline, ventricles, fluid."""
    u = rng.uniform
    wave = smooth_field(rng, x, z, 45, 45)
    tissue = uniform_tissue(x, z, -2)
    tissue.echo_db += 2 * smooth_field(rng, x, z, 8, 4)
    half_x = u(38, 52)
    half_z, angle = half_x * u(0.74, 0.82), u(-28, 28)
    # Womb: wall, fluid around the head, placenta in front or behind.
    wall = 2 + 12 + 8
    centre_z = wall + u(6, 12) + half_z
    cx = u(-7, 7)
    fluid = (
        ellipse(x - cx - u(-14, 14), z - centre_z - u(-2, 3), half_x + u(8, 20), half_z + u(5, 11)) + 3 * wave
    )
    tissue.membrane(fluid - 6, 0.04, 5, width=0.8)
    # With its flakes it absorbs nearly as much as blood.
    tissue.fill(fluid, -46, 0.2, 1.57, soft=0.5)
    behind = u(0, 1) < 0.5
    thick = u(2, 12)
    placenta = np.maximum(
        fluid - 3, (centre_z + half_z + 11 - thick - z if behind else z - wall - thick) + 3 * wave
    )
    tissue.fill(placenta, 1 + 1.5 * smooth_field(rng, x, z, 5, 4), 0.6, 1.62, soft=0.5)

    p, q = turned(x, z, cx, centre_z, angle)
    shrink = np.sqrt(1 - 0.3 * off**2)
    a, b = half_x * shrink, half_z * shrink
    d = ellipse(p, q, a, b) + 0.5 * wave
    tissue.fill(d - 2.5, -3, 0.7, 1.64, soft=0.5)
    tissue.fill(d, 16, u(3.5, 5.5), 3.2, soft=0.4)
    brain_db = u(-14, -10) + 3 * smooth_field(rng, x, z, 5, 5)
    tissue.fill(d + u(1.6, 2.2), brain_db, 0.35, 1.62, soft=0.5)
    # Furrows of the cortex, away from the midline.
    folds = smooth_field(rng, x, z, 8, 8)
    fibre = np.exp(-0.5 * (folds / 0.16) ** 2) * expit(-(d + 5) / 1.5) * expit((np.abs(q) - 0.3 * b) / 2)
    tissue.echo_db += u(8, 13) * fibre
    # Midline with the cavum, thalami on its sides, ventricles with their plexus.
    p = rng.choice([-1.0, 1.0]) * p
    q = q + 0.5 * folds
    for s in (-1, 1):
        tissue.fill(ellipse(p + 0.02 * a, q - s * 0.17 * b, 0.2 * a, 0.13 * b), -24, 0.4, 1.62, soft=1.0)
        horn_p, horn_q = turned(p, q, -0.4 * a, s * 0.42 * b, -s * 12)
        horn = ellipse(horn_p, horn_q, u(0.24, 0.34) * a, u(0.09, 0.16) * b)
        tissue.fill(horn, -38, 0.1, 1.59, soft=0.8)
        tissue.fill(
            ellipse(horn_p + 0.05 * a, horn_q, 0.2 * a, 0.08 * b) + folds, u(-3, 3), 0.5, 1.62, soft=0.8
        )
    there = expit((smooth_field(rng, x, z, 9, 9) + 1.0) / 0.3)
    midline = np.hypot(np.maximum(np.abs(p) - 0.84 * a, 0), q)
    tissue.membrane(midline, 0.05 * there, 19 * there, width=0.6)
    cavum = np.maximum(np.abs(p - 0.42 * a) - 0.12 * a, np.abs(q) - 0.075 * b)
    tissue.fill(cavum - 0.8, 0, 0.4, 1.62, soft=0.4)
    tissue.fill(cavum, -40, 0.1, 1.58, soft=0.4)
    belly_wall(tissue, rng, wave)
    return tissue


def kidney(rng: np.random.Generator, off: float, x: np.ndarray, z: np.ndarray) -> Tissue:
    """Kidney along its length below the liver: capsule, cortex, pyramids, bright sinus."""
    u = rng.uniform
    wave = smooth_field(rng, x, z, 40, 40)
    tissue = uniform_tissue(x, z, 0, 0.55)
    tissue.echo_db += 1.2 * smooth_field(rng, x, z, 4, 3)
    # Vessels of the liver.
    vessel = np.abs(smooth_field(rng, x, z, 26, 16) - 0.7) - 0.14
    vessel = np.maximum(vessel, 0.4 * (0.3 - smooth_field(rng, x, z, 14, 14)))
    tissue.fill(vessel * 14, -22, 0.3, 1.62, soft=0.5)
    half_x, half_z, angle = u(42, 50), u(19, 24), u(-18, 18)
    cx, cz = u(-5, 5), u(60, 70)
    shrink = np.sqrt(1 - 0.5 * off**2)
    a, b = half_x * shrink, half_z * shrink
    p, q = turned(x, z, cx, cz, angle)
    # Behind: psoas and back muscles.
    back = cz + u(16, 22) + 2 * wave + 0.2 * (x - cx) - z
    tissue.fill(back, -7, 0.7, 1.68, soft=1)
    fibres(tissue, rng, back, (20, 2.4), 9, 0.05, 0.2)
    tissue.membrane(back + 8 + wave, 0.08, 8, width=0.8)
    # Bean: an ellipse bent around the hilum, which lies on the far side.
    q = q + 0.16 * (p**2 / a - 0.3 * a)
    d = ellipse(p, q, a, b) + 0.7 * wave
    hilum = np.hypot((p - u(-6, 6)) / 1.4, q - b * 1.05) - u(5, 8)
    d = np.maximum(d, -hilum)
    tissue.fill(np.minimum(d, np.maximum(hilum, d - 6)) - u(2, 4), 7, 0.6, 1.5, soft=0.8)
    tissue.fill(d, u(-9, -5), 0.5, 1.63, soft=0.4)
    tissue.membrane(d, 0.07, 8, width=0.5)
    k = np.hypot(p / a, q / b)
    phi = np.arctan2(q / b, p / a)
    blob = smooth_field(rng, x, z, 6, 5)
    pyramid = np.maximum(
        np.abs(k - 0.66) - 0.14, 0.25 - np.cos(int(rng.integers(9, 12)) * phi + u(0, 6)) * 0.5
    )
    tissue.fill(pyramid * 12 + 0.5 * blob - 0.5, -20, 0.4, 1.6, soft=0.7)
    core = np.minimum(
        np.hypot(p / (0.66 * a), q / (0.40 * b)) - 1, np.hypot(p / 9, (q - 0.5 * b) / (0.5 * b)) - 1
    )
    sinus = core * 9 + 1.5 * blob
    tissue.fill(sinus, u(9, 13) + 3 * smooth_field(rng, x, z, 3, 2), 0.7, 1.55, soft=0.8)
    calyx = np.maximum(sinus + 3, (0.9 - smooth_field(rng, x, z, 7, 5)) * 4)
    tissue.fill(calyx, -25, 0.2, 1.55, soft=0.5)
    belly_wall(tissue, rng, wave)
    return tissue


def heart(rng: np.random.Generator, off: float, x: np.ndarray, z: np.ndarray) -> Tissue:
    """Apical four-chamber view: ventricles near the probe, atria behind the valves, pericardium around."""
    u = rng.uniform
    wave = smooth_field(rng, x, z, 22, 22)
    tissue = uniform_tissue(x, z, -8, 0.6)
    tissue.echo_db += 4 * smooth_field(rng, x, z, 18, 7)
    scale, open_ = u(0.88, 1.08), u(0.1, 0.9)
    p, q = turned(x, z, u(-5, 5), u(2, 8), u(-9, 9))
    p, q = p / scale, q / scale
    base = 86.0
    lv_x, lv_w, septum = 20.0, u(16, 21) * np.sqrt(1 - 0.3 * off**2), u(8, 11)
    rv_w = u(11, 15) * np.sqrt(1 - 0.3 * off**2)
    rv_x = lv_x - lv_w - septum - rv_w
    la_w, la_h, ra_w, ra_h = u(16, 20), u(16, 20), u(15, 19), u(15, 19)
    # A ventricle is an ellipse cut at the base.
    lv = np.maximum(ellipse(p - lv_x + 4, q - 62, lv_w, 42), q - base) + 0.9 * wave
    rv = np.maximum(ellipse(p - rv_x, q - 70 - 0.25 * (p - rv_x), rv_w, 30), q - base + 2) + 0.9 * wave
    # An atrium overlaps the base of its ventricle: the opening that the valve closes.
    la = ellipse(p - lv_x + 3, q - base - 0.72 * la_h, la_w, la_h) + 0.7 * wave
    ra = ellipse(p - rv_x - 1, q - base - 0.72 * ra_h, ra_w, ra_h) + 0.7 * wave
    wall = np.minimum(np.minimum(lv - u(9, 11), rv - u(4, 5.5)), np.minimum(la, ra) - 3.5)
    # Outside the pericardium lies lung: bright edge, then dirty shadow.
    patches = smooth_field(rng, x, z, 16, 16)
    tissue.fill(-wall + 2.5, -9 + 4 * smooth_field(rng, x, z, 14, 5), 0.7, 1.55, soft=1.5)
    tissue.fill(np.abs(wall - 1.5) - 1.5, 4 + 4 * patches + 0.08 * (q - base), 0.6, 1.7, soft=1.0)
    tissue.fill(wall, u(-2, 2) + 3 * smooth_field(rng, x, z, 7, 4), 0.55, 1.66, soft=0.8)
    for chamber in (lv, rv, la, ra):
        tissue.fill(chamber, -30, 0.25, 1.63, soft=0.9)
    # Leaflets hang from the rings of the valves; the more open, the more they point to the apex.
    for centre, half in ((lv_x - 3, 0.8 * lv_w), (rv_x, 0.85 * rv_w)):
        for s in (-1, 1):
            hinge_x, hinge_z = centre + s * half, base + 1
            reach = half * 0.98
            tip_x = hinge_x - s * reach * np.cos(open_ * 1.2)
            leaf = segment(p, q, hinge_x, hinge_z, tip_x, hinge_z - reach * np.sin(open_ * 1.2))
            tissue.fill(leaf - 0.7, 7, 0.7, 1.7, soft=0.5)
            tissue.fill(np.hypot(p - hinge_x, q - hinge_z) - 2.5, 7, 0.8, 1.68, soft=0.8)
    return tissue


Anatomy = Callable[[np.random.Generator, float, np.ndarray, np.ndarray], Tissue]
ANATOMIES: dict[str, Anatomy] = {
    "Breast-Benign": breast_benign,
    "Breast-Malignant": breast_malignant,
    "Fetal-Head": fetal_head,
    "Heart": heart,
    "Kidney": kidney,
    "Thyroid-Nodule": thyroid_nodule,
}
