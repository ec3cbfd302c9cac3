"""What encoding each prompt once is worth: one run, interleaved, ratios.

    .venv/bin/python benchmarks/encode_once.py [--prompt 600] [--samples 8] [--tokens 64] [--repeats 3]

Generation: this engine against transformers' `generate` on the same prompt, number of samples and
forced length. Update: forward and backward of the packed row against the flat rows. The backbone is
data/backbone (`cahl fetch`). Writes benchmarks/results/encode_once.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from cahl_core.config import ModelSettings
from cahl_core.files import write_json
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Engine
from cahl_core.policy.logprobs import packed_rows, row_logprobs

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Measures, prints the ratios, writes the raw seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompt", type=int, default=600)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not (ROOT / "data/backbone/config.json").exists():
        sys.exit("no backbone in data/backbone: run `cahl fetch` first")
    torch.manual_seed(0)
    policy = Policy.load(ROOT / "data/backbone", None, ModelSettings())
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    prompt = torch.randint(3, 40_000, (options.prompt,)).tolist()
    completions = torch.randint(3, 40_000, (options.samples, options.tokens)).tolist()
    arms = {
        "generate_ours": lambda: _ours(policy, prompt, options),
        "generate_transformers": lambda: _theirs(policy, prompt, options),
        "update_packed": lambda: _update(policy, prompt, completions, 10**9),
        "update_flat": lambda: _flat_update(policy, prompt, completions),
    }
    seconds = {name: [] for name in arms}
    for name in arms:  # first calls compile kernels and touch memory
        arms[name]()
    for _ in range(options.repeats):
        for name, run in arms.items():
            seconds[name].append(_timed(run))
    _report(seconds, vars(options), str(policy.dtype))


def _ours(policy: Policy, prompt: list[int], options: argparse.Namespace) -> None:
    engine = Engine(policy)
    engine._ends = set()  # forced length
    engine.generate(
        [prompt], "planner", samples=options.samples, max_tokens=options.tokens, temperature=1.0
    )


def _theirs(policy: Policy, prompt: list[int], options: argparse.Namespace) -> None:
    ids = torch.tensor([prompt])
    policy.causal.config._attn_implementation = "sdpa"
    try:
        with torch.no_grad(), policy.autocast():
            policy.causal.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                num_return_sequences=options.samples,
                min_new_tokens=options.tokens,
                max_new_tokens=options.tokens,
                do_sample=True,
            )
    finally:
        policy.causal.config._attn_implementation = "cahl_packed"


def _update(policy: Policy, prompt: list[int], completions: list[list[int]], budget: int) -> None:
    prompts = [prompt] * len(completions)
    for row in packed_rows(prompts, completions, budget):
        row_logprobs(policy, row, [len(p) for p in prompts]).values.sum().backward()


def _flat_update(policy: Policy, prompt: list[int], completions: list[list[int]]) -> None:
    for completion in completions:  # a row each: the memory of a batch of full rows is not at hand
        _update(policy, prompt, [completion], 10**9)


def _timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _report(seconds: dict[str, list[float]], options: dict[str, int], dtype: str) -> None:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        "generation": median["generate_transformers"] / median["generate_ours"],
        "update": median["update_flat"] / median["update_packed"],
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "dtype": dtype}
    result = {
        "options": options,
        "seconds": seconds,
        "ratios": ratios,
        "versions": versions,
        "machine": machine,
    }
    write_json(ROOT / "benchmarks/results/encode_once.json", result)
    print(json.dumps({"ratios": ratios, "median_seconds": median}, indent=2))


if __name__ == "__main__":
    main()
