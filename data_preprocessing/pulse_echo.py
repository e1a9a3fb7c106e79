"""The physics of a B-mode image: from acoustic maps of a tissue to the grey picture that a device would show.

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

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage
from scipy.special import expit

SPEED_MM_PER_US = 1.54
SAMPLES, BEAMS = 640, 224
# Echo of a plane interface with R = 1, in units of the speckle of soft tissue (0 dB).
SPECULAR_GAIN = 220.0


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
