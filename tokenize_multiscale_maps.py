"""Turn prepared images into token maps with a trained multi-scale VQ-VAE.

    python tokenize_multiscale_maps.py --data-root data/processed --vqvae runs/vqvae/best.pth
    torchrun --nproc-per-node 4 tokenize_multiscale_maps.py ...   # four processes share the images of a split

Reads <data-root>/{train,val,test}/<Class>/*.png and the VQ-VAE. Writes for each split, to <out-dir>/<split>/,
tokens_multiscale_maps.npz (tok_1x1, tok_2x2, ..., vnums, idx, label, path, view, made_by) and classes.json.
The training split gets augmented views too, so that training the transformer decodes no image. Stopped
half-way, the same command goes on; when all is there it says so.
"""

import json
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models import VQVAE
from models.helpers import scale_boundaries
from models.quant import perplexity, usage, usage_of_possible
from usvar import checkpoints, checks, cli, distributed, images, provenance, tokens, training
from usvar.augment import augment, draw_parameters
from usvar.errors import InputError
from usvar.files import lock_folder, new_memmap, remove_stale_temporaries, write_json
from usvar.threads import in_order

# In a split's folder until its archive is whole: tokens, which rows are done, names, what decides tokens.
PARTIAL_IDX, PARTIAL_DONE, PARTIAL_PATH, PARTIAL_STAMP = PARTIALS = tuple(
    f"partial_{name}" for name in ("idx.npy", "done.npy", "path.npy", "stamp.json")
)
# Rows between two marks of what is done: as much as a killed run loses.
ROWS_PER_MARK = 256


@dataclass(frozen=True)
class Settings:
    """What is tokenised, and how often."""

    # Prepared images: <data-root>/{train,val,test}/<Class>/*.png.
    data_root: Path

    # Checkpoint of train_vqvae.py, or one in the published layout.
    vqvae: Path

    # One folder per split is written here.
    out_dir: Path = Path("runs/tokens")

    # Views of each training image: the image itself and views - 1 augmented ones. Val and test have one.
    views: int = 8

    # Images at once, over all processes together.
    batch_size: int = 64

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Seed of the augmented views.
    seed: int = 0

    # Seconds to wait for the images of a batch before the run stops and names them.
    read_limit_s: float = 300.0


def view_parameters(files: images.ImageFiles, rows: np.ndarray, views: int, seed: int) -> torch.Tensor:
    """Augmentation of each row (image, view), by the image's name: new images change no other's views."""
    parameters = []
    for row in rows:
        # The CRC stands in place of a numbered stream: one name in 860 million meets one of those five, and
        # would only draw what a trainer draws for another use.
        name = zlib.crc32(files.paths[row // views].encode())
        generator = torch.Generator().manual_seed(training.step_seed(seed, name, int(row % views)))
        parameters.append(draw_parameters(1, generator))
    return torch.cat(parameters)


@torch.no_grad()
def tokenise(
    model: VQVAE,
    files: images.ImageFiles,
    rows: np.ndarray,
    grey_BHW: np.ndarray,
    views: int,
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Token maps of some rows; row r is view r % views of image r // views, whose pixels are given.

    Returns:
        (len(rows), L) int64.
    """
    image_B3HW = images.to_model_range(grey_BHW, device)
    if (augmented := rows % views > 0).any():
        chosen = torch.from_numpy(augmented).to(device)
        parameters_B4 = view_parameters(files, rows[augmented], views, seed)
        image_B3HW = image_B3HW.clone()
        image_B3HW[chosen] = augment(image_B3HW[chosen, :1], parameters_B4).expand(-1, 3, -1, -1)
    return torch.cat(model.img_to_idxBl(image_B3HW), dim=1).cpu().numpy()


def tokenise_split(
    s: Settings, files: images.ImageFiles, vqvae: checkpoints.Loaded, world: distributed.World, record: dict
) -> None:
    """Tokenise a split into one archive, going on where an earlier run stopped."""
    split, folder, patch_nums = files.split, s.out_dir / files.split, vqvae.model.quantize.v_patch_nums
    views = s.views if split == "train" else 1
    made_by = record | {
        "split": split,
        "vocab_size": vqvae.model.vocab_size,
        "image_size": images.image_size(files),
        "views": views,
        "listing_sha256": images.listing_sha256(files),
    }
    if is_finished(folder, files.classes, made_by, world):
        if world.is_main:
            # Left by a run that died after it had written the archive; what other settings began stays.
            stamp_path = folder / PARTIAL_STAMP
            if not stamp_path.is_file() or read_stamp(stamp_path) == token_key(made_by):
                remove_partials(folder)
            print(f"{split}: nothing to do, {folder / tokens.FILE_NAME} is made by these settings")
        return
    if world.is_main:
        prepare_partials(folder, (len(files) * views, scale_boundaries(patch_nums)[-1]), made_by)
    world.barrier()
    idx_NL, done_N = (np.load(folder / name, mmap_mode="r+") for name in (PARTIAL_IDX, PARTIAL_DONE))
    tokenise_rows(s, files, vqvae.model, views, world, idx_NL, done_N)
    world.barrier()
    if world.is_main:
        write_archive(folder, files, idx_NL, patch_nums, made_by)
        remove_partials(folder)
        print_usage(split, idx_NL, patch_nums, vqvae.model.vocab_size)
    world.barrier()


def prepare_partials(folder: Path, shape: tuple[int, int], made_by: dict) -> None:
    """Make the files that tokens are collected in, unless a stopped run of the same settings left its own.

    Args:
        folder: of the split; made if missing.
        shape: rows (image, view) and tokens of each, (N, L).
        made_by: what makes the tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temporaries(folder)
    stamp_path, key = folder / PARTIAL_STAMP, token_key(made_by)
    is_whole = all((folder / name).is_file() for name in (PARTIAL_IDX, PARTIAL_DONE, PARTIAL_STAMP))
    if not is_whole or read_stamp(stamp_path) != key:
        stamp_path.unlink(missing_ok=True)
        dtype = np.uint16 if made_by["vocab_size"] <= 65536 else np.int32
        new_memmap(folder / PARTIAL_IDX, dtype, shape).flush()
        new_memmap(folder / PARTIAL_DONE, np.bool_, shape[:1]).flush()
        write_json(stamp_path, key)


def read_stamp(path: Path) -> dict:
    """What decides the tokens that are collected beside this file."""
    return json.loads(path.read_text(encoding="utf-8"))


def remove_partials(folder: Path) -> None:
    """Delete what a run would go on from."""
    for name in PARTIALS:
        (folder / name).unlink(missing_ok=True)


def tokenise_rows(
    s: Settings,
    files: images.ImageFiles,
    model: VQVAE,
    views: int,
    world: distributed.World,
    idx_NL: np.ndarray,
    done_N: np.ndarray,
) -> None:
    """Fill this process's rows of idx_NL that are not done yet, and mark them in done_N; both are on disk."""
    own_rows = np.array_split(np.arange(len(done_N)), world.size)[world.rank]
    remaining_rows = own_rows[~done_N[own_rows]]
    batches = list(training.batches(remaining_rows, max(1, s.batch_size // world.size)))

    def read_rows(rows: np.ndarray) -> np.ndarray:
        # The views of an image follow each other: it is read once.
        chosen, place_B = np.unique(rows // views, return_inverse=True)
        return images.read_images(files, chosen.tolist(), model.image_side)[place_B]

    # Images are read in a thread while the device works on the batch before.
    read = in_order(
        read_rows,
        batches,
        threads=1,
        ahead=2,
        limit_s=s.read_limit_s,
        name=lambda rows: " or ".join(str(files.root / files.paths[i]) for i in dict.fromkeys(rows // views)),
    )
    progress = tqdm(
        total=len(remaining_rows), desc=f"tokenise {files.split}", disable=not world.is_main, file=sys.stdout
    )
    unmarked: list[np.ndarray] = []
    for number, (rows, grey_BHW) in enumerate(zip(batches, read, strict=True), 1):
        idx_NL[rows] = tokenise(model, files, rows, grey_BHW, views, s.seed, world.device)
        progress.update(len(rows))
        unmarked.append(rows)
        if sum(map(len, unmarked)) >= ROWS_PER_MARK or number == len(batches):
            # The tokens reach the disk before the mark that says so.
            idx_NL.flush()
            done_N[np.concatenate(unmarked)] = True
            done_N.flush()
            unmarked.clear()
    progress.close()


def write_archive(
    folder: Path, files: images.ImageFiles, idx_NL: np.ndarray, patch_nums: tuple[int, ...], made_by: dict
) -> None:
    """Write the tokens of all rows with their class, picture and view."""
    views = made_by["views"]
    # On disk, because the names of a million images fill memory.
    path_N = new_memmap(folder / PARTIAL_PATH, f"<U{max(map(len, files.paths))}", (len(idx_NL),))
    for i, name in enumerate(files.paths):
        path_N[i * views : (i + 1) * views] = name
    tokens.write_token_maps(
        folder,
        idx_NL,
        np.repeat(files.label_N, views),
        path_N,
        np.tile(np.arange(views), len(files)),
        patch_nums,
        files.classes,
        made_by,
    )


def is_finished(folder: Path, classes: tuple[str, ...], made_by: dict, world: distributed.World) -> bool:
    """Whether the split's archive is there and holds the tokens and labels that this run would make."""
    if not (folder / tokens.FILE_NAME).is_file() or not (folder / "classes.json").is_file():
        return False
    try:
        before = tokens.read_token_maps(folder)
    except InputError as error:
        if world.is_main:
            print(f"note: {error}; it is made anew")
        return False
    # Labels count on from the first class: one more in train moves them in val and test as well.
    then, now = token_key(before.made_by), token_key(made_by)
    then["classes"], now["classes"] = before.classes, classes
    changed = [name for name in now if then[name] != now[name]]
    if changed and world.is_main:
        print(f"note: {before.file} is of another {' and '.join(changed)}; it is made anew")
    return not changed


def token_key(made_by: dict) -> dict:
    """The part of a made_by record that other tokens would differ in: what is read and how it is augmented.

    Names of files, the batch size and the device are none of it, nor are the versions of code and torch: a
    commit or a renamed VQ-VAE would else cost hours for the same tokens.
    """
    return {
        "vqvae_sha256": made_by["inputs"]["vqvae"]["sha256"],
        "seed": made_by.get("settings", {}).get("seed"),
        **{name: made_by.get(name) for name in ("split", "listing_sha256", "views")},
    }


def print_usage(split: str, idx_NL: np.ndarray, patch_nums: tuple[int, ...], vocab_size: int) -> None:
    """One line per scale: how many of the codes its tokens use of those that so many tokens could use."""
    counts_SV = tokens.code_counts_of(idx_NL, patch_nums, vocab_size)
    print(
        f"{split}: {len(idx_NL)} token maps of {idx_NL.shape[1]} tokens, "
        f"{usage(counts_SV.sum(0)):.0%} of codes in use"
    )
    for side, used, varied in zip(
        patch_nums, usage_of_possible(counts_SV), perplexity(counts_SV), strict=True
    ):
        print(f"  {side:2d} x {side:<2d}  codes in use {used:6.1%}  perplexity {varied:7.1f}")


def main(s: Settings) -> None:
    """Tokenise the three splits."""
    checks.require(s, "1 or more", "views", "batch_size")
    checks.require(s, "above 0", "read_limit_s")
    checks.require(s, "0 or more", "seed")
    world = distributed.start(s.device)
    vqvae = checkpoints.load_vqvae(s.vqvae, world.device)
    side = vqvae.model.image_side
    splits = images.find_images_of_side(s.data_root, images.SPLITS, side, s.vqvae)
    record = provenance.made_by("tokenize_multiscale_maps.py", s, {"vqvae": s.vqvae})
    lock = lock_folder(s.out_dir) if world.is_main else None
    if world.is_main:
        images.note_other_training(s.vqvae, vqvae.made_by, splits[images.SPLITS.index("train")])
    for files in splits:
        tokenise_split(s, files, vqvae, world, record)
    world.close()
    if lock:
        lock.close()


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
