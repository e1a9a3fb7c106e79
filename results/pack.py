"""Prepared images as one archive and weights as small files, to take to another machine and back.

    python results/pack.py images data/processed runs/prepared.zip               # nearly lossless, AVIF
    python results/pack.py images data/processed runs/prepared.zip --format png  # lossless, twice as large
    python results/pack.py unpack runs/prepared.zip data/processed
    python results/pack.py shard runs/vqvae/best.pth runs/weights/vqvae
    python results/pack.py join runs/weights/vqvae runs/vqvae/rounded.pth

"images" writes the grey pictures of a prepared folder and its lists; "unpack" brings back the folder, with
the hash of each picture's new pixels in manifest.csv and what packing cost in packed.json.

"shard" rounds the weights of a checkpoint to bfloat16 and writes safetensors files below --most-mb and
index.json with the SHA-256 of each; "join" makes a checkpoint of them again. Rounding changes the model, so
go on with the joined file where the weights were trained, too: then tokens and transformer belong to the
VQ-VAE that travels, and "join" makes the same file, byte for byte, wherever the same version of torch is.

Both ways the target is there whole or not at all, and what is damaged or missing is refused.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from huggingface_hub import split_torch_state_dict_into_shards
from PIL import Image, UnidentifiedImageError, features
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from tqdm import tqdm

# A script sees only its own folder; the shared packages lie one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from usvar import cli, images
from usvar.checkpoints import read_checkpoint, save_checkpoint
from usvar.errors import InputError
from usvar.files import TEMPORARY_PREFIX, atomic_path, write_json
from usvar.provenance import sha256_file

# What prepare_datasets.py writes beside the pictures; its contact sheets stay behind.
LISTS = (
    "manifest.csv",
    "rejected.csv",
    "left_out.csv",
    "label_conflicts.csv",
    "leak_report.json",
    "made_by.json",
    "per_class_by_split.csv",
    "per_class_by_split.png",
)
PACKED = "packed.json"
INDEX = "index.json"
INDEX_FORMAT = "ultrasound-var-shards-1"


@dataclass(frozen=True)
class Settings:
    # What to do.
    mode: Annotated[Literal["images", "unpack", "shard", "join"], tyro.conf.Positional]

    # A prepared folder, an archive, a checkpoint or a folder of shards.
    source: Annotated[Path, tyro.conf.Positional]

    # What is made of it.
    target: Annotated[Path, tyro.conf.Positional]

    # images: avif is nearly lossless, png lossless.
    format: Literal["avif", "png"] = "avif"

    # images: quality of AVIF, 1 to 100; the error it makes is printed.
    quality: int = 86

    # Largest archive (none given: 60) or shard (none given: 15), in millions of bytes.
    most_mb: float = 0.0


def pack_images(s: Settings) -> None:
    """Write the archive; nothing is left when it would be too large."""
    if not 1 <= s.quality <= 100:
        raise InputError(f"--quality {s.quality} was given, wanted 1 to 100")
    most = (s.most_mb or 60) * 1e6
    classes = images.find_classes(s.source)
    splits = [name for name in images.SPLITS if (s.source / name).is_dir()]
    paths = [path for split in splits for path in images.find_images(s.source, split, classes).paths]
    options = {"quality": s.quality, "subsampling": "4:0:0"} if s.format == "avif" else {"optimize": True}
    digests, psnr_db = {}, []
    with atomic_path(s.target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for path in tqdm(paths, desc="pack", unit="image", file=sys.stdout):
            grey_HW = images.read_image(s.source / path)
            file = io.BytesIO()
            Image.fromarray(grey_HW).save(file, s.format.upper(), **options)
            error = np.asarray(Image.open(file).convert("L")).astype(float) - grey_HW
            psnr_db.append(10 * np.log10(255**2 / max((error**2).mean(), 255**2 / 1e10)))
            name = str(Path(path).with_suffix(f".{s.format}"))
            digests[name] = add(archive, name, file.getvalue())
        for name in LISTS:
            if (s.source / name).is_file():
                digests[name] = add(archive, name, (s.source / name).read_bytes())
        about = {
            "format": s.format,
            "quality": s.quality if s.format == "avif" else None,
            "psnr_db_mean": float(np.mean(psnr_db)),
            "psnr_db_lowest": float(np.min(psnr_db)),
            "sha256": digests,
        }
        add(archive, PACKED, json.dumps(about).encode())
        archive.close()
        if temporary.stat().st_size > most:
            raise InputError(
                f"the archive of {len(paths)} pictures has {temporary.stat().st_size / 1e6:.1f} MB, wanted "
                f"{most / 1e6:g} at most: lower --quality, or raise --most-mb"
            )
    size = s.target.stat().st_size / 1e6
    error = (
        "lossless"
        if s.format == "png"
        else f"PSNR {np.mean(psnr_db):.1f} dB on average, {np.min(psnr_db):.1f} dB at least"
    )
    print(f"{s.target}: {len(paths)} pictures, {size:.1f} MB, {error}; SHA-256 {sha256_file(s.target)}")


def add(archive: zipfile.ZipFile, name: str, content: bytes) -> str:
    """Add a file without a date, so that the same pictures make the same archive; returns its SHA-256."""
    is_text = name.endswith((".csv", ".json"))
    kind = zipfile.ZIP_DEFLATED if is_text else zipfile.ZIP_STORED
    archive.writestr(zipfile.ZipInfo(name), content, kind)
    return hashlib.sha256(content).hexdigest()


def unpack_images(s: Settings) -> None:
    """Write the prepared folder anew beside its place, then move it there."""
    if s.target.exists() and (not s.target.is_dir() or any(s.target.iterdir())):
        raise InputError(f"{s.target} is there already, wanted a new folder: choose another or remove it")
    try:
        archive = zipfile.ZipFile(s.source)
        about = json.loads(archive.read(PACKED))
        digests = dict(about["sha256"])
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{s.source} is missing, damaged or no archive of this script ({error}): bring it again"
        ) from None
    if about["format"] == "avif" and not features.check("avif"):
        raise InputError("this Pillow cannot read AVIF: install pillow 12, or pack with --format png")
    folder = s.target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{s.target.name}")
    try:
        pixels = {}
        for name, digest in tqdm(digests.items(), desc="unpack", unit="file", file=sys.stdout):
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{s.source} holds {name!r}, a path outside the folder: do not use it")
            try:
                content = archive.read(name)
            except (KeyError, zipfile.BadZipFile) as error:
                raise InputError(f"{s.source} is damaged at {name} ({error}): bring it again") from None
            if hashlib.sha256(content).hexdigest() != digest:
                raise InputError(f"{s.source} is damaged: {name} is not what was packed; bring it again")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix != f".{about['format']}" or name in LISTS:
                path.write_bytes(content)
                continue
            try:
                rgb = Image.open(io.BytesIO(content)).convert("L").convert("RGB")
            except (UnidentifiedImageError, OSError) as error:
                raise InputError(f"{s.source}: {name} cannot be read ({error}): bring it again") from None
            # As prepare_datasets.py writes it.
            rgb.save(path.with_suffix(".png"), compress_level=3)
            pixels[str(Path(name).with_suffix(".png"))] = hashlib.sha256(rgb.tobytes()).hexdigest()
        write_pixel_hashes(folder / "manifest.csv", pixels)
        write_json(folder / PACKED, {key: value for key, value in about.items() if key != "sha256"})
        if s.target.is_dir():
            s.target.rmdir()
        s.target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(s.target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{s.target}: {len(pixels)} pictures")


def write_pixel_hashes(manifest: Path, pixels: dict[str, str]) -> None:
    """Put the hashes of the pictures as they are now into the manifest, where there is one."""
    if not manifest.is_file():
        return
    with open(manifest, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames or []
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(row | {"sha256": pixels.get(row["file"], row["sha256"])} for row in rows)


def shard(s: Settings) -> None:
    """Write the shards, and last the index that makes them a set."""
    content = read_checkpoint(s.source)
    if not {"model", "config", "made_by"} <= set(content):
        raise InputError(f"{s.source} is no best checkpoint of a training script: give best.pth of one")
    state = {
        key: (value.bfloat16() if value.is_floating_point() else value).contiguous().clone()
        for key, value in content["model"].items()
    }
    most = int((s.most_mb or 15) * 1e6)
    largest = max(state, key=lambda key: state[key].nbytes)
    # Names, shapes and places of the tensors stand at the beginning of a file.
    room = most - 200 * len(state) - 1000
    if state[largest].nbytes > room:
        raise InputError(
            f"{largest} takes {state[largest].nbytes / 1e6:.2f} MB by itself, wanted shards of "
            f"{most / 1e6:g} MB: raise --most-mb"
        )
    s.target.mkdir(parents=True, exist_ok=True)
    (s.target / INDEX).unlink(missing_ok=True)
    files = {}
    parts = split_torch_state_dict_into_shards(state, max_shard_size=room).filename_to_tensors
    for name, keys in parts.items():
        with atomic_path(s.target / name) as temporary:
            save_file({key: state[key] for key in keys}, temporary)
        files[name] = {"sha256": sha256_file(s.target / name), "bytes": (s.target / name).stat().st_size}
    made_by = content["made_by"] | {"rounded_to": "bfloat16", "rounded_from": sha256_file(s.source)}
    index = {
        "format": INDEX_FORMAT,
        "config": content["config"],
        "made_by": made_by,
        "dtypes": {key: str(value.dtype).removeprefix("torch.") for key, value in content["model"].items()},
        "files": files,
    }
    with tempfile.TemporaryDirectory() as folder:
        # From its JSON, as `join` has it: a pickle's bytes also depend on which equal strings are one object.
        save_checkpoint(Path(folder) / "joined.pth", joined(s.target, json.loads(json.dumps(index))))
        index["joined_sha256"] = sha256_file(Path(folder) / "joined.pth")
    write_json(s.target / INDEX, index)
    sizes = ", ".join(f"{name} {file['bytes'] / 1e6:.1f} MB" for name, file in files.items())
    print(f"{s.target}: {sizes}; joined they have SHA-256 {index['joined_sha256']}")


def join(s: Settings) -> None:
    """Write a checkpoint that the scripts read."""
    path = s.source / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != INDEX_FORMAT or not {"config", "made_by", "dtypes", "files"} <= set(index):
            raise ValueError(f"its format is {index['format']}")
        content = joined(s.source, index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"{path} is missing, damaged or not written by this script ({error}): bring all files again"
        ) from None
    save_checkpoint(s.target, content)
    print(f"{s.target}: SHA-256 {sha256_file(s.target)}")
    if sha256_file(s.target) != index.get("joined_sha256"):
        print(
            "note: its bytes differ from those of the file that was joined where the weights were trained "
            "(another version of torch writes other bytes); tokens and models made from that one are not "
            "accepted with it",
            file=sys.stderr,
        )


def joined(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Content of a checkpoint from its shards, in the types that the model had.

    Raises:
        InputError: a shard is missing or damaged.
    """
    found = {}
    for name, about in index["files"].items():
        if Path(name).name != name:
            raise InputError(f"{folder / INDEX} names {name!r}, wanted files beside it: bring it again")
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing, one of {len(index['files'])} shards: bring it too")
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise InputError(f"{folder / name} is damaged, its SHA-256 is another: bring it again")
        found |= load(content)
    # In the order of the model's own state_dict, so that the bytes of the checkpoint are the same.
    state = {key: found[key].to(getattr(torch, dtype)) for key, dtype in index["dtypes"].items()}
    return {"model": state, "config": index["config"], "made_by": index["made_by"]}


MODES = {"images": pack_images, "unpack": unpack_images, "shard": shard, "join": join}


def main(settings: Settings) -> None:
    MODES[settings.mode](settings)


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
