from __future__ import annotations

import numpy as np
import pytest

from gft_edge.errors import CheckFailed
from gft_edge.runtime.finite import require_finite


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_finite_logits_pass(dtype):
    require_finite(np.array([[np.finfo(dtype).max, np.finfo(dtype).min, 0]], dtype), "model")
    require_finite(np.empty((0, 3), dtype), "model")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_names_model_and_images(dtype, value):
    logits = np.zeros((5, 3), dtype)
    logits[2, 1] = logits[4, 0] = value
    with pytest.raises(
        CheckFailed, match=r"^artefact a: logits of 2 of 5 images are NaN or infinite \(first: image 2\)"
    ):
        require_finite(logits, "artefact a")
