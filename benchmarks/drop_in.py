"""Runs one checkout's VAR package on request, for the benchmarks that compare two of them.

    python benchmarks/drop_in.py <root>   # one request a line on stdin, one answer a line on stdout, as JSON

Both packages are called `models`, so each lives in a process of its own, with `root` first on its path. This
file is the same for both: it calls what the published package and its drop-in have in common, and on request
our optimiser and our use of memory. A request is "build" or a method of Package that takes one; in the answer
"wall_s", "cpu_s" (user and system time of all threads) and "peak_mb" (above what was held before) are of the
work alone.
"""

import ctypes
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file


def clock(device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def memory_mb(device: torch.device, reset: bool = False) -> float:
    """Peak of the device's memory, or of the process on a CPU; set back to what is held now on request."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e6
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    rows = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(rows["VmHWM"].split()[0]) * 1024 / 1e6


def our_muon(model: torch.nn.Module, rate: float, dtype: torch.dtype) -> torch.optim.Optimizer:
    """The optimiser of our train_var.py, which the published package does not have."""
    from usvar.muon import Muon, layers_for_muon
    from usvar.training import decay_groups

    return Muon(decay_groups(model, 0.05, rate, layers_for_muon(model)), 1e-4, (0.9, 0.95), dtype)


def keep_freed_memory() -> None:
    """As all our scripts do on a CPU, and the published ones do not."""
    from usvar import distributed

    distributed.keep_freed_memory()


class Package:
    """The two networks of a checkout, with the weights of a file."""

    def __init__(self, request: dict[str, Any]) -> None:
        from models.var import VAR
        from models.vqvae import VQVAE

        self.device = torch.device(request["device"])
        if request["keep_freed_memory"] and self.device.type == "cpu":
            keep_freed_memory()
        # The same for both, and as our scripts have it.
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
        self.dtype = getattr(torch, request["dtype"])
        self.vae = VQVAE(**request["vqvae"], test_mode=True).to(self.device)
        self.var = VAR(vae_local=self.vae, **request["var"]).to(self.device)
        state = load_file(request["weights"])
        for name, model in (("vae.", self.vae), ("var.", self.var)):
            own = {key.removeprefix(name): value for key, value in state.items() if key.startswith(name)}
            model.load_state_dict(own, strict=True)
        self.optimiser = torch.optim.AdamW(self.var.parameters(), lr=1e-4, fused=self.device.type == "cuda")
        self.muon: torch.optim.Optimizer | None = None

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def tokens(self, request: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The same labels and random token maps in every process."""
        stream = torch.Generator().manual_seed(request["seed"])
        label_B = torch.arange(request["batch"]) % self.var.num_classes
        idx_BL = torch.randint(self.vae.vocab_size, (request["batch"], self.var.L), generator=stream)
        return label_B.to(self.device), idx_BL.to(self.device)

    def forward(self, label_B: torch.Tensor, idx_BL: torch.Tensor) -> torch.Tensor:
        lengths = [side * side for side in self.var.patch_nums]
        with torch.no_grad():
            input_BLC = self.vae.quantize.idxBl_to_var_input(list(idx_BL.split(lengths, dim=1)))
        with self.autocast():
            return self.var(label_B, input_BLC)

    def save(self, request: dict[str, Any]) -> None:
        """All weights, to a file."""
        state = {f"vae.{key}": value for key, value in self.vae.state_dict().items()}
        state |= {f"var.{key}": value for key, value in self.var.state_dict().items()}
        save_file({key: value.cpu().contiguous() for key, value in state.items()}, request["file"])

    def logits(self, request: dict[str, Any]) -> None:
        """Teacher-forced logits, to a file."""
        self.var.eval().cond_drop_rate = 0.0
        with torch.no_grad():
            save_file({"logits_BLV": self.forward(*self.tokens(request)).cpu()}, request["file"])

    def sample(self, request: dict[str, Any]) -> None:
        """Images, to a file where one is named."""
        self.var.eval()
        label_B = torch.arange(request["batch"], device=self.device) % self.var.num_classes
        with torch.inference_mode(), self.autocast():
            image_B3HW = self.var.autoregressive_infer_cfg(
                B=request["batch"], label_B=label_B, g_seed=request["seed"], **request["sampling"]
            )
        if "file" in request:
            save_file({"image_B3HW": image_B3HW.float().cpu().contiguous()}, request["file"])

    def decode(self, request: dict[str, Any]) -> None:
        """Images of random quantised maps."""
        side, stream = self.var.patch_nums[-1], torch.Generator().manual_seed(request["seed"])
        f_hat = torch.randn(request["batch"], self.vae.Cvae, side, side, generator=stream).to(self.device)
        with torch.inference_mode(), self.autocast():
            self.vae.fhat_to_img(f_hat)

    def step(self, request: dict[str, Any]) -> None:
        """One optimiser step on token maps; with "encode", the tokens come from images first.

        With "muon_rate" it is one of our Muon, else of AdamW, as the published trainer takes it.
        """
        optimiser = self.optimiser
        if "muon_rate" in request:
            optimiser = self.muon = self.muon or our_muon(self.var, request["muon_rate"], self.dtype)
        self.var.train().cond_drop_rate = 0.1
        label_B, idx_BL = self.tokens(request)
        if request.get("encode"):
            size = self.var.patch_nums[-1] * 16
            stream = torch.Generator().manual_seed(request["seed"])
            image_B3HW = torch.rand(request["batch"], 3, size, size, generator=stream) * 2 - 1
            # In float32, as the published trainer does it: its quantiser mixes no precisions.
            with torch.no_grad():
                idx_BL = torch.cat(self.vae.img_to_idxBl(image_B3HW.to(self.device)), dim=1)
        loss = F.cross_entropy(self.forward(label_B, idx_BL).flatten(0, 1), idx_BL.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.var.parameters(), 2.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    package: Package | None = None
    # What a package prints must not mix with the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "build":
            package = Package(request)
            answer = {}
        else:
            if request.get("memory") and package.device.type == "cpu":
                # Or the peak is hidden in freed memory that the C library keeps.
                ctypes.CDLL(None).malloc_trim(0)
            start_mb = memory_mb(package.device, reset=True)
            wall, cpu = clock(package.device)
            getattr(package, request["do"])(request)
            now_wall, now_cpu = clock(package.device)
            peak_mb = max(0.0, memory_mb(package.device) - start_mb)
            answer = {"wall_s": now_wall - wall, "cpu_s": now_cpu - cpu, "peak_mb": peak_mb}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
