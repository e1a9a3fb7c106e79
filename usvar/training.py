"""What both training scripts need: rate, batches and random numbers by step; EMA; stopping; the run folder.

Because the learning rate, the images of a batch and every random draw are pure functions of the seed and the
step, a run that goes on from a checkpoint meets exactly what it would have met, with any number of processes.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from usvar.distributed import World
from usvar.errors import InputError
from usvar.files import full_disk_named, lock_folder, remove_stale_temporaries, write_json, write_text
from usvar.threads import in_order

T = TypeVar("T")

# Under torchrun, one Ctrl-C reaches a process twice, from the terminal and from torchrun.
REPEAT_S = 2.0

# Streams of random numbers: one number each, so that no two uses share a stream.
STREAM_BATCH, STREAM_AUGMENT, STREAM_DROP, STREAM_REVIVE, STREAM_NETWORK = range(5)


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int, final_share: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to `final_share * peak` at the last step.

    Args:
        step: optimiser step, from 0.
        peak: highest rate.
        warmup_steps: steps of the linear part.
        total_steps: steps in all.
        final_share: last rate as a share of the peak, 0 to 1.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
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
def ema_update(averaged: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights toward the model's; buffers are copied.

    The decay is small in the first steps, min(decay, (1 + step) / (10 + step)), so that the random start is
    soon forgotten.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for target, source in zip(averaged.buffers(), model.buffers(), strict=True):
        target.copy_(source)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices and kernels decay; biases, gains and embeddings do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed, kept = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kernel = name.endswith("weight") and parameter.ndim >= 2 and id(parameter) not in embeddings
            (decayed if is_kernel else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def amp_dtype(device: torch.device, precision: str) -> torch.dtype:
    """The dtype of the forward pass: "auto" is bf16 on a GPU or CPU that computes in it, float32 elsewhere.

    Raises:
        InputError: for another word than auto, float32 or bfloat16.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise InputError(f"--precision {precision} was given, wanted auto, float32 or bfloat16")
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        # Without these instructions bf16 is emulated, and slower than float32.
        able = torch.cpu.get_capabilities()
        has_bf16 = able.get("avx512_bf16", False) or able.get("amx_bf16", False)
    return torch.bfloat16 if precision == "bfloat16" or (precision == "auto" and has_bf16) else torch.float32


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
        write_json(path / "settings.json", record)

    def open_tensorboard(self, step: int) -> None:
        """From now on `log` writes numbers for TensorBoard as well; those after `step` are forgotten."""
        from torch.utils.tensorboard import SummaryWriter  # a package of its own, for those who ask for it

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

    def forget_after(self, step: int) -> None:
        """Drop log lines of steps that a killed run did after its last checkpoint."""
        if self.log_path.exists():
            kept = [row for row in read_log(self.log_path) if row["step"] <= step]
            write_text(self.log_path, "".join(json.dumps(row) + "\n" for row in kept))

    def close(self) -> None:
        """Let another run use the folder."""
        if self.writer:
            self.writer.close()
        self._lock.close()


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
            raise InputError(
                f"{path} was made with {name} = {old}, now it is {value}: "
                f"give --{name.replace('_', '-')} {old} to go on, or another --out-dir to start anew"
            )
    for role, file in now["inputs"].items():
        if before["inputs"].get(role, {}).get("sha256") != file["sha256"]:
            raise InputError(
                f"{path} was made with another {role.replace('_', ' ')} file or folder than {file['path']}: "
                "give that one to go on, or another --out-dir to start anew"
            )


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision, or nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def optimiser_step(
    parameters: list[Tensor],
    optimiser: torch.optim.Optimizer,
    rate: float,
    clip: float,
    loss: Tensor | None = None,
    world: World | None = None,
) -> tuple[Tensor, bool]:
    """Set the rate, clip the gradients to norm `clip`, step and clear.

    No step is made when the loss or a gradient is not finite, in any process: one such step makes every
    weight a NaN for good.

    Returns:
        The norm before clipping, and whether the step was made.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
    is_finite = bool((norm if loss is None else norm + loss.detach()).isfinite())
    if world is not None:
        is_finite = not world.any(not is_finite)
    if is_finite:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm, is_finite


def refuse_step(
    run: RunFolder | None, step: int, loss: Tensor, norm: Tensor, skipped: int, names: Sequence[str]
) -> str:
    """Write down the batch of a step whose loss or gradient is no finite number.

    Args:
        run: the folder; None in all processes but the first.
        step: the step that was not made, from 1.
        loss, norm: the first process's loss and the norm of the gradient.
        skipped: such steps before this one.
        names: files of the global batch.

    Returns:
        A sentence that names the file with the names.
    """
    file_name = f"nonfinite_step_{step}.json"
    text = (
        f"step {step} was not made: its loss is {loss.item():g}, the norm of its gradient {norm.item():g}; "
        f"the batch's files are in {file_name}"
    )
    if run:
        numbers = {"loss": f"{loss.item()}", "gradient_norm": f"{norm.item()}", "skipped_before": skipped}
        write_json(run.path / file_name, {"step": step, **numbers, "batch": [*names]})
        run.note(step, text)
    return text


class Meter:
    """Means of the numbers of some steps, summed on the device and read once, when they are logged."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.started = time.perf_counter()

    def add(self, **values: Tensor) -> None:
        """Add a step's numbers: tensors of one element or of one axis."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def state_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint between two log lines must hold, so that the next line has the same numbers.

        Every process has sums of its own, and all are kept: (processes, ...) each. All processes call this.
        """
        sums = {name: world.gather(value[None]).cpu() for name, value in self.sums.items()}
        return {"sums": sums, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Go on from `state_dict`; with another number of processes, each takes the mean of all."""
        self.steps, self.sums = state["steps"], {}
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
            A number for each name, or a list of numbers where tensors of several elements were added.
        """
        means = {name: world.mean(value / self.steps).tolist() for name, value in self.sums.items()}
        seconds = (time.perf_counter() - self.started) / max(1, self.steps)
        self.sums, self.steps, self.started = {}, 0, time.perf_counter()
        return means, seconds


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


def batches(count: int, size: int) -> Iterator[range]:
    """Ranges that cover `count` items in pieces of `size`."""
    return (range(i, min(i + size, count)) for i in range(0, count, size))
