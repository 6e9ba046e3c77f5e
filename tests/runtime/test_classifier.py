from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gft_edge.bundle import write_record
from gft_edge.errors import ArtifactError, CheckFailed, ConfigError, DataError
from gft_edge.runtime import choice
from gft_edge.runtime.classifier import Classifier, Prediction, Timings
from gft_edge.stats.metrics import softmax


@pytest.fixture(scope="module")
def photos():
    """RGB images of different sizes."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((32, 32), (50, 20), (7, 90))]


@pytest.fixture(scope="module")
def classifier(with_maps):
    return Classifier.open(with_maps.path, threads=1)


class Session:
    """A session whose outputs a function gives."""

    def __init__(self, compute):
        self.compute = compute


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(tiny_model, tiny_info, photos):
    images = torch.from_numpy(np.stack([tiny_info.preprocess(photo) for photo in photos]))
    return tiny_model(images, maps=True)


def test_logits_and_labels_are_those_of_the_model(classifier, photos, expected, tiny_info):
    predictions = classifier.predict(photos)
    assert len(predictions) == 3
    logits = np.stack([p.logits for p in predictions])
    np.testing.assert_allclose(logits, expected.logits, rtol=0, atol=1e-4)
    assert [p.label for p in predictions] == [tiny_info.labels[i] for i in expected.logits.argmax(dim=1)]


def test_probability_is_the_softmax_of_the_best_class(classifier, photos, expected):
    probabilities = [p.probability for p in classifier.predict(photos)]
    assert probabilities == pytest.approx(expected.logits.softmax(dim=1).amax(dim=1).tolist(), abs=1e-5)


def test_large_logits_do_not_overflow(classifier, photos):
    outputs = classifier.session(np.zeros((1, 3, 32, 32), np.float32))
    outputs["logits"] = np.array([[1e4, -1e4, 0, 0]], np.float32)
    fake = Classifier(classifier.artifact, Session(lambda images: outputs))
    (prediction,) = fake.predict(photos[:1])
    assert (prediction.label, prediction.probability) == ("ant", 1.0)


def test_maps_lie_on_the_patch_grid(classifier, photos, expected):
    for row, prediction in enumerate(classifier.predict(photos)):
        assert len(prediction.importance) == len(prediction.kept) == 2
        for stage, maps in enumerate(expected.stages):
            mask = np.zeros(16, bool)
            mask[maps.kept[row]] = True
            np.testing.assert_array_equal(prediction.kept[stage], mask.reshape(4, 4))
            assert prediction.importance[stage].shape == (4, 4)
            assert prediction.importance[stage].sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(
            prediction.importance[0].ravel(), expected.stages[0].importance[row], rtol=1e-3, atol=1e-5
        )
        assert not prediction.importance[1][~prediction.kept[0]].any(), "dropped before the stage"
        assert not (prediction.kept[1] & ~prediction.kept[0]).any()


def test_artefact_without_maps_gives_none(int8, photos):
    predictions = Classifier.open(str(int8.path)).predict(photos)
    assert all(p.importance == p.kept == () for p in predictions)
    assert all(p.label in int8.manifest.labels for p in predictions)


def test_one_image_alone_gives_the_same_as_among_others(classifier, photos):
    together = classifier.predict(photos)
    for photo, prediction in zip(photos, together):
        (alone,) = classifier.predict([photo])
        assert alone.label == prediction.label
        assert alone.probability == pytest.approx(prediction.probability, abs=1e-5)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
    ids=lambda a: f"{a.shape} {a.dtype}",
)
def test_array_that_is_no_rgb_image_is_refused(classifier, image):
    with pytest.raises(DataError, match=r"expected an \(H, W, 3\) uint8 RGB array"):
        classifier.predict([image])


def test_files_and_pillow_images_give_what_their_pixels_give(classifier, photos, tmp_path):
    pictures = [Image.fromarray(photo) for photo in photos]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    expected = [p.logits for p in classifier.predict(photos)]
    mixed = [photos[0], pictures[1], str(tmp_path / "2.png"), tmp_path / "0.png"]
    found = [p.logits for p in classifier.predict(mixed)]
    np.testing.assert_array_equal(found, [expected[0], expected[1], expected[2], expected[0]])
    (transparent,) = classifier.predict([Image.new("RGBA", (32, 32), (0, 0, 0, 0))])
    (white,) = classifier.predict([np.full((32, 32, 3), 255, np.uint8)])
    np.testing.assert_array_equal(transparent.logits, white.logits)


def test_one_image_a_batch_and_a_folder(classifier, photos, tmp_path):
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "a.png", tmp_path / "b/0.png", tmp_path / "c.bmp"]
    for path, photo in zip(paths, photos):
        Image.fromarray(photo).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    expected = [classifier.predict([photo])[0].logits for photo in photos]
    for one in (photos[0], Image.fromarray(photos[0]), paths[0], str(paths[0])):
        np.testing.assert_array_equal([p.logits for p in classifier.predict(one)], expected[:1])
    together = [p.logits for p in classifier.predict(photos)]
    for several in (paths, tmp_path, str(tmp_path), tuple(photos), iter(photos)):
        np.testing.assert_array_equal([p.logits for p in classifier.predict(several)], together)
    batch = np.stack([photos[0], photos[0][::-1]])
    np.testing.assert_array_equal(
        [p.logits for p in classifier.predict(batch)], [p.logits for p in classifier.predict(list(batch))]
    )


def test_folder_without_images_is_named(classifier, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=rf"{tmp_path.name}: .*is a folder without image files"):
        classifier.predict(tmp_path)


@pytest.mark.parametrize("one", [None, 7, b"a", object()], ids=lambda one: type(one).__name__)
def test_what_is_no_image_is_refused(classifier, one):
    with pytest.raises(DataError, match=r"expected an .* array, a Pillow image or a path, or several of them, found"):
        classifier.predict(one)


@pytest.mark.parametrize("array", [np.zeros((), np.uint8), np.zeros((2, 8, 8, 1), np.uint8), np.zeros((1, 1, 8, 8, 3))])
def test_arrays_of_other_shapes_are_refused(classifier, array):
    with pytest.raises(DataError, match="expected an"):
        classifier.predict(array)


def test_threads_get_the_bits_of_one_thread(classifier, photos, tmp_path):
    """Eight threads on one object, each with an order and a batch of its own, over arrays, Pillow images and files."""
    Image.fromarray(photos[1]).save(tmp_path / "1.png")
    kinds = [photos[0], tmp_path / "1.png", Image.fromarray(photos[2])]
    requests = [[kinds[(number + step) % 3] for step in range(1 + number % 3)] for number in range(8)]
    alone = [classifier.predict(request) for request in requests]
    found: list[list[list[Prediction]]] = [[] for _ in requests]
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        for _ in range(5):
            found[number].append(classifier.predict(requests[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, rounds in zip(alone, found):
        assert len(rounds) == 5
        for predictions in rounds:
            for a, b in zip(expected, predictions, strict=True):
                assert (a.label, a.probability) == (b.label, b.probability)
                for x, y in zip((a.logits, *a.importance, *a.kept), (b.logits, *b.importance, *b.kept), strict=True):
                    np.testing.assert_array_equal(x, y)


def test_stages_are_timed_on_request(classifier, photos):
    timings = Timings()
    classifier.predict(photos[:1], timings)
    first = vars(timings).copy()
    assert list(first) == ["read", "preprocess", "compute", "decode"] and all(ms > 0 for ms in first.values())
    classifier.predict(photos, timings)
    assert all(vars(timings)[name] > ms for name, ms in first.items()), "requests are summed"


class TestAuto:
    """Which backend is taken, and why; drivers and GPUs are those of a fake."""

    def test_without_a_driver_the_processor(self, classifier):
        assert classifier.session.backend == "onnxruntime"
        assert (
            classifier.why
            == "onnxruntime: the first that opens here; no engine and no GPU, for there is no NVIDIA driver"
        )

    @pytest.mark.parametrize("engines", [False, True])
    def test_what_does_not_open_is_left_out_with_its_reason(self, with_maps, monkeypatch, engines):
        monkeypatch.setattr(choice, "has_nvidia_driver", lambda: True)
        files = {**with_maps.manifest.files, **({"engines/rtx-x.engine": None} if engines else {})}
        manifest = dataclasses.replace(with_maps.manifest, files=files)
        session, why = choice.open_chosen(dataclasses.replace(with_maps, manifest=manifest))
        assert session.backend == "onnxruntime"
        tried = why.split("; ")
        for backend in ("tensorrt", "tensorrt_rtx"):
            assert any(reason.startswith(f"{backend}: ") for reason in tried) == engines
        assert ("the artefact has no engine" in why) != engines
        assert "onnxruntime-cuda: " in why

    def test_the_first_that_opens_is_taken(self, with_maps, monkeypatch):
        monkeypatch.setattr(choice, "has_nvidia_driver", lambda: True)
        monkeypatch.setattr(choice, "open_session", lambda artifact, backend, *rest: backend)
        assert choice.open_chosen(with_maps)[0] == "onnxruntime-cuda"

    def test_a_broken_graph_is_an_error(self, with_maps, copied):
        artifact = copied(with_maps)
        (artifact.path / "model.onnx").write_bytes((with_maps.path / "model.onnx").read_bytes()[:5000])
        with pytest.raises(ArtifactError, match=r"model\.onnx was changed"):
            Classifier.open(artifact.path)


def test_a_bundle_opens_as_its_artefact_does(classifier, with_maps, photos, tmp_path):
    shutil.copytree(with_maps.path, tmp_path / "bundle/artifact")
    write_record(tmp_path / "bundle", "jetson")
    found = Classifier.open(tmp_path / "bundle", "onnxruntime", threads=1)
    assert found.why == "onnxruntime: as asked for"
    assert found.predict(photos[0])[0].label == classifier.predict(photos[0])[0].label


@pytest.mark.parametrize("image", [None, 7, [[0]], torch.zeros(3, 8, 8)], ids=lambda image: type(image).__name__)
def test_list_of_something_else_is_refused(classifier, photos, image):
    with pytest.raises(DataError, match=r"image 1: expected an \(H, W, 3\) uint8 RGB array, a Pillow image or a path"):
        classifier.predict([photos[0], image])


def test_file_that_cannot_be_read_is_refused(classifier, tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match=r"a\.png: cannot be decoded"):
        classifier.predict([tmp_path / "a.png"])
    with pytest.raises(DataError, match="image 0: cannot be decoded"):
        classifier.predict([Image.new("F", (8, 8), 7.0)])


def test_no_images_give_no_predictions(classifier):
    assert classifier.predict([]) == []


def test_images_are_run_in_batches_the_artefact_takes(classifier, photos):
    sizes = []

    def compute(images):
        sizes.append(len(images))
        return classifier.session.compute(images)

    batched = Classifier(classifier.artifact, Session(compute))
    found = batched.predict(photo for _ in range(6) for photo in photos)
    assert (len(found), sizes) == (18, [8, 8, 2])
    expected = np.stack([p.logits for p in classifier.predict(photos)])
    np.testing.assert_allclose([p.logits for p in found], np.tile(expected, (6, 1)), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_an_error(classifier, photos, value):
    def compute(images):
        outputs = classifier.session.compute(images)
        outputs["logits"][0, 2] = value
        return outputs

    with pytest.raises(CheckFailed, match=r"logits of 1 of 3 images are NaN or infinite \(first: image 0\)"):
        Classifier(classifier.artifact, Session(compute)).predict(photos)


def test_shown_in_one_short_line(classifier, photos):
    (prediction,) = classifier.predict(photos[:1])
    assert repr(prediction) == f"Prediction(label={prediction.label!r}, probability={prediction.probability!r})"


def test_top_classes_are_in_order_and_their_probabilities_add_up(classifier, photos, tiny_info):
    (prediction,) = classifier.predict(photos[:1])
    top = prediction.top(9)
    assert top[0] == (prediction.label, prediction.probability)
    assert sorted(label for label, _ in top) == sorted(tiny_info.labels)
    assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
    assert sum(p for _, p in top) == pytest.approx(1)
    assert prediction.top(2) == top[:2]
    assert dict(zip(prediction.labels, prediction.probabilities.tolist())) == dict(top)


def test_largest_floats_have_probabilities():
    largest = np.finfo(np.float32).max
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(softmax(np.array([[largest, -largest, 0]], np.float32)), [[1, 0, 0]])


def test_runtime_does_without_pillow_and_torch():
    code = (
        "import sys; sys.modules.update(PIL=None, torch=None, torchvision=None, timm=None)\n"
        "import gft_edge.runtime.classifier, gft_edge.runtime.image_files, gft_edge.runtime.accuracy, gft_edge.cli.verbs.predict"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_artefact_and_unknown_backend_are_refused(with_maps, tmp_path):
    with pytest.raises(ArtifactError, match="no such folder"):
        Classifier.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="unknown backend"):
        Classifier.open(with_maps.path, "gpu")
