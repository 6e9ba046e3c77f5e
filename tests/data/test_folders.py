"""Image folders as people have them. A file of the text "n" stands for an image: nothing is decoded here."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from gft_edge.data.datasets import image_folder, open_images
from gft_edge.data.folders import read_folder, split_of_name
from gft_edge.errors import DataError

PARTS = ("train", "val", "test")


@pytest.fixture
def write(tmp_path):
    """Writes files, each of other content; returns the folder."""
    total = 0

    def write(*names, root="data"):
        nonlocal total
        for name in names:
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(total))
            total += 1
        return tmp_path / root

    return write


def classes(prefix="", names=("ant", "bee"), count=6, suffix="png"):
    return [f"{prefix}{name}/{number}.{suffix}" for name in names for number in range(count)]


def digests(files):
    return {hashlib.sha256(path.read_bytes()).hexdigest() for path, _ in files.samples}


def counts(root):
    folder = read_folder(root)
    return {part: len(image_folder(root, part)) for part in folder.names}


def notes(root, part="train"):
    return "\n".join(image_folder(root, part).notes)


def test_a_folder_without_splits_is_split_once_and_for_all(write):
    root = write(*classes(count=40))
    parts = {part: image_folder(root, part) for part in PARTS}
    seen = [digests(files) for files in parts.values()]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 80
    assert len(parts["train"]) > 55
    assert parts["val"].labels == parts["test"].labels == ("ant", "bee")
    assert {label for files in parts.values() for _, label in files.samples} == {0, 1}
    words = [note for note in parts["test"].notes if "split by a hash of each file" in note]
    assert len(words) == 1
    assert f"{len(seen[0])} train, {len(seen[1])} val, {len(seen[2])} test images" in words[0]


def test_copies_and_renamed_files_stay_in_their_part(write, tmp_path):
    root = write(*classes(count=40))
    other = tmp_path / "elsewhere"
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        (other / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other / path.parent.name / f"{number}.jpg")
        shutil.copy(path, other / path.parent.name / f"copy {number}.jpg")
    for part in PARTS:
        assert digests(image_folder(other, part)) == digests(image_folder(root, part))
        assert len(image_folder(other, part)) == 2 * len(image_folder(root, part))


def test_small_classes_have_training_images_and_what_else_they_can(write):
    root = write(
        *classes(names=("one",), count=1), *classes(names=("two",), count=2), *classes(names=("five",), count=5)
    )
    files = {part: Counter(label for _, label in image_folder(root, part).samples) for part in PARTS}
    five, one, two = range(3)
    assert [files[part][one] for part in PARTS] == [1, 0, 0]
    assert [files[part][two] for part in PARTS] == [1, 1, 0]
    assert min(files[part][five] for part in PARTS) >= 1
    assert "too few images for a test part: 'one', 'two'" in notes(root)


def test_without_an_image_to_spare_there_is_no_val_part(write):
    root = write(*classes(count=1))
    assert read_folder(root).names == ("train",)
    for part in ("val", "test"):
        with pytest.raises(DataError, match=f"has no {part} images, only train"):
            image_folder(root, part)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("training_set", "train"), ("train images", "train"),
        ("val", "val"), ("valid", "val"), ("Validation", "val"), ("validation-set", "val"), ("dev", "val"), ("eval", "val"),
        ("Test", "test"), ("Testing", "test"), ("test_set", "test"), ("testdata", "test"),
        ("trains", None), ("train_station", None), ("test tube", None), ("contest", None), ("ant", None), ("set", None),
    ],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_of_name(name) == split


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "valid", "Test_Set")]
)
def test_folders_of_splits_are_taken_as_they_are(write, names):
    root = write(*(file for number, name in enumerate(names) for file in classes(f"{name}/", count=4 - number)))
    assert counts(root) == {"train": 8, "val": 6, "test": 4}
    assert image_folder(root, "test").labels == ("ant", "bee")
    assert notes(root) == ""


def test_validation_images_are_taken_from_train_where_there_are_none(write):
    root = write(*classes("Training/", count=40), *classes("Testing/", count=5))
    parts = {part: image_folder(root, part) for part in PARTS}
    assert len(parts["test"]) == 10
    assert len(parts["train"]) + len(parts["val"]) == 80
    assert 2 <= len(parts["val"]) <= 20
    assert not digests(parts["train"]) & digests(parts["val"])
    assert "Testing" not in {path.parts[-3] for path, _ in parts["val"].samples}
    words = f"takes {len(parts['val'])} of its 80 training images for validation"
    assert words in notes(root, "train")
    assert words in notes(root, "val")


def test_validation_images_are_never_called_test_images(write):
    root = write(*classes("train/"), *classes("validation/"))
    assert read_folder(root).names == ("train", "val")
    with pytest.raises(DataError, match="has no test images, only train, val; choose with --split"):
        image_folder(root, "test")


def test_a_folder_of_train_alone_is_split_by_hash(write):
    root = write(*classes("train/", count=40))
    assert set(counts(root)) == set(PARTS)
    assert sum(counts(root).values()) == 80


@pytest.mark.parametrize("part", ["val", "test"])
def test_the_only_part_is_no_other(write, part):
    root = write(*classes(f"{part}/"))
    assert counts(root) == {part: 12}
    for other in set(PARTS) - {part}:
        with pytest.raises(DataError, match=f"has no {other} images, only {part}"):
            image_folder(root, other)


def test_the_folder_of_one_split_given_alone_is_that_split(write):
    root = write(*classes("train/"), *classes("test/"))
    assert counts(root / "train") == {"train": 12}
    assert counts(root / "test") == {"test": 12}
    with pytest.raises(DataError, match=f"has no val images, only train; give {root} for all parts"):
        image_folder(root / "train", "val")


@pytest.mark.parametrize("wrap", ["one/", "one/two/", "data/data/"])
def test_wrapping_folders_are_passed_through(write, wrap):
    assert set(counts(write(*classes(wrap, count=20), root="flat"))) == set(PARTS)
    root = write(*classes(f"{wrap}train/train/"), *classes(f"{wrap}test/"), f"{wrap}README.md", root="splits")
    assert image_folder(root, "test").labels == ("ant", "bee")
    assert len(image_folder(root, "test")) == 12


def test_hidden_and_system_folders_and_files_are_left_out(write):
    root = write(
        *classes(count=30),
        "ant/.ipynb_checkpoints/0-checkpoint.png",
        ".git/objects/a.png",
        "__MACOSX/ant/._0.png",
        "@eaDir/ant/0.png",
        ".ipynb_checkpoints/a.png",
        "ant/._0.png",
        "ant/.hidden.png",
        "bee/Thumbs.db",
        "bee/desktop.ini",
        ".DS_Store",
    )
    assert image_folder(root, "train").labels == ("ant", "bee")
    assert sum(counts(root).values()) == 60
    assert "'.git', '.ipynb_checkpoints', '@eaDir', '__MACOSX'" in notes(root)
    assert "1 image with a hidden name" in notes(root)
    assert "are not images" not in notes(root)


def test_images_beside_the_class_folders_are_counted(write):
    root = write(*classes(count=10), "a.png", "b.JPG", "list.csv")
    assert f"left out: 2 images beside the folders in {root}" in notes(root)
    assert sum(counts(root).values()) == 20
    root = write(*classes("train/"), *classes("test/"), "test/x.png", "y.png", root="splits")
    assert f"left out: 1 image beside the folders in {root / 'test'}" in notes(root, "test")
    assert f"left out: 1 image beside the folders in {root}\n" in notes(root, "test")


def test_files_that_are_no_images_are_counted_once(write):
    root = write(*classes(count=10), "ant/0.txt", "ant/1.TXT", "bee/0.xml", "bee/README", "list.csv")
    assert "left out: 4 files that are not images (.txt, .xml, no suffix)" in notes(root)


@pytest.mark.parametrize("suffix", ["HEIC", "jxl", "Cr2", "svg"])
def test_images_that_pillow_does_not_read_are_counted_and_named(write, suffix):
    root = write(*classes("train/"), *classes("test/"), f"train/ant/photo.{suffix}", f"test/bee/photo.{suffix}")
    assert len(image_folder(root, "test")) == 13
    words = re.escape(f"2 images of a format that Pillow does not read here (.{suffix.lower()}, the first is {root}")
    assert re.search(words, notes(root, "test"))


@pytest.mark.parametrize("suffix", ["PNG", "jpeg", "WebP", "tif", "TIFF", "gif", "bmp", "avif", "jfif", "jif"])
def test_usual_images_of_any_case_are_images(write, suffix):
    root = write(*classes(count=10, suffix=suffix))
    assert sum(counts(root).values()) == 20
    assert len(image_folder(root, "train").notes) == 1


def test_images_below_a_class_folder_that_holds_images_belong_to_the_class(write):
    root = write(*classes("train/"), *classes("test/"), "train/ant/more/0.png", "train/ant/more/deep/1.png")
    train = image_folder(root, "train")
    assert [label for _, label in train.samples].count(0) + len(image_folder(root, "val")) >= 8
    assert "counted as class 'ant': 2 images in its sub-folders ('more')" in notes(root)


def test_empty_class_folders_are_said(write):
    root = write(*classes(count=10))
    (root / "cat").mkdir()
    assert image_folder(root, "train").labels == ("ant", "bee")
    assert f"left out: 'cat' in {root} (no images)" in notes(root)


def test_class_numbers_are_those_of_train(write):
    root = write(
        *classes("train/", ("ant", "bee", "cat")), *classes("val/", ("bee",)), *classes("test/", ("cat", "ant"))
    )
    assert image_folder(root, "val").labels == ("ant", "bee", "cat")
    assert {label for _, label in image_folder(root, "val").samples} == {1}
    assert {label for _, label in image_folder(root, "test").samples} == {0, 2}
    assert "test has no images of 'bee'" in notes(root)


@pytest.mark.parametrize(("other", "words"), [("cow", "'cow'"), ("Ant", "'Ant' is 'ant'"), ("a_nt", "'a_nt' is 'ant'")])
def test_a_part_with_classes_that_train_has_not_is_refused_by_name(write, other, words):
    root = write(*classes("train/"), *classes("val/"), *classes("test/", (other, "bee")))
    with pytest.raises(DataError, match="test has classes that train lacks") as caught:
        image_folder(root, "test")
    assert words in str(caught.value)
    assert words in notes(root, "train")
    assert len(image_folder(root, "val")) == 12


def test_a_class_may_be_called_train(write):
    root = write(*classes(names=("bus", "car", "train"), count=10))
    assert image_folder(root, "train").labels == ("bus", "car", "train")


def test_other_folders_beside_the_splits_are_said(write):
    root = write(*classes("train/"), *classes("val/"), "test/0.png", "samples/0.png", "labels/0.txt")
    assert read_folder(root).names == ("train", "val")
    assert f"left out: 1 image in {root / 'test'} (without class folders)" in notes(root)
    assert f"1 image in {root / 'samples'} (beside the splits)" in notes(root)
    assert "left out: 'labels'" in notes(root)


def test_training_images_that_are_also_test_images_are_not_trained_on(write):
    root = write(*classes("train/"), *classes("val/"), *classes("test/"))
    shutil.copy(root / "test/ant/0.png", root / "train/bee/copied.jpg")
    shutil.copy(root / "val/ant/1.png", root / "train/bee/again.jpg")
    parts = {part: image_folder(root, part) for part in PARTS}
    assert {part: len(files) for part, files in parts.items()} == dict.fromkeys(PARTS, 12)
    assert not digests(parts["train"]) & (digests(parts["val"]) | digests(parts["test"]))
    assert "left out of training: 2 images that are also val or test images" in notes(root)


def test_large_files_that_differ_where_no_piece_is_read_are_not_taken_for_copies(write):
    root = write(*classes("train/"), *classes("val/"), *classes("test/"))
    data = bytearray(1_000_000)
    (root / "test/ant/0.png").write_bytes(data)
    data[200_000] = 1
    (root / "train/ant/0.png").write_bytes(data)
    assert len(image_folder(root, "train")) == 12


def test_links_are_followed_once(write):
    root = write(*classes(count=10))
    (root / "ant/loop").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to("self")
    other = write(*(f"{number}.png" for number in range(10)), root="other")
    (root / "cat").symlink_to(other, target_is_directory=True)
    (root / "dog").symlink_to(other, target_is_directory=True)
    assert sum(counts(root).values()) == 30
    assert image_folder(root, "train").labels == ("ant", "bee", "cat")
    assert f"'{root / 'ant/loop'}'" in notes(root)


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(write):
    root = write(*classes("train/"), *classes("test/"))
    (root / "test/ant/gone.png").symlink_to(root / "nowhere.png")
    images = image_folder(root, "test")
    index = [path.name for path, _ in images.samples].index("gone.png")
    with pytest.raises(DataError, match=r"gone\.png"):
        images[index]


def test_pipes_are_not_opened(write):
    root = write(*classes(count=10))
    os.mkfifo(root / "ant/pipe.png")
    assert sum(counts(root).values()) == 20


REFUSED = {
    "missing": ([], "no such folder; give a folder laid out as"),
    "empty": (["README"], "no images; expected ROOT/CLASS"),
    "flat": (["a.png", "b.png"], "2 images but no class folders; expected ROOT/CLASS/image.jpg"),
    "one class": (classes(names=("ant",)), "only one class, 'ant'"),
    "one class of train": ([*classes("train/", ("ant",)), *classes("test/")], "only one class, 'ant'"),
    "folders only": (
        [*classes(names=("ant",)), "bee/2023/0.png", "bee/2024/0.png"],
        "class folder 'bee' holds only folders ('2023', '2024')",
    ),
    "two levels": (["animals/ant/0.png", "animals/bee/0.png", "plants/oak/0.png"], "'animals' holds only folders"),
    "splits below classes": (["ant/train/0.png", "bee/train/0.png"], "the splits belong above the classes"),
    "splits without classes": (["train/0.png", "test/0.png"], "'test', 'train' hold images but no class folders"),
    "two of one split": ([*classes("train/"), *classes("Training/")], "Training and train both name train"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_folders_that_cannot_be_used_are_refused(write, tmp_path, case):
    names, words = REFUSED[case]
    root = write(*names)
    with pytest.raises(DataError) as caught:
        open_images(str(root), "train", 10, 32)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_class_beside_an_empty_one_names_both(write):
    root = write(*classes(names=("ant",)))
    (root / "bee").mkdir()
    with pytest.raises(DataError, match=r"only one class, 'ant' \('bee': no images\)"):
        image_folder(root, "train")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="is a PNG image|is a file|is an empty file"):
        image_folder(tmp_path / "a.png", "train")


def test_a_folder_that_cannot_be_read_is_named(write, monkeypatch):
    root = write(*classes())
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"bee: folder cannot be read \(Permission denied\)"):
        image_folder(root, "train")


def test_endless_nesting_is_refused(write):
    root = write("/".join(["a"] * 80) + "/0.png")
    with pytest.raises(DataError, match="nest deeper than 64"):
        image_folder(root, "train")


def test_accents_stored_in_two_forms_are_one_name(write):
    root = write(*classes("train/", ("cafe\u0301", "bee")), *classes("test/", ("caf\u00e9", "bee")))
    assert image_folder(root, "test").labels == ("bee", "caf\u00e9")


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred"), {"train", "val", "test"}),
        (("01_train", "02_val", "03_test"), {"train", "val", "test"}),
        (("train2017", "val2017"), {"train", "val"}),
        (("my_train", "validation"), {"train", "val"}),
        (("train", "train_augmented", "test"), {"train", "val", "test"}),
    ],
)
def test_names_of_splits_among_other_words(write, names, parts):
    root = write(*(file for name in names for file in classes(f"{name}/", count=20)))
    assert set(counts(root)) == parts
    for part in parts - {"val"}:
        folder = next(name for name in names if part in name).partition("/")[0]
        assert {path.relative_to(root).parts[0] for path, _ in image_folder(root, part).samples} == {folder}
    assert image_folder(root, "train").labels == ("ant", "bee")


def test_classes_of_such_names_are_no_splits(write):
    root = write(*classes(names=("train toy", "test tube", "val d'or")), "train toy/more/0.png", "test tube/more/0.png")
    assert image_folder(root, "train").labels == ("test tube", "train toy", "val d'or")
    root = write(*classes(names=("ant", "bee")), "test rig/old/0.png", root="one")
    with pytest.raises(DataError, match="class folder 'test rig' holds only folders"):
        read_folder(root)


def test_a_folder_of_no_known_split_is_named_where_a_part_is_missing(write):
    root = write(*classes("Traning/"), *classes("Testing/"))
    with pytest.raises(DataError, match=r"has no train images, only test; .*belong to no split: 'Traning'"):
        image_folder(root, "train")
