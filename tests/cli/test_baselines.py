"""Models to compare with go through the same verbs."""

import onnx
import pytest

MODELS = {
    "vit": ["model.preset=vit_tiny", "model.backbone=test_vit"],
    "resnet": ["model.preset=resnet50", "model.backbone=test_resnet"],
    "transfg": ["model.preset=transfg_base", "model.backbone=test_vit"],
}
RECIPE = """
[model]
image_size = 32
[data]
train_images = 64
eval_images = 16
num_workers = 0
[train]
steps = 2
batch_size = 8
warmup_steps = 1
layer_decay = 0.8
"""


@pytest.fixture(scope="module", params=MODELS)
def baseline(request, gft_edge, tmp_path_factory):
    """A folder with a trained checkpoint ``ckpt`` and its artefact ``fp32``."""
    root = tmp_path_factory.mktemp(request.param)
    (root / "recipe.toml").write_text(RECIPE)
    settings = [part for value in MODELS[request.param] for part in ("--set", value)]
    done = gft_edge("train", "--config", root / "recipe.toml", "--out", root / "ckpt", *settings)
    assert done.code == 0, done.err
    done = gft_edge("export", root / "ckpt", "--out", root / "fp32")
    assert done.code == 0, done.err
    return root


def test_a_baseline_is_evaluated_verified_and_measured(baseline, gft_edge):
    done = gft_edge("evaluate", baseline / "ckpt", "--images", 32, "--json")
    assert done.code == 0, done.err
    in_torch = done.json["results"][0]
    done = gft_edge("evaluate", baseline / "fp32", "--images", 32, "--json")
    assert done.code == 0, done.err
    assert (done.json["results"][0]["right"], done.json["results"][0]["budget"]) == (in_torch["right"], "all")
    done = gft_edge("verify", baseline / "fp32", "--checkpoint", baseline / "ckpt", "--images", 32, "--json")
    assert done.code == 0, done.out + done.err
    assert done.json["comparisons"][0]["max_relative_error"] < 1e-4
    done = gft_edge("bench", baseline / "fp32", "--rounds", 2, "--runs", 1, "--warmup", 0)
    assert done.code == 0, done.err


def test_a_baseline_is_quantized(baseline, gft_edge):
    done = gft_edge("quantize", baseline / "ckpt", "--images", 16, "--out", baseline / "ckpt8")
    assert done.code == 0, done.err
    done = gft_edge("export", baseline / "ckpt8", "--out", baseline / "int8")
    assert done.code == 0, done.err
    done = gft_edge("verify", baseline / "int8", "--json")  # on its golden images
    found = done.json["comparisons"]
    assert [c["reference"] for c in found] == ["torch fp32", "torch int8"]
    assert found[1]["logit_sqnr_db"] > 25 > 10 < found[0]["logit_sqnr_db"]
    operators = [node.op_type for node in onnx.load(baseline / "int8/model.onnx").graph.node]
    assert "BatchNormalization" not in operators
    products = "Conv" if "resnet" in baseline.name else "MatMul"
    assert operators.count("QuantizeLinear") >= 4 <= operators.count(products)


def test_what_a_baseline_does_not_have_is_refused(baseline, gft_edge, tmp_path):
    done = gft_edge("export", baseline / "ckpt", "--maps", "compact", "--out", tmp_path / "a")
    assert (done.code, "has no stages, hence no maps; leave out --maps" in done.err) == (2, True)
    done = gft_edge("export", baseline / "ckpt", "--budget", "4,3,2", "--out", tmp_path / "b")
    assert (done.code, "has no stages; leave it out" in done.err) == (2, True)


def test_pages_of_runs_with_baselines_are_written(baseline, gft_edge):
    done = gft_edge("evaluate", baseline / "fp32", "--images", 16, "--out", baseline / "evaluate-fp32.json")
    assert done.code == 0, done.err
    done = gft_edge("report", baseline)
    assert done.code == 0, done.err
    assert "all" in (baseline / "report.html").read_text()
