"""Bundles for DeepStream: what is written is read back, what nvinfer cannot use is refused, faults are named."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from gft_edge.bundle import ARTIFACT, load_bundle, write_record
from gft_edge.cli.main import main, verb_module
from gft_edge.cli.parsing import verb_parser
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.export.deploy.bundling import make_bundle
from gft_edge.export.deploy.deepstream.bundle import config_text, labels_text
from gft_edge.export.deploy.deepstream.nvinfer_compare import compare_config, compare_with_twin, frames_of
from gft_edge.export.deploy.deepstream.nvinfer_config import read_config
from gft_edge.export.deploy.deepstream.nvinfer_twin import open_twin, read_label_file
from gft_edge.export.deploy.options import BundleOptions
from gft_edge.files import canonical_json
from gft_edge.manifest import MANIFEST, MODEL, Artifact, FileInfo, TensorInfo, load_artifact
from gft_edge.storage.seals import write_sealed

KEYS = frozenset(
    (Path(__file__).parents[2] / "recorded" / "nvinfer" / "classifier_keys.txt").read_text(encoding="utf-8").split()
)
"""Keys of a classifier in gstnvinfer_property_parser.h of DeepStream 6.0; later releases have added, not removed."""
PRIMARY, SECONDARY = BundleOptions("deepstream"), BundleOptions("deepstream", secondary=True)


def linear_graph(manifest, inside: bool, probabilities: bool, maps: bool) -> onnx.ModelProto:
    """Makes a linear classifier of pixels, whose answers depend on every one of them, with the interface of an artefact."""
    scale, shift = (values[:, None, None] for values in manifest.preprocess.scale_and_shift())
    weights = np.random.default_rng(5).standard_normal((3072, 4)).astype(np.float32) / 20
    constants = {"scale": scale, "shift": shift, "weights": weights, "three": np.int64([3])}
    form = ["batch", 3, 32, 32]
    nodes = [
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["image"]),
    ] * inside + [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    nodes += [helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)] * probabilities
    name = "probabilities" if probabilities else "logits"
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])]
    if maps:
        nodes.append(helper.make_node("TopK", ["logits", "three"], ["values", "order"]))
        nodes.append(helper.make_node("Cast", ["order"], ["kept_0"], to=TensorProto.INT32))
        outputs.append(helper.make_tensor_value_info("kept_0", TensorProto.INT32, ["batch", 3]))
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("pixels" if inside else "image", TensorProto.FLOAT, form)],
        outputs,
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rewritten(artifact: Artifact, out: Path, inside: bool = True, probabilities: bool = True, **changes) -> Artifact:
    """Copies an artefact with another graph, and with other fields of its manifest."""
    shutil.copytree(artifact.path, out)
    manifest = artifact.manifest
    maps = changes.get("maps") == "compact"
    onnx.save(linear_graph(manifest, inside, probabilities, maps), str(out / MODEL))
    first = dataclasses.replace(manifest.outputs[0], name="probabilities" if probabilities else "logits")
    kept = (TensorInfo("kept_0", "int32", ("batch", 3), "kept patches"),)
    taken = dataclasses.replace(manifest.inputs[0], name="pixels" if inside else "image")
    changes = {"inputs": (taken,), "outputs": (first, *kept * maps), **changes}
    files = {**manifest.files, MODEL: FileInfo.of(out / MODEL)}
    write_sealed(out / MANIFEST, dataclasses.replace(manifest, files=files, **changes).to_json())
    return load_artifact(out)


@pytest.fixture(scope="module")
def fitting(tiny_artifact, tmp_path_factory) -> Artifact:
    return rewritten(load_artifact(tiny_artifact), tmp_path_factory.mktemp("fitting") / "artifact")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Pictures with edges, four times the input, on which the resize matters."""
    rng = np.random.default_rng(3)
    return [np.kron(rng.integers(0, 256, (40, 44, 3)), np.ones((3, 3, 1))).astype(np.uint8) for _ in range(24)]


@pytest.fixture(scope="module")
def bundle(fitting, tmp_path_factory):
    return make_bundle(fitting, tmp_path_factory.mktemp("bundle") / "out", PRIMARY)


def test_what_is_written_is_read_back(bundle, fitting):
    folder = bundle.path / "deepstream"
    config = read_config(folder / "config_infer_primary.txt")
    assert set(config.values) == {"property"}
    assert set(config.values["property"]) <= KEYS
    spec = fitting.manifest.preprocess
    assert config.numbers("infer-dims") == (3, spec.height, spec.width)
    assert config.number("net-scale-factor", 0) == 1
    assert config.numbers("offsets") == (0, 0, 0)
    assert (
        config.integer("process-mode", 0),
        config.integer("network-type", 0),
        config.integer("network-mode", 9),
    ) == (1, 1, 0)
    assert read_label_file(folder / "labels.txt") == (fitting.manifest.labels,)
    assert config.file("onnx-file").read_bytes() == fitting.file(MODEL).read_bytes()
    engine = f"model.onnx_b{config.integer('batch-size', 0)}_gpu0_fp32.engine"
    assert config.text("model-engine-file") == engine
    assert engine in (folder / "build_engine.sh").read_text()
    assert "--int8" not in (folder / "build_engine.sh").read_text()
    assert open_twin(config.path).size == (spec.height, spec.width)
    bundle.check()


def test_nvinfer_may_write_its_engine_into_the_bundle_and_no_other(bundle, tmp_path):
    copy = load_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))
    name = read_config(copy.path / "deepstream" / "config_infer_primary.txt").text("model-engine-file")
    (copy.path / "deepstream" / name).write_bytes(b"engine")
    copy.check()
    (copy.path / "deepstream" / "other.engine").write_bytes(b"engine")
    with pytest.raises(ArtifactError, match=r"other\.engine"):
        copy.check()


def test_secondary_element_and_maps(fitting, tiny_artifact, tmp_path):
    out = make_bundle(fitting, tmp_path / "secondary", SECONDARY).path / "deepstream"
    config = read_config(out / "config_infer_secondary.txt")
    assert set(config.values["property"]) <= KEYS
    assert (
        config.integer("process-mode", 0),
        config.integer("operate-on-gie-id", 0),
        config.integer("gie-unique-id", 0),
    ) == (2, 1, 2)
    assert config.integer("batch-size", 0) == fitting.manifest.batch[2]
    maps = rewritten(load_artifact(tiny_artifact), tmp_path / "maps", maps="compact")
    made = make_bundle(maps, tmp_path / "made", PRIMARY)
    config = read_config(made.path / "deepstream" / "config_infer_primary.txt")
    assert (config.integer("network-type", 0), config.flag("output-tensor-meta")) == (100, True)
    assert "kept_0" in (made.path / "deepstream" / "README.md").read_text()
    (report,) = compare_with_twin(made)
    assert report.differing == 0


@pytest.mark.parametrize(
    ("precision", "rest", "mode", "flags"),
    [("fp16", "fp16", 2, ["--fp16"]), ("int8", "fp32", 1, ["--int8"]), ("int8", "fp16", 1, ["--int8", "--fp16"])],
)
def test_network_mode_and_flags_by_precision(fitting, precision, rest, mode, flags):
    from gft_edge.export.deploy.deepstream.texts import build_script

    manifest = dataclasses.replace(fitting.manifest, precision=precision, rest=rest)
    text = config_text(manifest, False)
    assert f"network-mode={mode}\n" in text
    assert f"gpu0_{precision}.engine\n" in text
    script = build_script(manifest, 1, "e")
    assert [word for word in script.split() if word in ("--fp16", "--int8")] == flags


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inside": False}, "net-scale-factor"),
        ({"probabilities": False}, "classifier-threshold"),
        ({"inputs": (TensorInfo("image", "uint8", ("batch", 32, 32, 3), ""),)}, "uint8"),
        ({"batch": (2, 2, 2)}, "smallest batch is 2"),
        ({"batch": (1, 1, 2000)}, "1024"),
        (
            {"precision": "fp8"},
            "no value for fp8, only for fp32, int8, fp16; first quantize the checkpoint with --precision int8",
        ),
        ({"precision": "bf16", "rest": "bf16"}, "bf16"),
    ],
)
def test_a_graph_that_nvinfer_cannot_use_is_refused_with_the_export(tiny_artifact, tmp_path, changes, words):
    artifact = rewritten(load_artifact(tiny_artifact), tmp_path / "artifact", **changes)
    with pytest.raises(ConfigError) as caught:
        make_bundle(artifact, tmp_path / "out", PRIMARY)
    message = str(caught.value)
    assert words in message
    assert (
        "gft-edge export CHECKPOINT --out ARTIFACT --input float255 --probabilities --budget 12-6"
        in message.replace("12,6", "12-6")
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a;b", "a;"])
def test_a_label_that_nvinfer_would_divide_is_refused(fitting, tmp_path, name):
    artifact = dataclasses.replace(
        fitting, manifest=dataclasses.replace(fitting.manifest, labels=("x", name, "y", "z"))
    )
    with pytest.raises(ConfigError) as caught:
        make_bundle(artifact, tmp_path / "out", PRIMARY)
    assert repr(name) in str(caught.value)


def edited(bundle, folder: Path, labels: str | None = None, **values: str | None) -> Path:
    """Copies the DeepStream folder of a bundle and changes keys of its configuration and its labels."""
    shutil.copytree(bundle.path / "deepstream", folder)
    path = folder / "config_infer_primary.txt"
    config = read_config(path).changed(**values)
    path.write_text("[property]\n" + "".join(f"{k}={v}\n" for k, (v, _) in config.values["property"].items()))
    if labels is not None:
        (folder / "labels.txt").write_text(labels)
    return path


def test_the_bundle_agrees_on_its_golden_images(bundle):
    (report,) = compare_with_twin(bundle)
    assert (report.images, report.differing, report.causes, report.unexplained) == (4, 0, (), 0)
    assert "0 of 4" in report.text()
    canonical_json(report.to_json())


@pytest.mark.parametrize(
    ("causes", "labels", "values"),
    [
        (["labels"], "ant\nbee\ncat\ndog\n", {}),
        (["labels"], "dog;cat;bee;ant\n", {}),
        (["threshold"], None, {"classifier_threshold": "1.0"}),
        (["colour"], None, {"model_color_format": "1"}),
        (["scale"], None, {"net_scale_factor": "0.0173", "offsets": "123.675;116.28;103.53"}),
    ],
)
def test_each_fault_of_a_configuration_is_named(bundle, fitting, frames, tmp_path, causes, labels, values):
    small = [fitting.manifest.preprocess.geometry(frame) for frame in frames]
    path = edited(bundle, tmp_path / "edited", labels, **values)
    report = compare_config(path, fitting, small)
    assert report.differing > 0
    assert [cause.element for cause in report.causes] == causes
    assert report.unexplained == 0


def test_resize_and_padding_are_told_apart(bundle, fitting, frames, tmp_path):
    report = compare_config(edited(bundle, tmp_path / "filter", scaling_filter="0"), fitting, frames)
    assert [cause.element for cause in report.causes] == ["filter"]
    wide = [frame[:60] for frame in frames]
    path = edited(bundle, tmp_path / "padding", maintain_aspect_ratio="1", scaling_filter="3")
    report = compare_config(path, fitting, wide)
    assert report.causes[0].element == "padding"
    assert report.unexplained == 0


def test_a_centre_crop_that_nvinfer_cannot_make_is_said_and_named(tiny_artifact, frames, tmp_path):
    plain = load_artifact(tiny_artifact)
    spec = dataclasses.replace(plain.manifest.preprocess, resize="crop", crop_ratio=0.5)
    made = make_bundle(rewritten(plain, tmp_path / "crop", preprocess=spec), tmp_path / "out", PRIMARY)
    assert "crop" in (made.path / "deepstream" / "config_infer_primary.txt").read_text()
    assert "crop ratio 0.5" in (made.path / "deepstream" / "README.md").read_text()
    (report,) = compare_with_twin(made, frames)
    assert "crop" in [cause.element for cause in report.causes]
    assert report.unexplained == 0
    assert not report.passed


def test_several_faults_are_named_one_after_the_other(bundle, fitting, frames, tmp_path):
    small = [fitting.manifest.preprocess.geometry(frame) for frame in frames]
    path = edited(bundle, tmp_path / "edited", "ant\nbee\ncat\ndog\n", model_color_format="1")
    report = compare_config(path, fitting, small)
    assert {cause.element for cause in report.causes} == {"labels", "colour"}
    assert report.unexplained == 0
    assert report.causes[0].before == report.differing


def test_scores_and_one_scale_of_an_artefact_that_was_not_made_for_nvinfer(
    bundle, tiny_artifact, fitting, frames, tmp_path
):
    plain = rewritten(load_artifact(tiny_artifact), tmp_path / "plain", inside=False, probabilities=False)
    small = [plain.manifest.preprocess.geometry(frame) for frame in frames]
    path = edited(
        bundle,
        tmp_path / "edited",
        net_scale_factor="0.01735207",
        offsets="123.675;116.28;103.53",
        classifier_threshold="0.9",
    )
    shutil.copyfile(plain.file(MODEL), path.parent / MODEL)
    report = compare_config(path, plain, small)
    assert {cause.element for cause in report.causes} <= {"scores", "scale", "threshold"}
    assert "threshold" in {cause.element for cause in report.causes}
    assert report.unexplained == 0


def test_an_output_that_is_read_as_an_attribute_is_named(bundle, tiny_artifact, tmp_path):
    maps = rewritten(load_artifact(tiny_artifact), tmp_path / "maps", maps="compact")
    path = edited(bundle, tmp_path / "edited")
    shutil.copyfile(maps.file(MODEL), path.parent / MODEL)
    report = compare_config(path, maps)
    assert report.differing == report.images
    assert [cause.element for cause in report.causes] == ["outputs"]


def test_a_bundle_for_another_target_or_changed_is_refused(bundle, tmp_path):
    with pytest.raises(ConfigError, match="jetson"):
        compare_with_twin(dataclasses.replace(bundle, target="jetson"))
    copy = load_bundle(shutil.copytree(bundle.path, tmp_path / "copy"))
    (copy.path / "deepstream" / "labels.txt").write_text("changed")
    with pytest.raises(ArtifactError, match=r"labels\.txt"):
        compare_with_twin(copy)
    assert labels_text(("a", "b")) == "a;b\n"
    assert (copy.path / ARTIFACT).is_dir()


def test_names_of_the_device_may_not_lie_in_the_artefact(bundle, tmp_path):
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    write_record(copy, "deepstream", "", {"made_on_device": ["artifact/engines/x.engine"]})
    (copy / "artifact" / "engines").mkdir()
    (copy / "artifact" / "engines" / "x.engine").write_bytes(b"engine")
    with pytest.raises(ArtifactError, match=r"x\.engine"):
        load_bundle(copy).check()


def test_the_verb_bundle_writes_or_says_what_to_export(fitting, tiny_artifact, tmp_path, capsys):
    words = ["--target", "deepstream", "--secondary", "--out"]
    assert main(["bundle", str(fitting.path), *words, str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "deepstream" / "config_infer_secondary.txt").is_file()
    capsys.readouterr()
    assert main(["bundle", str(tiny_artifact), *words, str(tmp_path / "other")]) == 2
    assert "gft-edge export CHECKPOINT --out ARTIFACT --input float255 --probabilities" in capsys.readouterr().err


def test_the_verb_verify_compares_a_bundle(bundle, tmp_path, capsys):
    assert main(["verify", str(bundle.path)]) == 0
    assert "0 of 4 answers differ" in capsys.readouterr().out
    assert main(["verify", str(bundle.path), "--data", "scenes", "--images", "3", "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)["nvinfer"][0]
    assert found["images"] == 3
    assert found["unexplained"] == 0
    broken = tmp_path / "broken"
    shutil.copytree(bundle.path, broken)
    (broken / "deepstream" / "labels.txt").write_text("dog;cat;bee;ant\n")
    write_record(broken, "deepstream", "", bundle.facts)
    assert main(["verify", str(broken)]) == 1
    out = capsys.readouterr().out
    assert "labels" in out
    assert "FAILED" in out


def test_commands_of_the_page_parse():
    page = (Path(__file__).parents[3] / "docs" / "deepstream.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith("gft-edge ")]
    assert len(commands) == 4
    for command in commands:
        _, verb, *arguments = command.split()
        verb_parser(verb, verb_module(verb)).parse_args(arguments)


def test_frames_of_damaged_files_are_those_of_their_neighbours(tmp_path):
    grey = [np.full((8, 8, 3), 10 * number, np.uint8) for number in range(12)]
    for number, image in enumerate(grey):
        path = tmp_path / "data/test/a" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "data/test/a/00.png").write_bytes(b"")
    problems = []
    frames = frames_of(str(tmp_path / "data"), None, 10, 8, problems.append)
    wanted = sorted({int(frame[0, 0, 0]) // 10 for frame in frames})
    assert (len(frames), len(wanted), 0 in wanted, len(problems)) == (10, 10, False, 1)
    with pytest.raises(DataError, match=r"00\.png"):
        frames_of(str(tmp_path / "data"), None, 10, 8)
