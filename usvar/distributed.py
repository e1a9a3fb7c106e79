"""One process or many under `torchrun`, with the same result for the same global batch.

    torchrun --nproc-per-node 4 train_vqvae.py ...

NCCL on GPUs, gloo on CPUs. A script asks `World` for its share of the global batch and lets rank 0 write.
"""

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from usvar.errors import InputError


@dataclass(frozen=True)
class World:
    """Where this process stands among all that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def shard(self, batch: int) -> slice:
        """This process's rows of a global batch.

        Raises:
            InputError: when the batch is not divisible by the number of processes.
        """
        if batch % self.size:
            raise InputError(
                f"a batch of {batch} images is not divisible by {self.size} processes: "
                f"choose --batch-size {batch // self.size * self.size or self.size}"
            )
        local = batch // self.size
        return slice(self.rank * local, (self.rank + 1) * local)

    def wrap(self, model: nn.Module, some_unused: bool = False) -> nn.Module:
        """The model as it is, or in DistributedDataParallel when there are several processes.

        Args:
            model: on this process's device.
            some_unused: whether parameters may be left without a gradient; costs a walk over the graph.
        """
        if self.size == 1:
            return model
        # Buffers (counts of used codes) are summed over processes by the model itself.
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=some_unused)

    def mean(self, values: Tensor) -> Tensor:
        """Mean over processes; the argument stays as it is."""
        return self.sum(values) / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes, in the order of the global batch."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes; the argument stays as it is."""
        if self.size == 1:
            return values
        # A copy in plain rows, which all processes have in common: their layouts may differ.
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def take_from_main(self, values: Tensor) -> None:
        """Make the first process's values those of all, in place."""
        if self.size > 1:
            dist.broadcast(values, 0)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process: all of them must leave a loop at the same step."""
        if self.size == 1:
            return flag
        # On the CPU, so that nobody waits for a GPU.
        up = torch.tensor(float(flag))
        dist.all_reduce(up, op=dist.ReduceOp.MAX)
        return bool(up.item())

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the first process go through the block before the others do."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def close(self) -> None:
        """Leave the process group, after all have come here."""
        if self.size > 1:
            dist.barrier()
            # A thread of gloo frees the tensors of a collective after it has been answered, and needs the GIL
            # for it. The last owner of the group, the reducer of DistributedDataParallel, holds the GIL while
            # it joins those threads. The pause lets them finish, else both would wait for ever.
            time.sleep(0.2)
            dist.destroy_process_group()


def sum_gradients(network: nn.Module, now: bool) -> contextlib.AbstractContextManager:
    """Whether the backward pass in this block ends with the sum over processes: once a batch is enough.

    Args:
        network: what `World.wrap` returned, compiled or not.
        now: True for the last piece of a batch.
    """
    waits = hasattr(network, "no_sync") and not now
    return network.no_sync() if waits else contextlib.nullcontext()


def set_up_gpu() -> None:
    """Set how a GPU multiplies and convolves in this process.

    What is to be float32, such as the quantiser, is not rounded to TF32's 10 bits, even where the environment
    asks for that, and cuDNN tries its kernels once for each shape: there are few shapes, so that pays.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def keep_freed_memory() -> None:
    """Have the C library keep what tensors free on a CPU for the next batch, as PyTorch does on a GPU.

    glibc gives large blocks back to the system, which clears every page anew when the next batch asks for it:
    nearly half the time of a VQ-VAE's step at 256 x 256, and of tokenising. The price is up to a quarter more
    memory, for blocks of different sizes leave gaps. Without glibc nothing is changed.
    """
    c_library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(c_library, "mallopt"):
        # malloc.h: blocks below 1 GB come from the heap, whose free end is never given back.
        trim_threshold, mmap_threshold = -1, -3
        c_library.mallopt(mmap_threshold, 2**30)
        c_library.mallopt(trim_threshold, -1)


def choose_device(device: str = "auto") -> torch.device:
    """The device that this process runs on, set up for networks; all that a script of one process needs.

    Args:
        device: "auto" (a GPU if there is one), "cpu", "cuda" (the GPU of this process) or "cuda:1".

    Raises:
        InputError: for a device that this machine does not have.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"--device {device} is not a device, wanted auto, cpu or cuda") from error
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"--device {device} was given, wanted auto, cpu or cuda")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(f"--device {device} was asked for, but torch sees no GPU here: use --device cpu")
        local = int(os.environ.get("LOCAL_RANK", "0")) if chosen.index is None else chosen.index
        if local >= torch.cuda.device_count():
            raise InputError(
                f"--device {device} was asked for, which is GPU {local}, but torch sees "
                f"{torch.cuda.device_count()} here, counted from 0: choose one of these"
            )
        torch.cuda.set_device(local)
        chosen = torch.device("cuda", local)
        set_up_gpu()
    else:
        keep_freed_memory()
    return chosen


def start(device: str = "auto") -> World:
    """Join the other processes if `torchrun` started this one, and choose the device.

    Args:
        device: see `choose_device`.

    Raises:
        InputError: for a device that this machine does not have.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = choose_device(device)
    if size > 1:
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        # The others wait while the first process decodes a large data set, or draws figures.
        dist.init_process_group(backend, timeout=timedelta(hours=12), rank=rank, world_size=size)
    return World(rank, size, chosen)
