"""What one model writes for every request, kept chunk by chunk so that an interruption costs one.

A chunk's file is named by the model's digests (weights, settings, code, library versions) and holds
texts only; a later run with the same digests reads it back, so changing the CAHL adapters does not
repeat the base model.
"""

from __future__ import annotations

import gc
import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cahl_core
from cahl_core.config import Settings
from cahl_core.errors import DataError
from cahl_core.evaluation.bfcl import BfclItem
from cahl_core.evaluation.checker import Answer
from cahl_core.files import digest, read_jsonl, tree_digest, write_jsonl
from cahl_core.progress import progress
from cahl_core.serving.agent import Agent, AgentResult, Request

LIBRARIES = ("torch", "transformers", "peft")
CODE = ("protocol", "policy", "serving/agent.py", "records.py")


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


def run_key(settings: Settings, backbone: Path, adapters: Path | None) -> str:
    """Digest of everything the texts of a model depend on, apart from the requests."""
    package = Path(cahl_core.__file__).parent
    evaluate = settings.evaluate
    return digest(
        {
            "backbone": tree_digest(backbone),
            "adapters": None if adapters is None else tree_digest(adapters),
            "model": settings.model.model_dump(mode="json"),
            "tokens": [evaluate.plan_tokens, evaluate.call_tokens, evaluate.batch_size],
            "code": [_code_digest(package / part) for part in CODE],
            "versions": versions(),
        }
    )


def _code_digest(path: Path) -> Any:
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    return [[f.name, tree_digest(f)] for f in files]


def build_agent(settings: Settings, backbone: Path, adapters: Path | None) -> Agent:
    """Policy, engine and agent for one model of the evaluation, greedy."""
    from cahl_core.policy.backbone import Policy
    from cahl_core.policy.engine import Engine

    policy = Policy.load(backbone, adapters, settings.model)
    return Agent(
        Engine(policy).generate,
        policy.tokenizer,
        settings.model,
        plan_tokens=settings.evaluate.plan_tokens,
        call_tokens=settings.evaluate.call_tokens,
    )


def run_model(
    name: str,
    requests: Sequence[Request],
    make_agent: Callable[[], Agent],
    cache: Path,
    batch_size: int,
) -> list[AgentResult]:
    """One result per request; chunks already in ``cache`` are read, the others written there.

    Args:
        name: for the progress bar.
        make_agent: called at the first missing chunk only.
        cache: directory of this model's `run_key`.
    """
    results: list[AgentResult] = []
    agent: Agent | None = None
    with progress(f"evaluate {name}", len(requests)) as bar:
        for start in range(0, len(requests), batch_size):
            chunk = requests[start : start + batch_size]
            path = cache / f"{_chunk_digest(chunk)}.jsonl"
            done = _read_chunk(path, len(chunk))
            if done is None:
                agent = agent or make_agent()
                done = agent.run(chunk, on_finished=bar.advance)
                write_jsonl(path, (r.to_json() for r in done))
            else:
                bar.advance(len(chunk))
            results += done
    del agent
    gc.collect()  # the next model needs the memory
    return results


def _chunk_digest(chunk: Sequence[Request]) -> str:
    return digest(
        [[r.seed, [m.to_json() for m in r.messages], [t.to_json() for t in r.tools]] for r in chunk]
    )


def _read_chunk(path: Path, count: int) -> list[AgentResult] | None:
    if not path.exists():
        return None
    try:
        results = [AgentResult.from_json(record) for record in read_jsonl(path)]
    except (DataError, KeyError, TypeError):  # not ours or damaged: write it again
        return None
    return results if len(results) == count else None
