"""What the benchmarks of the networks share: time and memory of two ways to do one thing, side by side."""

import ctypes
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from models import VAR, VQVAE
from usvar import plots, provenance
from usvar.errors import InputError
from usvar.files import alone_in, write_json
from usvar.plots import COLOURS, plt

DROP_IN = Path(__file__).with_name("drop_in.py")
ROOT = DROP_IN.parent.parent


@dataclass(frozen=True)
class NetworkSettings:
    """Networks of full size: 256 x 256 images in ten scales, a transformer of depth 6 and width 384."""

    # Tables as JSON, and figures.
    out_dir: Path = Path("runs/benchmarks")

    # Of the networks.
    dtype: Literal["float32", "bfloat16"] = "float32"

    # Images or token maps at once.
    batch: int = 4

    # Transformer blocks.
    depth: int = 6

    # Width of the transformer, a multiple of 64 (a head's width).
    width: int = 384

    # Width of the VQ-VAE's finest level, a multiple of 32.
    vqvae_width: int = 64

    # Codes.
    vocab_size: int = 2048

    # Tokens per side of each scale.
    patch_nums: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

    # Times that each way is measured, after one that is not counted.
    repeats: int = 5


@dataclass(frozen=True)
class Cost:
    """What one call took."""

    wall_s: float
    # User and system time of all threads: on a shared machine the fairer number.
    cpu_s: float
    # Peak above what was held before, in MB (10^6 bytes): of the device, or of the process on a CPU.
    peak_mb: float


def resident_mb(name: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MB."""
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(rows[name].split()[0]) * 1024 / 1e6


def cost_of(work: Callable[[], Any], device: torch.device, memory: bool = False) -> Cost:
    """Run and measure; what is over in an instant runs for a twentieth of a second, and the mean is given.

    Args:
        work: what is measured.
        device: where it runs.
        memory: give back what the C library keeps of freed memory first, or the peak on a CPU is hidden in
            it. That makes the call slower, so memory and time are of different calls.
    """
    on_gpu = device.type == "cuda"
    gc.collect()  # or Python frees what others left, in the middle of the work, and the peak is too low
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before_mb = torch.cuda.memory_allocated() / 1e6
    else:
        if memory:
            ctypes.CDLL(None).malloc_trim(0)
        # Linux sets the process's peak back to what it holds now (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
        before_mb = resident_mb("VmRSS")
    used, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    calls, wall_s = 0, 0.0
    while wall_s < 0.05:
        work()
        if on_gpu:
            torch.cuda.synchronize()
        calls, wall_s = calls + 1, time.perf_counter() - start
    now = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    peak_mb = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else resident_mb("VmHWM")
    return Cost(wall_s / calls, cpu_s / calls, max(0.0, peak_mb - before_mb))


@dataclass
class Pair:
    """One thing done in two ways; each gives what its call cost, and is told whether memory is measured."""

    name: str
    slow: Callable[[bool], Cost]
    fast: Callable[[bool], Cost]
    costs: dict[str, list[Cost]] = field(default_factory=lambda: {"slow": [], "fast": []})
    peak_mb: dict[str, float] = field(default_factory=dict)


def measure(pairs: list[Pair], repeats: int) -> None:
    """Run all pairs `repeats` times, the two ways in turn, so that a busy moment of the machine meets both.

    A first call of each is not counted: it takes memory and, compiled, compiles. The second is for memory.
    """
    with tqdm(total=len(pairs) * (repeats + 2), desc="measure", file=sys.stdout) as progress:
        for pair in pairs:
            for turn in range(repeats + 2):
                for way in ("slow", "fast") if turn % 2 else ("fast", "slow"):
                    cost = getattr(pair, way)(turn == 1)
                    if turn == 1:
                        pair.peak_mb[way] = cost.peak_mb
                    elif turn > 1:
                        pair.costs[way].append(cost)
                progress.update()


def summary(pairs: list[Pair]) -> dict[str, dict[str, Any]]:
    """Medians, the best, and ratios (above 1: the second way is faster, or takes less memory)."""
    rows = {}
    for pair in pairs:
        row: dict[str, Any] = {}
        for way, costs in pair.costs.items():
            taken = {name: [getattr(cost, name) for cost in costs] for name in ("wall_s", "cpu_s")}
            row[way] = {name: statistics.median(values) for name, values in taken.items()}
            row[way]["peak_mb"] = pair.peak_mb[way]
            row[way] |= {f"best_{name}": min(values) for name, values in taken.items()}
        row["ratio"] = {
            name: row["slow"][name] / max(row["fast"][name], 1e-9)
            for name in ("wall_s", "cpu_s", "best_cpu_s")
        }
        rows[pair.name] = row
    return rows


def report(
    rows: dict[str, dict[str, Any]], out_dir: Path, name: str, record: dict[str, Any], ways: tuple[str, str]
) -> None:
    """Print the table; write <name>.json and <name>.png."""
    width = max(map(len, rows))
    print(f"{'':{width}}  {'seconds, median':^19}  {'CPU s, median':^17}  {'how many times':^21}  extra MB")
    print(
        f"{'':{width}}  {ways[0][:9]:>9} {ways[1][:9]:>9}  {ways[0][:8]:>8} {ways[1][:8]:>8}  "
        f"{'wall':>6} {'CPU':>6} {'best':>7}  {ways[0][:9]:>9} {ways[1][:9]:>9}"
    )
    for title, row in rows.items():
        slow, fast, ratio = row["slow"], row["fast"], row["ratio"]
        print(
            f"{title:{width}}  {slow['wall_s']:9.4f} {fast['wall_s']:9.4f}  {slow['cpu_s']:8.4f} "
            f"{fast['cpu_s']:8.4f}  {ratio['wall_s']:6.2f} {ratio['cpu_s']:6.2f} {ratio['best_cpu_s']:7.2f}  "
            f"{slow['peak_mb']:9.0f} {fast['peak_mb']:9.0f}"
        )
    write_json(out_dir / f"{name}.json", {"made_by": record, "ways": list(ways), "rows": rows})

    by_cpu = record["settings"]["device"] == "cpu"
    values = [row["ratio"]["cpu_s" if by_cpu else "wall_s"] for row in rows.values()]
    figure, axis = plt.subplots(figsize=(7.5, 0.36 * len(rows) + 1.4), layout="constrained")
    bars = axis.barh(list(rows), values, color=COLOURS[0], height=0.65)
    axis.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axis.axvline(1, color=COLOURS[1], linestyle="--", linewidth=1.4)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.12)
    axis.set_xlabel(
        f"{'CPU' if by_cpu else 'wall'} time of {ways[0]} over that of {ways[1]} (right of the line: faster)"
    )
    s = record["settings"]
    subject = name.replace("_published", " beside the published package")
    sizes = f"batch {s['batch']}, depth {s['depth']}, width {s['width']}"
    axis.set_title(f"{subject}: {sizes}, {s['dtype']}, {s['device']}")
    plots.save(figure, out_dir / f"{name}.png")
    print(f"see {out_dir / f'{name}.json'} and {name}.png")


def build(s: NetworkSettings, device: torch.device) -> tuple[VQVAE, VAR, dict[str, Any]]:
    """Both networks with random weights whose logits vary, and their constructor arguments."""
    if s.width % 64 or s.batch < 1 or s.repeats < 1 or s.depth < 1:
        raise InputError(
            f"--width {s.width} --depth {s.depth} --batch {s.batch} --repeats {s.repeats} were given, wanted "
            "a width that is a multiple of 64, the others 1 or more"
        )
    arguments = {
        "vqvae": {
            "vocab_size": s.vocab_size,
            "z_channels": 16,
            "ch": s.vqvae_width,
            "v_patch_nums": list(s.patch_nums),
        },
        "var": {
            "num_classes": 10,
            "depth": s.depth,
            "embed_dim": s.width,
            "num_heads": s.width // 64,
            "attn_l2_norm": True,
            "patch_nums": list(s.patch_nums),
        },
    }
    torch.manual_seed(0)
    vae = VQVAE(**arguments["vqvae"])
    vae.quantize.eini(1.0)
    var = VAR(vae, **arguments["var"])
    # Gains that are not near 0 let the blocks matter; the published sampler fails on logits that explode.
    var.init_weights(init_adaln_gamma=0.1, init_head=1.0)
    return vae.to(device), var.to(device).eval(), arguments


class Worker:
    """drop_in.py in a process of its own, over the package of one checkout."""

    def __init__(self, root: Path) -> None:
        if not (root / "models" / "var.py").is_file():
            raise InputError(f"--published {root} has no models/var.py, wanted a checkout of the VAR package")
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, str(DROP_IN), str(root.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request of drop_in.py and wait for its answer."""
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError) as error:
            _, said = self.process.communicate()
            raise InputError(
                f"the package in {self.root} failed at {do!r}: {(said.strip().splitlines() or ['?'])[-1]}"
            ) from error

    def cost(self, do: str, **request: Any) -> Cost:
        """What a request cost."""
        return Cost(**self.ask(do, **request))

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def start_packages(
    s: Any, arguments: dict[str, Any], vae: VQVAE, var: VAR, folder: Path
) -> tuple[Worker, Worker, dict[str, float]]:
    """The published package and ours, each in its process, with the same weights and the same logits.

    Raises:
        InputError: when weights do not load in either direction, or teacher-forced logits differ by more than
            rounding.
    """
    state = {f"vae.{key}": value for key, value in vae.state_dict().items()}
    state |= {f"var.{key}": value for key, value in var.state_dict().items()}
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, folder / "weights.safetensors")
    theirs, ours = Worker(s.published), Worker(ROOT)
    logits = []
    for worker, name in ((theirs, "theirs"), (ours, "ours")):
        weights = str(folder / "weights.safetensors")
        kept = {"keep_freed_memory": worker is ours}
        worker.ask("build", device=s.device, dtype=s.dtype, weights=weights, **kept, **arguments)
        file = folder / f"{name}.safetensors"
        worker.ask("save", file=str(file))
        back = load_file(file)
        for prefix, model in (("vae.", vae), ("var.", var)):
            model.load_state_dict(
                {key.removeprefix(prefix): v for key, v in back.items() if key.startswith(prefix)}
            )
        worker.ask("logits", batch=2, seed=0, file=str(file))
        logits.append(load_file(file)["logits_BLV"].double())
    error = float((logits[0] - logits[1]).norm() / logits[0].norm())
    same_best = float((logits[0].argmax(-1) == logits[1].argmax(-1)).double().mean())
    limit = 1e-4 if s.dtype == "float32" else 3e-2
    if not error < limit:
        raise InputError(
            f"teacher-forced logits of {s.published} and ours differ by {error:.1e} of their norm"
        )
    print(
        f"same weights: logits differ by {error:.1e} of their norm, the best code is the same in "
        f"{same_best:.2%} of places"
    )
    return theirs, ours, {"logits_relative_error": error, "same_best_code": same_best}


def as_record(s: Any, script: str, checks: dict[str, float]) -> dict[str, Any]:
    """What made the figures: settings, revision, device and, with --published, how equal the logits were."""
    card = torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
    return provenance.made_by(script, s) | {
        "gpu": card,
        "threads": torch.get_num_threads(),
        "checks": checks,
    }


def chosen_rows(asked: tuple[str, ...], known: Collection[str]) -> tuple[str, ...]:
    """The rows of a table of recipes that --rows asks for, each once.

    Args:
        asked: names, or "all" alone.
        known: names of all rows.

    Raises:
        InputError: when a name is not known, or none is given.
    """
    chosen = tuple(known) if asked == ("all",) else tuple(dict.fromkeys(asked))
    if unknown := [name for name in chosen if name not in known] or (not chosen and ["nothing"]):
        raise InputError(f"--rows {unknown[0]!r} was given, wanted all or some of: {'; '.join(known)}")
    return chosen


def add_row(path: Path, content: dict[str, Any], name: str, numbers: dict[str, Any]) -> dict[str, dict]:
    """Write one more row of a table of recipes, beside those of other calls with the same settings and code.

    So rows can be asked for one after another, or shared out over several calls that run at once. Distances
    compare within one extractor only: rows of another one, as other pictures or another machine make it, are
    dropped.

    Args:
        path: results.json.
        content: what stands in it beside the rows: made_by, changes and extractor_sha256.
        name: of the row.
        numbers: what was measured.

    Returns:
        All rows, in the order of content["changes"].
    """
    found = {name: numbers}
    # Read and written as one, or of two rows done at the same moment one would be lost.
    with alone_in(path.parent):
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            if _comparable(before) == _comparable(content):
                found = before["rows"] | found
            else:
                print(f"note: {path} was of other settings, code or extractor: its rows are dropped")
        rows = {name: found[name] for name in content["changes"] if name in found}
        write_json(path, {**content, "rows": rows})
    return rows


def _comparable(content: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The record without what may differ between calls that fill one table, and the extractor."""
    made_by = content["made_by"]
    settings = {k: v for k, v in made_by["settings"].items() if k not in ("rows", "out_dir")}
    return {**made_by, "settings": settings}, content.get("extractor_sha256")
