"""Damaged images are replaced by the next ones of their set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gft_edge.data.for_model import Request, intact_images
from gft_edge.data.intact import intact, names_of, source_in_words
from gft_edge.data.sets import Files
from gft_edge.data.trained import write_trained
from gft_edge.errors import DataError

LABELS = ("ant", "bee")


class Holed:
    """Images of which some cannot be read; records which are decoded."""

    def __init__(self, count, missing, classes=None):
        self.count, self.missing, self.tried, self.classes = count, set(missing), [], classes or [0] * count

    def class_numbers(self):
        return self.classes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.tried.append(index)
        if index in self.missing:
            raise DataError(f"image {index}: gone")
        return np.zeros((2, 2, 3), np.uint8), 0


@pytest.mark.parametrize(
    ("missing", "found"),
    [
        ((), (0, 2, 4, 6, 8, 10, 12, 14, 16, 18)),
        ((4,), (0, 2, 5, 6, 8, 10, 12, 14, 16, 18)),
        ((18,), (0, 2, 4, 6, 8, 10, 12, 14, 16, 19)),
        ((5,), (0, 2, 4, 6, 8, 10, 12, 14, 16, 18)),
    ],
)
def test_the_next_free_image_is_taken(missing, found):
    problems = []
    result = intact(Holed(20, missing), range(0, 20, 2), "here", problems.append)
    wanted = {index for index in missing if index % 2 == 0}
    assert (result.indices, result.damaged) == (found, tuple(wanted))
    assert problems == [f"image {index}: gone" for index in wanted]


def test_a_damaged_neighbour_is_passed_over_and_the_search_goes_on_at_the_start():
    images = Holed(40, (39, 0))
    result = intact(images, range(20, 40), "here", lambda text: None)
    assert (result.indices, result.damaged) == ((*range(20, 39), 1), (0, 39))
    assert sorted(images.tried) == [0, 1, *range(20, 40)], "nothing is tried twice, and no more than is needed"


@pytest.mark.parametrize(
    ("classes", "spare"), [([0, 1] * 10, 6), ([0] * 5 + [1] * 15, 3), ([0] * 3 + [1, 2] + [0] * 15, 5)]
)
def test_the_next_image_of_the_same_class_comes_first(classes, spare):
    wanted = [index for index in range(20) if index not in (3, 5, 6)]
    images = Holed(20, (4,), classes)
    assert intact(images, wanted, "here", lambda text: None).indices == tuple(spare if i == 4 else i for i in wanted)


def test_only_usable_images_replace_others():
    result = intact(Holed(20, (4,)), range(0, 20, 2), "here", lambda text: None, lambda index: index > 7)
    assert result.indices[2] == 9


def test_without_a_spare_there_are_fewer():
    result = intact(Holed(10, (3,)), range(10), "here", lambda text: None)
    assert (result.indices, result.damaged) == ((0, 1, 2, 4, 5, 6, 7, 8, 9), (3,))


@pytest.mark.parametrize(("count", "missing"), [(19, (0, 7)), (1, (0,)), (9, (0,))])
def test_more_than_a_tenth_is_an_error(count, missing):
    with pytest.raises(
        DataError, match=rf"^data here: {len(missing)} of {count} images cannot be read, more than a tenth; .*0: gone$"
    ):
        intact(Holed(count, missing), range(count), "here", lambda text: None)


def test_the_tenth_is_of_the_images_that_were_tried():
    with pytest.raises(DataError, match="1 of 9 images"):
        intact(Holed(20, (0,)), range(9), "here", lambda text: None, lambda index: False)
    assert len(intact(Holed(20, (0,)), range(9), "here", lambda text: None).indices) == 9


def test_a_set_of_damaged_images_is_not_read_to_its_end():
    images = Holed(1000, range(1000))
    with pytest.raises(DataError, match="3 of 23 images"):
        intact(images, range(20), "here", lambda text: None)
    assert len(images.tried) == 3


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve JPEG files of two classes in the part test; the second is truncated in its pixels."""
    rng = np.random.default_rng(0)
    for number in range(12):
        path = tmp_path / "photos/test" / LABELS[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    damaged = tmp_path / "photos/test/ant/02.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    return tmp_path / "photos"


def test_a_truncated_jpeg_is_found_and_a_file_trained_on_takes_no_place(photos, tmp_path):
    request, model, problems = Request(str(photos), "test", 11), tmp_path / "model", []
    model.mkdir()
    first, names = intact_images(request, 32, LABELS, model, None, problems.append)
    # All but one of the sorted files are wanted; the one that is not takes the place.
    stems = [Path(first.name(index)).stem for index in range(11)]
    assert sorted(stems) == [f"{n:02d}" for n in range(12) if n != 2]
    assert (names, len(problems)) == (("test/ant/02.jpg",), 1)
    assert "02.jpg: cannot be decoded" in problems[0]
    assert source_in_words("11 images", names) == "11 images, 1 unreadable left out"

    spare = Path(first.name(1))
    write_trained(model, Files(LABELS, ((spare, 0),)))
    second, _ = intact_images(request, 32, LABELS, model, None, problems.append)
    assert str(spare) not in [second.name(index) for index in range(len(second))]
    assert len(second) == 10


def test_without_anyone_to_tell_no_image_is_tried(photos, tmp_path):
    found, names = intact_images(Request(str(photos), "test", 12), 32, LABELS, tmp_path, None, None)
    assert (len(found), names) == (12, ())


@pytest.mark.parametrize("data", ["food101:/data/photos", "/data/photos", "/data/photos:2", "food101:/data/photos:2"])
def test_names_are_paths_below_the_folder_of_the_data(data):
    folder = Path(data.removeprefix("food101:"))
    files = Files(LABELS, ((folder / "test/ant/02.jpg", 0), (Path("/else/x.jpg"), 1)))
    assert names_of(files, (0, 1), data) == ("test/ant/02.jpg", "/else/x.jpg")
