"""Is what the models generate like real images, varied, of the right class, useful, and not a copy?

    python evaluate_var.py --data-root data/processed --var runs/var/ar-ckpt-best.pth \\
        --vqvae runs/vqvae/best.pth --tokens-dir runs/tokens
    python evaluate_var.py ... --settings-from runs/sweep/chosen.json --judges runs/sweep/judges.pth
    python evaluate_var.py ... --generated runs/samples/scale_0_K0/plain    # judge images in a folder
    python evaluate_var.py --data-root data/processed --generated gan/samples    # of any other generator

Reads the prepared images, the token maps and both models; it is the only script that reads the test split
to judge generation, so choose settings first (sweep_var.py, on val) and run it once. Writes to <out-dir>:
metrics.json (every number with its counts and the hash of the extractor that it stands on), judges.pth (the
networks trained here), figures/*.png and report.html, one page with everything in it.

Beside each distance stand three reference lines computed in the same way: real training images,
reconstructions by the VQ-VAE, and a generator that knows only how often each code occurs at each place. For
images of another generator the last two, the search in tokens and the likelihood are left out.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score

from models.helpers import image_seeds, scale_spans, split_scales
from usvar import (
    checks,
    cli,
    copies,
    distances,
    distributed,
    evaluation,
    evaluation_figures,
    images,
    judging,
    physics,
    provenance,
    report,
    tokens,
    training,
)
from usvar.chosen import Drawing, read_sweep, with_chosen
from usvar.errors import InputError
from usvar.evaluation import ImageSet, note
from usvar.extractor import SmallNet, probabilities
from usvar.files import lock_folder, write_json, write_text
from usvar.judging import Judges, JudgeTraining, ModelsWithTokens
from usvar.prefixed import refuse_prefixed, require_drawn_by

# Tokens whose logits are held at once for the likelihood.
TOKENS_AT_ONCE = 4096
# What is left out for images of a generator that is not ours.
WANT_MODELS = (
    "test images rebuilt by the VQ-VAE",
    "tokens by frequency alone",
    "copies in tokens and among rebuilt images",
    "likelihood",
)


@dataclass(frozen=True)
class Settings:
    """What is judged, and how many images."""

    # Prepared images: <data-root>/{train,val,test}/<Class>/*.png.
    data_root: Path

    # Transformer: ar-ckpt-best.pth of train_var.py. Images of another generator (--generated) are judged
    # without it, --vqvae and --tokens-dir.
    var: Path | None = None

    # The VQ-VAE that made its tokens.
    vqvae: Path | None = None

    # Token maps of the three splits from tokenize_multiscale_maps.py.
    tokens_dir: Path | None = None

    # Numbers, figures and the page are written here.
    out_dir: Path = Path("runs/evaluation")

    # Judge the images of this folder, <Class>/*.png, instead of drawing them here; none may have a prefix.
    generated: Path | None = None

    # chosen.json of sweep_var.py: cfg, top-k, top-p and temperature from there.
    settings_from: Path | None = None

    # Images drawn for each class, without prefix.
    images_per_class: int = 250

    # judges.pth of a sweep or an earlier evaluation on these training images, so that numbers compare; how
    # they were trained counts instead of the settings below; none: train them.
    judges: Path | None = None

    # A TorchScript network as a further extractor, (B, 3, side, side) in [-1, 1] to (B, features). Such a
    # file is a program: give only one that you trust.
    extractor_file: Path | None = None

    # Side of the images that it takes, pixels.
    extractor_file_pixels: int = 224

    # Training steps of each extractor.
    extractor_steps: int = 1500

    # Side in pixels that images are averaged to for extractors and classifiers.
    extractor_pixels: int = 128

    # Training steps of each classifier of the accuracy score.
    classifier_steps: int = 1000

    # Seeds of the accuracy score, 3 or more.
    classifier_seeds: int = 3

    # k of precision, recall, density and coverage.
    neighbours: int = 3

    # Strength of class guidance; it grows with the scale; 0: none.
    cfg: float = 1.5

    # Draw only from this many most likely codes; 0: from all.
    top_k: int = 0

    # Draw only from the most likely codes whose probabilities add up to this, 0 to 1; 0: from all.
    top_p: float = 0.95

    # Divides the logits: below 1 less varied, above 1 more.
    temperature: float = 1.0

    # Most images of a split whose likelihood is computed.
    likelihood_images: int = 2000

    # Images at once.
    batch_size: int = 32

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Seed of samples, networks and subsets.
    seed: int = 0


def check(s: Settings) -> None:
    """Refuse settings that make no sense before anything is read."""
    judging.check_shared(s)
    checks.require(s, "1 or more", "images_per_class", "likelihood_images", "extractor_file_pixels")
    checks.require_file("--extractor-file", s.extractor_file)
    missing = [checks.flag(name) for name in ("var", "vqvae", "tokens_dir") if not getattr(s, name)]
    if missing and (len(missing) < 3 or not s.generated):
        raise InputError(
            f"{' and '.join(missing)} not given, wanted --var, --vqvae and --tokens-dir together: give all "
            "three, or none of them and --generated with the images of another generator"
        )
    if missing and s.settings_from:
        raise InputError(
            "--settings-from was given without --var: leave it out, these images are drawn already"
        )
    Drawing.of(s).check()


def read_generated(s: Settings, classes: tuple[str, ...], size: int) -> tuple[ImageSet, images.ImageFiles]:
    """Images of --generated, <Class>/*.png, refused when prefixed, of another size or of no known class."""
    if not s.generated.is_dir():
        raise InputError(f"--generated {s.generated} is no folder, wanted one with <Class>/*.png")
    folder = s.generated.resolve()  # "." has no name
    files = images.find_images(folder.parent, folder.name, classes)
    images.require_size(files, size, str(s.data_root), "judge images of the same size")
    grey_NHW = images.read_images(files, range(len(files)), size)
    refuse_prefixed(folder)
    return ImageSet(grey_NHW, files.label_N), files


def read_real(
    s: Settings, classes: tuple[str, ...], size: int, group_of: dict[str, str] | None
) -> tuple[dict[str, ImageSet], dict[str, images.ImageFiles]]:
    """The real images, and the files of each split; says which classes have few test images."""
    read = {
        split: judging.read_split(
            s.data_root, split, classes, size, s.out_dir / "cache", group_of, str(s.vqvae or "the evaluation")
        )
        for split in images.SPLITS
    }
    real = {f"real_{split}": image_set for split, (image_set, _) in read.items()}
    least = evaluation.least_images(s.neighbours)
    if few := evaluation.small_classes(real["real_test"].label_N, classes, least):
        counts = ", ".join(f"{name} {count}" for name, count in few.items())
        print(f"test images of some classes are too few for distances, wanted {least}: {counts}")
    return real, {split: files for split, (_, files) in read.items()}


def input_files(s: Settings, models: ModelsWithTokens | None) -> dict[str, Path | None]:
    """Role -> file, of all files besides the images; None: not given."""
    maps = models.maps if models else {}
    files = {"manifest": judging.find_manifest(s.data_root), "var": s.var, "vqvae": s.vqvae}
    files |= {f"{split}_tokens": of_split.file for split, of_split in maps.items()}
    return files | {
        "judges": s.judges,
        "chosen_settings": s.settings_from,
        "extractor_file": s.extractor_file,
    }


def image_sets(
    s: Settings,
    models: ModelsWithTokens | None,
    generated: ImageSet,
    real: dict[str, ImageSet],
    left_out: list[dict[str, str]],
) -> dict[str, ImageSet]:
    """What is compared with the test images: the generated images and their reference lines, see SETS."""
    sets, test = {"generated": generated, "real_train": real["real_train"]}, real["real_test"]
    if models:
        rebuilt_NHW = judging.rebuild(models.vae, test.grey_NHW, s.batch_size)
        sets["reconstructed_test"] = ImageSet(rebuilt_NHW, test.label_N, group_N=test.group_N)
        sets["position_prior"] = draw_prior(s, models, generated)
    else:
        for what in WANT_MODELS:
            note(left_out, what, "--var, --vqvae and --tokens-dir were not given")
    return sets


def draw_prior(s: Settings, models: ModelsWithTokens, generated: ImageSet) -> ImageSet:
    """The trivial generator: each token by its frequency at its place, as many images as were generated."""
    per_class = np.maximum(2, np.bincount(generated.label_N, minlength=len(models.classes)))
    labels = np.repeat(np.arange(len(models.classes)), per_class)
    seeds = image_seeds(s.seed, len(labels), "prior")
    idx_NL = tokens.draw_from_position_prior(models.maps["train"], labels.tolist(), models.var.L, seeds)
    return ImageSet(judging.decode(models.vae, idx_NL, s.batch_size), labels, idx_NL=idx_NL)


def best_and_worst(
    s: Settings, generated: ImageSet, test: ImageSet, left_out: list[dict[str, str]]
) -> dict[str, Any]:
    """Rows of the generated images from the most to the least real-looking, with their realism."""
    if len(test) <= s.neighbours:
        note(left_out, "best and worst images", f"{len(test)} test images, wanted over {s.neighbours}")
        return {}
    if len(generated) < 2:
        note(left_out, "best and worst images", "a single image was generated")
        return {}
    score_N = evaluation.realism(
        generated.features[judging.SUPERVISED], test.features[judging.SUPERVISED], s.neighbours
    )
    order = np.argsort(-score_N, kind="stable")
    return {"row": order.tolist(), "realism": score_N[order].tolist()}


def usefulness(
    s: Settings, judges: Judges, train: ImageSet, test: ImageSet, sets: dict[str, ImageSet]
) -> dict[str, Any]:
    """Classification accuracy score: the same classifier trained on real images, generated ones and mixtures.

    S. Ravuri and O. Vinyals, "Classification Accuracy Score for Conditional Generative Models", NeurIPS 2019.
    All are tested on real test images. The interval over seeds says how much training scatters, that over
    images how much the choice of test images, drawn by their groups, matters.
    """
    generated, num_classes = sets["generated"], len(judges.config["classes"])
    device = judges.classifiers[0].head.weight.device
    # Half the real images of each class, and as many generated ones as were taken out, where there are any.
    rng, kept, added = np.random.default_rng(s.seed), [], []
    for label in range(num_classes):
        real_rows = rng.permutation(np.flatnonzero(train.label_N == label))
        fake_rows = rng.permutation(np.flatnonzero(generated.label_N == label))
        kept.append(real_rows[: (len(real_rows) + 1) // 2])
        added.append(fake_rows[: len(real_rows) // 2])
    half = join(train.take(np.sort(np.concatenate(kept))), generated.take(np.concatenate(added)))
    # Kind -> images, and how many of them were generated.
    trained_on = {
        "real": (train, 0),
        "generated": (generated, len(generated)),
        "half_generated": (half, sum(map(len, added))),
        "real_and_generated": (join(train, generated), len(generated)),
    }
    if "position_prior" in sets:
        trained_on["position_prior"] = sets["position_prior"], 0
    table = {}
    for kind, (image_set, number_generated) in trained_on.items():
        nets: list[SmallNet] = judges.classifiers
        if kind != "real":
            nets = [
                judging.train_use_classifier(image_set, num_classes, judges.training, number, device)
                for number in range(len(judges.classifiers))
            ]
        predicted_SN = np.stack(
            [probabilities(net, test.grey_NHW, judges.pixels, device).argmax(1) for net in nets]
        )
        scores = [float(balanced_accuracy_score(test.label_N, predicted_N)) for predicted_N in predicted_SN]
        table[kind] = {
            "images": len(image_set),
            "generated_images": number_generated,
            "test_images": len(test),
            "balanced_accuracy_of_each_seed": scores,
            "balanced_accuracy": float(np.mean(scores)),
            "interval_95_over_seeds": evaluation.student_interval(scores),
            "interval_95_over_test_images": evaluation.balanced_share_interval(
                predicted_SN == test.label_N, test.label_N, test.group_N
            ),
        }
    return table


def join(first: ImageSet, second: ImageSet) -> ImageSet:
    """Images of two sets."""
    return ImageSet(
        np.concatenate([first.grey_NHW, second.grey_NHW]), np.concatenate([first.label_N, second.label_N])
    )


@torch.no_grad()
def likelihood(s: Settings, models: ModelsWithTokens, group_of: dict[str, str] | None) -> dict[str, Any]:
    """Bits per token on each scale of each split's un-augmented images, and what frequencies alone score."""
    model, vae, maps = models.var, models.vae, models.maps
    spans, device = scale_spans(model.patch_nums), next(model.parameters()).device
    length_S = np.array([end - start for start, end in spans])
    numbers: dict[str, Any] = {}
    scored: dict[str, tokens.TokenMaps] = {}
    for split, all_views in maps.items():
        rows = all_views.original_rows
        rows = np.sort(np.random.default_rng(s.seed).permutation(rows)[: s.likelihood_images])
        arrays = {name: getattr(all_views, name)[rows] for name in ("idx_NL", "label_N", "path_N", "view_N")}
        scored[split] = originals = replace(all_views, **arrays)
        nats = []
        for chosen in training.batches(np.arange(len(rows)), s.batch_size):
            idx_BL = tokens.as_tensor(originals.idx_NL, chosen).to(device)
            input_BLC = vae.quantize.idxBl_to_var_input(split_scales(idx_BL, model.patch_nums))
            label_B = torch.from_numpy(originals.label_N[chosen]).to(device)
            _, nats_BL, _ = model(label_B, input_BLC, target_BL=idx_BL, chunk=TOKENS_AT_ONCE)
            nats.append(torch.stack([nats_BL[:, start:end].mean(1) for start, end in spans], dim=1).cpu())
        bits_NS = torch.cat(nats).numpy() / math.log(2)
        numbers[split] = {"images": len(rows)} | _bits(bits_NS.mean(0), length_S)
        group_N = judging.numbers_of_groups(originals.path_N.tolist(), group_of)
        numbers[split]["standard_error"] = evaluation.standard_error(
            bits_NS @ length_S / length_S.sum(), evaluation.groups_or_rows(group_N, len(rows))
        )
    for name, (nats_S, _) in tokens.frequency_scores(maps["train"], scored["test"]).items():
        bits = _bits(nats_S / math.log(2), length_S)
        numbers[report.BY_FREQUENCY[name]] = {"images": len(scored["test"])} | bits
    return numbers


def _bits(bits_S: np.ndarray, length_S: np.ndarray) -> dict[str, Any]:
    mean = float(bits_S @ length_S / length_S.sum())
    return {"bits_per_token_of_each_scale": bits_S.tolist(), "bits_per_token": mean}


def measure(
    s: Settings,
    models: ModelsWithTokens | None,
    judges: Judges,
    real: dict[str, ImageSet],
    train_files: images.ImageFiles,
    sets: dict[str, ImageSet],
    group_of: dict[str, str] | None,
    left_out: list[dict[str, str]],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Every measure.

    Args:
        s: seeds, counts and batch size.
        models: both models and the token maps; None: no rebuilt images, tokens and likelihood.
        judges: extractors and classifiers.
        real: the real images of each split by name.
        train_files: the files of the training split.
        sets: what `image_sets` gave; these and the test images have their features.
        group_of: group of each image, for the likelihood; None: not known.
        left_out: what could not be computed is added here.

    Returns:
        Sections of metrics.json in its order, and what the figures of copies and of physics draw.
    """
    classes, generated = train_files.classes, sets["generated"]
    train, test = real["real_train"], real["real_test"]
    sections: dict[str, Any] = {}
    compared = distances.equal_counts(sets, len(classes), s.seed)
    sections["distances"] = distances.all_distances(
        compared, test, classes, judges.stamps, s.neighbours, s.seed, left_out
    )
    sections["extractors_agree"] = distances.agreement(sections["distances"], list(judges.extractors))
    sections["best_to_worst"] = best_and_worst(s, generated, test, left_out)
    sections["classification_accuracy_score"] = usefulness(s, judges, train, test, sets)
    device = judges.classifiers[0].head.weight.device
    sections["class_fidelity"] = {
        name: judging.class_fidelity(judges, image_set, device)
        for name, image_set in {"real_test": test, **sets}.items()
        if name in ("real_test", "generated", "position_prior")
    }
    searched = copies.CopyInputs(
        generated, train, train_files, test, sets.get("reconstructed_test"), judges, models
    )
    sections["copies"], copy_distances = copies.find_copies(searched, s.batch_size, s.seed, left_out)
    sections["variety"] = physics.variety({"real_test": test, **sets}, classes, s.seed, left_out)
    sections["physics"], physics_curves = physics.differences_from_test(sets, train, test)
    for name in sets:
        if name not in sections["physics"]:
            note(left_out, f"physics, {evaluation.SETS[name]}", "no class in common with the test images")
    sections["bits_per_token"] = likelihood(s, models, group_of) if models else None
    return sections, copy_distances, physics_curves


def print_summary(result: dict[str, Any], page: Path) -> None:
    """The main numbers of what goes into metrics.json, and where to read on."""
    for name, distances_of_set in result["distances"].items():
        pooled = distances_of_set["pooled"]
        for extractor, stamp in result["judges"]["stamps"].items():
            print(
                f"{extractor + '-KD':9s} {report.number(pooled.get(f'{extractor}-KD')):>8s} +- "
                f"{report.number(pooled.get(f'{extractor}-KD_spread'))}  {evaluation.SETS[name]}, "
                f"{pooled['images']} against {pooled['real_test_images']} test images [{stamp}]"
            )
    scores, bits = result["classification_accuracy_score"], result["bits_per_token"]
    right = {
        name: report.classes_right(entry, result["classes"])
        for name, entry in result["class_fidelity"].items()
    }
    print(
        f"{report.agreement_words(result['extractors_agree'])} Classifier trained on generated images: "
        f"{scores['generated']['balanced_accuracy']:.0%}, on real ones "
        f"{scores['real']['balanced_accuracy']:.0%}; class right: generated {right['generated']}, real test "
        f"{right['real_test']}; "
        + (f"bits per token of --var on test {bits['test']['bits_per_token']:.2f}; " if bits else "")
        + f"{len(result['left_out'])} things left out; see {page}"
    )


def main(s: Settings) -> None:
    """Generate or read, compare, write."""
    check(s)
    s = judging.with_their_training(s, s.judges)
    outside = judging.read_outside(s.extractor_file, s.extractor_file_pixels) if s.extractor_file else None
    device = distributed.choose_device(s.device)
    models = None
    if s.var:
        models = judging.load_models(s.data_root, s.var, s.vqvae, s.tokens_dir, images.SPLITS, device)
        classes, size = models.classes, models.size
        s = with_chosen(s, s.settings_from, models.var_sha256)
    else:
        classes = images.find_classes(s.data_root)
        size = images.image_size(images.find_images(s.data_root, "train", classes))
    sweep = read_sweep(s.settings_from)
    # None: the images are given, not drawn here.
    drawing = None if s.generated else Drawing.of(s)
    if drawing:
        checks.require_class_drop(drawing.cfg, models.config)
    generated, generated_files = (None, None) if drawing else read_generated(s, classes, size)
    drawn_by_var = drawing is not None
    if models and not drawing:
        drawn_by_var = require_drawn_by(s.generated, models.var_sha256, Drawing.of(s) if sweep else None)
    lock = lock_folder(s.out_dir)
    group_of = judging.read_groups(s.data_root)
    real, files_of_splits = read_real(s, classes, size, group_of)
    train_files = files_of_splits["train"]
    train, test = real["real_train"], real["real_test"]
    for maps in models.maps.values() if models else ():
        judging.numbers_of_groups(maps.path_N.tolist(), group_of)  # refused now, not after the training
    record = provenance.made_by("evaluate_var.py", s, input_files(s, models))
    for role, files in {"test_images": files_of_splits["test"], "generated_images": generated_files}.items():
        if files:
            record["inputs"][role] = {"path": files.split, "sha256": images.listing_sha256(files)}

    judges = judging.read_or_train(
        s.judges, s.out_dir / "judges.pth", train, train_files, JudgeTraining.of(s), device, record
    )
    if outside is not None:
        pixels = s.extractor_file_pixels
        judges = judging.with_outside(judges, s.extractor_file.stem, outside, pixels, train, device)
    if drawing:
        generated = judging.draw_samples(models, drawing, s.images_per_class, s.seed, s.batch_size)
    left_out: list[dict[str, str]] = []
    sets = image_sets(s, models, generated, real, left_out)
    for image_set in (*sets.values(), test):
        judges.describe(image_set)

    sections, copy_distances, physics_curves = measure(
        s, models, judges, real, train_files, sets, group_of, left_out
    )
    # Patients and videos; None: not known, each image counts as one by itself.
    groups = None if group_of is None else {name: image_set.num_groups for name, image_set in real.items()}
    is_trained_on_these = models.vqvae_is_trained_on_this_train if models else None
    result = {
        "made_by": record,
        "classes": list(classes),
        "patch_nums": list(models.var.patch_nums) if models else None,
        "judges": judges.config | {"stamps": judges.stamps},
        "drawn_by_var": drawn_by_var,
        "drawing": vars(drawing) if drawing else None,
        "sweep": sweep,
        "counts": {
            name: {c: int((image_set.label_N == i).sum()) for i, c in enumerate(classes)}
            for name, image_set in (real | sets).items()
        },
        "groups": groups,
        **sections,
        "left_out": left_out,
        "vqvae_is_trained_on_this_train": is_trained_on_these,
        "cautions": report.cautions_of(groups, is_trained_on_these),
    }

    # First, so that hours of work do not end with a figure that cannot be drawn.
    write_json(s.out_dir / "metrics.json", result)
    folder, page = s.out_dir / "figures", s.out_dir / "report.html"
    evaluation_figures.draw_all(folder, result, sets | {"real_test": test}, copy_distances, physics_curves)
    write_text(page, report.evaluation_page(result, folder))
    print_summary(result, page)
    lock.close()


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
