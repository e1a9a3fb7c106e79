"""Train the next-scale transformer (VAR) on token maps.

    python train_var.py --tokens-dir runs/tokens --vqvae runs/vqvae/best.pth --out-dir runs/var
    python train_var.py --tokens-dir runs/tokens --vqvae runs/vqvae/best.pth --depth 2 --steps 20  # smoke run
    torchrun --nproc-per-node 4 train_var.py ...                                                   # four GPUs

Reads <tokens-dir>/{train,val}/ from tokenize_multiscale_maps.py and the VQ-VAE that made them. Writes to
<out-dir>: ar-ckpt-best.pth (averaged weights, lowest cross-entropy on val), ar-ckpt-last.pth (everything
needed to go on), ar-ckpt-last-previous.pth (the one before it, taken when the last is damaged), log.jsonl,
settings.json, baselines.json, loss_curves.png, {loss,accuracy}_per_scale.png, samples.png, and samples.png
of each validation as progress/samples_<step>.png. Run the same command again to resume; Ctrl-C saves first.
No image is decoded in the loop, and the test split is not read.
"""

import copy
import functools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models import VAR, VQVAE
from models.helpers import image_seeds, scale_spans, split_scales
from usvar import checks, cli, distributed, images, plots, provenance, runs, signals, tokens, training
from usvar.checkpoints import load_vqvae, restore, save_checkpoint, save_last
from usvar.chosen import Drawing
from usvar.errors import InputError
from usvar.files import write_json
from usvar.muon import Muon, layers_for_muon
from usvar.var_figures import draw_curves

# Settings that do not change the numbers: they may differ when a run goes on.
MAY_CHANGE = (
    "tokens_dir",
    "vqvae",
    "out_dir",
    "patience",
    "max_skipped_steps",
    "log_every",
    "save_every",
    "tensorboard",
    "read_limit_s",
    "device",
    "samples_per_class",
    "cfg",
    "top_k",
    "top_p",
)

# What a checkpoint of this script holds beside usvar.checkpoints.RESUME_STATE.
MORE_STATE = {"stale": ("count of validations without a new best", int)}


@dataclass(frozen=True)
class Settings:
    """The full-size recipe for one GPU: depth 6, width 384, 17 M parameters."""

    # Token maps: <tokens-dir>/{train,val,test}/tokens_multiscale_maps.npz.
    tokens_dir: Path

    # The VQ-VAE that made the tokens.
    vqvae: Path

    # Checkpoints, log and figures; a run resumes when ar-ckpt-last.pth is already here.
    out_dir: Path = Path("runs/var")

    # Transformer blocks.
    depth: int = 6

    # Width of a token inside the transformer.
    width: int = 384

    # Attention heads; must divide the width.
    heads: int = 6

    # L2-normalise queries and keys, with a learned scale per head.
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

    # Token maps per step, over all processes together; change the rate with it.
    batch_size: int = 64

    # Pieces in which each process works through its part of a batch; the same result up to rounding.
    accumulate: int = 1

    # Activation checkpointing: compute blocks again in the backward pass; less memory, slower.
    recompute: bool = False

    # Tokens whose logits are held at once: less memory, the same result up to rounding; 0 is all.
    head_chunk: int = 0

    # Optimiser steps in all.
    steps: int = 30_000

    # Validations in a row without a lower cross-entropy after which training stops early; 0 never does.
    patience: int = 0

    # Peak learning rate.
    learning_rate: float = 1e-3

    # Muon trains the matrices of attention and feed-forward layers; the size of its updates as a multiple of
    # AdamW's; 0: AdamW trains all.
    muon_rate: float = 8.0

    # Share of the steps spent on linear warm-up, 0 to 1.
    warmup: float = 0.02

    # Learning rate at the last step as a share of the peak.
    final_rate: float = 0.05

    # AdamW's betas; it trains adaptive norms, embeddings, head, biases and gains.
    betas: tuple[float, float] = (0.9, 0.95)

    # Weight decay of kernels (not of biases, gains and embeddings).
    weight_decay: float = 0.05

    # Largest norm of the gradient.
    clip: float = 2.0

    # Steps that may be skipped because loss or gradient is not finite; the next such step stops the run.
    max_skipped_steps: int = 0

    # Decay of the averaged weights that are validated and kept in ar-ckpt-best.pth.
    ema_decay: float = 0.999

    # 0: classes in proportion to their images, 1: all classes equally often.
    class_balance: float = 0.5

    # Steps between two log lines.
    log_every: int = 50

    # Steps between two validations with figures and samples.
    eval_every: int = 1000

    # Steps between two saves of ar-ckpt-last.pth.
    save_every: int = 1000

    # Seconds to wait for a read before the run stops and names the file.
    read_limit_s: float = 300.0

    # Images per class in samples.png.
    samples_per_class: int = 6

    # Strength of class guidance of the samples in samples.png; it grows with the scale; 0: none.
    cfg: float = 1.5

    # Draw the samples in samples.png only from this many most likely codes; 0: from all.
    top_k: int = 0

    # Draw the samples in samples.png only from the most likely codes whose probabilities add
    # up to this, 0 to 1; 0: from all.
    top_p: float = 0.95

    # Also write the numbers of log.jsonl for TensorBoard, to <out-dir>/tensorboard.
    tensorboard: bool = False

    # auto (a GPU if there is one), cpu, cuda or cuda:1.
    device: str = "auto"

    # Forward pass: auto (bfloat16 where that is faster), float32 or bfloat16.
    precision: training.Precision = "auto"

    # Compile the network with torch.compile: slower to start, faster to run on a GPU.
    compile: bool = False

    # Seed of weights, batches, class dropout and samples.
    seed: int = 0

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return max(1, round(self.warmup * self.steps))

    @property
    def drawing(self) -> Drawing:
        """How the samples in samples.png are drawn; guidance needs the "no class" that dropout teaches."""
        return Drawing(self.cfg if self.class_drop else 0.0, self.top_k, self.top_p, temperature=1.0)


def check(s: Settings, train: tokens.TokenMaps, val: tokens.TokenMaps, processes: int) -> None:
    """Refuse settings and splits that do not fit each other, before anything is written.

    Args:
        s: what was given.
        train, val: the token maps of the two splits.
        processes: how many share a batch.

    Raises:
        InputError: names the flag or the file.
    """
    checks.require(s, "1 or more", "width", "heads", "depth")
    if s.width % s.heads:
        raise InputError(f"--width {s.width} is not divisible by --heads {s.heads}: choose a multiple")
    s.drawing.check()
    checks.require(s, "0 or more", "head_chunk", "patience", "samples_per_class")
    checks.require(s, "0 to 1", "class_drop", "label_smoothing")
    checks.require(s, "0 to below 1", "drop_rate", "drop_path_rate")
    training.check_shared(s, processes)
    if not isinstance(train.made_by.get("image_size"), int):
        raise InputError(f"{train.file}: its made_by record has no image_size: tokenise again")
    tokens.require_same_classes(train, val)


def scale_means(values_BL: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The mean over the tokens of each scale, (S,)."""
    return torch.stack([values_BL[:, start:end].float().mean() for start, end in spans])


@functools.cache
def token_shares(spans: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Share of each scale in the tokens, (S,); made once, because a copy to a GPU waits for it."""
    return torch.tensor([(end - start) / spans[-1][1] for start, end in spans], device=device)


def mean_over_tokens(values_S: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """From means per scale to the mean over all tokens."""
    return (values_S * token_shares(tuple(spans), values_S.device)).sum()


def backward(
    s: Settings,
    network: nn.Module,
    vae: VQVAE,
    batch: Sequence[Tensor],
    spans: Sequence[tuple[int, int]],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of this process's part of a batch, piece by piece.

    Args:
        s, network, vae: settings, the transformer and the VQ-VAE with the codebook.
        batch: tokens (B, L), classes (B,), whether the class is hidden (B,), and which branches are skipped
            (B, depth, 2).
        spans: of the scales.
        dtype: of the forward pass.

    Returns:
        The loss, and (S,) cross-entropy in nats and (S,) share of hits, without gradient.
    """
    pieces = list(zip(*(x.chunk(s.accumulate) for x in batch), strict=True))
    loss, seen_2S = 0.0, 0.0
    for i, (idx_BL, label_B, drop_B, path_drop_BN2) in enumerate(pieces):
        with distributed.sum_gradients(network, now=i + 1 == len(pieces)):
            with torch.no_grad():
                input_BLC = vae.quantize.idxBl_to_var_input(split_scales(idx_BL, vae.quantize.v_patch_nums))
            with training.autocast(idx_BL.device, dtype):
                loss_BL, nats_BL, correct_BL = network(
                    label_B,
                    input_BLC,
                    class_drop_B=drop_B,
                    target_BL=idx_BL,
                    label_smoothing=s.label_smoothing,
                    chunk=s.head_chunk,
                    path_drop_BN2=path_drop_BN2,
                )
            piece_loss = mean_over_tokens(scale_means(loss_BL, spans), spans) / len(pieces)
            piece_loss.backward()
        loss = loss + piece_loss.detach()
        seen_2S = seen_2S + torch.stack([scale_means(x, spans) for x in (nats_BL, correct_BL)]) / len(pieces)
    return loss, *seen_2S


@torch.no_grad()
def validate(
    s: Settings, model: VAR, vae: VQVAE, maps: tokens.TokenMaps, world: distributed.World, dtype: torch.dtype
) -> dict[str, float | list[float]]:
    """Cross-entropy and accuracy of a split per scale, over all tokens and on the last scale."""
    spans, device = scale_spans(maps.patch_nums), world.device
    sums_2S = torch.zeros(2, len(spans), dtype=torch.float64, device=device)
    original_rows = maps.original_rows
    mine = original_rows[world.rank :: world.size]
    for rows in training.batches(mine, training.validation_batch(s, world)):
        idx_BL = tokens.as_tensor(maps.idx_NL, rows).to(device)
        label_B = torch.from_numpy(maps.label_N[rows]).to(device)
        input_BLC = vae.quantize.idxBl_to_var_input(split_scales(idx_BL, maps.patch_nums))
        with training.autocast(device, dtype):
            _, nats_BL, correct_BL = model(label_B, input_BLC, target_BL=idx_BL, chunk=s.head_chunk)
        sums_2S += torch.stack([scale_means(x, spans) for x in (nats_BL, correct_BL)]).double() * len(rows)
    nats_S, accuracy_S = world.sum(sums_2S) / len(original_rows)
    mean = mean_over_tokens(nats_S, spans).item()
    return {
        "val_mean": mean,
        "val_mean_bits": mean / math.log(2),
        "val_last": nats_S[-1].item(),
        "val_per_scale": nats_S.tolist(),
        "val_accuracy": mean_over_tokens(accuracy_S, spans).item(),
        "val_accuracy_per_scale": accuracy_S.tolist(),
    }


@torch.no_grad()
def draw_samples(s: Settings, model: VAR, vae: VQVAE, classes: tuple[str, ...], step: int) -> None:
    """Plain samples (K = 0) of each class with the averaged weights, from fixed seeds."""
    device, rows = next(model.parameters()).device, []
    seeds = image_seeds(s.seed, s.samples_per_class, "training sample")
    for label in range(len(classes)):
        _, f_hat = model.generate_tokens(
            torch.full((len(seeds),), label, device=device),
            seeds=seeds,
            **vars(s.drawing),
        )
        rows.append(list(images.to_uint8(vae.fhat_to_img(f_hat))))
    title = f"Samples after step {step}: no prefix, {s.drawing}"
    figure = s.out_dir / "samples.png"
    plots.image_grid(figure, rows, classes, [f"seed {i}" for i in range(len(seeds))], title)
    runs.keep_of_step(figure, step)


def model_config(s: Settings, train: tokens.TokenMaps, vqvae_sha256: str) -> dict[str, Any]:
    """What checkpoints say of the model: how it is built, its classes, and what its tokens stand for."""
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
    return {
        "kind": "var",
        "arguments": arguments,
        "classes": list(train.classes),
        "vqvae_sha256": vqvae_sha256,
        "image_size": train.made_by["image_size"],
    }


def build(
    s: Settings, vae: VQVAE, arguments: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[VAR, VAR, Muon]:
    """The transformer, its averaged weights, and the optimiser."""
    torch.manual_seed(s.seed)
    model = VAR(vae_local=vae, **arguments)
    model.init_weights(init_std=math.sqrt(1 / s.width / 3))
    model = model.to(device)
    model.recompute_blocks = s.recompute
    # The memo makes deepcopy share the VQ-VAE, to which the transformer refers, instead of copying it.
    averaged = copy.deepcopy(model, {id(vae): vae, id(vae.quantize): vae.quantize})
    averaged.requires_grad_(False).eval()
    groups = training.decay_groups(model, s.weight_decay, s.muon_rate, layers_for_muon(model))
    return model, averaged, Muon(groups, s.learning_rate, s.betas, dtype)


def write_baselines(
    folder: Path, train: tokens.TokenMaps, val: tokens.TokenMaps
) -> dict[str, tuple[list[float], list[float]]]:
    """What frequencies score on val: nats per token and accuracy of each scale; also in baselines.json."""
    scores = tokens.frequency_scores(train, val).items()
    baselines = {name: (nats_S.tolist(), accuracy_S.tolist()) for name, (nats_S, accuracy_S) in scores}
    content = {
        "nats_per_token_of_each_scale_on_val": {name: nats for name, (nats, _) in baselines.items()},
        "accuracy_of_each_scale_on_val": {name: accuracy for name, (_, accuracy) in baselines.items()},
    }
    write_json(folder / "baselines.json", content)
    return baselines


def report_training(run: runs.RunFolder, row: dict[str, Any], batch_size: int) -> None:
    """Log the numbers of an interval of steps, and print the main ones.

    Args:
        run: the folder.
        row: the step, the meter's means, the rate and the time of a step.
        batch_size: images of a step, for the speed.
    """
    run.log(row)
    tqdm.write(
        f"step {row['step']:>6}  cross-entropy {row['train_mean']:.3f}  last scale {row['train_last']:.3f}  "
        f"right {row['train_accuracy']:.1%}  gradient {row['gradient_norm']:6.2f}  rate {row['rate']:.1e}  "
        f"{batch_size / row['seconds_per_step']:7.1f} images/s"
    )


def report_validation(
    s: Settings,
    run: runs.RunFolder,
    step: int,
    scores: dict[str, float | list[float]],
    baselines: dict[str, tuple[list[float], list[float]]],
    averaged: VAR,
    vae: VQVAE,
    train: tokens.TokenMaps,
) -> None:
    """Log a validation's scores, draw curves and samples, and print the main scores.

    Args:
        s: where figures go, and how samples are drawn.
        run: the folder.
        step: after which it was.
        scores: what `validate` returned.
        baselines: from `write_baselines`, for the curves.
        averaged: the validated weights.
        vae: decodes the samples.
        train: names the classes and patch numbers.
    """
    run.log({"step": step, **scores})
    draw_curves(s.out_dir, train.patch_nums, baselines)
    if s.samples_per_class:
        draw_samples(s, averaged, vae, train.classes, step)
    tqdm.write(
        f"step {step:>6}  val: cross-entropy {scores['val_mean']:.3f} nats per token  "
        f"last scale {scores['val_last']:.3f}  right {scores['val_accuracy']:.1%}"
    )


def main(s: Settings) -> None:
    """Train, validate, save, and go on from ar-ckpt-last.pth when there is one."""
    world = distributed.start(s.device)
    device, shard = world.device, world.shard(s.batch_size)
    dtype = training.amp_dtype(device, s.precision)

    # What is read, and whether the settings fit it and the run that was here before.
    vqvae = load_vqvae(s.vqvae, device)
    vae: VQVAE = vqvae.model
    train, val = (
        tokens.read_token_maps_of(vqvae, s.vqvae, s.tokens_dir / split) for split in ("train", "val")
    )
    check(s, train, val, world.size)
    spans = scale_spans(train.patch_nums)
    inputs = {"vqvae": s.vqvae, "train_tokens": train.file, "val_tokens": val.file}
    record = provenance.made_by("train_var.py", s, inputs)
    # See tokens.refuse_other_training.
    record["train_listing_sha256"] = train.made_by.get("listing_sha256")
    config = model_config(s, train, vqvae.sha256)
    last_path, best_path = s.out_dir / "ar-ckpt-last.pth", s.out_dir / "ar-ckpt-best.pth"
    last, found_path, notes = runs.earlier_run(
        last_path, best_path, record, config, MAY_CHANGE, s.tokens_dir, MORE_STATE
    )
    run = runs.RunFolder(s.out_dir) if world.is_main else None

    # The network, the optimiser, and the batch of a step.
    model, averaged, optimiser = build(s, vae, config["arguments"], device, dtype)
    network: nn.Module = world.wrap(model)
    if s.compile:
        network = torch.compile(network)
    sampler = training.BalancedSampler(train.label_N, s.class_balance, s.seed)
    path_chance_N1 = torch.tensor([[block.drop_path.drop_prob] for block in model.blocks])

    def batch_names(step: int) -> list[str]:
        rows = sampler.batch(step, s.batch_size)
        return [f"{train.path_N[row]} view {train.view_N[row]}" for row in rows]

    def load(step: int) -> tuple[Tensor, ...]:
        rows = sampler.batch(step, s.batch_size)[shard]
        # Drawn for the whole batch: the same with any number of processes and pieces.
        generator = training.step_generator(s.seed, training.STREAM_DROP, step)
        drop_B = torch.rand(s.batch_size, generator=generator) < s.class_drop
        path_drop_BN2 = torch.rand(s.batch_size, s.depth, 2, generator=generator) < path_chance_N1
        idx_BL, label_B = tokens.as_tensor(train.idx_NL, rows), torch.from_numpy(train.label_N[rows])
        return training.pinned((idx_BL, label_B, drop_B[shard], path_drop_BN2[shard]), device)

    # Where it starts: at a checkpoint or anew.
    meter, start, best, stale, skipped = training.Meter(), 0, float("inf"), 0, 0
    if last:
        restore(found_path, last, model, averaged, optimiser)
        meter.load_state_dict(last["meter"], world)
        start, best, stale, skipped = (last[key] for key in ("step", "best", "stale", "skipped"))
    elif lacking := images.lacking_classes(val.label_N, val.classes):
        notes.append(f"val has no token map of {', '.join(lacking)}: no number says how they are learned")
    if start >= s.steps or 0 < s.patience <= stale:
        early = f"the run stopped early at step {start} (--patience 0 goes on)"
        finished = f"all {s.steps} steps are done" if start >= s.steps else early
        runs.end_at_once(run, world, last_path, best_path, finished, notes)
        return
    guard = training.StepGuard(model.parameters(), optimiser, s.clip, world, s.max_skipped_steps, skipped)

    def save(step: int) -> None:
        content = {"model": model.state_dict(), "ema": averaged.state_dict()}
        content |= {"optimiser": optimiser.state_dict(), "meter": meter.state_dict(world)}
        content |= {"step": step, "best": best, "stale": stale, "skipped": guard.skipped}
        content |= {"config": config, "made_by": record}
        if world.is_main:
            save_last(last_path, content, model, averaged)

    if run:
        run.begin(start, notes, record)
        if s.tensorboard:
            run.open_tensorboard(start)
        baselines = write_baselines(s.out_dir, train, val)
        means = {k: mean_over_tokens(torch.tensor(nats), spans).item() for k, (nats, _) in baselines.items()}
        count = sum(p.numel() for p in model.parameters()) / 1e6
        print(
            f"{len(train)} train and {len(val)} val token maps of {spans[-1][1]} tokens in "
            f"{len(train.classes)} classes; {count:.1f} M parameters; {device}, {dtype}; "
            f"steps {start} to {s.steps}\n"
            f"to beat on val, nats per token: codes' frequencies {means['unigram']:.3f}, "
            f"class and position frequencies {means['class_position']:.3f}"
        )
    progress = tqdm(total=s.steps, initial=start, disable=not world.is_main, file=sys.stdout, mininterval=5)
    # Why the run ends early: raised after the loop, once every process has left it.
    ending: Exception | None = None
    network.train()
    meter.start()
    with signals.StopSignal() as stop:
        for step, batch, _ in training.prefetch(load, range(start, s.steps), s.read_limit_s, train.file):
            # One step.
            done = step + 1
            rate = training.learning_rate(step, s.learning_rate, s.warmup_steps, s.steps, s.final_rate)
            # Dropout draws from torch's own stream: seeded by step, it need not be saved.
            torch.manual_seed(training.step_seed(s.seed, training.STREAM_NETWORK, step, world.rank))
            batch = [x.to(device, non_blocking=True) for x in batch]
            loss, nats_S, accuracy_S = backward(s, network, vae, batch, spans, dtype)
            norm, is_taken = guard.step(step, rate, loss)
            training.ema_update(averaged, model, step, s.ema_decay, is_taken)
            progress.update()

            # What is due now. Reading which steps were skipped waits for the device: only when something is.
            log_due, eval_due, save_due = training.due(done, s)
            stopping = world.any(stop.received is not None)
            if log_due or eval_due or save_due or stopping:
                ending = training.report_skipped(guard, run, last_path, batch_names)
                if ending:
                    # Not when the checkpoint on the disk has these weights already.
                    if guard.steps_before_stop > start or last is None:
                        save(guard.steps_before_stop)
                    break

            whole = {"mean": nats_S, "accuracy": accuracy_S}
            whole = {f"train_{key}": mean_over_tokens(x_S, spans) for key, x_S in whole.items()}
            scales = {"train_per_scale": nats_S, "train_accuracy_per_scale": accuracy_S}
            meter.add(is_taken, **whole, **scales, train_last=nats_S[-1], gradient_norm=norm)
            if log_due:
                means, seconds = meter.read(world)
                if run and means:
                    row = {"step": done, **means, "rate": rate, "seconds_per_step": seconds}
                    report_training(run, row, s.batch_size)
            is_over = done == s.steps
            with meter.paused():
                if eval_due:
                    scores = validate(s, averaged, vae, val, world, dtype)
                    is_best = scores["val_mean"] < best
                    best, stale = min(best, scores["val_mean"]), 0 if is_best else stale + 1
                    is_over = is_over or world.any(0 < s.patience <= stale)
                    if run and is_best:
                        content = {"model": averaged.state_dict(), "config": config, "made_by": record}
                        save_checkpoint(best_path, {**content, "step": done, "val": scores})
                    if run:
                        report_validation(s, run, done, scores, baselines, averaged, vae, train)
                if save_due or is_over or stopping:
                    save(done)
            if is_over:
                break
            if stopping:
                ending = stop.as_error(done, last_path)
                break
        progress.close()
        world.close()
    if run:
        run.close()
    if ending:
        raise ending
    if run:
        early = (
            "" if done == s.steps else f"stopped early at step {done}, {stale} validations after the best; "
        )
        print(
            f"done: {early}{best_path} (val cross-entropy {best:.3f} nats per token), figures in {s.out_dir}"
        )


if __name__ == "__main__":
    cli.run(main, Settings, __doc__)
