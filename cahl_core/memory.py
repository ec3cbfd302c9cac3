"""Memory: what running out of it looks like, and giving back what a failed attempt held.

Torch is imported only where something has to be asked of it: stages without a model stay light.
"""

from __future__ import annotations

import gc
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# What torch's allocators and the libraries below them say; only CUDA's caching allocator has a type.
ALLOCATION_FAILED = (
    "can't allocate memory",  # CPU allocator: malloc returned nothing
    "not enough memory: you tried to allocate",  # the same on other systems
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be allocated, on a CUDA device or on the host."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(said in text for said in ALLOCATION_FAILED)


def release_memory(device: torch.device, error: BaseException | None = None) -> None:
    """Frees what nobody refers to any more, so that a smaller attempt finds the memory.

    The frames that ``error`` still holds, and those of its causes, are emptied: they hold the failed
    attempt's tensors. The caller's own frame is still running and keeps what its names refer to.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
