"""Tasks with references for the tests of chained calls, and solvers that write what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cahl_core.datasets.plans import plan_from_gold
from cahl_core.datasets.references import resolve
from cahl_core.datasets.targets import resolved_gold
from cahl_core.evaluation.chained import ChainedCalls
from cahl_core.evaluation.core import Attempt, ItemScore, Record
from cahl_core.protocol.parsing import parse_execution, parse_plan
from cahl_core.protocol.texts import execution_text, plan_text
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask
from cahl_core.serving.results import AgentResult, Request, StepResult
from cahl_core.train_config import Form

TEXT = {"type": "string"}


def tool(name: str, *arguments: str) -> ToolSpec:
    properties = dict.fromkeys(arguments, TEXT)
    schema = {"type": "object", "properties": properties, "required": list(arguments)}
    return ToolSpec(name, f"Does {name}.", schema)


TOOLS = (
    tool("place", "city"),
    tool("hotel", "near", "day"),
    tool("taxi", "start", "end"),
    tool("news"),
)
RESULTS: list[Any] = [[{"id": "p1"}], {"id": "p2"}, {"hotels": [{"spot": "h7"}]}, None]


def trip(number: int = 0, recorded: bool = True) -> ToolTask:
    """Two places that do not need each other, a hotel near the first, a taxi from there to the second."""
    calls = (
        ToolCall("place", {"city": "Oslo"}),
        ToolCall("place", {"city": "Bergen"}),
        ToolCall("hotel", {"near": "$var1.id$", "day": "2026-05-01"}),
        ToolCall("taxi", {"start": "$var3.hotels[0].spot$", "end": "$var2.id$"}),
    )
    results = RESULTS if recorded else [None] * 4
    schemas = {t.name: t.parameters for t in TOOLS}
    resolved = [resolve(c, results, schemas[c.name]) for c in calls]
    meta = {"results": results, "resolved": resolved, "answer": "A taxi is booked."}
    said = (Message("user", f"Book a hotel near Oslo and a taxi to Bergen, trip {number}."),)
    steps = tuple((c,) for c in calls)
    task = ToolTask(f"trip-{number}", "toy", said, TOOLS, steps, None, meta)
    return ToolTask(task.id, "toy", said, TOOLS, steps, plan_from_gold(task), meta)


def idle(number: int = 0) -> ToolTask:
    """Nothing that is offered can be of use."""
    said = (Message("user", f"What is the meaning of life, number {number}?"),)
    return ToolTask(f"idle-{number}", "toy", said, TOOLS, (), Plan(()), {})


Writer = Callable[[ToolTask], tuple[Plan, Sequence[Sequence[ToolCall]]]]


def gold(task: ToolTask) -> tuple[Plan, Sequence[Sequence[ToolCall]]]:
    """The gold plan, carried out with the gold calls' values."""
    assert task.plan is not None
    return task.plan, [(call,) for call in resolved_gold(task)]


class Writes:
    """A solver that writes what ``writer`` says of the task, and gold calls when teacher-forced.

    Texts go through the real parsers; in the flat forms the calls are written as the plan has them.
    """

    def __init__(
        self, tasks: Sequence[ToolTask], form: Form = "hierarchical", writer: Writer = gold
    ):
        self.form: Form = form
        self.tasks = {task.id: task for task in tasks}
        self.writer = writer
        self.asked: list[Request] = []

    def run(
        self,
        requests: Sequence[Request],
        on_result: Callable[[int, AgentResult], None] | None = None,
    ) -> list[AgentResult]:
        self.asked += requests
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> AgentResult:
        name, *rest = request.seed.split("/forced/")
        task = self.tasks[name]
        plan, calls = self.writer(task)
        if request.plan is not None:
            plan, calls = request.plan, [(resolved_gold(task)[int(rest[0])],)]
        result = AgentResult(form=self.form, prompt_tokens=10, completion_tokens=5)
        if self.form != "low_only":
            result.plan_text = plan_text(plan)
            result.plan = parse_plan(result.plan_text)
        texts = [execution_text(made, "done") for made in calls]
        if self.form != "hierarchical":
            texts = [
                execution_text([ToolCall(str(s.tool), s.arguments) for s in plan.sub_tasks], "no")
            ]
        for number, (sub_task, text) in enumerate(zip(result.sub_tasks, texts, strict=True)):
            execution = parse_execution(text)
            made = getattr(execution, "calls", ())
            answered = request.results(plan, number, made) if request.results else None
            result.steps.append(StepResult(sub_task, text, execution, answered))
        return result


def solved(
    tasks: Sequence[ToolTask], form: Form = "hierarchical", writer: Writer = gold, **options: Any
) -> tuple[ChainedCalls, list[Attempt], list[Record], list[ItemScore]]:
    """Attempts, records and scores of the tasks, through the benchmark."""
    benchmark = ChainedCalls("toy", "Toy", tasks, **options)
    attempts = [Attempt(item) for item in benchmark.items()]
    records: dict[str, Record] = {}
    benchmark.solve(
        Writes(benchmark.tasks, form, writer), attempts, lambda a, r: records.update({a.item.id: r})
    )
    kept = [records[a.item.id] for a in attempts]
    return benchmark, attempts, kept, benchmark.score(attempts, kept)


def score_of(task: ToolTask, writer: Writer, form: Form = "hierarchical") -> ItemScore:
    return solved([task], form, writer)[3][0]


def planning(*sub_tasks: tuple[str | None, dict[str, Any]]) -> Plan:
    return Plan(tuple(SubTask("do it", name, arguments) for name, arguments in sub_tasks))
