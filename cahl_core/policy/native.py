"""Compiled kernels for decoding in float32 on x86 CPUs (`native.c`).

PyTorch's operations cost more than their arithmetic on the few rows of a decoding step: a product
with eight rows runs at a third of the processor's rate, and half of a step is small operations. The C
compiler of the machine makes these kernels for its processor once, in a second; where there is none,
or with CAHL_NATIVE=0, PyTorch's operations serve.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cahl_core.policy import compiled
from cahl_core.policy.prefix_state import PrefixState

if TYPE_CHECKING:
    from cahl_core.policy.fused import Heads

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("native.c")
SWITCH = "CAHL_NATIVE"
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
WIDTHS = 32  # a head's width has to be a multiple: two vectors of the widest processors
KINDS = {"none": 0, "silu": 1, "times": 2, "plus": 3}
POINTER, LONG, INT, FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float


class Kernels:
    """The compiled functions, on float32 tensors of the CPU. They take no part in autograd."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._linear = _function(library, "cahl_linear", [POINTER] * 5 + [LONG] * 3 + [INT] * 2)
        self._norm = _function(library, "cahl_rms_norm", [POINTER] * 3 + [LONG] * 2 + [FLOAT, INT])
        self._attend = _function(
            library,
            "cahl_attend",
            [POINTER] * 5 + [FLOAT] + [POINTER] * 6 + [LONG] * 8 + [FLOAT, INT],
            ctypes.c_int,
        )

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, kind: str, other: Tensor | None = None
    ) -> Tensor:
        """x Wᵀ + bias, and what `KINDS` says is done with it: silu, times ``other``, plus ``other``.

        Args:
            x: ``[T, in]``; weight: ``[out, in]``; bias: ``[out]``; other: ``[T, out]``.

        Returns:
            A new ``[T, out]``.
        """
        x = x.contiguous()
        other = None if other is None else other.contiguous()
        (rows, size), cols = x.shape, len(weight)
        assert weight.is_contiguous() and weight.shape[1] == size
        assert other is None or other.shape == (rows, cols)
        out = x.new_empty(rows, cols)
        self._linear(
            x.data_ptr(), weight.data_ptr(), _address(bias), _address(other), out.data_ptr(),
            rows, size, cols, KINDS[kind], torch.get_num_threads(),
        )  # fmt: skip
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """weight · x / sqrt(mean(x²) + eps) over the last dimension; ``weight`` may be longer."""
        x = x.contiguous()
        size = x.shape[-1]
        out = torch.empty_like(x)
        self._norm(
            x.data_ptr(), weight.data_ptr(), out.data_ptr(),
            x.numel() // size, size, eps, torch.get_num_threads(),
        )  # fmt: skip
        return out

    @staticmethod
    def attends(width: int) -> bool:
        """Whether `attend` takes heads of this width."""
        return width % WIDTHS == 0

    def attend(self, state: PrefixState, layer: int, heads: Heads) -> Tensor:
        """`prefix_state.attend_cpu` from a layer's product on: norms, positions, the new keys and values.

        Prompts of any lengths attend without padding.

        Returns:
            ``[N, g * H * D]``.

        Raises:
            MemoryError: there is none for what the parts of the attention leave to be added up.
        """
        model, keys, own = heads.model, state.keys[layer], state.suffix_keys[layer]
        prompts, kv_heads, longest, width = keys.shape
        # outside of these the kernel would write to memory that is not its own
        assert 0 < state.length <= own.shape[2] and self.attends(width)
        assert len(heads.qkv) == len(heads.cosine) == len(own) == prompts * state.samples
        assert keys.is_contiguous() and own.is_contiguous() and heads.qkv.is_contiguous()
        out = heads.qkv.new_empty(len(heads.qkv), model.groups * kv_heads * width)
        query_norm, key_norm = heads.norms or (None, None)
        short = self._attend(
            heads.qkv.data_ptr(), heads.cosine.data_ptr(), heads.sine.data_ptr(),
            _address(query_norm), _address(key_norm), model.eps,
            keys.data_ptr(), state.values[layer].data_ptr(), state.ends.data_ptr(),
            own.data_ptr(), state.suffix_values[layer].data_ptr(), out.data_ptr(),
            prompts, state.samples, model.groups, kv_heads, width, longest, own.shape[2],
            state.length, model.scaling, torch.get_num_threads(),
        )  # fmt: skip
        if short:
            raise MemoryError(f"one decoding step's attention of {len(heads.qkv)} rows")
        return out


def serves(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The kernels, where tensors of this dtype and device have any."""
    if dtype != torch.float32 or device.type != "cpu":
        return None
    return kernels()


@functools.cache
def kernels() -> Kernels | None:
    """The kernels of this machine, compiled when asked for the first time; ``None`` where it has none."""
    known = sys.platform == "linux" and platform.machine() == "x86_64"
    if os.environ.get(SWITCH) == "0" or not known:
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    try:
        compiler = compiled.compiler()
        if compiler is not None:
            return load(compiler)
        log.info("no C compiler (gcc, cc or $CC): decoding in float32 takes PyTorch's operations")
        return None
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning(
            "%s could not be compiled or loaded; decoding in float32 is slower without it (%s=0 says "
            "that this is meant): %s", SOURCE.name, SWITCH, said.strip()[-500:],
        )  # fmt: skip
        return None


def load(compiler: Sequence[str], flags: Sequence[str] = FLAGS) -> Kernels:
    """The kernels as this compiler makes them.

    Raises:
        subprocess.CalledProcessError: it failed.
        OSError: what it made cannot be loaded.
    """
    return Kernels(compiled.library(SOURCE, compiler, flags))


def _function(library: ctypes.CDLL, name: str, arguments: list[Any], result: Any = None) -> Any:
    function = library[name]
    function.argtypes, function.restype = arguments, result
    return function


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
