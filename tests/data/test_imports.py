"""What must run on a board without PyTorch imports neither it nor what needs it."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("torch", "torchvision", "timm", "PIL", "matplotlib")
CODE = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import numpy as np
import gft_edge.data.batches, gft_edge.data.datasets, gft_edge.data.seeded, gft_edge.data.typefaces
import gft_edge.calibration.images
from gft_edge.data.datasets import open_images
from gft_edge.errors import MissingExtraError
for name in ("typefaces", "scenes,share=0.04", sys.argv[1]):
    images = open_images(name, "train", 4, 64)
    try:
        images[0]
    except MissingExtraError as error:
        print(name in ("typefaces", "scenes,share=0.04"), error)
"""


def test_data_sets_are_listed_without_torch_and_pillow_is_named_where_it_is_needed(tmp_path):
    for number in range(20):
        for label in ("ant", "bee"):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{number}.png").write_text(f"{label} {number}")
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert [line.split()[0] for line in words] == ["True", "True", "False"]
    assert all("Pillow" in line for line in words)
