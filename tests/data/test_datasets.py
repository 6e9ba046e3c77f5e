from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gft_edge.data import sets
from gft_edge.data.batches import evaluation_batches
from gft_edge.data.datasets import (
    Files,
    Relabelled,
    Subset,
    held_out_split,
    match_labels,
    open_images,
    readable,
    spread,
    unlabelled_folder,
)
from gft_edge.data.training import BatchOptions, training_batches
from gft_edge.data.typefaces import Typefaces
from gft_edge.errors import DataError
from gft_edge.preprocess import PreprocessSpec

SPEC = PreprocessSpec(16, 16)


class Numbered:
    """Image i is filled with i and of class i modulo 3."""

    labels = ("a", "b", "c")
    notes = ()

    def name(self, index):
        return f"number {index}"

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.full((16, 16, 3), index, np.uint8), index % 3


def _write_images(folder, counts, first=0):
    """One sub-folder per class; image i of class c is filled with 10 c + i + first."""
    for c, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 14), (10 * c + i + first,) * 3).save(folder / name / f"{i}.png")
    return folder


def _values(images):
    return [int(images[i][0][0, 0, 0]) for i in range(len(images))]


def _numbers(pixels):
    """The numbers of Numbered images from normalised batches."""
    red = np.asarray(pixels)[:, 0, 0, 0] * SPEC.std[0] + SPEC.mean[0]
    return np.rint(red * 255).astype(int).tolist()


def _run(images=None, steps=range(9), seed=0, **options):
    problem = options.pop("problem", None)
    options = BatchOptions(4, seed, num_workers=0, **options)
    return list(training_batches(images or Numbered(20), SPEC, steps, options, problem))


def _equal(batches, others):
    pairs = zip(batches, others, strict=True)
    return all(torch.equal(a, b) for batch, other in pairs for a, b in zip(batch, other, strict=True))


def _write_train(root, counts):
    """The same, as the training images of a folder with splits."""
    _write_images(root / "train", counts)
    _write_images(root / "test", dict.fromkeys(counts, 1), first=100)
    return root


def test_corrupt_image_is_refused_and_named(tmp_path):
    _write_train(tmp_path, {"auk": 1, "wren": 1})
    (tmp_path / "test/wren/0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    images = open_images(str(tmp_path), "test", 10, 32)
    with pytest.raises(DataError, match=r"wren/0\.png: cannot be decoded as an image"):
        list(evaluation_batches(images, SPEC))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_corrupt_image_ends_training_with_the_error_itself(tmp_path, num_workers):
    file = tmp_path / "0.png"
    file.write_bytes(b"nothing")
    images = Files(("auk",), ((file, 0),))
    with pytest.raises(DataError) as caught:
        list(training_batches(images, SPEC, range(1), BatchOptions(1, num_workers=num_workers)))
    with pytest.raises(DataError) as direct:
        images[0]
    assert str(caught.value) == str(direct.value)


def test_typefaces_are_opened_by_name():
    assert open_images("typefaces", "val", 48, 40, seed=3) == Typefaces("val", 48, 40, 3)


@pytest.mark.parametrize(
    ("asked", "values"), [(2, [0, 14]), (4, [0, 3, 11, 14]), (10, [*range(5), *range(10, 15)]), (99, None)]
)
def test_fewer_images_are_spread_over_the_folder(tmp_path, asked, values):
    _write_images(tmp_path / "val", {"auk": 1, "wren": 1}, first=100)
    _write_images(tmp_path / "train", {"auk": 5, "wren": 5})
    images = open_images(str(tmp_path), "train", asked, 32)
    assert _values(images) == (values or [*range(5), *range(10, 15)])
    assert images.labels == ("auk", "wren")


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))))
def test_spread_takes_different_images_from_end_to_end(sizes):
    total, count = sizes
    indices = spread(total, count)
    assert len(indices) == count
    assert list(indices) == sorted(set(indices))
    assert indices[0] == 0
    assert indices[-1] == (total - 1 if count > 1 else 0)
    assert np.ptp(np.diff(indices)) <= 1 if count > 2 else True


def test_subset_keeps_the_order_and_the_labels_of_the_whole():
    subset = Subset(Numbered(10), (7, 2, 5))
    assert _values(subset) == [7, 2, 5]
    assert [subset[i][1] for i in range(3)] == [1, 2, 2]
    assert subset.labels == ("a", "b", "c")


def test_training_batches_are_normalized_images_and_their_labels():
    for pixels, labels in _run():
        assert (pixels.shape, pixels.dtype) == ((4, 3, 16, 16), torch.float32)
        assert labels.dtype == torch.int64
        assert [n % 3 for n in _numbers(pixels)] == labels.tolist()


def test_each_epoch_is_another_permutation_of_all_images():
    numbers = [n for pixels, _ in _run(Numbered(18), range(9)) for n in _numbers(pixels)]
    first, second = numbers[:18], numbers[18:]
    assert sorted(first) == sorted(second) == list(range(18))
    assert first != second
    assert first != list(range(18))


@pytest.mark.parametrize("augment", ["none", "light"])
@pytest.mark.parametrize("first", [1, 4, 8])
def test_training_can_be_taken_up_at_any_step(augment, first):
    images = Typefaces("train", 20, 32)
    whole = _run(images, augment=augment)
    assert _equal(_run(images, range(first, 9), augment=augment), whole[first:])


@pytest.mark.parametrize("augment", ["none", "light"])
def test_order_is_fixed_by_the_seed_alone(augment):
    images = Typefaces("train", 20, 32)
    torch.manual_seed(1)
    first = _run(images, range(3), augment=augment)
    torch.manual_seed(2)
    assert _equal(_run(images, range(3), augment=augment), first)
    assert not _equal(_run(images, range(3), seed=1, augment=augment), first)


def test_a_worker_gives_the_same_batches():
    images = Typefaces("train", 20, 32)
    one, other = (
        list(training_batches(images, SPEC, range(2, 5), BatchOptions(4, 0, "light", workers))) for workers in (1, 0)
    )
    assert _equal(one, other)


def test_light_augmentation_changes_pixels_anew_in_each_epoch():
    images = Subset(Typefaces("train", 20, 32), (3,))
    ((plain, _),) = training_batches(images, SPEC, range(1), BatchOptions(1, 0, "none", 0))
    (first, _), (second, _) = training_batches(images, SPEC, range(2), BatchOptions(1, 0, "light", 0))
    assert not torch.equal(plain, first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4, 2]), (8, [4, 4]), (1, [1])])
def test_evaluation_batches_are_all_images_in_order(count, sizes):
    batches = list(evaluation_batches(Numbered(count), SPEC, batch_size=4))
    assert [len(labels) for _, labels in batches] == sizes
    assert [n for pixels, _ in batches for n in _numbers(pixels)] == list(range(count))
    assert [label for _, labels in batches for label in labels] == [i % 3 for i in range(count)]
    assert all(pixels.dtype == np.float32 and labels.dtype == np.int64 for pixels, labels in batches)


def test_evaluation_and_training_see_the_same_pixels():
    images = Typefaces("train", 8, 40)
    evaluated = np.concatenate([pixels for pixels, _ in evaluation_batches(images, SPEC)])
    trained = np.concatenate([pixels.numpy() for pixels, _ in _run(images, range(2))])
    order = np.random.default_rng([0, 0]).permutation(8)
    np.testing.assert_array_equal(trained, evaluated[order])


def test_labels_of_the_model_in_the_same_order_change_nothing():
    images = Numbered(3)
    assert match_labels(images, ["a", "b", "c"], "here") is images


@pytest.mark.parametrize("kind", ["any", "files", "subset"])
def test_classes_are_matched_by_name_whatever_their_order(kind, tmp_path):
    for number in range(3):
        Image.new("RGB", (2, 2), (number,) * 3).save(tmp_path / f"{number}.png")
    files = Files(("a", "b", "c"), tuple((tmp_path / f"{n}.png", n) for n in range(3)), ("found",))
    images = {"any": Numbered(3), "files": files, "subset": Subset(files, (0, 1, 2))}[kind]
    found = match_labels(images, ("c", "x", "a", "b"), "here")
    assert found.labels == ("c", "x", "a", "b")
    assert [found[i][1] for i in range(3)] == [2, 3, 0]
    assert _values(found) == [0, 1, 2]
    assert found.notes[-1] == "here has no images of 1 of the model's classes: 'x'"
    assert [found.name(i) for i in range(3)] == [images.name(i) for i in range(3)]


def test_a_hundred_numbered_classes_are_matched_though_they_sort_as_text():
    model = tuple(f"class_{number}" for number in range(100))
    files = Files(tuple(sorted(model)), tuple((Path(label), n) for n, label in enumerate(sorted(model))))
    found = match_labels(files, model, "here")
    assert all(model[label] == str(path) for path, label in found.samples)


@pytest.mark.parametrize(
    ("own", "model", "words"),
    [
        (
            ("a", "b", "c"),
            ("a", "b"),
            "its 3 classes are not the model's 2; unknown to the model: 'c', which knows 'a', 'b'",
        ),
        (("Black bear", "b"), ("black_bear", "b"), "'Black bear' is 'black_bear'"),
        (("0", "1"), ("ant", "bee"), "the folders are numbered"),
        (("ant", "bee"), ("class_0", "class_1"), "import it again with --labels"),
        (tuple("abcdefgh"), ("x", "y"), "'a', 'b', 'c', 'd', 'e' and 3 more"),
    ],
)
def test_classes_unknown_to_the_model_are_refused_by_name_with_the_likely_cause(own, model, words):
    with pytest.raises(DataError, match="^data here: ") as caught:
        match_labels(Files(own, ()), model, "here")
    assert words in str(caught.value)


def test_relabelled_images_keep_everything_but_the_class_number():
    images = Relabelled(Numbered(6), ("c", "b", "a"), (2, 1, 0), ())
    assert (len(images), [images[i][1] for i in range(3)]) == (6, [2, 1, 0])


def test_images_of_a_format_that_pillow_does_not_read_are_counted_but_not_trained_on(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "b.CR2").write_bytes(b"raw")
    files = Files(("a",), ((tmp_path / "b.CR2", 0), (tmp_path / "a.png", 0)))
    problems = []
    assert [len(labels) for _, labels in evaluation_batches(files, SPEC, problem=problems.append)] == [1]
    assert [text.partition(": ")[0] for text in problems] == [f"image {tmp_path / 'b.CR2'}"]
    assert readable(files).samples == files.samples[1:]
    assert readable(Subset(files, (0, 1))).indices == (1,)


def test_a_folder_of_images_without_classes_is_told_apart(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.PNG")
    (tmp_path / "._a.PNG").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".git").mkdir()
    assert [path.name for path, _ in unlabelled_folder(tmp_path).samples] == ["a.PNG", "b.png"]
    (tmp_path / "ant").mkdir()
    assert unlabelled_folder(tmp_path) is None
    assert unlabelled_folder(tmp_path / "ant") is None
    assert unlabelled_folder(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("parts", "split"), [(("train", "val", "test"), "test"), (("train", "test"), "test"), (("train", "val"), "val")]
)
def test_models_are_judged_by_test_images_or_by_val_images_where_there_are_none(tmp_path, parts, split):
    for number, part in enumerate(parts):
        _write_images(tmp_path / part, {"auk": 2, "wren": 2}, first=20 * number)
    assert held_out_split(str(tmp_path)) == split
    assert held_out_split("coco:nowhere") == "val"
    assert held_out_split("typefaces") == "test"


def _write_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 14), (value,) * 3).save(path)


def _write_aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    for i in range(6):
        _write_image(data / "images" / f"{i:07}.jpg", 40 * i)
    (data / "variants.txt").write_text("A340-200\nDC-3\n")
    for i, split in enumerate(("train", "val", "test")):
        (data / f"images_variant_{split}.txt").write_text(f"{2 * i:07} DC-3\n{2 * i + 1:07} A340-200\n")


def _write_food(root):
    listed = {"train": {"pho": 10, "gyoza": 10}, "test": {"pho": 1, "gyoza": 2}}
    for split, counts in listed.items():
        names = {c: [f"{c}/{split}{i}" for i in range(count)] for c, count in counts.items()}
        (root / "food-101" / "meta").mkdir(parents=True, exist_ok=True)
        (root / "food-101" / "meta" / f"{split}.json").write_text(json.dumps(names))
        for name in (*names["pho"], *names["gyoza"]):
            _write_image(root / "food-101" / "images" / f"{name}.jpg")


def _write_coco(root):
    categories = [{"id": 7, "name": "train"}, {"id": 1, "name": "person"}]
    images = [{"id": 10 + i, "file_name": f"{i}.jpg"} for i in range(3)]
    annotations = [{"image_id": 12, "category_id": 1}, {"image_id": 10, "category_id": 7}]
    annotations += [{"image_id": 12, "category_id": 7}]
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        data = {"categories": categories, "images": images, "annotations": annotations}
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(data))
        for i in range(3):
            _write_image(root / part / f"{i}.jpg", 100 * i)


LAYOUTS = {"fgvc-aircraft": _write_aircraft, "food101": _write_food, "coco": _write_coco}


@pytest.mark.parametrize(("split", "values"), [("train", [0, 40]), ("val", [80, 120]), ("test", [160, 200])])
def test_aircraft_has_its_own_three_splits(tmp_path, split, values):
    _write_aircraft(tmp_path)
    images = open_images(f"fgvc-aircraft:{tmp_path}", split, 99, 32)
    assert images.labels == ("A340-200", "DC-3")
    assert [images[i][1] for i in range(2)] == [1, 0]
    assert _values(images) == pytest.approx(values, abs=3)


def test_food_validation_is_a_fifth_of_the_training_images_drawn_as_published(tmp_path):
    _write_food(tmp_path)
    parts = {split: open_images(f"food101:{tmp_path}", split, 99, 32) for split in ("train", "val", "test")}
    assert parts["train"].labels == parts["test"].labels == ("gyoza", "pho")
    names = {split: {path.name for path, _ in files.samples} for split, files in parts.items()}
    assert len(names["test"]) == 2
    everything = sorted(tmp_path.glob("food-101/images/*/train*.jpg"))
    paths = {split: {path for path, _ in files.samples} for split, files in parts.items()}
    assert paths["train"] | paths["val"] == set(everything)
    assert not paths["train"] & paths["val"]
    listed = [f"{c}/train{i}.jpg" for c in ("pho", "gyoza") for i in range(10)]  # in the order of train.json
    _, val = torch.utils.data.random_split(listed, [16, 4], generator=torch.Generator().manual_seed(42))
    assert {"/".join(path.parts[-2:]) for path in paths["val"]} == set(val)
    assert all(files.labels[label] == path.parent.name for files in parts.values() for path, label in files.samples)


@pytest.mark.parametrize(("split", "part"), [("train", "train2017"), ("val", "val2017")])
def test_coco_takes_the_first_annotation_and_drops_images_without(tmp_path, split, part):
    _write_coco(tmp_path)
    images = open_images(f"coco:{tmp_path}", split, 99, 32)
    assert images.labels == ("person", "train")
    assert images.samples == ((tmp_path / part / "0.jpg", 1), (tmp_path / part / "2.jpg", 0))
    assert _values(images) == pytest.approx([0, 200], abs=3)


def test_coco_has_no_labels_of_test_images(tmp_path):
    _write_coco(tmp_path)
    with pytest.raises(DataError, match="take --split val"):
        open_images(f"coco:{tmp_path}", "test", 99, 32)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_benchmark_that_is_not_there_is_refused_with_the_layout_expected(tmp_path, kind):
    with pytest.raises(DataError, match=rf"data {kind}:.*: not found or damaged .*; expected .*ROOT/"):
        open_images(f"{kind}:{tmp_path}", "train", 99, 32)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("fgvc-aircraft", "fgvc-aircraft-2013b/data/images_variant_train.txt"),
        ("food101", "food-101/meta/train.json"),
        ("coco", "annotations/instances_train2017.json"),
    ],
)
@pytest.mark.parametrize("text", ["{", "[]", "one"])
def test_damaged_list_of_a_benchmark_is_refused(tmp_path, kind, file, text):
    LAYOUTS[kind](tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=f"data {kind}:"):
        open_images(f"{kind}:{tmp_path}", "train", 99, 32)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_fewer_images_of_a_benchmark_keep_its_labels(tmp_path, kind):
    LAYOUTS[kind](tmp_path)
    images = open_images(f"{kind}:{tmp_path}", "train", 1, 32)
    assert (len(images), len(images.labels)) == (1, 2)


def test_training_decodes_large_jpegs_at_twice_the_size_of_the_network_and_evaluation_whole(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sets, "read_image", lambda path, least: asked.append(least) or np.zeros((40, 40, 3), np.uint8))
    files = Files(("auk",), ((tmp_path / "0.jpg", 0),))
    relabelled = Relabelled(Subset(files, (0,)), ("wren", "auk"), (1,), ())
    for spec in (SPEC, PreprocessSpec(32, 48, resize="crop", crop_ratio=0.75)):
        ((_, labels),) = training_batches(relabelled, spec, range(1), BatchOptions(1, num_workers=0))
        assert labels.tolist() == [1]
    list(evaluation_batches(relabelled, SPEC))
    assert asked == [2 * SPEC.height, 128, 0]


def test_kept_images_are_read_once_as_far_as_they_fit():
    class Counted(Numbered):
        rendered_split = "val"
        reads: ClassVar[list[int]] = []

        def class_numbers(self):
            return [index % 3 for index in range(len(self))]

        def __getitem__(self, index):
            self.reads.append(index)
            if index == 3:
                raise DataError("image 3: gone")
            return super().__getitem__(index)

    base = Counted(5)
    kept = sets.Kept(base, 2 * 16 * 16 * 3 + 1)
    for _ in range(2):
        problems = []
        (batch,) = evaluation_batches(kept, SPEC, problem=problems.append)
        assert _numbers(batch[0]) == [0, 1, 2, 4]
        assert batch[1].tolist() == [0, 1, 2, 1]
        assert problems == ["image 3: gone"]
    assert base.reads == [0, 1, 2, 3, 4, 2, 3, 4]
    assert (kept.labels, kept.notes, kept.rendered_split, len(kept)) == (base.labels, base.notes, "val", 5)
    assert (kept.name(4), kept.class_numbers()) == ("number 4", [0, 1, 2, 0, 1])
