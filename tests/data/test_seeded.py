from __future__ import annotations

import hashlib

import numpy as np

from gft_edge.data.seeded import seeded_images


def test_images_are_fixed_bytes():
    """The bytes are the same on every machine: a hash of theirs stands here."""
    images = seeded_images(4, 40, 56)
    assert (images.shape, images.dtype) == ((4, 40, 56, 3), np.uint8)
    assert (
        hashlib.sha256(images.tobytes()).hexdigest()
        == "e9bca67b8eff898998001a491b28bd27e26d7c0d603c0334b7f7872bcad95229"
    )


def test_each_image_depends_on_seed_and_number_alone():
    images = seeded_images(6, 32, 32)
    np.testing.assert_array_equal(seeded_images(2, 32, 32), images[:2])
    assert len({image.tobytes() for image in (*images, *seeded_images(6, 32, 32, seed=1))}) == 12


def test_images_use_the_whole_range_and_are_smooth_as_photographs_are():
    for image in seeded_images(8, 96, 96).astype(np.int64):
        assert (image.min(), image.max()) == (0, 255)
        assert image.std() > 20
        assert np.abs(np.diff(image, axis=1)).mean() < 0.2 * image.std()
        grey = image.mean(axis=2)
        assert all(np.corrcoef(image[..., c].ravel(), grey.ravel())[0, 1] > 0.5 for c in range(3))
        patches = grey.reshape(12, 8, 12, 8).mean(axis=(1, 3))
        assert len(np.unique(patches)) > 130, "patches that are alike would be tied in the selection"


def test_any_size_is_made():
    assert [seeded_images(1, h, w).shape[1:3] for h, w in ((1, 1), (7, 300), (224, 224))] == [
        (1, 1),
        (7, 300),
        (224, 224),
    ]
