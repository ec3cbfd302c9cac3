"""Worlds of several processes for tests: forked from a server that has imported everything once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

UNIT = Path(__file__).resolve().parents[1] / "unit"
sys.path.insert(0, str(UNIT))

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["accelerate", "peft", "transformers", "cahl_core.training.joint"])
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def run_world(
    job: Callable[..., Any],
    count: int,
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> list[Any]:
    """What ``job(*arguments)`` returned, or raised, in each of ``count`` processes, by rank.

    Nobody ends the others when one of them fails, as a launcher would. A process that is not done in
    ``timeout`` seconds is killed and gives a `TimeoutError`; one that died without a word, its exit code.
    """
    port = _free_port()
    started = []
    for rank in range(count):
        variables = dict(environment or {})
        if count > 1:
            variables |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
                "LOCAL_WORLD_SIZE": str(count),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        mine, theirs = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(target=_child, args=(theirs, variables, job, arguments))
        process.start()
        theirs.close()
        started.append((process, mine))
    deadline = time.monotonic() + timeout
    return [_result(process, mine, deadline) for process, mine in started]


def _child(
    out: Connection, variables: dict[str, str], job: Callable[..., Any], arguments: Any
) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        result = job(*arguments)
    except BaseException as error:
        traceback.print_exc()
        result = RuntimeError(f"{type(error).__name__}: {error}")
    out.send(result)
    out.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a peer that is gone would only be waited for


def _result(process: Any, mine: Connection, deadline: float) -> Any:
    if not mine.poll(max(0.0, deadline - time.monotonic())):
        process.kill()
        process.join()
        return TimeoutError("still running")
    try:
        return mine.recv()
    except EOFError:
        process.join()
        return process.exitcode
    finally:
        process.join(10)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def same_rows(one: Any, two: Any) -> None:
    for mine, theirs in zip(one, two, strict=True):
        timed = {k for k in mine if "second" in k or "memory" in k} | {
            # each process packs its own share and keeps its own largest gap
            k for k in mine if k.endswith(("packed_tokens", "_max", "encoded_prompt_tokens"))
        }  # fmt: skip
        assert {k: v for k, v in theirs.items() if k not in timed} == pytest.approx(
            {k: v for k, v in mine.items() if k not in timed}, rel=1e-3, abs=1e-4
        )


def same_weights(one: Path, two: Path) -> None:
    """Of every file of weights below the first directory."""
    from safetensors.torch import load_file

    files = sorted(one.rglob("*.safetensors"))
    assert files
    for file in files:
        first, second = load_file(file), load_file(two / file.relative_to(one))
        assert set(first) == set(second)
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-5)
