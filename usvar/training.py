"""What training needs: rate, batches and random numbers by step; EMA; stopping; the run folder.

Both training scripts use all of it; sampling, the tokeniser, the sweep and the networks that judge use parts.

Because the learning rate, the images of a batch and every random draw are pure functions of the seed and the
step, a run that goes on from a checkpoint meets exactly what it would have met, with any number of processes.
"""

import contextlib
import ctypes
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from usvar import checks
from usvar.checkpoints import is_whole, read_last
from usvar.distributed import World
from usvar.errors import InputError, RunError
from usvar.files import (
    atomic_path,
    full_disk_named,
    lock_folder,
    remove_stale_temporaries,
    write_json,
    write_text,
)
from usvar.threads import in_order

T = TypeVar("T")
Sliced = TypeVar("Sliced", bound=Sequence | np.ndarray)

# How a forward pass may be computed; the command line refuses other words.
Precision = Literal["auto", "float32", "bfloat16"]

# Under torchrun, one Ctrl-C reaches a process twice, from the terminal and from torchrun.
REPEAT_S = 2.0

# Streams of random numbers: one number each, so that no two uses share a stream.
STREAM_BATCH, STREAM_AUGMENT, STREAM_DROP, STREAM_REVIVE, STREAM_NETWORK = range(5)


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int, final_share: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to `final_share * peak` at the last step.

    Args:
        step: optimiser step, from 0 to total_steps - 1.
        peak: highest rate.
        warmup_steps: steps of the linear part.
        total_steps: steps in all.
        final_share: last rate as a share of the peak, 0 to 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps))
    return peak * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress)))


def step_seed(seed: int, stream: int, step: int, rank: int = 0) -> int:
    """A 63-bit seed that differs for every stream, step and process."""
    words = np.random.SeedSequence((seed, stream, step, rank)).generate_state(2, dtype=np.uint32)
    return int(words[0]) << 31 ^ int(words[1])


def step_generator(seed: int, stream: int, step: int) -> torch.Generator:
    """A CPU generator for one use at one step."""
    return torch.Generator().manual_seed(step_seed(seed, stream, step))


class BalancedSampler:
    """Which images are in the batch of a step: a pure function of seed and step.

    A class is drawn with a probability proportional to its number of images to the power `1 - balance`, then
    a data set of it likewise, then an image of that uniformly, with replacement. There is no epoch to keep a
    place in.

    Args:
        label_N: class of each image.
        balance: 0 draws images as often as they are, 1 all classes equally often.
        seed: the run's seed.
        data_set_N: data set of each image; None: all are of one.
        data_set_balance: as `balance`, for the data sets within a class.
    """

    def __init__(
        self,
        label_N: np.ndarray,
        balance: float,
        seed: int,
        data_set_N: np.ndarray | None = None,
        data_set_balance: float = 0.0,
    ) -> None:
        # At balance 0 data sets make no difference, and the images drawn are those drawn without them.
        data_set_N = data_set_N if data_set_N is not None and data_set_balance else np.zeros_like(label_N)
        self.order_N = np.lexsort((data_set_N, label_N))
        count_C = np.bincount(label_N)
        self.start_C = np.concatenate([[0], np.cumsum(count_C)[:-1]])
        weight_C = np.where(count_C > 0, np.maximum(count_C, 1.0) ** (1 - balance), 0.0)
        self.cumulative_C = np.cumsum(weight_C / weight_C.sum())
        self.seed = seed
        # For each class, from a number in [0, 1) to a place among its images: straight between these knots,
        # one at the end of each data set.
        self.knots_C = []
        for label in range(len(count_C)):
            count_D = np.unique(data_set_N[label_N == label], return_counts=True)[1]
            weight_D = count_D ** (1.0 - data_set_balance)
            inner = np.cumsum(weight_D)[:-1] / weight_D.sum()
            self.knots_C.append(([0.0, *inner, 1.0], [0, *np.cumsum(count_D)]) if len(count_D) else None)

    def batch(self, step: int, size: int) -> np.ndarray:
        """Indices (size,) of the images of the global batch at `step`."""
        words = (self.seed, STREAM_BATCH, step)
        draw_2B = np.random.Generator(np.random.Philox(np.random.SeedSequence(words))).random((2, size))
        class_B = np.searchsorted(self.cumulative_C, draw_2B[0], side="right").clip(max=len(self.start_C) - 1)
        within = [
            np.interp(draw, *self.knots_C[label]) for label, draw in zip(class_B, draw_2B[1], strict=True)
        ]
        return self.order_N[self.start_C[class_B] + np.array(within).astype(np.int64)]


@torch.no_grad()
def ema_update(
    averaged: nn.Module, model: nn.Module, step: int, decay: float, is_made: Tensor | bool = True
) -> None:
    """Move the averaged weights toward the model's; buffers are copied.

    The decay is small in the first steps, min(decay, (1 + step) / (10 + step)), so that the random start is
    soon forgotten.

    Args:
        averaged: changed in place.
        model: the trained one.
        step: from 0.
        decay: share of the average that stays.
        is_made: where it is False on the device, the average stays as it is.
    """
    own, new = list(averaged.parameters()), list(model.parameters())
    if decay == 0:
        torch._foreach_copy_(own, new)  # exactly, which the sum below is not
    else:
        change = torch._foreach_sub(new, own)
        torch._foreach_mul_(change, (1 - min(decay, (1 + step) / (10 + step))) * is_made)
        torch._foreach_add_(own, change)
    for target, source in zip(averaged.buffers(), model.buffers(), strict=True):
        target.copy_(source)


def decay_groups(
    model: nn.Module, weight_decay: float, muon_rate: float = 0.0, muon_part: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Parameter groups of an optimiser: matrices and kernels decay; biases, gains and embeddings do not.

    Args:
        model: whose parameters are trained.
        weight_decay: of what decays.
        muon_rate: of `muon.Muon`; 0 leaves everything to AdamW.
        muon_part: the part of the model whose matrices and kernels Muon trains; None: the whole.

    Returns:
        What Muon trains, what else decays, and what does not.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    of_part = {id(parameter) for parameter in (muon_part or model).parameters()}
    by_muon, decayed, kept = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kernel = name.endswith("weight") and parameter.ndim >= 2 and id(parameter) not in embeddings
            is_of_muon = muon_rate and id(parameter) in of_part
            (kept if not is_kernel else by_muon if is_of_muon else decayed).append(parameter)
    return [
        {"params": by_muon, "weight_decay": weight_decay, "muon_rate": muon_rate},
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]


def check_shared(settings: Any, processes: int) -> None:
    """Refuse what makes no sense among the settings that both trainers have: batches, schedule, optimiser.

    Args:
        settings: of either trainer.
        processes: how many share a batch.

    Raises:
        InputError: names the flag.
    """
    checks.require(settings, "1 or more", "batch_size", "accumulate", "steps")
    checks.require(settings, "1 or more", "log_every", "eval_every", "save_every")
    checks.require(settings, "0 to 1", "class_balance")
    checks.require(settings, "above 0", "learning_rate", "clip", "read_limit_s")
    checks.require(settings, "0 to 1", "warmup", "final_rate")
    checks.require(settings, "0 to below 1", "betas", "ema_decay")
    checks.require(settings, "0 or more", "muon_rate", "weight_decay", "max_skipped_steps", "seed")
    # What PyTorch takes.
    checks.require(settings, "0 to 9223372036854775807", "seed")
    batch, shares = settings.batch_size, processes * settings.accumulate
    if batch % shares:
        raise InputError(
            f"--batch-size {batch} does not divide by {processes} processes times --accumulate "
            f"{settings.accumulate}: choose a multiple of {shares}"
        )


def amp_dtype(device: torch.device, precision: Precision) -> torch.dtype:
    """Dtype of the forward pass: "auto" is bf16 on a GPU or CPU that is faster in it, float32 elsewhere."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without these instructions bf16 is emulated. AVX-512's reach twice float32's rate on AMD's cores and
        # half of it on Intel's, where AMX is the fast way.
        able = torch.cpu.get_capabilities()
        by_avx512 = able.get("avx512_bf16", False) and not able.get("cpu_name", "").startswith("Intel")
        has_bf16 = able.get("amx_bf16", False) or by_avx512
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and has_bf16) else torch.float32


def image_layout(device: torch.device) -> torch.memory_format:
    """In which order the VQ-VAE trains fastest: channels last on GPUs; on CPUs that takes twice the time."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU, have the C library keep what tensors free for the next step, as PyTorch does on a GPU.

    glibc gives large blocks back to the system, which clears every page anew when the next step asks for it:
    nearly half the time of a VQ-VAE's step at 256 x 256. The price is a tenth more memory, for blocks of
    different sizes leave gaps. Without glibc nothing is changed.
    """
    c_library = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if hasattr(c_library, "mallopt"):
        # malloc.h: blocks below 1 GB come from the heap, whose free end is never given back.
        trim_threshold, mmap_threshold = -1, -3
        c_library.mallopt(mmap_threshold, 2**30)
        c_library.mallopt(trim_threshold, -1)


class StopSignal:
    """Turns SIGINT and SIGTERM into a flag that the loop reads after a step; Ctrl-C again stops at once.

    Python's own handlers wait for the main thread, which may be in a long call that runs no Python, or in a
    read that hangs. So a thread of its own counts the signals, told of each by a pipe, and ends the process
    at the second SIGINT with exit code 130. Repeated SIGTERMs, as schedulers send them, are one; so are two
    SIGINTs within REPEAT_S under torchrun, which passes on a Ctrl-C that the process has got as well.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        told, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self._told_before = signal.set_wakeup_fd(self._tell)
        threading.Thread(target=self._watch, args=(told,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._told_before)
        # The thread ends with its pipe.
        os.close(self._tell)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: object) -> None:
        self.received = self.received or number

    def _watch(self, told: int) -> None:
        first_at = None
        patience = REPEAT_S if "TORCHELASTIC_RUN_ID" in os.environ else 0.0
        with open(told, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                for number in numbers:
                    if first_at is None and number in (signal.SIGINT, signal.SIGTERM):
                        first_at = time.monotonic()
                    elif number == signal.SIGINT and time.monotonic() - first_at >= patience:
                        os._exit(128 + signal.SIGINT)


class RunFolder:
    """A folder that one run writes at a time: settings.json, log.jsonl, checkpoints, figures.

    Args:
        path: the folder; made if missing.
        record: what makes the run, from `provenance.made_by`.

    Raises:
        InputError: when another run that is alive writes to the folder, or it cannot be written.
    """

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self._lock = lock_folder(path)
        self.path, self.log_path = path, path / "log.jsonl"
        self.writer: Any = None
        remove_stale_temporaries(path)
        remove_stale_temporaries(path / "progress")
        write_json(path / "settings.json", record)

    def open_tensorboard(self, step: int) -> None:
        """From now on `log` writes numbers for TensorBoard as well; those after `step` are forgotten."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.writer = SummaryWriter(self.path / "tensorboard", purge_step=step + 1)

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to log.jsonl; infinite and missing numbers become null.

        It reaches the disk before a checkpoint of the same step can. For TensorBoard a list, such as the use
        of each scale, is a scalar for each entry.
        """
        for name, value in row.items() if self.writer else ():
            for i, number in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(number, float):
                    label = f"{name}/{i + 1}" if isinstance(value, list) else name
                    self.writer.add_scalar(label, number, row["step"])
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with full_disk_named(self.log_path), open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def note(self, step: int, text: str) -> None:
        """Say something in the output and in the log."""
        print(f"note: {text}", flush=True)
        self.log({"step": step, "note": text})

    def begin(self, step: int, notes: Iterable[str]) -> None:
        """Drop log lines of steps that a killed run did after its last checkpoint; then log the notes."""
        if self.log_path.exists():
            kept = [row for row in read_log(self.log_path) if row["step"] <= step]
            write_text(self.log_path, "".join(json.dumps(row) + "\n" for row in kept))
        for text in notes:
            self.note(step, text)

    def close(self) -> None:
        """Let another run use the folder."""
        if self.writer:
            self.writer.close()
        self._lock.close()


def end_at_once(run: RunFolder | None, world: World, last_path: Path, best_path: Path, done: str) -> None:
    """End a run that has nothing left to do.

    Args:
        run: the folder; None in all processes but the first.
        world: all processes.
        last_path: the checkpoint that says so.
        best_path: the checkpoint that the run is for.
        done: why nothing is left, for the message.

    Raises:
        InputError: when the best checkpoint is lost.
    """
    if not is_whole(best_path):
        raise InputError(
            f"{best_path} is missing or damaged, and {done}: delete {last_path.name} to train the last steps "
            "again from the checkpoint before it"
        )
    if run:
        print(f"nothing to do: {done}, as {last_path} says")
        run.close()
    world.close()


def keep_of_step(figure: Path, step: int) -> None:
    """Keep a copy of a figure that the next validation overwrites, as progress/<name>_<step> beside it."""
    kept = figure.parent / "progress" / f"{figure.stem}_{step:06}{figure.suffix}"
    with atomic_path(kept) as temporary:
        shutil.copyfile(figure, temporary)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl; a last line that a killed run left half-written is dropped."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def best_row(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row of a log whose number is lowest, the first of equals; None when no row has it."""
    return min((row for row in rows if row.get(name) is not None), key=lambda row: row[name], default=None)


def refuse_other_settings(path: Path, before: dict, now: dict, may_change: tuple[str, ...]) -> None:
    """A run goes on only with the settings and input files it was started with.

    Args:
        path: the checkpoint, for the message.
        before: made_by record of the checkpoint.
        now: made_by record of this start.
        may_change: names of settings that do not change the numbers, such as log intervals.

    Raises:
        InputError: names the first setting or input file that differs.
    """
    for name, value in now["settings"].items():
        old = before["settings"].get(name)
        if name not in may_change and old != value:
            # As they are typed.
            then, new = (" ".join(map(str, x if isinstance(x, list) else [x])) for x in (old, value))
            raise InputError(
                f"{path} was made with {name} = {then}, now it is {new}: "
                f"give --{name.replace('_', '-')} {then} to go on, or another --out-dir to start anew"
            )
    for role, file in now["inputs"].items():
        if before["inputs"].get(role, {}).get("sha256") != file["sha256"]:
            raise InputError(
                f"{path} was made with another {role.replace('_', ' ')} file or folder than {file['path']}: "
                "give that one to go on, or another --out-dir to start anew"
            )


def refuse_other_config(path: Path, before: dict[str, Any], now: dict[str, Any], data: Path) -> None:
    """Refuse to go on with other classes or sizes than those of a checkpoint.

    Args:
        path: the checkpoint.
        before: its "config".
        now: the same of the data and settings at hand.
        data: where the data lie, for the message.

    Raises:
        InputError: for the first entry that differs.
    """
    for name, value in now.items():
        if (old := before.get(name)) != value:
            raise InputError(
                f"{path} was trained with {name} {old}, {data} has {value}: give the data that it was "
                "trained on to go on, or another --out-dir to start anew"
            )


def earlier_run(
    last_path: Path,
    best_path: Path,
    record: dict[str, Any],
    config: dict[str, Any],
    may_change: tuple[str, ...],
    data: Path,
    more_state: Mapping[str, tuple[str, type]] | None = None,
) -> tuple[dict[str, Any] | None, Path, list[str]]:
    """Read the checkpoint that a run goes on from, and refuse it when it belongs to another run.

    Args:
        last_path: the last checkpoint.
        best_path: the best one. When it is lost, no score counts as best: the next validation writes it anew.
        record: made_by record of this start.
        config: of the model at hand.
        may_change: see `refuse_other_settings`.
        data: see `refuse_other_config`.
        more_state: see `checkpoints.read_last`.

    Returns:
        Its content, None when no run has been here; the file it was read from, for messages about it; and
        what the log is to say.

    Raises:
        InputError: when it cannot be read, or settings, input files, classes or sizes differ.
    """
    last, found_path, note = read_last(last_path, more_state)
    notes = [note] if note else []
    if last:
        refuse_other_settings(found_path, last["made_by"], record, may_change)
        refuse_other_config(found_path, last["config"], config, data)
        if last["best"] < float("inf") and not is_whole(best_path):
            last["best"] = float("inf")
            notes.append(f"{best_path} is missing or damaged: the next validation writes it anew")
    return last, found_path, notes


def due(done: int, settings: Any) -> tuple[bool, bool, bool]:
    """Whether to log, to validate and to save after `done` steps of a trainer; after the last one, all."""
    everies = settings.log_every, settings.eval_every, settings.save_every
    return tuple(done % every == 0 or done == settings.steps for every in everies)


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision, or nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


@dataclass(frozen=True)
class LeftOut:
    """A step that was not made: its number from 1, loss, norm of the gradient, how many there were before."""

    step: int
    loss: float
    norm: float
    before: int


class StepGuard:
    """Makes the optimiser's steps, and leaves out those whose loss or gradient is not finite in any process.

    One such step would make every weight a NaN for good. To ask after each whether it was finite, the host
    would wait for the device and leave it without work. So the device decides by itself, and makes no step
    any more once too many were left out: however late `read` asks, the weights are those before that step.

    Args:
        parameters: whose gradients are clipped together.
        optimiser: a fused one, which can leave out a step on the device.
        clip: largest norm of the gradient.
        world: all processes.
        allowed: steps that may be left out in the whole run.
        skipped: steps that were left out before this start.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        optimiser: torch.optim.Optimizer,
        clip: float,
        world: World,
        allowed: int = 0,
        skipped: int = 0,
    ) -> None:
        self.parameters, self.optimiser, self.clip, self.world = list(parameters), optimiser, clip, world
        self.allowed, self.skipped = allowed, skipped
        # The step, from 1, that was one too many, once `read` has found it; skipped does not count it.
        self.stopped_at: int | None = None
        # Step by step since the last look: its number, and loss, norm and whether it was made, on the device.
        self._seen: list[tuple[int, Tensor]] = []
        self._left_out = torch.tensor(float(skipped), device=world.device)

    def step(self, step: int, rate: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Set the rate, clip the gradients, make the step if all is finite, and clear the gradients.

        Args:
            step: from 0.
            rate: learning rate.
            loss: a scalar.

        Returns:
            The norm before clipping, and whether the step was made: bool (), both on the device.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        loss = loss.detach()
        bad = self.world.sum(1 - (norm + loss).isfinite().float()) > 0
        is_stopped = self._left_out > self.allowed
        is_made = ~bad & ~is_stopped
        self._left_out += bad & ~is_stopped
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # How torch.amp.GradScaler tells a fused optimiser to leave weights, momenta and its count alone.
        self.optimiser.found_inf = (~is_made).float()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._seen.append((step, torch.stack([loss, norm, is_made.float()])))
        return norm, is_made

    def read(self) -> list[LeftOut]:
        """The steps that were left out since the last call, the one too many last; waits for the device."""
        found = torch.stack([numbers_3 for _, numbers_3 in self._seen]).tolist() if self._seen else []
        bad = [
            (step + 1, loss, norm)
            for (step, _), (loss, norm, is_made) in zip(self._seen, found, strict=True)
            if not is_made
        ]
        self._seen.clear()
        remaining = self.allowed - self.skipped
        # After the one too many, no step was made whatever its numbers.
        left_out = [LeftOut(*numbers, self.skipped + i) for i, numbers in enumerate(bad[: remaining + 1])]
        if len(bad) > remaining:
            self.stopped_at = left_out[-1].step
        self.skipped += min(len(bad), remaining)
        return left_out


def report_left_out(
    guard: StepGuard, run: RunFolder | None, last_path: Path, names: Callable[[int], Sequence[str]]
) -> RunError | None:
    """Write down what steps were left out since the last call, with the files of their batches.

    Args:
        guard: the device is waited for.
        run: the folder; None in all processes but the first.
        last_path: the checkpoint that a run that stops leaves, for the message.
        names: gives the files of the global batch of a step, from 0.

    Returns:
        Why the run must stop; None when it may go on.
    """
    text = ""
    for left_out in guard.read():
        file_name = f"nonfinite_step_{left_out.step}.json"
        text = (
            f"step {left_out.step} was not made: its loss is {left_out.loss:g}, the norm of its gradient "
            f"{left_out.norm:g}; the batch's files are in {file_name}"
        )
        if run:
            numbers = {"loss": f"{left_out.loss}", "gradient_norm": f"{left_out.norm}"}
            numbers |= {"skipped_before": left_out.before, "batch": [*names(left_out.step - 1)]}
            write_json(run.path / file_name, {"step": left_out.step, **numbers})
            run.note(left_out.step, text)
    if guard.stopped_at is None:
        return None
    return RunError(
        f"{text}; {last_path} holds the weights before it; look at those files, lower --learning-rate in "
        f"another --out-dir, or give --max-skipped-steps {guard.allowed + 1}"
    )


class Meter:
    """Means of the numbers of some steps, summed on the device and read once, when they are logged."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        # Steps that count, on the device, and all steps, for the time of one.
        self.made: Tensor | int = 0
        self.steps = 0
        self.started = time.perf_counter()

    def add(self, is_made: Tensor, **values: Tensor) -> None:
        """Add a step's numbers, tensors of one element or of one axis, unless the step was not made."""
        for name, value in values.items():
            value = torch.where(is_made, value.detach().float(), 0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.made = self.made + is_made.long()
        self.steps += 1

    def state_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint between two log lines must hold, so that the next line has the same numbers.

        Every process has sums of its own, and all are kept: (processes, ...) each. All processes call this.
        """
        sums = {name: world.gather(value[None]).cpu() for name, value in self.sums.items()}
        return {"sums": sums, "steps": int(self.made)}

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Go on from `state_dict`; with another number of processes, each takes the mean of all."""
        self.made, self.sums = state["steps"], {}
        for name, value in state["sums"].items():
            own = value[world.rank] if len(value) == world.size else value.mean(0)
            self.sums[name] = own.to(world.device)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out of the seconds of a step: validation, figures, checkpoints."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before

    def read(self, world: World) -> tuple[dict[str, Any], float]:
        """Means since the last read, over steps and processes, and the seconds a step took; starts anew.

        Returns:
            A number for each name, or a list of numbers where tensors of several elements were added; nothing
            when no step was made.
        """
        made = int(self.made)
        means = {name: world.mean(x / made).tolist() for name, x in self.sums.items()} if made else {}
        seconds = (time.perf_counter() - self.started) / max(1, self.steps)
        self.sums, self.made, self.steps, self.started = {}, 0, 0, time.perf_counter()
        return means, seconds


def pinned(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The batch in pinned memory, from which a copy to a GPU does not wait for the work before it."""
    return tuple(x.pin_memory() for x in batch) if device.type == "cuda" else batch


def prefetch(
    load: Callable[[int], T], steps: range, limit_s: float, source: object
) -> Iterator[tuple[int, T, float]]:
    """Load the batch of the next step in a thread while the device works on this one.

    Args:
        load: gives the batch of a step.
        steps: which, in order.
        limit_s: seconds that the loop waits for one batch.
        source: the file that batches are read from, for the message.

    Yields:
        The step, what `load(step)` returned, and the seconds that were spent waiting for it.

    Raises:
        RunError: when a batch takes longer than `limit_s`.
    """
    loaded = in_order(load, steps, 1, 1, limit_s, lambda step: f"the batch of step {step + 1} from {source}")
    for step in steps:
        started = time.perf_counter()
        batch = next(loaded)
        yield step, batch, time.perf_counter() - started


def validation_batch(settings: Any, world: World) -> int:
    """Images of val that a process takes at once: as many as it trains on at once, for memory's sake."""
    return max(1, settings.batch_size // (world.size * settings.accumulate))


def batches(items: Sliced, size: int) -> Iterator[Sliced]:
    """Items, such as a list, a range or an array, in pieces of `size`; the last may be smaller."""
    return (items[i : i + size] for i in range(0, len(items), size))
