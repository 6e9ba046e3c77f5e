"""Training in one process or in those of torchrun, and sums over all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """This process among all.

    Args:
        rank: of this process; 0 writes.
        count: number of processes.
        device: on which this process computes.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """True for the process that writes files and shows progress."""
        return self.rank == 0


@contextlib.contextmanager
def workers() -> Iterator[Workers]:
    """Joins the processes that torchrun started (gloo for tensors of CPUs, nccl for those of GPUs), or yields this one alone."""
    use_cuda = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)  # the one of barriers and pinned memory
    if "RANK" not in os.environ or dist.is_initialized():
        yield Workers(device=device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")
    try:
        yield Workers(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def parallel(model: nn.Module, group: Workers, unused: bool) -> nn.Module:
    """Returns the model with gradients averaged over all processes; ``unused`` when some parameters get none."""
    if group.count == 1:
        return model
    if group.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    devices = None if group.device.type == "cpu" else [group.device]
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)


def total(values: Tensor) -> Tensor:
    """Returns the sum over all processes."""
    if dist.is_available() and dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
