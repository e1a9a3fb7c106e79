"""The benchmark of the transformer's remedies: what each row changes, and its numbers against its files."""

import json
from dataclasses import replace

import numpy as np
import pytest

import train_var
from benchmarks import var_recipes
from usvar import images, runs
from usvar.checkpoints import load_var, load_vqvae, read_checkpoint
from usvar.errors import InputError

ROWS = ("base", "base, another seed", "dropout 0.1")


def settings(data, vqvae, tokens_dir, out, **changes) -> var_recipes.Settings:
    chosen = {"steps": 4, "batch_size": 4, "depth": 1, "width": 32, "heads": 2, "evaluations": 2}
    chosen |= {"rows": ROWS, "extractor_steps": 2, "samples_per_image": 1, "device": "cpu"}
    return var_recipes.Settings(data, vqvae, tokens_dir, out, **chosen | changes)


@pytest.fixture(scope="module")
def run(tiny_data, tiny_vqvae, tiny_tokens, tmp_path_factory):
    out = tmp_path_factory.mktemp("recipes")
    s = settings(tiny_data, tiny_vqvae, tiny_tokens, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_var, "draw_curves", lambda *_: None)
        var_recipes.main(replace(s, rows=("base",)))
        trained = (out / "base" / "ar-ckpt-last.pth").stat().st_mtime_ns
        var_recipes.main(s)  # does not train the base anew
    assert (out / "base" / "ar-ckpt-last.pth").stat().st_mtime_ns == trained
    return s, out, json.loads((out / "results.json").read_text())["rows"]


def test_rows_differ_from_the_base_as_they_say(run):
    _, out, rows = run
    assert tuple(rows) == ROWS and {row["images_seen"] for row in rows.values()} == {16}
    folders = ("base", "base__another_seed", "dropout_0_1")
    base, *others = (
        read_checkpoint(out / name / "ar-ckpt-last.pth")["made_by"]["settings"] for name in folders
    )
    for other, changed in zip(others, ({"seed": 1}, {"drop_rate": 0.1}), strict=True):
        assert {
            key: value for key, value in other.items() if value != base[key]
        }.items() - changed.items() == {("out_dir", other["out_dir"])}


def test_numbers_are_those_of_the_kept_weights(run):
    s, out, rows = run
    kept = read_checkpoint(out / "base" / "ar-ckpt-best.pth")
    assert rows["base"]["val_mean"] == kept["val"]["val_mean"] and rows["base"]["best_step"] == kept["step"]
    logged = [row for row in runs.read_log(out / "base" / "log.jsonl") if "val_mean" in row]
    assert rows["base"]["val_mean_at"] == [row["val_mean"] for row in logged] and len(logged) == 2
    vqvae = load_vqvae(s.vqvae)
    measure, label_N = var_recipes.sample_measure(s, vqvae.model)
    model = load_var(out / "base" / "ar-ckpt-best.pth", vqvae).model
    drawn = var_recipes.draw(s, var_recipes.train_settings(s, "base"), model, vqvae.model, label_N)
    assert drawn.shape == (12, 64, 64) and measure(drawn)[0] == pytest.approx(rows["base"]["distance"])
    assert (out / "recipes.png").stat().st_size > 5000


def test_the_sample_measure_is_near_0_for_what_it_compares_with(tiny_data, tiny_vqvae, tiny_tokens, tmp_path):
    """And far from it for pictures of another kind."""
    s = settings(tiny_data, tiny_vqvae, tiny_tokens, tmp_path, extractor_steps=20)
    vae = load_vqvae(tiny_vqvae).model
    measure, label_N = var_recipes.sample_measure(s, vae)
    files = images.find_images(tiny_data, "val", images.find_classes(tiny_data))
    val = images.read_images(files, range(len(files)), 64)
    rebuilt = var_recipes.judging.rebuild(vae, val, 8)
    noise = np.random.default_rng(0).integers(0, 256, val.shape).astype(np.uint8)
    assert label_N.tolist() == files.label_N.tolist()
    assert measure(rebuilt)[0] < 0 < 10 * abs(measure(rebuilt)[0]) < measure(noise)[0]


def test_every_row_is_a_setting_of_the_trainer(tiny_data, tiny_vqvae, tiny_tokens, tmp_path):
    s = settings(tiny_data, tiny_vqvae, tiny_tokens, tmp_path)
    made = {name: var_recipes.train_settings(s, name) for name in var_recipes.RECIPES}
    assert len({run.out_dir for run in made.values()}) == len(made)
    assert made["base"].drop_path_rate == 0 and made["base"].steps == 4
    for changes, match in (({"rows": ("theirs",)}, "'theirs' was given"), ({"steps": 0}, "--steps 0")):
        with pytest.raises(InputError, match=match):
            var_recipes.main(settings(tiny_data, tiny_vqvae, tiny_tokens, tmp_path, **changes))
