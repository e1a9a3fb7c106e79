"""The codebook's life in training: where it starts, how unused codes come back, what fine-tuning keeps.

Axes: B images, C channels, h w latent grid, S scales, V codes.
"""

import torch
from torch import Tensor

from models import VQVAE
from usvar.distributed import World


@torch.no_grad()
def latent_maps(model: VQVAE, image_B3HW: Tensor, world: World, pieces: int = 1) -> Tensor:
    """What the encoder makes of the global batch, the same on every process.

    Args:
        model: whose encoder it is.
        image_B3HW: this process's part of the batch, in [-1, 1].
        world: all processes.
        pieces: in how many the encoder takes it, for memory's sake.

    Returns:
        (B, C, h, w) float32, B images of all processes.
    """
    features = [model.img_to_features(piece_B3HW).float() for piece_B3HW in image_B3HW.chunk(pieces)]
    return world.gather(torch.cat(features))


def looked_up_vectors(model: VQVAE, features_BChw: Tensor, count: int, seed: int) -> Tensor:
    """Different vectors that images look up in the codebook, as many from each scale as it has.

    The finest scale looks up 256 times as many vectors as the coarsest; drawn in proportion, it alone would
    shape the codebook and the coarse scales would collapse to a few codes. None is drawn twice: of two equal
    codes, the second is never looked up.

    Args:
        model: its codes of coarser scales decide what finer scales look up.
        features_BChw: latent maps of the images, (B, C, h, w) float32.
        count: how many vectors are wanted.
        seed: of the choice.

    Returns:
        (count, C), or all vectors there are if these are fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors_of_scale = model.quantize.residuals(features_BChw)
    shuffled = [
        vectors_NC[torch.randperm(len(vectors_NC), generator=generator).to(vectors_NC.device)]
        for vectors_NC in vectors_of_scale
    ]
    # In turn, one from each scale that has one left.
    turn_N = torch.cat([torch.arange(len(vectors_NC)) for vectors_NC in shuffled])
    order_N = turn_N.sort(stable=True).indices[:count]
    return torch.cat(shuffled)[order_N.to(features_BChw.device)]


def start_codebook(model: VQVAE, features_BChw: Tensor, seed: int, new_V: Tensor | None = None) -> None:
    """Put the codebook, or only its codes in `new_V`, where the encoder's residuals are.

    A codebook drawn from N(0, 1) lies outside the cloud of features, so that a handful of codes win every
    look-up. What a scale looks up depends on the codes chosen before it: three rounds make the two agree.

    Args:
        model: its codebook is changed in place.
        features_BChw: latent maps of the images, (B, C, h, w) float32.
        seed: of the choice of vectors; the rounds take it and the two numbers after it.
        new_V: (V,) bool, True for the codes that are put there; None: all.
    """
    new_V = torch.ones(model.vocab_size, dtype=torch.bool) if new_V is None else new_V
    for round_ in range(3):
        vectors_NC = looked_up_vectors(model, features_BChw, int(new_V.sum()), seed + round_)
        model.quantize.replace_codes_(new_V, vectors_NC, torch.Generator().manual_seed(seed + round_))


def revive_codes(
    model: VQVAE,
    averaged: VQVAE,
    optimiser: torch.optim.Optimizer,
    image_B3HW: Tensor,
    world: World,
    below: float,
    seed: int,
    pieces: int = 1,
) -> Tensor:
    """Replace codes that are hardly used by vectors that this batch looks up.

    The averaged weights take the new vectors at once and the optimiser forgets the old ones' momenta.

    Args:
        model: its counts of recent look-ups say which codes are unused.
        averaged: its averaged weights.
        optimiser: of the model.
        image_B3HW: this process's part of the batch.
        world: all processes, which replace the same codes by the same vectors.
        below: share of the mean number of look-ups below which a code counts as unused.
        seed: of the choice of vectors.
        pieces: see `latent_maps`.

    Returns:
        Number of replaced codes.
    """
    hits_V = model.quantize.ema_vocab_hit_SV.sum(0)
    dead_V = hits_V < below * hits_V.mean()
    if not dead_V.any():
        return dead_V.sum()
    features_BChw = latent_maps(model, image_B3HW, world, pieces)
    vectors_NC = looked_up_vectors(model, features_BChw, int(dead_V.sum()), seed)
    model.quantize.replace_codes_(dead_V, vectors_NC, torch.Generator().manual_seed(seed))
    weight_VC = model.quantize.embedding.weight
    # GPUs may choose other algorithms for phi, and rounding another code: gradients alone are averaged later.
    world.take_from_main(weight_VC.data)
    averaged.quantize.embedding.weight.data[dead_V] = weight_VC.data[dead_V]
    for momentum in optimiser.state.get(weight_VC, {}).values():
        if momentum.shape == weight_VC.shape:
            momentum[dead_V] = 0
    return dead_V.sum()


@torch.no_grad()
def take_weights(model: VQVAE, source: VQVAE) -> tuple[str, Tensor]:
    """Take from another VQ-VAE of the same width all weights whose sizes fit.

    Of a larger codebook the codes that were used most are kept, a smaller one is kept whole. Other patch
    numbers change no weight, since the four phi serve any number of scales.

    Args:
        model: changed in place.
        source: stays as it is.

    Returns:
        A sentence that says what was kept and what was not, and (V,) bool, True for codes that start anew.
    """
    codebook, hits = "quantize.embedding.weight", "quantize.ema_vocab_hit_SV"
    own, other = model.state_dict(), source.state_dict()
    anew = []
    for name in own.keys() - {codebook, hits}:
        if name in other and own[name].shape == other[name].shape:
            own[name].copy_(other[name])
        else:
            anew.append(name)
    new_V = torch.ones(model.vocab_size, dtype=torch.bool)
    if model.Cvae == source.Cvae:
        # A stable sort: without counts, as in some published files, the first codes are kept.
        most_used = other[hits].sum(0).sort(descending=True, stable=True).indices[: model.vocab_size]
        own[codebook][: len(most_used)] = other[codebook][most_used.sort().values]
        new_V[: len(most_used)] = False
        if own[hits].shape == other[hits].shape:
            own[hits].copy_(other[hits])
    text = (
        f"{int((~new_V).sum())} of {source.vocab_size} codes kept, {int(new_V.sum())} start anew; scales "
        f"{source.quantize.v_patch_nums} before and {model.quantize.v_patch_nums} now; other weights that "
        f"start anew: {', '.join(sorted(anew)) or 'none'}"
    )
    return text, new_V
