"""How fast this machine is with this backbone: a short measurement, kept until something changes.

Prompts and completions are random tokens of the run's own lengths, through the run's own engine and
update.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cahl_core.config import Settings
from cahl_core.files import digest, read_json, tree_digest, write_json
from cahl_core.policy.backbone import Policy, pick_device
from cahl_core.policy.engine import Engine
from cahl_core.policy.logprobs import packed_rows, row_logprobs

TOKENS = 16  # decoded per sample and measurement
MOST_ROWS = 64  # a step's time is linear in its rows: wider batches are extrapolated


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds on this machine.

    Attributes:
        encode: per prompt token, in generation.
        step, row: of one decoding step, and of each row in it.
        score: per packed token, without gradients.
        train: per packed token, forward and backward.
        merge: of one refresh of the decoding weights.
    """

    encode: float
    step: float
    row: float
    score: float
    train: float
    merge: float


@dataclass(frozen=True, slots=True)
class Shape:
    """What the measurement is about: a typical prompt, samples per prompt, rows of a batch."""

    prompt: int
    rows: int
    samples: int
    row_tokens: int


def calibrate(root: Path, settings: Settings, shape: Shape, *, again: bool = False) -> Speed:
    """Measures, or reads what was measured for the same machine, versions, backbone and shape.

    Raises:
        ModelError: the backbone is missing.
    """
    path = root / ".cahl" / "calibration" / f"{_key(root, settings, shape)}.json"
    if path.exists() and not again:
        return Speed(**read_json(path))
    speed = measure(root / "data/backbone", settings, shape)
    write_json(path, asdict(speed))
    return speed


def measure(backbone: Path, settings: Settings, shape: Shape) -> Speed:
    """Loads the backbone with a random adapter and takes the times."""
    policy = Policy.load(backbone, None, settings.model)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    engine = Engine(policy)
    draw = random.Random(0)
    length = min(shape.prompt, settings.model.max_context - TOKENS)
    prompt = _tokens(draw, policy, length)
    merge, encode = _first(engine, prompt)
    step, row = _decoding(engine, prompt, shape)
    score, train = _passes(policy, draw, shape, prompt, settings)
    return Speed(encode, step, row, score, train, merge)


def _first(engine: Engine, prompt: list[int]) -> tuple[float, float]:
    """Seconds of a refresh, and per encoded token; the first of each only warms up."""
    merge = encode = 0.0
    for _ in range(2):
        engine.weights_changed()
        before = engine.seconds_prefill, engine.seconds_decode, engine.prefilled_tokens
        spent = _seconds(
            lambda: engine.generate([prompt], "planner", max_tokens=1, temperature=1.0)
        )
        encoded = engine.prefilled_tokens - before[2]
        encode = (engine.seconds_prefill - before[0]) / encoded
        merge = spent - (engine.seconds_prefill - before[0]) - (engine.seconds_decode - before[1])
    return max(merge, 0.0), encode


def _decoding(engine: Engine, prompt: list[int], shape: Shape) -> tuple[float, float]:
    """Seconds of a step and of a row: two batches of different width give two equations."""
    found = []
    widest = max(min(shape.rows, MOST_ROWS), 2)
    for rows in (max(widest // 4, 1), widest):
        before = engine.seconds_decode, engine.decoded_tokens
        prompts = [[*prompt[:-1], i + 3] for i in range(-(-rows // shape.samples))]
        seeds = [f"{rows}/{i}" for i in range(len(prompts))]
        done = engine.generate(
            prompts,
            "planner",
            samples=min(rows, shape.samples),
            max_tokens=TOKENS,
            temperature=1.0,
            seeds=seeds,
        )
        steps = max(len(c.token_ids) for group in done for c in group)
        seconds, tokens = engine.seconds_decode - before[0], engine.decoded_tokens - before[1]
        found.append((seconds / steps, tokens / steps))
    (few_seconds, few), (many_seconds, many) = found
    row = max(many_seconds - few_seconds, 0.0) / max(many - few, 1e-9)
    return max(many_seconds - row * many, 0.0), row


def _passes(
    policy: Policy, draw: random.Random, shape: Shape, prompt: list[int], settings: Settings
) -> tuple[float, float]:
    """Seconds per packed token of scoring and of training on a full row."""
    completion = max(shape.row_tokens - len(prompt), shape.samples) // shape.samples
    completions = [_tokens(draw, policy, completion) for _ in range(shape.samples)]
    (packed,) = packed_rows([prompt] * shape.samples, completions, 10**9)
    lengths = [len(prompt)] * shape.samples

    def score() -> None:
        with torch.no_grad():
            row_logprobs(policy, packed, lengths)

    def train() -> None:
        scored = row_logprobs(policy, packed, lengths)
        scored.values.mean().backward()  # type: ignore[no-untyped-call]
        for parameter in policy.parameters("planner"):
            parameter.grad = None

    score()  # kernels for a new shape are made once
    return _seconds(score) / len(packed), _seconds(train) / len(packed)


def _seconds(work: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _tokens(draw: random.Random, policy: Policy, count: int) -> list[int]:
    limit = policy.causal.get_output_embeddings().weight.shape[0]
    return [draw.randrange(3, limit) for _ in range(count)]


def _key(root: Path, settings: Settings, shape: Shape) -> str:
    device = pick_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    machine = [platform.node(), name, os.cpu_count(), torch.get_num_threads()]
    versions = [version(p) for p in ("torch", "transformers", "peft")]
    model = settings.model.model_dump(mode="json")
    return digest([machine, versions, model, tree_digest(root / "data/backbone"), asdict(shape)])
