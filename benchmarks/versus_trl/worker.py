"""What the workers of all arms share: a line of JSON in, a line out, and a meter of phases.

Imported in both environments: standard library and torch only.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "vllm")


class Channel:
    """The driver's end of a worker: whatever else the process prints goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def receive(self) -> dict[str, Any]:
        """The next command; the end of the driver reads as ``quit``."""
        line = sys.stdin.readline()
        return json.loads(line) if line else {"do": "quit"}

    def send(self, message: dict[str, Any]) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()


class Meter:
    """Seconds, fed tokens and peak memory of a step by phase; an inner phase interrupts the outer.

    Seconds of the processor (all threads) beside those of the clock tell a busy machine from slow code.
    Memory is the process's resident set (VmHWM, reset at every change of phase), on CUDA the
    allocator's peak.
    """

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._since = self._cpu_since = 0.0
        self.clear()

    def clear(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, int] = defaultdict(int)
        self.peak: dict[str, int] = defaultdict(int)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._charge()
        self._stack.append(name)
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    def _charge(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        if self._stack:
            name = self._stack[-1]
            self.seconds[name] += now - self._since
            self.cpu[name] += cpu - self._cpu_since
            self.peak[name] = max(self.peak[name], peak_memory())
        reset_peak()
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def fed(self, count: int) -> None:
        """Counts tokens that enter the backbone."""
        self.tokens[self._stack[-1] if self._stack else "outside"] += count

    def report(self) -> dict[str, Any]:
        return {
            "seconds": dict(self.seconds),
            "cpu_seconds": dict(self.cpu),
            "total": sum(self.seconds.values()),
            "fed": dict(self.tokens),
            "peak": dict(self.peak),
        }


def count_tokens(decoder: type, meter: Meter) -> None:
    """Has every forward of the backbone's class report how many tokens it was fed."""
    original: Callable[..., Any] = decoder.forward  # type: ignore[attr-defined]

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        fed = kwargs.get("input_ids", args[0] if args else None)
        if fed is not None:
            meter.fed(fed.numel())
        elif kwargs.get("inputs_embeds") is not None:
            meter.fed(kwargs["inputs_embeds"].shape[:-1].numel())
        return original(self, *args, **kwargs)

    decoder.forward = forward  # type: ignore[attr-defined]


def peak_memory() -> int:
    """Bytes at the highest point since `reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    """Starts a new peak; where the system does not allow it, peaks only grow."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def versions() -> dict[str, str]:
    """The versions that this environment has, of the packages that matter."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def has_bf16() -> bool:
    """Whether the processor (or card) multiplies in bfloat16, as ``model.dtype: auto`` asks."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
