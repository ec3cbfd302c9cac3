"""What training needs of several processes, over accelerate.

The packed forward bypasses any model wrapper, and only adapters have gradients, so each process
works on its share of the rollouts and the adapters' gradients are summed. With one process every
method is the identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


class Workers:
    """This process among its peers."""

    def __init__(self) -> None:
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Every ``count``-th item, from this process's rank on."""
        return list(items[self.rank :: self.count])

    def sum(self, values: Iterable[float]) -> list[float]:
        """Element-wise sum over the processes."""
        numbers = list(values)
        if self.count == 1 or not numbers:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        total: list[float] = self.accelerator.reduce(tensor, "sum").tolist()
        return total

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the order of ranks; they travel as pickles between our own
        processes and are never stored.
        """
        if self.count == 1:
            return list(items)
        from accelerate.utils import gather_object

        everyone: list[T] = gather_object(list(items))
        return everyone

    def merge(self, counts: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        """Adds pairs of counts up over the processes, key by key."""
        total: dict[str, tuple[float, float]] = {}
        for key, (first, second) in self.gather(list(counts.items())):
            a, b = total.get(key, (0.0, 0.0))
            total[key] = (a + first, b + second)
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds the processes' gradients up; a missing gradient counts as zero."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = self.accelerator.reduce(parameter.grad, "sum")

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.accelerator.wait_for_everyone()
