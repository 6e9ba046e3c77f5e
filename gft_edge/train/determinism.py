"""The same weights from the same recipe on a GPU too: only deterministic operations.

A CPU needs none of this. With ``torch.use_deterministic_algorithms`` the backward passes of gather, index_select and indexing
add in a fixed order, and scaled dot-product attention uses the deterministic form of its backward pass; operations without
such a form raise an error. cuBLAS needs a fixed workspace, see
https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html and
https://docs.nvidia.com/cuda/cublas/#results-reproducibility.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from gft_edge.errors import ConfigError

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""Workspaces with which cuBLAS gives the same results in every run."""


@contextlib.contextmanager
def deterministic(device: torch.device, remedy: str) -> Iterator[None]:
    """Allows only deterministic operations on a GPU; enter it before the first computation there. Does nothing for a CPU.

    Args:
        device: that computes.
        remedy: what to do about a model with another operation, for the message.

    Raises:
        ConfigError: an operation of the model has no deterministic form.
    """
    if device.type != "cuda":
        yield
        return
    if os.environ.get(CUBLAS_WORKSPACE) not in WORKSPACES:
        os.environ[CUBLAS_WORKSPACE] = WORKSPACES[0]
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    flags = cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
    memory.fill_uninitialized_memory = False  # for finding bugs; it costs a pass over every new tensor
    try:
        yield
    except RuntimeError as error:
        if "deterministic implementation" not in str(error):
            raise
        raise ConfigError(f"{str(error).split()[0]} has no deterministic form on a GPU; {remedy}") from None
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic, memory.fill_uninitialized_memory = flags
