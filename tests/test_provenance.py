"""What made a file: hashes, revision, settings as plain values."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from usvar import provenance


@dataclass(frozen=True)
class Settings:
    folder: Path = Path("a/b")
    sides: tuple[int, ...] = (1, 2)
    rate: float = 0.1


def test_the_record_is_plain_and_the_same_each_time(tmp_path):
    (tmp_path / "in.pth").write_bytes(b"weights")
    first, second = (provenance.made_by("x.py", Settings(), {"vqvae": tmp_path / "in.pth"}) for _ in range(2))
    assert first == second == json.loads(json.dumps(first))
    assert first["settings"] == {"folder": "a/b", "sides": [1, 2], "rate": 0.1}
    assert first["inputs"]["vqvae"] == {"path": "in.pth", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert str(tmp_path) not in json.dumps(first)  # no machine's folders


def test_the_record_can_be_stored_in_a_safe_checkpoint(tmp_path):
    """torch's version is a class of its own, which weights_only loading refuses."""
    torch.save(provenance.made_by("x.py", Settings()), tmp_path / "a.pth")
    assert torch.load(tmp_path / "a.pth", weights_only=True)["script"] == "x.py"


def test_outside_git_the_revision_is_unknown(tmp_path, monkeypatch):
    assert len(provenance.code_revision().removesuffix("+changes")) in (7, 40)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.code_revision() == "unknown"
