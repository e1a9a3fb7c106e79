"""Prepared images as data: `<root>/{train,val,test}/<Class>/*.png`, grey stored as RGB.

uint8 on disk and in memory, float in [-1, 1] inside the networks; `to_model_range` and `to_uint8` are the
only places that convert. Axes: N images of a split, B of a batch, H W pixels.
"""

import hashlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from usvar.checks import require_class_names
from usvar.errors import InputError
from usvar.files import alone_in, atomic_path, is_hidden, new_memmap, remove_stale_temporaries
from usvar.threads import in_order

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Name of the text in the PNG of an image that began with given tokens.
TOKENS_GIVEN = "Tokens given"
# Pixels per side that a prepared picture may have; a header that claims more is not decoded.
MAX_SIDE = 4096
READ_LIMIT_S = 300.0
ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class ImageFiles:
    """The pictures of one split, in a fixed order: by class, then by name."""

    root: Path
    split: str
    # Paths relative to root, with forward slashes.
    paths: tuple[str, ...]
    # Index into classes, one per path.
    label_N: np.ndarray
    # Class names; index = label.
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


def find_classes(root: Path) -> tuple[str, ...]:
    """Class names of a prepared data set: the sorted folder names of its training split.

    Raises:
        InputError: when there is no training split or it has no class folder.
    """
    train = root / "train"
    if not train.is_dir():
        entries = sorted(p.name for p in root.iterdir()) if root.is_dir() else []
        raise InputError(
            f"{root} holds {', '.join(entries) or 'nothing'}, wanted the folders train, val and test: "
            "run data_preprocessing/prepare_datasets.py and give its --out-root"
        )
    classes = tuple(sorted(p.name for p in train.iterdir() if p.is_dir() and not is_hidden(p.name)))
    if not classes:
        raise InputError(
            f"{train} has no class folder, wanted {train}/<Class>/*.png: prepare the images first"
        )
    require_class_names(train, classes)
    return classes


def find_images(root: Path, split: str, classes: Sequence[str]) -> ImageFiles:
    """List the PNG files of a split.

    Args:
        root: the prepared folder.
        split: "train", "val" or "test".
        classes: names in label order, from `find_classes` or from a checkpoint.

    Raises:
        InputError: for a missing or empty split, a class folder that is not in `classes`, and anything in a
            class folder that is no plain PNG file, nor the tokens (.npy) of one beside it.
    """
    folder = root / split
    if not folder.is_dir():
        raise InputError(
            f"{folder} is missing, wanted <data-root>/{split}/<Class>/*.png: prepare the images first"
        )
    found = {p.name for p in folder.iterdir() if p.is_dir() and not is_hidden(p.name)}
    if unknown := sorted(found - set(classes)):
        raise InputError(
            f"{folder} holds the class {unknown[0]!r}, known are {', '.join(classes)}: "
            "use the data that the model was trained on, or train again"
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir() if (folder / name).is_dir() else ()):
            if is_hidden(path.name):
                continue
            if path.suffix == ".npy" and path.with_suffix(".png").is_file():  # tokens of sample_var.py
                continue
            # A pipe or a device would be waited for without end; another kind of file would be left out
            # without a word.
            if path.suffix != ".png" or not path.is_file():
                raise InputError(
                    f"{path} is no plain PNG file, wanted only those in a class folder: move it elsewhere or "
                    "run prepare_datasets.py again"
                )
            paths.append(f"{split}/{name}/{path.name}")
            labels.append(label)
    if not paths:
        raise InputError(
            f"{folder} holds no PNG file in {len(found)} class folders: prepare the images first"
        )
    return ImageFiles(root, split, tuple(paths), np.array(labels, dtype=np.int64), tuple(classes))


def lacking_classes(label_N: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Names of the classes that none of the labels is of."""
    return [name for label, name in enumerate(classes) if label not in label_N]


def require_every_class(files: ImageFiles) -> None:
    """Refuse a split in which a class has no image.

    Raises:
        InputError: names the first such class.
    """
    if lacking := lacking_classes(files.label_N, files.classes):
        raise InputError(
            f"class {lacking[0]} has no image in {files.root / files.split}, wanted one or "
            "more: add images or leave the class out when preparing"
        )


def data_sets(files: ImageFiles) -> np.ndarray:
    """Data set of each picture, (N,) numbers: the part of its name before the first `__`."""
    return np.unique([Path(path).stem.split("__")[0] for path in files.paths], return_inverse=True)[1]


def listing_sha256(files: ImageFiles) -> str:
    """Digest of the names and sizes of a split's pictures: whether it is the same data set."""
    digest = hashlib.sha256()
    for number, path in enumerate(files.paths):
        line = f"{path} {(files.root / path).stat().st_size}"
        digest.update(("\n" * (number > 0) + line).encode())
    return digest.hexdigest()


def note_other_training(path: Path, made_by: dict, train: ImageFiles) -> bool | None:
    """Print a note when a VQ-VAE was trained on other pictures than those of `train`; this is allowed.

    After another preparation, what is val or test now may have been in its training, and is rebuilt too well.

    Args:
        path: its checkpoint.
        made_by: the checkpoint's record.
        train: the pictures of the training split.

    Returns:
        Whether they are the same; None for a published VQ-VAE, which does not say what it learned from.
    """
    learned_from = made_by.get("inputs", {}).get("train_images", {}).get("sha256")
    if learned_from is None:
        return None
    if learned_from == listing_sha256(train):
        return True
    print(
        f"note: {path} was trained on other images than {train.root / 'train'} holds: it may have seen what "
        "is val or test there; to be sure, run train_vqvae.py again"
    )
    return False


def read_image(path: Path) -> np.ndarray:
    """Read one prepared picture as (H, W) uint8.

    Raises:
        InputError: when it cannot be decoded or is not one plain grey picture stored as 8-bit L or RGB.
    """
    try:
        with Image.open(path) as picture:
            strange = _strangeness(picture)
            array = np.asarray(picture) if not strange else None
    # Damaged pictures make Pillow and its libraries raise nearly anything.
    except (Exception, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} cannot be read ({error}), wanted a prepared PNG: run prepare_datasets.py again"
        ) from error
    if not strange and array.ndim == 3 and (array[..., :1] != array[..., 1:]).any():
        strange = "in colour"
    if strange:
        raise InputError(
            f"{path} is {strange}, wanted one grey picture stored as 8-bit L or RGB without palette or "
            "transparency: run prepare_datasets.py on it"
        )
    return array if array.ndim == 2 else array[..., 0]


def _strangeness(picture: Image.Image) -> str:
    """What keeps an opened picture from being a prepared one, found before its pixels are decoded."""
    if picture.format != "PNG":
        return f"a {picture.format} file"
    if picture.mode not in ("L", "RGB"):
        return f"stored in Pillow's mode {picture.mode}"
    if max(picture.size) > MAX_SIDE:
        return f"{picture.width} x {picture.height} pixels"
    if getattr(picture, "n_frames", 1) > 1:
        return "animated"
    if "transparency" in picture.info:
        return "partly transparent"
    return "to be turned (EXIF)" if picture.getexif().get(ORIENTATION, 1) != 1 else ""


def image_size(files: ImageFiles) -> int:
    """Side length in pixels of the (square) images, read from the first one.

    Raises:
        InputError: when that one cannot be read or is no square.
    """
    first = [files.root / files.paths[0]]
    height, width = next(in_order(read_image, first, 1, 1, READ_LIMIT_S, str)).shape
    if height != width:
        raise InputError(
            f"{files.root / files.paths[0]} is {width} x {height}, wanted a square: "
            "run prepare_datasets.py on it"
        )
    return height


def require_size(files: ImageFiles, size: int, wanted_by: str, what_to_do: str | None = None) -> None:
    """Refuse a split whose images have another side length.

    Args:
        files: the split.
        size: wanted side in pixels.
        wanted_by: what needs it, in words.
        what_to_do: in words; None: the advice for a VQ-VAE.

    Raises:
        InputError: names the folder and both sizes.
    """
    if (found := image_size(files)) != size:
        what_to_do = what_to_do or f"prepare with --size {size} or give another VQ-VAE"
        raise InputError(
            f"{files.root / files.split} holds images of {found} x {found} pixels, {wanted_by} wants "
            f"{size} x {size}: {what_to_do}"
        )


def find_images_of_side(root: Path, splits: Iterable[str], side: int, vqvae_path: Path) -> list[ImageFiles]:
    """List the PNG files of some splits, for a VQ-VAE that takes images of one size.

    Args:
        root: the prepared folder.
        splits: which of "train", "val" and "test".
        side: in pixels, that the VQ-VAE wants.
        vqvae_path: its file, for the message.

    Raises:
        InputError: as `find_images`, and for images of another size.
    """
    classes = find_classes(root)
    found = [find_images(root, split, classes) for split in splits]
    for files in found:
        require_size(files, side, str(vqvae_path))
    return found


def read_images(files: ImageFiles, indices: Sequence[int], size: int) -> np.ndarray:
    """Read some pictures of a split.

    Returns:
        (len(indices), size, size) uint8.

    Raises:
        InputError: when one cannot be read or has another size; its name is in the message.
    """
    images = np.empty((len(indices), size, size), dtype=np.uint8)
    for row, index in enumerate(indices):
        path = files.root / files.paths[index]
        image = read_image(path)
        if image.shape != (size, size):
            raise InputError(
                f"{path} is {image.shape[1]} x {image.shape[0]}, the others are {size} x {size}: "
                "prepare all images with one --size"
            )
        images[row] = image
    return images


def decoded(
    files: ImageFiles, size: int, cache: Path, workers: int = 4, limit_s: float = READ_LIMIT_S
) -> np.ndarray:
    """All pictures of a split, decoded once into a memory-mapped file.

    The file's name holds a digest of the names, sizes and times of the pictures, so that a changed data set
    is decoded anew. Reading a batch then costs no decoding, and memory does not grow with the data set.

    Args:
        files: the split.
        size: side length in pixels.
        cache: folder for the decoded file.
        workers: threads that decode.
        limit_s: seconds that one picture may take.

    Returns:
        (N, size, size) uint8, memory-mapped, read-only.

    Raises:
        InputError: when a picture cannot be read or has another size.
        RunError: when reading one hangs, or the disk is full; the picture or file is named.
    """
    stamp = hashlib.sha256(str(size).encode())
    for path in files.paths:
        status = (files.root / path).stat()
        stamp.update(f"{path}|{status.st_size}|{status.st_mtime_ns}".encode())
    target = cache / f"{files.split}-{stamp.hexdigest()[:16]}.npy"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # Runs that share the folder decode once: what looks like a leftover may be another's work.
        with alone_in(cache):
            if not target.is_file():
                remove_stale_temporaries(cache)
                _decode(files, size, target, workers, limit_s)
    try:
        return np.load(target, mmap_mode="r")
    except ValueError as error:
        raise InputError(f"{target} is damaged ({error}): delete it, it is decoded again") from error


def _decode(files: ImageFiles, size: int, target: Path, workers: int, limit_s: float) -> None:
    """Write the pictures of a split into one .npy file, see `decoded`."""
    with atomic_path(target) as temporary:
        array = new_memmap(temporary, np.uint8, (len(files), size, size))
        images = in_order(
            lambda row: read_images(files, [row], size)[0],
            range(len(files)),
            workers,
            8 * workers,
            limit_s,
            lambda row: files.root / files.paths[row],
        )
        progress = tqdm(images, f"decode {files.split}", len(files), leave=False, file=sys.stdout)
        for row, image in enumerate(progress):
            array[row] = image
        array.flush()


def to_model_range(grey_BHW: np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 grey images to what the networks take.

    Returns:
        (B, 3, H, W) float32 in [-1, 1], the three channels equal (a view, not a copy).
    """
    if isinstance(grey_BHW, np.ndarray):
        grey_BHW = torch.from_numpy(np.array(grey_BHW))  # a copy: memory maps are read-only
    return (grey_BHW.to(device, non_blocking=True).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def to_uint8(image_B3HW: Tensor) -> np.ndarray:
    """Network output to grey pixels; the channels are averaged, values outside [-1, 1] clipped.

    Returns:
        (B, H, W) uint8.
    """
    grey_BHW = image_B3HW.float().mean(1).clamp(-1, 1)
    return ((grey_BHW + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def save_png(path: Path, grey_HW: np.ndarray, tokens_given: int = 0) -> None:
    """Write a grey image as an RGB PNG, atomically.

    Args:
        path: where it goes.
        grey_HW: uint8.
        tokens_given: how many tokens were given instead of generated, at least 1 where real pixels were
            pasted in: the file says so wherever it is copied to, see `prefixed.refuse_prefixed`.
    """
    says = PngInfo()
    if tokens_given:
        says.add_text(TOKENS_GIVEN, str(tokens_given))
    with atomic_path(path) as temporary:
        Image.fromarray(grey_HW).convert("RGB").save(temporary, pnginfo=says)
