"""Where results cannot be written: one line, code 2, nothing half-written, and what was measured is printed all the same."""

import subprocess
import sys

import pytest
from PIL import Image

from gft_edge.errors import OutputError


@pytest.fixture
def full(tmp_path):
    """A folder on a file system that is full but for a page or two."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        (folder / "filled").write_bytes(bytes(60_000))
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def _leave_no_room(folder):
    with (folder / "rest").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return


def _left(folder):
    return {path.name for path in folder.rglob("*")} - {"filled", "rest"}


def _refused(done, verb):
    assert done.code == 2
    line = [line for line in done.err.splitlines() if line.startswith(f"gft-edge {verb}: ")]
    assert len(line) == 1
    assert done.err.splitlines()[-1] == line[0]
    assert "No space left on device" in line[0]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_measured_results_are_printed_though_they_cannot_be_stored(gft_edge, made, animals, full, form):
    _leave_no_room(full)
    bench = [
        "bench",
        made["fp32"],
        "--rounds",
        2,
        "--runs",
        1,
        "--warmup",
        0,
        "--skip",
        "stages",
        "throughput",
        "process",
    ]
    image = animals / "ant" / min(path.name for path in (animals / "ant").iterdir())
    commands = {
        "evaluate": (["evaluate", made["fp32"], "--data", animals], "top1" if form else "top-1"),
        "bench": ([*bench, "--power", "none"], "p50_ms" if form else "p50 ms"),
        "predict": (["predict", made["int8"], image], "probability"),
    }
    for verb, (command, printed) in commands.items():
        done = gft_edge(*command, *form, "--out", full / "out.json")
        _refused(done, verb)
        assert printed in done.out
        assert _left(full) == set()
    done = gft_edge("predict", made["int8"], image, *form, "--maps", full / "maps")
    _refused(done, "predict")
    assert "probability" in done.out
    assert _left(full) <= {"maps"}


def test_folders_that_do_not_fit_are_not_there(gft_edge, made, animals, full):
    quantized = gft_edge("quantize", made["ckpt"], "--data", animals, "--images", 24, "--out", full / "int8")
    _refused(quantized, "quantize")
    assert "layers in INT8" in quantized.out
    for source in ("ckpt", "fp32"):
        done = gft_edge("calibrate", made[source], "--data", animals, "--images", 24, "--out", full / "ranges")
        _refused(done, "calibrate")
        assert f"cannot write {full / 'ranges'}: " in done.err
        assert "ranges of" in done.out
    _refused(gft_edge("export", made["ckpt"], "--data", animals, "--out", full / "fp32"), "export")
    assert _left(full) == set()


def test_training_whose_state_does_not_fit_is_refused(gft_edge, full, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        '[model]\npreset = "gft_typeface"\nimage_size = 32\n[data]\ntrain_images = 16\neval_images = 16\nnum_workers = 0\n'
        "[train]\nsteps = 1\nbatch_size = 4\nwarmup_steps = 0\n"
    )
    _refused(gft_edge("train", "--config", tmp_path / "recipe.toml", "--out", full / "run"), "train")
    assert not list(full.rglob("state.pt*"))
    assert not list(full.rglob(".*"))


@pytest.mark.parametrize("verb", ["export", "quantize", "calibrate", "train", "evaluate", "bench"])
def test_places_that_take_nothing_are_refused_before_the_work(gft_edge, made, animals, tmp_path, monkeypatch, verb):
    monkeypatch.setattr("gft_edge.data.datasets.open_images", None)
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = 1")
    source = (
        ["--config", tmp_path / "recipe.toml"] if verb == "train" else [made["ckpt" if verb != "bench" else "fp32"]]
    )
    data = ["--data", animals] if verb in ("quantize", "calibrate", "evaluate") else []
    done = gft_edge(verb, *source, *data, "--out", "/proc/gft-edge-out")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "/proc cannot be written to" in done.err


@pytest.mark.parametrize("name", ["reports", "engines", "calibration"])
def test_links_inside_an_artefact_are_not_written_through(gft_edge, made, tmp_path, name):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", made["fp32"], copy], check=True)
    subprocess.run(["rm", "-rf", copy / name], check=True)
    (tmp_path / "elsewhere").mkdir()
    (copy / name).symlink_to(tmp_path / "elsewhere")
    done = gft_edge("verify", copy)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"{name} is a link" in done.err
    assert list((tmp_path / "elsewhere").iterdir()) == []
    link = tmp_path / "link"
    link.symlink_to(made["fp32"])  # the artefact itself may be reached by one
    assert (
        gft_edge(
            "bench", link, "--rounds", 1, "--runs", 1, "--warmup", 0, "--skip", "stages", "throughput", "process"
        ).code
        == 0
    )


def test_labels_and_names_cannot_steer_the_terminal(gft_edge, made, animals, tmp_path):
    image = tmp_path / "a\x1b[31m\nb\u202e.png"
    Image.open(next((animals / "ant").iterdir())).save(image)
    done = gft_edge("predict", made["fp32"], image)
    assert done.code == 0
    assert r"a\x1b[31m\nb\u202e.png" in done.out
    assert len(done.out.splitlines()) == 3
    missing = gft_edge("predict", made["fp32"], tmp_path / "none\x1b]0;x\x07.png")
    assert "\x1b" not in missing.out + missing.err
    assert r"none\x1b]0;x\x07.png" in missing.out + missing.err


def test_sensitivity_is_printed_though_its_folder_does_not_fit(gft_edge, made, animals, tmp_path, monkeypatch):
    def fail(folder):
        raise OutputError(folder, "No space left on device")

    monkeypatch.setattr("gft_edge.report.pages.sensitivity.write_sensitivity_page", fail)
    command = [
        "sensitivity",
        made["ckpt"],
        "--data",
        animals,
        "--images",
        24,
        "--eval-split",
        "train",
        "--eval-images",
        8,
        "--force",
    ]
    done = gft_edge(*command, "--out", tmp_path / "out")
    _refused(done, "sensitivity")
    assert "all in INT8" in done.out
    assert list(tmp_path.iterdir()) == []


def test_library_and_command_line_do_not_report_home():
    code = "import os, gft_edge; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "1\n"
