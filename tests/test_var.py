"""models/var.py: golden numbers of the released code, the faults it had, sampling with tokens given."""

from collections import Counter

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from golden_rule import INDEX, VAR_NAMES, build_var, gradient_norms, load_golden, relative_error
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models import VAR, VQVAE
from models.helpers import gumbel_noise, split_scales

# Float32 sums in another order differ by 2e-6 at most here (measured); the goal is 1e-4.
TOLERANCE = 1e-4
PATCH_NUMS = (1, 2, 3)  # L = 14
SEEDS = [5, 6, 7]


def tiny(patch_nums=PATCH_NUMS, **changes) -> VAR:
    """A model whose tokens depend on class, position and coarser ones, unlike one fresh from init_weights."""
    torch.manual_seed(0)
    vae = VQVAE(vocab_size=32, z_channels=8, ch=32, v_patch_nums=patch_nums)
    arguments = {"num_classes": 4, "depth": 2, "embed_dim": 32, "num_heads": 2, "patch_nums": patch_nums}
    var = VAR(vae, **(arguments | changes))
    var.init_weights(init_adaln=1.0, init_adaln_gamma=1.0, init_head=1.0, init_std=0.3)
    return var.eval()


def inputs_of(var: VAR, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, tokens and the teacher-forcing input made of them."""
    stream = torch.Generator().manual_seed(1)
    idx_BL = torch.randint(var.V, (batch, var.L), generator=stream)
    x_BLC = var.vae_quant_proxy[0].idxBl_to_var_input(split_scales(idx_BL, var.patch_nums))
    return torch.arange(batch) % var.num_classes, idx_BL, x_BLC


# --- golden numbers ---


@pytest.mark.parametrize("name", VAR_NAMES)
def test_keys_and_shapes_come_in_the_published_order(name):
    _, var = build_var(name)
    state = [(key, list(value.shape)) for key, value in var.state_dict().items()]
    assert state == list(INDEX[name]["state_dict"].items())


@pytest.mark.parametrize("name", VAR_NAMES)
def test_training_numbers_and_gradients_are_the_published_ones(name):
    golden = load_golden(name)
    vae, var = build_var(name)
    tokens = split_scales(golden["tokens"], var.patch_nums)
    assert relative_error(vae.quantize.idxBl_to_var_input(tokens), golden["var_input"]) < TOLERANCE
    logits = var.train()(golden["labels"], golden["var_input"])
    assert relative_error(logits.detach(), golden["logits"]) < TOLERANCE
    loss = F.cross_entropy(logits.flatten(0, 1), golden["tokens"].flatten())
    loss.backward()
    assert relative_error(loss.detach()[None], golden["loss"]) < TOLERANCE
    norms = gradient_norms(var, INDEX[name]["grad_norms_order"])
    assert relative_error(norms, golden["grad_norms"]) < TOLERANCE
    torch.testing.assert_close(norms, golden["grad_norms"], rtol=TOLERANCE, atol=1e-6, equal_nan=True)
    for stage in range(4):
        var.prog_si = stage
        with torch.no_grad():
            found = var(golden["labels"], golden["var_input"])
        assert relative_error(found, golden[f"progressive_logits_stage_{stage}"]) < TOLERANCE


@pytest.mark.parametrize("cfg", ["0", "1.5", "4"])
@pytest.mark.parametrize("name", VAR_NAMES)
def test_greedy_samples_are_the_published_ones(name, cfg):
    golden = load_golden(name)
    vae, var = build_var(name)
    images = var.eval().autoregressive_infer_cfg(3, golden["labels"], g_seed=0, cfg=float(cfg), top_k=1)
    assert relative_error(images, golden[f"greedy_image_cfg{cfg}"]) < TOLERANCE
    _, f_hat = var.generate_tokens(golden["labels"], seeds=[1, 2, 3], cfg=float(cfg), greedy=True)
    assert torch.equal(vae.fhat_to_img(f_hat).add(1).mul(0.5), images)


# --- faults of the published code ---


def test_class_dropout_rests_in_eval_mode():
    """Fault: classes were dropped in eval mode too, so validation loss and guidance were noisy."""
    var = tiny(cond_drop_rate=1.0)
    label_B, _, x_BLC = inputs_of(var)
    no_class_B = torch.full_like(label_B, -1)
    with_class, without = var(label_B, x_BLC), var(no_class_B, x_BLC)
    assert not torch.allclose(with_class, without)
    var.train()
    assert torch.equal(var(label_B, x_BLC), without)
    var.cond_drop_rate = 0.0
    assert torch.equal(var(label_B, x_BLC), with_class)


def test_class_dropout_takes_its_share_in_training_mode():
    var = tiny(patch_nums=(1,), cond_drop_rate=0.25, depth=1).train()
    label_B = torch.zeros(4000, dtype=torch.long)
    logits = var(label_B, None)
    without = tiny(patch_nums=(1,), depth=1)(torch.tensor([-1]), None)
    dropped = (logits - without).abs().amax(dim=(1, 2)) < 1e-4
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)


def test_the_caller_may_say_whose_class_is_dropped():
    """A trainer of many processes draws the mask for the whole batch."""
    var = tiny(cond_drop_rate=1.0).train()
    label_B, _, x_BLC = inputs_of(var)
    drop_B = torch.tensor([True, False, True])
    found = var(label_B, x_BLC, class_drop_B=drop_B)
    assert torch.equal(found, var.eval()(label_B.masked_fill(drop_B, var.num_classes), x_BLC))


def test_a_failing_sample_leaves_nothing_behind(monkeypatch):
    """Fault: the key/value cache stayed on when sampling raised, and the next training step used it."""
    var = tiny().train()
    var.cond_drop_rate = 0.0
    label_B, _, x_BLC = inputs_of(var)
    attributes = {name: set(vars(module)) for name, module in var.named_modules()}
    logits, sample = var(label_B, x_BLC), var.generate_tokens(label_B, seeds=SEEDS)
    quantize = var.vae_quant_proxy[0]
    whole = quantize.get_next_autoregressive_input

    def fail_at_the_second_scale(si, *arguments):
        if si == 1:
            raise KeyboardInterrupt
        return whole(si, *arguments)

    monkeypatch.setattr(quantize, "get_next_autoregressive_input", fail_at_the_second_scale)
    with pytest.raises(KeyboardInterrupt):
        var.generate_tokens(label_B, seeds=SEEDS)
    monkeypatch.undo()
    assert all(module.training for module in var.modules())
    assert {name: set(vars(module)) for name, module in var.named_modules()} == attributes
    assert torch.equal(var(label_B, x_BLC), logits)
    assert torch.equal(var.generate_tokens(label_B, seeds=SEEDS)[0], sample[0])


def test_minus_one_means_no_class_alone_or_in_a_tensor():
    """Fault: a tensor of labels with -1 in it failed in the embedding."""
    var = tiny()
    _, _, x_BLC = inputs_of(var)
    mixed_B = torch.tensor([2, -1, 4])
    assert torch.equal(var(mixed_B, x_BLC), var(torch.tensor([2, 4, 4]), x_BLC))
    generate = [var.generate_tokens(label, seeds=SEEDS, cfg=2.0)[0] for label in (mixed_B, 2, -1)]
    assert torch.equal(generate[0], torch.stack([generate[1][0], generate[2][1], generate[2][2]]))
    images = [var.autoregressive_infer_cfg(2, label, g_seed=0) for label in (-1, torch.tensor([-1, -1]))]
    assert torch.equal(*images)


@pytest.mark.parametrize("patch_nums", [(1,), (3,)])
def test_a_single_scale_trains_and_samples(patch_nums):
    """Fault: guidance divided by S - 1, which is zero. The only scale now gets all the guidance."""
    var = tiny(patch_nums=patch_nums)
    label_B = torch.tensor([0, 1, 2])
    logits = var(label_B, None)
    assert logits.shape == (3, var.L, var.V)
    assert logits.isfinite().all()
    guided = 3 * logits - 2 * var(torch.full_like(label_B, -1), None)
    idx_BL, _ = var.generate_tokens(label_B, seeds=SEEDS, cfg=2.0, greedy=True)
    assert torch.equal(idx_BL, guided.argmax(-1))
    assert var.autoregressive_infer_cfg(2, 1, g_seed=0, cfg=2.0, more_smooth=True).isfinite().all()


@pytest.mark.parametrize("more_smooth", [False, True])
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(more_smooth):
    """Fault: one stream served the whole batch, so other batch sizes gave other images."""
    var = tiny()
    label_B = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    settings = {"cfg": 1.5, "top_k": 20, "top_p": 0.95, "more_smooth": more_smooth}
    together, f_hat = var.generate_tokens(label_B, seeds=range(8), **settings)
    assert len(together.unique(dim=0)) == 8
    for i in range(8):
        alone, f_hat_alone = var.generate_tokens(label_B[i : i + 1], seeds=[i], **settings)
        assert torch.equal(alone[0], together[i])
        torch.testing.assert_close(f_hat_alone[0], f_hat[i], atol=1e-4, rtol=1e-4)
    images = [var.autoregressive_infer_cfg(B, None, g_seed=3, more_smooth=more_smooth) for B in (2, 5)]
    torch.testing.assert_close(images[0], images[1][:2], atol=1e-4, rtol=1e-4)


# --- sampling ---


def test_images_are_in_0_to_1_and_seeds_make_them_again():
    var = tiny()
    images = var.autoregressive_infer_cfg(4, 1, g_seed=1)
    assert images.shape == (4, 3, 48, 48)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, var.autoregressive_infer_cfg(4, 1, g_seed=1))
    assert not torch.equal(images, var.autoregressive_infer_cfg(4, 1, g_seed=2))
    torch.manual_seed(0)
    unseeded = [var.autoregressive_infer_cfg(2, 1) for _ in range(2)]
    assert not torch.equal(*unseeded)


def test_cached_sampling_agrees_with_teacher_forcing_on_what_it_drew():
    var = tiny()
    idx_BL, f_hat = var.generate_tokens(torch.tensor([0, 1, 2]), seeds=SEEDS, cfg=0.0, greedy=True)
    tokens = split_scales(idx_BL, PATCH_NUMS)
    quantize = var.vae_quant_proxy[0]
    logits = var(torch.tensor([0, 1, 2]), quantize.idxBl_to_var_input(tokens))
    assert torch.equal(logits.argmax(-1), idx_BL)
    maps = [quantize.codes_to_map(t, pn) for t, pn in zip(tokens, PATCH_NUMS, strict=True)]
    torch.testing.assert_close(quantize.embed_to_fhat(maps, last_one=True), f_hat)


def test_guidance_is_absent_at_the_first_scale_and_skipped_when_zero():
    var = tiny()
    batches = []
    hook = var.blocks[0].register_forward_hook(lambda _, inputs, __: batches.append(inputs[0].shape[0]))
    plain, _ = var.generate_tokens(1, seeds=SEEDS, cfg=0.0)
    assert set(batches) == {3}
    strong, _ = var.generate_tokens(1, seeds=SEEDS, cfg=8.0)
    assert max(batches) == 6
    hook.remove()
    assert torch.equal(plain[:, 0], strong[:, 0])
    assert not torch.equal(plain, strong)


def test_samples_follow_the_models_distribution():
    var = tiny(patch_nums=(1, 2), num_classes=1)
    idx_BL, _ = var.generate_tokens(0, seeds=range(4000), cfg=0.0, temperature=2.0)
    wanted = (var(torch.tensor([0]), torch.zeros(1, 4, 8))[0, 0] / 2.0).softmax(-1)
    share = idx_BL[:, 0].bincount(minlength=32) / 4000
    torch.testing.assert_close(share, wanted.detach(), atol=0.025, rtol=0)


def test_temperature_is_one_number_or_one_a_scale():
    var = tiny()
    plain, _ = var.generate_tokens(1, seeds=SEEDS)
    assert torch.equal(var.generate_tokens(1, seeds=SEEDS, temperature=[1.0, 1.0, 1.0])[0], plain)
    cold_end, _ = var.generate_tokens(1, seeds=SEEDS, temperature=[1.0, 1.0, 1e-4])
    assert torch.equal(cold_end[:, :5], plain[:, :5])
    again, _ = var.generate_tokens(
        1, seeds=[8, 9, 10], temperature=[1.0, 1.0, 1e-4], known_BL=prefix(plain, 5)
    )
    assert torch.equal(again, cold_end)
    assert not torch.equal(plain, cold_end)


def prefix(idx_BL: Tensor, length: int) -> Tensor:
    known_BL = torch.full_like(idx_BL, -1)
    known_BL[:, :length] = idx_BL[:, :length]
    return known_BL


@pytest.mark.parametrize("length", [0, 1, 5, 14])
def test_going_on_from_a_samples_own_prefix_gives_the_sample(length, monkeypatch):
    """Given tokens move no other token's random number; the head is skipped where all are given."""
    var = tiny()
    whole, f_hat = var.generate_tokens(1, seeds=SEEDS)
    heads = []
    get_logits = var.get_logits
    monkeypatch.setattr(var, "get_logits", lambda *a: heads.append(1) or get_logits(*a))
    again, f_hat_again = var.generate_tokens(1, seeds=SEEDS, known_BL=prefix(whole, length))
    assert torch.equal(again, whole)
    torch.testing.assert_close(f_hat_again, f_hat)
    assert len(heads) == {0: 3, 1: 2, 5: 1, 14: 0}[length]


def test_given_tokens_replace_drawn_ones_at_every_scale_and_finer_scales_see_them():
    var = tiny()
    free, _ = var.generate_tokens(1, seeds=SEEDS, greedy=True)
    known_BL = torch.full_like(free, -1)
    positions = [0, 3, 9]
    known_BL[:, positions] = (free[:, positions] + 1) % 32
    forced, f_hat = var.generate_tokens(1, seeds=SEEDS, greedy=True, known_BL=known_BL)
    assert torch.equal(forced[:, positions], known_BL[:, positions])
    others = [position for position in range(14) if position not in positions]
    assert not torch.equal(forced[:, others], free[:, others])
    maps = [
        var.vae_quant_proxy[0].codes_to_map(t, pn)
        for t, pn in zip(split_scales(forced, PATCH_NUMS), PATCH_NUMS, strict=True)
    ]
    torch.testing.assert_close(var.vae_quant_proxy[0].embed_to_fhat(maps, last_one=True), f_hat)


def test_a_class_is_drawn_for_each_image_when_none_is_given(monkeypatch):
    var = tiny()
    drawn = []
    generate = var.generate_tokens
    monkeypatch.setattr(
        var, "generate_tokens", lambda label, **s: drawn.append(label) or generate(label, **s)
    )
    for B in (40, 3):
        var.autoregressive_infer_cfg(B, None, g_seed=0, cfg=0.0)
    assert set(drawn[0].tolist()) == {0, 1, 2, 3}
    assert torch.equal(drawn[1], drawn[0][:3])


def test_dropout_is_off_while_sampling_and_back_on_afterwards():
    var = tiny(drop_rate=0.5, drop_path_rate=0.5)
    sample, _ = var.generate_tokens(1, seeds=SEEDS)
    var.train()
    assert torch.equal(var.generate_tokens(1, seeds=SEEDS)[0], sample)
    assert all(module.training for module in var.modules())


def test_sampling_under_autocast_keeps_the_quantised_map_in_float32():
    var = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, f_hat = var.generate_tokens(1, seeds=SEEDS, more_smooth=True)
        logits = var(*inputs_of(var)[::2])
    assert f_hat.dtype == torch.float32
    assert logits.dtype == torch.float32


class Casts(TorchDispatchMode):
    """Counts how often each tensor is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten._to_copy.default:
            self.count[arguments[0].data_ptr()] += 1
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("is_frozen", [True, False])
def test_weights_are_cast_once_a_sample_and_the_numbers_are_those_of_casting_each_time(is_frozen):
    """Frozen weights were cast again at every scale."""
    var = tiny().requires_grad_(not is_frozen)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        wanted = var.generate_tokens(1, seeds=SEEDS)
    with torch.autocast("cpu", dtype=torch.bfloat16), Casts() as casts:
        found = var.generate_tokens(1, seeds=SEEDS)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    linear = [module for module in var.blocks.modules() if isinstance(module, torch.nn.Linear)]
    assert {casts.count[module.weight.data_ptr()] for module in linear} == {1}
    assert all(parameter.requires_grad != is_frozen for parameter in var.parameters())
    assert not any(x.requires_grad for x in found)


# --- training ---


def test_progressive_training_runs_fewer_tokens_and_leaves_no_weight_without_gradient():
    """DistributedDataParallel waits for every parameter, so also the first stage must reach them all."""
    var = tiny(shared_aln=True, attn_l2_norm=True).train()
    label_B, _, x_BLC = inputs_of(var)
    lengths = []
    var.blocks[1].register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    for stage, length in [(0, 1), (1, 5), (2, 14), (-1, 14)]:
        var.prog_si = var.vae_quant_proxy[0].prog_si = stage
        cut = None if stage == 0 else x_BLC[:, : length - 1]
        for x in (x_BLC, cut):
            var.zero_grad(set_to_none=True)
            logits = var(label_B, x)
            assert logits.shape == (3, length, 32)
            assert lengths[-1] == length
            logits.sum().backward()
            assert all(p.grad is not None for p in var.parameters())


def test_the_vqvae_is_used_but_not_owned():
    var = tiny()
    assert not [key for key in var.state_dict() if "quantize" in key or "decoder" in key]
    assert var.vae_proxy[0] is not None


@pytest.mark.parametrize("shared_aln", [False, True])
def test_starting_weights(shared_aln):
    torch.manual_seed(0)
    vae = VQVAE(vocab_size=512, z_channels=8, ch=32, v_patch_nums=(1, 2))
    var = VAR(
        vae, num_classes=40, depth=8, embed_dim=128, num_heads=2, patch_nums=(1, 2), shared_aln=shared_aln
    )
    before = var.blocks[0].ada_gss.detach().clone() if shared_aln else None
    var.init_weights(init_adaln=0.5, init_adaln_gamma=1e-3, init_head=0.1, init_std=0.02)
    std = {name: float(p.detach().std()) for name, p in var.named_parameters()}
    assert std["class_emb.weight"] == pytest.approx(0.02, rel=0.05)
    assert std["word_embed.weight"] == pytest.approx(0.02, rel=0.1)
    assert std["head.weight"] == pytest.approx(0.002, rel=0.05)
    assert std["head_nm.ada_lin.1.weight"] == pytest.approx(0.01, rel=0.05)
    for last in ("attn.proj", "ffn.fc2"):
        assert std[f"blocks.3.{last}.weight"] == pytest.approx(0.02 / 4, rel=0.05)
    if shared_aln:
        after = var.blocks[0].ada_gss.detach()
        torch.testing.assert_close(after[:, :, :2], 1e-3 * before[:, :, :2])
        torch.testing.assert_close(after[:, :, 2:], 0.5 * before[:, :, 2:])
    else:
        gains, others = var.blocks[0].ada_lin[1].weight.detach().split([256, 512])
        assert float(gains.std()) == pytest.approx(2e-5, rel=0.05)
        assert float(others.std()) == pytest.approx(0.01, rel=0.05)
    assert all(float(p.detach().abs().max()) == 0 for name, p in var.named_parameters() if "bias" in name)
    var.init_weights(init_std=-1)
    assert float(var.class_emb.weight.detach().std()) == pytest.approx((3 * 128) ** -0.5, rel=0.05)


# --- refusals ---


def test_settings_that_make_no_sense_are_refused():
    vae = VQVAE(vocab_size=32, z_channels=8, ch=32, v_patch_nums=PATCH_NUMS)
    with pytest.raises(ValueError, match="heads must divide the width"):
        VAR(vae, embed_dim=32, num_heads=3, patch_nums=PATCH_NUMS)
    with pytest.raises(ValueError, match="give both the same"):
        VAR(vae, embed_dim=32, num_heads=2, patch_nums=(1, 2))


@pytest.mark.parametrize("labels", [[0, 1, 5], [0, 1, -2], [0, 1], [[0, 1, 2]]])
def test_wrong_labels_are_refused_in_training_and_sampling(labels):
    var = tiny()
    _, _, x_BLC = inputs_of(var)
    label_B = torch.tensor(labels)
    with pytest.raises(ValueError, match="found"):
        var(label_B, x_BLC)
    with pytest.raises(ValueError, match=r"found .*labels"):
        var.generate_tokens(label_B, seeds=SEEDS)


def test_wrong_inputs_of_training_are_refused():
    var = tiny()
    label_B, _, x_BLC = inputs_of(var)
    for wrong in (None, x_BLC[:, :-1], x_BLC[:2], x_BLC[..., :4], torch.zeros(3, 14, 8)):
        with pytest.raises(ValueError, match="idxBl_to_var_input"):
            var(label_B, wrong)
    with pytest.raises(ValueError, match="one value per image"):
        var(label_B, x_BLC, class_drop_B=torch.tensor([True]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature=nan, wanted one finite number of 1e-6 or more, or 3"),
        ({"temperature": [1.0, float("nan"), 1.0]}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": 1e-40, "top_p": 0.9}, "temperature"),
        ({"temperature": [1.0, 1.0]}, "temperature"),
        ({"cfg": -1.0}, "cfg"),
        ({"cfg": float("nan")}, "cfg"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"greedy": True, "more_smooth": True}, "choose one"),
        ({"known_BL": torch.zeros(3, 13, dtype=torch.long)}, r"wanted \(3, 14\)"),
        ({"known_BL": torch.full((3, 14), 32)}, "another VQ-VAE"),
        ({"known_BL": torch.full((3, 14), -2)}, "another VQ-VAE"),
        ({"seeds": []}, "no seeds"),
    ],
)
def test_wrong_settings_of_sampling_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny().generate_tokens(1, **({"seeds": SEEDS} | settings))


# --- fast paths: the same numbers ---


@pytest.mark.parametrize("prog_si", [-1, 0, 1])
def test_attending_by_scale_and_by_mask_give_the_same_logits(prog_si):
    var = tiny(attn_l2_norm=True)
    var.prog_si = prog_si
    label_B, _, x_BLC = inputs_of(var)
    assert var.attend_by_scale
    by_scale = var(label_B, x_BLC)
    var.attend_by_scale = False
    torch.testing.assert_close(var(label_B, x_BLC), by_scale)


@pytest.mark.parametrize("prog_si", [-1, 1])
@pytest.mark.parametrize("chunk", [0, 4])
def test_forward_with_targets_gives_the_cross_entropy_of_its_logits(prog_si, chunk):
    var = tiny(cond_drop_rate=0.0).train()
    var.prog_si = prog_si
    label_B, idx_BL, x_BLC = inputs_of(var)
    logits = var(label_B, x_BLC)
    length = logits.shape[1]
    wanted = F.cross_entropy(
        logits.flatten(0, 1), idx_BL[:, :length].flatten(), reduction="none", label_smoothing=0.1
    )
    wanted.mean().backward()
    gradients = [p.grad.clone() for p in var.parameters()]
    var.zero_grad()
    found, _, correct_BL = var(label_B, x_BLC, target_BL=idx_BL, label_smoothing=0.1, chunk=chunk)
    found.mean().backward()
    torch.testing.assert_close(found, wanted.view(3, length))
    assert torch.equal(correct_BL, logits.argmax(-1) == idx_BL[:, :length])
    for parameter, gradient in zip(var.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared_aln", [False, True])
def test_blocks_run_once_more_give_the_same_numbers_and_keep_less(shared_aln):
    """Bit for bit, also with dropout and stochastic depth, whose draws must come again."""
    var = tiny(drop_rate=0.2, drop_path_rate=0.5, shared_aln=shared_aln).train()
    label_B, idx_BL, x_BLC = inputs_of(var)
    results, kept = [], []
    for var.recompute_blocks in (False, True):
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        torch.manual_seed(1)
        var.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss_BL, _, _ = var(label_B, x_BLC, target_BL=idx_BL)
        loss_BL.mean().backward()
        results.append([loss_BL.detach(), *(p.grad.clone() for p in var.parameters())])
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < kept[0] / 2


def test_the_head_skips_the_half_without_class_at_the_first_scale_only(monkeypatch):
    """Its logits have weight 0 there; its tokens still run, for finer scales look at them."""
    var, rows, block_rows = tiny(), [], []
    whole = var.get_logits
    monkeypatch.setattr(var, "get_logits", lambda x, c: rows.append(len(x)) or whole(x, c))
    var.blocks[0].register_forward_hook(lambda _, inputs, __: block_rows.append(len(inputs[0])))
    guided, _ = var.generate_tokens(1, seeds=SEEDS, cfg=3.0)
    assert rows == [3, 6, 6] and block_rows == [6, 6, 6]

    # The plain way, with teacher forcing on what was drawn: both halves at every scale.
    x_BLC = var.vae_quant_proxy[0].idxBl_to_var_input(split_scales(guided, PATCH_NUMS))
    monkeypatch.undo()
    with_class, without = (var(torch.full((3,), label), x_BLC) for label in (1, -1))
    t_L = torch.tensor([0.0] + [1.5] * 4 + [3.0] * 9)[:, None]
    logits = (1 + t_L) * with_class - t_L * without
    noise = gumbel_noise(SEEDS, range(14), 32, logits.device)
    assert torch.equal((logits + noise).argmax(-1), guided)


def test_compiled_blocks_draw_the_same_tokens_with_one_graph_a_scale():
    """With the backend that needs no compiler; the graphs are those that inductor would get."""
    # As train_var.py builds it: drop path differs from block to block, and is nothing outside of training.
    var = tiny(attn_l2_norm=True, drop_path_rate=0.05)
    plain, f_hat = var.generate_tokens(1, seeds=SEEDS)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    var.compile_blocks(backend="aot_eager")
    compiled, f_hat_compiled = var.generate_tokens(1, seeds=SEEDS)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(PATCH_NUMS)
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch.equal(compiled, plain)
    torch.testing.assert_close(f_hat_compiled, f_hat)


@pytest.mark.parametrize(
    "settings",
    [{"cfg": 1.5, "top_k": 10, "top_p": 0.9}, {"cfg": 0.0, "more_smooth": True}, {"greedy": True}],
)
@pytest.mark.parametrize("prefix", [0, 5])
def test_sampling_asks_nothing_of_the_device_from_the_first_scale_to_the_pixels(settings, prefix):
    """On "meta" there are no values: whoever asks for one, and so would make a GPU wait, raises."""
    var = tiny().to("meta")
    vae = var.vae_proxy[0].to("meta")
    known_BL = torch.full((3, var.L), -1)
    known_BL[:, :prefix] = 0
    idx_BL, f_hat = var.generate_tokens([0, 1, 2], seeds=SEEDS, known_BL=known_BL, **settings)
    assert idx_BL.is_meta and vae.fhat_to_img(f_hat).is_meta
