"""Rollout trees as MLflow traces in a real store, and what happens when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from rollout_trees import GOLD_PLAN, flat_tree, good_tree

from cahl_core.config import validate
from cahl_core.traces.mlflow import log_trace
from cahl_core.traces.record import trace_record
from cahl_core.tracking import Tracker

SETTINGS = validate({})


def test_traces_appear_on_the_run_with_texts_and_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import mlflow

    tracker = Tracker(tmp_path, SETTINGS)
    tracker.start("train", None, {}, {})
    for step, tree in enumerate((good_tree(1), flat_tree(2))):
        tracker.log_trace(trace_record(tree, step, SETTINGS))
    tracker.end("FINISHED")
    assert tracker.warnings == []

    def found(query: str | None = None) -> list[mlflow.entities.Trace]:
        return mlflow.search_traces(
            locations=[tracker.experiment_id],
            run_id=tracker.run_id,
            filter_string=query,
            return_type="list",
        )

    assert len(found()) == 2
    [trace] = found("tags.`cahl.task` = 't1'")
    spans = {span.name: span for span in trace.data.spans}
    root, plan = spans["step 0: t1"], spans["plan 1"]
    assert plan.parent_id == root.span_id
    assert spans["sub-task 2: book"].parent_id == plan.span_id
    executions = [s for s in trace.data.spans if s.name == "execution 2"]
    assert [s.attributes["reward"] for s in executions] == [2.0, 2.5]
    assert plan.outputs["text"] == GOLD_PLAN
    assert plan.attributes["reward.total"] == 2.375
    assert plan.attributes["breakdown"]["succeeded"] == [True, False]
    assert spans["plan 2"].status.status_code.value == "ERROR"
    assert spans["plan 2"].outputs["failure"] == "no <plan> at character 0"
    [flat] = found("tags.`cahl.task` = 't2'")
    assert [s.name for s in flat.data.spans][1:3] == ["request", "sub-task 1: answer in words"]


def test_whatever_goes_wrong_is_a_sentence(tmp_path: Path) -> None:
    record = trace_record(good_tree(), 0, SETTINGS)
    del record["plans"][0]["sub_tasks"]
    said = log_trace(record, None)
    assert said == "the trace of task 't1' was not sent to MLflow: 'sub_tasks'"
    tracker = Tracker(tmp_path, SETTINGS)
    tracker.log_trace(record)
    assert tracker.warnings == [said]
