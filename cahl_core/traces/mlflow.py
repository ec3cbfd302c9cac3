"""A rollout tree as one MLflow trace: task → plans → sub-tasks → samples, linked with the run.

Spans carry what was written as outputs and rewards, advantages and verdicts as attributes; their
times are those of logging, not of sampling. A failure of MLflow is returned as a sentence: it must
never end training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHARS = 2000  # of a text in a span; the whole text is in the trace's own record


def log_trace(
    record: Mapping[str, Any], run_id: str | None, experiment_id: str | None = None
) -> str | None:
    """Sends one `record.trace_record` to MLflow; returns what went wrong, or ``None``.

    Args:
        run_id: the run whose page lists the trace; ``None`` links it with no run.
        experiment_id: where it goes; ``None`` takes mlflow's active experiment.
    """
    try:
        _send(record, run_id, experiment_id)
    except Exception as error:  # whatever it is, a picture of the rollout is not worth the run
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return f"the trace of task '{record['task']['id']}' was not sent to MLflow: {reason[0]}"
    return None


def _send(record: Mapping[str, Any], run_id: str | None, experiment_id: str | None) -> None:
    import mlflow
    from mlflow.entities import SpanType
    from mlflow.tracing.constant import TraceMetadataKey

    task = record["task"]
    root = mlflow.start_span_no_context(
        f"step {record['step']}: {task['id']}",
        span_type=SpanType.CHAIN,
        inputs={"messages": [_message(m) for m in task["messages"]], "tools": task["tools"]},
        attributes={"step": record["step"], "arm": record["arm"], "source": task["source"]},
        tags={"cahl.step": str(record["step"]), "cahl.task": task["id"], "cahl.source": task["source"]},
        metadata={TraceMetadataKey.SOURCE_RUN: run_id} if run_id else None,
        experiment_id=experiment_id,
    )  # fmt: skip
    for number, plan in enumerate(record["plans"], 1):
        _plan(root, plan, number, record)
    root.end(outputs={"gold": task["resolved"], "best_reward": _best(record["plans"])})


def _plan(root: Any, plan: Mapping[str, Any], number: int, record: Mapping[str, Any]) -> None:
    import mlflow
    from mlflow.entities import SpanType

    sample = plan["sample"]
    span = mlflow.start_span_no_context(
        f"plan {number}" if sample else "request",
        span_type=SpanType.AGENT,
        parent_span=root,
        inputs={"prompt_tokens": sample["prompt_tokens"] if sample else 0,
                "tools": record["task"]["tools"]},
        attributes=_attributes(sample) if sample else {},
    )  # fmt: skip
    for k, sub_task in enumerate(plan["sub_tasks"], 1):
        _sub_task(span, sub_task, k)
    _end(span, sample, {"plan": plan["plan"]})


def _sub_task(parent: Any, sub_task: Mapping[str, Any], number: int) -> None:
    import mlflow
    from mlflow.entities import SpanType

    asked = {key: sub_task[key] for key in ("task", "tool", "arguments")}
    span = mlflow.start_span_no_context(
        f"sub-task {number}: {sub_task['tool'] or 'answer in words'}",
        span_type=SpanType.CHAIN,
        parent_span=parent,
        inputs=asked,
        attributes={"gold_step": sub_task["column"]},
    )
    for g, sample in enumerate(sub_task["samples"], 1):
        child = mlflow.start_span_no_context(
            f"execution {g}",
            span_type=SpanType.TOOL if sample["calls"] else SpanType.LLM,
            parent_span=span,
            inputs=asked,
            attributes=_attributes(sample),
        )
        _end(child, sample, {"calls": sample["calls"], "response": sample["response"]})
    span.end(outputs={"gold": sub_task["gold"]})


def _end(span: Any, sample: Mapping[str, Any] | None, outputs: dict[str, Any]) -> None:
    """A text outside the grammar ends its span with an error that says where."""
    if sample is None:
        span.end(outputs=outputs)
        return
    failure = sample["failure"]
    if failure is not None:
        outputs["failure"] = f"{failure['reason']} at character {failure['position']}"
    status = "OK" if failure is None else "ERROR"
    span.end(outputs=outputs | {"text": _cut(sample["text"])}, status=status)


def _attributes(sample: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("reward", "advantage", "in_signal", "void", "tokens", "finished")
    parts = {f"reward.{name}": value for name, value in (sample["parts"] or {}).items()}
    return {key: sample[key] for key in kept} | parts | {"breakdown": sample["breakdown"]}


def _best(plans: list[Mapping[str, Any]]) -> float | None:
    rewards = [p["sample"]["reward"] for p in plans if p["sample"]] or [
        s["reward"] for p in plans for sub in p["sub_tasks"] for s in sub["samples"]
    ]
    return max(rewards, default=None)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": _cut(message["content"])}


def _cut(text: str) -> str:
    return text if len(text) <= CHARS else text[: CHARS - 1] + "…"
