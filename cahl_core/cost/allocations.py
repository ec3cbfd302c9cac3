"""Counts the bytes of tensors that a computation makes, alive at one time at most.

Works on real tensors and on fake ones (`torch._subclasses.FakeTensorMode`), which have shapes and no
memory: so the peak of an update is known before it runs, from the code that will run.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, follows every tensor that an operation returns until its storage is freed.

    Attributes:
        alive: bytes made under this mode that are still referred to.
        peak: the most there were at one time. What a kernel needs for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._known.setdefault(_memory(tensor)[0], 0)
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._made(*_memory(tensor))
        return out

    def _made(self, storage: torch.UntypedStorage | torch.Tensor, size: int) -> None:
        if storage in self._known:
            return
        self._known[storage] = size
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._freed, size)

    def _freed(self, size: int) -> None:
        self.alive -= size


def _memory(tensor: torch.Tensor) -> tuple[torch.UntypedStorage | torch.Tensor, int]:
    """What lives as long as a tensor's memory, and its bytes; oneDNN's layouts have no storage."""
    if tensor.is_mkldnn:
        return tensor, tensor.numel() * tensor.element_size()
    storage = tensor.untyped_storage()
    return storage, storage.nbytes()


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]
