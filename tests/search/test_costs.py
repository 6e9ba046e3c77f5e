from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gft_edge.benchmarks.measuring.artifact_facts import architecture
from gft_edge.benchmarks.measuring.bench_files import SCHEMA
from gft_edge.benchmarks.measuring.protocol import BenchProtocol, Latency
from gft_edge.benchmarks.roofline import model_roofline
from gft_edge.budget import TokenBudget
from gft_edge.checkpoint import load_checkpoint
from gft_edge.config.model import preset
from gft_edge.errors import ArtifactError, ConfigError
from gft_edge.hardware.devices import device
from gft_edge.model.macs import count_macs
from gft_edge.search import costs as module
from gft_edge.search.costs import bench_costs, bound_costs, measured_costs
from gft_edge.search.graphs import pattern_of
from gft_edge.search.measuring import design, without_drift
from gft_edge.search.point import OperatingPoint
from gft_edge.storage.seals import write_sealed

QUICK = BenchProtocol(warmup_seconds=0, rounds=1, runs_per_round=1)


def point(config, *keep, precision="fp32"):
    return OperatingPoint("ckpt", config, TokenBudget(keep, config.num_patches), precision)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def cached(checkpoint, tmp_path_factory):
    """A file of measured tables, and its cost model; of budgets that drop at both stages, which take one export a precision."""
    file = tmp_path_factory.mktemp("costs") / "costs.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "design", lambda config: [b for b in design(config) if all(pattern_of(b))])
        return file, measured_costs(checkpoint, ("fp32", "int8"), cache=file, protocol=QUICK)


@pytest.fixture
def change(cached, tmp_path):
    """Writes a copy of the measured file with other entries."""

    def changed(**entries):
        file = tmp_path / "costs.json"
        write_sealed(file, {**json.loads(cached[0].read_text()), **entries})
        return file

    return changed


def test_measured_costs_have_a_figure_for_every_budget_and_precision(cached, tiny_config):
    for precision in ("fp32", "int8"):
        cost = cached[1](point(tiny_config, 9, 4, precision=precision))
        assert (cost.kind, cost.mj) == ("measured", None)
        assert cost.ms > 0
        assert cost.gmac == count_macs(tiny_config, TokenBudget((9, 4), 16)) / 1e9


def test_a_file_is_read_and_not_measured_again(cached, checkpoint, tiny_config, monkeypatch):
    monkeypatch.setattr(module, "measure_budgets", lambda *_: pytest.fail("measured"))
    again = measured_costs(checkpoint, ("fp32",), cache=cached[0])
    assert again(point(tiny_config, 9, 4)) == cached[1](point(tiny_config, 9, 4))
    with pytest.raises(ConfigError, match="precision 'int8' is not measured; there are: fp32"):
        again(point(tiny_config, 9, 4, precision="int8"))


def test_the_program_of_the_page_runs(cached, tiny_checkpoint, capsys):
    """On a checkpoint and a file that are there already: a measurement of the built-in model takes a minute."""
    page = (Path(__file__).parents[2] / "docs/sweep.md").read_text(encoding="utf-8")
    program = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    used = (('load_checkpoint("builtin")', f"load_checkpoint({str(tiny_checkpoint)!r})"), ("200,100,50", "9,4"))
    for shown, here in (*used, ('"costs.json"', repr(str(cached[0])))):
        assert shown in program
        program = program.replace(shown, here)
    exec(compile(program, "docs/sweep.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0


def test_a_file_of_another_machine_is_refused(change, checkpoint):
    file = change(machine={"cpu": {"model": "Other CPU", "features": [], "cores": 64}, "board": None})
    with pytest.raises(ConfigError, match=r"of another machine: Other CPU, 64 core\(s\), this is .*; measure again"):
        measured_costs(checkpoint, cache=file)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"threads": 2}, "is of threads 2, now 1"),
        ({"backend_version": "0.1"}, "is of backend version '0.1', now"),
        ({"schema": 9}, "is no file of latency tables"),
        ({"tables": {"fp32": {"policy": None, "budgets": [1]}}}, "malformed"),
    ],
)
def test_a_file_of_other_conditions_is_refused(change, checkpoint, entries, message):
    with pytest.raises((ConfigError, ArtifactError), match=message):
        measured_costs(checkpoint, cache=change(**entries))


def test_a_file_of_another_model_is_refused(change, checkpoint, tiny_config):
    other = architecture(dataclasses.replace(tiny_config, num_heads=4))
    with pytest.raises(ConfigError, match="is of another model: num_heads 4, this one has 2; measure again"):
        measured_costs(checkpoint, cache=change(model=other))


def test_a_point_of_another_model_or_outside_of_the_range_is_refused(checkpoint, cached, tiny_config):
    costs = cached[1]
    with pytest.raises(ConfigError, match="point of ckpt is of another model: score 'class-row'"):
        costs(point(dataclasses.replace(tiny_config, score="class-row"), 9, 4))
    table = costs.tables["fp32"]
    narrow = dataclasses.replace(table, ms={b: ms for b, ms in table.ms.items() if b.keep[0] <= 12})
    with pytest.raises(
        ConfigError, match=r"budget 14-4 is outside of the measured range: stage 1 keeps 14, measured are 3 to 1\d"
    ):
        dataclasses.replace(costs, tables={"fp32": narrow})(point(tiny_config, 14, 4))


def test_unknown_backends_and_precisions_are_refused(checkpoint):
    with pytest.raises(ConfigError, match="measured on onnxruntime here, not 'onnxruntme' .did you mean"):
        measured_costs(checkpoint, backend="onnxruntme")
    with pytest.raises(ConfigError, match="unknown precision 'int4' .did you mean 'int8'"):
        measured_costs(checkpoint, ("int4",))


def bench_file(path, config, rows, **common):
    """Writes a bench file of rows of budget, milliseconds and millijoules."""
    results = [
        {
            "name": f"fp32-{keep}",
            "backend": "tensorrt",
            "batch": 1,
            "threads": 1,
            "precision": "fp16",
            "budget": keep,
            "p50_ms": ms,
            "rounds_ms": [[ms]],
            "model": architecture(config),
            "energy": {"mj_per_image": mj},
            **common,
        }
        for keep, ms, mj in rows
    ]
    write_sealed(path, {"schema": SCHEMA, "machine": {"board": "Orin"}, "results": results})
    return path


ROWS = [("16-16", 4.0, 40.0), ("12-8", 3.0, 30.0), ("8-4", 2.2, None), ("4-4", 2.0, 20.0), ("2-2", 1.8, 18.0)]


def test_a_bench_file_is_exact_at_its_budgets_and_interpolates_between(tmp_path, tiny_config):
    costs = bench_costs(bench_file(tmp_path / "b.json", tiny_config, ROWS), tiny_config)
    for keep, ms, mj in ROWS:
        cost = costs(point(tiny_config, *map(int, keep.split("-")), precision="fp16"))
        assert (cost.ms, cost.mj, cost.kind) == (ms, mj, "measured")
    between = costs(point(tiny_config, 10, 6, precision="fp16"))
    assert 2.0 < between.ms < 3.2
    assert 20 < between.mj < 32


def test_few_budgets_of_a_bench_file_are_not_interpolated(tmp_path, tiny_config):
    costs = bench_costs(bench_file(tmp_path / "b.json", tiny_config, ROWS[:3]), tiny_config)
    assert costs(point(tiny_config, 12, 8, precision="fp16")).ms == 3.0
    with pytest.raises(
        ConfigError, match="budget 10-6 in fp16 is not measured, and 3 budgets .* too few to interpolate"
    ):
        costs(point(tiny_config, 10, 6, precision="fp16"))


def test_bench_files_that_do_not_fit_are_refused(tmp_path, tiny_config):
    file = tmp_path / "b.json"
    with pytest.raises(ConfigError, match="fp32-16-16 is of another model: backbone .*give the file of this model"):
        bench_costs(bench_file(file, preset("gft_base"), ROWS), tiny_config)
    with pytest.raises(ArtifactError, match="does not say what model it is; measure again"):
        bench_costs(bench_file(file, tiny_config, ROWS, model=None), tiny_config)
    with pytest.raises(ConfigError, match="nothing is measured at batch 4"):
        bench_costs(bench_file(file, tiny_config, ROWS), tiny_config, batch=4)
    bench_file(file, tiny_config, ROWS)
    data = json.loads(file.read_text())
    data["results"][0]["threads"] = 2
    write_sealed(file, data)
    with pytest.raises(ConfigError, match="figures of several threads: 2, 1"):
        bench_costs(file, tiny_config)


def test_a_bound_is_the_roofline_and_labelled_so(tiny_config):
    at = point(tiny_config, 9, 4, precision="int8:careful")
    cost = bound_costs("orin-nano-8gb")(at)
    assert cost.kind == "bound"
    assert cost.ms == model_roofline(tiny_config, at.budget, "int8", device("orin-nano-8gb")).bound_ms


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="unknown device 'orin-nan' .did you mean"):
        bound_costs("orin-nan")


def test_baselines_have_no_budgets_to_measure():
    with pytest.raises(ConfigError, match="variant 'timm' does not depend on a token budget"):
        design(preset("vit_base"))


def test_drift_that_all_share_is_removed():
    drift = [1.0, 1.4, 0.9, 1.1, 2.0]
    found = {name: Latency.of([[ms * factor] for factor in drift]) for name, ms in (("a", 3.0), ("b", 5.0), ("c", 7.0))}
    medians = without_drift(found)
    assert medians["b"] / medians["a"] == pytest.approx(5 / 3)
    assert medians["c"] == pytest.approx(7 * 1.1)
