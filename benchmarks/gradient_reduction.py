"""Summing the gradients of an adapter over processes: one reduction against one per tensor, in turn.

    torchrun --nproc_per_node 2 benchmarks/gradient_reduction.py

The tensors are those of a LoRA adapter of SmolLM2-135M (rank 32, all seven projections). Prints the
medians in milliseconds and their ratio; both kinds alternate within one run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from cahl_core.training.distributed import Workers

LAYERS, RANK, REPEATS = 30, 32, 30
HIDDEN, KEYS, WIDE = 576, 192, 1536
PROJECTIONS = [
    (HIDDEN, HIDDEN), (HIDDEN, KEYS), (HIDDEN, KEYS), (HIDDEN, HIDDEN),
    (HIDDEN, WIDE), (HIDDEN, WIDE), (WIDE, HIDDEN),
]  # fmt: skip


def main() -> None:
    workers = Workers()
    parameters = [
        nn.Parameter(torch.zeros(*shape, device=workers.device))
        for _ in range(LAYERS)
        for inward, outward in PROJECTIONS
        for shape in ((RANK, inward), (outward, RANK))
    ]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)

    def apart() -> None:
        for parameter in parameters:
            parameter.grad = workers.accelerator.reduce(parameter.grad, "sum")

    def together() -> None:
        workers.sum_gradients(parameters)

    times: dict[str, list[float]] = {"apart": [], "together": []}
    for _ in range(REPEATS):
        for name, run in (("apart", apart), ("together", together)):
            times[name].append(_milliseconds(workers, run))
    medians = {name: statistics.median(values) for name, values in times.items()}
    if workers.is_main:
        count = sum(p.numel() for p in parameters)
        print(f"{len(parameters)} tensors, {count:,} numbers, {workers.count} processes")
        print(f"one reduction per tensor {medians['apart']:8.1f} ms")
        print(f"one reduction            {medians['together']:8.1f} ms")
        print(f"ratio                    {medians['apart'] / medians['together']:8.2f}")


def _milliseconds(workers: Workers, run: Callable[[], None]) -> float:
    workers.wait()
    start = time.perf_counter()
    run()
    workers.wait()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
