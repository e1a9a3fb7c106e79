"""What the scripts' tests share: prepared pictures, and tiny untrained models with the files they leave.

Paths only, and read-only: a test that changes a file copies it to its own tmp_path first.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from models import VAR, VQVAE
from usvar import images
from usvar.checkpoints import save_checkpoint
from usvar.provenance import sha256_file
from usvar.tokens import write_token_maps

CLASSES = ("Heart", "Kidney", "Liver")
COUNTS = {"train": 6, "val": 4, "test": 3}  # images of each class
SIDE = 64
PATCH_NUMS = (1, 2, 4)
VOCAB_SIZE = 32


def speckled_disc(label: int, stream: np.random.Generator) -> np.ndarray:
    """A (SIDE, SIDE) uint8 picture: a disc in noise, whose size and brightness tell the class."""
    y, x = np.mgrid[:SIDE, :SIDE] - stream.uniform(0.4, 0.6, (2, 1, 1)) * SIDE
    disc = np.hypot(x, y) < 8 + 7 * label
    return np.clip(60 + 50 * label * disc + stream.normal(0, 15, disc.shape), 1, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A prepared folder: {train,val,test}/<Class>/*.png, three classes, 64 x 64."""
    root, stream = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            for i in range(count):
                images.save_png(root / split / name / f"made__{i}.png", speckled_disc(label, stream))
    return root


@pytest.fixture(scope="session")
def tiny_vqvae(tiny_data, tmp_path_factory) -> Path:
    """best.pth of a VQ-VAE with random weights, its codebook started from what the pictures look up."""
    files = images.find_images(tiny_data, "train", CLASSES)
    image_B3HW = images.to_model_range(images.read_images(files, range(len(files)), SIDE))
    arguments = {"vocab_size": VOCAB_SIZE, "z_channels": 8, "ch": 32, "v_patch_nums": list(PATCH_NUMS)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VQVAE(**arguments, test_mode=True)
        features_BChw = model.img_to_features(image_B3HW)
        every_V = torch.ones(VOCAB_SIZE, dtype=torch.bool)
        for seed in range(3):  # what is looked up depends on the codes chosen before it
            vectors = model.quantize.residuals(features_BChw)
            chosen = [vectors_NC[torch.randperm(len(vectors_NC))[:12]] for vectors_NC in vectors]
            model.quantize.replace_codes_(every_V, torch.cat(chosen), torch.Generator().manual_seed(seed))
    path = tmp_path_factory.mktemp("vqvae") / "best.pth"
    config = {"kind": "vqvae", "arguments": arguments, "image_size": SIDE, "classes": list(CLASSES)}
    save_checkpoint(path, {"model": model.state_dict(), "config": config, "made_by": {}})
    return path


@pytest.fixture(scope="session")
def tiny_tokens(tiny_data, tiny_vqvae, tmp_path_factory) -> Path:
    """Token maps of the three splits; train has a mirrored second view of each picture."""
    content = torch.load(tiny_vqvae, weights_only=True)
    model = VQVAE(**content["config"]["arguments"])
    model.load_state_dict(content["model"])
    folder = tmp_path_factory.mktemp("tokens")
    made_by = {"vocab_size": VOCAB_SIZE, "image_size": SIDE}
    made_by["inputs"] = {"vqvae": {"path": tiny_vqvae.name, "sha256": sha256_file(tiny_vqvae)}}
    for split in images.SPLITS:
        files = images.find_images(tiny_data, split, CLASSES)
        views = 2 if split == "train" else 1
        image_B3HW = images.to_model_range(images.read_images(files, range(len(files)), SIDE))
        idx_BvL = torch.stack(
            [torch.cat(model.img_to_idxBl(x), dim=1) for x in (image_B3HW, image_B3HW.flip(-1))[:views]],
            dim=1,
        )
        write_token_maps(
            folder / split,
            idx_BvL.flatten(0, 1).numpy().astype(np.uint16),
            np.repeat(files.label_N, views),
            np.repeat(np.array(files.paths), views),
            np.tile(np.arange(views), len(files)),
            PATCH_NUMS,
            CLASSES,
            made_by | {"split": split, "views": views},
        )
    return folder


@pytest.fixture(scope="session")
def tiny_var(tiny_vqvae, tmp_path_factory) -> Path:
    """ar-ckpt-best.pth of a transformer with random weights, large enough that class and prefix matter."""
    content = torch.load(tiny_vqvae, weights_only=True)
    vae = VQVAE(**content["config"]["arguments"])
    arguments = {"num_classes": len(CLASSES), "depth": 2, "embed_dim": 32, "num_heads": 2}
    arguments |= {"attn_l2_norm": True, "patch_nums": list(PATCH_NUMS)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAR(vae, **arguments)
        model.init_weights(init_std=0.3, init_head=1.0, init_adaln_gamma=0.5)
    path = tmp_path_factory.mktemp("var") / "ar-ckpt-best.pth"
    config = {"kind": "var", "arguments": arguments, "classes": list(CLASSES), "image_size": SIDE}
    config["vqvae_sha256"] = sha256_file(tiny_vqvae)
    save_checkpoint(path, {"model": model.state_dict(), "config": config, "made_by": {}})
    return path


@pytest.fixture
def var_without_class_drop(tiny_var, tmp_path) -> Path:
    """The tiny transformer as if it had been trained without class dropout: guidance is refused."""
    content = torch.load(tiny_var, weights_only=True)
    content["config"]["arguments"]["cond_drop_rate"] = 0.0
    torch.save(content, tmp_path / "var_without_class_drop.pth")
    return tmp_path / "var_without_class_drop.pth"
