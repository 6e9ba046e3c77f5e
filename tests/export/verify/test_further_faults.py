"""Seeded faults of graph and manifest in every precision: each is found and located.

Each kind is tried on one precision, by turns. Most faults of nodes are located without the rest of a verification, which takes
half the time. ``GFT_EDGE_ALL_FAULTS=1`` tries every kind on every precision that can have it, in a whole verification.
"""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pytest

from gft_edge.budget import TokenBudget
from gft_edge.errors import ArtifactError
from gft_edge.export.graph.same_graph import graph_difference
from gft_edge.export.onnx.options import GraphOptions
from gft_edge.export.verify.artifact_alone import verify_golden
from gft_edge.export.verify.claims import corrected
from gft_edge.export.verify.options import VerifyOptions
from gft_edge.export.verify.trace import IMAGES, trace
from gft_edge.export.verify.with_checkpoint import verify_checkpoint
from gft_edge.manifest import (
    GOLDEN,
    MANIFEST,
    MODEL,
    FileInfo,
    Member,
    TensorInfo,
    load_artifact,
)
from gft_edge.runtime.artifact_graph import load_artifact_graph
from gft_edge.runtime.backends.graph_io import to_graph_input
from gft_edge.stats.verdict import Limits
from gft_edge.storage.seals import write_sealed

from .further_faults import ACTIVATIONS, ALL, COMPACT, KINDS, SCALED
from .graph_surgery import Graph

WIDE = VerifyOptions(limits=Limits(int8_jaccard=0, int8_rank_correlation=-1, int8_importance_sqnr_db=-100))
"""What FP8 costs a model of random weights is no fault here."""
FULL = bool(os.environ.get("GFT_EDGE_ALL_FAULTS"))


def _turns(kinds):
    """Pairs of a kind and an artefact: one each, or all."""
    pairs = []
    for number, (name, artifacts) in enumerate(kinds):
        pairs += [(name, a) for a in (artifacts if FULL else [artifacts[number % len(artifacts)]])]
    return pairs


@pytest.fixture(scope="module")
def weights(checkpoints):
    return {key: value.numpy() for key, value in checkpoints["fp32"].model.state_dict().items()}


@pytest.fixture(scope="module")
def images_of(exported, clear_images):
    """Returns a few images, exactly as a graph with pixels as input sees them."""

    def images(name):
        spec = exported(name).manifest.preprocess
        few = clear_images[:IMAGES]
        return spec.normalize(spec.pixels(few)) if name.endswith("uint8") else few

    return images


@pytest.fixture(scope="module")
def verify(exported, checkpoints, images_of):
    """Verifies an artefact against the true export of that name."""

    def run(artifact, name):
        images = images_of(name)
        fresh = load_artifact_graph(exported(name))
        batches = [(images, np.zeros(len(images), np.int64))]
        return verify_checkpoint(artifact, checkpoints[name.split("-")[0]], batches, "images", WIDE, fresh)

    return run


GRAPH_FAULTS = _turns((kind, fault.artifacts) for kind, fault in KINDS.items())
LOCATED = [] if FULL else [case for case in GRAPH_FAULTS if KINDS[case[0]].place == "node"]
WHOLE = [case for case in GRAPH_FAULTS if case not in LOCATED] + LOCATED[::8]
LOCATED = [case for case in LOCATED if case not in WHOLE]


@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_fault_of_the_graph_is_found_and_placed(edited, weights, verify, kind, name, record_property):
    fault, wanted = KINDS[kind], []
    artifact = edited(name, lambda model: wanted.append(fault.change(Graph(model, weights))))
    report = verify(artifact, name)
    record_property("places", [place.text for place in report.places])
    assert (report.verdict, report.fresh_export) == ("fail", "different")
    place = next(place for place in report.places if place.kind == fault.place)
    if fault.place == "graph":
        assert wanted[0] in place.text
    else:
        assert (place.name, place.module) == (wanted[0], fault.module)
    assert any(place.text in failure for failure in report.failures)


@pytest.mark.parametrize(("kind", "name"), LOCATED)
def test_fault_of_a_node_is_located(exported, checkpoints, images_of, weights, kind, name, record_property):
    true, checkpoint = exported(name), checkpoints[name.split("-")[0]]
    fresh, found = load_artifact_graph(true), load_artifact_graph(true)
    wanted = KINDS[kind].change(Graph(found, weights))
    images = images_of(name)
    feed = to_graph_input(images, true.manifest)
    place = trace(checkpoint, true.manifest.budget, (fresh, found), images, feed, exact=True)
    record_property("places", [place.text])
    assert (place.kind, place.name, place.module) == ("node", wanted, KINDS[kind].module)
    assert graph_difference(fresh, found) is not None  # so a whole verification fails


@pytest.mark.parametrize("name", [*ALL, *COMPACT])
def test_a_true_artefact_has_no_place(exported, verify, name):
    report = verify(exported(name), name)
    assert (report.places, report.failures, report.notes) == ((), (), ())
    assert report.fresh_export == "identical"
    assert corrected(exported(name), load_artifact_graph(exported(name))) == exported(name).manifest


def test_notes_in_the_graph_are_no_fault(edited, verify):
    def change(model):
        model.doc_string = model.graph.doc_string = "text"
        model.metadata_props.add(key="note", value="text")
        model.graph.node[3].doc_string = "text"
        del model.graph.value_info[:]

    report = verify(edited("weights-none", change), "weights-none")
    assert (report.places, report.failures, report.fresh_export) == ((), (), "identical")


def _first(table, **changes):
    return (dataclasses.replace(table[0], **changes), *table[1:])


def _summary(*path, value):
    """Changes one value of the quantization's summary; the last step of the path may be the first key there is."""

    def change(manifest):
        def changed(tree, steps):
            key = next(iter(tree)) if steps[0] == "*" else steps[0]
            return {**tree, key: value if len(steps) == 1 else changed(tree[key], steps[1:])}

        return {"quantization": changed(manifest.quantization, path)}

    return change


def _config(**changes):
    return lambda m: {"model": dataclasses.replace(m.model, **changes)}


MANIFEST_KINDS = {
    "opset": (lambda m: {"opset": 17}, "opset", ALL),
    "order of the outputs": (lambda m: {"outputs": m.outputs[::-1]}, "outputs", COMPACT),
    "shape of an output": (lambda m: {"outputs": _first(m.outputs, shape=("batch", 999))}, "outputs", ALL),
    "type of an output": (lambda m: {"outputs": _first(m.outputs, dtype="int8")}, "outputs", ALL),
    "name of an output": (lambda m: {"outputs": _first(m.outputs, name="scores")}, "outputs", ALL),
    "further output": (lambda m: {"outputs": (*m.outputs, TensorInfo("x", "float32", (1,), ""))}, "outputs", ALL),
    "type of the input": (lambda m: {"inputs": _first(m.inputs, dtype="float16")}, "inputs", ALL),
    "pixels as input": (
        lambda m: {"inputs": _first(m.inputs, dtype="uint8", shape=("batch", 32, 32, 3))},
        "inputs",
        ALL,
    ),
    "shape of the input": (lambda m: {"inputs": _first(m.inputs, shape=("batch", 1, 7, 7))}, "inputs", ALL),
    "name of the input": (lambda m: {"inputs": _first(m.inputs, name="pixels")}, "inputs", ALL),
    "static batch": (lambda m: {"batch": (4, 4, 4)}, "inputs", ALL),
    "maps": (lambda m: {"maps": "compact"}, "outputs", ALL),
    "maps that are there": (lambda m: {"maps": "none"}, "outputs", COMPACT),
    "dialect": (lambda m: {"dialect": "trt8"}, "dialect", ALL),
    "precision": (lambda m: {"precision": "int8" if m.precision != "int8" else "fp8"}, "precision", ALL),
    "rest": (lambda m: {"rest": "fp16"}, "rest", SCALED),
    "full precision": (lambda m: {"rest": "fp16", "precision": "fp16"}, "precision", ALL),
    "budget": (lambda m: {"budget": TokenBudget((11, 6), 16)}, "budget", ALL),
    "labels": (lambda m: {"labels": m.labels[::-1]}, "labels", ALL),
    "mean": (
        lambda m: {"preprocess": dataclasses.replace(m.preprocess, mean=(0.5, 0.4, 0.3))},
        "mean",
        ALL,
    ),
    "stages of the model": (_config(stages=(1, 3)), "stages", ALL),
    "a range": (_summary("ranges", "*", value=1e9), "quantization.ranges.blocks.0.attn.proj", ACTIVATIONS),
    "a layer's precision": (
        _summary("precisions", "*", value="fp32"),
        "quantization.precisions.blocks.0.attn.proj",
        SCALED,
    ),
    "images of the calibration": (_summary("calibration_images", value=7), "quantization.calibration_images", SCALED),
    "no quantization": (lambda m: {"quantization": None}, "quantization", SCALED),
    "version of gft_edge": (lambda m: {"tools": {**m.tools, "gft_edge": "9.9"}}, "tools", ALL),
    "tools missing": (lambda m: {"tools": {"gft_edge": m.tools["gft_edge"]}}, "tools", ALL),
    "data": (lambda m: {"data": "another"}, "data", ALL),
}


@pytest.mark.parametrize(("kind", "name"), _turns((k, artifacts) for k, (_, _, artifacts) in MANIFEST_KINDS.items()))
def test_fault_of_the_manifest_is_found_and_placed(exported, verify, kind, name, record_property):
    change, wanted, _ = MANIFEST_KINDS[kind]
    true = exported(name)
    artifact = dataclasses.replace(true, manifest=dataclasses.replace(true.manifest, **change(true.manifest)))
    report = verify(artifact, name)
    record_property("places", [place.text for place in report.places])
    assert report.verdict == "fail"
    assert report.places[0].name == wanted
    assert report.places[0].text in report.failures
    # The graph is not suspected: it is what the fresh export is made to match.
    assert report.fresh_export == "identical"
    assert {place.kind for place in report.places}.isdisjoint({"node", "module", "graph"})
    followed = corrected(artifact, load_artifact_graph(artifact))
    assert GraphOptions.of(followed) == GraphOptions.of(true.manifest)
    assert followed.budget == true.manifest.budget


@pytest.mark.parametrize(
    ("kind", "name"), [("budget", "int8-none"), ("static batch", "fp8-none"), ("rest", "fp8-none")]
)
def test_golden_images_are_compared_with_what_the_graph_is(exported, kind, name):
    change, wanted, _ = MANIFEST_KINDS[kind]
    true = exported(name)
    artifact = dataclasses.replace(true, manifest=dataclasses.replace(true.manifest, **change(true.manifest)))
    report, sound = verify_golden(artifact), verify_golden(true)
    assert report.verdict == "fail"
    assert report.places[0].name == wanted
    assert report.comparisons == sound.comparisons


def test_another_checkpoint_is_refused_by_its_hash(exported, verify):
    true = exported("fp8-none")
    manifest = dataclasses.replace(true.manifest, checkpoint_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="was made from weights 000000000000, checkpoint .* has"):
        verify(dataclasses.replace(true, manifest=manifest), "fp8-none")


def test_budget_of_a_member_is_found_and_placed(copied, verify):
    artifact = copied("int8-none")
    wrong = TokenBudget((10, 6), 16)
    for name in (MODEL, GOLDEN):
        shutil.copy(artifact.path / name, artifact.path / f"member-{name}")
    files = {f"member-{name}": FileInfo.of(artifact.path / name) for name in (MODEL, GOLDEN)}
    member = Member(wrong, artifact.manifest.outputs, f"member-{MODEL}", f"member-{GOLDEN}")
    manifest = dataclasses.replace(
        artifact.manifest, files={**artifact.manifest.files, **files}, family={wrong.id: member}
    )
    write_sealed(artifact.path / MANIFEST, manifest.to_json())
    report = verify(load_artifact(f"{artifact.path}@{wrong.id}"), "int8-none")
    assert report.verdict == "fail"
    assert report.places[0].name == "budget"
    assert report.places[0].text == "manifest: budget 10-6, the graph has 12-6, as golden.npz has"


def test_a_trigger_with_other_tools_claimed_does_not_pass(edited, weights, verify):
    artifact = edited("fp32-none", lambda model: KINDS["trigger"].change(Graph(model, weights)))
    tools = {**artifact.manifest.tools, "torch": "2.0"}
    artifact = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, tools=tools))
    report = verify(artifact, "fp32-none")
    assert report.verdict == "inconclusive"
    assert any("f_triggered" in text for text in report.assessment.undecided)


def test_other_tools_that_give_the_same_graph_are_told(exported, verify):
    true = exported("weights-none")
    manifest = dataclasses.replace(true.manifest, tools={**true.manifest.tools, "torch": "2.0"})
    report = verify(dataclasses.replace(true, manifest=manifest), "weights-none")
    assert (report.places, report.failures, report.fresh_export) == ((), (), "identical")
    assert any("torch 2.0 (here" in note for note in report.notes)
