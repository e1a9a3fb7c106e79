"""Token maps on disk and what frequencies alone say of them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from usvar import tokens
from usvar.errors import InputError

PATCH_NUMS = (1, 2, 3)
MADE_BY = {"vocab_size": 16, "inputs": {"vqvae": {"sha256": "abc"}}}


def maps(count: int = 6, seed: int = 0, dtype: type = np.uint16) -> dict:
    draw = np.random.default_rng(seed)
    return {
        "idx_NL": draw.integers(0, 16, (count, 14)).astype(dtype),
        "label_N": np.arange(count) % 2,
        "path_N": np.array([f"train/A/{i}.png" for i in range(count)]),
        "view_N": np.zeros(count, dtype=np.int64),
        "patch_nums": PATCH_NUMS,
        "classes": ["A", "B"],
        "made_by": MADE_BY,
    }


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_what_is_written_is_read_memory_mapped(tmp_path, dtype):
    content = maps(dtype=dtype)
    tokens.write_token_maps(tmp_path, **content)
    read = tokens.read_token_maps(tmp_path)
    assert isinstance(read.idx_NL, np.memmap)
    assert np.array_equal(read.idx_NL, content["idx_NL"])
    assert read.label_N.tolist() == content["label_N"].tolist()
    assert read.path_N.tolist() == content["path_N"].tolist()
    assert read.patch_nums == PATCH_NUMS and read.classes == ("A", "B")
    assert read.vocab_size == 16 and read.vqvae_sha256 == "abc"


def test_the_archive_has_the_maps_of_the_contract_for_numpy_alone(tmp_path):
    content = maps()
    tokens.write_token_maps(tmp_path, **content)
    with np.load(tmp_path / tokens.FILE_NAME, allow_pickle=False) as archive:
        assert set(archive) == {
            *("vnums", "idx", "label", "path", "view", "made_by"),
            *("tok_1x1", "tok_2x2", "tok_3x3"),
        }
        assert archive["tok_2x2"].shape == (6, 2, 2)
        flat = [archive[f"tok_{v}x{v}"].reshape(6, -1) for v in archive["vnums"]]
        assert np.array_equal(np.concatenate(flat, axis=1), archive["idx"])
    assert json.loads((tmp_path / "classes.json").read_text()) == ["A", "B"]


def test_the_same_tokens_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        tokens.write_token_maps(tmp_path / name, **maps())
    assert (tmp_path / "a" / tokens.FILE_NAME).read_bytes() == (
        tmp_path / "b" / tokens.FILE_NAME
    ).read_bytes()


def test_an_archive_compressed_by_others_is_read(tmp_path):
    tokens.write_token_maps(tmp_path, **maps())
    with np.load(tmp_path / tokens.FILE_NAME) as archive:
        arrays = dict(archive)
    np.savez_compressed(tmp_path / tokens.FILE_NAME, **arrays)
    assert np.array_equal(tokens.read_token_maps(tmp_path).idx_NL, maps()["idx_NL"])


def broken(folder: Path, save: Callable = np.savez, **changes) -> None:
    """An archive with some arrays changed; None leaves one out."""
    tokens.write_token_maps(folder, **maps())
    with np.load(folder / tokens.FILE_NAME) as archive:
        arrays = dict(archive) | changes
    save(folder / tokens.FILE_NAME, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"idx": np.full((6, 14), 16)}, "tokens go from"),
        ({"idx": np.full((6, 14), -1)}, "tokens go from"),
        ({"idx": np.zeros((6, 14))}, "wanted integers"),
        ({"idx": np.zeros((6, 13), dtype=int)}, "wanted \\(6, 14\\)"),
        ({"label": np.array([0, 1, 2, 0, 1, 2])}, "labels go from 0 to 2"),
        ({"view": None}, "no array 'view'"),
        ({"view": np.ones(6, int)}, "views go from 1 to 1, wanted from 0"),
        ({"view": np.arange(-1, 5)}, "views go from -1 to 4, wanted from 0"),
        ({"made_by": np.array("{}")}, "no inputs"),
        ({"made_by": np.array("[1]")}, "made_by is a list"),
        ({"path": np.array([{"run": "me"}] * 6, dtype=object)}, "cannot be read"),
    ],
)
def test_maps_that_do_not_fit_are_refused(tmp_path, changes, named):
    broken(tmp_path, **changes)
    with pytest.raises(InputError, match=named):
        tokens.read_token_maps(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"tok_2x2": np.zeros((6, 2, 2), dtype=np.uint16)},
            r"tok_2x2 has other tokens, wanted .* 1 to 4 of idx",
        ),
        ({"tok_3x3": maps()["idx_NL"][:, 5:]}, r"tok_3x3 has shape \(6, 9\), wanted .* shape \(6, 3, 3\)"),
        ({"tok_1x1": maps()["idx_NL"][:5, :1, None]}, r"tok_1x1 has shape \(5, 1, 1\)"),
        ({"tok_1x1": np.array(3)}, r"tok_1x1 has shape \(\)"),
        ({"idx": maps(seed=1)["idx_NL"]}, "tok_1x1 has other tokens"),
        ({"tok_2x2": np.array([{"run": "me"}] * 6, dtype=object)}, "cannot be read"),
    ],
)
def test_maps_of_scales_that_are_not_those_of_idx_are_refused(tmp_path, save, changes, named):
    """They were not compared, so who reads them could get other tokens than who reads idx."""
    broken(tmp_path, save, **changes)
    with pytest.raises(InputError, match=named):
        tokens.read_token_maps(tmp_path)


def test_maps_of_scales_may_be_missing_and_their_first_rows_are_compared_only(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK", 3)
    changed_NL = maps()["idx_NL"].copy()
    changed_NL[3:] = 0
    for changes in ({"tok_2x2": None}, {"idx": changed_NL}):
        broken(tmp_path, **changes)
        assert len(tokens.read_token_maps(tmp_path)) == 6
        (tmp_path / tokens.FILE_NAME).unlink()


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", "", 3])
def test_a_class_name_that_is_a_path_is_refused(tmp_path, name):
    """Class names become folders of generated images."""
    tokens.write_token_maps(tmp_path, **maps())
    (tmp_path / "classes.json").write_text(json.dumps(["A", name]))
    with pytest.raises(InputError, match="is no class name"):
        tokens.read_token_maps(tmp_path)


def test_a_file_that_is_cut_or_missing_is_refused(tmp_path):
    with pytest.raises(InputError, match="is missing"):
        tokens.read_token_maps(tmp_path)
    tokens.write_token_maps(tmp_path, **maps())
    path = tmp_path / tokens.FILE_NAME
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="cannot be read"):
        tokens.read_token_maps(tmp_path)
    tokens.write_token_maps(tmp_path, **maps())
    with zipfile.ZipFile(path, "a") as archive, archive.open("huge.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
        )
    assert len(tokens.read_token_maps(tmp_path)) == 6  # an array that nobody asks for does no harm


def test_the_position_prior_draws_the_class_s_frequencies(tmp_path):
    content = maps(count=40)
    content["idx_NL"][::2, 0] = 3  # class A always starts with code 3
    content["idx_NL"][1::2, 0] = np.arange(20) % 2  # class B with 0 or 1, half and half
    tokens.write_token_maps(tmp_path, **content)
    read = tokens.read_token_maps(tmp_path)
    drawn = tokens.draw_from_position_prior(read, [0] * 10 + [1] * 400, 5, range(410))
    assert (drawn[:10, 0] == 3).all()
    assert set(drawn[10:, 0]) == {0, 1} and 0.4 < drawn[10:, 0].mean() < 0.6
    assert len({tuple(row) for row in drawn[10:]}) > 100  # varied, and not whole images
    again = tokens.draw_from_position_prior(read, [1], 5, [17])
    assert np.array_equal(again[0], drawn[17])  # a row depends on its own seed alone


def test_the_position_prior_looks_for_a_class_s_images_once(tmp_path, monkeypatch):
    """Once per class and not once per image, which read all labels of a million images for each."""
    tokens.write_token_maps(tmp_path, **maps(count=40))
    read, looked_for = tokens.read_token_maps(tmp_path), []
    find = tokens.rows_of_class
    monkeypatch.setattr(tokens, "rows_of_class", lambda *asked: looked_for.append(asked[1]) or find(*asked))
    drawn = tokens.draw_from_position_prior(read, [1, 0, 1, 1, 0], 5, range(5))
    assert sorted(looked_for) == [0, 1]
    for row, label in enumerate([1, 0, 1, 1, 0]):
        rows = find(read, label)
        chosen = rows[np.random.default_rng(row).integers(len(rows), size=5)]
        assert np.array_equal(drawn[row], read.idx_NL[chosen, np.arange(5)])


def test_a_prefix_is_followed_by_free_tokens():
    known_BL = tokens.known_from_prefix(np.array([[3, 0], [1, 2]], dtype=np.uint16), 5)
    assert known_BL.dtype == np.int64
    assert known_BL.tolist() == [[3, 0, -1, -1, -1], [1, 2, -1, -1, -1]]
    assert tokens.known_from_prefix(np.zeros((1, 0)), 2).tolist() == [[-1, -1]]


def test_a_prefix_that_ends_within_a_scale_is_refused():
    tokens.check_prefix_tokens((), (0, 1, 5))
    tokens.check_prefix_tokens((5, 0), (0, 1, 5))
    with pytest.raises(InputError, match="--prefix-tokens 3 was given, wanted some of 0 1 5: "):
        tokens.check_prefix_tokens((1, 3), (0, 1, 5))


def test_a_class_without_images_has_no_prior(tmp_path):
    content = maps()
    content["label_N"] = np.zeros(6, dtype=int)
    tokens.write_token_maps(tmp_path, **content)
    with pytest.raises(InputError, match="no image of class B"):
        tokens.draw_from_position_prior(tokens.read_token_maps(tmp_path), [1], 5, [0])


def test_frequency_baselines_are_the_known_entropies(tmp_path):
    """Uniform codes: log V. Codes fixed by class and position: far below, and never below what was drawn."""
    content = maps(count=4000)
    tokens.write_token_maps(tmp_path / "uniform", **content)
    uniform = tokens.read_token_maps(tmp_path / "uniform")
    baseline = tokens.frequency_scores(uniform, uniform)
    np.testing.assert_allclose(baseline["unigram"][0], np.log(16), atol=0.01)
    np.testing.assert_allclose(baseline["class_position"][0], np.log(16), atol=0.02)
    content["idx_NL"][:] = np.where(content["label_N"][:, None] == 0, np.arange(14), 15 - np.arange(14))
    tokens.write_token_maps(tmp_path / "fixed", **content)
    fixed = tokens.read_token_maps(tmp_path / "fixed")
    baseline = tokens.frequency_scores(fixed, fixed)
    assert (baseline["class_position"][0] < 0.7).all() and (baseline["unigram"][0][1:] > 1.9).all()


def test_frequency_baselines_are_right_as_often_as_their_likeliest_code(tmp_path):
    """One code for nine tenths of the images; at the first place class 1 has a code of its own."""
    content = maps(count=400)
    content["idx_NL"][:] = np.where(np.arange(400)[:, None] % 10 == 9, 2, 1)
    content["idx_NL"][:, 0] = np.where(content["label_N"] == 0, 1, 5)
    tokens.write_token_maps(tmp_path, **content)
    found = tokens.read_token_maps(tmp_path)
    scores = tokens.frequency_scores(found, found)
    np.testing.assert_allclose(scores["unigram"][1], [0.5, 0.9, 0.9])
    np.testing.assert_allclose(scores["class_position"][1], [1.0, 0.9, 0.9])


def test_codes_are_counted_over_all_blocks(monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK", 3)
    idx_NL = np.random.default_rng(0).integers(0, 7, (10, 5), dtype=np.uint16)
    counts_SV = tokens.code_counts_of(idx_NL, (1, 2), 7)
    wanted = [np.bincount(part.ravel(), minlength=7).tolist() for part in (idx_NL[:, :1], idx_NL[:, 1:])]
    assert counts_SV.tolist() == wanted
