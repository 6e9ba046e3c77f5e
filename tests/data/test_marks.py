"""Marks of image sets, through the sets that wrap them and through preprocessing."""

from __future__ import annotations

import numpy as np
import pytest

from gft_edge.data.marks import marked_patches, marks_of
from gft_edge.data.sets import Files, Kept, Relabelled, Subset
from gft_edge.preprocess import PreprocessSpec


class OnePixel:
    """Image i has its mark at row i."""

    labels = ("a", "b")
    notes = ()
    rendered_split = None

    def name(self, index):
        return str(index)

    def class_numbers(self):
        return [0] * 8

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return np.zeros((8, 8, 3), np.uint8), 0

    def marks(self, index):
        mask = np.zeros((8, 8), bool)
        mask[index] = True
        return mask


def row_of(mask):
    return int(np.flatnonzero(mask.any(axis=1))[0])


def test_marks_belong_to_the_image_that_a_wrapping_set_returns():
    base = OnePixel()
    assert row_of(marks_of(base)(3)) == 3
    part = Subset(base, (5, 2, 7))
    assert [row_of(marks_of(part)(index)) for index in range(3)] == [5, 2, 7]
    wrapped = Kept(Relabelled(Subset(part, (2, 0)), ("b", "a"), (1, 0), ()), 1000)
    assert [row_of(marks_of(wrapped)(index)) for index in range(2)] == [7, 5]


def test_sets_without_marks_have_none():
    files = Files(("a",), ())
    assert marks_of(files) is None
    assert marks_of(Subset(files, ())) is None
    assert marks_of(Relabelled(files, ("a",), (0,), ())) is None


def test_a_box_marks_the_patches_that_it_touches():
    mask = np.zeros((32, 32), bool)
    mask[7:9, 16:24] = True  # the last row of one patch and the first of the next, one column of patches
    found = marked_patches(mask, PreprocessSpec(32, 32), (4, 4)).reshape(4, 4)
    assert np.argwhere(found).tolist() == [[0, 2], [1, 2]]
    assert not marked_patches(np.zeros((32, 32), bool), PreprocessSpec(32, 32), (4, 4)).any()


@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_the_mask_is_resized_and_cropped_with_the_image(resize):
    spec = PreprocessSpec(32, 32, resize=resize, crop_ratio=1.0)
    mask = np.zeros((64, 128), bool)
    mask[16:32, 64:80] = True
    found = np.argwhere(marked_patches(mask, spec, (4, 4)).reshape(4, 4)).tolist()
    assert found == [[1, 2]]  # the crop keeps columns 32 to 95
    mask[:] = False
    mask[:, :16] = True  # cut away by the crop
    assert marked_patches(mask, spec, (4, 4)).any() == (resize == "stretch")
