"""What made a file: script, settings, code revision, and the SHA-256 of every file it was made from."""

import dataclasses
import hashlib
import importlib.metadata
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_revision() -> str:
    """The commit of this repository, with `+changes` when tracked files differ; "unknown" outside git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def made_by(script: str, settings: Any, inputs: dict[str, Path | None] | None = None) -> dict[str, Any]:
    """The record that every stage stores in its files.

    No date and no machine: the same command on the same files gives the same record.

    Args:
        script: name of the script.
        settings: its settings dataclass.
        inputs: the files it reads, by role ("vqvae", "tokens", ...); each is hashed. None is an optional file
            that was not given.
    """
    return {
        "script": script,
        "settings": plain(dataclasses.asdict(settings)),
        "code_revision": code_revision(),
        "torch": str(importlib.metadata.version("torch")),
        "inputs": {
            role: {"path": path.name, "sha256": sha256_file(path)}
            for role, path in (inputs or {}).items()
            if path
        },
    }


def plain(value: Any) -> Any:
    """Settings as JSON and a safe checkpoint can hold them: paths become text, tuples lists."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
