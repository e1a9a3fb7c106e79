"""usvar/exchange.py: models to a folder and back, from the Hub's cache without network, use from Python."""

import dataclasses
import json
import logging
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, SIDE
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from usvar import exchange, images
from usvar.checkpoints import load_var, load_vqvae
from usvar.errors import InputError
from usvar.exchange import Models


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a test must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def models(tiny_vqvae, tiny_var) -> Models:
    return exchange.from_checkpoints(tiny_vqvae, tiny_var)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exchange") / "saved"
    models.save_pretrained(path)
    return path


def assert_same(found: Models, wanted: Models) -> None:
    for a, b in ((found.vqvae, wanted.vqvae), (found.var, wanted.var)):
        assert (a.config, a.sha256, a.classes) == (b.config, b.sha256, b.classes)
        assert not a.model.training and not any(p.requires_grad for p in a.model.parameters())
        for (key, value), (key_b, value_b) in zip(
            a.model.state_dict().items(), b.model.state_dict().items(), strict=True
        ):
            assert key == key_b and torch.equal(value, value_b)


def test_models_come_back_from_a_folder_as_they_were(models, folder):
    found = exchange.load(folder)
    assert_same(found, models)
    assert_same(Models.from_pretrained(folder), models)
    assert torch.equal(exchange.generate(found, [0, 1]), exchange.generate(models, [0, 1]))
    # The hash of the checkpoint stays known, so the transformer's claim on its VQ-VAE can be checked.
    assert found.var.config["vqvae_sha256"] == found.vqvae.sha256


def test_the_folder_has_safetensors_settings_and_a_card_and_no_pickle(folder):
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    with safe_open(folder / "model.safetensors", "pt") as file:
        settings = json.loads(file.metadata()["ultrasound-var-1"])
    assert json.loads((folder / "config.json").read_text()) == {"ultrasound-var-1": settings}
    card = (folder / "README.md").read_text()
    assert "Not for diagnosis" in card and ", ".join(CLASSES) in card


def test_the_settings_inside_the_file_are_enough(folder, models, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path)
    assert_same(exchange.load(tmp_path), models)


@pytest.mark.parametrize("text", ['{"ultra', "[1]"])
def test_a_damaged_config_json_does_not_matter(text, folder, models, tmp_path):
    """Past fault: it was read after all, and ended in a traceback."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("a" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot / "config.json").write_text(text)
    assert_same(exchange.load(snapshot), models)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    assert_same(exchange.load("owner/name", cache_dir=tmp_path, local_files_only=True), models)


def test_a_downloaded_repository_needs_no_network(folder, models, tmp_path):
    repository = tmp_path / "models--owner--name"
    shutil.copytree(folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert_same(exchange.load("owner/name", cache_dir=tmp_path, local_files_only=True), models)


@pytest.mark.parametrize("name", ["owner/other", "no such/na me"])
def test_a_repository_that_is_not_to_be_had_is_one_clear_line(name, tmp_path):
    with pytest.raises(InputError, match="is no folder and could not be fetched") as error:
        exchange.load(name, cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(error.value)


def test_saving_keeps_a_card_that_was_written_by_hand_and_publishes_no_paths(models, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    record = {"script": "train_var.py", "settings": {"data_root": "/home/someone/data", "steps": 5}}
    vqvae = exchange.Loaded(models.vqvae.model, models.vqvae.config, record, "0")
    Models(vqvae).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    assert b"someone" not in (tmp_path / "model.safetensors").read_bytes()
    found = exchange.load(tmp_path)
    assert found.vqvae.made_by["settings"] == {"steps": 5} and found.var is None
    with pytest.raises(InputError, match="hold no transformer"):
        exchange.generate(found, [0])


def test_the_card_tells_of_the_models_that_are_there(models, tmp_path):
    """Past fault: after other models were saved into the folder it still named the classes of the first."""
    models.save_pretrained(tmp_path)
    others = exchange.Loaded(models.vqvae.model, models.vqvae.config | {"classes": ["Ovary"]}, {}, "0")
    Models(others).save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert "Classes: Ovary.\n" in card.read_text()
    edited = card.read_text() + "\nTrained on our own scanner.\n"
    card.write_text(edited)
    models.save_pretrained(tmp_path)
    assert card.read_text() == edited


def test_pushing_uploads_what_saving_writes(models, monkeypatch):
    """The Hub's client is the mixin's; here only what it is given is looked at."""
    given = {}

    def upload_folder(_, *, repo_id, folder_path, **rest):
        given.update(repo=repo_id, files={path.name for path in Path(folder_path).iterdir()})

    class Created:
        repo_id = "owner/name"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi.create_repo", lambda *_, **__: Created)
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi.upload_folder", upload_folder)
    models.push_to_hub("owner/name")
    assert given == {"repo": "owner/name", "files": {"model.safetensors", "config.json", "README.md"}}


@pytest.mark.parametrize(
    "damage", ["missing", "half", "text", "foreign", "lacking", "shape", "unknown", "other"]
)
def test_files_that_are_damaged_or_of_others_are_refused(damage, folder, tmp_path):
    path = tmp_path / "model.safetensors"
    content = (folder / path.name).read_bytes()
    state = load_file(folder / path.name)
    with safe_open(folder / path.name, "pt") as file:
        metadata = file.metadata()
    key = "var.head.bias"
    if damage == "half":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("no tensors")
    elif damage == "foreign":
        save_file(state, path)
    elif damage == "lacking":
        save_file({k: v for k, v in state.items() if k != key}, path, metadata)
    elif damage == "shape":
        save_file(state | {key: state[key][:-1].clone()}, path, metadata)
    elif damage == "unknown":
        save_file(state | {"vgg.bias": state[key].clone()}, path, metadata)
    elif damage == "other":
        settings = json.loads(metadata[exchange.SETTINGS_KEY])
        settings["vqvae"]["sha256"] = "0" * 64
        save_file(state, path, {exchange.SETTINGS_KEY: json.dumps(settings)})
    message = {"missing": "is missing", "lacking": "lacks head.bias", "shape": "of shape"}
    message |= {"unknown": r"unknown tensor vgg\.bias", "other": "beside it is 000000000000"}
    with pytest.raises(InputError, match=message.get(damage, "damaged or not written by")) as error:
        exchange.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("part", "name"), [("vqvae", "vocab_size"), ("var", "depth")])
def test_sizes_that_the_tensors_have_not_fill_no_memory(part, name, folder, tmp_path):
    """A file from elsewhere may ask for a model of any size: it is refused before that is made."""
    state = load_file(folder / "model.safetensors")
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata[exchange.SETTINGS_KEY])
    settings[part]["config"]["arguments"][name] = 10**12
    save_file(state, tmp_path / "model.safetensors", {exchange.SETTINGS_KEY: json.dumps(settings)})
    with pytest.raises(InputError, match=f"says {name} = 1000000000000, its tensors"):
        exchange.load(tmp_path)
    for config in ([], {}, {"arguments": 3}):
        settings[part]["config"] = config
        save_file(state, tmp_path / "model.safetensors", {exchange.SETTINGS_KEY: json.dumps(settings)})
        with pytest.raises(InputError, match="has a config without"):
            exchange.load(tmp_path)


def test_loading_says_nothing(folder, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        exchange.load(folder)
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_generating_by_name_or_number_whatever_the_batch(models, tiny_vqvae, tiny_var):
    labels = ["Kidney", "Heart", 2]
    found = exchange.generate(models, labels, seed=3, cfg=2.0, top_p=0.9)
    assert found.shape == (3, 3, SIDE, SIDE) and found.dtype == torch.float32
    assert found.min() >= -1 and found.max() <= 1
    one_by_one = exchange.generate(models, [1, 0, "Liver"], seed=3, batch_size=1, cfg=2.0, top_p=0.9)
    torch.testing.assert_close(one_by_one, found, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(exchange.generate(models, labels, seed=4, cfg=2.0, top_p=0.9), found)
    vqvae = load_vqvae(tiny_vqvae)
    var = load_var(tiny_var, vqvae)
    _, f_hat = var.model.generate_tokens([1, 0, 2], seeds=exchange.image_seeds(3, 3), cfg=2.0, top_p=0.9)
    assert torch.equal(vqvae.model.fhat_to_img(f_hat), found)


def test_guidance_of_a_transformer_trained_without_class_dropout_is_refused(models):
    arguments = models.var.config["arguments"] | {"cond_drop_rate": 0.0}
    var = dataclasses.replace(models.var, config=models.var.config | {"arguments": arguments})
    for given in ({}, {"cfg": 2.0}):
        with pytest.raises(InputError, match="trained without class dropout"):
            exchange.generate(Models(models.vqvae, var), ["Heart"], **given)
    found = exchange.generate(Models(models.vqvae, var), ["Heart"], cfg=0.0)
    assert torch.equal(found, exchange.generate(models, ["Heart"], cfg=0.0))


def test_tokens_are_those_of_the_tokeniser(models, tiny_data, tiny_tokens):
    files = images.find_images(tiny_data, "val", CLASSES)
    grey_BHW = images.read_images(files, range(len(files)), SIDE)
    archive = np.load(tiny_tokens / "val" / "tokens_multiscale_maps.npz")
    found = exchange.tokenise(models, grey_BHW, batch_size=5)
    np.testing.assert_array_equal(found.numpy(), archive["idx"])
    assert torch.equal(exchange.tokenise(models, torch.from_numpy(grey_BHW)), found)


def test_wrong_labels_and_images_are_refused(models):
    with pytest.raises(InputError, match="class Lung is not known, known are Heart, Kidney, Liver"):
        exchange.generate(models, ["Lung"])
    with pytest.raises(InputError, match="no labels"):
        exchange.generate(models, [])
    with pytest.raises(ValueError, match="found labels from 7"):
        exchange.generate(models, [7])
    for wrong in ({"cfg": -1.0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="wanted 1 and 0 or more"):
            exchange.generate(models, ["Heart"], **wrong)
    for wrong in (
        np.zeros((1, 32, 32), np.uint8),
        np.zeros((1, SIDE, SIDE)),
        np.zeros((0, SIDE, SIDE), "uint8"),
    ):
        with pytest.raises(InputError, match=r"wanted uint8 of shape \(B, 64, 64\)"):
            exchange.tokenise(models, wrong)
