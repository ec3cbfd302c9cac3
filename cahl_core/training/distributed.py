"""What training needs of several processes, over accelerate.

The packed forward bypasses any model wrapper, and mostly adapters have gradients, so each process
works on its share of the rollouts and the gradients are summed. With one process every method is the
identity. Sharded weights: `sharding`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from cahl_core.errors import StageInputError, TrainingError
from cahl_core.policy.shards import is_sharded
from cahl_core.training.launch import TIMEOUT, read_launch, without_deepspeed

T = TypeVar("T")
BUCKET = 32 * 2**20  # elements that travel in one reduction


class Workers:
    """This process among its peers.

    Methods that speak to the others are to be called by all of them, in the same order; they raise
    `TrainingError` where another process has ended or does not come within the time allowed
    (``CAHL_PROCESS_TIMEOUT`` seconds, 1800 by default).

    Attributes:
        sharded: whether weights are sharded over the processes.

    Raises:
        ConfigError: the launcher asks for what cannot be had.
        TrainingError: the processes did not find each other.
    """

    sharded = False

    def __init__(self) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        self.launch = read_launch(os.environ)
        meeting = InitProcessGroupKwargs(timeout=self.launch.timeout)
        with self._together("meet"), without_deepspeed():
            # on a machine without CUDA, accelerate makes one world of each process unless told
            self.accelerator = Accelerator(
                cpu=not torch.cuda.is_available(), kwargs_handlers=[meeting]
            )
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.sharded = self.launch.sharded and self.count > 1
        if self.count != self.launch.processes:
            raise TrainingError(
                f"{self.launch.processes} processes were started, and this one sees {self.count}",
                "start them with torchrun or accelerate launch (docs/distributed.md)",
            )

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
        return self._reduce(values, "sum")

    def most(self, value: int) -> int:
        """The largest of the processes' values."""
        return int(self._reduce([float(value)], "max")[0])

    def _reduce(self, values: Iterable[float], how: str) -> list[float]:
        numbers = list(values)
        if self.count == 1 or not numbers:
            return numbers
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        with self._together("add up numbers"):
            total: list[float] = self.accelerator.reduce(tensor, how).tolist()
        return total

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all processes, in the order of ranks; they travel as pickles between our own
        processes and are never stored.
        """
        if self.count == 1:
            return list(items)
        from accelerate.utils import gather_object

        with self._together("gather"):
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
        """Adds the processes' gradients up, all of a dtype in one reduction.

        Where a process has no gradient it counts as zero; where none has, there is none afterwards.
        Sharded parameters are left alone: their gradients were summed in the backward pass.
        """
        if self.count == 1:
            return
        for bucket in _buckets([p for p in parameters if not is_sharded(p)]):
            flat, present = _flatten(bucket)
            with self._together("add up gradients"):
                total = self.accelerator.reduce(torch.cat([flat, present]), "sum")
            _scatter(total[: len(flat)], total[len(flat) :], bucket)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        with self._together("take over from rank 0"):
            found: T = broadcast_object_list([value])[0]
        return found

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Rank 0's tensors on every process, each sent when it is looked up.

        All processes have to look up the same names in the same order.
        """
        if self.count == 1:
            return tensors
        return _Broadcast(self, tensors)

    def agree(self, what: str, value: str) -> None:
        """Raises `StageInputError` on every process unless all of them give the same value."""
        if len(set(everyone := self.gather([value]))) > 1:
            raise StageInputError(
                f"the processes differ in {what}: {', '.join(everyone)} (by rank)",
                "every host needs the same settings, data, backbone and starting weights",
            )

    def wait(self) -> None:
        """Returns when every process has come here."""
        with self._together("wait"):
            self.accelerator.wait_for_everyone()

    @contextmanager
    def _together(self, doing: str) -> Iterator[None]:
        """A peer that died or hangs shows as a RuntimeError of the transport."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(
                f"this process could not {doing} with the others: {reason}",
                "one of them ended (its own message says why) or took longer than "
                f"{self.launch.timeout.total_seconds():.0f} s ({TIMEOUT}); started again, the run "
                "goes on from its last checkpoint",
            ) from error


class _Broadcast(Mapping[str, Tensor]):
    """Tensors of rank 0 by name; a look-up is one broadcast."""

    def __init__(self, workers: Workers, tensors: Mapping[str, Tensor]) -> None:
        self._workers, self._mine = workers, tensors
        shapes = {k: (tuple(v.shape), v.dtype) for k, v in tensors.items()}
        self._shapes = workers.broadcast(shapes)

    def __getitem__(self, key: str) -> Tensor:
        from accelerate.utils import broadcast

        shape, dtype = self._shapes[key]
        device = self._workers.device
        if self._workers.is_main:
            tensor = self._mine[key].to(device)
        else:
            tensor = torch.empty(shape, dtype=dtype, device=device)
        with self._workers._together("take over weights from rank 0"):
            sent: Tensor = broadcast(tensor)
        return sent.cpu()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __contains__(self, key: object) -> bool:
        return key in self._shapes

    def __len__(self) -> int:
        return len(self._shapes)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one dtype, together of about `BUCKET` elements."""
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        bucket: list[nn.Parameter] = []
        size = 0
        for parameter in parameters:
            if parameter.dtype != dtype:
                continue
            if bucket and size + parameter.numel() > BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(parameter)
            size += parameter.numel()
        yield bucket


def _flatten(bucket: Sequence[nn.Parameter]) -> tuple[Tensor, Tensor]:
    """The gradients one after another, and for each parameter 1 if it has one."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
    present = torch.tensor([float(p.grad is not None) for p in bucket])
    flat = torch.cat([part.reshape(-1) for part in parts])
    return flat, present.to(flat)


def _scatter(flat: Tensor, present: Tensor, bucket: Sequence[nn.Parameter]) -> None:
    parts = torch.split(flat, [p.numel() for p in bucket])
    for parameter, part, count in zip(bucket, parts, present.tolist(), strict=True):
        parameter.grad = part.view_as(parameter) if count else None
