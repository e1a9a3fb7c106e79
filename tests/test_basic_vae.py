"""models/basic_vae.py: encoder and decoder. Their numbers are checked in test_vqvae.py; here their parts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from models.basic_vae import (
    AttnBlock,
    Decoder,
    Downsample2x,
    Encoder,
    GroupNorm,
    Level,
    ResnetBlock,
    Upsample2x,
    silu,
)


@pytest.mark.parametrize(("ch_mult", "halvings"), [((1,), 0), ((1, 2), 1), ((1, 1, 2), 2)])
def test_decoder_gives_back_the_encoders_size(ch_mult, halvings):
    sizes = {"ch": 32, "ch_mult": ch_mult, "num_res_blocks": 1, "z_channels": 5}
    x = torch.randn(2, 3, 16, 24)
    z = Encoder(**sizes)(x)
    assert z.shape == (2, 5, 16 >> halvings, 24 >> halvings)
    assert Decoder(**sizes)(z).shape == x.shape


def test_double_z_and_attention_switches_change_the_weights_they_name():
    sizes = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4}
    assert Encoder(**sizes, double_z=True)(torch.randn(1, 3, 8, 8)).shape == (1, 8, 4, 4)
    for network in (Encoder, Decoder):
        keys = network(**sizes, using_sa=False, using_mid_sa=False).state_dict()
        assert not [key for key in keys if "attn" in key]
        assert [key for key in network(**sizes).state_dict() if "mid.attn_1" in key]


def test_downsampling_pads_right_and_bottom_only():
    """The top left output sees the top left 3x3; other padding shifts all released weights by a pixel."""
    down = Downsample2x(1)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = 1.0
    with torch.no_grad():
        y = down(x) - down(torch.zeros_like(x))
    torch.testing.assert_close(y[0, 0, 0, 0], down.conv.weight[0, 0, 0, 0].detach())
    assert y.shape == (1, 1, 2, 2)
    assert y.flatten()[1:].abs().max() == 0


def test_upsampling_repeats_pixels_before_its_convolution():
    up = Upsample2x(2)
    x = torch.randn(1, 2, 3, 3)
    torch.testing.assert_close(up(x), up.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))


def test_attention_equals_the_formula():
    torch.manual_seed(0)
    block = AttnBlock(32)
    x = torch.randn(2, 32, 3, 5)
    q, k, v = F.conv2d(block.norm(x), block.qkv.weight, block.qkv.bias).flatten(2).chunk(3, dim=1)
    weights = (q.transpose(1, 2) @ k / math.sqrt(32)).softmax(dim=-1)
    y = (weights @ v.transpose(1, 2)).transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(block(x), x + block.proj_out(y))


def test_a_residual_block_without_its_branch_is_its_shortcut():
    x = torch.randn(1, 32, 4, 4)
    for out_channels in (None, 64):
        block = ResnetBlock(in_channels=32, out_channels=out_channels, dropout=0.5)
        torch.nn.init.zeros_(block.conv2.weight)
        torch.nn.init.zeros_(block.conv2.bias)
        torch.testing.assert_close(block(x), block.nin_shortcut(x))
        assert (out_channels is None) == isinstance(block.nin_shortcut, torch.nn.Identity)


def test_dropout_acts_in_training_mode_only():
    block = ResnetBlock(in_channels=32, dropout=0.5)
    x = torch.randn(1, 32, 8, 8)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_doubling_is_repeating_each_pixel_and_convolving_with_gradients():
    torch.manual_seed(0)
    up, x, weight = Upsample2x(8), torch.randn(2, 8, 5, 7), torch.randn(2, 8, 10, 14)
    results = []
    for function in (up, lambda x: up.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))):
        leaf = x.clone().requires_grad_()
        up.zero_grad()
        y = function(leaf)
        (y * weight).sum().backward()
        results.append([y.detach(), leaf.grad, up.conv.weight.grad.clone(), up.conv.bias.grad.clone()])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_silu_works_in_place_only_where_no_gradient_needs_its_input():
    x = torch.randn(10)
    wanted = torch.nn.functional.silu(x)
    assert torch.equal(silu(x.clone().requires_grad_()), wanted)
    with torch.no_grad():
        assert silu(x) is x and torch.equal(x, wanted)


def kept_bytes(module: torch.nn.Module, x: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Bytes that a forward pass keeps for the backward pass, parameters left out, and the gradients."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x)
    y.square().mean().backward()
    return sum(kept.values()), [parameter.grad.clone() for parameter in module.parameters()]


@pytest.mark.parametrize("kind", [Encoder, Decoder])
def test_blocks_run_once_more_keep_less_and_give_the_same_gradients(kind):
    torch.manual_seed(0)
    network = kind(ch=32, ch_mult=(1, 1, 2), z_channels=4)
    x = torch.randn(2, 3, 32, 32) if kind is Encoder else torch.randn(2, 4, 8, 8)
    whole_bytes, whole = kept_bytes(network, x)
    for module in network.modules():
        if isinstance(module, Level):
            module.recompute = True
    fewer_bytes, again = kept_bytes(network, x)
    assert fewer_bytes < 0.5 * whole_bytes, (fewer_bytes, whole_bytes)
    for first, second in zip(whole, again, strict=True):
        torch.testing.assert_close(first, second)


class NormTypes(TorchDispatchMode):
    """The types of maps, gains and biases that group norms in this block are given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "group_norm" in str(function):
            self.found |= {x.dtype for x in args if isinstance(x, torch.Tensor)}
        return function(*args, **kwargs or {})


def test_on_a_gpu_the_norm_of_bfloat16_is_of_bfloat16():
    """Tensors without values stand for those of a GPU; that autocast is off inside, only a GPU shows."""
    with FakeTensorMode(), NormTypes() as types:
        norm = GroupNorm(32, 64, device="cuda")
        norm(torch.empty(2, 64, 4, 4, device="cuda", dtype=torch.bfloat16))
    assert types.found == {torch.bfloat16}


def test_under_a_gpu_s_autocast_the_norm_gives_what_it_gets_up_to_rounding():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: autocast is another one on a CPU")
    norm = GroupNorm(32, 64, device="cuda")
    x_BCHW = torch.randn(2, 64, 16, 16, device="cuda", dtype=torch.bfloat16)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found_BCHW = norm(x_BCHW)
    assert found_BCHW.dtype == torch.bfloat16
    torch.testing.assert_close(found_BCHW.float(), norm(x_BCHW.float()), rtol=1e-2, atol=1e-2)
