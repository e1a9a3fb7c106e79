"""The sweep on tiny models: it goes on where it stopped, chooses by its rule, and its choice is used."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate_var
import sample_var
import sweep_var
from models import VAR
from usvar import images, judging, provenance
from usvar.chosen import Drawing
from usvar.errors import InputError
from usvar.prefixed import require_drawn_by
from usvar.tokens import rows_of_class

JUDGES = ("extractor_pixels", "extractor_steps", "classifier_steps", "classifier_seeds")


@pytest.fixture(scope="module")
def settings(tiny_data, tiny_var, tiny_vqvae, tiny_tokens, tmp_path_factory) -> sweep_var.Settings:
    return sweep_var.Settings(
        data_root=tiny_data,
        var=tiny_var,
        vqvae=tiny_vqvae,
        tokens_dir=tiny_tokens,
        out_dir=tmp_path_factory.mktemp("sweep"),
        images_per_class=5,
        cfg=(0.0, 2.0),
        top_p=(0.9,),
        top_k=(0, 8),
        temperature=(1.0, 1.5),
        prefix_tokens=(0, 5),
        extractor_steps=3,
        classifier_steps=2,
        extractor_pixels=32,
        device="cpu",
    )


@pytest.fixture(scope="module")
def chosen(settings) -> dict:
    sweep_var.main(settings)
    return json.loads((settings.out_dir / "chosen.json").read_text(encoding="utf-8"))


def test_every_point_is_measured_and_the_choice_is_among_them(settings, chosen):
    rows = chosen["rows"]
    assert [(row["axis"], row["value"]) for row in rows] == [
        *(("cfg", v) for v in settings.cfg),
        *(("top_p", v) for v in settings.top_p),
        *(("top_k", v) for v in settings.top_k),
        *(("temperature", v) for v in settings.temperature),
        *(("K", K) for _ in ("tp", "nop") for K in settings.prefix_tokens),
    ]
    for row in rows:
        assert row["images"] == 15 and row["val_images"] == 12
        assert {"US-KD", "US-KD_spread", "US-SSL-KD", "US-coverage", "class_fidelity"} <= set(row)
    for axis in ("cfg", "top_p", "top_k", "temperature"):
        kept = [row["value"] for row in rows if row["axis"] == axis and row["chosen"]]
        assert kept == [chosen["chosen"][axis]]
    # A prefix is shown, and never chosen.
    assert {row["value"] for row in rows if row["axis"] == "K" and row["chosen"]} == {0}
    with_prefix = [row["US-KD"] for row in rows if row["axis"] == "K"]
    assert with_prefix[0] == with_prefix[2] and len(set(with_prefix)) == 3
    assert (settings.out_dir / "sweep.png").is_file()


def test_it_goes_on_with_the_points_that_are_missing(settings, chosen, monkeypatch):
    path = settings.out_dir / "sweep.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    gone = list(before["points"])[-2:]
    left = {key: row for key, row in before["points"].items() if key not in gone}
    path.write_text(json.dumps(before | {"points": left}), encoding="utf-8")
    measured = []
    measure = sweep_var.measure
    monkeypatch.setattr(sweep_var, "measure", lambda *a: measured.append(a) or measure(*a))
    sweep_var.main(settings)
    assert len(measured) == 2
    assert json.loads(path.read_text(encoding="utf-8"))["points"] == before["points"]
    with pytest.raises(InputError, match="images_per_class"):
        sweep_var.main(dataclasses.replace(settings, images_per_class=6))


def test_points_of_other_groups_are_not_kept(settings, chosen, tmp_path):
    """Past fault: with a new manifest.csv, or without it, points of the groups before stood in the sweep."""
    s = dataclasses.replace(settings, data_root=tmp_path / "data", out_dir=tmp_path / "out")
    shutil.copytree(settings.data_root, s.data_root)
    shutil.copytree(settings.out_dir, s.out_dir)
    manifest, sweep = s.data_root / "manifest.csv", s.out_dir / "sweep.json"
    manifest.write_text("file,group\n", encoding="utf-8")
    with pytest.raises(InputError, match="made with another manifest file"):
        sweep_var.main(s)
    before = json.loads(sweep.read_text(encoding="utf-8"))
    before["made_by"]["inputs"]["manifest"]["sha256"] = provenance.sha256_file(manifest)
    sweep.write_text(json.dumps(before), encoding="utf-8")
    manifest.unlink()
    with pytest.raises(InputError, match="made with another manifest file"):
        sweep_var.main(s)


def test_other_values_may_be_tried_in_the_same_folder_and_points_before_are_kept(
    settings, chosen, tmp_path, monkeypatch, capsys
):
    """Past fault: after "try values beyond it" a wider --cfg was refused, and all had to start again."""
    s = dataclasses.replace(settings, out_dir=tmp_path / "out")
    shutil.copytree(settings.out_dir, s.out_dir)
    monkeypatch.setattr(sweep_var, "best_of", lambda rows: 0)
    measured, drawn, measure = [], [], sweep_var.measure
    monkeypatch.setattr(sweep_var, "measure", lambda *a: measured.append(a[4:]) or measure(*a))
    monkeypatch.setattr(sweep_var.evaluation_figures, "draw_sweep", lambda path, sweep: drawn.append(sweep))

    def run(**change) -> tuple[dict, dict]:
        measured.clear()
        sweep_var.main(dataclasses.replace(s, **change))
        points, found = (
            json.loads((s.out_dir / name).read_text(encoding="utf-8"))
            for name in ("sweep.json", "chosen.json")
        )
        assert drawn.pop()["rows"] == found["rows"]
        return points["points"], found

    before, _ = run()
    wider, found = run(cfg=(0.0, 2.0, 3.0), prefix_tokens=(0, 1, 5))
    assert measured == [
        (dataclasses.replace(sweep_var.START, cfg=3.0), "plain", 0),
        *((Drawing(0.0, 0, 0.9, 1.0), mode, 1) for mode in ("tp", "nop")),
    ]
    assert len(wider) == len(before) + 3 and before.items() <= wider.items()
    assert [row["value"] for row in found["rows"] if row["axis"] == "cfg"] == [0.0, 2.0, 3.0]
    # Fewer values: what was measured stays, and is not shown.
    capsys.readouterr()
    narrower, found = run(cfg=(2.0,), top_k=(8,), top_p=(0.95,), temperature=(1.0,), prefix_tokens=(0,))
    assert "Of 2 settings" in found["why"] and len(found["rows"]) == 6 and wider.items() <= narrower.items()
    capsys.readouterr()
    assert run(cfg=(2.0,), top_k=(8,), top_p=(0.95,), temperature=(1.0,), prefix_tokens=(0,))[0] == narrower
    assert not measured and "nothing to do: all 2 points are in" in capsys.readouterr().out


def test_judges_of_a_sweep_that_was_stopped_before_its_first_point_are_not_taken_for_others(
    settings, tmp_path, monkeypatch
):
    """Past fault: only measured points were compared with the settings, these judges went on in silence."""
    s = dataclasses.replace(settings, out_dir=tmp_path)

    def stop(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sweep_var, "measure", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep_var.main(s)
    assert (tmp_path / "judges.pth").is_file()
    with pytest.raises(InputError, match="extractor_steps"):
        sweep_var.main(dataclasses.replace(s, extractor_steps=4))


@pytest.mark.parametrize("change", [{"extractor_steps": 4}, {"seed": 1}])
def test_judges_without_their_sweep_are_used_only_when_trained_as_the_settings_say(
    settings, chosen, tmp_path, change, monkeypatch
):
    """Past fault: without sweep.json any judges.pth in the folder was used, and the record told otherwise."""
    shutil.copy(settings.out_dir / "judges.pth", tmp_path)
    s = dataclasses.replace(settings, out_dir=tmp_path)
    ((name, value),) = change.items()
    message = rf"judges.pth was trained with --{name.replace('_', '-')} {getattr(s, name)} \(now {value}\): "
    with pytest.raises(InputError, match=message) as error:
        sweep_var.main(dataclasses.replace(s, **change))
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["judges.pth"]
    monkeypatch.setattr(judging, "train_judges", None)
    sweep_var.main(s)
    assert json.loads((tmp_path / "chosen.json").read_text(encoding="utf-8"))["stamps"] == chosen["stamps"]


def test_a_finished_sweep_says_so(settings, chosen, capsys):
    sweep_var.main(settings)
    assert "nothing to do: all 7 points are in" in capsys.readouterr().out


def test_the_highest_coverage_of_those_that_are_near_and_of_the_right_class():
    def row(kd: float, coverage: float, fidelity: float = 0.5) -> dict:
        return {
            "US-KD": kd,
            "US-KD_spread": 0.1,
            "US-coverage": coverage,
            "class_fidelity": fidelity,
            "images": 100,
        }

    assert sweep_var.best_of([row(1.0, 0.2), row(1.05, 0.6), row(1.5, 0.9)]) == 1
    assert sweep_var.best_of([row(1.0, 0.2), row(0.98, 0.2)]) == 1
    # 45 of 100 may be as good as 50 of 100, 30 are not; far away nothing helps.
    assert sweep_var.best_of([row(1.0, 0.2), row(1.05, 0.6, 0.3), row(1.05, 0.5, 0.45)]) == 2
    assert sweep_var.best_of([row(1.0, 0.2), row(1.05, 0.6), row(1.5, 0.1, 1.0)]) == 1


def test_how_many_values_the_distance_excludes_is_told(settings, chosen, tmp_path, capsys):
    """Past fault: where it excluded none, coverage alone decided, and nothing said so."""
    shutil.copytree(settings.out_dir, tmp_path / "out")
    sweep = tmp_path / "out" / "sweep.json"
    for spread, excluded, end in ((1e6, 0, ": class fidelity and coverage decide"), (1e-6, 1, "")):
        content = json.loads(sweep.read_text(encoding="utf-8"))
        for number, row in enumerate(content["points"].values()):
            row |= {"US-KD": float(number), "US-KD_spread": spread}
        sweep.write_text(json.dumps(content), encoding="utf-8")
        sweep_var.main(dataclasses.replace(settings, out_dir=tmp_path / "out"))
        assert f"US-KD excludes {excluded} of 2 --cfg{end}\n" in capsys.readouterr().out
        why = json.loads((tmp_path / "out" / "chosen.json").read_text(encoding="utf-8"))["why"]
        assert f"The distance alone left out {excluded} of 2 --cfg, " in why


def test_a_class_of_few_validation_images_is_left_out_on_both_sides(settings, chosen, tmp_path):
    """It would count as a difference of the two sets, and there is no prefix to draw.

    The test split is gone, which shows that it is not read.
    """
    for folder, name in ((settings.data_root, "data"), (settings.tokens_dir, "tokens")):
        shutil.copytree(folder, tmp_path / name)
        shutil.rmtree(tmp_path / name / "test")
    lacking = sorted((tmp_path / "data/val").iterdir())[1]
    for path in lacking.iterdir():
        path.unlink()
    change = {name: tmp_path / name.removesuffix("_dir") for name in ("tokens_dir", "out_dir")}
    change["data_root"] = tmp_path / "data"
    sweep_var.main(dataclasses.replace(settings, judges=settings.out_dir / "judges.pth", **change))
    found = json.loads((tmp_path / "out/chosen.json").read_text(encoding="utf-8"))
    assert {(row["images"], row["val_images"]) for row in found["rows"]} == {(10, 8)}
    assert f"without {lacking.name}: under 4 validation images" in found["why"]
    assert "Of 5 settings" in found["why"]
    with pytest.raises(InputError, match="at most 4 images of a class, wanted 5 or more"):
        sweep_var.main(dataclasses.replace(settings, neighbours=4, out_dir=tmp_path / "other"))


def test_a_real_prefix_is_of_no_image_that_the_point_is_compared_with(settings, tiny_data, monkeypatch):
    """Past fault: noisy copies of val looked nearer to val than another real sample does."""
    files = tiny_data, settings.var, settings.vqvae, settings.tokens_dir
    models = judging.load_models(*files, ("train", "val"), torch.device("cpu"))
    val, _ = judging.read_split(tiny_data, "val", models.classes, models.size, settings.out_dir / "cache")
    given = []

    def stop(_models, _drawing, _per_class, _seed, _batch, known, **_):
        given.append(known(np.array([0, 1, 2]), [3, 4, 5])[:, :5])
        raise KeyboardInterrupt

    monkeypatch.setattr(judging, "draw_samples", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep_var.measure(settings, models, None, val, sweep_var.START, "tp", 5)
    for label, prefix_K in enumerate(given[0]):
        is_of = {}
        for split, maps in models.maps.items():
            rows = rows_of_class(maps, label)
            is_of[split] = bool((maps.idx_NL[rows, :5] == prefix_K).all(1).any())
        assert is_of == {"train": True, "val": False}


def test_the_evaluation_does_not_score_the_images_that_the_choice_was_made_on(
    settings, chosen, tmp_path, monkeypatch
):
    drawn_from = []

    def stop(_self, _label_B, seeds, **_):
        drawn_from.append(set(seeds))
        raise KeyboardInterrupt

    monkeypatch.setattr(VAR, "generate_tokens", stop)
    judged = {"judges": settings.out_dir / "judges.pth"}
    with pytest.raises(KeyboardInterrupt):
        sweep_var.main(dataclasses.replace(settings, out_dir=tmp_path / "sweep", **judged))
    names = ("data_root", "var", "vqvae", "tokens_dir", "device", "seed", "images_per_class")
    same = {name: getattr(settings, name) for name in names}
    with pytest.raises(KeyboardInterrupt):
        evaluate_var.main(evaluate_var.Settings(**same, **judged, out_dir=tmp_path / "evaluation"))
    sweep, scored = drawn_from
    assert sweep and scored and not sweep & scored


def test_a_choice_at_the_edge_of_what_was_tried_says_so(settings, chosen, tmp_path, monkeypatch, capsys):
    """Guidance 3 was the highest tried, and nothing said that more might be better."""
    shutil.copytree(settings.out_dir, tmp_path / "out")
    monkeypatch.setattr(sweep_var, "best_of", lambda rows: len(rows) - 1)
    sweep_var.main(dataclasses.replace(settings, out_dir=tmp_path / "out"))
    edges = "--cfg 2, --top-k 8, --temperature 1.5"
    assert f"note: chosen at the edge of what was tried: {edges};" in capsys.readouterr().out
    assert edges in json.loads((tmp_path / "out/chosen.json").read_text(encoding="utf-8"))["why"]
    # Guidance 0 is no edge: there is nothing below it.
    monkeypatch.setattr(sweep_var, "best_of", lambda rows: 0)
    sweep_var.main(dataclasses.replace(settings, out_dir=tmp_path / "out"))
    assert "what was tried: --temperature 1;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "flags"),
    [
        # 0 is no guidance: nothing lies below.
        ({"cfg": 0.0}, []),
        ({"cfg": 1.0}, []),
        ({"cfg": 3.0}, ["--cfg 3"]),
        # Past fault: 0, which is all, counted as the lowest, and the second highest as an edge.
        ({"top_k": 0}, []),
        ({"top_k": 900}, []),
        ({"top_k": 100}, ["--top-k 100"]),
        ({"top_p": 0.0}, []),
        ({"top_p": 0.99}, []),
        ({"top_p": 0.9}, ["--top-p 0.9"]),
        ({"temperature": 0.8}, ["--temperature 0.8"]),
        ({"temperature": 1.2, "top_k": 100}, ["--top-k 100", "--temperature 1.2"]),
    ],
)
def test_edges_of_what_was_tried_by_default(change, flags):
    """Two of these were reported where there was none, and the real ones never."""
    nowhere = Path("nowhere")
    inside = Drawing(cfg=1.5, top_k=300, top_p=0.95, temperature=1.0)
    s = sweep_var.Settings(data_root=nowhere, var=nowhere, vqvae=nowhere, tokens_dir=nowhere)
    assert sweep_var.edges(s, inside) == []
    assert sweep_var.edges(s, dataclasses.replace(inside, **change)) == flags


@pytest.mark.parametrize(
    ("tried", "change", "flags"),
    [
        ({"top_k": (100, 900)}, {"top_k": 900}, ["--top-k 900"]),
        ({"top_k": (1, 900)}, {"top_k": 1}, []),
        ({"top_p": (0.9, 0.99)}, {"top_p": 0.99}, ["--top-p 0.99"]),
        ({"top_p": (0.9, 1.0)}, {"top_p": 1.0}, []),
        ({"top_p": (0.0, 1.0)}, {"top_p": 0.0}, []),
        ({"cfg": (1.0, 2.0)}, {"cfg": 1.0}, ["--cfg 1"]),
        # A single value was not varied.
        ({"cfg": (2.0,)}, {"cfg": 2.0}, []),
        ({"temperature": (1.0, 1.0)}, {"temperature": 1.0}, []),
    ],
)
def test_edges_of_other_grids(settings, tried, change, flags):
    s = dataclasses.replace(settings, **{"cfg": (1.5,), "top_k": (0,), "temperature": (1.0,)} | tried)
    assert sweep_var.edges(s, dataclasses.replace(sweep_var.START, **change)) == flags


def test_samples_and_evaluation_are_drawn_as_chosen(settings, chosen, tmp_path):
    path = tmp_path / "chosen.json"
    other = chosen | {"chosen": {"cfg": 0.5, "top_k": 8, "top_p": 0.9, "temperature": 1.5}}
    path.write_text(json.dumps(other), encoding="utf-8")
    files = {name: getattr(settings, name) for name in ("var", "vqvae", "tokens_dir", "data_root")}
    common = {"modes": ("plain",), "images_per_class": 2, "variety": 0, "device": "cpu", **files}
    flags = {"cfg": 0.5, "top_k": 8, "top_p": 0.9, "temperature": (1.5,)}
    ways = {"file": {"settings_from": path}, "flags": flags, "neither": {}}
    grey = {}
    for name, way in ways.items():
        sample_var.main(sample_var.Settings(out_dir=tmp_path / name, **common, **way))
        pictures = sorted((tmp_path / name / "scale_0_K0").rglob("*.png"))
        grey[name] = np.stack([images.read_image(picture) for picture in pictures])
    assert np.array_equal(grey["file"], grey["flags"]) and not np.array_equal(grey["file"], grey["neither"])

    # As samples.json tells the evaluation of such a folder.
    drawn = tmp_path / "file" / "scale_0_K0" / "plain"
    drawing = Drawing(**other["chosen"])
    assert require_drawn_by(drawn, chosen["var_sha256"], drawing)
    with pytest.raises(InputError, match="--settings-from says"):
        require_drawn_by(drawn, chosen["var_sha256"], dataclasses.replace(drawing, cfg=2.0))

    evaluate_var.main(
        evaluate_var.Settings(
            **files,
            out_dir=tmp_path / "evaluation",
            settings_from=path,
            judges=settings.out_dir / "judges.pth",
            images_per_class=5,
            device="cpu",
        )
    )
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert found["drawing"] == {"cfg": 0.5, "top_k": 8, "top_p": 0.9, "temperature": 1.5}
    # On record is how the judges given were trained, and not the script's defaults.
    said = found["made_by"]["settings"]
    assert all(said[name] == getattr(settings, name) for name in JUDGES)
    page = (tmp_path / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert chosen["why"] in page and "sweep" in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judges": Path("nothing.pth")}, "--judges nothing.pth is no file"),
        ({"extractor_pixels": 100_000}, "--extractor-pixels 100000 was given, wanted 32 to 1024"),
        ({"top_p": (0.9, 1.5)}, "--top-p 1.5 was given, wanted 0 to 1"),
        ({"images_per_class": 3}, "wanted 4 or more"),
        ({"prefix_tokens": (3,)}, "wanted some of 0 1 5"),
        ({"prefix_tokens": (21,)}, "wanted some of 0 1 5"),
        ({"cfg": ()}, "--cfg was given without a value"),
    ],
)
def test_wrong_settings_are_refused(settings, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        sweep_var.main(dataclasses.replace(settings, out_dir=tmp_path / "out", **change))
    assert not (tmp_path / "out" / "chosen.json").exists()


def test_guidance_of_a_transformer_trained_without_class_dropout_is_refused(
    settings, var_without_class_drop, tmp_path
):
    s = dataclasses.replace(settings, var=var_without_class_drop, out_dir=tmp_path / "out")
    with pytest.raises(InputError, match="trained without class dropout"):
        sweep_var.main(s)
    assert not s.out_dir.exists()
