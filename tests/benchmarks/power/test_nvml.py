"""NVIDIA's own Python binding, loaded against a small library that stands in for the driver's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from gft_edge.benchmarks.power.nvml import SLOWDOWNS, NvmlGpu, load_nvml
from gft_edge.errors import ConfigError, MissingExtraError

DRIVER = r"""
#include <string.h>
#include <stdlib.h>
typedef struct { unsigned id, scope; long long time, latency; unsigned type; int result;
  union { double d; unsigned u; unsigned long long l; } v; } Field;
static int has(const char *what) { const char *set = getenv("DRIVER"); return set && strstr(set, what) != 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { return e == 3 ? "Not Supported" : "Other"; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)1; return i ? 2 : 0; }
int nvmlDeviceGetName(void *h, char *n, unsigned l) { strncpy(n, "NVIDIA L4", l); return 0; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *p) { *p = 41234; return has("no-power") ? 3 : 0; }
int nvmlDeviceGetClockInfo(void *h, int c, unsigned *m) { *m = 2040; return has("no-clock") ? 3 : 0; }
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *r) { *r = 0x44; return has("no-reasons") ? 3 : 0; }
int nvmlDeviceGetFieldValues(void *h, int n, Field *f) {
  f[0].result = has("instant") ? 0 : 3; f[0].v.u = 55555; return f[0].id == 186 ? 0 : 2;
}
"""

ASK = """
import json
from gft_edge.benchmarks.power.nvml import NvmlGpu, load_nvml
from gft_edge.benchmarks.power.meter import open_meter
gpu = NvmlGpu(load_nvml())
answer = [gpu.name, gpu.read_mw(), gpu.read_mhz(), gpu.slowdowns()]
gpu.close()
with open_meter("nvml") as meter:
    answer.append([meter.idle(1.3).mean_mw, list(meter.trace().rails), list(meter.trace().slowdowns[0])])
print(json.dumps(answer))
"""

pynvml = pytest.importorskip("pynvml")


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, folder / "driver.c"], check=True)

    def run(code, driver):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "DRIVER": driver}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    return run


def test_power_clock_and_slowdowns(ask):
    done = ask(ASK, "instant")
    reasons = ["held down by the power limit", "held down by temperature (hardware)"]
    assert json.loads(done.stdout) == [
        "NVIDIA L4",
        55555.0,
        2040.0,
        reasons,
        [pytest.approx(55555), ["NVIDIA L4 board"], reasons],
    ], done.stderr


def test_average_power_where_there_is_no_instant_one(ask):
    answer = json.loads(ask(ASK, "no-clock no-reasons").stdout)
    assert answer[:4] == ["NVIDIA L4", 41234.0, None, []]


def test_gpu_that_does_not_report_power_is_refused(ask):
    done = ask(ASK, "no-power")
    assert "ConfigError: NVML, GPU 0: power cannot be read (Not Supported)" in done.stderr
    assert not done.stdout


def test_auto_without_power_gives_no_number(ask):
    code = (
        "from gft_edge.benchmarks.power.meter import open_meter\nwith open_meter() as meter: print(meter.unavailable)"
    )
    assert "NVML, GPU 0: power cannot be read (Not Supported)" in ask(code, "no-power").stdout


def test_without_driver_or_gpu(ask):
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        with pytest.raises(ConfigError, match="NVML: NVML Shared Library Not Found"):
            NvmlGpu(pynvml)
    done = ask("from gft_edge.benchmarks.power.nvml import *; NvmlGpu(load_nvml(), 7)", "")
    assert "ConfigError: NVML, GPU 7: power cannot be read" in done.stderr


def test_binding_has_every_reason():
    assert all(hasattr(pynvml, f"nvmlClocksEventReason{name}") for name in SLOWDOWNS)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gft-edge\[power\]'"):
        load_nvml()
