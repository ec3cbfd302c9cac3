"""Two parts of a decoding step on CPUs against the plain way: laid-out products, attention in runs.

    .venv/bin/python benchmarks/decoding_parts.py [--threads N]

Products: all of SmolLM2-135M's layers and its head, `FrozenLinear` against `torch.nn.functional.linear`.
Attention: one layer over 64 prompts of unlike lengths (lognormal), in runs of similar length
(`prefix_state.runs_of`) against one run padded to the longest. Best of ``--repeats`` in turn; writes
benchmarks/results/decoding_parts.json. Random weights: nothing has to be fetched.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/versus_trl"))

from record import provenance  # noqa: E402

from cahl_core.files import write_json  # noqa: E402
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
    with torch.no_grad():
        result: dict[str, Any] = {
            **provenance(options.threads),
            "torch": torch.__version__,
            "products_ms": {rows: _products(rows, options.repeats) for rows in (1, 8, 64, 256)},
            "attention_ms": _attention(options.repeats),
        }
    write_json(ROOT / "benchmarks/results/decoding_parts.json", result)
    print(json.dumps(result, indent=2))


def _products(rows: int, repeats: int) -> dict[str, float]:
    weights = [torch.randn(shape) for _ in range(LAYERS) for shape in SHAPES]
    weights.append(torch.randn(VOCABULARY, HIDDEN))
    laid_out = [FrozenLinear(weight) for weight in weights]
    inputs = {n: torch.randn(rows, n) for n in (HIDDEN, INNER)}
    return _best(
        repeats,
        plain=lambda: [torch.nn.functional.linear(inputs[w.shape[1]], w) for w in weights],
        laid_out=lambda: [f(inputs[w.shape[1]]) for f, w in zip(laid_out, weights, strict=True)],
    )


def _attention(repeats: int) -> dict[str, float]:
    drawn = np.random.default_rng(0).lognormal(6.6, 0.6, 64)
    lengths = sorted(int(n) for n in np.clip(drawn, 250, 4000))
    state = PrefixState.empty(lengths, 1, 64, torch.device("cpu"), torch.float32)
    for index, length in enumerate(lengths):
        state.write(0, index, *(torch.randn(HEADS, length, WIDTH) for _ in range(2)))
    for _ in range(20):
        state.advance()
    query = torch.randn(len(lengths), GROUPS, HEADS, WIDTH)
    key = torch.randn(len(lengths), HEADS, WIDTH)
    runs = state.runs

    def attend(cut: list[tuple[int, int, int]]) -> None:
        state.runs = cut
        attend_cpu(state, 0, query, key, key, WIDTH**-0.5)

    whole = [(0, len(lengths), lengths[-1])]
    found = _best(repeats, one_run=lambda: attend(whole), runs=lambda: attend(runs))
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
