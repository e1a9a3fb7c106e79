"""tests/README.md against the code: the functions and tests that it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("", "benchmarks", "data_preprocessing", "models", "results", "usvar")
SOURCES = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]
# What changes, where, and the tests that then fail.
ROWS = [
    line.strip("|").split("|")
    for line in (ROOT / "tests" / "README.md").read_text(encoding="utf-8").splitlines()
    if line.count("|") == 4 and "`" in line
]


def is_defined(name: str) -> bool:
    """Whether `module.function`, `Class.method` or a bare function is somewhere in the code."""
    owner, _, last = name.rpartition(".")
    texts = [(path.stem, path.read_text(encoding="utf-8")) for path in SOURCES]
    texts = [text for stem, text in texts if owner in ("", stem) or f"class {owner}" in text]
    return any(re.search(rf"^ *(def|class) {last}\b", text, re.M) for text in texts)


def test_every_place_that_is_changed_exists():
    names = {name for _, where, _ in ROWS for name in re.findall(r"`([\w.]+)`", where)}
    missing = [n for n in names if not (is_defined(n) or any(path.name == n for path in SOURCES))]
    assert len(names) > 30 and not missing


def test_every_test_that_then_fails_exists():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    names = {name for _, _, fails in ROWS for name in re.findall(r"`(test_\w+)`", fails)}
    assert len(names) > 30 and not [n for n in names if f"def {n}(" not in tests]
