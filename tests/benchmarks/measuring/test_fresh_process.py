from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gft_edge.benchmarks.measuring.fresh_process import fresh_processes, peak_rss
from gft_edge.benchmarks.measuring.protocol import BenchProtocol
from gft_edge.errors import ArtifactError


def test_peak_is_read_from_the_kernels_own_words(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmPeak:\t  999 kB\nVmHWM:\t  123 kB\nVmRSS:\t  100 kB\n")
    assert peak_rss(status) == 123 * 1024
    status.write_text("VmHWM:\n")
    assert peak_rss(status) is None
    assert peak_rss(tmp_path / "missing") is None


def test_a_large_parent_does_not_show_in_the_child():
    ballast = np.ones(16_000_000)  # 128 MB resident
    code = "from gft_edge.benchmarks.measuring.fresh_process import peak_rss; print(peak_rss())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100e6 < ballast.nbytes


def test_an_artefact_that_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"nothing: a fresh process that loads it failed \(.*no such folder"):
        fresh_processes(tmp_path / "nothing", "onnxruntime", BenchProtocol(processes=1))
