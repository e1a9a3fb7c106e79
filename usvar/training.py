"""What a training loop needs: rate, batches and random numbers by step; optimiser steps; EMA; means to log.

Both training scripts use all of it; sampling, the tokeniser, the sweep and the networks that judge use parts.

Because the learning rate, the images of a batch and every random draw are pure functions of the seed and the
step, a run that goes on from a checkpoint meets exactly what it would have met, with any number of processes.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from usvar import checks
from usvar.distributed import World
from usvar.errors import InputError, RunError
from usvar.files import write_json
from usvar.runs import RunFolder
from usvar.threads import in_order

T = TypeVar("T")
Sliced = TypeVar("Sliced", bound=Sequence | np.ndarray)

# How a forward pass may be computed; the command line refuses other words.
Precision = Literal["auto", "float32", "bfloat16"]

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
    averaged: nn.Module, model: nn.Module, step: int, decay: float, is_taken: Tensor | bool = True
) -> None:
    """Move the averaged weights toward the model's; buffers are copied.

    The decay is small in the first steps, min(decay, (1 + step) / (10 + step)), so that the random start is
    soon forgotten.

    Args:
        averaged: changed in place.
        model: the trained one.
        step: from 0.
        decay: share of the average that stays.
        is_taken: where it is False on the device, the average stays as it is.
    """
    own, new = list(averaged.parameters()), list(model.parameters())
    if decay == 0:
        torch._foreach_copy_(own, new)  # exactly, which the sum below is not
    else:
        change = torch._foreach_sub(new, own)
        torch._foreach_mul_(change, (1 - min(decay, (1 + step) / (10 + step))) * is_taken)
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
    checks.require(settings, "0 to 9223372036854775807", "seed")  # PyTorch takes 64 bits
    batch, shares = settings.batch_size, processes * settings.accumulate
    if batch % shares:
        raise InputError(
            f"--batch-size {batch} is not divisible by {processes} processes times --accumulate "
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
class SkippedStep:
    """A skipped step: its number from 1, loss, norm of the gradient, how many were skipped before it."""

    step: int
    loss: float
    norm: float
    before: int


class StepGuard:
    """Takes the optimiser's steps, and skips those whose loss or gradient is not finite in any process.

    One such step would turn every weight into NaN. Asking after each step would make the host wait, so the
    device decides: once too many were skipped it takes no more steps, and however late `read` asks, the
    weights are those before that step.

    Args:
        parameters: whose gradients are clipped together.
        optimiser: a fused one, which can skip a step on the device.
        clip: largest norm of the gradient.
        world: all processes.
        allowed: steps that may be skipped in the whole run.
        skipped: steps that were skipped before this start.

    Raises:
        InputError: when that is more than allowed: no step would be taken.
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
        if skipped > allowed:
            raise InputError(
                f"--max-skipped-steps {allowed} was given, but this run has skipped {skipped} already: "
                f"give {skipped} or more"
            )
        self.parameters, self.optimiser, self.clip, self.world = list(parameters), optimiser, clip, world
        self.allowed, self.skipped = allowed, skipped
        # The step, from 1, that was one too many, once `read` has found it; skipped does not count it.
        self.stopped_at: int | None = None
        # Of each step since the last look: its number; on the device loss, norm and whether it was taken.
        self._seen: list[tuple[int, Tensor]] = []
        self._skipped = torch.tensor(float(skipped), device=world.device)

    @property
    def steps_before_stop(self) -> int:
        """Number of the last step before the one too many; the model holds its weights."""
        return self.stopped_at - 1

    def step(self, step: int, rate: float, loss: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """Set the rate, clip the gradients, take the step if all is finite, and clear the gradients.

        Args:
            step: from 0.
            rate: learning rate.
            loss: a scalar.
            others: further scalars that must be finite, such as the norm of another network's gradient.

        Returns:
            The norm before clipping, and whether the step was taken: bool (), both on the device.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        loss = loss.detach()
        bad = self.world.sum(1 - sum((norm, loss, *others)).isfinite().float()) > 0
        is_stopped = self._skipped > self.allowed
        is_taken = ~bad & ~is_stopped
        self._skipped += bad & ~is_stopped
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        # How torch.amp.GradScaler tells a fused optimiser to leave weights, momenta and its count alone.
        self.optimiser.found_inf = (~is_taken).float()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._seen.append((step, torch.stack([loss, norm, is_taken.float()])))
        return norm, is_taken

    def read(self) -> list[SkippedStep]:
        """The steps that were skipped since the last call, the one too many last; waits for the device."""
        seen = torch.stack([numbers_3 for _, numbers_3 in self._seen]).tolist() if self._seen else []
        bad = [
            (step + 1, loss, norm)
            for (step, _), (loss, norm, is_taken) in zip(self._seen, seen, strict=True)
            if not is_taken
        ]
        self._seen.clear()
        remaining = self.allowed - self.skipped
        # After the one too many, no step was taken whatever its numbers.
        skipped = [SkippedStep(*numbers, self.skipped + i) for i, numbers in enumerate(bad[: remaining + 1])]
        if len(bad) > remaining:
            self.stopped_at = skipped[-1].step
        self.skipped += min(len(bad), remaining)
        return skipped


def report_skipped(
    guard: StepGuard, run: RunFolder | None, last_path: Path, names: Callable[[int], Sequence[str]]
) -> RunError | None:
    """Write down what steps were skipped since the last call, with the files of their batches.

    Args:
        guard: the device is waited for.
        run: the folder; None in all processes but the first.
        last_path: the checkpoint that a run that stops leaves, for the message.
        names: gives the files of the global batch of a step, from 0.

    Returns:
        Why the run must stop; None when it may go on.
    """
    text = ""
    for skipped in guard.read():
        file_name = f"nonfinite_step_{skipped.step}.json"
        text = (
            f"step {skipped.step} was skipped: its loss is {skipped.loss:g}, the norm of its gradient "
            f"{skipped.norm:g}; the batch's files are in {file_name}"
        )
        if run:
            numbers = {"loss": f"{skipped.loss}", "gradient_norm": f"{skipped.norm}"}
            numbers |= {"skipped_before": skipped.before, "batch": [*names(skipped.step - 1)]}
            write_json(run.path / file_name, {"step": skipped.step, **numbers})
            run.note(skipped.step, text)
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
        # Steps that each number was given in and that were taken, on the device: the adversarial loss begins
        # within an interval. And all steps, for the time of one.
        self.counts: dict[str, Tensor | int] = {}
        self.steps = 0
        self.started = time.perf_counter()

    def start(self) -> None:
        """Count the seconds from here: what comes before the first step is no part of it."""
        self.started = time.perf_counter()

    def add(self, is_taken: Tensor, **values: Tensor) -> None:
        """Add a step's numbers, tensors of one element or of one axis, unless the step was skipped."""
        for name, value in values.items():
            value = torch.where(is_taken, value.detach().float(), 0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + is_taken.long()
        self.steps += 1

    def state_dict(self, world: World) -> dict[str, Any]:
        """What a checkpoint between two log lines must hold, so that the next line has the same numbers.

        Every process has sums of its own, and all are kept: (processes, ...) each. All processes call this.
        """
        sums = {name: world.gather(value[None]).cpu() for name, value in self.sums.items()}
        counts = {name: int(count) for name, count in self.counts.items()}
        return {"sums": sums, "counts": counts, "steps": max(counts.values(), default=0)}

    def load_state_dict(self, state: dict[str, Any], world: World) -> None:
        """Go on from `state_dict`; with another number of processes, each takes the mean of all."""
        # Older checkpoints have one count for all.
        self.counts = state.get("counts") or dict.fromkeys(state["sums"], state["steps"])
        self.sums = {}
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
            A number for each name, or a list of numbers where tensors of several elements were added; none
            where no step was taken.
        """
        counts = {name: int(count) for name, count in self.counts.items()}
        means = {name: world.mean(x / counts[name]).tolist() for name, x in self.sums.items() if counts[name]}
        seconds = (time.perf_counter() - self.started) / max(1, self.steps)
        self.sums, self.counts, self.steps, self.started = {}, {}, 0, time.perf_counter()
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
