"""Two parts of a decoding step on CPUs, products and attention: compiled, by library kernels, plainly.

    .venv/bin/python benchmarks/decoding_parts.py [--threads N]

Products: all of SmolLM2-135M's layers and its head, in float32: `native`, oneDNN's layout and
`torch.nn.functional.linear`. Attention of one layer, from its product on: 64 prompts of unlike lengths
(lognormal) with one sample each, and one prompt of 1,000 tokens with 8: `native`, PyTorch's kernel over
runs of similar length (`prefix_state.runs_of`), and over one run padded to the longest. Best of
``--repeats`` in turn; writes benchmarks/results/decoding_parts.json. Random weights: nothing has to be
fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/versus_trl"))

from record import provenance  # noqa: E402

from cahl_core.files import write_json  # noqa: E402
from cahl_core.policy import native  # noqa: E402
from cahl_core.policy.fused import Heads  # noqa: E402
from cahl_core.policy.linear import FrozenLinear  # noqa: E402
from cahl_core.policy.prefix_state import PrefixState, attend_cpu  # noqa: E402

LAYERS, HIDDEN, INNER, VOCABULARY, HEADS, GROUPS, WIDTH = 30, 576, 1536, 49152, 3, 3, 64
SHAPES = ((960, HIDDEN), (HIDDEN, HIDDEN), (INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))


def main() -> None:
    """Measures both, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if native.kernels() is None:
        sys.exit("the compiled kernels need an x86 processor with AVX2 and a C compiler")
    with torch.no_grad():
        result: dict[str, Any] = {
            **provenance(options.threads),
            "torch": torch.__version__,
            "products_ms": {rows: _products(rows, options.repeats) for rows in (1, 8, 64, 128)},
            "attention_ms": {
                "64 prompts, 1 sample": _attention(_unlike(), 1, options.repeats),
                "1 prompt, 8 samples": _attention([1000], 8, options.repeats),
            },
        }
    write_json(ROOT / "benchmarks/results/decoding_parts.json", result)
    print(json.dumps(result, indent=2))


def _products(rows: int, repeats: int) -> dict[str, float]:
    weights = [torch.randn(shape) for _ in range(LAYERS) for shape in SHAPES]
    weights.append(torch.randn(VOCABULARY, HIDDEN))
    compiled = [FrozenLinear(weight) for weight in weights]
    with mock.patch.object(native, "kernels", lambda: None):
        laid_out = [FrozenLinear(weight) for weight in weights]
    inputs = {n: torch.randn(rows, n) for n in (HIDDEN, INNER)}
    return _best(
        repeats,
        plain=lambda: [torch.nn.functional.linear(inputs[w.shape[1]], w) for w in weights],
        laid_out=lambda: [f(inputs[w.shape[1]]) for f, w in zip(laid_out, weights, strict=True)],
        compiled=lambda: [f(inputs[w.shape[1]]) for f, w in zip(compiled, weights, strict=True)],
    )


def _unlike() -> list[int]:
    drawn = np.random.default_rng(0).lognormal(6.6, 0.6, 64)
    return sorted(int(n) for n in np.clip(drawn, 250, 4000))


def _attention(lengths: list[int], samples: int, repeats: int) -> dict[str, float]:
    state = PrefixState.empty(lengths, samples, 64, torch.device("cpu"), torch.float32)
    for index, length in enumerate(lengths):
        state.write(0, index, *(torch.randn(HEADS, length, WIDTH) for _ in range(2)))
    for _ in range(20):
        state.advance()
    rows = len(lengths) * samples
    shape: Any = SimpleNamespace(
        groups=GROUPS, kv_heads=HEADS, width=WIDTH, scaling=WIDTH**-0.5, eps=1e-5
    )
    turn = torch.randn(2, rows, 1, WIDTH)
    heads = Heads(shape, torch.randn(rows, (GROUPS + 2) * HEADS * WIDTH), *turn, None)
    runs = state.runs

    def attend(cut: list[tuple[int, int, int]]) -> None:
        state.runs = cut
        attend_cpu(state, 0, *heads.turned(), shape.scaling)

    found = _best(
        repeats,
        one_run=lambda: attend([(0, len(lengths), lengths[-1])]),
        runs=lambda: attend(runs),
        compiled=lambda: native.kernels().attend(state, 0, heads),  # type: ignore[union-attr]
    )
    return found | {"longest": lengths[-1], "mean": sum(lengths) / len(lengths), "cut": len(runs)}


def _best(repeats: int, **runs: Callable[[], object]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):  # in turn, so that a busy moment meets all; the first warms up
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: round(min(values[1:]), 3) for name, values in times.items()}


if __name__ == "__main__":
    main()
