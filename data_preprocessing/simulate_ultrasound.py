"""Simulate B-mode ultrasound of six kinds, for machines without data.

    python data_preprocessing/simulate_ultrasound.py --out-root data/raw/Simulated
    python data_preprocessing/simulate_ultrasound.py --out-root data/raw/Simulated --images-per-class 6

Writes <out-root>/<Class>/patient0007_view2.png (what a device would show: grey as RGB, black outside the
fan), simulation.csv (one row per image: class, patient, view, probe and its settings) and made_by.json.
prepare_datasets.py reads that folder like any other raw data set. Run the same command again to make only
what is missing.

Nothing is drawn. An anatomy gives three maps: scattering strength, attenuation, acoustic impedance
(anatomies.py). The image then follows from the physics of the pulse-echo method (pulse_echo.py).
"""

import csv
import io
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

# A script's own folder is on the path, the repository's root is not: usvar lies there.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_preprocessing.anatomies import ANATOMIES, turned
from data_preprocessing.pulse_echo import (
    Probe,
    Tissue,
    beam_points,
    log_compress,
    scan_convert,
    simulate_envelope,
)
from usvar import checks, cli
from usvar.errors import InputError
from usvar.files import lock_folder, remove_stale_temporaries, write_json, write_text
from usvar.images import save_png
from usvar.processes import in_parallel
from usvar.provenance import made_by

SCRIPT = "data_preprocessing/simulate_ultrasound.py"
# What decides the pixels, beside the settings.
SIMULATOR = {"simulator": "simulate_ultrasound.py", "physics": "pulse_echo.py", "anatomies": "anatomies.py"}
ClassName = Literal["Breast-Benign", "Breast-Malignant", "Fetal-Head", "Heart", "Kidney", "Thyroid-Nodule"]


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
class Pose:
    """Where the probe stands on the patient."""

    # Sideways shift, mm.
    shift_mm: float = 0.0
    # Tilt in the image plane, degrees.
    tilt_deg: float = 0.0
    # Distance from the middle of the organ across the image plane, as a share of its radius.
    off_plane: float = 0.0


# --- One image -----------------------------------------------------------------------------------------


def draw_view(class_name: str, rng: np.random.Generator) -> tuple[Probe, Pose]:
    """Draw how an examination of this kind is set up: probe, depth, gain, where the probe stands."""
    u = rng.uniform
    amplified = {"white_db": u(26, 33), "dynamic_range_db": u(54, 64), "tgc_db": u(0.52, 0.66)}
    if class_name == "Heart":
        probe = Probe(
            **amplified,
            cycles=2.2,
            noise_db=u(-70, -62),
            radius_mm=4,
            half_angle_deg=u(34, 39),
            frequency_mhz=u(2.4, 3.2),
            depth_mm=u(140, 150),
            focus_mm=u(70, 100),
            aperture_mm=20,
        )
        return probe, Pose(u(-4, 4), u(-4, 4), u(-0.6, 0.6))
    if class_name in ("Kidney", "Fetal-Head"):
        depth_mm = u(112, 128) if class_name == "Kidney" else u(125, 145)
        if class_name == "Fetal-Head":  # Fluid needs less amplification.
            amplified["tgc_db"] = u(0.46, 0.56)
        probe = Probe(
            **amplified,
            radius_mm=u(36, 44),
            half_angle_deg=u(27, 31),
            frequency_mhz=u(3.2, 4.5),
            depth_mm=depth_mm,
            focus_mm=u(50, 80),
            aperture_mm=18,
        )
        return probe, Pose(u(-5, 5), u(-5, 5), u(-0.6, 0.6))
    depth_mm = u(35, 42) if class_name == "Thyroid-Nodule" else u(38, 46)
    probe = Probe(
        **amplified,
        frequency_mhz=u(8, 11),
        depth_mm=depth_mm,
        focus_mm=u(14, 24),
        aperture_mm=8,
        width_mm=u(40, 46),
        bands=3,
    )
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


def make(out_root: Path, class_name: str, index: int, views: int, seed: int, size: int) -> None:
    """Make and save one image; what a worker process runs."""
    image, _, _ = simulate_image(class_name, index // views, index % views, seed, size)
    save_png(out_root / image_name(class_name, index, views), image)


def table(settings: Settings) -> str:
    """simulation.csv: one row per image with the settings it was made with."""
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


def check_folder(settings: Settings, record: dict, wanted: set[str], missing: int, complete: bool) -> None:
    """Refuse a folder that holds another data set.

    Args:
        settings: checked ones.
        record: what made_by.json is to hold.
        wanted: the images' paths below the folder.
        missing: how many of them are not there.
        complete: whether all of them are there, and their table, which is written last.

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
    if not complete and simulator != record["inputs"]:
        raise InputError(
            f"{s.out_root} was begun by another version of the simulator and lacks {missing} images "
            f"or its table: {fresh}"
        )


def main(settings: Settings) -> None:
    """Make every image that is missing."""
    s = settings
    check(s)
    wanted = [
        (c, i, image_name(c, i, s.views_per_patient)) for c in s.classes for i in range(s.images_per_class)
    ]
    missing = [(c, i) for c, i, name in wanted if not (s.out_root / name).is_file()]
    here = Path(__file__).parent
    record = made_by(SCRIPT, s, {role: here / name for role, name in SIMULATOR.items()})
    complete = not missing and (s.out_root / "simulation.csv").is_file()
    check_folder(s, record, {name for _, _, name in wanted}, len(missing), complete)
    if complete:
        print(f"{s.out_root}: all {len(wanted)} images are there, nothing to do")
        return
    with lock_folder(s.out_root, "--out-root"):
        # First, so that an interrupted folder tells what it was to be.
        write_json(s.out_root / "made_by.json", record)
        (s.out_root / "simulation.csv").unlink(missing_ok=True)
        remove_stale_temporaries(s.out_root)
        for class_name in s.classes:
            (s.out_root / class_name).mkdir(exist_ok=True)
            remove_stale_temporaries(s.out_root / class_name)
        jobs = [(s.out_root, c, i, s.views_per_patient, s.seed, s.size) for c, i in missing]
        for _ in in_parallel("simulate", make, jobs, len(jobs), s.workers):
            pass
        write_text(s.out_root / "simulation.csv", table(s))
    print(f"{s.out_root}: {len(missing)} images made, {len(wanted)} in {len(s.classes)} classes")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
