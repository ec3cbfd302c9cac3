"""Memory of one packed row's update: predicted from fake tensors, and measured, with and without
gradient checkpointing.

    python benchmarks/update_memory.py --backbone data/backbone --prompt 800 --samples 8 --completion 96

Each arm runs in a process of its own; one JSON line per arm.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from cahl_core.config import ModelSettings
from cahl_core.cost.skeleton import read_config, trace_passes
from cahl_core.memory import make_gauge
from cahl_core.policy.backbone import Policy
from cahl_core.policy.logprobs import packed_rows, row_logprobs


def arm(backbone: Path, prompt: int, samples: int, completion: int, checkpointed: bool) -> None:
    """Prints what one update of one row was predicted to add to memory, and what it added."""
    settings = ModelSettings(max_context=prompt + completion, gradient_checkpointing=checkpointed)
    prompts = [[5 + i % 90 for i in range(prompt)]] * samples
    completions = [[100 + i, *[7] * (completion - 1)] for i in range(samples)]
    (row,) = packed_rows(prompts, completions, 10**9)
    policy = Policy.load(backbone, None, settings)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    passes = trace_passes(read_config(backbone), settings, policy.dtype, row, [prompt] * samples)
    gauge = make_gauge()
    assert gauge is not None
    gauge.reset()
    before = gauge.peak()
    started = time.perf_counter()
    row_logprobs(policy, row, [prompt] * samples).values.mean().backward()
    seconds = time.perf_counter() - started
    gradients = sum(p.numel() * 4 for p in policy.parameters("planner"))
    predicted = (passes.trained_checkpointed if checkpointed else passes.trained) + gradients
    added = gauge.peak() - before
    result = {
        "gradient_checkpointing": checkpointed,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "row_tokens": len(row),
        "predicted_gib": round(predicted / 2**30, 3),
        "measured_gib": round(added / 2**30, 3),
        "seconds": round(seconds, 2),
        "measured_by": gauge.source,
        "torch": torch.__version__,
    }
    print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", type=Path, default=Path("data/backbone"))
    parser.add_argument("--prompt", type=int, default=800)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--completion", type=int, default=96)
    parser.add_argument("--arm", choices=["plain", "checkpointed"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        sizes = options.prompt, options.samples, options.completion
        arm(options.backbone, *sizes, options.arm == "checkpointed")
        return
    for name in ("plain", "checkpointed"):
        subprocess.run([sys.executable, *sys.argv, "--arm", name], check=True)


if __name__ == "__main__":
    main()
