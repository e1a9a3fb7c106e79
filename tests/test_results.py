"""results/: the share kept back, archive and shards, the record, and every recipe at its smallest size."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_trees import plant, save, speckle

sys.path.insert(0, str(Path(__file__).parent.parent / "results"))

import hold_back
import pack
import record

ROOT = Path(__file__).parent.parent
RECIPES = ("real_128_cpu.sh", "real_256_gpu.sh")


@pytest.fixture(scope="session")
def raw_root(tmp_path_factory) -> Path:
    """Liver and thyroid in their publishers' layouts, without what is kept back: 42 pictures a class."""
    root, number = tmp_path_factory.mktemp("raw"), 0
    for name in ("AUL/Benign/image/{}.jpg", "AUL/Malignant/image/{}.jpg", "AUL/Normal/image/{}.jpg", "DDTI/{}_1.jpg"):
        paths = [name.format(i) for i in range(1, 60)]
        paths = [path for path in paths if not hold_back.reason(path, path.split("/")[0])][:42]
        plant(root, *paths, first=number)
        number += len(paths)
    return root


def recipe(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a recipe on two cores with this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", ROOT / "results" / name, *map(str, arguments)],
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment,
        capture_output=True,
        text=True,
    )
