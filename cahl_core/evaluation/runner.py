"""What one model writes for every request, kept chunk by chunk so that an interruption costs one.

A chunk's file is named by the model's digests (weights, settings, code, library versions) and holds
texts only; a later run with the same digests reads it back, so changing the CAHL adapters does not
repeat the base model.
"""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cahl_core
from cahl_core.config import Settings
from cahl_core.errors import DataError
from cahl_core.evaluation.bfcl import BfclItem
from cahl_core.evaluation.checker import Answer
from cahl_core.evaluation.dev import DevRecord, run_dev
from cahl_core.files import digest, read_jsonl, tree_digest, write_jsonl
from cahl_core.progress import progress
from cahl_core.records import ToolTask
from cahl_core.serving.agent import Agent, AgentResult, Request

LIBRARIES = ("torch", "transformers", "peft")
CODE = ("protocol", "policy", "environments", "serving/agent.py", "serving/results.py", "records.py",
        "roles.py", "rewards.py", "success.py", "matching.py", "canonical.py", "call_schema.py",
        "training/rollout.py", "training/credit.py", "training/tree.py", "datasets/references.py",
        "datasets/targets.py", "evaluation/dev.py", "call_metrics.py")  # fmt: skip


def bfcl_requests(items: Sequence[BfclItem]) -> list[Request]:
    """BFCL items as requests; nobody answers their calls."""
    return [Request(i.messages, i.tools, seed=i.id) for i in items]


def answer_of(item: BfclItem, result: AgentResult) -> Answer:
    """What the checkers see: the calls, or ``None`` where any text was outside the grammar."""
    decoded = result.outcome in ("calls", "abstained")
    return Answer(item.id, item.category, result.calls if decoded else None)


def versions() -> dict[str, str]:
    """Versions that the texts depend on, without local build tags."""
    found = {name: importlib.metadata.version(name).partition("+")[0] for name in LIBRARIES}
    return {"cahl": cahl_core.__version__, **found}


def arithmetic(settings: Settings) -> list[str]:
    """Device and number type the weights will have: the texts may differ between them."""
    from cahl_core.policy.backbone import pick_device, pick_dtype

    device = pick_device()
    return [device.type, str(pick_dtype(settings.model.dtype, device)).removeprefix("torch.")]


def run_key(settings: Settings, backbone: Path, adapters: Path | None) -> str:
    """Digest of everything the texts of a model depend on, apart from the requests."""
    package = Path(cahl_core.__file__).parent
    evaluate, train = settings.evaluate, settings.train
    return digest(
        {
            "backbone": tree_digest(backbone),
            "adapters": None if adapters is None else tree_digest(adapters),
            "model": settings.model.model_dump(mode="json"),
            "rollout": [
                train.rewards.model_dump(mode="json"),
                train.max_sub_tasks,
                train.environment,
                train.planner.max_tokens,
                train.executor.max_tokens,
            ],
            "tokens": [evaluate.plan_tokens, evaluate.call_tokens, evaluate.batch_size],
            "code": [_code_digest(package / part) for part in CODE],
            "versions": versions(),
            "numbers": arithmetic(settings),
        }
    )


def _code_digest(path: Path) -> Any:
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    return [[f.name, tree_digest(f)] for f in files]


@dataclass(frozen=True, slots=True)
class Loaded:
    """One model in memory, as the evaluation uses it."""

    agent: Agent
    dev: Callable[[Sequence[ToolTask]], list[DevRecord]]


def load_model(settings: Settings, backbone: Path, adapters: Path | None) -> Loaded:
    """One model with the weights of its roles, greedy; ``adapters=None`` is the bare backbone."""
    from cahl_core.policy.team import load_team

    team = load_team(backbone, adapters, settings.model)
    agent = Agent(
        team.generate,
        team.policy.tokenizer,
        settings.model,
        plan_tokens=settings.evaluate.plan_tokens,
        call_tokens=settings.evaluate.call_tokens,
    )
    return Loaded(agent, lambda tasks: run_dev(team, settings, tasks))


class ModelRun:
    """What one model writes, from the cache where it is there.

    Args:
        load: called at the first missing chunk only.
        cache: directory of this model's `run_key`.
        batch_size: requests per chunk.
    """

    def __init__(self, name: str, load: Callable[[], Loaded], cache: Path, batch_size: int) -> None:
        self.name = name
        self.cache = cache
        self.batch_size = batch_size
        self._load = load
        self._loaded: Loaded | None = None

    def answer(self, requests: Sequence[Request]) -> list[AgentResult]:
        """One result per request, in order."""
        results: list[AgentResult] = []
        with progress(f"evaluate {self.name}: BFCL", len(requests)) as bar:
            for start in range(0, len(requests), self.batch_size):
                chunk = requests[start : start + self.batch_size]
                path = self.cache / f"bfcl-{_chunk_digest(chunk)}.jsonl"
                records = _read_chunk(path, len(chunk))
                if records is None:
                    done = self._model().agent.run(chunk, on_result=lambda *_: bar.advance())
                    records = [r.to_json() for r in done]
                    write_jsonl(path, records)
                else:
                    bar.advance(len(chunk))
                results += [AgentResult.from_json(record) for record in records]
        return results

    def dev(self, tasks: Sequence[ToolTask]) -> list[DevRecord]:
        """One record per held-back task, in order."""
        records: list[DevRecord] = []
        with progress(f"evaluate {self.name}: dev tasks", len(tasks)) as bar:
            for start in range(0, len(tasks), self.batch_size):
                chunk = tasks[start : start + self.batch_size]
                path = self.cache / f"dev-{digest([t.to_json() for t in chunk])}.jsonl"
                done = _read_chunk(path, len(chunk))
                if done is None:
                    done = self._model().dev(chunk)
                    write_jsonl(path, done)
                bar.advance(len(chunk))
                records += done
        return records

    def close(self) -> None:
        """Frees the weights: the next model needs the memory."""
        self._loaded = None
        gc.collect()

    def _model(self) -> Loaded:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded


def _chunk_digest(chunk: Sequence[Request]) -> str:
    return digest(
        [[r.seed, [m.to_json() for m in r.messages], [t.to_json() for t in r.tools]] for r in chunk]
    )


def _read_chunk(path: Path, count: int) -> list[dict[str, Any]] | None:
    if not path.exists():
        return None
    try:
        records = list(read_jsonl(path))
    except DataError:  # damaged from outside; written again
        return None
    return records if len(records) == count else None
