from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gft_edge.calibration import images as images_module
from gft_edge.calibration.images import CalibrationSet, choose_images, cover, hash_images, model_features
from gft_edge.calibration.options import CalibrationOptions
from gft_edge.data.datasets import Files, Relabelled, Subset, open_images
from gft_edge.data.typefaces import LABELS, Typefaces
from gft_edge.errors import ArtifactError, ConfigError, DataError
from gft_edge.preprocess import PreprocessSpec

SPEC = PreprocessSpec(32, 32)
ANIMALS = ("ant", "bee", "cat", "dog")


@pytest.fixture
def leaking(folders, tmp_path) -> Path:
    root = Path(shutil.copytree(folders, tmp_path / "leaking"))
    shutil.copy(root / "train/dog/1.png", root / "test/cat/copied.png")
    return root


def _choose(data, count=8, features=None, problem=None, **options):
    return choose_images(CalibrationOptions(str(data), images=count, **options), SPEC, ANIMALS, features, problem)


def test_balanced_choice_takes_turns_and_then_what_is_left(folders):
    assert _choose(folders, 8)[0].class_counts == dict.fromkeys(ANIMALS, 2)
    assert _choose(folders, 14)[0].class_counts == {"ant": 5, "bee": 3, "cat": 3, "dog": 3}


@pytest.mark.parametrize("choice", ["balanced", "random"])
def test_choice_is_fixed_by_the_seed(folders, choice):
    cards = [_choose(folders, choice=choice, seed=seed)[0] for seed in (0, 0, 1)]
    assert cards[0] == cards[1]
    assert cards[0].id == cards[1].id != cards[2].id
    assert set(cards[0].hashes) != set(cards[2].hashes)


@pytest.mark.parametrize(("kept", "drawn"), [(1 << 28, 8), (5 * 3 * 32 * 32, 8 + 3), (0, 16)])
def test_rendered_images_are_drawn_once_while_they_fit(monkeypatch, kept, drawn):
    monkeypatch.setattr(images_module, "KEPT_BYTES", kept)
    draws = []
    draw = Typefaces.__getitem__
    monkeypatch.setattr(Typefaces, "__getitem__", lambda self, index: draws.append(index) or draw(self, index))
    monkeypatch.setattr(images_module, "RENDERED_COMPARED", 2)
    card, images = choose_images(CalibrationOptions("typefaces", images=8), SPEC, LABELS)
    again = [images[index][0] for index in range(8)]
    assert len(draws) == drawn + 2
    assert hash_images(images)[1] == card.hashes
    assert all((image == images.base[index][0]).all() for image, index in zip(again, images.indices))


def test_card_hashes_the_files_in_order(folders):
    card, images = _choose(folders)
    assert card.hashed == "file bytes"
    for path, digest in zip((images.base.samples[i][0] for i in images.indices), card.hashes):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert len(set(card.hashes)) == 8
    assert card.preprocess == SPEC.id
    assert (card.evaluation.split, card.evaluation.compared, card.evaluation.overlap) == ("test", 4, 0)


def test_card_round_trip(folders):
    card, _ = _choose(folders)
    data = json.loads(json.dumps({**card.to_json(), "id": card.id}))
    assert data["images"] == 8
    assert CalibrationSet.from_json(data) == card
    for change in ({"seed": 3}, {"hashes": []}, {"schema": 7}, {"more": 1}, {"evaluation": {"data": "x"}}):
        with pytest.raises(ArtifactError, match="calibration card: "):
            CalibrationSet.from_json({**data, **change})


def test_overlap_with_the_evaluation_is_refused_unless_forced(folders, leaking):
    with pytest.raises(DataError, match="1 calibration images are also among the test images of .*; choose .* --force"):
        _choose(folders, 18, against=str(leaking))
    assert _choose(folders, 18, against=str(leaking), force=True)[0].evaluation.overlap == 1


def test_training_images_that_are_also_test_images_are_not_among_the_training_images(leaking):
    card, images = _choose(leaking, 17)
    assert (card.pool, card.evaluation.overlap) == (17, 0)
    assert any(note.startswith("left out of training: 1 image") for note in images.notes)


def test_without_test_images_the_val_images_are_compared_with(folders, tmp_path):
    root = Path(shutil.copytree(folders, tmp_path / "data"))
    shutil.rmtree(root / "test")
    card, _ = _choose(root, 8)
    assert (card.evaluation.split, card.evaluation.compared) == ("val", 4)
    assert "0 of them among 4 val images" in card.describe()


def test_a_folder_without_splits_is_compared_with_its_own_test_images(folders, tmp_path):
    root = Path(shutil.copytree(folders / "train", tmp_path / "data"))
    card, images = _choose(root, 8)
    test = set(hash_images(open_images(str(root), "test", 99, 32))[1])
    assert (card.evaluation.split, card.evaluation.compared, card.evaluation.overlap) == ("test", len(test), 0)
    assert not test & set(card.hashes)
    assert "split by a hash of each file" in images.notes[-1]


def test_classes_in_another_order_are_matched_by_name(folders):
    other = tuple(reversed(ANIMALS))
    card, images = choose_images(CalibrationOptions(str(folders), images=8), SPEC, other)
    assert card.class_counts == dict.fromkeys(ANIMALS, 2)
    assert all(other[images[i][1]] == Path(images.name(i)).parent.name for i in range(8))


def test_the_evaluation_split_itself_is_refused(folders):
    with pytest.raises(DataError, match="4 calibration images are also among the test images"):
        _choose(folders, 4, split="test")


def test_data_without_splits_are_compared_with_what_is_named(folders, leaking):
    card, _ = _choose(folders / "train", 18)
    assert card.evaluation is None
    assert "none are known" in card.describe()
    assert _choose(folders / "train", 18, against=str(folders))[0].evaluation.compared == 4
    with pytest.raises(DataError, match="1 calibration images"):
        _choose(folders / "train", 18, against=str(leaking))


def test_a_folder_of_image_files_needs_no_classes(folders):
    card, images = _choose(folders / "train/ant", 5)
    assert card.class_counts == {"": 5}
    assert images[0][0].shape == (8, 8, 3)
    assert (card.pool, card.evaluation) == (9, None)


def test_fewer_images_than_asked_for_are_refused(folders):
    with pytest.raises(DataError, match="18 images, 19 asked for; lower --images"):
        _choose(folders, 19)


def test_a_number_that_nobody_asked_for_is_lowered(folders):
    card, images = _choose(folders, 19, fewer=True)
    assert len(images) == len(card.hashes) == 18
    assert card.describe().startswith(f"18 train images of {folders}, balanced, seed 0, all there are; ")


def test_other_classes_are_refused():
    with pytest.raises(DataError, match="its 16 classes are not the model's 4"):
        _choose("typefaces")


def test_rendered_images_are_hashed_by_their_pixels():
    card, images = choose_images(CalibrationOptions("typefaces", images=16), SPEC, LABELS)
    assert card.hashed == "decoded pixels"
    assert card.pool == 64
    assert set(card.class_counts.values()) == {1}
    assert card.evaluation.compared == 256
    other = hash_images(Subset(images, (3, 0)))[1]
    assert other == (card.hashes[3], card.hashes[0])


def test_files_cannot_be_compared_with_rendered_images(folders):
    with pytest.raises(DataError, match="cannot be compared with those hashed by file bytes"):
        _choose(folders, against="typefaces")


def test_classes_are_known_without_decoding():
    images = Subset(Files(("a", "b"), ((Path("none"), 1), (Path("none"), 0))), (1, 0, 1))
    assert images.class_numbers() == [0, 1, 0]
    assert Relabelled(images, ("x", "b", "a"), (2, 1), ()).class_numbers() == [2, 1, 2]
    faces = Typefaces("train", 20, 32)
    assert faces.class_numbers() == [faces[index][1] for index in range(20)]


def test_cover_takes_the_farthest_each_time():
    points = np.array([[0.0], [1.0], [10.0], [4.0], [0.0]])
    assert cover(points, 5)[:4] == (3, 2, 0, 1)
    assert sorted(cover(points, 5)) == [0, 1, 2, 3, 4]
    assert sorted(cover(np.ones((4, 2)), 4)) == [0, 1, 2, 3]


def test_cover_is_within_twice_of_the_best_radius():
    points = np.random.default_rng(0).standard_normal((11, 3))

    def radius(chosen):
        return max(min(np.linalg.norm(p - points[c]) for c in chosen) for p in points)

    best = min(radius(c) for c in itertools.combinations(range(11), 4))
    assert radius(cover(points, 4)) <= 2 * best


def test_coverage_uses_what_the_classifier_reads(tiny_model, folders):
    features = model_features(tiny_model, SPEC)
    card, images = _choose(folders, 6, choice="coverage", features=features)
    places, found = features(images)
    assert places == list(range(6))
    logits = tiny_model(torch.from_numpy(np.stack([SPEC(images[i][0]) for i in range(6)])))
    torch.testing.assert_close(tiny_model.head(torch.from_numpy(found)), logits, rtol=1e-4, atol=1e-4)
    assert card == _choose(folders, 6, choice="coverage", features=features)[0]
    assert not tiny_model.head._forward_pre_hooks


def test_coverage_without_features_and_unknown_choices_are_refused(folders):
    with pytest.raises(ConfigError, match="needs the model's features"):
        _choose(folders, choice="coverage")
    with pytest.raises(ConfigError, match="choice must be one of random, balanced, coverage"):
        _choose(folders, choice="best")


def _damaged(folders, tmp_path, *names) -> Path:
    root = Path(shutil.copytree(folders, tmp_path / "damaged"))
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:60])  # truncated
    return root


def _names(card, images):
    return [Path(images.name(index)).relative_to(card.data).as_posix() for index in range(len(images))]


@pytest.mark.parametrize("choice", ["balanced", "random"])
def test_the_next_image_takes_the_place_of_a_damaged_one(folders, tmp_path, choice):
    wanted = _names(*_choose(folders, 12, choice=choice))
    root = _damaged(folders, tmp_path, wanted[3])
    every = [Path(one).relative_to(folders).as_posix() for one in sorted(map(str, folders.glob("train/*/*.png")))]
    at = every.index(wanted[3])
    free = [one for one in every[at + 1 :] + every[:at] if one not in wanted]
    spare = next((one for one in free if Path(one).parent == Path(wanted[3]).parent), free[0])
    problems = []
    card, images = _choose(root, 12, choice=choice, problem=problems.append)
    assert _names(card, images) == [*wanted[:3], spare, *wanted[4:]]
    assert len(problems) == 1 and problems[0].startswith(f"image {root / wanted[3]}: cannot be decoded")
    assert (card.unreadable, len(card.hashes), sum(card.class_counts.values())) == ((wanted[3],), 12, 12)
    assert f"chosen from 18 candidates (left out, cannot be read: {wanted[3]})" in card.describe()
    again, _ = _choose(root, 12, choice=choice, problem=problems.append)
    assert again == card and again.id == card.id
    data = json.loads(json.dumps({**card.to_json(), "id": card.id}))
    assert CalibrationSet.from_json(data) == card
    with pytest.raises(ArtifactError, match="was changed"):
        CalibrationSet.from_json({**data, "unreadable": []})


def test_trying_the_files_changes_nothing_where_none_is_damaged(folders):
    plain, tried = _choose(folders, 12), _choose(folders, 12, problem=pytest.fail)
    assert plain == tried and "unreadable" not in plain[0].to_json()


def test_where_all_images_are_asked_for_there_are_fewer(folders, tmp_path):
    root = _damaged(folders, tmp_path, "train/ant/0.png")
    card, images = _choose(root, 18, problem=lambda text: None)
    assert (len(images), card.pool, card.class_counts["ant"]) == (17, 18, 8)


@pytest.mark.parametrize("choice", ["balanced", "coverage"])
def test_more_than_a_tenth_is_an_error(folders, tmp_path, tiny_model, choice):
    features = model_features(tiny_model, SPEC)
    root = _damaged(folders, tmp_path, "train/ant/0.png", "train/dog/0.png")
    with pytest.raises(
        DataError, match=r"2 of 18 images cannot be read, more than a tenth; .* The first: image .*0.png"
    ):
        _choose(root, 18, choice=choice, features=features, problem=lambda text: None)


def test_coverage_chooses_among_the_images_that_can_be_read(folders, tmp_path, tiny_model):
    features = model_features(tiny_model, SPEC)
    names = _names(*_choose(folders, 3, choice="coverage", features=features))
    root = _damaged(folders, tmp_path, names[1])
    problems = []
    card, images = _choose(root, 17, choice="coverage", features=features, problem=problems.append)
    every = {path.relative_to(folders).as_posix() for path in folders.glob("train/*/*.png")}
    assert set(_names(card, images)) == every - {names[1]}
    assert (card.unreadable, len(problems)) == ((names[1],), 1)


def test_evaluation_files_that_cannot_be_opened_are_not_compared(folders, tmp_path):
    root = Path(shutil.copytree(folders, tmp_path / "data"))
    (root / "test/ant/link.png").symlink_to(tmp_path / "nowhere")
    assert _choose(root, 8)[0].evaluation.compared == 4
