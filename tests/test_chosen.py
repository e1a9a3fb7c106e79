"""Settings chosen by a sweep reach the scripts that draw, and nothing else does."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from usvar.chosen import Drawing, read_sweep, with_chosen
from usvar.errors import InputError


@dataclass(frozen=True)
class Settings:
    cfg: float = 1.5
    top_k: int = 0
    top_p: float = 0.95
    temperature: float = 1.0


@dataclass(frozen=True)
class PerScale(Settings):
    temperature: tuple[float, ...] = (1.0,)


def write(path: Path, **changes) -> Path:
    chosen = {"cfg": 3, "top_k": 50, "top_p": 0.9, "temperature": 1.1} | changes.pop("chosen", {})
    content = {"chosen": chosen, "var_sha256": "a" * 64, "why": "w", "rows": [], "stamps": {}}
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path


def test_the_four_settings_are_taken_over(tmp_path):
    path = write(tmp_path / "chosen.json")
    assert with_chosen(Settings(), path, "a" * 64) == Settings(3.0, 50, 0.9, 1.1)
    assert with_chosen(PerScale(), path, "a" * 64).temperature == (1.1,)
    assert with_chosen(Settings(cfg=2.0), None, "a" * 64) == Settings(cfg=2.0)
    assert read_sweep(path) == {"why": "w", "rows": [], "stamps": {}}
    assert read_sweep(None) is None


def test_a_flag_beside_the_file_is_refused_unless_it_says_the_same(tmp_path):
    path = write(tmp_path / "chosen.json")
    with pytest.raises(InputError, match="--top-k and --settings-from were given together"):
        with_chosen(Settings(top_k=7), path, "a" * 64)
    # A run that goes on has the settings that it took over before.
    assert with_chosen(Settings(top_k=50), path, "a" * 64).top_k == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"var_sha256": "b" * 64}, "chosen for a transformer with SHA-256 bbbb"),
        ({"chosen": {"top_p": 1.5}}, "--top-p 1.5 was given, wanted 0 to 1"),
        ({"chosen": {"cfg": "much"}}, "holds no chosen settings"),
        ({"chosen": {"top_k": 1.5}}, "holds no chosen settings"),
        ({"chosen": {"temperature": float("nan")}}, "holds no chosen settings"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        with_chosen(Settings(), write(tmp_path / "chosen.json", **changes), "a" * 64)


@pytest.mark.parametrize(
    ("settings", "temperature", "text"),
    [
        (Settings(), 1.0, "guidance 1.5, top-k off, top-p 0.95, temperature 1"),
        (PerScale(top_k=900), 1.0, "guidance 1.5, top-k 900, top-p 0.95, temperature 1"),
        (
            PerScale(0.0, top_p=0.0, temperature=(1, 0.8)),
            (1, 0.8),
            "guidance off, top-k off, top-p off, temperature 1 0.8",
        ),
    ],
)
def test_drawing_is_read_from_settings_and_says_itself_in_words(settings, temperature, text):
    drawing = Drawing.of(settings)
    assert vars(drawing) == vars(settings) | {"temperature": temperature} and str(drawing) == text
    drawing.check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(cfg=-1.0), "--cfg -1 was given, wanted 0 or more"),
        (Settings(top_k=-1), "--top-k -1 was given, wanted 0 or more"),
        (Settings(top_p=1.01), "--top-p 1.01 was given, wanted 0 to 1"),
        (Settings(temperature=float("inf")), "--temperature inf was given, wanted 0.000001 or more"),
        (PerScale(temperature=(1.0, 0.0, 1.0)), "--temperature 0 was given, wanted 0.000001 or more"),
    ],
)
def test_drawing_that_can_draw_nothing_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Drawing.of(settings).check()


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        with_chosen(Settings(), tmp_path / "nothing.json", "a")
    other = tmp_path / "other.json"
    for text in ("[1]", "not JSON", '{"chosen": {}}'):
        other.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match="holds no chosen settings"):
            with_chosen(Settings(), other, "a")
    content = json.loads(write(other).read_text(encoding="utf-8"))
    del content["rows"]
    other.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="lacks rows"):
        read_sweep(other)
