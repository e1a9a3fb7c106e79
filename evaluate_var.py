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

import itertools
import math
from collections.abc import Callable
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
from usvar.augment import augment, draw_parameters
from usvar.chosen import DRAWING, read_sweep, with_chosen
from usvar.errors import InputError
from usvar.evaluation import ImageSet
from usvar.extractor import SmallNet, features, probabilities
from usvar.files import lock_folder, write_json, write_text
from usvar.judging import Drawing, Judges, JudgeTraining, Models
from usvar.prefixed import refuse_prefixed, require_drawn_by

# Pairs a class for the variety, and training images planted as copies.
PAIRS_PER_CLASS, PLANTED = 100, 50
# What is left out for images of a generator that is not ours.
WANT_MODELS = (
    "test images rebuilt by the VQ-VAE",
    "tokens by frequency alone",
    "copies in tokens and among rebuilt images",
    "likelihood",
)
# Principal components that the Fréchet distance is taken over: all, or as many of these as there are
# GROUPS_PER_COMPONENT groups of test images for.
FEW_COMPONENTS, GROUPS_PER_COMPONENT = (16, 8), 4


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


def check(s: Settings) -> None:
    """Refuse settings that make no sense before anything is read."""
    checks.require(s, "1 or more", "neighbours", "extractor_steps", "classifier_steps", "batch_size")
    checks.require(s, "1 or more", "images_per_class", "likelihood_images", "extractor_file_pixels")
    checks.require(s, "3 or more", "classifier_seeds")
    checks.require(s, "32 to 1024", "extractor_pixels")
    checks.require(s, "0 or more", "seed")
    checks.require_file("--judges", s.judges)
    checks.require_file("--extractor-file", s.extractor_file)
    missing = [
        f"--{name.replace('_', '-')}" for name in ("var", "vqvae", "tokens_dir") if not getattr(s, name)
    ]
    if missing and (len(missing) < 3 or not s.generated):
        raise InputError(
            f"{' and '.join(missing)} not given, wanted --var, --vqvae and --tokens-dir together: give all "
            "three, or none of them and --generated with the images of another generator"
        )
    if missing and s.settings_from:
        raise InputError(
            "--settings-from was given without --var: leave it out, these images are drawn already"
        )
    tokens.check_drawing(s.cfg, s.top_k, s.top_p, s.temperature)


def read_generated(s: Settings, folder: Path, classes: tuple[str, ...], size: int) -> ImageSet:
    """Images of a folder <Class>/*.png, refused when prefixed, of another size or of no known class."""
    if not folder.is_dir():
        raise InputError(f"--generated {folder} is no folder, wanted one with <Class>/*.png")
    folder = folder.resolve()  # "." has no name
    files = images.find_images(folder.parent, folder.name, classes)
    images.require_size(files, size, str(s.data_root), "judge images of the same size")
    grey_NHW = images.read_images(files, range(len(files)), size)
    refuse_prefixed(folder)
    return ImageSet(grey_NHW, files.label_N)


def draw_prior(s: Settings, models: Models, generated: ImageSet) -> ImageSet:
    """The trivial generator: each token by its frequency at its place, as many images as were generated."""
    per_class = np.maximum(2, np.bincount(generated.label_N, minlength=len(models.classes)))
    labels = np.repeat(np.arange(len(models.classes)), per_class)
    seeds = image_seeds(s.seed, len(labels), "prior")
    idx_NL = tokens.draw_from_position_prior(models.maps["train"], labels.tolist(), models.var.L, seeds)
    return ImageSet(judging.decode(models.vae, idx_NL, s.batch_size), labels, idx_NL=idx_NL)


# --- like real images? ---


def equal_counts(sets: dict[str, ImageSet], num_classes: int, seed: int) -> dict[str, ImageSet]:
    """As many images a class in each set, so that measures which depend on the number compare.

    The reconstructions stay as they are: there is one for each test image, and `compare` cuts them. A class
    that the generated images lack stays in the others: leaving it out would hide that it is missing.
    """
    most = most_of_a_class(sets["generated"])
    train_C = np.bincount(sets["real_train"].label_N, minlength=num_classes)
    return {
        name: found
        if name == "reconstructed_test"
        else found.take(rows_of_each_class(found.label_N, np.minimum(most, train_C), seed))
        for name, found in sets.items()
    }


def most_of_a_class(found: ImageSet) -> int:
    """Images of the class that has the most."""
    return int(np.bincount(found.label_N).max())


def rows_of_each_class(label_N: np.ndarray, most_C: np.ndarray, seed: int) -> np.ndarray:
    """At most so many rows of each class at random, class by class."""
    rng = np.random.default_rng(seed)
    chosen = [
        np.sort(rng.permutation(np.flatnonzero(label_N == label))[:most]) for label, most in enumerate(most_C)
    ]
    return np.concatenate(chosen)


def counted(found: ImageSet) -> str:
    """How many images of how many groups, in words."""
    return f"{len(found)} images" + f" of {found.num_groups} groups" * (found.num_groups < len(found))


def note(left_out: list[dict[str, str]], what: str, why: str) -> None:
    """Keep what could not be computed at this number of images, for the file and the page."""
    left_out.append({"what": what, "why": why})


def compare(
    s: Settings,
    fake: ImageSet,
    real: ImageSet,
    extractor: str,
    components: int,
    name: str,
    where: str,
    most: int,
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """All distances of one set from real test images by one extractor.

    In the kernel distance classes weigh alike, whatever their counts. The other measures depend on the
    counts: of the reconstructions, too, at most `most` images a class are looked at.
    """
    paired = name == "reconstructed_test"
    fake_ND, real_MD = fake.features[extractor], real.features[extractor]
    value, spread = evaluation.kernel_distance(
        fake_ND,
        real_MD,
        fake.label_N,
        real.label_N,
        fake_group_N=fake.group_N,
        real_group_M=real.group_N,
        paired=paired,
        seed=s.seed,
    )
    row: dict[str, Any] = {"KD": value, "KD_spread": spread}
    if spread is None:
        note(left_out, f"spread of KD, {where}, {report.SETS[name]}", "a class has under 4 images to halve")
    pair_N = None
    if paired:
        pair_N = rows_of_each_class(real.label_N, np.full(real.label_N.max() + 1, most), s.seed)
        fake, fake_ND = fake.take(pair_N), fake_ND[pair_N]
    few_ND, few_MD = fake_ND[:, :components], (real_MD[pair_N] if paired else real_MD)[:, :components]
    wanted = 2 * components * (2 if paired else 1)
    if min(fake.num_groups, real.num_groups) >= wanted:
        row |= evaluation.frechet_extrapolated(
            few_ND,
            few_MD,
            fake_group_N=fake.group_N,
            real_group_M=real.group_N,
            paired=paired,
            seed=s.seed,
        )
        row["FD_components"] = components
    else:
        note(
            left_out,
            f"Fréchet distance, {where}, {report.SETS[name]}",
            f"{counted(fake)} against {counted(real)} of test, wanted {wanted} groups each for {components} "
            "components",
        )
    if len(fake_ND) > s.neighbours:
        row |= evaluation.manifold_measures(fake_ND, real_MD, s.neighbours, pair_N=pair_N)
    else:
        note(
            left_out,
            f"precision, recall, density and coverage, {where}, {report.SETS[name]}",
            f"{len(fake_ND)} images, wanted over {s.neighbours}",
        )
    return {f"{extractor}-{key}": value for key, value in row.items()}


def all_distances(
    s: Settings,
    sets: dict[str, ImageSet],
    test: ImageSet,
    classes: tuple[str, ...],
    stamps: dict[str, str],
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    """Every set against the test images, pooled and for each class, by every extractor.

    A class with fewer test images than a ball has neighbours is left out of the pooled numbers too: its balls
    would reach into other classes, and nearly anything would count as precise.
    """
    least, most = evaluation.least_images(s.neighbours), most_of_a_class(sets["generated"])
    judged = [i for i in range(len(classes)) if len(test.of_class(i)) >= least]
    for i in sorted(set(range(len(classes))) - set(judged)):
        note(left_out, f"{classes[i]} in the pooled distances", f"under {least} test images")
    for i in judged:
        if test.of_class(i).num_groups < evaluation.LEAST_GROUPS:
            why = f"under {evaluation.LEAST_GROUPS} of test: KD takes its images for independent"
            note(left_out, f"groups of {classes[i]}", why)
    pooled_groups = test.take(np.flatnonzero(np.isin(test.label_N, judged))).num_groups
    rows_of = {"pooled": judged} | {name: [i] for i, name in enumerate(classes)}
    distances: dict[str, Any] = {}
    for name, found in sets.items():
        distances[name] = {}
        for where, labels in rows_of.items():
            fake, real = (x.take(np.flatnonzero(np.isin(x.label_N, labels))) for x in (found, test))
            row: dict[str, Any] = {
                "images": len(fake),
                "real_test_images": len(real),
                "real_test_groups": real.num_groups,
                "extractors": stamps,
            }
            distances[name][where] = row
            most_of_class = min(np.bincount(x.label_N, minlength=1).max() for x in (fake, real))
            if min(len(fake), len(real)) < least or most_of_class < 2:
                note(
                    left_out,
                    f"distances, {where}, {report.SETS[name]}",
                    f"{len(fake)} images against {len(real)} test images, wanted {least} each",
                )
                continue
            for extractor, values_ND in test.features.items():
                dims = values_ND.shape[1]
                carried = pooled_groups // GROUPS_PER_COMPONENT
                fitting = [c for c in (dims, *FEW_COMPONENTS) if c <= min(dims, carried)]
                components = max(fitting, default=min(dims, *FEW_COMPONENTS))
                row |= compare(s, fake, real, extractor, components, name, where, most, left_out)
    return distances


def agreement(distances: dict[str, Any], extractors: list[str]) -> dict[str, Any]:
    """Whether all extractors put the sets in the same order of kernel distance, as far as they tell them
    apart; None where fewer than two sets have a distance."""
    opposite, compared = [], 0
    for where in next(iter(distances.values())):
        tables = {
            extractor: {
                name: (groups[where][f"{extractor}-KD"], groups[where][f"{extractor}-KD_spread"])
                for name, groups in distances.items()
                if f"{extractor}-KD" in groups[where]
            }
            for extractor in extractors
        }
        for first, other in itertools.combinations(extractors, 2):
            compared += len(tables[first].keys() & tables[other].keys()) > 1
            for nearer, farther in evaluation.disagreements(tables[first], tables[other]):
                opposite.append(
                    {"where": where, "by": first, "nearer": nearer, "farther": farther, "not_by": other}
                )
    return {"agree": not opposite if compared else None, "opposite": opposite}


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


# --- useful? ---


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
    generated_images = {
        "generated": len(generated),
        "half_generated": sum(map(len, added)),
        "real_and_generated": len(generated),
    }
    trained_on = {
        "real": train,
        "generated": generated,
        "half_generated": half,
        "real_and_generated": join(train, generated),
    }
    if "position_prior" in sets:
        trained_on["position_prior"] = sets["position_prior"]
    table = {}
    for kind, found in trained_on.items():
        nets: list[SmallNet] = judges.classifiers
        if kind != "real":
            nets = [
                judging.train_use_classifier(found, num_classes, judges.training, number, device)
                for number in range(len(judges.classifiers))
            ]
        predicted_SN = np.stack(
            [probabilities(net, test.grey_NHW, judges.pixels, device).argmax(1) for net in nets]
        )
        scores = [float(balanced_accuracy_score(test.label_N, predicted_N)) for predicted_N in predicted_SN]
        table[kind] = {
            "images": len(found),
            "generated_images": generated_images.get(kind, 0),
            "test_images": len(test),
            "balanced_accuracy_of_each_seed": scores,
            "balanced_accuracy": float(np.mean(scores)),
            "interval_95_over_seeds": evaluation.student_interval(scores),
            "interval_95_over_test_images": evaluation.bootstrap_balanced_accuracy(
                predicted_SN == test.label_N, test.label_N, test.group_N, seed=s.seed
            ),
        }
    return table


def join(first: ImageSet, second: ImageSet) -> ImageSet:
    """Images of two sets."""
    return ImageSet(
        np.concatenate([first.grey_NHW, second.grey_NHW]), np.concatenate([first.label_N, second.label_N])
    )


# --- copied? ---

# A set to distances (N,) to the nearest training image, and its row (N,).
Search = Callable[[ImageSet], tuple[np.ndarray, np.ndarray]]


def find_copies(
    s: Settings,
    judges: Judges,
    models: Models | None,
    train: ImageSet,
    train_paths: tuple[str, ...],
    test: ImageSet,
    rebuilt_test: ImageSet | None,
    generated: ImageSet,
    left_out: list[dict[str, str]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nearest training image of each generated one in pixels, features and tokens.

    A picture decoded from tokens is softer than any real one. The threshold is therefore of test images that
    went through the VQ-VAE, and so are the training images of the searches named "rebuilt": like is compared
    with like. Sampled tokens are compared with the tokens of test images, tokens of pictures read from a
    folder with those of rebuilt ones. Without models nothing is rebuilt, and there are no tokens.

    Returns:
        Numbers for the file, and distances and rows for the figures.
    """

    def rebuilt(found: ImageSet) -> ImageSet:
        return ImageSet(judging.rebuild(models.vae, found.grey_NHW, s.batch_size), found.label_N)

    source_N = np.sort(np.random.default_rng(s.seed).permutation(len(train))[:PLANTED])
    planted = train.take(source_N)
    draws = draw_parameters(len(planted), torch.Generator().manual_seed(s.seed))
    altered = images.to_uint8(augment(images.to_model_range(planted.grey_NHW)[:, :1], draws))
    plants = {
        "as they are": planted,
        "augmented": ImageSet(altered, planted.label_N),
        "moved": ImageSet(copies.moved(planted.grey_NHW, s.seed), planted.label_N),
    }
    references = {"": train}
    if models:
        plants |= {
            "rebuilt": rebuilt(planted),
            **{f"{kind}, then rebuilt": rebuilt(plants[kind]) for kind in ("augmented", "moved")},
        }
        references[", rebuilt"] = rebuilt(train)
    for found in plants.values():
        judges.describe(found)

    searches: dict[str, Search] = {}
    for suffix, reference in references.items():
        judges.describe(reference)
        searches[f"pixels{suffix}"] = in_pixels(reference.grey_NHW)
        mirrored_NHW = copies.mirrored(reference.grey_NHW)
        for name, extractor in judges.extractors.items():
            mirrored_MD = features(extractor, mirrored_NHW)
            searches[f"{name}{suffix}"] = in_features(name, reference.features[name], mirrored_MD)
    if models:
        searches["tokens"] = in_tokens(s, models, train_paths)
    is_sampled = generated.idx_NL is not None

    numbers, drawn, few = {}, {}, set()
    for space, search in searches.items():
        unseen = test if not rebuilt_test or (space == "tokens" and is_sampled) else rebuilt_test
        found, test_N = search(generated), search(unseen)[0]
        of_plants = {kind: search(plant) for kind, plant in plants.items()}
        numbers[space] = copies.copy_numbers(
            found,
            test_N,
            (generated.label_N, unseen.label_N),
            len(train),
            of_plants,
            source_N,
            s.seed,
            test_group_N=unseen.group_N,
        )
        few |= set(numbers[space]["labels_not_counted"])
        name, comma, domain = space.partition(", ")
        numbers[space]["by"] = (judges.stamp(name) if name in judges.extractors else name) + comma + domain
        drawn[space] = {"generated": found[0], "row": found[1], "test": test_N}
        drawn[space]["threshold"] = numbers[space].get("threshold_5_percent_of_test")
        if drawn[space]["threshold"] is None:
            note(
                left_out,
                f"share of near copies in {space}",
                f"{counted(test)} of test, wanted {copies.LEAST_FOR_QUANTILE} groups for a 5% quantile",
            )
    for label in sorted(few):
        name = judges.config["classes"][label]
        note(left_out, f"{name} in the shares of near copies", "each group of test would weigh over 5%")
    return numbers, drawn


def in_pixels(reference_MHW: np.ndarray) -> Search:
    """Search by grey levels, masked and registered."""
    search = copies.PixelSearch(reference_MHW)
    return lambda found: search(found.grey_NHW)


def in_features(name: str, train_MD: np.ndarray, mirrored_MD: np.ndarray) -> Search:
    """Search by one extractor, mirror images included."""
    return lambda found: copies.nearest_in_features(found.features[name], train_MD, mirrored_MD)


def in_tokens(s: Settings, models: Models, train_paths: tuple[str, ...]) -> Search:
    """Search in the token maps of all views that the transformer was trained on."""
    maps, spans = models.maps["train"], scale_spans(models.var.patch_nums)
    row_of = {path: row for row, path in enumerate(train_paths)}
    if unknown := set(maps.path_N.tolist()) - set(row_of):
        raise InputError(
            f"{maps.file} holds {min(unknown)}, {s.data_root} does not: tokenise these images again"
        )
    row_M = np.array([row_of[path] for path in maps.path_N.tolist()])

    def search(found: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        if found.idx_NL is None:
            found.idx_NL = judging.encode(models.vae, found.grey_NHW, s.batch_size)
        distance_N, view_N = copies.nearest_in_tokens(found.idx_NL, maps.idx_NL, spans)
        return distance_N, row_M[view_N]

    return search


# --- varied, and like ultrasound? ---


def variety(
    s: Settings, sets: dict[str, ImageSet], classes: tuple[str, ...], left_out: list[dict[str, str]]
) -> dict[str, Any]:
    """How alike two images of a class are, in each set: SSIM and distance in features over random pairs.

    As in the kernel distance two images of one group are no pair: frames of one patient are no variety.
    """
    rng, table = np.random.default_rng(s.seed), {}
    for name, found in sets.items():
        table[name] = {}
        for label, class_name in enumerate(classes):
            members = found.of_class(label)
            pair_P2 = physics.draw_pairs(members.group_N, PAIRS_PER_CLASS, rng)
            if not len(pair_P2):
                note(left_out, f"variety, {class_name}, {name}", f"{counted(members)}, wanted 2 groups")
                continue
            measured = {"ssim": physics.pairwise_ssim(members.grey_NHW, pair_P2)}
            for extractor, values_ND in members.features.items():
                first_PD, second_PD = values_ND[pair_P2[:, 0]], values_ND[pair_P2[:, 1]]
                measured[f"{extractor}-distance"] = np.linalg.norm(first_PD - second_PD, axis=1)
            row: dict[str, Any] = {"images": len(members), "pairs": len(pair_P2)}
            for key, values_P in measured.items():
                row |= {f"{key}_mean": float(values_P.mean()), f"{key}_deviation": float(values_P.std())}
            table[name][class_name] = row
    return table


def optics(
    sets: dict[str, ImageSet], train: ImageSet, test: ImageSet
) -> tuple[dict[str, Any], dict[str, dict[str, np.ndarray]]]:
    """Detail, grey levels, speckle, frame and depth of each set beside the real test images'.

    As in the kernel distance classes weigh alike, whatever their counts: each set is compared with the test
    images over the classes that both have, and left out where there is none.

    Returns:
        Numbers, and curves for the figure: "spectrum" (dB), "grey" (shares), "along" and "across"
        (autocorrelation), "depth" (grey levels), and "frequency".
    """
    limits = physics.FrameLimits.fit(physics.frame_shapes(physics.scan_areas(train.grey_NHW)), train.label_N)
    curves_of: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}
    numbers: dict[str, Any] = {}
    for name, found in {"real_test": test, **sets}.items():
        labels = np.intersect1d(found.label_N, test.label_N)
        if not len(labels):
            continue
        curves_of[name], well_N = {}, np.zeros(len(found), bool)
        for label in labels:
            members = found.of_class(label)
            area_Nhw = physics.scan_areas(members.grey_NHW)
            curves_of[name][label] = physics.curves(members.grey_NHW, area_Nhw)
            shape_N3 = physics.frame_shapes(area_Nhw)
            well_N[found.label_N == label] = limits.well_formed(shape_N3, members.label_N)
        curves[name], real = {}, {}
        for key in curves_of[name][labels[0]]:
            both = (np.stack([curves_of[which][k][key] for k in labels]) for which in (name, "real_test"))
            curves[name][key], real[key] = physics.mean_of_both(*both)
        for of in (curves[name], real):
            of["spectrum"] = 10 * np.log10(of.pop("power") + 1e-12)
        difference = {key: curves[name][key] - real[key] for key in real}
        kept_N = np.isin(found.label_N, labels)
        numbers[name] = {
            "images": int(kept_N.sum()),
            "classes": len(labels),
            **physics.detail_difference(real["frequency"], difference["spectrum"], difference["grey"]),
            "speckle_difference_rms": physics.root_mean_square(
                np.concatenate([difference["along"], difference["across"]])
            ),
            "depth_difference_rms_levels": physics.root_mean_square(difference["depth"]),
            "well_formed_frames": int(well_N.sum()),
            "well_formed_share": float(np.mean([well_N[found.label_N == k].mean() for k in labels])),
            "well_formed_interval_95": evaluation.bootstrap_balanced_accuracy(
                well_N[None, kept_N], found.label_N[kept_N], found.group_N[kept_N]
            ),
        }
    return numbers, curves


# --- likely? ---


@torch.no_grad()
def likelihood(s: Settings, models: Models, group_of: dict[str, str] | None) -> dict[str, Any]:
    """Bits a token on each scale for un-augmented images of each split, with what frequencies alone score."""
    model, vae, maps = models.var, models.vae, models.maps
    spans, device = scale_spans(model.patch_nums), next(model.parameters()).device
    length_S = np.array([end - start for start, end in spans])
    numbers: dict[str, Any] = {}
    scored: dict[str, tokens.TokenMaps] = {}
    for split, found in maps.items():
        rows = np.flatnonzero(found.view_N == 0)
        rows = np.sort(np.random.default_rng(s.seed).permutation(rows)[: s.likelihood_images])
        arrays = {name: getattr(found, name)[rows] for name in ("idx_NL", "label_N", "path_N", "view_N")}
        scored[split] = found = replace(found, **arrays)
        nats = []
        for chosen in training.batches(np.arange(len(rows)), s.batch_size):
            idx_BL = tokens.as_tensor(found.idx_NL, chosen).to(device)
            input_BLC = vae.quantize.idxBl_to_var_input(split_scales(idx_BL, model.patch_nums))
            logits_BLV = model(torch.from_numpy(found.label_N[chosen]).to(device), input_BLC)
            nats.append(evaluation.token_nats(logits_BLV, idx_BL, spans))
        bits_NS = np.concatenate(nats) / math.log(2)
        numbers[split] = {"images": len(rows)} | _bits(bits_NS.mean(0), length_S)
        group_N = judging.numbers_of_groups(found.path_N.tolist(), group_of)
        numbers[split]["standard_error"] = evaluation.standard_error(
            bits_NS @ length_S / length_S.sum(), np.arange(len(rows)) if group_N is None else group_N
        )
    for name, (nats_S, _) in tokens.frequency_scores(maps["train"], scored["test"]).items():
        numbers[f"test, {tokens.FREQUENCIES[name]} alone"] = {"images": len(scored["test"])} | _bits(
            nats_S / math.log(2), length_S
        )
    return numbers


def _bits(bits_S: np.ndarray, length_S: np.ndarray) -> dict[str, Any]:
    mean = float(bits_S @ length_S / length_S.sum())
    return {"bits_per_token_of_each_scale": bits_S.tolist(), "bits_per_token": mean}


def main(s: Settings) -> None:
    """Generate or read, compare, write."""
    check(s)
    s = judging.with_their_training(s, s.judges)
    outside = judging.read_outside(s.extractor_file, s.extractor_file_pixels) if s.extractor_file else None
    device = distributed.start(s.device).device
    models = None
    if s.var:
        models = judging.load_models(s.data_root, s.var, s.vqvae, s.tokens_dir, images.SPLITS, device)
        classes, size = models.classes, models.size
        s = with_chosen(s, s.settings_from, models.var_sha256)
    else:
        classes = images.find_classes(s.data_root)
        size = images.image_size(images.find_images(s.data_root, "train", classes))
    sweep = read_sweep(s.settings_from)
    generated = read_generated(s, s.generated, classes, size) if s.generated else None
    drawn_by_var = models is not None
    if generated and models:
        chosen = {name: getattr(s, name) for name in DRAWING} if sweep else None
        drawn_by_var = require_drawn_by(s.generated, models.var_sha256, chosen)
    lock = lock_folder(s.out_dir)
    cache, group_of = s.out_dir / "cache", judging.read_groups(s.data_root)
    (train, train_files), (val, _), (test, _) = (
        judging.read_split(s.data_root, split, classes, size, cache, group_of) for split in images.SPLITS
    )
    least, count_C = evaluation.least_images(s.neighbours), np.bincount(test.label_N, minlength=len(classes))
    if few := [f"{name} {count}" for name, count in zip(classes, count_C, strict=True) if count < least]:
        print(f"test images of some classes are too few for distances, wanted {least}: {', '.join(few)}")
    inputs = {"var": s.var, "vqvae": s.vqvae}
    for split, maps in models.maps.items() if models else ():
        judging.numbers_of_groups(maps.path_N.tolist(), group_of)  # refused now, not after the training
        inputs[f"{split}_tokens"] = maps.file
    inputs |= {"judges": s.judges, "chosen_settings": s.settings_from, "extractor_file": s.extractor_file}
    inputs = {role: path for role, path in inputs.items() if path}
    record = provenance.made_by("evaluate_var.py", s, inputs)

    judges = judging.read_or_train(
        s.judges, s.out_dir / "judges.pth", train, train_files, JudgeTraining.of(s), device, record
    )
    if outside:
        pixels = s.extractor_file_pixels
        judging.add_outside(judges, s.extractor_file.stem, outside, pixels, train, device)
    stamps = {name: judges.stamp(name) for name in judges.extractors}
    drawing = Drawing(s.cfg, s.top_k, s.top_p, s.temperature)
    generated = generated or judging.draw_samples(models, drawing, s.images_per_class, s.seed, s.batch_size)
    sets, left_out = {"generated": generated, "real_train": train}, []
    if models:
        rebuilt_NHW = judging.rebuild(models.vae, test.grey_NHW, s.batch_size)
        sets["reconstructed_test"] = ImageSet(rebuilt_NHW, test.label_N, group_N=test.group_N)
        sets["position_prior"] = draw_prior(s, models, generated)
    else:
        for what in WANT_MODELS:
            note(left_out, what, "--var, --vqvae and --tokens-dir were not given")
    for found in (*sets.values(), test):
        judges.describe(found)

    compared = equal_counts(sets, len(classes), s.seed)
    distances = all_distances(s, compared, test, classes, stamps, left_out)
    agreed = agreement(distances, list(judges.extractors))
    ordered = best_and_worst(s, generated, test, left_out)
    use = usefulness(s, judges, train, test, sets)
    fidelity = {
        name: judging.class_fidelity(judges, found, device)
        for name, found in {"real_test": test, **sets}.items()
        if name in ("real_test", "generated", "position_prior")
    }
    rebuilt_test = sets.get("reconstructed_test")
    copied, drawn = find_copies(
        s, judges, models, train, train_files.paths, test, rebuilt_test, generated, left_out
    )
    within = variety(s, {"real_test": test, **sets}, classes, left_out)
    looks, curves = optics(sets, train, test)
    for name in sets.keys() - looks.keys():
        note(left_out, f"physics, {report.SETS[name]}", "no class in common with the test images")
    bits = likelihood(s, models, group_of) if models else None
    real = {"real_train": train, "real_val": val, "real_test": test}
    # Patients and videos; None: not known, each image counts as one by itself.
    groups = None if group_of is None else {name: found.num_groups for name, found in real.items()}
    result = {
        "made_by": record,
        "classes": list(classes),
        "patch_nums": list(models.var.patch_nums) if models else None,
        "judges": judges.config | {"stamps": stamps},
        "drawn_by_var": drawn_by_var,
        "drawing": None if s.generated else {name: getattr(s, name) for name in DRAWING},
        "sweep": sweep,
        "counts": {
            name: {c: int((found.label_N == i).sum()) for i, c in enumerate(classes)}
            for name, found in (real | sets).items()
        },
        "groups": groups,
        "distances": distances,
        "extractors_agree": agreed,
        "best_to_worst": ordered,
        "classification_accuracy_score": use,
        "class_fidelity": fidelity,
        "copies": copied,
        "variety": within,
        "physics": looks,
        "bits_per_token": bits,
        "left_out": left_out,
        "cautions": report.cautions_of(groups),
    }

    # First, so that hours of work do not end with a figure that cannot be drawn.
    write_json(s.out_dir / "metrics.json", result)
    folder = s.out_dir / "figures"
    evaluation_figures.draw_all(folder, result, sets | {"real_test": test}, drawn, curves)
    write_text(s.out_dir / "report.html", report.evaluation_page(result, folder))

    for name in sets:
        entry = distances[name]["pooled"]
        for extractor, stamp in stamps.items():
            print(
                f"{extractor + '-KD':9s} {report.number(entry.get(f'{extractor}-KD')):>8s} +- "
                f"{report.number(entry.get(f'{extractor}-KD_spread'))}  {report.SETS[name]}, "
                f"{entry['images']} against {entry['real_test_images']} test images [{stamp}]"
            )
    print(
        f"{report.agreement_words(agreed)} Classifier trained on generated images: "
        f"{use['generated']['balanced_accuracy']:.0%}, on real ones {use['real']['balanced_accuracy']:.0%}; "
        f"class right: generated {report.classes_right(fidelity['generated'], classes)}, real test "
        f"{report.classes_right(fidelity['real_test'], classes)}; "
        + (f"bits a token of --var on test {bits['test']['bits_per_token']:.2f}; " if bits else "")
        + f"{len(left_out)} things left out; see {s.out_dir / 'report.html'}"
    )
    lock.close()


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
