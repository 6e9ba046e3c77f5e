import math

import pytest
import torch

from gft_edge.errors import CheckFailed
from gft_edge.train.watch import LossWatch


def failed(loss, step):
    return CheckFailed(f"{loss} at {step}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error_with_its_step(value):
    watch = LossWatch(failed)
    watch.see(torch.tensor(2.5), 6)
    with pytest.raises(CheckFailed, match=f"^{value} at 7$"):
        watch.see(torch.tensor(value), 7)
    watch.finish()


class LaterCopy:
    """Stands for a tensor of a GPU."""

    device, shape, dtype = torch.device("cuda"), torch.Size(), torch.float32

    def __init__(self, value):
        self.value = value


class Copied:
    def record(self):
        pass

    def synchronize(self):
        pass


class Pinned:
    value = None

    def copy_(self, source, non_blocking):
        assert non_blocking
        self.value = source.value

    def item(self):
        return self.value


def test_on_a_gpu_each_loss_is_checked_once_the_next_is_queued_and_the_last_at_the_end(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, pin_memory: Pinned())
    monkeypatch.setattr(torch.cuda, "Event", Copied)
    watch = LossWatch(failed)
    watch.see(LaterCopy(1.0), 0)
    watch.see(LaterCopy(math.nan), 1)
    with pytest.raises(CheckFailed, match="^nan at 1$"):
        watch.see(LaterCopy(1.0), 2)
    watch = LossWatch(failed)
    watch.see(LaterCopy(math.inf), 3)
    with pytest.raises(CheckFailed, match="^inf at 3$"):
        watch.finish()
    watch.finish()
