"""Pure functions of tensors: where the scales lie, how a token is drawn, the loss, stochastic depth.

Sources: K. Tian et al., "Visual Autoregressive Modeling" (2024), sections 3.2 and 4; A. Holtzman et al., "The
Curious Case of Neural Text Degeneration" (2020) for top-p; E. Jang et al. (2017) for Gumbel-softmax; G. Huang
et al., "Deep Networks with Stochastic Depth" (2016); G. Steele et al., "Fast Splittable Pseudorandom Number
Generators" (2014), figure 17, for the hash.

Axes: B images, l tokens of one scale, L tokens of all scales (coarse first), V codebook size.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def scale_boundaries(patch_nums: Sequence[int]) -> list[int]:
    """Say how many tokens are known after 0, 1, 2, ... scales.

    Args:
        patch_nums: tokens per side of each scale, coarse first.

    Returns:
        S + 1 numbers; for the ten scales of the paper 0, 1, 5, 14, 30, 55, 91, 155, 255, 424, 680.
    """
    boundaries = [0]
    for patch_num in patch_nums:
        boundaries.append(boundaries[-1] + patch_num * patch_num)
    return boundaries


def scale_spans(patch_nums: Sequence[int]) -> list[tuple[int, int]]:
    """Give (start, end) of each scale inside the L tokens of an image."""
    boundaries = scale_boundaries(patch_nums)
    return list(itertools.pairwise(boundaries))


def split_scales(idx_BL: Tensor, patch_nums: Sequence[int]) -> list[Tensor]:
    """Cut (B, L, ...) into one (B, l, ...) per scale, coarse first.

    Raises:
        ValueError: L is not the number of tokens of patch_nums.
    """
    spans = scale_spans(patch_nums)
    if idx_BL.shape[1] != spans[-1][1]:
        raise ValueError(
            f"found {idx_BL.shape[1]} tokens per image, patch numbers {tuple(patch_nums)} need {spans[-1][1]}"
        )
    return [idx_BL[:, start:end] for start, end in spans]


def next_scale_mask(patch_nums: Sequence[int]) -> Tensor:
    """Say which token may look at which: all of its own scale and all of the coarser ones.

    Returns:
        bool (L, L), True where the row token may look at the column token.
    """
    scale_L = torch.repeat_interleave(
        torch.arange(len(patch_nums), device="cpu"), torch.tensor([n * n for n in patch_nums], device="cpu")
    )
    return scale_L[:, None] >= scale_L[None, :]


def scale_position(scale: int, num_scales: int) -> float:
    """Place a scale between 0 (coarsest) and 1 (finest). A single scale is the finest one: 1, not 0 / 0."""
    return scale / (num_scales - 1) if num_scales > 1 else 1.0


def image_seeds(seed: int, count: int, purpose: str = "tokens") -> list[int]:
    """Derive one seed per image, which depends on the image's number but not on how many are drawn.

    Args:
        seed: any integer.
        count: how many images.
        purpose: another word gives unrelated numbers from the same seed.

    Returns:
        count integers of 63 bits.
    """
    return [
        int.from_bytes(hashlib.sha256(f"{purpose} {seed} {i}".encode()).digest()[:8], "big") >> 1
        for i in range(count)
    ]


def _largest(values_BlV: Tensor, count: int) -> Tensor:
    """The largest values of each row, in falling order: (..., count)."""
    if values_BlV.device.type == "cpu" and values_BlV.dtype == torch.float32:
        # NumPy sorts with the processor's vector unit: a tenth of the time of torch.topk at 900 of 2,048.
        rising = np.sort(values_BlV.detach().numpy(), axis=-1)
        return torch.from_numpy(rising).flip(-1)[..., :count]
    return values_BlV.topk(count, dim=-1).values


def _positions_at_once(vocab_size: int, device: torch.device) -> int:
    """How many positions of V numbers are worked on together: on a CPU so few that they stay in its cache.

    Noise and filter pass over the same numbers some twenty times. Through the memory that took two to five
    times as long; the result is the same.
    """
    if device.type != "cpu":
        return 2**31
    return max(1, 2**16 * torch.get_num_threads() // vocab_size)


def filter_top_k_top_p(logits_BlV: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Rule out unlikely tokens by setting their logits to -inf.

    Args:
        logits_BlV: (..., V), float; not changed.
        top_k: keep the k most likely (and whatever ties with the last of them); 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability, after top_k, reaches top_p; 0
            keeps all.

    Returns:
        (..., V): the filtered logits; at least one stays finite.

    Raises:
        ValueError: a negative top_k or a top_p outside 0 to 1.
    """
    if top_k < 0 or not 0.0 <= top_p <= 1.0:
        raise ValueError(f"found top_k={top_k}, top_p={top_p}: top_k must be 0 or more, top_p from 0 to 1")
    vocab_size = logits_BlV.shape[-1]
    if not 0 < top_k < vocab_size and top_p == 0.0:
        return logits_BlV
    ordered = _largest(logits_BlV, min(top_k or vocab_size, vocab_size))
    least = ordered[..., -1:]
    if top_p == 0.0:
        return logits_BlV.masked_fill(logits_BlV < least, -torch.inf)
    # Tokens that tie with the k-th value: top-k keeps them too, but `ordered` does not hold them.
    num_ties = (logits_BlV >= least).sum(dim=-1, keepdim=True) - ordered.shape[-1]
    probability = ordered.softmax(dim=-1)
    probability = probability / (1 + num_ties * probability[..., -1:])
    reached = probability.cumsum(dim=-1)
    # A token is kept if those before it do not reach top_p: the one that crosses top_p is kept.
    num_kept = (reached - probability < top_p).sum(dim=-1, keepdim=True)
    # Where all k do not reach top_p, as many ties as are still needed.
    lacking = (top_p - reached[..., -1:]) / probability[..., -1:].clamp_min(1e-30)
    needed = lacking.ceil().clamp_min(0).minimum(num_ties)
    extra = torch.where(num_kept == ordered.shape[-1], needed, 0).long()
    # Keep all above the threshold and, in order of their index, the first `quota` that equal it.
    threshold = ordered.gather(-1, num_kept - 1)
    quota = num_kept + extra - (ordered > threshold).sum(dim=-1, keepdim=True)
    equal = logits_BlV == threshold
    keep = (logits_BlV > threshold) | (equal & (equal.cumsum(dim=-1) <= quota))
    return logits_BlV.masked_fill(~keep, -torch.inf)


def head_cross_entropy(
    head: nn.Module, h_BLD: Tensor, target_BL: Tensor, label_smoothing: float = 0.0, chunk: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Give loss, cross-entropy and correctness of each token, without ever holding all of their logits.

    Logits are the largest tensor of a training step: 64 images of 680 tokens and 2,048 codes are 356 MB, and
    as much again for each of softmax and gradients. In chunks each lives for its chunk alone; the backward
    pass makes them once more, which costs one more product with the head's weights.

    Args:
        head: (N, D) -> (N, V).
        h_BLD: float, what the head takes.
        target_BL: long, the codes to be predicted.
        label_smoothing: share of the target spread over all codes, 0 to 1.
        chunk: tokens at once; 0 is all of them, and no second product.

    Returns:
        loss_BL: float32 (B, L), in nats, with smoothing; equal to the undivided one up to rounding, gradients
            too.
        nats_BL: the same without smoothing, which is what compares with other splits and settings; without
            gradient.
        correct_BL: bool, whether the most likely code is the target.

    Raises:
        ValueError: a negative chunk, or targets that do not fit.
    """
    if chunk < 0 or target_BL.shape != h_BLD.shape[:-1]:
        raise ValueError(
            f"found chunk={chunk} and targets of shape {tuple(target_BL.shape)}, "
            f"wanted chunk of 0 or more and targets of shape {tuple(h_BLD.shape[:-1])}"
        )

    def scores(h_ND: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_NV = head(h_ND).float()
        loss_N = F.cross_entropy(logits_NV, target_N, reduction="none", label_smoothing=label_smoothing)
        logits_NV, nats_N = logits_NV.detach(), loss_N.detach()
        if label_smoothing:
            nats_N = F.cross_entropy(logits_NV, target_N, reduction="none")
        return loss_N, nats_N, logits_NV.argmax(dim=-1) == target_N

    h_ND, target_N = h_BLD.flatten(0, -2), target_BL.flatten()
    if chunk == 0 or chunk >= len(h_ND):
        parts = [scores(h_ND, target_N)]
    else:
        parts = [
            checkpoint(scores, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(h_ND.split(chunk), target_N.split(chunk), strict=True)
        ]
    loss_BL, nats_BL, correct_BL = (
        torch.cat(values).view_as(target_BL) for values in zip(*parts, strict=True)
    )
    return loss_BL, nats_BL, correct_BL


def _signed(number: int) -> int:
    """Read any integer's lowest 64 bits as torch.int64 does."""
    return (number + 2**63) % 2**64 - 2**63


# Steele et al. (2014): the odd number nearest to 2^64 over the golden ratio, and the two factors of the
# finaliser.
GAMMA = _signed(0x9E3779B97F4A7C15)
FACTORS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def _scramble(state: Tensor) -> Tensor:
    """Turn int64 numbers in a row into unrelated ones, in place: the finaliser of SplitMix64."""
    # An arithmetic shift copies the sign; the masks make it a logical one. Products wrap around, as they
    # should.
    for shift, factor in FACTORS:
        state.bitwise_xor_((state >> shift) & (2 ** (64 - shift) - 1)).mul_(factor)
    return state.bitwise_xor_((state >> 31) & (2**33 - 1))


def gumbel_noise(
    seeds: Sequence[int], positions: Sequence[int], vocab_size: int, device: torch.device
) -> Tensor:
    """Give the Gumbel noise of each image, position and code: a hash of them, not a stream's next number.

    So it is the same on every device, in every batch, and whatever else is drawn; and it is made where it is
    used.

    Args:
        seeds: one per image, any integers.
        positions: numbers of the positions, such as range(start, end).
        vocab_size: V.
        device: where the noise goes.

    Returns:
        float32 (B, l, V), all finite.
    """
    # Copies of so few numbers need not wait for the device.
    seed_B = torch.tensor([_signed(int(seed)) for seed in seeds]).to(device, torch.int64, non_blocking=True)
    position_l = torch.tensor(list(positions)).to(device, torch.int64, non_blocking=True)
    code_V = torch.arange(1, vocab_size + 1, device=device)
    key_Bl = _scramble(_scramble(seed_B + GAMMA)[:, None] + (position_l + 1) * GAMMA)
    noise_BlV = torch.empty(*key_Bl.shape, vocab_size, device=device)
    count = _positions_at_once(vocab_size, device)
    for key_N, noise_NV in zip(
        key_Bl.flatten().split(count), noise_BlV.flatten(0, 1).split(count), strict=True
    ):
        bits_NV = _scramble(key_N[:, None] + code_V * GAMMA)
        # 40 bits, more than float32 keeps near 1: near 0, where the largest noise comes from, it keeps all.
        uniform_NV = noise_NV.copy_((bits_NV >> 24) & (2**40 - 1)).add_(0.5).mul_(2.0**-40)
        uniform_NV.clamp_max_(1 - 2**-24).neg_().log1p_().neg_().log_().neg_()
    return noise_BlV


def sample_with_top_k_top_p(
    logits_BlV: Tensor, gumbel_BlV: Tensor, top_k: int = 0, top_p: float = 0.0
) -> Tensor:
    """Filter, then draw one token per position: the largest sum of logit and Gumbel noise.

    This draws from the softmax exactly. Another rounding of the logits (another batch size, another machine)
    changes the token only where the two best are as near as that rounding; inverting the cumulative
    distribution, which needs only one number per position, was measured to change tens of times more.

    Args:
        logits_BlV: float.
        gumbel_BlV: from gumbel_noise.
        top_k, top_p: see filter_top_k_top_p.

    Returns:
        long (B, l).
    """
    count = _positions_at_once(logits_BlV.shape[-1], logits_BlV.device)
    parts = zip(*(x.flatten(0, -2).split(count) for x in (logits_BlV, gumbel_BlV)), strict=True)
    drawn = [
        (filter_top_k_top_p(logits_NV, top_k, top_p) + gumbel_NV).argmax(dim=-1)
        for logits_NV, gumbel_NV in parts
    ]
    return torch.cat(drawn).view(logits_BlV.shape[:-1])


def sample_with_top_k_top_p_(
    logits_BlV: Tensor,
    top_k: int = 0,
    top_p: float = 0.0,
    rng: torch.Generator | None = None,
    num_samples: int = 1,
) -> Tensor:
    """Filter in place and draw from one stream for the whole batch: the published call, kept for its users.

    Samples depend on the batch they are drawn in; sample_with_top_k_top_p does not.

    Args:
        logits_BlV: float; filtered in place.
        top_k, top_p: see filter_top_k_top_p.
        rng: on the device of the logits.
        num_samples: tokens per position; negative draws as many without putting back.

    Returns:
        long (B, l, |num_samples|).
    """
    logits_BlV.copy_(filter_top_k_top_p(logits_BlV, top_k, top_p))
    drawn = torch.multinomial(
        logits_BlV.softmax(dim=-1).flatten(0, -2),
        abs(num_samples),
        replacement=num_samples > 0,
        generator=rng,
    )
    return drawn.unflatten(0, logits_BlV.shape[:-1])


def gumbel_softmax_with_rng(
    logits: Tensor,
    tau: float = 1.0,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Draw a relaxed one-hot vector (Jang et al. 2017, equation 2) from a stream of its own.

    Args:
        logits: unnormalised log-probabilities; -inf stays at 0.
        tau: temperature; near 0 the result is near one-hot.
        hard: return the one-hot vector, with the gradient of the relaxed one.
        eps: kept for callers of the published function; torch's exponential draws are never 0.
        dim: axis of the classes.
        rng: noise is drawn on its device, so that a CPU stream serves any device.

    Returns:
        the shape of logits, summing to 1 along dim.
    """
    device = logits.device if rng is None else rng.device
    exponential = torch.empty(logits.shape, device=device, dtype=logits.dtype).exponential_(generator=rng)
    gumbel = -exponential.clamp_min(eps).log().to(logits.device)
    soft = ((logits + gumbel) / tau).softmax(dim=dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter(dim, soft.argmax(dim=dim, keepdim=True), 1.0)
    return one_hot + soft - soft.detach()


def drop_path(
    x: Tensor,
    drop_prob: float = 0.0,
    training: bool = False,
    scale_by_keep: bool = True,
    dropped_B: Tensor | None = None,
) -> Tensor:
    """Zero the whole branch of some images (stochastic depth).

    Args:
        x: (B, ...), the output of a residual branch.
        drop_prob: chance that an image loses the branch.
        training: False returns x as it is.
        scale_by_keep: divide what stays by 1 - drop_prob, so that the mean is kept.
        dropped_B: bool, which images lose it; None draws them.
    """
    if not training or drop_prob == 0.0:
        return x
    keep = 1.0 - drop_prob
    kept_B = torch.rand(x.shape[0], device=x.device) < keep if dropped_B is None else ~dropped_B
    factor = kept_B.to(x.dtype) / (keep if scale_by_keep and keep > 0.0 else 1.0)
    return x * factor.view(-1, *[1] * (x.dim() - 1))


class DropPath(nn.Module):
    """drop_path as a module: acts in training mode only."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True):
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor, dropped_B: Tensor | None = None) -> Tensor:
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep, dropped_B)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


def compile_each(modules: Iterable[nn.Module], graphs: int, backend: str = "inductor") -> None:
    """Compile modules one by one by torch.compile, for shapes that stay.

    Args:
        modules: compiled in place, so that names and weights stay where they are.
        graphs: at least as many as all of them need together: dynamo counts them so, and gives up silently
            beyond its limit.
        backend: of torch.compile.
    """
    import torch._dynamo  # only here, because it takes seconds to import

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, graphs)
    for module in modules:
        module.compile(backend=backend, dynamic=False)
