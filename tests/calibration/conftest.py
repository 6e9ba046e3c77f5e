from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ANIMALS = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Path:
    """Splits train (9, 3, 3 and 3 images of each class), val and test (one image of each class)."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, counts in {"train": (9, 3, 3, 3), "val": (1, 1, 1, 1), "test": (1, 1, 1, 1)}.items():
        for label, count in zip(ANIMALS, counts):
            for number in range(count):
                file = root / split / label / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
    return root
