"""Generate images with the transformer: a sweep over the scale boundaries K, with and without a real prefix.

    python sample_var.py --var runs/var/ar-ckpt-best.pth --vqvae runs/vqvae/best.pth --tokens-dir runs/tokens
    python sample_var.py ... --modes plain --images-per-class 1000 --out-dir runs/generated   # for evaluation
    python sample_var.py ... --settings-from runs/sweep/chosen.json   # as sweep_var.py found best

The first K tokens of an image are given, the others are predicted scale by scale, and all are decoded:
  plain  K = 0: nothing is given but the class.
  tp     teacher prefix: the first K tokens of a real image, drawn at random for each sample.
  nop    no prefix from an image: each of the K tokens is drawn by its frequency in the class at its place,
         or is the most frequent one there (--nop-prefix mode).

Reads both models and the token maps of train (for nop) and of the split named (for tp). Writes to <out-dir>:
scale_<i>_K<tokens>/<mode>/<Class>/<index>.png (i scales given), <mode>_<Class>.png with K along the columns
and the real image at the right, sweep_<mode>.png with one row per class, variety_<Class>.png, and
samples.json, which says of each file how it was made. Run the same command again and only what is missing is
made.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models import VAR, VQVAE
from models.helpers import image_seeds, scale_boundaries, split_scales
from usvar import checks, cli, distributed, images, plots, provenance, runs, tokens, training
from usvar.checkpoints import Loaded, load_var, load_vqvae
from usvar.chosen import Drawing, with_chosen
from usvar.errors import InputError
from usvar.files import atomic_path, read_record, remove_stale_temporaries, write_json

# Settings that do not change an image that is already there: they may differ when a run goes on.
MAY_CHANGE = (
    "var",
    "vqvae",
    "tokens_dir",
    "out_dir",
    "data_root",
    "settings_from",
    "modes",
    "prefix_tokens",
    "classes",
    "images_per_class",
    "variety",
    "figure_rows",
    "save_tokens",
    "batch_size",
    "decode_chunk",
    "device",
)

NOP_SOURCES = {
    "drawn": "frequencies in the training split",
    "mode": "most frequent tokens in the training split",
}
MODES = {
    "plain": "K = 0: generated from the class alone",
    "tp": "the first K tokens are those of a real image (prefix_source), the others are generated; where "
    "generated_tokens is 0 the picture is just that image's reconstruction by the VQ-VAE",
    "nop": "the first K tokens come from the frequencies of the class at each place in the training split "
    "(drawn, or the most frequent one: nop_prefix), the others are generated; where generated_tokens is 0 "
    "the transformer had no part in it",
}

# Where a prefix comes from, in titles; in mode nop by --nop-prefix.
PREFIX_WORDS = {
    "tp": "the first K tokens of the real image at the right",
    "drawn": "the first K tokens drawn by their frequency in the class",
    "mode": "the first K tokens the most frequent ones of the class",
}


@dataclass(frozen=True)
class Settings:
    """What is generated, and how tokens are drawn."""

    # Transformer: ar-ckpt-best.pth of train_var.py, or one in the published layout.
    var: Path

    # The VQ-VAE that made its tokens.
    vqvae: Path

    # Token maps: <tokens-dir>/{train,val,test}/tokens_multiscale_maps.npz.
    tokens_dir: Path

    # Images, figures and samples.json are written here; a run goes on with what is missing.
    out_dir: Path = Path("runs/samples")

    # Prepared images, to show the real ones as they are; without it: the folder that was tokenised, and where
    # that is gone they are decoded from their tokens.
    data_root: Path | None = None

    # plain (K = 0), tp (real prefix) and nop (prefix from frequencies).
    modes: tuple[Literal["plain", "tp", "nop"], ...] = ("plain", "tp", "nop")

    # Values of K, each on a scale boundary; none given: 0 and all boundaries.
    prefix_tokens: tuple[int, ...] = ()

    # In mode nop: each token drawn by its frequency at its place, or the mode, the most frequent one there.
    nop_prefix: Literal["drawn", "mode"] = "drawn"

    # Names of the classes; none given: all.
    classes: tuple[str, ...] = ()

    # Split whose images give prefixes and stand at the right of the figures.
    split: images.Split = "val"

    # Images of each class, for each mode and K.
    images_per_class: int = 8

    # Plain images in variety_<Class>.png, made in addition if images_per_class is smaller; 0: no such figure.
    variety: int = 16

    # Samples of each class in the figures, at most images_per_class.
    figure_rows: int = 4

    # chosen.json of sweep_var.py: cfg, top-k, top-p and temperature from there, instead of the four below.
    settings_from: Path | None = None

    # Strength of class guidance; it grows with the scale; 0: none.
    cfg: float = 1.5

    # Draw only from this many most likely codes; 0: from all.
    top_k: int = 0

    # Draw only from the most likely codes whose probabilities add up to this, 0 to 1; 0: from all.
    top_p: float = 0.95

    # Divides the logits: below 1 less varied, above 1 more; one number, or one per scale.
    temperature: tuple[float, ...] = (1.0,)

    # Take the most likely token: plain samples of a class are then all the same.
    greedy: bool = False

    # Blend codes by a Gumbel-softmax, as the published sampler can: smoother, but not what the tokens say.
    more_smooth: bool = False

    # Also write the tokens of each image, <index>.npy beside the picture.
    save_tokens: bool = False

    # Images at once. In float32 tokens do not depend on it; in bfloat16 a few may, by rounding, as grey
    # levels in both.
    batch_size: int = 32

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Transformer: float32, bfloat16, or auto (bfloat16 where that is faster).
    precision: training.Precision = "float32"

    # Decoder: float32, bfloat16, auto, or same as the transformer.
    decode_precision: Literal["same", "auto", "float32", "bfloat16"] = "same"

    # Images decoded at once, which bounds the memory; 0: 1 on a CPU, 16 on a GPU.
    decode_chunk: int = 0

    # Decode with channels innermost; auto: on a CPU. Grey levels may change by rounding.
    channels_last: Literal["auto", "on", "off"] = "auto"

    # Compile the transformer's blocks, once for each scale: minutes to start, for long runs on a GPU.
    compile: bool = False

    # Seed of all images; image i of a class is the same however many are made.
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """One picture, as samples.json tells of it."""

    # Relative to the out-dir.
    file: str
    class_name: str
    label: int
    index: int
    mode: str
    # Scales given, and the tokens they have.
    scales: int
    K: int
    generated_tokens: int
    seed: int
    # Whether any token was given: such a picture must never be scored as generated.
    prefixed: bool
    # The real image that gave the prefix (tp) or the frequencies (nop).
    prefix_source: str | None
    # Row of the real image in the token file of the split: prefix in tp, for comparison in nop; plain images
    # alone need none.
    real_row: int | None


@dataclass(frozen=True)
class Figure:
    """A figure that is drawn from pictures on disk."""

    path: Path
    # K along the columns, for samples of one class or for the first of all; or many plain ones of a class.
    kind: Literal["sweep", "overview", "variety"]
    rows: list[list[Sample]]


def check(s: Settings, var: Loaded, maps: dict[str, tokens.TokenMaps]) -> None:
    """Refuse settings and files that do not fit each other, before anything is written.

    Raises:
        InputError: names the first thing that does not fit.
    """
    classes, S = maps["train"].classes, len(maps["train"].patch_nums)
    checks.require(s, "1 or more", "images_per_class", "figure_rows", "batch_size")
    checks.require(s, "0 or more", "variety", "decode_chunk", "seed")
    if s.data_root and not s.data_root.is_dir():
        raise InputError(f"--data-root {s.data_root} is no folder: leave it out, or correct it")
    if len(s.temperature) not in (1, S):
        raise InputError(
            f"--temperature {' '.join(map(str, s.temperature))} was given, wanted one number, or {S}, one "
            "per scale"
        )
    checks.require(s, checks.TEMPERATURE, "temperature")
    Drawing.of(s).check()
    if s.greedy and s.more_smooth:
        raise InputError("--greedy and --more-smooth were given together: the second is random, choose one")
    if unknown := [name for name in s.classes if name not in classes]:
        raise InputError(f"--classes {unknown[0]} was given, known are {', '.join(classes)}")
    tokens.check_prefix_tokens(s.prefix_tokens, scale_boundaries(maps["train"].patch_nums))
    tokens.require_same_classes(maps["train"], maps[s.split])
    if var.classes is not None and var.classes != classes:
        raise InputError(
            f"{s.tokens_dir} has the classes {', '.join(classes)}, {s.var} was trained with "
            f"{', '.join(var.classes)}: give the token maps that it was trained on"
        )
    if var.model.num_classes != len(classes):
        raise InputError(
            f"{s.tokens_dir} has {len(classes)} classes, {s.var} has {var.model.num_classes}: "
            "give the token maps that it was trained on"
        )
    tokens.refuse_other_training(s.var, var, maps["train"])
    checks.require_class_drop(s.cfg, var.config)


def seeds_and_real_rows(
    s: Settings, maps: dict[str, tokens.TokenMaps], labels: list[int], count: int
) -> tuple[dict[int, list[int]], dict[int, list[int | None]]]:
    """Seed and real image of each sample, by label.

    Args:
        s: split, modes and seed.
        maps: of train and of the split.
        labels: of the classes.
        count: samples of each class.

    Returns:
        `count` seeds, and as many rows of the split's token file: all None where only plain samples are made.

    Raises:
        InputError: when a class has no real image to take a prefix or frequencies from.
    """
    seeds, real_rows = {}, {}
    for label in labels:
        name = maps["train"].classes[label]
        seeds[label] = image_seeds(s.seed, count, f"sample {name}")
        real_rows[label] = [None] * count
        if set(s.modes) != {"plain"}:
            # Another image for each sample, as long as there are any; then from the first again.
            (order_seed,) = image_seeds(s.seed, 1, f"real {name}")
            rows = np.random.default_rng(order_seed).permutation(tokens.rows_of_class(maps[s.split], label))
            real_rows[label] = np.resize(rows, count).tolist()
        if "nop" in s.modes:
            tokens.rows_of_class(maps["train"], label)  # refuses a class that has no frequencies
    return seeds, real_rows


def prefix_source(s: Settings, mode: str, real: tokens.TokenMaps, row: int | None) -> str | None:
    """What samples.json says of where a prefix comes from; None for a plain sample."""
    if mode == "tp":
        return str(real.path_N[row])
    return NOP_SOURCES[s.nop_prefix] if mode == "nop" else None


def plan(s: Settings, maps: dict[str, tokens.TokenMaps]) -> list[Sample]:
    """Every picture to be made. A row of a figure keeps its seed and its real image while K rises."""
    real, classes, per_class = maps[s.split], maps["train"].classes, max(s.images_per_class, s.variety)
    chosen = [label for label, name in enumerate(classes) if not s.classes or name in s.classes]
    seeds, real_rows = seeds_and_real_rows(s, maps, chosen, per_class)
    samples = []
    for scales, K in enumerate(boundaries := scale_boundaries(real.patch_nums)):
        if s.prefix_tokens and K not in s.prefix_tokens:
            continue
        for mode in [mode for mode in MODES if mode in s.modes and (mode == "plain") == (K == 0)]:
            for label in chosen:
                for index in range(per_class if mode == "plain" else s.images_per_class):
                    row, name = real_rows[label][index], classes[label]
                    samples.append(
                        Sample(
                            file=f"scale_{scales}_K{K}/{mode}/{name}/{index:05d}.png",
                            class_name=name,
                            label=label,
                            index=index,
                            mode=mode,
                            scales=scales,
                            K=K,
                            generated_tokens=boundaries[-1] - K,
                            seed=seeds[label][index],
                            prefixed=K > 0,
                            prefix_source=prefix_source(s, mode, real, row),
                            real_row=row,
                        )
                    )
    if not samples:
        raise InputError(
            f"--modes {' '.join(s.modes)} with --prefix-tokens {' '.join(map(str, s.prefix_tokens))} makes "
            "nothing: plain is K = 0, tp and nop are K above 0"
        )
    return samples


def is_there(s: Settings, sample: Sample) -> bool:
    """Whether an earlier run made the picture, and its tokens if they are wanted."""
    path = s.out_dir / sample.file
    return path.is_file() and (not s.save_tokens or path.with_suffix(".npy").is_file())


def refuse_unlisted(s: Settings, samples: list[Sample], listed: set[str]) -> None:
    """Refuse a folder with pictures of the names wanted that its samples.json does not list.

    They would count as made with the present settings. A run that was killed leaves none: its samples.json
    is written before its first picture.

    Raises:
        InputError: names the first.
    """
    for sample in samples:
        if sample.file not in listed and (s.out_dir / sample.file).is_file():
            raise InputError(
                f"{s.out_dir} has {sample.file}, but no samples.json that says how it was made: delete such "
                "pictures, or give another --out-dir"
            )


def new_listing(
    s: Settings,
    record: dict[str, Any],
    train: tokens.TokenMaps,
    samples: list[Sample],
    earlier: dict[str, Any] | None,
) -> dict[str, Any]:
    """What samples.json says before the first picture is made.

    Args:
        s: where the pictures are.
        record: what makes them.
        train: token maps, for classes and scales.
        samples: what this run wants.
        earlier: samples.json of earlier runs. Pictures that only they wanted stay, and stay listed.
    """
    listed = {
        entry["file"]: entry
        for entry in (earlier["samples"] if earlier else [])
        if (s.out_dir / entry["file"]).is_file()
    } | {sample.file: asdict(sample) for sample in samples}
    return {
        "made_by": record,
        "complete": False,
        "modes": MODES,
        "boundaries": scale_boundaries(train.patch_nums),
        "classes": list(train.classes),
        "samples": list(listed.values()),
    }


def in_batches(samples: list[Sample], size: int) -> Iterator[list[Sample]]:
    """Samples of one mode and K in pieces of `size`."""
    for _, group in itertools.groupby(samples, key=lambda sample: (sample.K, sample.mode)):
        yield from training.batches(list(group), size)


def most_frequent_tokens(maps: tokens.TokenMaps, label: int, K: int) -> np.ndarray:
    """The most frequent token of a class at each of the first places, the lowest of equals: (K,) int64."""
    seen_NK = np.asarray(maps.idx_NL[tokens.rows_of_class(maps, label), :K], dtype=np.int64)
    return np.array([np.bincount(seen_N).argmax() for seen_N in seen_NK.T])


def known_tokens(s: Settings, batch: list[Sample], maps: dict[str, tokens.TokenMaps]) -> Tensor | None:
    """What is given of each image, (B, L) with -1 where a token is free; None when nothing is."""
    mode, K, real = batch[0].mode, batch[0].K, maps[s.split]
    if mode == "plain":
        return None
    if mode == "tp":
        prefix_BK = real.idx_NL[[sample.real_row for sample in batch], :K]
    elif s.nop_prefix == "mode":
        labels = {sample.label for sample in batch}
        prefix_of = {label: most_frequent_tokens(maps["train"], label, K) for label in labels}
        prefix_BK = np.stack([prefix_of[sample.label] for sample in batch])
    else:
        labels, seeds = ([getattr(sample, name) for sample in batch] for name in ("label", "seed"))
        prefix_BK = tokens.draw_from_position_prior(maps["train"], labels, K, seeds)
    return torch.from_numpy(tokens.known_from_prefix(prefix_BK, real.idx_NL.shape[1]))


def decode_maps(s: Settings, vae: VQVAE, f_hat_BChw: Tensor) -> np.ndarray:
    """Quantised maps to grey images, (B, H, W) uint8."""
    precision = s.precision if s.decode_precision == "same" else s.decode_precision
    channels_last = {"auto": None, "on": True, "off": False}[s.channels_last]
    device = f_hat_BChw.device
    with training.autocast(device, training.amp_dtype(device, precision)):
        return images.to_uint8(vae.fhat_to_img(f_hat_BChw, s.decode_chunk or None, channels_last))


@torch.no_grad()
def generate(
    s: Settings, model: VAR, vae: VQVAE, batch: list[Sample], known_BL: Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (B, L) and grey images (B, H, W) uint8 of samples with one mode and K."""
    device = next(model.parameters()).device
    with training.autocast(device, training.amp_dtype(device, s.precision)):
        idx_BL, f_hat_BChw = model.generate_tokens(
            [sample.label for sample in batch],
            seeds=[sample.seed for sample in batch],
            greedy=s.greedy,
            more_smooth=s.more_smooth,
            known_BL=known_BL,
            **vars(Drawing.of(s)),
        )
    return idx_BL.cpu().numpy(), decode_maps(s, vae, f_hat_BChw)


def write_samples(s: Settings, batch: list[Sample], idx_BL: np.ndarray, grey_BHW: np.ndarray) -> None:
    """Write pictures, and tokens before them, so that a picture says that both are there."""
    for sample, idx_L, grey_HW in zip(batch, idx_BL, grey_BHW, strict=True):
        path = s.out_dir / sample.file
        if s.save_tokens:
            with atomic_path(path.with_suffix(".npy")) as temporary:
                np.save(temporary, idx_L.astype(np.int32))
        images.save_png(path, grey_HW, sample.K)


def holds_the_tokenised(root: Path, split: images.Split, real: tokens.TokenMaps) -> bool:
    """Whether a folder still has the images of the token maps; their paths may be those of others by now."""
    try:
        files = images.find_images(root, split, real.classes)
    except InputError:  # gone, or no longer a folder of prepared images
        return False
    return images.listing_sha256(files) == real.made_by.get("listing_sha256")


@torch.no_grad()
def real_images(
    s: Settings, vae: VQVAE, real: tokens.TokenMaps, samples: list[Sample]
) -> tuple[dict[int, np.ndarray], bool]:
    """The real images of the figures.

    They are read from --data-root or, where that is not given, from the folder that was tokenised if it still
    has them; else they are decoded from their tokens.

    Returns:
        By their row in the token file, (H, W) uint8 each; and whether they are the images themselves.

    Raises:
        InputError: when --data-root holds other images than those that were tokenised.
    """
    rows = sorted({sample.real_row for sample in samples if sample.index < s.figure_rows} - {None})
    if not rows:
        return {}, False
    root = s.data_root or real.made_by.get("settings", {}).get("data_root")
    if root and holds_the_tokenised(Path(root), s.split, real):
        return {row: images.read_image(Path(root, str(real.path_N[row]))) for row in rows}, True
    if s.data_root:
        raise InputError(
            f"--data-root {root} holds other {s.split} images than {real.file} was made from: give the "
            "folder that was tokenised, or leave it out"
        )
    print(
        f"note: the {s.split} images that were tokenised were not found{f' in {root}' if root else ''}: the "
        "figures show them decoded from their tokens"
    )
    idx_BL = tokens.as_tensor(real.idx_NL, rows).to(next(vae.parameters()).device)
    grey_BHW = images.to_uint8(
        vae.idxBl_to_img(split_scales(idx_BL, real.patch_nums), same_shape=True, last_one=True)
    )
    return dict(zip(rows, grey_BHW, strict=True)), False


def planned_figures(s: Settings, samples: list[Sample]) -> list[Figure]:
    """Every figure, with the samples that it shows."""
    figures = []
    names = list(dict.fromkeys(sample.class_name for sample in samples))
    row_of: dict[tuple[str, str, int], list[Sample]] = {}
    for sample in samples:
        row_of.setdefault((sample.mode, sample.class_name, sample.index), []).append(sample)
    for mode in ("tp", "nop"):
        if (mode, names[0], 0) not in row_of:
            continue
        rows = {
            name: [
                row_of.get(("plain", name, i), []) + row_of[mode, name, i]
                for i in range(min(s.figure_rows, s.images_per_class))
            ]
            for name in names
        }
        figures += [Figure(s.out_dir / f"{mode}_{name}.png", "sweep", rows[name]) for name in names]
        first_rows = [rows[name][0] for name in names]
        figures.append(Figure(s.out_dir / f"sweep_{mode}.png", "overview", first_rows))
    if s.variety and ("plain", names[0], 0) in row_of:
        for name in names:
            plain = [row_of["plain", name, i][0] for i in range(s.variety)]
            path = s.out_dir / f"variety_{name}.png"
            figures.append(Figure(path, "variety", list(training.batches(plain, 4))))
    return figures


def scales_named(sample: Sample) -> str:
    """How much of a picture was given, as the head of a column."""
    if sample.generated_tokens == 0:
        return {"tp": "just rebuilt", "nop": "all by frequency"}[sample.mode]
    return f"{sample.scales} scale{'s' * (sample.scales > 1)}"


def drawing_words(s: Settings) -> str:
    """How tokens were drawn, in titles."""
    if s.greedy:
        return f"guidance {s.cfg:g}, greedy" if s.cfg else "guidance off, greedy"
    return str(Drawing.of(s))


def read_pictures(s: Settings, rows: list[list[Sample]]) -> list[list[np.ndarray]]:
    """The pictures of a figure's rows, (H, W) uint8 each."""
    return [[images.read_image(s.out_dir / sample.file) for sample in row] for row in rows]


def plot_variety(s: Settings, path: Path, rows: list[list[Sample]]) -> None:
    """Many plain pictures of one class."""
    title = f"{rows[0][0].class_name}: {sum(map(len, rows))} samples, nothing given but the class\n"
    names, columns = [""] * len(rows), [""] * len(rows[0])
    plots.image_grid(path, read_pictures(s, rows), names, columns, title + drawing_words(s))


def plot_sweep(
    s: Settings,
    path: Path,
    rows: list[list[Sample]],
    real: dict[int, np.ndarray],
    as_prepared: bool,
    is_overview: bool,
) -> None:
    """K along the columns, and the real image of each row at the right.

    Args:
        s: what was generated, and how.
        path: the figure.
        rows: samples by rising K.
        real: real images by their row in the token file.
        as_prepared: whether these are the images themselves, and not decoded from their tokens.
        is_overview: whether each row is of another class, and not another sample of the same.
    """
    first, mode = rows[0], rows[0][-1].mode
    names = [row[0].class_name if is_overview else f"sample {row[0].index + 1}" for row in rows]
    columns = ["K = 0\nplain" if not x.K else f"K = {x.K}\n{scales_named(x)}" for x in first]
    columns.append(f"{'real' if as_prepared else 'real, rebuilt'}\n({s.split})")
    pictures = [
        [*generated, real[row[0].real_row]]
        for generated, row in zip(read_pictures(s, rows), rows, strict=True)
    ]
    several = "Classes" if s.classes else "All classes"
    subject = several if is_overview else first[0].class_name
    prefix = PREFIX_WORDS["tp" if mode == "tp" else s.nop_prefix]
    shown = "as prepared" if as_prepared else "decoded from its tokens"
    title = f"{subject}: {prefix}, the others generated\nreal image {shown}; {drawing_words(s)}"
    plots.image_grid(path, pictures, names, columns, title)


def draw_figures(s: Settings, figures: list[Figure], real: dict[int, np.ndarray], as_prepared: bool) -> None:
    """All figures; `real` and `as_prepared` are what `real_images` returns."""
    for figure in tqdm(figures, desc="draw", unit="figure", file=sys.stdout):
        if figure.kind == "variety":
            plot_variety(s, figure.path, figure.rows)
        else:
            plot_sweep(s, figure.path, figure.rows, real, as_prepared, figure.kind == "overview")


def main(s: Settings) -> None:
    """Generate what is missing, then draw."""
    device = distributed.choose_device(s.device)
    vqvae = load_vqvae(s.vqvae, device)
    var = load_var(s.var, vqvae, device)
    model, vae = var.model, vqvae.model
    s = with_chosen(s, s.settings_from, var.sha256)
    maps = {
        split: tokens.read_token_maps_of(vqvae, s.vqvae, s.tokens_dir / split)
        for split in dict.fromkeys(("train", s.split))
    }
    check(s, var, maps)
    samples = plan(s, maps)
    inputs = {"var": s.var, "vqvae": s.vqvae, "train_tokens": maps["train"].file}
    inputs |= {"real_tokens": maps[s.split].file, "chosen_settings": s.settings_from}
    record = provenance.made_by("sample_var.py", s, inputs)
    listing_path = s.out_dir / "samples.json"
    earlier = read_record(listing_path, "made_by", "complete", "samples")
    if earlier:
        # What chosen.json says is compared as settings, so that it need not be the same file.
        same = {role: file for role, file in record["inputs"].items() if role != "chosen_settings"}
        runs.refuse_other_settings(listing_path, earlier["made_by"], record | {"inputs": same}, MAY_CHANGE)
    refuse_unlisted(s, samples, {entry["file"] for entry in earlier["samples"]} if earlier else set())
    missing = [sample for sample in samples if not is_there(s, sample)]
    figures = planned_figures(s, samples)
    is_same = earlier and earlier["complete"] and earlier["made_by"]["settings"] == record["settings"]
    if is_same and not missing and all(figure.path.is_file() for figure in figures):
        print(f"nothing to do: {s.out_dir} has all {len(samples)} images and {len(figures)} figures")
        return
    real, as_prepared = real_images(s, vae, maps[s.split], samples)

    if s.compile:
        model.compile_blocks()
    run = runs.RunFolder(s.out_dir, record)
    for folder in {(s.out_dir / sample.file).parent for sample in missing}:
        remove_stale_temporaries(folder)
    listing = new_listing(s, record, maps["train"], samples, earlier)
    # Before the first image: at no time is there one whose prefix is not on record.
    write_json(listing_path, listing)
    with tqdm(total=len(missing), desc="sample", unit="image", file=sys.stdout) as progress:
        for batch in in_batches(missing, s.batch_size):
            write_samples(s, batch, *generate(s, model, vae, batch, known_tokens(s, batch, maps)))
            progress.update(len(batch))
    draw_figures(s, figures, real, as_prepared)
    write_json(listing_path, listing | {"complete": True})
    run.close()
    print(f"done: {len(missing)} new of {len(samples)} images, {len(figures)} figures in {s.out_dir}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
