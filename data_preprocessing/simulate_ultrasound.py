"""Simulate B-mode ultrasound of six kinds, for machines without data.

    python data_preprocessing/simulate_ultrasound.py --out-root data/raw/Simulated
    python data_preprocessing/simulate_ultrasound.py --out-root data/raw/Simulated --images-per-class 6

Writes <out-root>/<Class>/patient0007_view2.png (what a device would show: grey as RGB, black outside the
fan), simulation.csv (one row an image: class, patient, view, probe and its settings) and made_by.json.
prepare_datasets.py reads that folder like any other raw data set. Run the same command again to make only
what is missing.

Nothing is drawn. An anatomy gives three maps: scattering strength, attenuation, acoustic impedance. The
image then follows from the physics of the pulse-echo method:

- scattering: dense random scatterers below the resolution give a complex Gaussian echo, hence speckle
  (Wagner et al. 1983, "Statistics of speckle in ultrasound B-scans");
- the echo line is the scatterers convolved with pulse and beam (Meunier and Bertrand 1995; Jensen 1996,
  "Field: a program for simulating ultrasound systems"), here with a beam width that changes with depth;
- smooth interfaces reflect with the step of impedance, R = (Z2 - Z1) / (Z2 + Z1), and only towards their
  normal; attenuation is summed along every beam, in dB/cm/MHz, which gives shadow and enhancement;
- then the receiver: noise, time-gain compensation, envelope, log compression, scan conversion.

Axes: Z samples in depth, B beams, H W pixels. Lengths in mm: x to the right, z into the body from the
middle of the probe's face.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import fft, ndimage
from scipy.special import expit
from tqdm import tqdm

# A script's own folder is on the path, the repository's root is not: usvar lies there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from usvar import checks, cli
from usvar.errors import InputError
from usvar.files import remove_stale_temporaries, write_json, write_text
from usvar.images import save_png
from usvar.provenance import made_by

SCRIPT = "data_preprocessing/simulate_ultrasound.py"
ClassName = Literal["Breast-Benign", "Breast-Malignant", "Fetal-Head", "Heart", "Kidney", "Thyroid-Nodule"]
SPEED_MM_PER_US = 1.54
SAMPLES, BEAMS = 640, 224
# Echo of a plane interface with R = 1, in units of the speckle of soft tissue (0 dB).
SPECULAR_GAIN = 220.0


@dataclass(frozen=True)
class Settings:
    # Folder for the images; a folder below the --raw-root of prepare_datasets.py.
    out_root: Path
    # Images of each class, 1 or more; patients = this / views_per_patient, rounded up.
    images_per_class: int = 120
    # Classes to make.
    classes: tuple[ClassName, ...] = (
        "Breast-Benign",
        "Breast-Malignant",
        "Fetal-Head",
        "Heart",
        "Kidney",
        "Thyroid-Nodule",
    )
    # Images of one patient: the same anatomy, another probe position, gain and speckle.
    views_per_patient: int = 3
    # Side of the square frame in pixels, 64 to 1024.
    size: int = 256
    # Everything random follows from this; the number of workers does not matter.
    seed: int = 0
    # Processes, 0 for one a core.
    workers: int = 0


@dataclass(frozen=True)
class Probe:
    """The probe and the settings of the device: one row of simulation.csv."""

    # Centre frequency, MHz.
    frequency_mhz: float
    # Depth shown, mm.
    depth_mm: float
    # Depth of the transmit focus, mm.
    focus_mm: float
    # Width of the active part of the probe, mm: the wider, the narrower the beam at the focus.
    aperture_mm: float
    # Width of the rectangle of a linear probe, mm; 0 for a fan.
    width_mm: float = 0.0
    # Radius of the face of a curved probe, mm.
    radius_mm: float = 0.0
    # Half the opening angle of a fan, degrees.
    half_angle_deg: float = 0.0
    # Length of the transmitted pulse, cycles (full width at half maximum).
    cycles: float = 2.0
    # Frequency compounding: the echo is received in so many sub-bands, whose powers are averaged.
    bands: int = 2
    # What the time-gain compensation takes the attenuation to be, dB/cm/MHz.
    tgc_db: float = 0.6
    # The most that it amplifies, dB.
    tgc_limit_db: float = 70.0
    # Electronic noise before amplification, dB below the speckle of soft tissue at the face.
    noise_db: float = -75.0
    # Echo level shown as white, dB above the speckle of soft tissue.
    white_db: float = 30.0
    # Range from white down to black, dB.
    dynamic_range_db: float = 60.0


@dataclass(frozen=True)
class Pose:
    """Where the probe stands on the patient."""

    # Sideways shift, mm.
    shift_mm: float = 0.0
    # Tilt in the image plane, degrees.
    tilt_deg: float = 0.0
    # Distance from the middle of the organ across the image plane, as a share of its radius.
    off_plane: float = 0.0


# --- Pulse-echo physics ------------------------------------------------------------------------------


@dataclass
class Tissue:
    """Acoustic maps over the points of a beam grid, painted from the background up."""

    # Lateral and depth coordinates in the patient, mm, (Z, B).
    x: np.ndarray
    z: np.ndarray
    # Scattering strength, dB, 0 = soft tissue.
    echo_db: np.ndarray
    # dB/cm/MHz, one way.
    attenuation: np.ndarray
    # MRayl.
    impedance: np.ndarray

    def fill(
        self,
        distance: np.ndarray,
        echo_db: float | np.ndarray,
        attenuation: float = 0.6,
        impedance: float = 1.63,
        soft: float = 0.3,
    ) -> None:
        """Replace the tissue where a signed distance (mm) is negative; `soft` mm of transition."""
        inside = expit(-distance / soft)
        self.echo_db += inside * (echo_db - self.echo_db)
        self.attenuation += inside * (attenuation - self.attenuation)
        self.impedance += inside * (impedance - self.impedance)

    def membrane(
        self,
        distance: np.ndarray,
        impedance: float | np.ndarray,
        echo_db: float | np.ndarray = 0.0,
        width: float = 0.3,
    ) -> None:
        """Add a thin sheet where a distance (mm) is zero: a step of impedance, and some scattering."""
        sheet = np.exp(-0.5 * (distance / width) ** 2)
        self.impedance += impedance * sheet
        self.echo_db += echo_db * sheet


def uniform_tissue(x: np.ndarray, z: np.ndarray, echo_db: float = 0.0, attenuation: float = 0.6) -> Tissue:
    """Homogeneous tissue over the given points."""
    full = [np.full(x.shape, value, np.float32) for value in (echo_db, attenuation, 1.63)]
    return Tissue(x, z, *full)


def beam_points(probe: Probe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of the beam grid of a probe.

    Returns:
        x_ZB and z_ZB in mm, and spacing_Z, the distance of neighbouring beams at each depth.
    """
    depth_Z = (np.arange(SAMPLES, dtype=np.float32) + 0.5) * (probe.depth_mm / SAMPLES)
    across_B = (np.arange(BEAMS, dtype=np.float32) + 0.5) / BEAMS - 0.5
    if probe.width_mm:
        x_ZB = np.broadcast_to(across_B * np.float32(probe.width_mm), (SAMPLES, BEAMS))
        z_ZB = np.broadcast_to(depth_Z[:, None], (SAMPLES, BEAMS))
        return x_ZB, z_ZB, np.full(SAMPLES, probe.width_mm / BEAMS, np.float32)
    opening = np.float32(np.deg2rad(2 * probe.half_angle_deg))
    range_Z = np.float32(probe.radius_mm) + depth_Z
    x_ZB = range_Z[:, None] * np.sin(opening * across_B)
    z_ZB = range_Z[:, None] * np.cos(opening * across_B) - np.float32(probe.radius_mm)
    return x_ZB, z_ZB, range_Z * opening / BEAMS


def beam_width_mm(probe: Probe, depth_mm: np.ndarray, frequency_mhz: float) -> np.ndarray:
    """Lateral width of the two-way beam (full width at half maximum), mm.

    Transmit has one fixed focus: diffraction, about wavelength x depth / aperture, and away from it the
    shadow of the aperture. Receive is focused at every depth, with an aperture that opens up to f/2.5.
    """
    wavelength = SPEED_MM_PER_US / frequency_mhz
    defocus = np.abs(depth_mm - probe.focus_mm) / probe.focus_mm
    transmit = np.hypot(wavelength * depth_mm / probe.aperture_mm, probe.aperture_mm * defocus)
    receive = wavelength * np.maximum(2.5, depth_mm / probe.aperture_mm)
    return 1 / np.sqrt(1 / transmit.clip(0.1) ** 2 + 1 / receive**2)


def point_spread(echo_ZB: np.ndarray, probe: Probe, frequency_mhz: float) -> np.ndarray:
    """Convolve complex scatterers (at base band) with the pulse and the beam.

    The pulse keeps its shape and the beam does not, so depth is filtered by one kernel and every row of
    beams by its own transfer function. Both have unit energy, so that speckle keeps its power: what the
    focus adds in pressure is left to the gain curve.

    Args:
        echo_ZB: complex64 reflectivity on the beam grid.
        probe: geometry and focus.
        frequency_mhz: centre of the received band.

    Returns:
        (Z, B) complex64.
    """
    step_mm = probe.depth_mm / SAMPLES
    # Pulse-echo: one cycle of time is half a wavelength of depth. A sub-band is longer in time.
    pulse_mm = probe.cycles * probe.bands * SPEED_MM_PER_US / (2 * probe.frequency_mhz)
    sigma = max(pulse_mm / 2.355 / step_mm, 0.3)
    reach = int(np.ceil(3.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / np.linalg.norm(kernel)).astype(np.float32)
    rows = fft.next_fast_len(SAMPLES + reach)
    spectrum = fft.fft(echo_ZB, rows, axis=0) * fft.fft(kernel, rows)[:, None]
    line_ZB = fft.ifft(spectrum, axis=0)[reach : reach + SAMPLES]

    depth_Z = (np.arange(SAMPLES) + 0.5) * step_mm
    sigma_Z = beam_width_mm(probe, depth_Z, frequency_mhz) / 2.355 / beam_points(probe)[2]
    # Beyond the sides lies nothing: zeros, as many as the beam is wide.
    columns = fft.next_fast_len(BEAMS + 32)
    omega = (2 * np.pi * fft.fftfreq(columns)).astype(np.float32)
    main_lobe = np.exp(-0.5 * (sigma_Z[:, None].astype(np.float32) * omega) ** 2)
    # Side lobes: a pedestal of 1% of the amplitude, six times as wide.
    transfer = main_lobe + 0.01 * np.exp(-0.5 * (6 * sigma_Z[:, None].astype(np.float32) * omega) ** 2)
    transfer /= np.sqrt((transfer**2).mean(axis=1, keepdims=True))
    return fft.ifft(fft.fft(line_ZB, columns, axis=1) * transfer, axis=1)[:, :BEAMS]


def interface_echo(tissue: Tissue, probe: Probe) -> tuple[np.ndarray, np.ndarray]:
    """Specular reflection and what grazing interfaces take from the beam.

    R = dZ / 2Z for a small step, taken along the beam. A smooth interface sends its echo along its normal,
    so a power of the cosine of incidence tells how much comes back to the probe. At grazing incidence sound
    is refracted out of the beam: the edge shadows of round masses.

    Returns:
        amplitude_ZB in units of soft-tissue speckle, and loss_db_ZB, the two-way loss per sample.
    """
    spacing_Z = beam_points(probe)[2]
    along = np.abs(np.gradient(tissue.impedance, axis=0))
    across = np.abs(np.gradient(tissue.impedance, axis=1)) * (probe.depth_mm / SAMPLES / spacing_Z)[:, None]
    cosine2 = along**2 / (along**2 + across**2 + 1e-12)
    # Rough on the scale of a wavelength, as tissue is, it still sends a little to all sides.
    reflected = np.minimum(along / (2 * tissue.impedance.clip(0.2)), 1) * (0.06 + 0.94 * cosine2**3)
    return SPECULAR_GAIN * reflected, 12 * across / tissue.impedance * (1 - cosine2) ** 4


def simulate_envelope(tissue: Tissue, probe: Probe, rng: np.random.Generator) -> np.ndarray:
    """Echoes of a tissue as the receiver sees them: attenuated, amplified with depth, demodulated.

    Args:
        tissue: acoustic maps on `beam_points(probe)`.
        probe: geometry, frequency, receiver.
        rng: draws scatterers and noise.

    Returns:
        (Z, B) float32 envelope; the root mean square of soft tissue (0 dB) is 1 where the gain fits.
    """
    depth_cm_Z = ((np.arange(SAMPLES, dtype=np.float32) + 0.5) * (probe.depth_mm / SAMPLES / 10))[:, None]
    specular_ZB, loss_db_ZB = interface_echo(tissue, probe)
    attenuation_ZB = np.cumsum(tissue.attenuation, axis=0) * np.float32(2 * probe.depth_mm / SAMPLES / 10)
    loss_db_ZB = np.cumsum(loss_db_ZB, axis=0)
    scatter_ZB = 10 ** (tissue.echo_db / 20)
    tgc_db_Z = np.minimum(2 * probe.tgc_db * probe.frequency_mhz * depth_cm_Z, probe.tgc_limit_db)
    power_ZB = np.zeros(scatter_ZB.shape, np.float32)
    # No interface is a mirror: its echo varies along it over a few beams, in strength and phase.
    rough_ZB = ndimage.gaussian_filter(complex_normal(rng, scatter_ZB.shape), (12, 3), truncate=2.5)
    rough_ZB = 0.6 + 0.6 * rough_ZB / np.abs(rough_ZB).mean()
    # Bands that do not overlap see the same scatterers with independent phases: drawing anew is equivalent.
    for band in range(probe.bands):
        offset = (band - (probe.bands - 1) / 2) / max(probe.bands, 1)
        frequency = probe.frequency_mhz * (1 + 0.4 * offset)
        echo_ZB = scatter_ZB * complex_normal(rng, scatter_ZB.shape) + specular_ZB * rough_ZB
        # Ring-down of the probe and its echoes between face and skin: arcs in the first millimetres.
        ring_Z1 = complex_normal(rng, (SAMPLES, 1)) * np.exp(-depth_cm_Z * (700 / probe.depth_mm))
        received = 10 ** (-(attenuation_ZB * np.float32(frequency) + loss_db_ZB) / 20)
        line_ZB = point_spread(echo_ZB * received + 0.4 * ring_Z1, probe, frequency)
        line_ZB += 10 ** (probe.noise_db / 20) * complex_normal(rng, line_ZB.shape)
        power_ZB += line_ZB.real**2 + line_ZB.imag**2
    return np.sqrt(power_ZB / probe.bands) * 10 ** (tgc_db_Z / 20)


def complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Circular complex Gaussian numbers of unit power, complex64."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def log_compress(envelope_ZB: np.ndarray, probe: Probe) -> np.ndarray:
    """Envelope to grey 0 .. 255: `white_db` is white, `dynamic_range_db` below it is black, linear in dB."""
    level_db = 20 * np.log10(envelope_ZB + 1e-9)
    return 255 * (1 + (level_db - probe.white_db) / probe.dynamic_range_db).clip(0, 1)


def scan_convert(grey_ZB: np.ndarray, probe: Probe, size: int) -> np.ndarray:
    """Beams to a picture: bilinear in (depth, beam), black outside the field of view.

    Args:
        grey_ZB: 0 .. 255.
        probe: geometry.
        size: side of the square frame; the longer side of the field of view fills it.

    Returns:
        (size, size) uint8, 1 to 255 inside and 0 outside.
    """
    half_angle = np.deg2rad(probe.half_angle_deg)
    if probe.width_mm:
        width, top = probe.width_mm, 0.0
    else:
        width = 2 * (probe.radius_mm + probe.depth_mm) * np.sin(half_angle)
        top = probe.radius_mm * (np.cos(half_angle) - 1)
    pixel_mm = max(width, probe.depth_mm - top) / size
    x_W = (np.arange(size) - (size - 1) / 2) * pixel_mm
    z_H1 = (np.arange(size)[:, None] + 0.5) * pixel_mm + top
    if probe.width_mm:
        depth_HW, across_HW = np.broadcast_arrays(z_H1, x_W / probe.width_mm)
    else:
        z_H1 = z_H1 + probe.radius_mm
        depth_HW = np.hypot(x_W, z_H1) - probe.radius_mm
        across_HW = np.arctan2(x_W, z_H1) / (2 * half_angle)
    inside_HW = (np.abs(across_HW) <= 0.5) & (depth_HW >= 0) & (depth_HW <= probe.depth_mm)
    row_HW = depth_HW * (SAMPLES / probe.depth_mm) - 0.5
    column_HW = (across_HW + 0.5) * BEAMS - 0.5
    # A pixel shows the mean of the samples it covers in depth.
    grey_ZB = ndimage.uniform_filter1d(
        grey_ZB, max(1, round(pixel_mm * SAMPLES / probe.depth_mm)), axis=0, mode="nearest"
    )
    picture_HW = ndimage.map_coordinates(grey_ZB, [row_HW, column_HW], order=1, mode="nearest")
    # 0 is kept for outside, so that a dark echo at the edge is never cropped away.
    return np.where(inside_HW, picture_HW.round().clip(1), 0).astype(np.uint8)


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


# --- Anatomies: each draws a patient from rng, always in the same order, and paints it at the points ------


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


# --- One image -----------------------------------------------------------------------------------------


def draw_view(class_name: str, rng: np.random.Generator) -> tuple[Probe, Pose]:
    """Draw how an examination of this kind is set up: probe, depth, gain, where the probe stands."""
    u = rng.uniform
    gain = {"white_db": u(26, 33), "dynamic_range_db": u(54, 64), "tgc_db": u(0.52, 0.66)}
    if class_name == "Heart":
        gain |= {"cycles": 2.2, "noise_db": u(-70, -62), "radius_mm": 4, "half_angle_deg": u(34, 39)}
        return Probe(u(2.4, 3.2), u(140, 150), u(70, 100), 20, **gain), Pose(u(-4, 4), u(-4, 4), u(-0.6, 0.6))
    if class_name in ("Kidney", "Fetal-Head"):
        depth = u(112, 128) if class_name == "Kidney" else u(125, 145)
        if class_name == "Fetal-Head":  # Fluid needs less amplification.
            gain["tgc_db"] = u(0.46, 0.56)
        gain |= {"radius_mm": u(36, 44), "half_angle_deg": u(27, 31)}
        return Probe(u(3.2, 4.5), depth, u(50, 80), 18, **gain), Pose(u(-5, 5), u(-5, 5), u(-0.6, 0.6))
    depth = u(38, 46) if class_name != "Thyroid-Nodule" else u(35, 42)
    probe = Probe(u(8, 11), depth, u(14, 24), 8, width_mm=u(40, 46), bands=3, **gain)
    return probe, Pose(u(-3, 3), u(-3, 3), u(-0.5, 0.5))


def posed_points(probe: Probe, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """The beam grid in the patient's coordinates: shifted and tilted.

    Soft tissue gives way to the probe: the skin stays at the face, and the tilt is full from some depth on.
    """
    x_ZB, z_ZB, _ = beam_points(probe)
    x, z = turned(x_ZB, z_ZB, 0, 0, pose.tilt_deg)
    give = z_ZB.clip(0) / (z_ZB.clip(0) + np.float32(0.15 * probe.depth_mm))
    if not probe.width_mm and probe.radius_mm > 10:
        # A curved face is pressed in: skin follows it, so depth is counted from the face.
        from_face = np.hypot(x_ZB, z_ZB + probe.radius_mm) - np.float32(probe.radius_mm)
        z = from_face + give * (z - from_face)
    else:
        z = z_ZB + give * (z - z_ZB)
    return x + np.float32(pose.shift_mm), z


def simulate_image(
    class_name: str, patient: int, view: int, seed: int, size: int
) -> tuple[np.ndarray, Probe, Pose]:
    """Make one image.

    Every patient has a stream of random numbers for the anatomy, every view one for probe and speckle, so
    an image depends on nothing but these arguments.

    Args:
        class_name: key of ANATOMIES.
        patient: number of the patient, 0 or more; each class has its own patients.
        view: number of the view, 0 or more.
        seed: of the whole data set.
        size: side in pixels.

    Returns:
        (size, size) uint8, and what it was made with.
    """
    probe, pose, rng = set_up(class_name, patient, view, seed)
    tissue = anatomy_of(class_name, patient, seed, pose.off_plane, *posed_points(probe, pose))
    envelope_ZB = simulate_envelope(tissue, probe, rng)
    return scan_convert(log_compress(envelope_ZB, probe), probe, size), probe, pose


def anatomy_of(
    class_name: str, patient: int, seed: int, off_plane: float, x: np.ndarray, z: np.ndarray
) -> Tissue:
    """The acoustic maps of a patient at the given points (mm); the same body in every view."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream(class_name, patient)))
    return ANATOMIES[class_name](rng, off_plane, x, z)


def set_up(class_name: str, patient: int, view: int, seed: int) -> tuple[Probe, Pose, np.random.Generator]:
    """Probe and pose of a view, and the generator that goes on to draw its speckle.

    One examination, one device: views share the probe; depth differs a little, focus and gain freely.
    """
    first = np.random.SeedSequence(seed, spawn_key=(*stream(class_name, patient), 0))
    own = np.random.SeedSequence(seed, spawn_key=(*stream(class_name, patient), 1 + view))
    probe, _ = draw_view(class_name, np.random.default_rng(first))
    rng = np.random.default_rng(own)
    other, pose = draw_view(class_name, rng)
    depth = 0.7 * probe.depth_mm + 0.3 * other.depth_mm
    return replace(probe, depth_mm=depth, focus_mm=other.focus_mm, white_db=other.white_db), pose, rng


def stream(class_name: str, patient: int) -> tuple[int, int]:
    """Key of a patient's random numbers."""
    return list(ANATOMIES).index(class_name), patient


# --- The data set ------------------------------------------------------------------------------------------


def image_name(class_name: str, index: int, views: int) -> str:
    """Path of the index-th image of a class, relative to the root."""
    return f"{class_name}/patient{index // views:04d}_view{index % views}.png"


def make(task: tuple[Path, str, int, int, int, int]) -> None:
    """Make and save one image; what a worker process runs."""
    out_root, class_name, index, views, seed, size = task
    image, _, _ = simulate_image(class_name, index // views, index % views, seed, size)
    save_png(out_root / image_name(class_name, index, views), image)


def make_all(tasks: list[tuple], workers: int) -> None:
    """Make all images, over the cores; a signal ends it after the images in work."""
    workers = max(1, min(workers or os.cpu_count() or 1, len(tasks)))
    with cli.stop_on_signals(), ProcessPoolExecutor(workers, initializer=cli.start_worker) as pool:
        try:
            for _ in tqdm(pool.map(make, tasks), "simulate", len(tasks)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def table(settings: Settings) -> str:
    """simulation.csv: one row an image with the settings it was made with."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for class_name in settings.classes:
        for index in range(settings.images_per_class):
            patient, view = divmod(index, settings.views_per_patient)
            probe, pose, _ = set_up(class_name, patient, view, settings.seed)
            row = asdict(probe) | asdict(pose)
            if not text.tell():
                writer.writerow(["file", "class", "patient", "view", *row])
            name = image_name(class_name, index, settings.views_per_patient)
            writer.writerow([name, class_name, patient, view, *(round(float(v), 4) for v in row.values())])
    return text.getvalue()


def check(settings: Settings) -> None:
    """Refuse settings that make no data set.

    Raises:
        InputError: what is wrong and what to do.
    """
    s = settings
    checks.require(s, "1 to 1000000", "images_per_class")
    checks.require(s, "1 to 100", "views_per_patient")
    checks.require(s, "64 to 1024", "size")
    checks.require(s, "0 or more", "seed", "workers")
    if not s.classes or len(set(s.classes)) != len(s.classes):
        raise InputError(f"--classes names {list(s.classes)}, wanted each class once: name 1 to 6 classes")


def check_folder(settings: Settings, record: dict, wanted: set[str], missing: int) -> None:
    """Refuse a folder that holds another data set.

    Args:
        settings: checked ones.
        record: what made_by.json is to hold.
        wanted: the images' paths below the folder.
        missing: how many of them are not there.

    Raises:
        InputError: what is wrong and what to do.
    """
    s = settings
    path = s.out_root / "made_by.json"
    fresh = "give another --out-root or delete the folder"
    found = {p.relative_to(s.out_root).as_posix() for p in s.out_root.glob("*/*") if p.name[0] != "."}
    if not path.is_file():
        if found:
            raise InputError(f"{s.out_root} holds {min(found)} but no made_by.json, wanted no files: {fresh}")
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        before, simulator = dict(old["settings"]), old["inputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} was not written by {SCRIPT}: {fresh}") from error
    for name in ("seed", "size", "views_per_patient"):
        if before.get(name) != getattr(s, name):
            raise InputError(
                f"{s.out_root} was made with {name} {before.get(name)}, wanted {getattr(s, name)}: {fresh}"
            )
    if others := sorted(found - wanted):
        raise InputError(
            f"{s.out_root} holds {len(others)} files such as {others[0]} that these settings do not make: "
            f"ask for at least the classes and images that are there, or {fresh}"
        )
    if missing and simulator != record["inputs"]:
        raise InputError(
            f"{s.out_root} was begun by another version of the simulator and lacks {missing} images: {fresh}"
        )


def main(settings: Settings) -> None:
    """Make every image that is missing."""
    s = settings
    check(s)
    wanted = [
        (c, i, image_name(c, i, s.views_per_patient)) for c in s.classes for i in range(s.images_per_class)
    ]
    missing = [(c, i) for c, i, name in wanted if not (s.out_root / name).is_file()]
    record = made_by(SCRIPT, s, {"simulator": Path(__file__)})
    check_folder(s, record, {name for _, _, name in wanted}, len(missing))
    if not missing and (s.out_root / "simulation.csv").is_file():
        print(f"{s.out_root}: all {len(wanted)} images are there, nothing to do")
        return
    # First, so that an interrupted folder tells what it was to be.
    write_json(s.out_root / "made_by.json", record)
    remove_stale_temporaries(s.out_root)
    for class_name in s.classes:
        (s.out_root / class_name).mkdir(exist_ok=True)
        remove_stale_temporaries(s.out_root / class_name)
    make_all([(s.out_root, c, i, s.views_per_patient, s.seed, s.size) for c, i in missing], s.workers)
    write_text(s.out_root / "simulation.csv", table(s))
    print(f"{s.out_root}: {len(missing)} images made, {len(wanted)} in {len(s.classes)} classes")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
