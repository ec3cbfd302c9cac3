"""Memory: the peak of every phase, what is free, and what running out of it looks like.

On CUDA the device's memory is what counts, else the resident memory of this process. Torch is looked
at only where it is loaded already: stages without a model stay light.
"""

from __future__ import annotations

import gc
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

# What torch's allocators and the libraries below them say; only CUDA's caching allocator has a type.
ALLOCATION_FAILED = (
    "can't allocate memory",  # CPU allocator: malloc returned nothing
    "not enough memory: you tried to allocate",  # the same on other systems
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be allocated, on a CUDA device or on the host."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(said in text for said in ALLOCATION_FAILED)


def release_memory(device: torch.device, error: BaseException | None = None) -> None:
    """Frees what nobody refers to any more, so that a smaller attempt finds the memory.

    The frames that ``error`` still holds, and those of its causes, are emptied: they hold the failed
    attempt's tensors. The caller's own frame is still running and keeps what its names refer to.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


class Gauge(Protocol):
    """Measures the most memory in use since it was last reset, in bytes."""

    source: str

    def reset(self) -> None: ...
    def peak(self) -> int: ...


class CudaGauge:
    """Memory of this process's tensors on the current CUDA device, by torch's own count.

    0 until the process uses the device; asking does not make it.
    """

    source = "cuda: torch.cuda.max_memory_allocated"

    def reset(self) -> None:
        import torch

        if _uses_cuda():
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_allocated() if _uses_cuda() else 0


def _uses_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


class ResidentGauge:
    """Resident memory of this process, by Linux's own high-water mark, which can be reset.

    Raises:
        OSError: this system has no such mark, or refuses to reset it.
    """

    source = "resident memory: VmHWM"

    def __init__(self) -> None:
        self.reset()
        if not self.peak():
            raise OSError("/proc/self/status has no VmHWM")

    def reset(self) -> None:
        global _highest
        _highest = max(_highest, _status("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        return _status("VmHWM")


class SampledGauge:
    """Resident memory of this process, looked at every 20 ms: shorter peaks are missed.

    Raises:
        ImportError: psutil is not there.
    """

    source = "resident memory: sampled every 20 ms"

    def __init__(self, seconds: float = 0.02) -> None:
        import psutil

        self._process = psutil.Process()
        self._seconds = seconds
        self._most = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        self._most = self._now()

    def peak(self) -> int:
        self._most = max(self._most, self._now())
        return self._most

    def _now(self) -> int:
        return int(self._process.memory_info().rss)

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._seconds):
            self.peak()


_highest = 0  # resets lower the mark that getrusage reads too


def highest_resident() -> int:
    """The most resident memory of this process that a reset of the mark has hidden, in bytes."""
    return _highest


def resident_now() -> int:
    """Resident memory of this process in bytes; 0 where the system does not say."""
    if found := _status("VmRSS"):
        return found
    with suppress(ImportError):
        import psutil

        return int(psutil.Process().memory_info().rss)
    return 0


def make_gauge() -> Gauge | None:
    """The best gauge of this machine; ``None`` where memory cannot be measured."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return CudaGauge()
    with suppress(OSError):
        return ResidentGauge()
    with suppress(ImportError):
        return SampledGauge()
    return None


class PhaseMemory:
    """The peak of memory within every phase; phases may be nested, the outer one's includes both.

    Attributes:
        highest: bytes by phase, the most of all its occurrences.
    """

    def __init__(self, make: Callable[[], Gauge | None] = make_gauge) -> None:
        self._make = make
        self._open: list[int] = []
        self._recent: dict[str, int] = {}
        self.highest: dict[str, int] = {}

    @cached_property
    def _gauge(self) -> Gauge | None:
        return self._make()  # at the first phase: by then torch is there if it is needed

    @property
    def source(self) -> str:
        """How it is measured, for people."""
        return self._gauge.source if self._gauge else "not measured: neither /proc nor psutil"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Takes the body's peak into account for ``name``; without a gauge nothing happens."""
        gauge = self._gauge
        if gauge is None:
            yield
            return
        self._close_stretch(gauge)
        self._open.append(0)
        try:
            yield
        finally:
            self._close_stretch(gauge)
            self._note(name, self._open.pop())

    def take(self) -> dict[str, int]:
        """Bytes by phase, the most since this was called last."""
        recent, self._recent = self._recent, {}
        return recent

    def _close_stretch(self, gauge: Gauge) -> None:
        """What was in use until now belongs to every phase that is open."""
        peak = gauge.peak()
        self._open = [max(found, peak) for found in self._open]
        gauge.reset()

    def _note(self, name: str, peak: int) -> None:
        for found in (self._recent, self.highest):
            found[name] = max(found.get(name, 0), peak)


def gib(peaks: dict[str, int]) -> dict[str, float]:
    """Peaks in bytes as metrics: ``memory/<phase>_peak_gib``."""
    return {f"memory/{name}_peak_gib": value / 2**30 for name, value in peaks.items()}


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated: of the CUDA device, or of the host within its control group.

    ``None`` where the system does not say.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    bounds = [b for b in (_available(), _group_bound()) if b is not None]
    return min(bounds) if bounds else None


def _available() -> int | None:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        line = next(x for x in lines if x.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import psutil

        return int(psutil.virtual_memory().available)
    return None


CONTROL_GROUPS = (  # version 2, version 1: the bound and what is in use
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _group_bound() -> int | None:
    """What is left of the container's bound; ``None`` without one."""
    for bound, used in CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # "max": no bound
            left = int(Path(bound).read_text("ascii")) - int(Path(used).read_text("ascii"))
            return max(left, 0)
    return None


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes, 0 where there is none."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0
