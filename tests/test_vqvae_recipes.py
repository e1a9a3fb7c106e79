"""The benchmark of VQ-VAE recipes: what each row changes, and its numbers against the files it leaves."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import train_vqvae
from benchmarks import vqvae_recipes
from benchmarks.measure import add_row
from usvar import images, judging
from usvar.checkpoints import load_vqvae, read_checkpoint
from usvar.errors import InputError
from usvar.evaluation import kernel_distance
from usvar.extractor import EXTRACTOR_SHAPE, features, make_extractor, train_classifier


def settings(data, out, **changes) -> vqvae_recipes.Settings:
    chosen = {"steps": 2, "batch_size": 4, "vocab_size": 64, "evaluations": 1, "extractor_steps": 5}
    return vqvae_recipes.Settings(data, out, **chosen | {"device": "cpu"} | changes)


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_vqvae, "draw_reconstructions", lambda *_: None)
        patch.setattr(vqvae_recipes, "losses_of_ours", lambda *_: [])  # two steps decide nothing
        vqvae_recipes.main(settings(tiny_data, out))
    return out, json.loads((out / "results.json").read_text())


def test_the_rows_differ_as_they_say_and_see_as_many_images(run, tiny_data):
    out, results = run
    assert list(results["rows"]) == ["predecessor", "ours"]
    assert {row["images_seen"] for row in results["rows"].values()} == {8}
    made_by = {name: read_checkpoint(out / name / "last.pth")["made_by"] for name in results["rows"]}
    differing = {
        key
        for key, value in made_by["ours"]["settings"].items()
        if value != made_by["predecessor"]["settings"][key]
    } - {"out_dir"}
    assert differing == {*vqvae_recipes.PREDECESSOR, "vq_weight"} - {"betas"}
    assert made_by["predecessor"]["settings"]["betas"] == [0.9, 0.95]
    # From N(0, 1) and hardly moved in two steps, with the averaged weights equal to the last ones.
    last = read_checkpoint(out / "predecessor" / "last.pth")
    assert 0.9 < last["model"]["quantize.embedding.weight"].std() < 1.1
    assert torch.equal(last["ema"]["decoder.conv_in.weight"], last["model"]["decoder.conv_in.weight"])


def test_a_row_asked_for_later_joins_those_with_the_same_settings_alone(tmp_path):
    def content(steps: int, rows: list[str]) -> dict:
        settings = {"rows": rows, "out_dir": "here", "steps": steps}
        return {"made_by": {"settings": settings, "code_revision": "a"}, "changes": {"x": {}, "y": {}}}

    path = tmp_path / "results.json"
    assert add_row(path, content(5, ["y"]), "y", {"psnr": 1}) == {"y": {"psnr": 1}}
    assert list(add_row(path, content(5, ["x"]), "x", {"psnr": 2})) == ["x", "y"]
    assert add_row(path, content(5, ["y"]), "y", {"psnr": 3})["y"] == {"psnr": 3}
    assert json.loads(path.read_text())["rows"] == {"x": {"psnr": 2}, "y": {"psnr": 3}}
    assert add_row(path, content(6, ["x"]), "x", {"psnr": 4}) == {"x": {"psnr": 4}}


def test_rows_done_at_the_same_moment_are_all_kept(tmp_path):
    names = [str(i) for i in range(40)]
    content = {"made_by": {"settings": {}}, "changes": {name: {} for name in names}}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_row(tmp_path / "results.json", content, name, {}), names))
    assert list(json.loads((tmp_path / "results.json").read_text())["rows"]) == names


def test_numbers_are_those_of_the_kept_weights(run, tiny_data):
    out, results = run
    row, model = results["rows"]["ours"], load_vqvae(out / "ours" / "best.pth").model
    files = images.find_images(tiny_data, "train", images.find_classes(tiny_data))
    tokens = model.img_to_idxBl(images.to_model_range(images.read_images(files, range(len(files)), 64)))
    used = [len(torch.unique(idx_Bl)) for idx_Bl in tokens]
    assert row["usage"] == pytest.approx([count / 64 for count in used])
    assert row["usage_all"] == pytest.approx(len(torch.unique(torch.cat(tokens, 1))) / 64)
    assert row["psnr_db"] == pytest.approx(row["psnr_db_at"][-1], abs=1e-2)
    val = images.find_images(tiny_data, "val", files.classes)
    grey_NHW = images.read_images(val, range(len(val)), 64)
    net = train_classifier(
        EXTRACTOR_SHAPE,
        images.read_images(files, range(len(files)), 64),
        files.label_N,
        3,
        64,
        5,
        0,
        torch.device("cpu"),
    )
    extractor = make_extractor(
        net, images.read_images(files, range(len(files)), 64), 64, judging.FEATURE_DIMS, 0, "cpu"
    )
    assert extractor.sha256() == results["extractor_sha256"]
    rebuilt_NHW = judging.rebuild(model, grey_NHW, 5)
    distance, spread = kernel_distance(
        features(extractor, rebuilt_NHW), features(extractor, grey_NHW), paired=True
    )
    assert row["feature_distance"] == pytest.approx(distance, rel=1e-3)
    assert row["feature_distance_spread"] == pytest.approx(spread, rel=1e-3)
    assert (out / "recipes.png").stat().st_size > 5000


def two_rows() -> tuple[dict, dict]:
    """The predecessor's and our numbers, ours better in each that decides."""
    speckle = {"power_db": {"real": [0.0, 0.0], "rebuilt": [-2.0, -9.0]}}
    before = {"psnr_db": 20.0, "ssim": 0.3, "feature_distance": 2.0, "speckle": speckle, "usage_all": 0.1}
    before |= {"perplexity_all": 50, "sides": [1, 4], "usage": [0.1, 0.1]}
    after = {"psnr_db": 21.6, "ssim": 0.4, "feature_distance": 1.0, "usage_all": 0.96, "perplexity_all": 60}
    after |= {"sides": [1, 4], "usage": [0.1, 0.59]}
    after["speckle"] = {"power_db": {"real": [0.0, 0.0], "rebuilt": [-1.0, 9.5]}}
    return before, after


def test_aims_are_judged_by_the_numbers():
    before, after = two_rows()
    assert [is_met for _, is_met in vqvae_recipes.verdicts(before, after)] == [True, False, True, True, False]
    assert [is_met for _, is_met in vqvae_recipes.verdicts(before, after | {"psnr_db": 21.0})][3] is False
    assert np.allclose(vqvae_recipes.distances(after), [1.0, 9.5])


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, []),
        ({"psnr_db": 19.0}, ["PSNR"]),
        ({"feature_distance": 3.0, "usage_all": 0.05}, ["feature distance", "codes in use"]),
        (
            {"speckle": {"power_db": {"real": [0.0, 0.0], "rebuilt": [3.0, 9.0]}}},
            ["distance of the spectrum"],
        ),
    ],
)
def test_what_ours_loses_is_named(changes, lost):
    before, after = two_rows()
    found = vqvae_recipes.losses_of_ours(before, after | changes)
    assert len(found) == len(lost) and all(name in text for name, text in zip(lost, found, strict=True))


def test_ours_that_loses_ends_the_benchmark_with_code_1(run, tiny_data, monkeypatch, capsys):
    """All rows are done, so that they are only measured again."""
    out, _ = run
    monkeypatch.setattr(vqvae_recipes, "losses_of_ours", lambda *_: ["PSNR"])
    with pytest.raises(SystemExit, match="FAILED: ours is worse than the predecessor's recipe in PSNR"):
        vqvae_recipes.main(settings(tiny_data, out))
    printed = capsys.readouterr().out
    assert printed.count("nothing to do") == 2 and printed.count("aim: ") == 5


def test_every_row_is_a_setting_of_the_trainer(tiny_data, tmp_path):
    s = settings(tiny_data, tmp_path)
    rows = vqvae_recipes.recipes(64)
    made = {name: vqvae_recipes.train_settings(s, name, changes, 64) for name, changes in rows.items()}
    assert len({run.out_dir for run in made.values()}) == len(rows)
    assert made["ours"].patch_nums == (1, 2, 3, 4)
    for run in made.values():
        train_vqvae.check(run, 64)
    with pytest.raises(InputError, match="'theirs' was given"):
        vqvae_recipes.main(settings(tiny_data, tmp_path, rows=("theirs",)))


def test_a_row_whose_loss_would_be_off_is_left_out(tiny_data, tmp_path, monkeypatch, capsys):
    """It would stand in the table as a second row of ours."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(train_vqvae, "main", lambda _: pytest.fail("was trained"))
    with pytest.raises(InputError, match="no row is left"):
        vqvae_recipes.main(settings(tiny_data, tmp_path, rows=("ours + perceptual 0.01",)))
    assert "left out" in capsys.readouterr().out
