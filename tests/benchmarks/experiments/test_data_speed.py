from __future__ import annotations

import json

import pytest

from gft_edge.benchmarks.experiments import data_speed
from gft_edge.benchmarks.experiments.data_speed import (
    Sizes,
    core_speed,
    loader_speed,
    loop_speed,
    main,
    make_folder,
    waiting,
)


@pytest.mark.parametrize(
    ("images_per_second", "step_ms", "share"),
    [(6400, 10.0, 0.0), (6400, 20.0, 0.0), (3200, 15.0, 0.25), (640, 1.0, 0.99)],
)
def test_a_step_waits_for_what_its_batch_takes_longer_than_itself(images_per_second, step_ms, share):
    assert waiting(images_per_second, 64, step_ms) == pytest.approx(share)


def test_every_case_is_measured_and_written(tmp_path, monkeypatch, capsys):
    rates = iter((100.0, 200.0, 300.0, 400.0))
    asked = []

    def loader(name, side, augment, sizes, device):
        asked.append((name if name in ("typefaces", "scenes") else "folder", side, augment, sizes.workers))
        return {"images_per_second": next(rates), "own_ms_per_batch": 1.0}

    def loop(name, preset, augment, sizes, expected):
        return {"images_per_second": expected / 2}

    monkeypatch.setattr(data_speed, "loader_speed", loader)
    monkeypatch.setattr(data_speed, "loop_speed", loop)
    monkeypatch.setattr(data_speed, "core_speed", lambda *case: 40.0)
    monkeypatch.setattr(data_speed, "make_folder", lambda root, files: root)
    out = tmp_path / "data.json"
    assert main([str(out), "--workers", "3", "--batch", "10", "--step-ms", "50", "400"]) == 0
    assert asked == [
        ("typefaces", 96, "none", 3),
        ("folder", 224, "none", 3),
        ("folder", 224, "modern", 3),
        ("scenes", 192, "none", 3),
    ]
    data = json.loads(out.read_text())
    assert [(row["data"], row["way"], row["images_per_second"]) for row in data["results"]] == [
        ("typefaces", "loader", 100.0),
        ("typefaces", "training loop", 50.0),
        ("image folder", "loader", 200.0),
        ("image folder", "training loop", 100.0),
        ("image folder", "loader", 300.0),
        ("image folder", "training loop", 150.0),
        ("scenes", "loader", 400.0),
        ("scenes", "training loop", 200.0),
    ]
    assert data["results"][1]["waiting"] == {"50": 0.75, "400": 0.0}
    assert data["results"][1]["images_per_second_and_worker"] == pytest.approx(50 / 3)
    assert (
        "50 images/s, 17 per worker, 40 per second of a processor; waits 75% of a step of 50 ms, 0% of a step of 400 ms"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_and_the_loop_run(tmp_path, workers):
    sizes = Sizes(workers, batch=4, seconds=0.05, files=6)
    folder = make_folder(tmp_path, sizes.files)
    assert len(list(folder.rglob("*.jpg"))) == 8
    for name, side in (("typefaces", 96), (str(folder), 224)):
        found = loader_speed(name, side, "none", sizes, data_speed.torch.device("cpu"))
        assert found["images_per_second"] > 0
        assert found["own_ms_per_batch"] >= 0
        assert core_speed(name, side, "none", sizes) > 0
    assert loop_speed("typefaces", "gft_typeface", "none", sizes, 400)["images_per_second"] > 0


@pytest.mark.parametrize("flags", [["--workers", "-1"], ["--batch", "0"], ["--seconds", "0"], ["--step-ms", "5", "0"]])
def test_impossible_sizes_are_refused(tmp_path, flags):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "data.json"), *flags])
    assert ended.value.code == 2
