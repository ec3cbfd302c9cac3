"""Rollout trees as JSON records on disk: one file per traced step, one line per tree.

A step's file appears whole or not at all, and a resumed run writes it anew, so no tree is there
twice. Reading streams and names the line of what does not hold.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cahl_core.config import Settings
from cahl_core.errors import DataError, StageInputError
from cahl_core.files import atomic_file
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, ToolCall, ToolTask
from cahl_core.traces.schema import (
    VERSION,
    CallTrace,
    FailureTrace,
    PlanTrace,
    SampledTrace,
    SampleTrace,
    SubTaskTrace,
    TaskTrace,
    TraceRecord,
)

if TYPE_CHECKING:
    from cahl_core.rewards import ExecutorReward, PlannerReward
    from cahl_core.training.tree import PlanNode, Sample, SubTaskNode, Tree

DEFAULT_FOLDER = Path(".cahl/traces/train")
FILE = re.compile(r"step-(\d{6,})\.jsonl")


def trace_record(
    tree: Tree, step: int, settings: Settings, tokenizer: Any | None = None
) -> dict[str, Any]:
    """One tree as a `TraceRecord` of JSON values only; it never fails for what a model wrote.

    Args:
        step: training step, from 0.
        tokenizer: decodes the prompts into the record; ``None`` leaves them out (they are most of
            a record's length).
    """
    first = next((p.sample for p in tree.plans if p.sample is not None), None)
    record: TraceRecord = {
        "version": VERSION,
        "arm": settings.train.arm,
        "seed": settings.seed,
        "step": step,
        "task": _task(tree.task),
        "weights": settings.train.rewards.model_dump(mode="json"),
        "prompt": _decoded(first, tokenizer),
        "plans": [_plan(node, tokenizer) for node in tree.plans],
    }
    return cast(dict[str, Any], plain_json(record))


def _task(task: ToolTask) -> TaskTrace:
    from cahl_core.datasets.targets import resolved_gold

    return {
        "id": task.id,
        "source": task.source,
        "messages": [m.to_json() for m in task.messages],
        "tools": [t.name for t in task.tools],
        "gold": _calls(task.calls),
        "resolved": _calls(resolved_gold(task)),
    }


def _plan(node: PlanNode, tokenizer: Any | None) -> PlanTrace:
    sample = None
    if node.sample is not None:
        sample = _sampled(node.sample, _failure(node.plan), node.reward)
    return {
        "sample": sample,
        "plan": node.plan.to_json() if isinstance(node.plan, Plan) else None,
        "sub_tasks": [_sub_task(sub, tokenizer) for sub in node.nodes],
    }


def _sub_task(node: SubTaskNode, tokenizer: Any | None) -> SubTaskTrace:
    first = node.samples[0] if node.samples else None
    return {
        "task": node.sub_task.task,
        "tool": node.sub_task.tool,
        "arguments": node.sub_task.arguments,
        "column": node.column,
        "gold": None if node.gold is None else _calls(node.gold),
        "prompt": _decoded(first, tokenizer),
        "samples": [_sample(node, g) for g in range(len(node.samples))],
    }


def _sample(node: SubTaskNode, g: int) -> SampleTrace:
    execution = node.executions[g] if node.executions else None
    reward = node.rewards[g] if node.rewards else None
    common = _sampled(node.samples[g], _failure(execution), reward)
    return {
        **common,
        "calls": _calls(node.calls[g]) if node.calls else [],
        "response": execution.response if isinstance(execution, Execution) else None,
        "result": node.results[g] if node.results else None,
    }


def _sampled(
    sample: Sample, failure: FailureTrace | None, reward: ExecutorReward | PlannerReward | None
) -> SampledTrace:
    done = sample.completion
    return {
        "text": done.text,
        "prompt_tokens": len(sample.prompt),
        "tokens": len(done.token_ids),
        "finished": done.finished,
        "failure": failure,
        "reward": sample.reward,
        "advantage": sample.advantage,
        "in_signal": sample.in_signal_group,
        "void": sample.void,
        "parts": None if reward is None else asdict(reward),
        "breakdown": None,
    }


def _failure(parsed: object) -> FailureTrace | None:
    if isinstance(parsed, ParseFailure):
        return {"reason": parsed.reason, "position": parsed.position}
    return None


def _calls(calls: Sequence[ToolCall]) -> list[CallTrace]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _decoded(sample: Sample | None, tokenizer: Any | None) -> str | None:
    if sample is None or tokenizer is None:
        return None
    return str(tokenizer.decode(sample.prompt))


def plain_json(value: Any) -> Any:
    """``value`` with what JSON cannot hold as text: an environment may return anything.

    >>> plain_json({"a": (float("nan"), {1})})
    {'a': ['nan', '{1}']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(inner) for inner in value]
    return str(value)


class TraceWriter:
    """Writes the trees of traced steps (``train.trace``) to ``folder/step-000012.jsonl``.

    Args:
        tokenizer: given, records hold the prompts as text.
    """

    def __init__(self, folder: Path, tokenizer: Any | None = None) -> None:
        self.folder = folder
        self.tokenizer = tokenizer

    def write(self, step: int, trees: Sequence[Tree], settings: Settings) -> list[dict[str, Any]]:
        """Writes the step's file atomically, over one that is there; returns its records.

        Keeps the first ``train.trace.trees`` trees of every ``train.trace.every``-th step; of
        the other steps nothing is written and nothing returned.
        """
        trace = settings.train.trace
        if not trace.every or step % trace.every:
            return []
        records = [
            trace_record(tree, step, settings, self.tokenizer) for tree in trees[: trace.trees]
        ]
        with atomic_file(self.folder / f"step-{step:06d}.jsonl") as path:
            # half a surrogate pair from a record's text becomes its JSON escape
            with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines(_line(record) for record in records)
        return records

    def discard_from(self, step: int) -> int:
        """Removes the files of ``step`` and later ones, which a run that starts there writes anew.

        Returns:
            The number of files removed: 0 where there is nothing to remove.
        """
        late = [path for path, number in step_files(self.folder) if number >= step]
        for path in late:
            path.unlink()
        return len(late)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def step_files(folder: Path) -> list[tuple[Path, int]]:
    """The trace files of a folder with their steps, in the order of the steps."""
    found = ((path, FILE.fullmatch(path.name)) for path in folder.glob("step-*.jsonl"))
    return sorted(((p, int(m[1])) for p, m in found if m), key=lambda pair: pair[1])


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def read_traces(
    path: Path,
    *,
    steps: Collection[int] | None = None,
    task: str | None = None,
    source: str | None = None,
    warn: Callable[[str], None] = _warn,
) -> Iterator[dict[str, Any]]:
    """Yields the records of a trace file, a folder of them, or a project, in the order of steps.

    Args:
        steps: only these; files of other steps are not opened. task: only this task's trees.
        source: only trees of tasks from this source.
        warn: is told about a broken last line, which a killed run may leave.

    Raises:
        StageInputError: there are no traces at ``path``.
        DataError: a line is not JSON or not a trace record; names file and line.
    """
    for file in _files(Path(path), steps):
        for record in _read_file(file, warn):
            if steps is not None and record["step"] not in steps:
                continue
            if task is not None and record["task"]["id"] != task:
                continue
            if source is None or record["task"]["source"] == source:
                yield record


def _files(path: Path, steps: Collection[int] | None) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / DEFAULT_FOLDER if (path / DEFAULT_FOLDER).is_dir() else path
    found = step_files(folder)
    if not found:
        what = "has no step-*.jsonl" if folder.is_dir() else "does not exist"
        raise StageInputError(
            f"{folder} {what}",
            "`cahl train` writes traces where train.trace.every is not 0; give a folder or a file",
        )
    return [file for file, number in found if steps is None or number in steps]


def _read_file(path: Path, warn: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                if not line.endswith(b"\n"):
                    warn(f"{where}: the last line is broken off and was left out")
                    return
                raise DataError(f"{where}: not JSON: {error}") from error
            yield _checked(value, where)


def _checked(value: Any, where: str) -> dict[str, Any]:
    from pydantic import ValidationError

    hint = "traces are the step-*.jsonl files that `cahl train` writes"
    if not isinstance(value, dict) or "version" not in value:
        raise DataError(f"{where}: not a trace record: no 'version'", hint)
    if value["version"] != VERSION:
        raise DataError(
            f"{where}: trace version {value['version']!r}, this program reads {VERSION}",
            "read it with the program that wrote it",
        )
    try:
        _validator()(value)
    except ValidationError as error:
        first = next(islice(error.errors(), 1))
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: not a trace record: {place}: {first['msg']}", hint) from error
    return value


@lru_cache(maxsize=1)
def _validator() -> Callable[[Any], Any]:
    from pydantic import TypeAdapter

    adapter = TypeAdapter(TraceRecord)
    return lambda value: adapter.validate_python(value, strict=True)
