"""docs/artefact_format.md against what the exporter writes: keys, types, seal, arrays, records and refusals."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from gft_edge.budget import TokenBudget
from gft_edge.errors import ArtifactError
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.onnx.weights import share_weights
from gft_edge.export.tensorrt.build import plan_build
from gft_edge.export.tensorrt.options import BuildOptions
from gft_edge.export.tensorrt.registration import engine_record
from gft_edge.files import write_json
from gft_edge.manifest import DeploymentManifest, FileInfo, load_artifact, register_files
from gft_edge.preprocess import PreprocessSpec
from gft_edge.runtime.backends.engine_files import EngineHost, check_engine
from gft_edge.runtime.backends.sessions import open_session
from gft_edge.runtime.golden import read_golden
from gft_edge.storage.seals import write_sealed

PAGE = (Path(__file__).parents[2] / "docs/artefact_format.md").read_text(encoding="utf-8")
GOLDEN = Path(__file__).parents[1] / "recorded/artefact/manifest.json"
BUDGETS = (TokenBudget((12, 6), 16), TokenBudget((8, 4), 16), TokenBudget((16, 16), 16))
TYPES = {"integer": int, "text": str, "number": (int, float), "object": dict, "null": type(None)}


def section(title: str) -> str:
    """The text of a section of the page, up to the next heading."""
    return re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(title: str) -> dict[str, str]:
    """Second column by the name in the first one, of the first table of a section."""
    table = section(title).split("|---|", 1)[1].split("\n\n", 1)[0]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE))


def is_of(value: object, kind: str) -> bool:
    """Whether a JSON value has a type of the page: ``text``, ``array of integer or text``, ``object or null``."""
    if kind.startswith("array of "):
        return isinstance(value, list) and all(is_of(item, kind.removeprefix("array of ")) for item in value)
    return any(isinstance(value, TYPES[name]) and not isinstance(value, bool) for name in kind.split(" or "))


def require_keys(data: dict, title: str) -> None:
    described = rows(title)
    assert set(data) == set(described), title
    assert {key: is_of(value, described[key]) for key, value in data.items()} == dict.fromkeys(data, True), title


def seal_of(data: dict) -> str:
    """The rule of the page, written again from its words."""
    text = json.dumps(
        {key: data[key] for key in sorted(data) if key != "seal"}, sort_keys=True, indent=2, ensure_ascii=False
    )
    return hashlib.sha256(f"{text}\n".encode()).hexdigest()


@pytest.fixture(scope="module")
def family(exported_once):
    """The artefact of the page's example."""
    return exported_once("fp32", GraphOptions("compact"), BUDGETS[:2])


@pytest.fixture(scope="module")
def quantized(exported_once):
    return exported_once("int8", GraphOptions("compact"), BUDGETS)


@pytest.fixture(scope="module")
def page_check():
    """``check`` of the page's program."""
    names: dict = {}
    exec(compile(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], "docs/artefact_format.md", "exec"), names)
    return names["check"]


def test_every_key_is_described_and_has_its_type(family, quantized):
    for artifact in (family, quantized):
        data = json.loads((artifact.path / "manifest.json").read_text(encoding="utf-8"))
        require_keys(data, "manifest.json")
        require_keys(data["model"], "model")
        require_keys(data["preprocess"], "preprocess")
        require_keys(data["budget"], "budget")
        for tensor in (*data["inputs"], *data["outputs"]):
            require_keys(tensor, "tensors")
        for info in data["files"].values():
            require_keys(info, "files")
        for member in data["family"].values():
            require_keys(member, "family")
        assert len(data["family"]) >= 1


def test_the_seal_follows_from_the_words_of_the_page(family, quantized, page_check):
    for path in (GOLDEN, family.path / "manifest.json", quantized.path / "manifest.json"):
        data = json.loads(path.read_bytes())
        assert data["seal"] == seal_of(data)
        assert page_check(path.read_bytes()) == {key: value for key, value in data.items() if key != "seal"}
        with pytest.raises(ValueError, match="changed since it was written"):
            page_check(path.read_bytes().replace(b'"schema": 1', b'"schema":  1'))


def test_hashes_follow_from_the_words_of_the_page(family, quantized, checkpoints):
    for artifact, checkpoint in ((family, checkpoints["fp32"]), (quantized, checkpoints["int8"])):
        data = json.loads((artifact.path / "manifest.json").read_bytes())
        spec = {key: value for key, value in data["preprocess"].items() if key != "id"}
        compact = json.dumps(spec, sort_keys=True, separators=(",", ":"))
        assert data["preprocess"]["id"] == hashlib.sha256(compact.encode()).hexdigest()[:12]
        for name, info in data["files"].items():
            raw = (artifact.path / name).read_bytes()
            assert (info["sha256"], info["size"]) == (hashlib.sha256(raw).hexdigest(), len(raw))
        expected = hashlib.sha256((checkpoint.path / "model.safetensors").read_bytes()).hexdigest()
        if data["quantization"] is not None:
            text = json.dumps(data["quantization"], sort_keys=True, indent=2, ensure_ascii=False) + "\n"
            expected = hashlib.sha256((expected + text).encode()).hexdigest()
        assert data["checkpoint_sha256"] == expected


def test_pixels_follow_from_the_words_of_the_page():
    image = np.random.default_rng(0).integers(0, 256, (50, 91, 3), np.uint8)
    spec = PreprocessSpec(32, 32, "crop", 0.9, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4), color_order="bgr")
    factor = max(32 / 0.9 / 50, 32 / 0.9 / 91)
    rows, columns = round(50 * factor), round(91 * factor)
    resized = np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC))
    top, left = (rows - 32) // 2, (columns - 32) // 2
    cut = resized[top : top + 32, left : left + 32, ::-1].transpose(2, 0, 1).astype(np.float32)
    mean, std = (np.array(values)[:, None, None] for values in (spec.mean, spec.std))
    expected = cut * np.float32(1 / (255 * std)) + np.float32(-mean / std)
    assert np.array_equal(spec.normalize(spec.geometry(image)), expected)


def test_keys_that_a_reader_does_not_know_are_ignored_and_dropped(family, tmp_path):
    path = Path(shutil.copytree(family.path, tmp_path / "artefact"))
    before = (path / "manifest.json").read_bytes()
    _resealed(lambda data: data.update(later="x"))(path)
    assert load_artifact(path).manifest == family.manifest
    register_files(load_artifact(path), ["golden.npz"])
    assert (path / "manifest.json").read_bytes() == before


def test_keys_that_may_be_missing(family):
    missing = re.findall(r"^\| `(\w+)` .*\*may be missing\*", section("manifest.json"), re.MULTILINE)
    data = json.loads((family.path / "manifest.json").read_bytes())
    for key in set(data) - {"seal", "variant"}:
        rest = {name: value for name, value in data.items() if name != key}
        if key in missing:
            DeploymentManifest.from_json(rest)
        else:
            with pytest.raises(ArtifactError):
                DeploymentManifest.from_json(rest)
    assert missing == ["dialect", "data", "golden_images"]


def test_the_example_is_the_recorded_manifest_and_what_the_writer_writes(tmp_path):
    assert re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1] == GOLDEN.read_text(encoding="utf-8")
    manifest = DeploymentManifest.from_json(json.loads(GOLDEN.read_bytes()))
    write_sealed(tmp_path / "manifest.json", manifest.to_json())
    assert (tmp_path / "manifest.json").read_bytes() == GOLDEN.read_bytes()


def test_the_example_is_the_manifest_of_its_export(family):
    def stable(path: Path) -> dict:
        data = json.loads(path.read_bytes())
        files = {
            name: sorted(info) for name, info in data["files"].items()
        }  # bytes depend on the versions of the tools
        return {**data, "files": files, "tools": sorted(data["tools"]), "checkpoint_sha256": "", "seal": ""}

    assert stable(family.path / "manifest.json") == stable(GOLDEN)


def test_files_of_the_folder_are_those_of_the_page(family, quantized):
    table = section("The folder").split("|---|", 1)[1]
    named = {name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.partition(" | ")[0])}
    for artifact in (family, quantized):
        for path in artifact.path.iterdir():
            assert re.sub(r"-\d[\d-]*\.", "-ID.", path.name) in named, path.name


def test_the_interface_is_that_of_the_page(family, quantized):
    described = re.findall(r"^\| `(\w+)`.*? \| (float32|uint8|int32) \| \((.*?)\)", section("tensors"), re.MULTILINE)
    shapes = {(name, dtype): shape.count(",") + 1 for name, dtype, shape in described}
    for artifact in (family, quantized):
        for tensor in (*artifact.manifest.inputs, *artifact.manifest.outputs):
            name = re.sub(r"_\d+$", "_S", tensor.name)
            assert shapes[name, tensor.dtype] == len(tensor.shape)


def test_golden_arrays_are_those_of_the_page(family, quantized):
    described = re.findall(r"^\| `(\w+)` \| (\w+) \| \((.*?)\) \|", section("golden.npz"), re.MULTILINE)
    table = {name: (dtype, shape) for name, dtype, shape in described}
    order = [name for name in table if not name.endswith("_S")]
    for artifact in (family, quantized):
        manifest = artifact.manifest
        with zipfile.ZipFile(artifact.path / "golden.npz") as archive:
            entries = archive.infolist()
        assert {(entry.compress_type, entry.date_time[:3]) for entry in entries} == {(zipfile.ZIP_STORED, (1980, 1, 1))}
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        stages = [f"{kind}_{stage}" for stage in range(2) for kind in ("importance", "kept", "scores")]
        expected = [*order[:2], *stages]
        if manifest.is_quantized:
            expected += [*order[2:], "quantized_kept_0", "quantized_kept_1"]
        assert names == expected
        for name, array in np.load(artifact.path / "golden.npz", allow_pickle=False).items():
            stage = int(name[-1]) if name[-1].isdigit() else 0
            sizes = {"B": 12, "3": 3, "H": 32, "W": 32, "classes": 4}
            sizes |= {"N_S": manifest.budget.stage_inputs[stage], "k_S": manifest.budget.keep[stage]}
            dtype, shape = table[re.sub(r"_\d+$", "_S", name)]
            assert (array.dtype, array.shape) == (dtype, tuple(sizes[axis] for axis in shape.split(", "))), name
            assert array.flags.c_contiguous


def test_shared_weights_lie_as_the_page_says(family):
    size = (family.path / "weights.bin").stat().st_size
    for name in ("model.onnx", "model-8-4.onnx"):
        for tensor in onnx.load(family.path / name, load_external_data=False).graph.initializer:
            place = {entry.key: entry.value for entry in tensor.external_data}
            if not place:
                assert tensor.ByteSize() < 1024 + 200  # name and shape
                continue
            assert (place["location"], int(place["offset"]) % 64) == ("weights.bin", 0)
            assert int(place["length"]) >= 1024
            assert int(place["offset"]) + int(place["length"]) <= size


def test_shared_weights_of_odd_sizes_are_aligned_and_stored_once(tmp_path):
    model = onnx.ModelProto()
    for name, size, value in (("a", 257, 1), ("b", 257, 2), ("same", 257, 1), ("small", 255, 3)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(size, value, np.float32), name))
    share_weights({"model.onnx": model}, tmp_path / "weights.bin")
    places = {t.name: {entry.key: entry.value for entry in t.external_data} for t in model.graph.initializer}
    assert places["small"] == {} and places["same"] == places["a"]
    assert [int(places[name]["offset"]) for name in "ab"] == [0, 1088]  # 1028 rounded up to a multiple of 64
    raw = (tmp_path / "weights.bin").read_bytes()
    assert raw == np.full(257, 1, "<f4").tobytes() + bytes(60) + np.full(257, 2, "<f4").tobytes()


def test_an_engine_record_is_described(family):
    plan = plan_build(family, "orin-nano", BuildOptions(tensorrt="10.3")).plan
    record = engine_record(plan, "KEY", "0" * 64, FileInfo("1" * 64, 1), layers=None, evidence="not run")
    require_keys(record, "Engines")


def _resealed(change):
    def apply(path: Path) -> None:
        data = json.loads((path / "manifest.json").read_bytes())
        change(data)
        data.pop("seal", None)
        text = json.dumps({**data, "seal": seal_of(data)}, sort_keys=True, indent=2, ensure_ascii=False)
        (path / "manifest.json").write_text(text + "\n", encoding="utf-8")

    return apply


def _edited(old: str, new: str):
    def apply(path: Path) -> None:
        text = (path / "manifest.json").read_text(encoding="utf-8")
        text, count = re.subn(old, new, text)
        assert count == 1
        (path / "manifest.json").write_text(text, encoding="utf-8")

    return apply


def _another_shape(path: Path) -> None:
    arrays = dict(np.load(path / "golden.npz"))
    np.savez(path / "golden.npz", **{**arrays, "kept_0": arrays["kept_0"][:, 1:]})
    register_files(load_artifact(path), ["golden.npz"])


def _engine_of_another_graph(path: Path) -> None:
    (path / "engines").mkdir()
    (path / "engines/KEY.engine").write_bytes(b"native code")
    digest = FileInfo.of(path / "engines/KEY.engine").sha256
    write_json(path / "engines/KEY.json", {"key": "KEY", "engine_sha256": digest, "model_sha256": "0" * 64})
    register_files(load_artifact(path), ["engines/KEY.engine", "engines/KEY.json"])


def _add_file(data: dict) -> None:
    data["files"]["../x"] = {"sha256": "0" * 64, "size": 1}


FAULTS = {
    "a manifest without a seal": _edited(r'  "seal": "\w+",\n', ""),
    "a seal that does not match": _edited('"opset": 20', '"opset": 21'),
    "JSON that is not canonical, whatever its seal": _edited('"opset": 20', '"opset":  20'),
    "another schema": _resealed(lambda data: data.update(schema=2)),
    "a missing key": _resealed(lambda data: data.pop("opset")),
    "preprocessing of another id": _resealed(lambda data: data["preprocess"].update(height=64)),
    "more or fewer labels than classes": _resealed(lambda data: data["labels"].pop()),
    "a budget of another model": _resealed(lambda data: data.update(budget={"keep": [12], "num_patches": 16})),
    "a file name that is absolute or has `..`": _resealed(_add_file),
    "a file that is missing": lambda path: (path / "model.onnx").unlink(),
    "a file of another size or hash": lambda path: (path / "golden.npz").write_bytes(b""),
    "a file that `files` does not have": _resealed(lambda data: data["files"].pop("golden.npz")),
    "a graph that reads such a file": _resealed(lambda data: data["files"].pop("weights.bin")),
    "a link in place of a folder": lambda path: (path / "reports").symlink_to("/tmp"),
    "a graph with another interface": _resealed(lambda data: data["inputs"][0].update(name="photo")),
    "golden arrays of other shapes": _another_shape,
    "an engine that `files` does not have": lambda path: None,
    "an engine of another graph": _engine_of_another_graph,
    "a budget that the family does not have": lambda path: None,
}


def test_every_refusal_of_the_page_has_a_fault():
    assert list(FAULTS) == re.findall(r"^\| (.+?) \| `.*` \|$", section("What a reader must refuse"), re.MULTILINE)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reader_refuses(family, tmp_path, fault):
    path = Path(shutil.copytree(family.path, tmp_path / "artefact"))
    FAULTS[fault](path)
    said = re.search(rf"^\| {re.escape(fault)} \| `(.*)` \|$", PAGE, re.MULTILINE)[1]
    with pytest.raises(ArtifactError, match=re.escape(said)):
        _read(path, "@4-2" if fault == "a budget that the family does not have" else "", "engine" in fault)


def _read(path: Path, member: str, engine: bool) -> None:
    """Does what verbs do before they compute."""
    artifact = load_artifact(f"{path}{member}")
    if engine:
        check_engine(artifact, "KEY", EngineHost("tensorrt", "10.3.0", "8.7"))
    read_golden(artifact)
    open_session(artifact)
