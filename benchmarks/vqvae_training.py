"""Time, memory and waiting for data of the VQ-VAE's training step: each speed-up off and on.

    python benchmarks/vqvae_training.py                                # full size, a GPU
    python benchmarks/vqvae_training.py --compile True --adversarial True
    python benchmarks/vqvae_training.py --patch-nums 1 2 3 4 --ch 32 --batch-size 4 --repeats 2 --steps 2

The last is 64 x 64 pixels, two minutes of a core. A step is `backward` of train_vqvae.py, its clipping,
optimiser and averaged weights. The first rows are of the network, on images that lie on the device: float32,
channels first and eager, beside the same with one thing changed. The others are of what brings the images
there, for the step as train_vqvae.py makes it on this device: files decoded in every step, between the steps,
and augmented one by one on the CPU, beside the same with one thing changed. Both ways of a row run in turn;
that the loss, in float32 also its gradient, is the same up to rounding is checked first. The pictures are
noise.

Prints images per second, how many times as fast, the memory of a step beside what lasts (weights, their
average, the optimiser) and which share of the time it waited for data. Writes vqvae_training.json to
<out-dir>.
"""

import copy
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# A script's own folder is on the path, the repository's root is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_vqvae
from benchmarks.measure import Pair, as_record, chosen_rows, cost_of, measure, summary
from models import VQVAE
from models.basic_vae import Level
from models.discriminator import PatchDiscriminator
from usvar import checks, cli, distributed, images, training
from usvar.augment import augment, draw_parameters
from usvar.codebook import latent_maps, start_codebook
from usvar.distributed import World
from usvar.files import write_json
from usvar.muon import Muon

# How far loss and gradient (by norm) may differ in float32. More than the rounding of sums: where two codes
# are nearly as near, the other one may be looked up.
LOSS_BOUND, GRADIENT_BOUND = 1e-3, 0.03
# In bfloat16 so many other codes are looked up that the gradient is another one: of an untrained network's
# 0.7 of its norm was measured. So the loss alone must agree.
BFLOAT16_LOSS_BOUND = 0.03

# Rows of the data: what a Feed does that is off and on.
ALL_OF_TRAINER = {"decoded_once": True, "read_ahead": True, "augmented_together": True}
DATA_WAYS: dict[str, tuple[dict[str, bool], dict[str, bool]]] = {
    "decoded once": ({}, {"decoded_once": True}),
    "read ahead": ({}, {"read_ahead": True}),
    "augmented together": ({}, {"augmented_together": True}),
    "data as train_vqvae.py": ({}, ALL_OF_TRAINER),
    "from there to all on the device": (ALL_OF_TRAINER, ALL_OF_TRAINER | {"on_device": True}),
}


@dataclass(frozen=True)
class Settings:
    """The full-size recipe of train_vqvae.py."""

    # The table as JSON.
    out_dir: Path = Path("runs/benchmarks")

    # Rows of the table, or all.
    rows: tuple[str, ...] = ("all",)

    # Width of the first layers, a multiple of 32.
    ch: int = train_vqvae.Settings.ch

    # Codes.
    vocab_size: int = train_vqvae.Settings.vocab_size

    # Tokens per side of each scale; the last is the image's side in pixels / 16.
    patch_nums: tuple[int, ...] = train_vqvae.Settings.patch_nums

    # Images per step.
    batch_size: int = train_vqvae.Settings.batch_size

    # Pieces of a batch, in the row that has pieces.
    accumulate: int = 2

    # Steps with the discriminator, as in the second half of a training.
    adversarial: bool = False

    # Also measure torch.compile: minutes of compiling.
    compile: bool = False

    # Steps that are timed together where data are waited for.
    steps: int = 10

    # Times that each way is measured, after one that is not counted.
    repeats: int = 5

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"


def trainer_settings(s: Settings, **changes: Any) -> train_vqvae.Settings:
    """Settings of train_vqvae.py for these sizes, in float32 unless `changes` says otherwise."""
    sizes = {"ch": s.ch, "vocab_size": s.vocab_size, "patch_nums": s.patch_nums, "batch_size": s.batch_size}
    return train_vqvae.Settings(data_root=Path(), **sizes, **{"precision": "float32", **changes})


class Step:
    """A training step of a model of its own, set up as train_vqvae.py does.

    Args:
        s: sizes.
        start: its weights.
        world: the device.
        layout: of networks and images.
        changes: see `trainer_settings`.
    """

    def __init__(
        self,
        s: Settings,
        start: VQVAE,
        world: World,
        layout: torch.memory_format = torch.contiguous_format,
        **changes: Any,
    ) -> None:
        self.settings, self.world, self.layout = trainer_settings(s, **changes), world, layout
        self.dtype = training.amp_dtype(world.device, self.settings.precision)
        self.model = copy.deepcopy(start).to(memory_format=layout)
        for module in self.model.modules():
            if isinstance(module, Level):
                module.recompute = self.settings.recompute
        self.averaged = copy.deepcopy(self.model).requires_grad_(False).eval()
        if self.settings.compile:
            self.model.compile_levels()
        groups = training.decay_groups(self.model, self.settings.weight_decay, self.settings.muon_rate)
        self.discriminator = None
        if s.adversarial:
            self.discriminator = PatchDiscriminator(s.ch).to(world.device, memory_format=layout)
            groups += train_vqvae.discriminator_groups(self.settings, self.discriminator)
        self.optimiser = Muon(groups, self.settings.learning_rate, self.settings.betas, self.dtype)
        self.guard = training.StepGuard(self.model.parameters(), self.optimiser, self.settings.clip, world)

    def backward(self, image_B3HW: Tensor, discriminator: PatchDiscriminator | None) -> Tensor:
        """Total loss per pixel value, with gradients in the model."""
        self.model.train()
        image_B3HW = image_B3HW.contiguous(memory_format=self.layout)
        numbers = train_vqvae.backward(
            self.settings, self.model, self.model, discriminator, None, image_B3HW, self.world, self.dtype
        )
        return numbers["train_total"] / image_B3HW[0].numel()

    def run(self, image_B3HW: Tensor) -> None:
        """The whole step."""
        loss = self.backward(image_B3HW, self.discriminator)
        _, is_taken = self.guard.step(0, self.settings.learning_rate, loss)
        training.ema_update(self.averaged, self.model, 0, self.settings.ema_decay, is_taken)

    def loss_and_gradient(self, image_B3HW: Tensor) -> tuple[float, Tensor]:
        """Both, all gradients in one vector, without the discriminator: its weight is each piece's own."""
        loss = self.backward(image_B3HW, None)
        gradient = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
        self.optimiser.zero_grad(set_to_none=True)
        return float(loss), gradient.double()

    def lasting_mb(self) -> float:
        """Memory of what lasts from step to step, in MB."""
        lasting = [*self.guard.parameters, *self.averaged.parameters()]
        lasting += self.discriminator.parameters() if self.discriminator else []
        lasting += [tensor for state in self.optimiser.state.values() for tensor in state.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in lasting) / 1e6


class Feed:
    """Steps in a row, and what brings them their images.

    Args:
        step: made on each batch.
        files: the pictures.
        grey_NHW: the same as `images.decoded` leaves them on the disk.
        decoded_once: read them from there, not from the files.
        read_ahead: in a thread, during the step before.
        augmented_together: the whole batch on the device, not image by image on the CPU.
        on_device: all pictures lie on the device, which train_vqvae.py does not ask for: what would it bring?
    """

    def __init__(
        self,
        step: Step,
        files: images.ImageFiles,
        grey_NHW: np.ndarray,
        decoded_once: bool = False,
        read_ahead: bool = False,
        augmented_together: bool = False,
        on_device: bool = False,
    ) -> None:
        self.step, self.files, self.grey_NHW, self.device = step, files, grey_NHW, step.world.device
        self.decoded_once, self.augmented_together = decoded_once, augmented_together
        self.resident_NHW = torch.from_numpy(np.array(grey_NHW)).to(self.device) if on_device else None
        self.sampler = training.BalancedSampler(files.label_N, 0.0, 0)
        # Goes on from call to call, because the batch after the last of a call is being read already.
        numbers = range(10**9)
        if read_ahead:
            self.batches = training.prefetch(self.load, numbers, images.READ_LIMIT_S, files.root)
        else:
            self.batches = self._one_by_one(numbers)
        self.waiting_shares: list[float] = []

    def load(self, number: int) -> tuple[Tensor, ...]:
        """What the CPU does for the batch of a step: images, and how they are still to be augmented."""
        batch = self.step.settings.batch_size
        rows = self.sampler.batch(number, batch)
        generator = training.step_generator(0, training.STREAM_AUGMENT, number)
        parameters_B4 = draw_parameters(batch, generator)
        if self.resident_NHW is not None:
            return self.resident_NHW[torch.from_numpy(rows).to(self.device)], parameters_B4
        if self.decoded_once:
            grey_BHW = np.stack([self.grey_NHW[row] for row in rows])
        else:
            grey_BHW = images.read_images(self.files, rows, self.grey_NHW.shape[1])
        if self.augmented_together:
            return training.pinned((torch.from_numpy(grey_BHW), parameters_B4), self.device)
        image_B1HW = images.to_model_range(grey_BHW)[:, :1]
        augmented = [augment(image_B1HW[[i]], parameters_B4[[i]]) for i in range(batch)]
        return training.pinned((torch.cat(augmented),), self.device)

    def to_device(self, image: Tensor, parameters_B4: Tensor | None = None) -> Tensor:
        """The batch as the step takes it, (B, 3, H, W), from what `load` gave."""
        if parameters_B4 is None:
            image_B1HW = image.to(self.device, non_blocking=True)
        else:
            image_B1HW = images.to_model_range(image, self.device)[:, :1]
            image_B1HW = augment(image_B1HW, parameters_B4.to(self.device, non_blocking=True))
        return image_B1HW.expand(-1, 3, -1, -1)

    def run(self, steps: int) -> None:
        """Steps in a row; how much of their time was waiting is written down."""
        started, waited_s = time.perf_counter(), 0.0
        for _, loaded, seconds in itertools.islice(self.batches, steps):
            self.step.run(self.to_device(*loaded))
            waited_s += seconds
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.waiting_shares.append(waited_s / (time.perf_counter() - started))

    def _one_by_one(self, numbers: range) -> Iterator[tuple[int, tuple[Tensor, ...], float]]:
        for number in numbers:
            started = time.perf_counter()
            yield number, self.load(number), time.perf_counter() - started


def check_equal(
    name: str, slow: tuple[float, Tensor], fast: tuple[float, Tensor], dtype: torch.dtype
) -> dict[str, float]:
    """How far loss and gradient of a way differ from the base's; beyond the bounds the benchmark ends."""
    loss_error = abs(slow[0] - fast[0]) / abs(slow[0])
    gradient_error = float((slow[1] - fast[1]).norm() / slow[1].norm())
    is_float32 = dtype == torch.float32
    loss_bound = LOSS_BOUND if is_float32 else BFLOAT16_LOSS_BOUND
    if not loss_error <= loss_bound or (is_float32 and not gradient_error <= GRADIENT_BOUND):
        raise SystemExit(
            f"FAILED: {name} changes the loss by {loss_error:.1e}, allowed {loss_bound:g}, and the gradient "
            f"by {gradient_error:.1e} of its norm, allowed {GRADIENT_BOUND:g} in float32"
        )
    return {"loss_error": loss_error, "loss_bound": loss_bound, "gradient_error": gradient_error}


def pair_of(name: str, slow: Callable[[], None], fast: Callable[[], None], device: torch.device) -> Pair:
    """Two calls to be measured in turn."""
    return Pair(name, *(lambda memory, work=work: cost_of(work, device, memory) for work in (slow, fast)))


def network_ways(s: Settings, device: torch.device) -> dict[str, dict[str, Any]]:
    """Rows of the network: what each changes in a Step, train_vqvae.py's own choice for this device last."""
    by_itself = {"layout": training.image_layout(device), "precision": "auto"}
    ways: dict[str, dict[str, Any]] = {"channels last": {"layout": torch.channels_last}}
    if training.amp_dtype(device, "auto") == torch.bfloat16:  # elsewhere it takes ten times the time
        ways["bfloat16"] = {"precision": "bfloat16"}
    if s.compile:
        ways["compiled"] = {"compile": True}
    ways["activations made again"] = {"recompute": True}
    ways[f"batch in {s.accumulate} pieces"] = {"accumulate": s.accumulate}
    ways["network as train_vqvae.py by itself"] = by_itself
    if s.compile:
        ways["network as train_vqvae.py, compiled"] = by_itself | {"compile": True}
    return ways


def network_pairs(
    base: Step, steps: dict[str, Step], image_B3HW: Tensor
) -> tuple[list[Pair], dict[str, dict[str, float]]]:
    """Each speed-up of the network off and on; and by row, how equal the numbers are."""
    wanted = base.loss_and_gradient(image_B3HW)
    pairs, equal = [], {}
    for name, step in steps.items():
        equal[name] = check_equal(name, wanted, step.loss_and_gradient(image_B3HW), step.dtype)
        runs = (lambda step=step: step.run(image_B3HW) for step in (base, step))
        pairs.append(pair_of(name, *runs, base.world.device))
    return pairs, equal


def data_pairs(feeds: dict[str, list[Feed]], steps: int) -> tuple[list[Pair], dict[str, dict[str, float]]]:
    """The same of the data."""
    pairs, equal = [], {}
    for name, both in feeds.items():
        step = both[0].step
        numbers = (step.loss_and_gradient(feed.to_device(*feed.load(0))) for feed in both)
        equal[name] = check_equal(name, *numbers, step.dtype)
        pairs.append(pair_of(name, *(lambda feed=feed: feed.run(steps) for feed in both), step.world.device))
    return pairs, equal


def make_pictures(root: Path, side: int, count: int) -> images.ImageFiles:
    """Noise as prepared pictures."""
    stream = np.random.default_rng(0)
    for i in range(count):
        picture_HW = stream.integers(0, 256, (side, side), dtype=np.uint8)
        images.save_png(root / "train" / "Noise" / f"made__{i}.png", picture_HW)
    return images.find_images(root, "train", images.find_classes(root))


def main(s: Settings) -> None:
    """Both kinds of rows, a table, a file."""
    world = distributed.start(s.device)
    side = 16 * s.patch_nums[-1] if s.patch_nums else 0
    trainer = trainer_settings(s, accumulate=s.accumulate)
    train_vqvae.check(trainer, side)
    checks.require(s, "1 or more", "steps", "repeats")
    ways = network_ways(s, world.device)
    chosen = chosen_rows(s.rows, (*ways, *DATA_WAYS))
    torch.manual_seed(0)
    start = VQVAE(s.vocab_size, trainer.z_channels, s.ch, v_patch_nums=s.patch_nums, test_mode=False)
    start.to(world.device)
    with tempfile.TemporaryDirectory() as folder:
        files = make_pictures(Path(folder), side, 4 * s.batch_size)
        grey_NHW = images.decoded(files, side, Path(folder) / "cache")
        image_B3HW = images.to_model_range(grey_NHW[: s.batch_size], world.device)
        start_codebook(start, latent_maps(start, image_B3HW, world), 0)
        base = Step(s, start, world)
        steps = {name: Step(s, start, world, **ways[name]) for name in chosen if name in ways}
        pairs, equal = network_pairs(base, steps, image_B3HW)
        step = Step(s, start, world, layout=training.image_layout(world.device), precision="auto")
        feeds = {
            name: [Feed(step, files, grey_NHW, **way) for way in DATA_WAYS[name]]
            for name in chosen
            if name in DATA_WAYS
        }
        of_data, equal_data = data_pairs(feeds, s.steps)
        measure(pairs + of_data, s.repeats)
    lasting_mb = (base if steps else step).lasting_mb()
    rows = summary(pairs + of_data)
    for name, row in rows.items():
        row |= (equal | equal_data)[name]
        for way, feed in zip(("slow", "fast"), feeds.get(name, (None, None)), strict=True):
            count = s.batch_size * (s.steps if feed else 1)
            row[way]["images_per_s"] = count / row[way]["wall_s"]
            row[way]["waiting_share"] = statistics.median(feed.waiting_shares) if feed else None
    report(rows, lasting_mb)
    record = as_record(s, "benchmarks/vqvae_training.py", {})
    content = {"made_by": record, "ways": ["off", "on"], "lasting_mb": lasting_mb, "rows": rows}
    write_json(s.out_dir / "vqvae_training.json", content)
    print(f"see {s.out_dir / 'vqvae_training.json'}")


def report(rows: dict[str, dict[str, Any]], lasting_mb: float) -> None:
    """Print a line per row, each speed-up off and on."""
    width = max(map(len, rows))
    print(f"{'':{width}}      images/s     times as fast    MB of a step       waiting  loss differs")
    print(f"{'':{width}}     off      on    wall    CPU      off      on     off     on  by, allowed")
    for name, row in rows.items():
        slow, fast, ratio = row["slow"], row["fast"], row["ratio"]
        shares = [way["waiting_share"] for way in (slow, fast)]
        waiting = " ".join("      " if share is None else f"{share:6.1%}" for share in shares)
        print(
            f"{name:{width}} {slow['images_per_s']:7.2f} {fast['images_per_s']:7.2f}  "
            f"{ratio['wall_s']:6.2f} {ratio['cpu_s']:6.2f}  {slow['peak_mb']:7.0f} {fast['peak_mb']:7.0f}  "
            f"{waiting}  {row['loss_error']:.0e} {row['loss_bound']:.0e}"
        )
    print(f"weights, their average and the optimiser: {lasting_mb:.0f} MB more")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
