"""Train the next-scale transformer (VAR) on token maps.

    python train_var.py --tokens-dir runs/tokens --vqvae runs/vqvae/best.pth --out-dir runs/var
    python train_var.py --tokens-dir runs/tokens --vqvae runs/vqvae/best.pth --depth 2 --steps 20  # smoke run
    torchrun --nproc-per-node 4 train_var.py ...                                                   # four GPUs

Reads <tokens-dir>/{train,val}/ from tokenize_multiscale_maps.py and the VQ-VAE that made them. Writes to
<out-dir>: ar-ckpt-best.pth (averaged weights, lowest cross-entropy on val), ar-ckpt-last.pth (everything
needed to go on), ar-ckpt-last-previous.pth (the one before it, taken when the last is damaged), log.jsonl,
settings.json, baselines.json, loss_curves.png, loss_per_scale.png and samples.png. Run the same command again
to go on; Ctrl-C saves first. No image is decoded in the loop, and the test split is not read.
"""

import copy
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from models import VAR, VQVAE
from models.helpers import scale_spans
from usvar import cli, distributed, images, plots, provenance, tokens, training
from usvar.checkpoints import is_whole, load_vqvae, read_last, restore, save_checkpoint, save_last
from usvar.errors import InputError, RunError
from usvar.files import write_json

# Settings that do not change the numbers: they may differ when a run goes on.
MAY_CHANGE = (
    "tokens_dir",
    "vqvae",
    "out_dir",
    "max_skipped_steps",
    "log_every",
    "save_every",
    "read_limit_s",
    "device",
    "samples_per_class",
    "cfg",
    "top_k",
    "top_p",
)


@dataclass(frozen=True)
class Settings:
    """The full-size recipe for one GPU: depth 6, width 384, 17 M parameters."""

    # Token maps: <tokens-dir>/{train,val,test}/tokens_multiscale_maps.npz.
    tokens_dir: Path

    # The VQ-VAE that made the tokens.
    vqvae: Path

    # Checkpoints, log and figures; a run goes on when ar-ckpt-last.pth is already here.
    out_dir: Path = Path("runs/var")

    # Transformer blocks.
    depth: int = 6

    # Width of a token inside the transformer.
    width: int = 384

    # Attention heads; must divide the width.
    heads: int = 6

    # Normalise queries and keys, with a learned scale a head.
    attn_l2_norm: bool = True

    # One adaLN layer for all blocks.
    shared_aln: bool = False

    # Dropout on embeddings and branches, 0 to 1.
    drop_rate: float = 0.0

    # Chance that an image skips the last block's branches; earlier blocks less (stochastic depth).
    drop_path_rate: float = 0.05

    # Chance that the class is hidden in training, so that guidance works when sampling.
    class_drop: float = 0.1

    # Share of the target spread over all codes, 0 to 1.
    label_smoothing: float = 0.0

    # Token maps a step, over all processes together; change the rate with it.
    batch_size: int = 64

    # Optimiser steps in all.
    steps: int = 30_000

    # Highest learning rate of AdamW.
    learning_rate: float = 3e-4

    # Share of the steps spent on linear warm-up, 0 to 1.
    warmup: float = 0.02

    # Learning rate at the last step as a share of the highest.
    final_rate: float = 0.05

    # Momenta of AdamW.
    betas: tuple[float, float] = (0.9, 0.95)

    # Decay of kernels (not of biases, gains and embeddings).
    weight_decay: float = 0.05

    # Largest norm of the gradient.
    clip: float = 2.0

    # Steps that may be left out because loss or gradient is not finite; the next such step stops the run.
    max_skipped_steps: int = 0

    # Decay of the averaged weights that are validated and kept in ar-ckpt-best.pth.
    ema_decay: float = 0.999

    # 0 draws images as often as they are, 1 all classes equally often.
    class_balance: float = 0.5

    # Steps between two log lines.
    log_every: int = 50

    # Steps between two validations with figures and samples.
    eval_every: int = 1000

    # Steps between two saves of ar-ckpt-last.pth.
    save_every: int = 1000

    # Seconds to wait for a read before the run stops and names the file.
    read_limit_s: float = 300.0

    # Images a class in samples.png.
    samples_per_class: int = 6

    # Guidance of those samples; 0 is none.
    cfg: float = 1.5

    # Codes that may be drawn at a place in those samples; 0 is all.
    top_k: int = 0

    # Probability that the codes drawn from must reach together in those samples; 0 is all.
    top_p: float = 0.95

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Forward pass: auto (bfloat16 where the device has it), float32 or bfloat16.
    precision: str = "auto"

    # Compile the network with torch.compile: slower to start, faster to run on a GPU.
    compile: bool = False

    # Seed of weights, batches, class dropout and samples.
    seed: int = 0

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return max(1, round(self.warmup * self.steps))


def check(s: Settings, train: tokens.TokenMaps, val: tokens.TokenMaps) -> None:
    """Refuse settings and splits that do not fit each other, before anything is written."""
    if s.width % s.heads:
        raise InputError(f"--width {s.width} does not divide by --heads {s.heads}: choose a multiple")
    for name in ("depth", "batch_size", "steps", "log_every", "eval_every", "save_every"):
        if getattr(s, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(s, name)} was given, wanted 1 or more")
    for name in ("class_drop", "drop_rate", "drop_path_rate", "label_smoothing", "class_balance", "top_p"):
        if not 0 <= getattr(s, name) <= 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(s, name)} was given, wanted 0 to 1")
    if not isinstance(train.made_by.get("image_size"), int):
        raise InputError(f"{train.file}: its made_by record has no image_size: tokenise again")
    if train.classes != val.classes:
        raise InputError(
            f"{val.file.parent / 'classes.json'} lists {', '.join(val.classes)}, the training split lists "
            f"{', '.join(train.classes)}: tokenise all splits from one prepared folder"
        )


def token_losses(
    logits_BLV: Tensor, idx_BL: Tensor, spans: list[tuple[int, int]], smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in nats, (S,): the mean over the tokens of each scale."""
    loss_BL = F.cross_entropy(
        logits_BLV.float().flatten(0, 1), idx_BL.flatten(), reduction="none", label_smoothing=smoothing
    ).view_as(idx_BL)
    return torch.stack([loss_BL[:, start:end].mean() for start, end in spans])


def mean_over_tokens(values_S: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """From means per scale to the mean over all tokens."""
    tokens_S = torch.tensor(
        [end - start for start, end in spans], device=values_S.device, dtype=values_S.dtype
    )
    return (values_S * tokens_S).sum() / tokens_S.sum()


@torch.no_grad()
def validate(
    s: Settings, model: VAR, vae: VQVAE, maps: tokens.TokenMaps, world: distributed.World, dtype: torch.dtype
) -> dict[str, float | list[float]]:
    """Cross-entropy and accuracy of a split per scale, over all tokens and on the last scale."""
    spans, device = scale_spans(maps.patch_nums), world.device
    sums_2S = torch.zeros(2, len(spans), dtype=torch.float64, device=device)
    own_rows = np.flatnonzero(maps.view_N == 0)
    mine = own_rows[world.rank :: world.size]
    for rows in training.batches(len(mine), s.batch_size):
        chosen = mine[rows.start : rows.stop]
        idx_BL = tokens.as_tensor(maps.idx_NL, chosen).to(device)
        label_B = torch.from_numpy(maps.label_N[chosen]).to(device)
        input_BLC = vae.quantize.idxBl_to_var_input(list(idx_BL.split([b - a for a, b in spans], dim=1)))
        with training.autocast(device, dtype):
            logits_BLV = model(label_B, input_BLC)
        hit_BL = (logits_BLV.argmax(-1) == idx_BL).float()
        accuracy_S = torch.stack([hit_BL[:, a:b].mean() for a, b in spans])
        sums_2S += torch.stack([token_losses(logits_BLV, idx_BL, spans), accuracy_S]).double() * len(chosen)
    nats_S, accuracy_S = world.sum(sums_2S) / len(own_rows)
    mean = mean_over_tokens(nats_S, spans).item()
    return {
        "val_mean": mean,
        "val_mean_bits": mean / math.log(2),
        "val_last": nats_S[-1].item(),
        "val_per_scale": nats_S.tolist(),
        "val_accuracy": mean_over_tokens(accuracy_S, spans).item(),
        "val_accuracy_per_scale": accuracy_S.tolist(),
    }


def draw_curves(s: Settings, patch_nums: tuple[int, ...], baselines: dict[str, list[float]]) -> None:
    """Figures from log.jsonl, with what frequencies alone would score as horizontal lines."""
    rows = training.read_log(s.out_dir / "log.jsonl")
    spans = scale_spans(patch_nums)
    names = {"unigram": "codes' frequencies", "class_position": "class and position frequencies"}

    def series(name: str, scale: int | None = None) -> tuple[list[float], list[float]]:
        chosen = [row for row in rows if row.get(name) is not None]
        return [r["step"] for r in chosen], [r[name] if scale is None else r[name][scale] for r in chosen]

    def heights(scale: int | None) -> dict[str, float]:
        return {
            names[key]: mean_over_tokens(torch.tensor(values), spans).item()
            if scale is None
            else values[scale]
            for key, values in baselines.items()
        }

    panels = {
        "mean cross-entropy, nats a token": {
            "train mean": series("train_mean"),
            "val mean": series("val_mean"),
        },
        "last scale, nats a token": {"train last": series("train_last"), "val last": series("val_last")},
        "share of tokens predicted right": {"val accuracy": series("val_accuracy")},
    }
    lines = dict(zip(panels, (heights(None), heights(-1)), strict=False))
    plots.curves(s.out_dir / "loss_curves.png", panels, lines, title="VAR: next-scale cross-entropy")
    per_scale = {
        f"{side} x {side}, nats a token": {
            f"{split} loss": series(f"{split}_per_scale", scale) for split in ("train", "val")
        }
        for scale, side in enumerate(patch_nums)
    }
    lines = {title: heights(scale) for scale, title in enumerate(per_scale)}
    plots.curves(s.out_dir / "loss_per_scale.png", per_scale, lines, title="VAR: cross-entropy of each scale")


@torch.no_grad()
def draw_samples(s: Settings, model: VAR, vae: VQVAE, classes: tuple[str, ...], step: int) -> None:
    """Plain samples (K = 0) of each class with the averaged weights, from fixed seeds."""
    device, rows = next(model.parameters()).device, []
    seeds = [training.step_seed(s.seed, i, 0) for i in range(s.samples_per_class)]
    for label in range(len(classes)):
        _, f_hat = model.generate_tokens(
            torch.full((len(seeds),), label, device=device),
            seeds=seeds,
            cfg=s.cfg,
            top_k=s.top_k,
            top_p=s.top_p,
        )
        rows.append(list(images.to_uint8(vae.fhat_to_img(f_hat))))
    title = f"Samples after step {step}: no prefix, guidance {s.cfg:g}, top-k {s.top_k}, top-p {s.top_p:g}"
    plots.image_grid(
        s.out_dir / "samples.png", rows, classes, [f"seed {i}" for i in range(len(seeds))], title
    )


def main(s: Settings) -> None:
    """Train, validate, save, and go on from ar-ckpt-last.pth when there is one."""
    world = distributed.start(s.device)
    device, share = world.device, world.share(s.batch_size)
    dtype = training.amp_dtype(device, s.precision)
    vqvae = load_vqvae(s.vqvae, device)
    vae: VQVAE = vqvae.model
    train, val = (
        tokens.read_token_maps_of(vqvae, s.vqvae, s.tokens_dir / split) for split in ("train", "val")
    )
    check(s, train, val)
    spans = scale_spans(train.patch_nums)
    lengths = [end - start for start, end in spans]

    inputs = {"vqvae": s.vqvae, "train_tokens": train.file, "val_tokens": val.file}
    record = provenance.made_by("train_var.py", s, inputs)
    arguments = {
        "num_classes": len(train.classes),
        "depth": s.depth,
        "embed_dim": s.width,
        "num_heads": s.heads,
        "drop_rate": s.drop_rate,
        "drop_path_rate": s.drop_path_rate,
        "cond_drop_rate": s.class_drop,
        "attn_l2_norm": s.attn_l2_norm,
        "shared_aln": s.shared_aln,
        "patch_nums": list(train.patch_nums),
    }
    config = {
        "kind": "var",
        "arguments": arguments,
        "classes": list(train.classes),
        "vqvae_sha256": vqvae.sha256,
        "image_size": train.made_by["image_size"],
    }
    last_path, best_path = s.out_dir / "ar-ckpt-last.pth", s.out_dir / "ar-ckpt-best.pth"
    last, note = read_last(last_path)
    if last:
        training.refuse_other_settings(last_path, last["made_by"], record, MAY_CHANGE)
    run = training.RunFolder(s.out_dir, record) if world.is_main else None

    torch.manual_seed(s.seed)
    model = VAR(vae_local=vae, **arguments)
    model.init_weights(init_std=math.sqrt(1 / s.width / 3))
    model = model.to(device)
    averaged = copy.deepcopy(model).requires_grad_(False).eval()
    network: nn.Module = world.wrap(model)
    if s.compile:
        network = torch.compile(network)
    optimiser = torch.optim.AdamW(
        training.decay_groups(model, s.weight_decay),
        lr=s.learning_rate,
        betas=s.betas,
        fused=device.type == "cuda",
    )
    sampler = training.BalancedSampler(train.label_N, s.class_balance, s.seed)
    meter, start, best, skipped = training.Meter(), 0, float("inf"), 0
    if last:
        restore(last_path, last, model, averaged, optimiser)
        meter.load_state_dict(last["meter"], world)
        start, best, skipped = last["step"], last["best"], last["skipped"]
        if best < float("inf") and not is_whole(best_path):
            note += f" {best_path} is missing or damaged: the next validation writes it anew"
            best = float("inf")
    if run:
        run.forget_after(start)
        if note:
            run.note(start, note.strip())
    if start >= s.steps:
        if not is_whole(best_path):
            raise InputError(
                f"{best_path} is missing or damaged, and all {s.steps} steps are done: delete "
                f"{last_path.name} to train the last steps again from the checkpoint before it"
            )
        print(f"nothing to do: {last_path} has all {s.steps} steps")
        return

    baselines = {k: v.tolist() for k, v in tokens.frequency_cross_entropies(train, val).items()}
    if run:
        write_json(s.out_dir / "baselines.json", {"nats_per_token_of_each_scale_on_val": baselines})
        means = {k: mean_over_tokens(torch.tensor(v), spans).item() for k, v in baselines.items()}
        count = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{len(train)} train and {len(val)} val token maps of {sum(lengths)} tokens in "
            f"{len(train.classes)} classes; {count:.1f} M parameters; {device}, {dtype}; "
            f"steps {start} to {s.steps}\n"
            f"to beat on val, nats a token: codes' frequencies {means['unigram']:.3f}, "
            f"class and position frequencies {means['class_position']:.3f}"
        )

    def load(step: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = sampler.batch(step, s.batch_size)[share]
        generator = training.step_generator(s.seed, training.STREAM_DROP, step)
        drop_B = torch.rand(s.batch_size, generator=generator) < s.class_drop
        return tokens.as_tensor(train.idx_NL, rows), torch.from_numpy(train.label_N[rows]), drop_B[share]

    def save(step: int) -> None:
        content = {"model": model.state_dict(), "ema": averaged.state_dict()}
        content |= {"optimiser": optimiser.state_dict(), "meter": meter.state_dict(world)}
        content |= {"step": step, "best": best, "skipped": skipped, "config": config, "made_by": record}
        if world.is_main:
            save_last(last_path, content, model, averaged)

    parameters = list(model.parameters())
    progress = tqdm(total=s.steps, initial=start, disable=not world.is_main, file=sys.stdout, mininterval=5)
    with training.StopSignal() as stop:
        for step, batch, _ in training.prefetch(load, range(start, s.steps), s.read_limit_s, train.file):
            rate = training.learning_rate(step, s.learning_rate, s.warmup_steps, s.steps, s.final_rate)
            # Dropout and stochastic depth draw from torch's own stream: seeded by step, it need not be saved.
            torch.manual_seed(training.step_seed(s.seed, training.STREAM_NETWORK, step, world.rank))
            idx_BL, label_B, drop_B = (x.to(device, non_blocking=True) for x in batch)
            network.train()
            with torch.no_grad():
                input_BLC = vae.quantize.idxBl_to_var_input(list(idx_BL.split(lengths, dim=1)))
            with training.autocast(device, dtype):
                logits_BLV = network(label_B, input_BLC, class_drop_B=drop_B)
            losses_S = token_losses(logits_BLV, idx_BL, spans, s.label_smoothing)
            loss = mean_over_tokens(losses_S, spans)
            loss.backward()
            done = step + 1
            norm, is_made = training.optimiser_step(parameters, optimiser, rate, s.clip, loss, world)
            if is_made:
                training.ema_update(averaged, model, step, s.ema_decay)
                scales = {"train_last": losses_S[-1], "train_per_scale": losses_S}
                meter.add(train_mean=loss, **scales, gradient_norm=norm)
            else:
                rows = sampler.batch(step, s.batch_size)
                batch_names = [f"{train.path_N[row]} view {train.view_N[row]}" for row in rows]
                refused = training.refuse_step(run, done, loss, norm, skipped, batch_names)
                if skipped >= s.max_skipped_steps:
                    if step > start or last is None:
                        save(step)
                    progress.close()
                    world.close()
                    raise RunError(
                        f"{refused}; {last_path} holds the weights before it; look at those files, lower "
                        f"--learning-rate in another --out-dir, or give --max-skipped-steps {skipped + 1}"
                    )
                skipped += 1
            progress.update()

            if (done % s.log_every == 0 or done == s.steps) and meter.steps:
                means, seconds = meter.read(world)
                if run:
                    run.log({"step": done, **means, "rate": rate, "seconds_per_step": seconds})
                    progress.set_postfix_str(
                        f"loss {means['train_mean']:.3f} last scale {means['train_last']:.3f} "
                        f"{s.batch_size / seconds:.1f} images/s"
                    )
            if done % s.eval_every == 0 or done == s.steps:
                scores = validate(s, averaged, vae, val, world, dtype)
                if scores["val_mean"] < best:
                    best = scores["val_mean"]
                    if run:
                        content = {"model": averaged.state_dict(), "config": config, "made_by": record}
                        save_checkpoint(best_path, {**content, "step": done, "val": scores})
                if run:
                    run.log({"step": done, **scores})
                    draw_curves(s, train.patch_nums, baselines)
                    if s.samples_per_class:
                        draw_samples(s, averaged, vae, train.classes, done)
                    progress.write(
                        f"step {done}: val cross-entropy {scores['val_mean']:.3f} nats a token, last scale "
                        f"{scores['val_last']:.3f}, right {scores['val_accuracy']:.1%}"
                    )
            stopping = world.any(stop.received is not None)
            if done % s.save_every == 0 or done == s.steps or stopping:
                save(done)
            if stopping and done < s.steps:
                progress.close()
                world.close()
                raise cli.Stopped(
                    stop.received or 2, f"step {done} is in {last_path}; the same command goes on"
                )
    progress.close()
    world.close()
    print(f"done: {best_path} (val cross-entropy {best:.3f} nats a token), figures in {s.out_dir}")


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
