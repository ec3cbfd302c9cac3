"""What this machine can do at best: bytes read per second, multiplications per second.

The rates that measured steps are compared with; each is the best of several runs and of several ways
to get there. A working set the size of the model's weights may stay in a large last-level cache, so
the bandwidth is taken at that size and at one that no cache holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

RUNS = 5


def machine_limits(
    weights_bytes: int, shapes: list[tuple[int, int]], rows: int = 1024, dtype: str = "bfloat16"
) -> dict[str, float]:
    """Bandwidth in GB/s and matrix-multiply peaks in GFLOP/s.

    Args:
        weights_bytes: the working set of one decoding step.
        shapes: ``(out, in)`` of the model's matrices, multiplied by ``rows`` inputs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low = getattr(torch, dtype)
    large = 2 << 30
    found = {
        "bandwidth_weights": bandwidth(weights_bytes, device),
        "bandwidth_large": bandwidth(large, device),
        "matmul_fp32_square": multiply([(2048, 2048)], 2048, torch.float32, device),
        "matmul_fp32_model": multiply(shapes, rows, torch.float32, device),
    }
    if low != torch.float32:
        found["matmul_low_square"] = multiply([(4096, 4096)], 4096, low, device)
        found["matmul_low_model"] = multiply(shapes, rows, low, device)
    return {name: round(value, 2) for name, value in found.items()}


def bandwidth(size: int, device: torch.device) -> float:
    """GB/s of reading ``size`` bytes: the faster of a sum and of matrix-vector products."""
    columns = 4096
    count = max(1, size // (columns * 4))
    values = torch.ones(count, columns, device=device)
    vector = torch.ones(columns, device=device)
    ways: list[Callable[[], object]] = [values.sum, lambda: values @ vector]
    if device.type == "cuda" or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        half = torch.ones(count * 2, columns, device=device, dtype=torch.bfloat16)
        small = vector.bfloat16()
        ways.append(lambda: half @ small)
    return count * columns * 4 / min(best(way) for way in ways) / 1e9


def multiply(
    shapes: list[tuple[int, int]], rows: int, dtype: torch.dtype, device: torch.device
) -> float:
    """GFLOP/s of ``rows`` inputs through matrices of these shapes, one after another."""
    matrices = [torch.randn(o, i, device=device).to(dtype) for o, i in shapes]
    inputs = {i: torch.randn(rows, i, device=device).to(dtype) for _, i in shapes}

    def run() -> None:
        for matrix in matrices:
            torch.nn.functional.linear(inputs[matrix.shape[1]], matrix)

    return sum(2 * rows * o * i for o, i in shapes) / best(run) / 1e9


@torch.no_grad()
def best(run: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds, after one that does not count."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    """Prints the limits as JSON, for a driver that holds no tensors itself."""
    import json
    import sys

    spec = json.loads(sys.argv[1])
    shapes = [(int(o), int(i)) for o, i in spec["shapes"]]
    found = machine_limits(spec["weights_bytes"], shapes, dtype=spec["dtype"])
    print(json.dumps({**found, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
