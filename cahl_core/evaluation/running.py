"""Models on benchmarks, one after the other: what the stage and evaluations on demand share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import ConfigError
from cahl_core.evaluation.core import Benchmark, Closes, Item, OwnRollouts, TextOnly
from cahl_core.evaluation.harness import BenchmarkRun, evaluate
from cahl_core.evaluation.models import Model, open_model, parse_models

Runs = dict[str, dict[str, BenchmarkRun]]  # by model, then by benchmark
Log = Callable[[str], None]


@dataclass(slots=True)
class Evaluation:
    """Everything that was evaluated, and the models it was evaluated on."""

    benchmarks: list[Benchmark]
    runs: Runs = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)

    @property
    def timing(self) -> dict[str, dict[str, Any]]:
        """`harness.Timing` by model and benchmark."""
        return {
            model: {name: run.timing.to_json() for name, run in own.items()}
            for model, own in self.runs.items()
        }


def evaluate_all(
    root: Path,
    settings: Settings,
    benchmarks: Sequence[Benchmark],
    chosen: Mapping[str, Sequence[Item]],
    *,
    log: Log,
    phase: Callable[[str], AbstractContextManager[None]] | None = None,
) -> Evaluation:
    """Every model of ``evaluate.models`` on every benchmark, model by model.

    Answers are kept below ``.cahl/evaluate/records``, so an evaluation that was ended goes on. A benchmark
    that a model cannot be asked is left out for it, and that is logged (`_left_out`).

    Raises:
        CahlError: of any model that is not there, before the first one is evaluated.
    """
    wanted = settings.evaluate
    done = Evaluation(list(benchmarks))
    specs = parse_models(wanted.models)
    done.models = {spec.label: open_model(spec, settings, root) for spec in specs}
    for model in done.models.values():
        model.key()  # what is missing shows here, not after hours with the models before it
    for spec in specs:
        model = done.models[spec.label]
        own = done.runs[spec.label] = {}
        with phase(spec.label) if phase else nullcontext():
            for benchmark in benchmarks:
                if why := _left_out(model, benchmark):
                    log(f"{spec.label}, {benchmark.name}: left out, {why}")
                    continue
                own[benchmark.name] = evaluate(
                    model,
                    benchmark,
                    chosen[benchmark.name],
                    root / ".cahl/evaluate/records",
                    batch_size=wanted.batch_size,
                    samples=1 if isinstance(benchmark, OwnRollouts) else wanted.samples,
                    seed=settings.seed if wanted.temperature else 0,
                )
                log(_line(spec.label, own[benchmark.name]))
        model.close()
    if not any(done.runs.values()):
        raise ConfigError(
            "none of the models can be asked any of the benchmarks",
            "; ".join(
                {why for m in done.models.values() for b in benchmarks if (why := _left_out(m, b))}
            ),
        )
    return done


def _left_out(model: Model, benchmark: Benchmark) -> str | None:
    """Why the model is not asked this benchmark, if it is not."""
    if isinstance(benchmark, OwnRollouts) and model.spec.kind != "project":
        return "held-back tasks are rolled out with the project's own models"
    if isinstance(benchmark, TextOnly) and not model.completes:
        return "a planner and an executor answer no plain conversation"
    return None


@contextmanager
def closing(benchmarks: Sequence[Benchmark]) -> Iterator[None]:
    """Ends the benchmarks' processes after the body."""
    try:
        yield
    finally:
        for benchmark in benchmarks:
            if isinstance(benchmark, Closes):
                benchmark.close()


def _line(label: str, run: BenchmarkRun) -> str:
    right = sum(s.correct for s in run.scores)
    taken = f", {run.timing.seconds:.0f} s" if run.timing.attempts else ", all from earlier runs"
    return f"{label}, {run.benchmark.name}: {right:g} of {len(run.scores)}{taken}"
