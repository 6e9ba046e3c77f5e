"""The pipelines as a notebook calls them; tests/cli runs the same functions through the command line."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import torch

from gft_edge.calibration.calibrate import calibrate_checkpoint
from gft_edge.calibration.images import choose_images
from gft_edge.calibration.options import CalibrationOptions, Callbacks, ResultNotWrittenError
from gft_edge.calibration.ptq import quantize_int8
from gft_edge.calibration.qat import QatSettings
from gft_edge.calibration.quantize import QatOptions, QuantizeOptions, quantize_checkpoint
from gft_edge.calibration.ranges import read_ranges
from gft_edge.calibration.sensitivity.study import LayerTimes, SensitivityOptions, TimedLayer, study_sensitivity
from gft_edge.checkpoint import load_checkpoint
from gft_edge.data.batches import evaluation_batches
from gft_edge.errors import ConfigError, OutputError
from gft_edge.quant.policy import DEFAULT_POLICY, QuantPolicy, QuantRule, uniform_policy
from gft_edge.storage.seals import read_sealed


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def calibration(folders):
    return CalibrationOptions(str(folders), images=8)


def test_quantization_in_one_call_is_that_of_its_steps(checkpoint, calibration, tmp_path, capfd):
    policy = QuantPolicy(DEFAULT_POLICY.rules, smoothquant=0.5)
    result = quantize_checkpoint(checkpoint, QuantizeOptions(calibration, policy), tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    _, images = choose_images(calibration, checkpoint.info.preprocess, checkpoint.info.labels)
    batches = [batch for batch, _ in evaluation_batches(images, checkpoint.info.preprocess)]
    expected = quantize_int8(checkpoint.model, batches, policy)
    assert expected.summary.items() <= result.summary.items()
    written = load_checkpoint(tmp_path / "out")
    with torch.no_grad():
        x = torch.from_numpy(batches[0])
        assert torch.equal(written.model(x), expected.model(x))
    assert (result.selection.data, result.selection.split, result.selection.held_out) == (
        calibration.data,
        "test",
        True,
    )
    assert json.loads((tmp_path / "out/calibration/selection.json").read_text()) == result.selection.to_json()
    assert sorted(path.name for path in (tmp_path / "out/calibration").iterdir()) == [
        "card.json",
        "certificates.json",
        "ranges.json",
        "selection.json",
    ]


def test_callbacks_receive_progress_notes_and_the_curve(checkpoint, calibration, folders, tmp_path):
    titles, notes = [], []

    def track(items, title, total):
        titles.append((title, total))
        return iter(items)

    def draw(images, ranges, needed):
        return f"{images[-1]} {len(ranges)} {needed}"

    callbacks = Callbacks(track, notes.append, None, draw)
    result = calibrate_checkpoint(checkpoint, calibration, tmp_path / "out", callbacks=callbacks)
    assert titles == [("calibrate", 1)]
    assert notes == []
    curve = result.ranges.convergence
    assert (tmp_path / "out/convergence.svg").read_text() == f"8 {len(curve.ranges)} {curve.images_needed}"
    assert read_ranges(tmp_path / "out/ranges.json") == result.ranges
    assert read_sealed(tmp_path / "out/card.json", "card", "")["id"] == result.card.id
    flat = CalibrationOptions(str(shutil.copytree(folders / "train", tmp_path / "animals")), images=8)
    quantize_checkpoint(checkpoint, QuantizeOptions(flat), tmp_path / "flat", Callbacks(note=notes.append))
    assert len(notes) == len(set(notes)) > 0
    assert all(note.startswith("data: ") for note in notes)


def test_a_result_that_cannot_be_written_is_kept(checkpoint, calibration, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gft_edge.calibration.quantize.save_checkpoint", full)
    with pytest.raises(ResultNotWrittenError) as caught:
        quantize_checkpoint(checkpoint, QuantizeOptions(calibration), tmp_path / "out")
    assert isinstance(caught.value, OutputError)
    assert caught.value.path == tmp_path / "out"
    assert caught.value.result.summary["calibration_images"] == 8
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"smoothquant": True}, {"qat": True}])
@pytest.mark.parametrize("known", ["ranges", "state"])
def test_known_ranges_do_not_fit_a_changed_model(calibration, tmp_path, change, known):
    policy = QuantPolicy(DEFAULT_POLICY.rules, smoothquant=0.5) if "smoothquant" in change else DEFAULT_POLICY
    qat = QatOptions(QatSettings(steps=1)) if "qat" in change else None
    if known == "state":
        calibration = CalibrationOptions(state=tmp_path / "state")
    with pytest.raises(ConfigError, match="leave out"):
        QuantizeOptions(calibration, policy, tmp_path / "ranges.json" if known == "ranges" else None, qat)


def test_sensitivity_takes_times_from_anywhere(checkpoint, calibration, tmp_path):
    def time_layers(model, names, image_size):
        layers = {name: TimedLayer("1 x 2 x 3", 6, 2.0, 1.0) for name in names}
        return LayerTimes(layers, "made up", "FP16", "bound")

    options = SensitivityOptions(calibration, eval_images=4)
    result = study_sensitivity(checkpoint, options, time_layers, tmp_path / "out")
    record = json.loads((tmp_path / "out/sensitivity.json").read_text())
    assert record == json.loads(json.dumps(result.to_json()))
    assert (record["times"]["source"], record["layers"][0]["macs"], record["search"]) == ("made up", 6, None)
    assert (record["evaluation"]["split"], record["evaluation"]["images"]) == ("val", 4)
    assert result.unmet is None


def test_rules_that_do_nothing_are_noted(checkpoint, calibration, tmp_path):
    rules = tuple(QuantRule(f"stages.{i}.*", "int8", "of another model") for i in range(4))
    policy, notes = QuantPolicy((*rules, *DEFAULT_POLICY.rules)), []
    result = quantize_checkpoint(
        checkpoint, QuantizeOptions(calibration, policy), tmp_path / "out", Callbacks(note=notes.append)
    )
    assert notes[0] == (
        "quantization policy: no layer of this model matches 'stages.0.*', 'stages.1.*', 'stages.2.*' and 1 more; "
        "these rules do nothing"
    )
    assert len(result.summary["ranges"]) == 12
    with pytest.raises(ConfigError, match="no linear layer or convolution of this model matches"):
        quantize_checkpoint(checkpoint, QuantizeOptions(calibration, QuantPolicy(rules)), tmp_path / "none")


def test_other_precisions_have_no_sensitivity():
    with pytest.raises(ConfigError, match="fp8"):
        SensitivityOptions(policy=uniform_policy("fp8"))
