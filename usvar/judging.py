"""What the sweep and the evaluation share: models and images read, pictures drawn, networks that judge.

Axes: N images, L tokens, H W pixels.
"""

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix
from tqdm import tqdm

from models import VAR, VQVAE
from models.helpers import image_seeds, split_scales
from usvar import checkpoints, checks, images, tokens, training
from usvar.chosen import Drawing
from usvar.errors import InputError
from usvar.evaluation import ImageSet, share_interval
from usvar.extractor import (
    CLASSIFIER_SHAPE,
    EXTRACTOR_SHAPE,
    Extractor,
    OutsideNet,
    SmallNet,
    features,
    make_extractor,
    probabilities,
    train_classifier,
    train_self_supervised,
    weights_sha256,
)

FEATURE_DIMS = 64
# The extractors trained here; the first is the primary one.
SUPERVISED, SELF_SUPERVISED = "US", "US-SSL"


# --- models and images ---


@dataclass(frozen=True)
class ModelsWithTokens:
    """A transformer with its VQ-VAE and the token maps of some splits."""

    var: VAR
    # How the transformer was made, see `checkpoints.Loaded`.
    config: dict[str, Any]
    vae: VQVAE
    var_sha256: str
    classes: tuple[str, ...]
    # Side of the images in pixels.
    size: int
    maps: dict[str, tokens.TokenMaps]
    # If not, it may have seen what is val or test here; None for a published one, which does not say.
    vqvae_is_trained_on_this_train: bool | None


def load_models(
    data_root: Path,
    var_path: Path,
    vqvae_path: Path,
    tokens_dir: Path,
    splits: Sequence[str],
    device: torch.device,
) -> ModelsWithTokens:
    """Load both models and the token maps, refused when they do not belong together.

    Raises:
        InputError: when a file is missing, or classes, models or images differ.
    """
    vqvae = checkpoints.load_vqvae(vqvae_path, device)
    loaded = checkpoints.load_var(var_path, vqvae, device)
    classes, number = images.find_classes(data_root), loaded.model.num_classes
    maps = {split: tokens.read_token_maps_of(vqvae, vqvae_path, tokens_dir / split) for split in splits}
    # A published transformer has no names, only a number of classes.
    unnamed = classes if number == len(classes) else (f"{number} without names",)
    classes_of = {var_path: loaded.classes or unnamed} | {one.file: one.classes for one in maps.values()}
    for path, names in classes_of.items():
        if names != classes:
            raise InputError(
                f"{path} has the classes {', '.join(names)}, {data_root} has {', '.join(classes)}: give the "
                "images that it was made from"
            )
    files = {split: images.find_images(data_root, split, classes) for split in maps}
    for split, one in maps.items():
        made_from = one.made_by.get("listing_sha256")
        if made_from and made_from != images.listing_sha256(files[split]):
            raise InputError(
                f"{one.file} was made from other images than {data_root / split} has: give the images that "
                "it was made from, or tokenise these and train again"
            )
    tokens.refuse_other_training(var_path, loaded, maps["train"])
    return ModelsWithTokens(
        loaded.model,
        loaded.config,
        vqvae.model,
        loaded.sha256,
        classes,
        vqvae.model.image_side,
        maps,
        images.note_other_training(vqvae_path, vqvae.made_by, files["train"]),
    )


def find_manifest(data_root: Path) -> Path | None:
    """manifest.csv of prepare_datasets.py; None where there is none."""
    path = data_root / "manifest.csv"
    return path if path.is_file() else None


def read_groups(data_root: Path) -> dict[str, str] | None:
    """Group of each prepared image (its patient or video, joined with near copies) by its path in the folder.

    Returns:
        What manifest.csv of prepare_datasets.py says; None where there is none.

    Raises:
        InputError: when the file is no such list.
    """
    path = find_manifest(data_root)
    if path is None:
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {row["file"]: row["group"] for row in csv.DictReader(file)}
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path} does not say the group of each image ({error!r}): run prepare_datasets.py again, or "
            "without it every image counts as one by itself"
        ) from error


def numbers_of_groups(paths: Sequence[str], group_of: dict[str, str] | None) -> np.ndarray | None:
    """(N,) number of the group of each image; None where no groups are known.

    Raises:
        InputError: when an image is in none.
    """
    if group_of is None:
        return None
    if lacking := [path for path in paths if not group_of.get(path)]:
        raise InputError(
            f"manifest.csv names no group of {lacking[0]} and {len(lacking) - 1} more: run "
            "prepare_datasets.py again, or without manifest.csv every image counts as one by itself"
        )
    return np.unique([group_of[path] for path in paths], return_inverse=True)[1]


def read_split(
    data_root: Path,
    split: str,
    classes: tuple[str, ...],
    size: int,
    cache: Path,
    group_of: dict[str, str] | None = None,
    wanted_by: str = "the evaluation",
) -> tuple[ImageSet, images.ImageFiles]:
    """The images of a split, memory-mapped, with their groups from `read_groups`; and their files.

    Args:
        data_root: the prepared folder.
        split: "train", "val" or "test".
        classes: names in label order.
        size: wanted side in pixels.
        cache: folder for the decoded images.
        group_of: group of each image; None: not known.
        wanted_by: what wants images of this size, in words for the message.

    Raises:
        InputError: when the split is missing, or its images have another size or no group.
    """
    files = images.find_images(data_root, split, classes)
    images.require_size(files, size, wanted_by, f"prepare all splits with --size {size}")
    group_N = numbers_of_groups(files.paths, group_of)
    return ImageSet(images.decoded(files, size, cache), files.label_N, group_N=group_N), files


# --- drawing ---


def draw_samples(
    models: ModelsWithTokens,
    drawing: Drawing,
    per_class: int,
    seed: int,
    batch_size: int,
    known: Callable[[np.ndarray, Sequence[int]], np.ndarray] | None = None,
    *,
    labels: Sequence[int] | None = None,
    stream: str = "sample",
) -> ImageSet:
    """Images of each class, each from its own seed, with their tokens.

    Args:
        models: both models.
        drawing: how tokens are drawn.
        per_class: images of each class.
        seed: of all images.
        batch_size: images at once.
        known: labels and seeds of a batch -> (B, L) tokens that are given, -1 where one is free; None: no
            token is given.
        labels: classes that are drawn; None: all.
        stream: other names give other images for the same seed.
    """
    labels = range(len(models.classes)) if labels is None else labels
    seeds = [s for i in labels for s in image_seeds(seed, per_class, f"{stream} {models.classes[i]}")]
    label_N = np.repeat(np.array(labels, np.int64), per_class)
    device, grey, idx = next(models.var.parameters()).device, [], []
    parts = zip(*(training.batches(each, batch_size) for each in (label_N, seeds)), strict=True)
    for label_B, seeds_B in tqdm(list(parts), "sample", leave=False, file=sys.stdout):
        known_BL = None if known is None else torch.from_numpy(known(label_B, seeds_B))
        idx_BL, f_hat = models.var.generate_tokens(
            torch.from_numpy(label_B).to(device),
            seeds=seeds_B,
            known_BL=known_BL,
            **vars(drawing),
        )
        grey.append(images.to_uint8(models.vae.fhat_to_img(f_hat)))
        idx.append(idx_BL.cpu().numpy())
    return ImageSet(np.concatenate(grey), label_N, idx_NL=np.concatenate(idx))


def decode(vae: VQVAE, idx_NL: np.ndarray, batch_size: int) -> np.ndarray:
    """Token maps (N, L) to images (N, H, W) uint8."""
    device, grey = next(vae.parameters()).device, []
    parts = list(training.batches(idx_NL, batch_size))
    for part_BL in tqdm(parts, "decode", leave=False, file=sys.stdout):
        idx_BL = torch.from_numpy(part_BL.astype(np.int64)).to(device)
        maps = split_scales(idx_BL, vae.quantize.v_patch_nums)
        grey.append(images.to_uint8(vae.idxBl_to_img(maps, same_shape=True, last_one=True)))
    return np.concatenate(grey)


@torch.no_grad()
def tokenise(vae: VQVAE, grey_NHW: np.ndarray, batch_size: int) -> np.ndarray:
    """Images to token maps (N, L)."""
    device = next(vae.parameters()).device
    parts = (images.to_model_range(grey_BHW, device) for grey_BHW in training.batches(grey_NHW, batch_size))
    return torch.cat([torch.cat(vae.img_to_idxBl(part_B3HW), dim=1) for part_B3HW in parts]).cpu().numpy()


@torch.no_grad()
def rebuild(vae: VQVAE, grey_NHW: np.ndarray, batch_size: int) -> np.ndarray:
    """Images through the VQ-VAE and back, uint8."""
    device = next(vae.parameters()).device
    parts = (images.to_model_range(grey_BHW, device) for grey_BHW in training.batches(grey_NHW, batch_size))
    # To uint8 at once: floats of all images would fill the memory of a GPU.
    return np.concatenate(
        [images.to_uint8(vae.img_to_reconstructed_img(part_B3HW, last_one=True)) for part_B3HW in parts]
    )


# --- networks that judge ---


@dataclass(frozen=True)
class JudgeTraining:
    """How the networks that judge are trained: these settings of the sweep and the evaluation."""

    # Side in pixels that they see.
    extractor_pixels: int
    # Training steps of each extractor and of each classifier.
    extractor_steps: int
    classifier_steps: int
    # How many classifiers.
    classifier_seeds: int
    # Seed of all.
    seed: int

    @classmethod
    def of(cls, settings: Any) -> "JudgeTraining":
        """As the settings of the sweep or the evaluation say."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})

    @classmethod
    def of_config(cls, config: dict[str, Any], classifiers: int) -> "JudgeTraining":
        """As the config of a judges.pth says, which has shorter names, with its number of classifiers."""
        return cls(config["pixels"], config["steps"], config["classifier_steps"], classifiers, config["seed"])

    @classmethod
    def in_file(cls, path: Path) -> "JudgeTraining":
        """As a judges.pth says.

        Raises:
            InputError: when the file holds something else.
        """
        content = _content_of_judges(path)
        return cls.of_config(content["config"], len(content["classifiers"]))


@dataclass(frozen=True)
class Judges:
    """Frozen networks, trained on the real training split, and what is known of them."""

    # Name of the results -> extractor.
    extractors: dict[str, Extractor]
    # Classifiers of another shape than the extractors, one per seed.
    classifiers: list[SmallNet]
    # Classes, sizes, steps and hashes, as in the file.
    config: dict[str, Any]

    @property
    def pixels(self) -> int:
        """Side that the classifiers see."""
        return self.config["pixels"]

    @property
    def training(self) -> JudgeTraining:
        """How they were trained."""
        return JudgeTraining.of_config(self.config, len(self.classifiers))

    def stamp(self, name: str) -> str:
        """What stands beside every number of an extractor."""
        return f"{name} {self.config['sha256'][name][:12]}"

    @property
    def stamps(self) -> dict[str, str]:
        """The stamp of each extractor."""
        return {name: self.stamp(name) for name in self.extractors}

    def describe(self, image_set: ImageSet) -> None:
        """Compute the features of a set that it lacks."""
        for name, extractor in self.extractors.items():
            if name not in image_set.features:
                image_set.features[name] = features(extractor, image_set.grey_NHW)


def train_judges(
    path: Path,
    train: ImageSet,
    files: images.ImageFiles,
    how: JudgeTraining,
    device: torch.device,
    record: dict[str, Any],
) -> Judges:
    """Train both extractors and the classifiers, and keep them in a file.

    Args:
        path: the file to write.
        train: the training split.
        files: its files.
        how: sizes, steps and seed.
        device: where it runs.
        record: what makes the file.
    """
    grey_NHW, num_classes = train.grey_NHW, len(files.classes)
    pixels, steps, seed = how.extractor_pixels, how.extractor_steps, how.seed
    nets = {
        SUPERVISED: train_classifier(
            EXTRACTOR_SHAPE, grey_NHW, train.label_N, num_classes, pixels, steps, seed, device
        ),
        SELF_SUPERVISED: train_self_supervised(EXTRACTOR_SHAPE, grey_NHW, pixels, steps, seed, device),
    }
    extractors = {
        name: make_extractor(net, grey_NHW, pixels, FEATURE_DIMS, seed, device) for name, net in nets.items()
    }
    classifiers = [
        train_use_classifier(train, num_classes, how, number, device)
        for number in range(how.classifier_seeds)
    ]
    config = {
        "kind": "judges",
        "classes": list(files.classes),
        "pixels": pixels,
        "steps": steps,
        "classifier_steps": how.classifier_steps,
        "seed": seed,
        "dims": {name: extractor.dims for name, extractor in extractors.items()},
        "train_listing_sha256": images.listing_sha256(files),
        "train_images": len(files),
        "sha256": {name: extractor.sha256() for name, extractor in extractors.items()},
        "classifiers_sha256": weights_sha256(classifiers, pixels),
    }
    content = {
        "model": {name: extractor.state_dict() for name, extractor in extractors.items()},
        "classifiers": [net.state_dict() for net in classifiers],
        "config": config,
        "made_by": record,
    }
    checkpoints.save_checkpoint(path, content)
    return Judges(extractors, classifiers, config)


def train_use_classifier(
    image_set: ImageSet, num_classes: int, how: JudgeTraining, number: int, device: torch.device
) -> SmallNet:
    """One classifier of the accuracy score: the same recipe for real and generated images."""
    return train_classifier(
        CLASSIFIER_SHAPE,
        image_set.grey_NHW,
        image_set.label_N,
        num_classes,
        how.extractor_pixels,
        how.classifier_steps,
        how.seed + 1 + number,
        device,
    )


def read_judges(path: Path, files: images.ImageFiles, device: torch.device) -> Judges:
    """Read what `train_judges` kept.

    Args:
        path: the file.
        files: the training split, which must be the one that the networks were trained on.
        device: where they run.

    Raises:
        InputError: when the file holds something else, or networks of other training images.
    """
    content = _content_of_judges(path)
    config = content["config"]
    same_classes = config["classes"] == list(files.classes)
    if not same_classes or config["train_listing_sha256"] != images.listing_sha256(files):
        raise InputError(
            f"{path} was trained on other images than {files.root / 'train'}: leave --judges out, or its "
            "networks might have seen the test images"
        )
    extractors = {}
    for name, state in content["model"].items():
        outputs = len(files.classes) if name == SUPERVISED else EXTRACTOR_SHAPE.widths[-1]
        extractor = Extractor(SmallNet(EXTRACTOR_SHAPE, outputs), config["dims"][name], config["pixels"])
        checkpoints.load_strictly(extractor, state, path)
        extractors[name] = extractor.to(device).eval()
        if extractor.sha256() != config["sha256"][name]:
            raise InputError(f"{path} holds other weights of {name} than it says: train the judges again")
    classifiers: list[SmallNet] = []
    for state in content["classifiers"]:
        net = SmallNet(CLASSIFIER_SHAPE, len(files.classes))
        checkpoints.load_strictly(net, state, path)
        classifiers.append(net.requires_grad_(False).to(device).eval())
    return Judges(extractors, classifiers, config)


def check_shared(settings: Any) -> None:
    """Refuse settings about the judges, which the sweep and the evaluation have alike, that make no sense.

    Raises:
        InputError: names the first flag that is out of range, or --judges when it is no file.
    """
    checks.require(settings, "1 or more", "neighbours", "extractor_steps", "classifier_steps", "batch_size")
    checks.require(settings, "3 or more", "classifier_seeds")
    checks.require(settings, "32 to 1024", "extractor_pixels")
    checks.require(settings, "0 or more", "seed")
    checks.require_file("--judges", settings.judges)


def _content_of_judges(path: Path) -> dict[str, Any]:
    content = checkpoints.read_checkpoint(path)
    config = content.get("config")
    if not isinstance(config, dict) or config.get("kind") != "judges":
        raise InputError(f"{path} holds no judges: give the judges.pth of sweep_var.py or evaluate_var.py")
    return content


def with_their_training(settings: Any, path: Path | None) -> Any:
    """Settings that say how the judges of a file were trained, because they are not trained anew.

    The seed stays: samples are drawn from it too.

    Raises:
        InputError: when the file holds something else.
    """
    if path is None:
        return settings
    return replace(settings, **vars(JudgeTraining.in_file(path)) | {"seed": settings.seed})


def refuse_other_judges(path: Path, wanted: JudgeTraining) -> None:
    """Refuse a judges.pth that lies where a run would train its own, if it was trained in another way.

    Raises:
        InputError: names what differs.
    """
    differ = [
        f"{checks.flag(name)} {value} (now {getattr(wanted, name)})"
        for name, value in vars(JudgeTraining.in_file(path)).items()
        if value != getattr(wanted, name)
    ]
    if differ:
        raise InputError(
            f"{path} was trained with {', '.join(differ)}: set it as it was, give the file as --judges to "
            "use it anyway, or delete it to train anew"
        )


def read_or_train(
    given: Path | None,
    path: Path,
    train: ImageSet,
    files: images.ImageFiles,
    how: JudgeTraining,
    device: torch.device,
    record: dict[str, Any],
) -> Judges:
    """`read_judges` of the given file; without one, `train_judges` into `path`.

    Args:
        given: a judges.pth; None: train.
        path: where the networks that are trained here are kept.
        train, files: the training split.
        how: sizes, steps and seed of the training.
        device: where the networks run.
        record: what makes the file.

    Raises:
        InputError: when the given file holds something else, or networks of other training images.
    """
    if given:
        return read_judges(given, files, device)
    return train_judges(path, train, files, how, device, record)


def read_outside(path: Path, pixels: int) -> OutsideNet:
    """A network from a TorchScript file; results are named after the file.

    Raises:
        InputError: when the file does not fit, or its name would mislead.
    """
    if path.stem in (SUPERVISED, SELF_SUPERVISED) or path.stem.upper() in ("FID", "KID"):
        raise InputError(
            f"--extractor-file {path}: results are named after the file, and {path.stem} would mislead: "
            "rename it"
        )
    return OutsideNet(path, pixels)


def with_outside(
    judges: Judges, name: str, net: OutsideNet, pixels: int, train: ImageSet, device: torch.device
) -> Judges:
    """The judges with a network from outside as a further extractor, projected over the training images."""
    config = judges.config
    extractor = make_extractor(net, train.grey_NHW, pixels, FEATURE_DIMS, config["seed"], device)
    config = config | {
        "sha256": config["sha256"] | {name: extractor.sha256()},
        "dims": config["dims"] | {name: extractor.dims},
    }
    return Judges(judges.extractors | {name: extractor}, judges.classifiers, config)


def class_fidelity(judges: Judges, image_set: ImageSet, device: torch.device) -> dict[str, Any]:
    """What classifiers that saw only real images take pictures for.

    The probabilities of all classifiers are averaged. Counts stand in a table (asked class, predicted class).
    """
    num_classes = len(judges.config["classes"])
    probability_NC = np.mean(
        [probabilities(net, image_set.grey_NHW, judges.pixels, device) for net in judges.classifiers], axis=0
    )
    predicted_N = probability_NC.argmax(1)
    table_CC = confusion_matrix(image_set.label_N, predicted_N, labels=range(num_classes))
    per_class = []
    for label in range(num_classes):
        members = image_set.label_N == label
        right_N, group_N = predicted_N[members] == label, image_set.group_N[members]
        row = {"images": len(right_N), "right": int(right_N.sum()), "share": None, "interval_95": None}
        if len(right_N):
            row |= {"share": float(right_N.mean()), "interval_95": share_interval(right_N, group_N)}
        per_class.append(row)
    shares = [entry["share"] for entry in per_class if entry["share"] is not None]
    return {
        "table": table_CC.tolist(),
        "per_class": per_class,
        "balanced_accuracy": float(np.mean(shares)),
        "images": len(image_set),
    }
