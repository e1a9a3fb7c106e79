"""Copy what is kept of a run into this folder: settings, log, numbers and small figures, stage by stage.

    python results/record.py --run runs/real_128 --out-dir results/real_128 \\
        --shown Liver-Benign Liver-Malignant Liver-Normal Thyroid-Nodule-DDTI

Writes <out-dir>/<stage>/: numbers.json (date, seconds, device, code revision, command, numbers),
settings.json, log.jsonl (every validation and some lines of training), output.txt (the last lines of what
was printed) and figures of at most 200 kB.
Figures with real pictures are copied only of the classes in --shown. Paths of this machine are cut to their
last name. Give the command on the machine that the run took place on: it names the device.
"""

import csv
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from PIL import Image

# A script sees only its own folder; the shared packages lie one level up.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_preprocessing.report import short_reason
from models.quant import usage
from usvar import cli
from usvar.checkpoints import read_checkpoint
from usvar.errors import InputError
from usvar.files import atomic_path, write_json, write_text
from usvar.processes import cores
from usvar.runs import read_log
from usvar.tokens import TokenMaps, code_counts_of, read_token_maps

# By stage: numbers, figures without real pictures, and figures with them, one per class.
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "processed": (("leak_report.json",), ("per_class_by_split.png",), ()),
    "vqvae": ((), ("loss_curves.png", "quality_curves.png", "codebook_usage.png"), ()),
    "reconstructions": (
        ("reconstruction_metrics.json",),
        ("quality_by_scale.png", "speckle.png"),
        ("scales_{}.png",),
    ),
    "tokens": ((), (), ()),
    "var": (("baselines.json",), ("loss_curves.png", "loss_per_scale.png"), ()),
    **dict.fromkeys(("sweep", "sweep_deep"), (("chosen.json",), ("sweep.png",), ())),
    # Copied only when all classes in them are in --shown, see `real_classes`.
    "samples": ((), (), ("sweep_tp.png", "sweep_nop.png")),
    "variety": ((), ("variety_*.png",), ()),
    **dict.fromkeys(("edits", "edits_outside"), (("edit.json",), (), ("before_after.png",))),
    **dict.fromkeys(
        ("evaluation", "evaluation_deep"),
        (
            ("metrics.json",),
            tuple(
                f"figures/{name}.png"
                for name in ("kernel_distance", "use", "confusion", "copies", "physics", "bits_per_token")
            ),
            (),
        ),
    ),
    "speed": (
        (
            *("sampling.json", "training.json", "sampling_published.json", "training_published.json"),
            *("matrix_rate.json", "vqvae_training.json"),
        ),
        ("sampling*.png", "training*.png"),
        (),
    ),
    "speed_larger": (("matrix_rate.json",), (), ()),
    "speed_compiled": (
        ("sampling.json", "training.json", "matrix_rate.json", "vqvae_training.json"),
        ("sampling.png", "training.png"),
        (),
    ),
    "speed_adversarial": (("vqvae_training.json",), (), ()),
    "var_deep": (("baselines.json",), ("loss_curves.png", "loss_per_scale.png"), ()),
    "recipes": (("results.json",), ("recipes.png",), ()),
    # Its figure is too large for here: docs/evaluation_ladder.png.
    "ladder": (("ladder.json",), (), ()),
}
# Stages of a recipe whose commands made a folder of another name.
COMMANDS = {
    "speed": ("sampling_speed", "training_speed", "vqvae_speed", "matrix_rate"),
    "speed_adversarial": ("vqvae_speed_adversarial",),
    "speed_larger": ("matrix_rate_larger",),
    "speed_compiled": tuple(
        f"{name}_compiled" for name in ("sampling_speed", "training_speed", "matrix_rate", "vqvae_speed")
    ),
}
MOST_BYTES = 200_000
LOG_ROWS = 150
OUTPUT_LINES = 60
# Longer ones are curves, or have one entry per image: no numbers to read.
MOST_ENTRIES = {list: 24, dict: 64}


@dataclass(frozen=True)
class Settings:
    # Folder of a run, with a folder per stage.
    run: Path

    # Where the record goes, one folder per stage.
    out_dir: Path

    # Classes whose real pictures may be shown, by the licence of their data set.
    shown: tuple[str, ...] = ()

    # The device in words, where this is not the machine of the run.
    device: str = ""

    # The command of all stages, where no recipe wrote down those of each.
    command: str = ""


def main(s: Settings) -> None:
    stages = [name for name in STAGES if (s.run / name).is_dir()]
    if not stages:
        raise InputError(f"{s.run} holds no folder of a stage, wanted one of {', '.join(STAGES)}")
    for name in stages:
        record(s, name)
        print(f"{name}: {', '.join(sorted(path.name for path in (s.out_dir / name).iterdir()))}")


def record(s: Settings, stage: str) -> None:
    """Copy one stage."""
    source, target = s.run / stage, s.out_dir / stage
    number_files, figures, with_pictures = STAGES[stage]
    numbers = {
        Path(name).stem: read_json(source / name) for name in number_files if (source / name).is_file()
    }
    made_by = next((found["made_by"] for found in numbers.values() if "made_by" in found), {})
    if (source / "made_by.json").is_file():
        made_by = read_json(source / "made_by.json")
    if stage == "processed":
        numbers |= prepared(source)
    if (source / "settings.json").is_file():
        made_by = read_json(source / "settings.json")
    # The settings are written anew when a finished run is started again, by whatever code is there then.
    best_step = None
    for name in ("best.pth", "ar-ckpt-best.pth"):
        if (source / name).is_file():
            best = read_checkpoint(source / name)
            made_by, best_step = best["made_by"], best.get("step")
    if (source / "train" / "tokens_multiscale_maps.npz").is_file():
        maps = read_token_maps(source / "train")
        made_by = maps.made_by
        numbers |= codes_in_use(maps)
    if made_by:
        write_json(target / "settings.json", for_print(made_by))
    if (source / "log.jsonl").is_file():
        rows = read_log(source / "log.jsonl")
        write_text(target / "log.jsonl", "".join(json.dumps(row) + "\n" for row in thinned(rows)))
        numbers |= validated(rows, best_step)
    if lines := printed_by(s.run / "commands", stage):
        write_text(target / "output.txt", "\n".join(lines) + "\n")
    about = {
        **command_of(s, stage),
        "device": s.device or device_in_words(),
        "code_revision": made_by.get("code_revision"),
    }
    for found in numbers.values():
        if isinstance(found, dict):
            found.pop("made_by", None)
    write_json(target / "numbers.json", for_print(about | {"numbers": numbers}))
    shown = {pattern.format(name) for pattern in with_pictures for name in s.shown}
    if forbidden := real_classes(source, stage, made_by) - set(s.shown):
        print(f"{stage}: figures with real pictures stay behind, {min(forbidden)} is not in --shown")
        shown = set()
    for path in sorted(source.rglob("*.png")):
        name = path.relative_to(source).as_posix()
        if name in shown or any(fnmatch(name, pattern) for pattern in figures):
            save_small(path, target / path.name)


def real_classes(source: Path, stage: str, made_by: dict[str, Any]) -> set[str]:
    """Classes of the real pictures in figures that do not name their class."""
    if stage == "samples":
        return {path.name for path in source.glob("scale_*/*/*") if path.is_dir()}
    is_edit = stage.startswith("edits") and made_by
    return {Path(made_by["settings"]["image"]).parent.name} if is_edit else set()


def prepared(source: Path) -> dict[str, Any]:
    """Pictures of each class by split, rejected and left out, and how many of each for which reason."""
    with open(source / "per_class_by_split.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = {row.pop("class"): {column: int(count) for column, count in row.items()} for row in rows}
    with open(source / "rejected.csv", newline="", encoding="utf-8") as file:
        rejected = Counter(short_reason(row["reason"]) for row in csv.DictReader(file))
    with open(source / "left_out.csv", newline="", encoding="utf-8") as file:
        left_out = Counter(row["reason"] for row in csv.DictReader(file))
    images = sum(row[split] for row in table.values() for split in ("train", "val", "test"))
    return {
        "images": {"by_class": table, "all": images},
        "rejected": dict(rejected),
        "left_out": dict(left_out),
    }


def codes_in_use(maps: TokenMaps) -> dict[str, Any]:
    """Share of the codes that the pictures of a split use as they are, without augmented views."""
    idx_NL = maps.idx_NL[maps.original_rows]
    counts_SV = code_counts_of(idx_NL, maps.patch_nums, maps.vocab_size)
    names = [*(f"{side} x {side}" for side in maps.patch_nums), "all"]
    used = [*usage(counts_SV).tolist(), usage(counts_SV.sum(0)).item()]
    shares = {name: round(share, 4) for name, share in zip(names, used, strict=True)}
    return {"pictures": len(idx_NL), "share_of_codes_in_use": shares}


def thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every validation and note, and evenly spaced lines of training, LOG_ROWS of these at most."""
    training = [row for row in rows if not is_kept(row)]
    step = -(-len(training) // LOG_ROWS) or 1
    chosen = {id(row) for row in training[step - 1 :: step]}
    return [row for row in rows if is_kept(row) or id(row) in chosen]


def is_kept(row: dict[str, Any]) -> bool:
    return "note" in row or any(name.startswith("val_") for name in row)


def validated(rows: list[dict[str, Any]], best_step: int | None) -> dict[str, Any]:
    """The validation of the weights that were kept, and the last one.

    Not the lowest of all: the choice starts anew with the adversarial loss.
    """
    rows = [row for row in rows if any(name.startswith("val_") for name in row)]
    best = [{"best_on_val": row} for row in rows if row["step"] == best_step]
    return {**(best[-1] if best else {}), **({"last_on_val": rows[-1]} if rows else {})}


def command_of(s: Settings, stage: str) -> dict[str, Any]:
    """Command, date and seconds as stages.sh wrote them down; without that the date of the newest file."""
    names, folder = COMMANDS.get(stage, (stage,)), s.run / "commands"
    commands, times = [folder / f"{name}.txt" for name in names], folder / "times.csv"
    words = [for_print(path.read_text(encoding="utf-8").split()) for path in commands if path.is_file()]
    rows = times.read_text(encoding="utf-8").splitlines() if times.is_file() else []
    taken = [row for row in (line.split(",") for line in rows) if row[0] in names]
    return {
        "command": "; ".join(map(" ".join, words)) or s.command or None,
        "date": taken[-1][1][:10] if taken else newest(s.run / stage),
        # Of all pieces.
        "seconds": sum(int(row[2]) for row in taken) if taken else None,
    }


def printed_by(commands: Path, stage: str) -> list[str]:
    """The last lines that a stage printed, of a progress bar its last state, without absolute paths."""
    logs = [commands / f"{name}.log" for name in COMMANDS.get(stage, (stage,))]
    text = b"".join(path.read_bytes() for path in logs if path.is_file()).decode(errors="replace")
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.split("\n")]
    return [re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", line) for line in lines if line][-OUTPUT_LINES:]


def newest(folder: Path) -> str:
    """Day of the last change of a file, in UTC."""
    last = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
    return f"{datetime.fromtimestamp(last, UTC):%Y-%m-%d}"


def for_print(value: Any) -> Any:
    """Without absolute paths, which tell of a machine or its user, and without curves and long lists."""
    if isinstance(value, dict):
        return {
            key: for_print(item)
            for key, item in value.items()
            if type(item) not in MOST_ENTRIES or len(item) <= MOST_ENTRIES[type(item)]
        }
    if isinstance(value, list):
        return [for_print(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def device_in_words() -> str:
    """The kind of device, without the name of the machine."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()}, torch {torch.__version__}"
    return (
        f"{cores()} CPU cores ({torch.backends.cpu.get_cpu_capability()}), no GPU, torch {torch.__version__}"
    )


def save_small(source: Path, target: Path) -> None:
    """Copy a PNG, made smaller until it has at most MOST_BYTES."""
    picture = Image.open(source).convert("RGB")
    share = 1.0
    while True:
        size = [max(1, round(side * share)) for side in picture.size]
        with atomic_path(target) as temporary:
            picture.resize(size, Image.Resampling.LANCZOS).save(temporary, optimize=True)
            if temporary.stat().st_size <= MOST_BYTES:
                return
        share *= 0.85


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: when it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON file ({error}): let its stage run again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, wanted an object")
    return content


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
