"""Is what the models generate like real images, varied, of the right class, and not a copy?

    python evaluate_var.py --data-root data/processed --var runs/var/ar-ckpt-best.pth \\
        --vqvae runs/vqvae/best.pth --tokens-dir runs/tokens
    python evaluate_var.py ... --generated runs/samples/scale_0_K0/plain    # judge images in a folder

Reads the prepared images, the token maps and both models; it is the only script that reads the test split
to judge generation. Writes to <out-dir>: metrics.json (every number with its counts and the hash of the
extractor that it stands on), extractor.pth, figures/*.png and report.html, one page with everything in it.
Beside each distance stand three reference lines computed in the same way: real training images,
reconstructions by the VQ-VAE, and a generator that knows only how often each code occurs at each place.
"""

import hashlib
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from models import VAR, VQVAE
from models.helpers import image_seeds, scale_spans, split_scales
from usvar import checkpoints, cli, distributed, evaluation, images, provenance, report, tokens
from usvar.augment import augment, draw_parameters
from usvar.errors import InputError
from usvar.evaluation import ImageSet
from usvar.extractor import (
    CLASSIFIER_SHAPE,
    EXTRACTOR_SHAPE,
    Extractor,
    SmallNet,
    features,
    make_extractor,
    probabilities,
    train_network,
    weights_sha256,
)
from usvar.files import write_json, write_text

FEATURE_DIMS = 64
# Fewer test images than this: the 5% quantile of their distances says nothing.
LEAST_FOR_QUANTILE = 10
# Pairs a class for the variety, and training images planted as copies.
PAIRS_PER_CLASS, PLANTED = 100, 50


@dataclass(frozen=True)
class Settings:
    """What is judged, and how many images."""

    # Prepared images: <data-root>/{train,val,test}/<Class>/*.png.
    data_root: Path

    # Transformer: ar-ckpt-best.pth of train_var.py.
    var: Path

    # The VQ-VAE that made its tokens.
    vqvae: Path

    # Token maps of the three splits from tokenize_multiscale_maps.py.
    tokens_dir: Path

    # Numbers, figures and the page are written here.
    out_dir: Path = Path("runs/evaluation")

    # Judge the images of this folder, <Class>/*.png, instead of drawing them here; none may have a prefix.
    generated: Path | None = None

    # Images drawn for each class, without prefix.
    images_per_class: int = 250

    # extractor.pth of an earlier evaluation on these training images, so that numbers compare; none: train.
    extractor: Path | None = None

    # Training steps of the extractor, and of the classifier.
    extractor_steps: int = 1500

    # Side in pixels that images are averaged to for extractor and classifier.
    extractor_pixels: int = 128

    # k of precision, recall, density and coverage.
    neighbours: int = 3

    # Guidance of the samples; 0 is none.
    cfg: float = 1.5

    # Codes that may be drawn at a place; 0 is all.
    top_k: int = 0

    # Probability that the codes drawn from must reach together; 0 is all.
    top_p: float = 0.95

    # Divides the logits: below 1 is less varied, above 1 more.
    temperature: float = 1.0

    # Most images of a split whose likelihood is computed.
    likelihood_images: int = 2000

    # Images at once.
    batch_size: int = 32

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Seed of samples, networks and subsets.
    seed: int = 0

    @property
    def least(self) -> int:
        """Images that a class must have in both sets: 4 to halve, and more than k to have k neighbours."""
        return max(4, self.neighbours + 1)


# --- what is judged ---


def check(s: Settings) -> None:
    """Refuse settings that make no sense before anything is read."""
    for name in ("images_per_class", "extractor_steps", "neighbours", "likelihood_images", "batch_size"):
        if getattr(s, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(s, name)} was given, wanted 1 or more")
    if s.extractor is not None and not s.extractor.is_file():
        raise InputError(
            f"--extractor {s.extractor} is missing: leave it out to train one, or correct the path"
        )
    if s.extractor_pixels < 32:
        raise InputError(f"--extractor-pixels {s.extractor_pixels} was given, wanted 32 or more")
    tokens.check_drawing(s.cfg, s.top_k, s.top_p, s.temperature)


def read_split(s: Settings, split: str, classes: tuple[str, ...], size: int) -> ImageSet:
    """The images of a split, memory-mapped."""
    files = images.find_images(s.data_root, split, classes)
    if (found := images.image_size(files)) != size:
        raise InputError(
            f"{s.data_root / split} holds images of {found} x {found} pixels, {s.vqvae} wants {size} x "
            f"{size}: prepare with --size {size} or give another VQ-VAE"
        )
    return ImageSet(images.decoded(files, size, s.out_dir / "cache"), files.label_N)


def read_token_splits(s: Settings, vqvae: checkpoints.Loaded, classes: tuple[str, ...]) -> dict[str, Any]:
    """Token maps of the three splits, refused when they do not belong to these models and classes."""
    maps = {split: tokens.read_token_maps_of(vqvae, s.vqvae, s.tokens_dir / split) for split in images.SPLITS}
    for found in maps.values():
        if found.classes != classes:
            raise InputError(
                f"{found.file} has the classes {', '.join(found.classes)}, {s.data_root} has "
                f"{', '.join(classes)}: tokenise these images again"
            )
    return maps


def decode(vae: VQVAE, idx_NL: np.ndarray, batch: int, what: str) -> np.ndarray:
    """Token maps (N, L) to images (N, H, W) uint8."""
    device, grey = next(vae.parameters()).device, []
    for start in tqdm(range(0, len(idx_NL), batch), f"decode {what}", leave=False, file=sys.stdout):
        idx_BL = torch.from_numpy(idx_NL[start : start + batch].astype(np.int64)).to(device)
        maps = split_scales(idx_BL, vae.quantize.v_patch_nums)
        grey.append(images.to_uint8(vae.idxBl_to_img(maps, same_shape=True, last_one=True)))
    return np.concatenate(grey)


def draw_samples(s: Settings, model: VAR, vae: VQVAE, classes: tuple[str, ...]) -> ImageSet:
    """Plain samples: no prefix, every image from its own seed."""
    labels = np.repeat(np.arange(len(classes)), s.images_per_class)
    seeds = [seed for name in classes for seed in image_seeds(s.seed, s.images_per_class, f"sample {name}")]
    device, grey = next(model.parameters()).device, []
    for start in tqdm(range(0, len(labels), s.batch_size), "sample", leave=False, file=sys.stdout):
        rows = slice(start, start + s.batch_size)
        _, f_hat = model.generate_tokens(
            torch.from_numpy(labels[rows]).to(device),
            seeds=seeds[rows],
            cfg=s.cfg,
            top_k=s.top_k,
            top_p=s.top_p,
            temperature=s.temperature,
        )
        grey.append(images.to_uint8(vae.fhat_to_img(f_hat)))
    return ImageSet(np.concatenate(grey), labels)


def refuse_prefixed(folder: Path) -> None:
    """Refuse a folder in which a picture holds given tokens of a real image or of the position prior.

    sample_var.py and edit_var.py list their pictures in samples.json and edit.json, up to three folders above
    them; a moved folder still has K in its name.
    """
    folder = folder.resolve()
    for place in (folder, *list(folder.parents)[:3]):
        named = re.fullmatch(r"scale_\d+_K(\d+)", place.name)
        found = place.name if named and int(named[1]) else None
        for listing in (place / "samples.json", place / "edit.json"):
            if found is None and listing.is_file():
                try:
                    entries = json.loads(listing.read_text(encoding="utf-8"))["samples"]
                    given = [entry["file"] for entry in entries if entry["prefixed"]]
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f"{listing} does not say which pictures have a prefix ({error!r}): sample again"
                    ) from error
                found = next((name for name in given if (place / name).is_relative_to(folder)), None)
        if found is not None:
            raise InputError(
                f"--generated {folder.name} holds pictures that began with given tokens ({found}), wanted "
                "plain samples (K = 0): give scale_0_K0/plain of sample_var.py, or leave --generated out"
            )


def read_generated(s: Settings, folder: Path, classes: tuple[str, ...], size: int) -> ImageSet:
    """Images of a folder <Class>/*.png, refused when prefixed, of another size or of no known class."""
    if not folder.is_dir():
        raise InputError(f"--generated {folder} is no folder, wanted one with <Class>/*.png")
    refuse_prefixed(folder)
    files = images.find_images(folder.parent, folder.name, classes)
    if (found := images.image_size(files)) != size:
        raise InputError(
            f"{folder} holds images of {found} pixels a side, {s.data_root} of {size}: "
            "judge images of the same size"
        )
    return ImageSet(images.read_images(files, range(len(files)), size), files.label_N)


def listing_sha256(files: images.ImageFiles) -> str:
    """Hash of the names and sizes of a split's pictures."""
    rows = (f"{path} {(files.root / path).stat().st_size}" for path in files.paths)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def get_networks(
    s: Settings, train: ImageSet, val: ImageSet, classes: tuple[str, ...], record: dict, device: torch.device
) -> tuple[Extractor, SmallNet, dict[str, Any]]:
    """Extractor and classifier, trained on the training split or read from an earlier evaluation.

    Returns:
        Both networks and what the file says of them.
    """
    listing = listing_sha256(images.find_images(s.data_root, "train", classes))
    if s.extractor is not None:
        content = checkpoints.read_checkpoint(s.extractor)
        config = content.get("config")
        if not isinstance(config, dict) or config.get("kind") != "extractor":
            raise InputError(
                f"{s.extractor} is no extractor: give the extractor.pth of an earlier evaluation"
            )
        if config["classes"] != list(classes) or config["train_listing_sha256"] != listing:
            raise InputError(
                f"{s.extractor} was trained on other images than {s.data_root / 'train'}: leave "
                "--extractor out, or it might have seen the test images"
            )
        num_features, dims = content["model"]["projection_FD"].shape
        extractor = Extractor(SmallNet(EXTRACTOR_SHAPE, len(classes)), num_features, dims)
        classifier = SmallNet(CLASSIFIER_SHAPE, len(classes))
        checkpoints.load_strictly(extractor, content["model"], s.extractor)
        checkpoints.load_strictly(classifier, content["classifier"], s.extractor)
        return extractor.to(device).eval(), classifier.to(device).eval(), config
    data = ((train.grey_NHW, train.label_N), (val.grey_NHW, val.label_N))
    common = (len(classes), s.extractor_pixels, s.extractor_steps)
    net = train_network(EXTRACTOR_SHAPE, *data, *common, s.seed, device)
    extractor = make_extractor(net, train.grey_NHW, s.extractor_pixels, FEATURE_DIMS, s.seed)
    classifier = train_network(CLASSIFIER_SHAPE, *data, *common, s.seed + 1, device)
    config = {
        "kind": "extractor",
        "classes": list(classes),
        "pixels": s.extractor_pixels,
        "steps": s.extractor_steps,
        "dims": extractor.projection_FD.shape[1],
        "train_listing_sha256": listing,
        "sha256": weights_sha256([extractor], s.extractor_pixels),
        "classifier_sha256": weights_sha256([classifier], s.extractor_pixels),
    }
    content = {"model": extractor.state_dict(), "classifier": classifier.state_dict(), "config": config}
    checkpoints.save_checkpoint(s.out_dir / "extractor.pth", content | {"made_by": record})
    return extractor, classifier, config


# --- the measures ---


def equal_counts(sets: dict[str, ImageSet], num_classes: int, seed: int) -> dict[str, ImageSet]:
    """As many images a class in each set, so that measures which depend on the number compare.

    The reconstructions stay as they are: there is one for each test image. A class that the generated images
    lack stays in the others: leaving it out would hide that it is missing.
    """
    most = max(int((sets["generated"].label_N == label).sum()) for label in range(num_classes))
    rng = np.random.default_rng(seed)
    chosen = {}
    for name, found in sets.items():
        if name == "reconstructed_test":
            chosen[name] = found
            continue
        rows = []
        for label in range(num_classes):
            wanted = min(most, int((sets["real_train"].label_N == label).sum()))
            rows.append(np.sort(rng.permutation(np.flatnonzero(found.label_N == label))[:wanted]))
        chosen[name] = found.take(np.concatenate(rows))
    return chosen


def compare(
    s: Settings, fake: ImageSet, real: ImageSet, name: str, where: str, left_out: list[dict[str, str]]
) -> dict[str, Any]:
    """Kernel distance and neighbour measures of one set against real test images, classes weighing alike."""
    paired = name == "reconstructed_test"
    row: dict[str, Any] = {"images": len(fake), "real_test_images": len(real)}
    most_of_class = min(np.bincount(found.label_N, minlength=1).max() for found in (fake, real))
    if min(len(fake), len(real)) < s.least or most_of_class < 2:
        note(
            left_out,
            f"distances, {where}, {report.SETS[name]}",
            f"{len(fake)} images against {len(real)} test images, wanted {s.least} each",
        )
        return row
    row["US-KD"], row["US-KD_spread"] = evaluation.kernel_distance(
        fake.features_ND, real.features_ND, fake.label_N, real.label_N, paired=paired, seed=s.seed
    )
    if row["US-KD_spread"] is None:
        note(
            left_out, f"spread of US-KD, {where}, {report.SETS[name]}", "a class has under 4 images to halve"
        )
    measures = evaluation.manifold_measures(fake.features_ND, real.features_ND, s.neighbours, paired=paired)
    return row | {f"US-{key}": value for key, value in measures.items()}


def note(left_out: list[dict[str, str]], what: str, why: str) -> None:
    """Keep what could not be computed at this number of images, for the file and the page."""
    left_out.append({"what": what, "why": why})


def all_distances(
    s: Settings,
    sets: dict[str, ImageSet],
    test: ImageSet,
    classes: tuple[str, ...],
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """Every set against the test images, pooled and for each class.

    A class with fewer test images than a ball has neighbours is left out of the pooled numbers too: its balls
    would reach into other classes, and nearly anything would count as precise.
    """
    judged = [i for i in range(len(classes)) if len(test.of_class(i)) >= s.least]
    for i in sorted(set(range(len(classes))) - set(judged)):
        note(left_out, f"{classes[i]} in the pooled distances", f"under {s.least} test images")
    pooled_test = test.take(np.flatnonzero(np.isin(test.label_N, judged)))
    distances: dict[str, Any] = {}
    for name, found in sets.items():
        pooled = found.take(np.flatnonzero(np.isin(found.label_N, judged)))
        distances[name] = {"pooled": compare(s, pooled, pooled_test, name, "pooled", left_out)}
        for i, class_name in enumerate(classes):
            of_class = found.of_class(i), test.of_class(i)
            distances[name][class_name] = compare(s, *of_class, name, class_name, left_out)
    return distances


def confusion(net: SmallNet, found: ImageSet, num_classes: int, pixels: int) -> dict[str, Any]:
    """What the independent classifier takes images for: counts (asked class, predicted class) and shares."""
    predicted_N = probabilities(net, found.grey_NHW, pixels, net.head.weight.device).argmax(1)
    table_CC = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(table_CC, (found.label_N, predicted_N), 1)
    per_class = []
    for label, row in enumerate(table_CC):
        count, hits = int(row.sum()), int(row[label])
        interval = evaluation.wilson_interval(hits, count) if count else None
        per_class.append(
            {
                "images": count,
                "right": hits,
                "share": hits / count if count else None,
                "interval_95": interval,
            }
        )
    shares = [entry["share"] for entry in per_class if entry["share"] is not None]
    return {
        "table": table_CC.tolist(),
        "per_class": per_class,
        "balanced_accuracy": float(np.mean(shares)),
        "images": len(found),
    }


def find_copies(
    s: Settings,
    extractor: Extractor,
    vae: VQVAE,
    train: ImageSet,
    test: ImageSet,
    generated: ImageSet,
    pixels: int,
    left_out: list[dict[str, str]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nearest training image of each generated one, in features and in pixels, mirrored ones included.

    Returns:
        Numbers for the file, and distances and rows for the figures.
    """
    device = extractor.centre_F.device
    mirrored_NHW = np.ascontiguousarray(train.grey_NHW[:, :, ::-1])

    def in_features(grey_NHW: np.ndarray) -> np.ndarray:
        return features(extractor, grey_NHW, pixels)

    source_N = np.sort(np.random.default_rng(s.seed).permutation(len(train))[:PLANTED])
    planted = train.take(source_N)
    rebuilt = rebuild(vae, planted.grey_NHW, s.batch_size)
    draws = draw_parameters(len(planted), torch.Generator().manual_seed(s.seed))
    altered = images.to_uint8(augment(images.to_model_range(planted.grey_NHW, device)[:, :1], draws))
    plants = {"rebuilt by the VQ-VAE": rebuilt, "augmented as in training": altered}

    numbers, drawn = {}, {}
    spaces = {"features": in_features, "pixels": evaluation.thumbnails}
    for space, embed in spaces.items():
        reference = np.concatenate([embed(train.grey_NHW), embed(mirrored_NHW)])
        test_N, _ = evaluation.nearest(embed(test.grey_NHW), reference)
        generated_N, nearest_N = evaluation.nearest(embed(generated.grey_NHW), reference)
        nearest_N = nearest_N % len(train)
        drawn[space] = {"generated": generated_N, "test": test_N, "row": nearest_N}
        entry: dict[str, Any] = {
            "generated_images": len(generated),
            "test_images": len(test),
            "train_images": len(train),
            "median_generated_to_train": float(np.median(generated_N)),
            "median_test_to_train": float(np.median(test_N)),
            "share_of_train_that_is_nearest": len(np.unique(nearest_N)) / len(train),
        }
        if len(test) >= LEAST_FOR_QUANTILE:
            threshold = float(np.quantile(test_N, 0.05))
            hits = int((generated_N < threshold).sum())
            entry |= {
                "threshold_5_percent_of_test": threshold,
                "generated_below": hits,
                "share_below": hits / len(generated),
                "share_below_interval_95": evaluation.wilson_interval(hits, len(generated)),
                "share_below_expected": 0.05,
                "planted_copies_detected": {},
            }
            for kind, grey_NHW in plants.items():
                planted_N, found_N = evaluation.nearest(embed(grey_NHW), reference)
                entry["planted_copies_detected"][kind] = {
                    "planted": len(planted_N),
                    "share_below_threshold": float((planted_N < threshold).mean()),
                    "share_whose_source_is_nearest": float((found_N % len(train) == source_N).mean()),
                }
            drawn[space]["threshold"] = threshold
        else:
            note(
                left_out,
                f"share of near copies in {space}",
                f"{len(test)} test images, wanted {LEAST_FOR_QUANTILE} for a 5% quantile",
            )
        numbers[space] = entry
    return numbers, drawn


@torch.no_grad()
def rebuild(vae: VQVAE, grey_NHW: np.ndarray, batch: int) -> np.ndarray:
    """Images through the VQ-VAE and back, uint8."""
    device = next(vae.parameters()).device
    return np.concatenate(
        [
            images.to_uint8(
                vae.img_to_reconstructed_img(
                    images.to_model_range(grey_NHW[i : i + batch], device), last_one=True
                )
            )
            for i in range(0, len(grey_NHW), batch)
        ]
    )


def variety(
    s: Settings, sets: dict[str, ImageSet], classes: tuple[str, ...], left_out: list[dict[str, str]]
) -> dict[str, Any]:
    """How alike two images of a class are, in each set: SSIM and distance in features over random pairs."""
    rng, table = np.random.default_rng(s.seed), {}
    for name, found in sets.items():
        table[name] = {}
        for label, class_name in enumerate(classes):
            members = found.of_class(label)
            if len(members) < 2:
                note(left_out, f"variety, {class_name}, {name}", f"{len(members)} images, wanted 2")
                continue
            pair_P2 = evaluation.draw_pairs(len(members), PAIRS_PER_CLASS, rng)
            ssim_P = evaluation.pairwise_ssim(members.grey_NHW, pair_P2)
            first, second = (members.features_ND[pair_P2[:, side]] for side in (0, 1))
            distance_P = np.linalg.norm(first - second, axis=1)
            table[name][class_name] = {
                "images": len(members),
                "pairs": len(pair_P2),
                "ssim_mean": float(ssim_P.mean()),
                "ssim_deviation": float(ssim_P.std()),
                "US-distance_mean": float(distance_P.mean()),
                "US-distance_deviation": float(distance_P.std()),
            }
    return table


def physics(sets: dict[str, ImageSet], test: ImageSet) -> tuple[dict[str, Any], dict[str, Any]]:
    """Power spectrum and grey levels of each set beside the real test images'.

    Returns:
        Numbers, and curves for the figure.
    """
    frequency_F, real_F = evaluation.radial_power_spectrum(test.grey_NHW)
    real_share_G = evaluation.grey_shares(test.grey_NHW)
    curves = {"real_test": (10 * np.log10(real_F + 1e-12), real_share_G)}
    numbers = {}
    for name, found in sets.items():
        _, power_F = evaluation.radial_power_spectrum(found.grey_NHW)
        share_G = evaluation.grey_shares(found.grey_NHW)
        curves[name] = (10 * np.log10(power_F + 1e-12), share_G)
        difference_F = curves[name][0] - curves["real_test"][0]
        fine_F = frequency_F > 0.25
        numbers[name] = {
            "images": len(found),
            "spectrum_difference_rms_db": float(np.sqrt(np.mean(difference_F**2))),
            "fine_detail_power_difference_db": float(difference_F[fine_F].mean()),
            # Earth mover's distance: area between the cumulative shares.
            "grey_level_distance": float(np.abs(np.cumsum(share_G - real_share_G)).sum()),
        }
    return numbers, {"frequency": frequency_F, "curves": curves}


@torch.no_grad()
def likelihood(s: Settings, model: VAR, vae: VQVAE, maps: dict[str, tokens.TokenMaps]) -> dict[str, Any]:
    """Bits a token on each scale for un-augmented images of each split, with what frequencies alone score."""
    spans, device = scale_spans(model.patch_nums), next(model.parameters()).device
    length_S = np.array([end - start for start, end in spans])
    numbers: dict[str, Any] = {}
    for split, found in maps.items():
        rows = np.flatnonzero(found.view_N == 0)
        rows = np.sort(np.random.default_rng(s.seed).permutation(rows)[: s.likelihood_images])
        nats = []
        for start in range(0, len(rows), s.batch_size):
            chosen = rows[start : start + s.batch_size]
            idx_BL = tokens.as_tensor(found.idx_NL, chosen).to(device)
            input_BLC = vae.quantize.idxBl_to_var_input(split_scales(idx_BL, model.patch_nums))
            logits_BLV = model(torch.from_numpy(found.label_N[chosen]).to(device), input_BLC)
            nats.append(evaluation.token_nats(logits_BLV, idx_BL, spans))
        bits_NS = np.concatenate(nats) / math.log(2)
        numbers[split] = {"images": len(rows)} | _bits(bits_NS.mean(0), length_S)
        image_N = bits_NS @ length_S / length_S.sum()
        numbers[split]["standard_error"] = (
            float(image_N.std(ddof=1) / math.sqrt(len(rows))) if len(rows) > 1 else None
        )
    for name, nats_S in tokens.frequency_cross_entropies(maps["train"], maps["test"]).items():
        numbers[f"test, {name} frequencies alone"] = {"images": numbers["test"]["images"]} | _bits(
            nats_S / math.log(2), length_S
        )
    return numbers


def _bits(bits_S: np.ndarray, length_S: np.ndarray) -> dict[str, Any]:
    mean = float(bits_S @ length_S / length_S.sum())
    return {"bits_per_token_of_each_scale": bits_S.tolist(), "bits_per_token": mean}


def main(s: Settings) -> None:
    """Generate or read, compare, write."""
    check(s)
    world = distributed.start(s.device)
    vqvae = checkpoints.load_vqvae(s.vqvae, world.device)
    loaded = checkpoints.load_var(s.var, vqvae, world.device)
    vae, model = vqvae.model, loaded.model
    classes = images.find_classes(s.data_root)
    if loaded.classes not in (None, classes) or model.num_classes != len(classes):
        raise InputError(
            f"{s.var} knows the classes {', '.join(loaded.classes or (str(model.num_classes),))}, "
            f"{s.data_root} has {', '.join(classes)}: give the images that it was trained on"
        )
    size = model.patch_nums[-1] * vae.downsample
    maps = read_token_splits(s, vqvae, classes)
    generated = read_generated(s, s.generated, classes, size) if s.generated else None
    train, val, test = (read_split(s, split, classes, size) for split in images.SPLITS)
    inputs = {"var": s.var, "vqvae": s.vqvae} | {f"{k}_tokens": v.file for k, v in maps.items()}
    if s.extractor:
        inputs["extractor"] = s.extractor
    record = provenance.made_by("evaluate_var.py", s, inputs)
    left_out: list[dict[str, str]] = []

    extractor, classifier, config = get_networks(s, train, val, classes, record, world.device)
    pixels, stamp = config["pixels"], f"extractor {config['sha256'][:12]}"
    print(f"{stamp}: {config['dims']} features, trained on {len(train)} real training images")
    generated = generated or draw_samples(s, model, vae, classes)
    per_class = np.maximum(2, np.bincount(generated.label_N, minlength=len(classes)))
    labels = np.repeat(np.arange(len(classes)), per_class)
    prior_NL = tokens.draw_from_position_prior(
        maps["train"], labels.tolist(), model.L, image_seeds(s.seed, len(labels), "prior")
    )
    sets = {
        "generated": generated,
        "real_train": train,
        "reconstructed_test": ImageSet(rebuild(vae, test.grey_NHW, s.batch_size), test.label_N),
        "position_prior": ImageSet(decode(vae, prior_NL, s.batch_size, "prior"), labels),
    }
    for found in (*sets.values(), test):
        found.features_ND = features(extractor, found.grey_NHW, pixels)
    compared = equal_counts(sets, len(classes), s.seed)

    distances = all_distances(s, compared, test, classes, left_out)
    fidelity = {
        name: confusion(classifier, found, len(classes), pixels)
        for name, found in (("real_test", test), ("generated", generated))
    }
    copies, drawn = find_copies(s, extractor, vae, train, test, generated, pixels, left_out)
    shown = {
        "real_test": test,
        "real_train": train,
        "generated": generated,
        "position_prior": sets["position_prior"],
    }
    within = variety(s, shown, classes, left_out)
    optics, curves = physics(sets, test)
    bits = likelihood(s, model, vae, maps)
    counted = {"real_train": train, "real_val": val, "real_test": test, **sets}
    result = {
        "made_by": record,
        "classes": list(classes),
        "patch_nums": list(model.patch_nums),
        "extractor": config | {"name": "US", "stamp": stamp},
        "counts": {
            name: {c: len(found.of_class(i)) for i, c in enumerate(classes)}
            for name, found in counted.items()
        },
        "distances": distances,
        "class_fidelity": fidelity,
        "copies": copies,
        "variety": within,
        "physics": optics,
        "bits_per_token": bits,
        "left_out": left_out,
        "cautions": list(report.CAUTIONS),
    }

    report.draw_figures(s.out_dir / "figures", result, sets | {"real_test": test}, drawn, curves)
    write_json(s.out_dir / "metrics.json", result)
    write_text(s.out_dir / "report.html", report.evaluation_page(result, s.out_dir / "figures"))

    for name, title in report.SETS.items():
        entry = distances[name]["pooled"]
        print(
            f"US-KD {report.number(entry.get('US-KD')):>8s} +- {report.number(entry.get('US-KD_spread'))}  "
            f"{title}, {entry['images']} against {entry['real_test_images']} test images [{stamp}]"
        )
    print(
        f"class right: generated {fidelity['generated']['balanced_accuracy']:.0%}, real test "
        f"{fidelity['real_test']['balanced_accuracy']:.0%}; bits a token on test "
        f"{bits['test']['bits_per_token']:.2f}; {len(left_out)} things left out; "
        f"see {s.out_dir / 'report.html'}"
    )


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
