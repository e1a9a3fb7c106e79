"""Muon: an optimiser that moves each kernel along the nearest orthogonal matrix to its momentum.

Adam scales each weight by itself, and a few directions take up most of its step. With all singular values of
the step equal, every direction in which a layer can change is learned at the same pace: the VQ-VAE here needs
less than half of the images for the same PSNR (docs/vqvae_recipes.md).

Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); length of the step
after J. Liu et al., "Muon is Scalable for LLM Training" (2025), section 2.2.

torch.optim.Muon takes matrices only; here kernels of convolutions count as matrices, equal shapes go through
in one product, AdamW for all other weights is in the same optimiser, and `found_inf` leaves a step out.

Axes: N matrices of one shape, O output channels, I input channels times places of the kernel.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Root mean square of AdamW's usual step as a share of its rate: the same learning rate serves both.
ADAMW_RMS = 0.2
# A round maps a singular value s to A s + B s^3 + C s^5; five bring all but the tiniest to about 0.7 to 1.2.
ROUNDS = 5
A, B, C = 3.4445, -4.7750, 2.0315


def layers_for_muon(transformer: nn.Module) -> nn.ModuleList:
    """What Muon trains of a VAR: attention and feed-forward layers of its blocks.

    Not what turns the class into gains and shifts: a batch has few classes, so that the gradient of those
    matrices has few directions, and with all made equally long the step would be noise in most of them. By
    AdamW they learn better, and Muon has a quarter less to do (docs/var_recipes.md).

    Args:
        transformer: a VAR.
    """
    return nn.ModuleList(layer for block in transformer.blocks for layer in (block.attn, block.ffn))


def orthogonalised(matrix_NOI: Tensor) -> Tensor:
    """Give each matrix singular values of about 1 and leave its singular vectors as they are.

    Args:
        matrix_NOI: (N, O, I), float32, or bfloat16 where that is faster: its rounding does no harm here.

    Returns:
        (N, O, I), of the same type; a matrix of zeros stays one.
    """
    is_tall = matrix_NOI.shape[1] > matrix_NOI.shape[2]
    x = matrix_NOI.mT if is_tall else matrix_NOI  # the products below are of the shorter side
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    is_wide = x.shape[2] >= 2 * x.shape[1]
    x = through_square(x) if is_wide and x.dtype == torch.float32 else round_by_round(x)
    return x.mT if is_tall else x


def round_by_round(x_NOI: Tensor) -> Tensor:
    """Take the matrices themselves through all rounds; their norms are 1 and O is the shorter side."""
    for _ in range(ROUNDS):
        square_NOO = x_NOI @ x_NOI.mT
        factor_NOO = torch.baddbmm(square_NOO, square_NOO, square_NOO, beta=B, alpha=C)
        x_NOI = torch.baddbmm(x_NOI, factor_NOO, x_NOI, beta=A)
    return x_NOI


def through_square(x_NOI: Tensor) -> Tensor:
    """The same from what all rounds together multiply a matrix x by: a polynomial of x x^T.

    For a wide x that is up to three times less work. The rounds make small singular values 3.4^5 times
    larger, and rounding with them: float32 bears that, bfloat16 would not.
    """
    square_NOO = x_NOI @ x_NOI.mT
    factor_NOO = round_NOO = _round(square_NOO)
    for _ in range(ROUNDS - 1):
        square_NOO = round_NOO @ square_NOO @ round_NOO
        round_NOO = _round(square_NOO)
        factor_NOO = round_NOO @ factor_NOO
    return factor_NOO @ x_NOI


def _round(square_NOO: Tensor) -> Tensor:
    """What one round multiplies x by: A + B x x^T + C (x x^T)^2."""
    result_NOO = torch.baddbmm(square_NOO, square_NOO, square_NOO, beta=B, alpha=C)
    result_NOO.diagonal(dim1=1, dim2=2).add_(A)
    return result_NOO


class Muon(torch.optim.AdamW):
    """Muon for the parameter groups that have a "muon_rate" above 0, fused AdamW for all others.

    A step of Muon is muon_rate times as long as AdamW's would be (root mean square). Like every fused
    optimiser it leaves weights and momenta alone where its `found_inf` is 1, see `training.StepGuard`.

    Args:
        groups: parameter groups; those of Muon hold kernels of two or more axes, output channels first.
        lr: learning rate of both.
        betas: momenta of AdamW.
        dtype: in which steps are made orthogonal, that of the forward pass.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.dtype = dtype
        self.found_inf: Tensor | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a saved state as it is: AdamW's own way looks for its count of steps at every parameter."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Make one step from the gradients at hand; parameters without one stay as they are."""
        gradients = {
            parameter: parameter.grad
            for group in self.param_groups
            if group.get("muon_rate")
            for parameter in group["params"]
            if parameter.grad is not None
        }
        # AdamW passes by whatever has no gradient.
        for parameter in gradients:
            parameter.grad = None
        super().step()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter in gradients:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._move(group, parameters, [gradients[parameter] for parameter in parameters])
        for parameter, gradient in gradients.items():
            parameter.grad = gradient

    def _move(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Move parameters of one shape together: many small products one by one would leave a GPU idle."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        gradient_NOI, old_NOI = (torch.stack([x.flatten(1) for x in xs]) for xs in (gradients, momenta))
        new_NOI = MOMENTUM * old_NOI + gradient_NOI
        ahead_NOI = gradient_NOI + MOMENTUM * new_NOI  # Nesterov
        step_NOI = orthogonalised(ahead_NOI.to(self.dtype)).float()
        decay = torch.full((), group["lr"] * group["weight_decay"], device=step_NOI.device)
        if self.found_inf is not None:
            # Of a gradient that is not finite nothing may stay: where and no product, for 0 times NaN is NaN.
            is_skipped = self.found_inf > 0
            new_NOI = torch.where(is_skipped, old_NOI, new_NOI)
            step_NOI = torch.where(is_skipped, 0.0, step_NOI)
            decay = torch.where(is_skipped, 0.0, decay)
        length = group["lr"] * group["muon_rate"] * ADAMW_RMS * max(step_NOI.shape[1:]) ** 0.5
        torch._foreach_copy_(momenta, [x.view_as(p) for x, p in zip(new_NOI, parameters, strict=True)])
        torch._foreach_mul_(parameters, 1 - decay)
        steps = [x.view_as(p) for x, p in zip(step_NOI, parameters, strict=True)]
        torch._foreach_add_(parameters, steps, alpha=-length)
