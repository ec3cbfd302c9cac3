"""Where a training step's time goes, and how far each part is from what the machine allows.

    .venv/bin/python benchmarks/profile_step.py [--prompt 1000] [--samples 8] [--tokens 64] [--repeats 5]

Times one decoding step, the prefill and the update; measures memory bandwidth and matrix-multiply peak
before and after, with the same threads; profiles decoding and update by class of operation. Writes
benchmarks/results/profile_step.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/versus_trl"))

import torch  # noqa: E402
from arms import make_adapter  # noqa: E402
from limits import machine_limits  # noqa: E402
from ours import Ours  # noqa: E402
from record import model_shapes, provenance  # noqa: E402
from worker import versions  # noqa: E402
from workload import batches  # noqa: E402

from cahl_core.files import write_json  # noqa: E402
from cahl_core.policy.native import Kernels  # noqa: E402
from cahl_core.training.tree import Sample  # noqa: E402
from cahl_core.training.update import update  # noqa: E402

NAMES = {"linear": "native linear", "rms_norm": "native norm", "attend": "native attention"}
CLASSES = (  # the first that matches names an operation's class
    ("attention", ("scaled_dot_product", "flash_attention", "attention", "cahl")),
    ("matrix products", ("mm", "linear", "matmul", "gemm", "einsum", "mv")),
    ("sampling and softmax", ("softmax", "cumsum", "searchsorted", "multinomial", "argmax", "exp",
                              "logsumexp", "sort", "topk", "rand")),
    ("optimizer", ("adam", "optimizer", "_foreach", "clip_grad")),
    ("data movement", ("copy", "cat", "index", "gather", "scatter", "slice", "select", "view",
                       "transpose", "stack", "fill", "zero", "empty", "expand", "clone", "narrow",
                       "as_strided", "unbind", "split", "chunk", "permute", "squeeze", "reshape",
                       "contiguous", "_to_copy", "repeat", "resize", "item", "detach", "alias")),
    ("norms and element-wise", ("norm", "mul", "add", "silu", "gelu", "rsqrt", "pow", "mean", "neg",
                                "sub", "div", "sigmoid", "where", "clamp", "sum", "masked", "cos",
                                "sin", "square", "log", "max", "min", "lt", "gt", "eq", "ne",
                                "bitwise", "accumulate")),
)  # fmt: skip


def main() -> None:
    """Measures, prints the summary, writes the result."""
    options = _options()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        make_adapter(options.backbone, adapter)
        arm = Ours(
            {
                "backbone": str(options.backbone), "adapter": str(adapter), "dtype": options.dtype,
                "loss": "grpo", "learning_rate": 1e-5,
                "point": {k: getattr(options, k) for k in ("prompt", "samples", "tokens")},
            }
        )  # fmt: skip
        result = {**provenance(options.threads), "versions": versions(), **measure(arm, options)}
    write_json(options.out, result)
    print(json.dumps({k: result[k] for k in ("distance", "profile")}, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("prompt", 1000), ("samples", 8), ("tokens", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--backbone", type=Path, default=ROOT / "data/backbone")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/profile_step.json")
    return parser.parse_args()


def measure(arm: Ours, options: argparse.Namespace) -> dict[str, Any]:
    """Limits, times, distances and profiles of one point."""
    layers, head = model_shapes(options.backbone)
    low = arm.policy.dtype == torch.bfloat16
    size = 2 if low else 4
    weights = sum(o * i for o, i in [*layers, head]) * size
    dtype = "bfloat16" if low else "float32"

    def limits() -> dict[str, float]:
        return machine_limits(weights, [*layers, head], dtype=dtype)

    before = limits()
    generate(arm, options.tokens), update_once(arm)  # the first calls compile kernels
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeats):  # interleaved, so that a busy moment meets all of them
        times["one_token"].append(timed(lambda: generate(arm, 1)))
        times["all_tokens"].append(timed(lambda: generate(arm, options.tokens)))
        times["update"].append(timed(lambda: update_once(arm)))
    after = limits()
    peaks = {name: max(value, after[name]) for name, value in before.items()}
    return {
        "point": {k: getattr(options, k) for k in ("prompt", "samples", "tokens")},
        "dtype": dtype,
        "limits": {"before": before, "after": after},
        "times": times,
        "distance": distance(arm, times, peaks, weights, options),
        "profile": {"decoding": _profile_decoding(arm, options), "update": _profile_update(arm)},
    }


def distance(
    arm: Ours,
    times: dict[str, list[float]],
    peaks: dict[str, float],
    weights: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measured seconds beside what bandwidth or multiplications alone would take.

    Decoding: every weight is read once per step, the prompt's keys and values once, each sample's own
    once. Prefill and update: the multiplications of matrices, attention and head; the update's
    backward pass needs the gradients of inputs and of the adapters only, the weights being frozen.
    """
    low = "matmul_low_model" if "matmul_low_model" in peaks else "matmul_fp32_model"
    middle = {name: statistics.median(values) for name, values in times.items()}
    step = (middle["all_tokens"] - middle["one_token"]) / (options.tokens - 1)
    cache = _cache_bytes(arm, options)
    fastest = max(peaks["bandwidth_weights"], peaks["bandwidth_large"])
    reading = (weights + cache) / fastest / 1e9
    flops = _flops(arm, options)
    found = {
        "decoding step": {"seconds": step, "limit": reading, "bytes": weights + cache},
        "prefill": {"seconds": middle["one_token"], "flops": flops["prefill"]},
        "update": {"seconds": middle["update"], "flops": flops["update"]},
    }
    for name in ("prefill", "update"):
        found[name]["limit"] = found[name]["flops"] / peaks[low] / 1e9
    for entry in found.values():
        entry["times_the_limit"] = entry["seconds"] / entry["limit"]
    found["decoding step"]["arithmetic"] = flops["decoding"] / peaks[low] / 1e9
    return found


def _cache_bytes(arm: Ours, options: argparse.Namespace) -> float:
    config = arm.policy.causal.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 if arm.policy.dtype == torch.bfloat16 else 4
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * size
    return token * (options.prompt + options.samples * options.tokens / 2)


def _flops(arm: Ours, options: argparse.Namespace) -> dict[str, float]:
    config = arm.policy.causal.config
    layers, head = model_shapes(options.backbone)
    rank = arm.settings.model.lora.rank
    matrices = sum(2 * o * i for o, i in layers)
    adapters = sum(2 * rank * (o + i) for o, i in layers)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    pair = 4 * config.num_hidden_layers * config.num_attention_heads * width
    completion = options.samples * options.tokens
    tokens = options.prompt + completion
    pairs = options.prompt**2 / 2 + completion * (options.prompt + options.tokens / 2)
    top = 2 * head[0] * head[1]
    return {
        "decoding": options.samples * (matrices + top + pair * options.prompt),
        "prefill": options.prompt * matrices + pair * options.prompt**2 / 2 + top,
        # forward once, backward once through frozen matrices, adapters backward twice
        "update": tokens * (2 * matrices + 3 * adapters) + 3 * pair * pairs + 2 * top * completion,
    }


def generate(arm: Ours, tokens: int) -> list[Any]:
    batch = batches(arm.point, arm.vocabulary, 0)["executor"]
    return arm.engine.generate(
        batch.prompts, "executor", samples=batch.samples, max_tokens=tokens, temperature=1.0
    )


def update_once(arm: Ours) -> None:
    batch = batches(arm.point, arm.vocabulary, 0)["executor"]
    generator = torch.Generator().manual_seed(0)
    samples = []
    from cahl_core.policy.engine import Completion

    for i in range(batch.rows):
        drawn = torch.randint(100, arm.vocabulary, (batch.tokens,), generator=generator).tolist()
        completion = Completion(drawn, [0.0] * batch.tokens, "", False)
        samples.append(Sample(batch.prompts[0], completion, advantage=float(-1) ** i))
    update({"executor": samples}, arm.trainees, arm.settings, 0, arm.workers, 10**6)


def timed(run: Any) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _profile_decoding(arm: Ours, options: argparse.Namespace) -> dict[str, Any]:
    """Per token, a run of one token taken off a run of all."""
    whole, first = (
        _profiled(lambda: generate(arm, options.tokens)),
        _profiled(lambda: generate(arm, 1)),
    )
    steps = options.tokens - 1
    wall = (whole["wall"] - first["wall"]) / steps
    names = whole["operations"].keys() | first["operations"].keys()
    operations = {
        n: (whole["operations"].get(n, 0.0) - first["operations"].get(n, 0.0)) / steps
        for n in names
    }
    return _classes(wall, operations)


def _profile_update(arm: Ours) -> dict[str, Any]:
    found = _profiled(lambda: update_once(arm))
    return _classes(found["wall"], found["operations"])


def _profiled(run: Any) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * cuda
    with (
        _compiled_kernels_named(),
        torch.profiler.profile(activities=kinds, acc_events=True) as profile,
    ):
        wall = timed(run)
    operations: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        operations[event.key] += spent / 1e6
    return {"wall": wall, "operations": dict(operations)}


@contextmanager
def _compiled_kernels_named() -> Iterator[None]:
    """The profiler sees PyTorch's operations; what is compiled by us has to say that it runs."""

    def named(name: str) -> Any:
        real = getattr(Kernels, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            with torch.profiler.record_function(NAMES[name]):
                return real(*args, **kwargs)

        return mock.patch.object(Kernels, name, call)

    with ExitStack() as stack:
        for name in NAMES:
            stack.enter_context(named(name))
        yield


def _classes(wall: float, operations: dict[str, float]) -> dict[str, Any]:
    """Seconds by class; Python and dispatch are what no operation accounts for."""
    seconds: dict[str, float] = defaultdict(float)
    for name, spent in operations.items():
        seconds[_class_of(name)] += spent
    seconds["Python and dispatch"] = max(0.0, wall - sum(operations.values()))
    longest = sorted(operations.items(), key=lambda item: -item[1])[:15]
    return {"wall": wall, "seconds": dict(seconds), "longest": dict(longest)}


def _class_of(operation: str) -> str:
    name = operation.lower()
    for label, parts in CLASSES:
        if any(part in name for part in parts):
            return label
    return "other operations"


if __name__ == "__main__":
    main()
