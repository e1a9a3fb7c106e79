"""Checkpoints: atomic, weights only, strict; published layouts read from their shapes."""

import copy
from pathlib import Path

import pytest
import torch

from models import VAR, VQVAE
from usvar import checkpoints
from usvar.errors import InputError


def vqvae(**changes) -> VQVAE:
    arguments = {"vocab_size": 16, "z_channels": 4, "ch": 32, "v_patch_nums": (1, 2)}
    return VQVAE(**arguments | changes)


def save_bare(path: Path, model: torch.nn.Module) -> Path:
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    "changes", [{}, {"share_quant_resi": 1}, {"share_quant_resi": 0}, {"quant_resi": 0.0}]
)
def test_a_bare_vqvae_is_read_from_its_shapes(tmp_path, changes):
    model = vqvae(**changes)
    path = save_bare(tmp_path / "vae.pth", model)
    loaded = checkpoints.load_vqvae(path, patch_nums=(1, 2))
    image_B3HW = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(loaded.model(image_B3HW)[0], model(image_B3HW)[0])
    assert loaded.classes is None


def test_a_bare_file_with_ten_scales_has_the_published_patch_numbers(tmp_path):
    path = save_bare(tmp_path / "vae.pth", vqvae(v_patch_nums=checkpoints.PUBLISHED_PATCH_NUMS))
    assert checkpoints.load_vqvae(path).model.quantize.v_patch_nums == checkpoints.PUBLISHED_PATCH_NUMS
    other = save_bare(tmp_path / "other.pth", vqvae())
    with pytest.raises(InputError, match="has 2 scales"):
        checkpoints.load_vqvae(other)


@pytest.mark.parametrize("shared_aln", [False, True])
@pytest.mark.parametrize("in_trainer_file", [False, True])
def test_a_published_var_is_read_from_its_shapes(tmp_path, shared_aln, in_trainer_file):
    model = vqvae()
    loaded_vqvae = checkpoints.load_vqvae(save_bare(tmp_path / "vae.pth", model), patch_nums=(1, 2))
    sizes = {"num_classes": 3, "depth": 2, "embed_dim": 128, "num_heads": 2, "patch_nums": (1, 2)}
    var = VAR(model, **sizes, shared_aln=shared_aln, attn_l2_norm=True).eval()
    content = {"trainer": {"var_wo_ddp": var.state_dict()}} if in_trainer_file else var.state_dict()
    torch.save(content, tmp_path / "var.pth")
    loaded = checkpoints.load_var(tmp_path / "var.pth", loaded_vqvae)
    label_B, input_BLC = torch.tensor([1]), torch.randn(1, 4, 4)
    assert torch.equal(loaded.model(label_B, input_BLC), var(label_B, input_BLC))


@pytest.mark.parametrize(("width", "heads", "given"), [(128, 2, None), (128, 4, 4), (48, 3, 3)])
def test_heads_that_no_shape_tells_are_64_wide_or_as_given(tmp_path, capsys, width, heads, given):
    """Without l2-norm; past fault: other heads gave other numbers without a word."""
    model = vqvae()
    loaded_vqvae = checkpoints.load_vqvae(save_bare(tmp_path / "vae.pth", model), patch_nums=(1, 2))
    sizes = {"num_classes": 3, "depth": 1, "embed_dim": width, "num_heads": heads, "patch_nums": (1, 2)}
    var = VAR(model, **sizes).eval()
    loaded = checkpoints.load_var(save_bare(tmp_path / "var.pth", var), loaded_vqvae, num_heads=given)
    label_B, input_BLC = torch.tensor([1]), torch.randn(1, 4, 4)
    assert torch.equal(loaded.model(label_B, input_BLC), var(label_B, input_BLC))
    assert ("does not say how many heads" in capsys.readouterr().out) == (given is None)
    if width % 64:
        with pytest.raises(InputError, match=r"how many heads its 48 channels make: .*num_heads="):
            checkpoints.load_var(tmp_path / "var.pth", loaded_vqvae)


def test_as_many_classes_are_named_as_the_tensors_have(tiny_var, tiny_vqvae, tmp_path):
    """Past fault: the name one too many was taken for "no class" and drawn."""
    content = checkpoints.read_checkpoint(tiny_var)
    content["config"]["classes"] = [*content["config"]["classes"], "Spleen"]
    checkpoints.save_checkpoint(tmp_path / "var.pth", content)
    with pytest.raises(InputError, match="names 4 classes, its tensors have 3"):
        checkpoints.load_var(tmp_path / "var.pth", checkpoints.load_vqvae(tiny_vqvae))


@pytest.mark.parametrize("made_by", [None, [], {"inputs": None}, {"settings": 3}])
def test_a_record_that_is_no_dictionary_is_refused(tiny_vqvae, tmp_path, made_by):
    content = checkpoints.read_checkpoint(tiny_vqvae) | {"made_by": made_by}
    checkpoints.save_checkpoint(tmp_path / "vae.pth", content)
    with pytest.raises(InputError, match="made_by record that is no dictionary"):
        checkpoints.load_vqvae(tmp_path / "vae.pth")


def test_a_trainer_s_file_without_weights_is_refused(tmp_path):
    torch.save({"trainer": {"vae_local": None}}, tmp_path / "trainer.pth")
    with pytest.raises(InputError, match="holds no VQ-VAE"):
        checkpoints.load_vqvae(tmp_path / "trainer.pth")


def test_our_own_files_say_what_they_are(tiny_vqvae, tiny_var):
    loaded = checkpoints.load_vqvae(tiny_vqvae)
    var = checkpoints.load_var(tiny_var, loaded)
    assert not loaded.model.training and not var.model.training
    assert not any(p.requires_grad for p in var.model.parameters())
    assert len(loaded.sha256) == 64 and len(var.classes) == var.model.num_classes


def test_a_var_of_another_vqvae_is_refused(tiny_var, tmp_path):
    other = checkpoints.load_vqvae(save_bare(tmp_path / "vae.pth", vqvae()), patch_nums=(1, 2))
    with pytest.raises(InputError, match="trained on tokens of a VQ-VAE"):
        checkpoints.load_var(tiny_var, other)


def test_kinds_are_not_mixed_up(tiny_vqvae, tiny_var):
    with pytest.raises(InputError, match="holds no VQ-VAE"):
        checkpoints.load_vqvae(tiny_var)
    with pytest.raises(InputError, match="holds no VAR"):
        checkpoints.load_var(tiny_vqvae, checkpoints.load_vqvae(tiny_vqvae))


def test_shapes_and_keys_must_be_the_model_s(tmp_path):
    """The predecessor loaded with strict=False, so that a wrong file gave noise instead of an error."""
    state = vqvae().state_dict()
    model = vqvae(vocab_size=32)
    with pytest.raises(InputError, match=r"quantize\.\S+ of shape \(.*16"):
        checkpoints.load_strictly(model, state, tmp_path)
    del state["encoder.conv_in.bias"]
    with pytest.raises(InputError, match=r"lacks encoder\.conv_in\.bias"):
        checkpoints.load_strictly(vqvae(), state, tmp_path)
    with pytest.raises(InputError, match="unknown tensor extra"):
        checkpoints.load_strictly(vqvae(), vqvae().state_dict() | {"extra": torch.zeros(1)}, tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    """The tokeniser gave code 0 everywhere for them, with exit code 0."""
    state = vqvae().state_dict()
    state["encoder.conv_in.bias"][0] = float("nan")
    with pytest.raises(InputError, match=r"numbers in encoder\.conv_in\.bias that are not finite"):
        checkpoints.load_strictly(vqvae(), state, tmp_path)


class Evil:
    """Pickles into a call of print."""

    def __reduce__(self):
        return print, ("code of the file was run",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="Python objects"):
        checkpoints.read_checkpoint(tmp_path / "evil.pth")
    assert "code of the file" not in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_cut_file_is_refused(tiny_vqvae, tmp_path, share):
    content = tiny_vqvae.read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut\.pth"):
        checkpoints.read_checkpoint(tmp_path / "cut.pth")


def test_a_missing_file_and_a_list_are_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        checkpoints.read_checkpoint(tmp_path / "no.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds a list"):
        checkpoints.read_checkpoint(tmp_path / "list.pth")


def test_a_failed_save_keeps_the_earlier_checkpoint(tmp_path):
    path = tmp_path / "last.pth"
    checkpoints.save_checkpoint(path, {"step": 1})
    with pytest.raises(AttributeError):
        checkpoints.save_checkpoint(path, {"step": lambda: 2})
    assert checkpoints.read_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_momenta_take_the_layout_of_the_weights(tmp_path):
    """A GPU's run is channels last, a CPU's is not; fused AdamW walks both as they lie in memory."""

    def trained(layout: torch.memory_format) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def step(model: torch.nn.Module, optimiser: torch.optim.Optimizer, seed: int) -> None:
        image_B3HW = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        model(image_B3HW).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()

    before, its = trained(torch.channels_last)
    step(before, its, 0)
    saved = {
        "model": {name: value.clone() for name, value in before.state_dict().items()},
        "optimiser": copy.deepcopy(its.state_dict()),
        "step": 1,
    }
    saved["ema"] = saved["model"]
    after, own = trained(torch.contiguous_format)
    checkpoints.restore(tmp_path / "last.pth", saved, after, copy.deepcopy(after), own)
    for model, optimiser in ((before, its), (after, own)):
        step(model, optimiser, 1)
    assert own.state[after.weight]["exp_avg"].stride() == after.weight.stride()
    torch.testing.assert_close(after.weight, before.weight, rtol=0, atol=1e-5)
