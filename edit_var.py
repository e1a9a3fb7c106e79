"""Change a part of an ultrasound image with the trained models, without training: in- and out-painting.

    python edit_var.py --var runs/var/ar-ckpt-best.pth --vqvae runs/vqvae/best.pth \\
        --image data/processed/val/Breast/x.png --class-name Breast --box 60 80 140 160
    python edit_var.py ... --box 60 80 140 160 --outside True     # keep the box, change all around it
    python edit_var.py ... --mask lesion.png --class-name Heart   # another class inside the white of the mask

The image's token maps are forced at every scale where they lie in the part to keep; a token is free when its
cell overlaps the part to change, and is drawn for the class. Writes to <out-dir>: edit_<i>.png, one for each
seed, before_after.png, and edit.json. Edited images hold real pixels: they are no generated images, and no
score may take them for such.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from torch import Tensor

from models import VAR, VQVAE
from models.helpers import image_seeds, split_scales
from usvar import checkpoints, checks, cli, distributed, images, plots, provenance, training
from usvar.chosen import Drawing, with_chosen
from usvar.errors import InputError
from usvar.files import lock_folder, write_json


@dataclass(frozen=True)
class Settings:
    """What is changed, into what, and how it is drawn."""

    # Transformer: ar-ckpt-best.pth of train_var.py.
    var: Path

    # The VQ-VAE that made its tokens.
    vqvae: Path

    # A prepared image, grey, of the size that the models were trained on.
    image: Path

    # Class that the changed part is drawn for; that of the image, or another.
    class_name: str

    # The part in pixels, X0 Y0 X1 Y1 from the upper left corner; X1 and Y1 are the first pixels after it.
    box: tuple[int, int, int, int] | None = None

    # The part as a second image of the same size, white what is to be changed; instead of a box.
    mask: Path | None = None

    # Keep the part and change what is around it.
    outside: bool = False

    # Edited images and the figure are written here.
    out_dir: Path = Path("runs/edits")

    # Edited images, each from its own seed.
    variants: int = 4

    # A token is free when more than this share of its cell is to be changed: 0 frees each that is touched;
    # towards 1 the coarse tokens, which decide on the whole image, are kept.
    overlap: float = 0.0

    # Put the original's pixels back over the part to keep; off: everything comes out of the decoder.
    paste: bool = True

    # Pixels inside the changed part over which the original fades out, when pasting.
    feather: int = 8

    # chosen.json of sweep_var.py: cfg, top-k, top-p and temperature from there.
    settings_from: Path | None = None

    # Strength of class guidance; it grows with the scale; 0: none.
    cfg: float = 1.5

    # Draw only from this many most likely codes; 0: from all.
    top_k: int = 0

    # Draw only from the most likely codes whose probabilities add up to this, 0 to 1; 0: from all.
    top_p: float = 0.95

    # Divides the logits: below 1 less varied, above 1 more.
    temperature: float = 1.0

    # Variants at once.
    batch_size: int = 8

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Seed that the variants' seeds are derived from.
    seed: int = 0


def check(s: Settings) -> None:
    """Refuse settings that make no sense before anything is read.

    Raises:
        InputError: names the first such setting.
    """
    if (s.box is None) == (s.mask is None):
        given = "neither --box nor --mask was" if s.box is None else "both --box and --mask were"
        raise InputError(f"{given} given, wanted one: say which part of the image is meant")
    checks.require(s, "1 or more", "variants", "batch_size")
    checks.require(s, "0 to below 1", "overlap")
    checks.require(s, "0 or more", "feather", "seed")
    checks.require(s, checks.TEMPERATURE, "temperature")
    Drawing.of(s).check()


def class_label(s: Settings, var: checkpoints.Loaded) -> int:
    """Label of the class named; a published file has no names, so there a number is the name.

    Raises:
        InputError: when the transformer does not know the class.
    """
    names = var.classes or tuple(str(i) for i in range(var.model.num_classes))
    if s.class_name not in names:
        raise InputError(f"--class-name {s.class_name} is not known to {s.var}, known are {', '.join(names)}")
    return names.index(s.class_name)


def box_region(box: tuple[int, int, int, int], size: int) -> np.ndarray:
    """(H, W) bool, True inside the box.

    Raises:
        InputError: when it is empty or reaches outside the image.
    """
    x0, y0, x1, y1 = box
    if x0 >= x1 or y0 >= y1:
        raise InputError(
            f"--box {x0} {y0} {x1} {y1} is empty, wanted X0 below X1 and Y0 below Y1: give its upper left "
            "corner, then its lower right one"
        )
    if min(x0, y0) < 0 or max(x1, y1) > size:
        raise InputError(
            f"--box {x0} {y0} {x1} {y1} reaches outside the image, wanted numbers from 0 to {size}"
        )
    region_HW = np.zeros((size, size), dtype=bool)
    region_HW[y0:y1, x0:x1] = True
    return region_HW


def mask_region(path: Path, size: int) -> np.ndarray:
    """(H, W) bool, True where the image is white; what is transparent counts as black.

    Raises:
        InputError: when it cannot be read, does not say what white is, or has another size than the image.
    """
    try:
        with Image.open(path) as mask:
            if mask.mode in ("I", "F"):
                raise InputError(
                    f"{path} has 32 bits per pixel, which do not say what white is, wanted 8 or 16: save it "
                    "as an 8-bit PNG in black and white"
                )
            if mask.mode.startswith("I;16"):
                # Not by convert, which makes all from 255 on white.
                grey_HW = np.asarray(mask) >> 8
            else:
                black = Image.new("RGBA", mask.size, "black")
                grey_HW = np.asarray(Image.alpha_composite(black, mask.convert("RGBA")).convert("L"))
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path} cannot be read as a mask ({error}): give an image in black and white"
        ) from error
    if grey_HW.shape != (size, size):
        raise InputError(
            f"{path} is {grey_HW.shape[1]} x {grey_HW.shape[0]}, the image is {size} x {size}: "
            "draw the mask on the image"
        )
    return grey_HW >= 128


def region_to_change(s: Settings, size: int) -> np.ndarray:
    """(H, W) bool, True where the image is to be made anew; never nothing and never all.

    Raises:
        InputError: as `box_region` and `mask_region`, and when the part is empty or the whole image.
    """
    region_HW = box_region(s.box, size) if s.box is not None else mask_region(s.mask, size)
    if region_HW.all() or not region_HW.any():
        what = "the whole image" if region_HW.all() else "nothing"
        given = "--box" if s.box is not None else f"{s.mask}"
        raise InputError(
            f"{given} marks {what}, wanted a part of it: mark less or more (white is the part meant), "
            "or make whole images with sample_var.py"
        )
    return ~region_HW if s.outside else region_HW


def known_tokens(
    idx_Bl: list[Tensor], change_HW: np.ndarray, patch_nums: tuple[int, ...], overlap: float = 0.0
) -> Tensor:
    """The tokens to keep; those that are to be drawn become -1.

    Args:
        idx_Bl: token maps of the image, (B, l) per scale.
        change_HW: bool, True where the image is to be made anew.
        patch_nums: tokens per side of each scale.
        overlap: share of its cell above which a token is free, 0 to 1.

    Returns:
        (B, L) int64.
    """
    change_11HW = torch.from_numpy(change_HW)[None, None].float()
    known = []
    for idx, side in zip(idx_Bl, patch_nums, strict=True):
        # A cell that does not end on a pixel's edge takes in the pixels that it cuts, as this pooling does.
        free_1l = (F.adaptive_avg_pool2d(change_11HW, side) > overlap).flatten(1)
        known.append(idx.masked_fill(free_1l.to(idx.device), -1))
    return torch.cat(known, dim=1)


def fade(change_HW: np.ndarray, feather: int) -> np.ndarray:
    """New pixels' weight: 0 in the part to keep, rising to 1 over `feather` pixels inside the part to change.

    In a part that is narrower it reaches 1 in the middle. The image's border is no edge.

    Returns:
        (H, W) float32.
    """
    depth_HW = ndimage.distance_transform_cdt(change_HW, "chessboard")
    deepest = min(max(1, feather), depth_HW.max())
    return (np.minimum(depth_HW, deepest) / deepest).astype(np.float32)


@torch.no_grad()
def draw_variants(
    model: VAR, vae: VQVAE, known_1L: Tensor, label: int, seeds: list[int], drawing: Drawing
) -> np.ndarray:
    """Draw the free tokens once for each seed, and decode.

    Args:
        model: transformer.
        vae: its VQ-VAE.
        known_1L: tokens to keep, -1 where free.
        label: class that the free ones are drawn for.
        seeds: one for each variant.
        drawing: how they are drawn.

    Returns:
        (B, H, W) uint8, nothing pasted.
    """
    known_BL = known_1L.expand(len(seeds), -1)
    _, f_hat = model.generate_tokens(label, seeds=seeds, known_BL=known_BL, **vars(drawing))
    return images.to_uint8(vae.fhat_to_img(f_hat))


def paste(original_HW: np.ndarray, new_BHW: np.ndarray, change_HW: np.ndarray, feather: int) -> np.ndarray:
    """New pixels where the image was to be changed, the original's elsewhere, (B, H, W) uint8."""
    weight_HW = fade(change_HW, feather)
    mixed_BHW = original_HW + weight_HW * (new_BHW.astype(np.float32) - original_HW)
    return mixed_BHW.round().astype(np.uint8)


def show_region(image_HW: np.ndarray, change_HW: np.ndarray) -> np.ndarray:
    """The image with the part to keep dimmed and a white line around the part to change."""
    edge_HW = ndimage.distance_transform_cdt(change_HW, "chessboard") == 1
    shown_HW = np.where(change_HW, image_HW, image_HW * 0.35)
    return np.where(edge_HW, 255, shown_HW).astype(np.uint8)


def write_edits(
    s: Settings,
    edited_BHW: np.ndarray,
    image_HW: np.ndarray,
    change_HW: np.ndarray,
    seeds: list[int],
    kept: int,
) -> list[dict[str, object]]:
    """Write edit_<i>.png, in place of those of an earlier run.

    Args:
        s: where they go, and whether pixels were pasted.
        edited_BHW: uint8, one for each seed.
        image_HW: the original, uint8.
        change_HW: bool, True where the image was made anew.
        seeds: of the variants.
        kept: tokens of the original that are in each of them.

    Returns:
        What edit.json says of each.
    """
    # First what tells of an earlier run's edits: it must not tell of these when this run is stopped.
    (s.out_dir / "edit.json").unlink(missing_ok=True)
    # Those of a run with more variants would stand there as if this one had made them.
    for earlier in s.out_dir.glob("edit_*.png"):
        if re.fullmatch(r"edit_\d+\.png", earlier.name):
            earlier.unlink()
    # Pasted pixels are real as well, even where every token was drawn.
    given = max(kept, int(s.paste))
    variants = []
    for i, (seed, variant_HW) in enumerate(zip(seeds, edited_BHW, strict=True)):
        images.save_png(s.out_dir / f"edit_{i}.png", variant_HW, given)
        difference_HW = np.abs(variant_HW.astype(np.float32) - image_HW)
        variants.append(
            {
                "file": f"edit_{i}.png",
                "seed": seed,
                # Whether anything of it is real: then it must never be scored as generated.
                "prefixed": given > 0,
                "kept_tokens": kept,
                "mean_change_in_grey_levels": {
                    "changed_part": float(difference_HW[change_HW].mean()),
                    "kept_part": float(difference_HW[~change_HW].mean()),
                },
            }
        )
    return variants


def draw_before_after(s: Settings, rows: dict[str, list[np.ndarray]], change_HW: np.ndarray) -> None:
    """before_after.png: in each named row an image, then the part to change, then its variants."""
    shown = [[first, show_region(first, change_HW), *variants] for first, *variants in rows.values()]
    names = ["original" if s.paste else "rebuilt", "to change: bright"]
    names += [f"seed {i}" for i in range(s.variants)]
    what = "around the part" if s.outside else "inside the part"
    title = f"{s.image.stem}: made anew {what} as {s.class_name}\n{Drawing.of(s)}"
    plots.image_grid(s.out_dir / "before_after.png", shown, list(rows), names, title)


def main(s: Settings) -> None:
    """Read, edit, write."""
    check(s)
    device = distributed.choose_device(s.device)
    vqvae = checkpoints.load_vqvae(s.vqvae, device)
    var = checkpoints.load_var(s.var, vqvae, device)
    vae, model = vqvae.model, var.model
    label = class_label(s, var)
    s = with_chosen(s, s.settings_from, var.sha256)
    checks.require_class_drop(s.cfg, var.config)
    size = vae.image_side
    if not s.image.is_file():
        raise InputError(f"--image {s.image} is no file: give a prepared image")
    image_HW = images.read_image(s.image)
    if image_HW.shape != (size, size):
        raise InputError(
            f"{s.image} is {image_HW.shape[1]} x {image_HW.shape[0]}, the models take {size} x {size}: "
            f"put it into data/raw/<AnyName>/<Class>/ and run prepare_datasets.py with --size {size}"
        )
    change_HW = region_to_change(s, size)
    lock = lock_folder(s.out_dir)

    idx_Bl = vae.img_to_idxBl(images.to_model_range(image_HW[None], device))
    known_1L = known_tokens(idx_Bl, change_HW, model.patch_nums, s.overlap)
    seeds = image_seeds(s.seed, s.variants, "edit")
    decoded_BHW = np.concatenate(
        [
            draw_variants(model, vae, known_1L, label, some, Drawing.of(s))
            for some in training.batches(seeds, s.batch_size)
        ]
    )
    edited_BHW = paste(image_HW, decoded_BHW, change_HW, s.feather) if s.paste else decoded_BHW

    free_S = [int((part < 0).sum()) for part in split_scales(known_1L, model.patch_nums)]
    variants = write_edits(s, edited_BHW, image_HW, change_HW, seeds, model.L - sum(free_S))
    rebuilt_HW = images.to_uint8(vae.idxBl_to_img(idx_Bl, same_shape=True, last_one=True))[0]
    rows = {"as decoded\n(first: rebuilt)": [rebuilt_HW, *decoded_BHW]}
    if s.paste:
        rows = {f"kept pixels pasted\n({s.feather} pixels soft)": [image_HW, *edited_BHW]} | rows
    draw_before_after(s, rows, change_HW)
    inputs = {"var": s.var, "vqvae": s.vqvae, "image": s.image}
    inputs |= {"mask": s.mask, "chosen_settings": s.settings_from}
    write_json(
        s.out_dir / "edit.json",
        {
            "made_by": provenance.made_by("edit_var.py", s, inputs),
            "class": s.class_name,
            "share_of_pixels_to_change": float(change_HW.mean()),
            "free_tokens_of_each_scale": dict(
                zip((f"{v}x{v}" for v in model.patch_nums), free_S, strict=True)
            ),
            "kept_pixels_pasted_back": s.paste,
            "samples": variants,
        },
    )
    print(
        f"{s.variants} edits of {change_HW.mean():.0%} of the pixels, {sum(free_S)} of {model.L} tokens "
        f"drawn as {s.class_name}: see {s.out_dir / 'before_after.png'}"
    )
    lock.close()


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
