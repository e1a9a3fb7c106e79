"""Token maps as data: one `tokens_multiscale_maps.npz` and one `classes.json` per split.

Axes: N images of a split, L tokens of all scales (coarse first), S scales, V codebook size, K prefix tokens.
The archive is stored without compression, so that its arrays can be memory-mapped: reading a batch of a
million token maps costs the batch, not the million. Whatever looks at all of them does so in blocks of rows.
"""

import json
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.helpers import scale_boundaries, scale_spans, split_scales
from models.quant import code_counts
from usvar import checks
from usvar.checkpoints import Loaded
from usvar.errors import InputError
from usvar.files import atomic_path, write_json

FILE_NAME = "tokens_multiscale_maps.npz"
# Rows that are in memory at once.
BLOCK = 8192
# Numbers in a table of counts (class, position, code): 256 MiB.
MAX_COUNTS = 1 << 26
# What figures call the two models of `frequency_scores`.
FREQUENCIES = {"unigram": "codes' frequencies", "class_position": "class and position frequencies"}
# An archive that others compressed is unpacked into memory; a larger one must be stored plainly.
MAX_UNPACKED_BYTES = 1 << 31


@dataclass(frozen=True)
class TokenMaps:
    """The token maps of one split."""

    file: Path
    # (N, L) integers, coarse scale first; memory-mapped where the archive allows it.
    idx_NL: np.ndarray
    # (N,) class of each row.
    label_N: np.ndarray
    # (N,) picture that each row was made from, relative to the data root.
    path_N: np.ndarray
    # (N,) 0 for the picture as it is, 1, 2, ... for its augmented views.
    view_N: np.ndarray
    # Tokens per side, one number for each scale.
    patch_nums: tuple[int, ...]
    # Class names; index = label.
    classes: tuple[str, ...]
    # What made the file: settings, revision, SHA-256 of the VQ-VAE, vocab_size, image_size.
    made_by: dict[str, Any]

    def __len__(self) -> int:
        return len(self.label_N)

    @property
    def original_rows(self) -> np.ndarray:
        """Rows of the pictures as they are, without augmented views."""
        return np.flatnonzero(self.view_N == 0)

    @property
    def vocab_size(self) -> int:
        """Size of the codebook that the tokens index."""
        return int(self.made_by["vocab_size"])

    @property
    def vqvae_sha256(self) -> str:
        """Hash of the VQ-VAE checkpoint that made the tokens."""
        return str(self.made_by["inputs"]["vqvae"]["sha256"])


def write_token_maps(
    folder: Path,
    idx_NL: np.ndarray,
    label_N: np.ndarray,
    path_N: np.ndarray,
    view_N: np.ndarray,
    patch_nums: Sequence[int],
    classes: Sequence[str],
    made_by: dict[str, Any],
) -> None:
    """Write a split's archive and class names, atomically and a block of rows at a time.

    Args:
        folder: takes both files; made if missing.
        idx_NL: (N, L) integers, coarse scale first; it and the next three may be memory-mapped.
        label_N, path_N, view_N: class, picture and view of each row.
        patch_nums: tokens per side of each scale.
        classes: names; index = label.
        made_by: what makes the file.
    """
    arrays: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {
        "vnums": (np.array(patch_nums, dtype=np.int64), ()),
        "idx": (idx_NL, idx_NL.shape[1:]),
    }
    for side, (start, end) in zip(patch_nums, scale_spans(patch_nums), strict=True):
        arrays[f"tok_{side}x{side}"] = (idx_NL[:, start:end], (side, side))
    arrays |= {"label": (label_N, ()), "path": (path_N, ()), "view": (view_N, ())}
    # The names lie beside, for people; that they are those of the labels can be seen here.
    arrays["made_by"] = (np.array(json.dumps(made_by | {"classes": list(classes)})), ())
    with atomic_path(folder / FILE_NAME) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, (array, row_shape) in arrays.items():
            # A fixed date: the same tokens with the same made_by give the same bytes.
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(member, "w", force_zip64=True) as file:
                if array.dtype.hasobject:
                    raise ValueError(f"{name} holds Python objects")
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
                header["shape"] = (*array.shape[:1], *row_shape)
                np.lib.format.write_array_header_1_0(file, header)
                if not array.ndim:
                    file.write(array.tobytes())
                    continue
                for i in range(0, len(array), BLOCK):
                    file.write(array[i : i + BLOCK].tobytes())
    write_json(folder / "classes.json", list(classes))


def read_token_maps(folder: Path) -> TokenMaps:
    """Read a split's archive.

    Args:
        folder: holds tokens_multiscale_maps.npz and classes.json.

    Raises:
        InputError: when a file or an array is missing, holds objects, or does not fit the others.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(f"{path} is missing: run tokenize_multiscale_maps.py and give its --out-dir")
    with _damage_named(path):
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy") for info in archive.infolist()}
            needed = ("vnums", "idx", "label", "path", "view", "made_by")
            if missing := [name for name in needed if name not in names]:
                raise InputError(
                    f"{path} has no array {missing[0]!r}, wanted {', '.join(needed)}: tokenise again"
                )
            arrays = {name: _read_member(path, archive, f"{name}.npy") for name in needed}
        classes = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        made_by = json.loads(str(arrays["made_by"]))
        if not isinstance(made_by, dict):
            raise TypeError(f"made_by is a {type(made_by).__name__}")
    _check_arrays(path, arrays)
    checks.require_class_names(folder / "classes.json", classes)
    if (made_for := made_by.get("classes", classes)) != classes:
        made_for = ", ".join(map(str, made_for)) if isinstance(made_for, list) else str(made_for)
        raise InputError(
            f"{folder / 'classes.json'} lists {', '.join(classes)}, the tokens beside it were made for "
            f"{made_for}: put its own file back, or tokenise again"
        )
    maps = TokenMaps(
        file=path,
        idx_NL=arrays["idx"],
        label_N=arrays["label"].astype(np.int64),
        path_N=arrays["path"],
        view_N=arrays["view"].astype(np.int64),
        patch_nums=tuple(arrays["vnums"].tolist()),
        classes=tuple(classes),
        made_by=made_by,
    )
    _check_contents(maps)
    _check_maps_of_scales(maps)
    return maps


def read_token_maps_of(vqvae: Loaded, path: Path, folder: Path) -> TokenMaps:
    """Read a split's archive, which must have been made by a certain VQ-VAE.

    Args:
        vqvae: the loaded VQ-VAE.
        path: its checkpoint, for the message.
        folder: see `read_token_maps`.

    Raises:
        InputError: as `read_token_maps`, and when another VQ-VAE made the tokens.
    """
    maps, patch_nums = read_token_maps(folder), tuple(vqvae.model.quantize.v_patch_nums)
    if maps.vqvae_sha256 != vqvae.sha256:
        raise InputError(
            f"{maps.file} was made by a VQ-VAE with SHA-256 {maps.vqvae_sha256[:12]}, {path} has "
            f"{vqvae.sha256[:12]}: run tokenize_multiscale_maps.py again with --vqvae {path}"
        )
    if maps.patch_nums != patch_nums or maps.vocab_size != vqvae.model.vocab_size:
        raise InputError(
            f"{maps.file} has patch numbers {maps.patch_nums} and {maps.vocab_size} codes, {path} has "
            f"{patch_nums} and {vqvae.model.vocab_size}: tokenise again"
        )
    return maps


def require_same_classes(train: TokenMaps, other: TokenMaps) -> None:
    """Refuse another split whose labels have other names.

    Raises:
        InputError: when they have.
    """
    if other.classes != train.classes:
        raise InputError(
            f"{other.file.parent / 'classes.json'} lists {', '.join(other.classes)}, that of train "
            f"{', '.join(train.classes)}: tokenise all splits from one prepared folder"
        )


def refuse_other_training(path: Path, var: Loaded, train: TokenMaps) -> None:
    """Refuse a transformer that learned from other images than those of `train`.

    After another preparation, what is val or test now may have been in its training.

    Args:
        path: its checkpoint, for the message.
        var: the loaded transformer; a published one does not say what it learned from, and passes.
        train: token maps of the training split, any views.

    Raises:
        InputError: when the images differ.
    """
    learned_from, now = var.made_by.get("train_listing_sha256"), train.made_by.get("listing_sha256")
    if learned_from is not None and learned_from != now:
        raise InputError(
            f"{path} was trained on other images than {train.file} was made from, so that it may have seen "
            "what is val or test there: run train_var.py again, or give the token maps that it was trained on"
        )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn an error into one clear line: a damaged archive makes zipfile, zlib and numpy raise nearly any."""
    try:
        yield
    except InputError:
        raise
    except (Exception, MemoryError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} or its classes.json cannot be read ({reason}): tokenise again") from error


def _read_member(path: Path, archive: zipfile.ZipFile, name: str, is_checked: bool = True) -> np.ndarray:
    """One array of the archive: memory-mapped when it is stored plainly, else read (compressed by others).

    Its bytes are compared with the archive's checksum: once, a block at a time; with is_checked False only
    those of compressed arrays, which are read anyway.
    """
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        if info.file_size > MAX_UNPACKED_BYTES:
            raise ValueError(f"{name} unpacks to {info.file_size} bytes; store it without compression")
        with archive.open(name) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):  # reading to the end compares the checksum
                raise ValueError(f"{name} is longer than its array")
            return array
    with archive.open(name) as file:
        while is_checked and file.read(1 << 20):  # BadZipFile at the end when the checksum is wrong
            pass
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        # Local file header (APPNOTE.TXT 4.3.7): lengths of name and extra field at bytes 26 and 28.
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
        file.seek(name_length + extra_length, 1)
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran_order, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects")
        if not shape:
            return np.fromfile(file, dtype, 1).reshape(())
        offset = file.tell()
    # The size claimed by the header may be larger than the file: np.memmap refuses that with a ValueError.
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran_order else "C")


def _check_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Refuse arrays of other kinds than the contract's, before anything is computed from them."""
    axes = {"vnums": 1, "idx": 2, "label": 1, "path": 1, "view": 1, "made_by": 0}
    for name, array in arrays.items():
        kinds = "U" if name in ("path", "made_by") else "ui"
        if array.ndim != axes[name] or array.dtype.kind not in kinds:
            wanted = "text" if kinds == "U" else "integers"
            raise InputError(
                f"{path}: {name} is {array.dtype} of shape {array.shape}, wanted {wanted} with {axes[name]} "
                "axes: tokenise again"
            )
    sides = arrays["vnums"]
    if not 0 < len(sides) <= 100 or sides.min() < 1 or sides.max() > 1024:
        raise InputError(f"{path}: its patch numbers are {sides[:100].tolist()}: tokenise again")


def _check_contents(maps: TokenMaps) -> None:
    """Refuse arrays that do not fit each other, the class names or the record, and paths that lead out."""
    count, length = len(maps.label_N), scale_boundaries(maps.patch_nums)[-1]
    for name, needed in (("inputs", dict), ("vocab_size", int)):
        if not isinstance(maps.made_by.get(name), needed):
            raise InputError(f"{maps.file}: its made_by record has no {name}: tokenise again")
    vqvae = maps.made_by["inputs"].get("vqvae")
    if not isinstance(vqvae, dict) or "sha256" not in vqvae:
        raise InputError(f"{maps.file}: its made_by record names no vqvae: tokenise again")
    if maps.idx_NL.shape != (count, length) or len(maps.path_N) != count or len(maps.view_N) != count:
        raise InputError(
            f"{maps.file}: idx is {maps.idx_NL.shape} for {count} labels, wanted ({count}, {length}) for "
            f"patch numbers {maps.patch_nums}: tokenise again"
        )
    if count == 0:
        raise InputError(f"{maps.file} holds no token map: tokenise again")
    if maps.label_N.min() < 0 or maps.label_N.max() >= len(maps.classes):
        raise InputError(
            f"{maps.file}: labels go from {maps.label_N.min()} to {maps.label_N.max()}, classes.json has "
            f"{len(maps.classes)} names: tokenise again"
        )
    if maps.view_N.min() != 0:
        raise InputError(
            f"{maps.file}: views go from {maps.view_N.min()} to {maps.view_N.max()}, wanted from 0, the "
            "images as they are: tokenise again"
        )
    for start in range(0, count, BLOCK):
        names = maps.path_N[start : start + BLOCK]
        if (np.strings.startswith(names, "/") | (np.strings.find(names, "../") >= 0)).any():
            raise InputError(f"{maps.file}: a path leads out of the data folder: tokenise again")
        block = maps.idx_NL[start : start + BLOCK]
        if block.min() < 0 or block.max() >= maps.vocab_size:
            raise InputError(
                f"{maps.file}: tokens go from {block.min()} to {block.max()}, the codebook has "
                f"{maps.vocab_size} codes: tokenise again with the VQ-VAE that you train with"
            )


def _check_maps_of_scales(maps: TokenMaps) -> None:
    """Refuse tok_ arrays, which are for other readers, that are not the columns of idx.

    Shapes and a first block of rows: to read all rows would double the time that opening an archive takes.
    """
    spans = dict(zip(maps.patch_nums, scale_spans(maps.patch_nums), strict=True))
    with _damage_named(maps.file), zipfile.ZipFile(maps.file) as archive:
        for side, (start, end) in spans.items():
            name, shape = f"tok_{side}x{side}", (len(maps), side, side)
            if f"{name}.npy" not in archive.namelist():
                continue
            tok_Nvv = _read_member(maps.file, archive, f"{name}.npy", is_checked=False)
            idx_Ml, has_shape = maps.idx_NL[:BLOCK, start:end], tok_Nvv.shape == shape
            if not has_shape or not np.array_equal(tok_Nvv[:BLOCK].reshape(idx_Ml.shape), idx_Ml):
                found = "other tokens" if has_shape else f"shape {tok_Nvv.shape}"
                raise InputError(
                    f"{maps.file}: {name} has {found}, wanted columns {start} to {end - 1} of idx "
                    f"in shape {shape}: tokenise again"
                )


def as_tensor(idx_NL: np.ndarray, rows: Sequence[int] | np.ndarray) -> Tensor:
    """Some rows as (B, L) int64, copied out of the memory map."""
    return torch.from_numpy(np.ascontiguousarray(idx_NL[np.asarray(rows)]).astype(np.int64))


def draw_from_position_prior(
    maps: TokenMaps, labels: Sequence[int], K: int, seeds: Sequence[int]
) -> np.ndarray:
    """Draw the first K tokens of images from class and position frequencies alone (mode "nop").

    Each token is drawn from the frequencies of its class at its position in `maps`. That is the same as
    taking, at every position, the token of a randomly chosen image of the class, so no (class, L, V) table
    is needed.

    Args:
        maps: the split whose frequencies count.
        labels: a class for each row wanted.
        K: number of tokens.
        seeds: one per row; the row depends on its own seed alone.

    Returns:
        (len(labels), K) int64.

    Raises:
        InputError: when the split has no image of a class.
    """
    rows_by_label = {label: rows_of_class(maps, label) for label in set(labels)}
    prior_BK = np.empty((len(labels), K), dtype=np.int64)
    for row, (label, seed) in enumerate(zip(labels, seeds, strict=True)):
        rows = rows_by_label[label]
        chosen_K = rows[np.random.default_rng(seed).integers(len(rows), size=K)]
        prior_BK[row] = maps.idx_NL[chosen_K, np.arange(K)]
    return prior_BK


def check_prefix_tokens(prefix_tokens: Sequence[int], boundaries: Sequence[int]) -> None:
    """Refuse values of K that do not end on a scale.

    Args:
        prefix_tokens: values of K.
        boundaries: those that may be given.

    Raises:
        InputError: names the first other one.
    """
    if wrong := [K for K in prefix_tokens if K not in boundaries]:
        raise InputError(
            f"--prefix-tokens {wrong[0]} was given, wanted some of {' '.join(map(str, boundaries))}: each K "
            "must be a scale boundary"
        )


def known_from_prefix(prefix_BK: np.ndarray, length: int) -> np.ndarray:
    """The first K tokens of images as the sampler takes them: (B, L) int64, -1 where a token is free."""
    free = length - prefix_BK.shape[1]
    return np.pad(prefix_BK.astype(np.int64), ((0, 0), (0, free)), constant_values=-1)


def rows_of_class(maps: TokenMaps, label: int) -> np.ndarray:
    """Rows of a class, un-augmented views only.

    Raises:
        InputError: when there is none.
    """
    rows = np.flatnonzero((maps.label_N == label) & (maps.view_N == 0))
    if not len(rows):
        raise InputError(f"{maps.file} has no image of class {maps.classes[label]}: choose another split")
    return rows


def code_counts_of(idx_NL: np.ndarray, patch_nums: Sequence[int], vocab_size: int) -> Tensor:
    """How often token maps use each code in each scale, (S, V); maps on the disk are read block by block."""
    counts_SV = torch.zeros(len(patch_nums), vocab_size, dtype=torch.long)
    for start in range(0, len(idx_NL), BLOCK):
        block_BL = torch.from_numpy(idx_NL[start : start + BLOCK].astype(np.int64))
        counts_SV += code_counts(split_scales(block_BL, patch_nums), vocab_size)
    return counts_SV


def frequency_scores(train: TokenMaps, other: TokenMaps) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What two models that know only frequencies would score: lines to beat for the transformer.

    `unigram`: one distribution over codes per scale. `class_position`: one per class and position, mixed
    half and half with the unigram distribution, because a small training set leaves most codes unseen at a
    position.
    Both are fitted on the training split and scored on another, so they are honest cross-entropies and not
    entropies of a sample, which would be far too low at this number of images.

    Args:
        train: token maps to count.
        other: token maps to score, such as those of the validation split.

    Returns:
        For each of the two, (S,) mean nats per token of each scale, and (S,) the share of tokens that are the
        model's most likely code.
    """
    vocab, classes = train.vocab_size, len(train.classes)
    rows_C = np.maximum(1, np.bincount(train.label_N, minlength=classes))
    positions_at_once = max(1, MAX_COUNTS // (classes * vocab))
    unigram_S2, class_position_S2 = [], []
    for first, end in scale_spans(train.patch_nums):
        counts_V = np.ones(vocab)
        for _, idx_Ml in _blocks(train, slice(first, end)):
            counts_V += np.bincount(idx_Ml.ravel(), minlength=vocab)
        unigram_V = counts_V / counts_V.sum()
        nats_2, hits_2, tokens = np.zeros(2), np.zeros(2), 0
        for start in range(first, end, positions_at_once):
            columns = slice(start, min(start + positions_at_once, end))
            counts_ClV = _count_class_positions(train, columns)
            # Class by class: all at once would be a table of doubles.
            best_Cl = np.stack(
                [
                    (counts_lV / rows + unigram_V).argmax(-1)
                    for counts_lV, rows in zip(counts_ClV, rows_C, strict=True)
                ]
            )
            for label_M, idx_Ml in _blocks(other, columns, views=1):
                nats, hits = _score_block(label_M, idx_Ml, unigram_V, counts_ClV, rows_C, best_Cl)
                nats_2, hits_2, tokens = nats_2 + nats, hits_2 + hits, tokens + idx_Ml.size
        unigram_S2.append((nats_2[0] / tokens, hits_2[0] / tokens))
        class_position_S2.append((nats_2[1] / tokens, hits_2[1] / tokens))
    return {
        "unigram": tuple(np.array(unigram_S2).T),
        "class_position": tuple(np.array(class_position_S2).T),
    }


def _count_class_positions(train: TokenMaps, columns: slice) -> np.ndarray:
    """How many images of each class have each code at each of some positions: int32 (classes, l, V)."""
    positions = np.arange(columns.stop - columns.start)
    counts_ClV = np.zeros((len(train.classes), len(positions), train.vocab_size), dtype=np.int32)
    for label_M, idx_Ml in _blocks(train, columns):
        np.add.at(counts_ClV, (label_M[:, None], positions, idx_Ml), 1)
    return counts_ClV


def _score_block(
    label_M: np.ndarray,
    idx_Ml: np.ndarray,
    unigram_V: np.ndarray,
    counts_ClV: np.ndarray,
    rows_C: np.ndarray,
    best_Cl: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Nats and hits of `unigram` and `class_position`, (2,) each: sums over the tokens of a block of rows.

    Args:
        label_M, idx_Ml: classes and tokens of the rows.
        unigram_V: probability of each code.
        counts_ClV, rows_C: training images with a code at a position, and in all, by class.
        best_Cl: the most likely code of each class and position.
    """
    seen_Ml = counts_ClV[label_M[:, None], np.arange(idx_Ml.shape[1]), idx_Ml]
    unigram_Ml = unigram_V[idx_Ml]
    position_Ml = 0.5 * seen_Ml / rows_C[label_M][:, None] + 0.5 * unigram_Ml
    hits = (idx_Ml == unigram_V.argmax()).sum(), (idx_Ml == best_Cl[label_M]).sum()
    return -np.array([np.log(unigram_Ml).sum(), np.log(position_Ml).sum()]), np.array(hits)


def _blocks(
    maps: TokenMaps, columns: slice, views: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels (M,) and tokens (M, l) of some columns, a block of rows at a time; the first `views` views."""
    for start in range(0, len(maps), BLOCK):
        rows = slice(start, start + BLOCK)
        chosen = maps.view_N[rows] < (views or np.inf)
        yield maps.label_N[rows][chosen], np.asarray(maps.idx_NL[rows, columns])[chosen]
