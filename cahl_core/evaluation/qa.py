"""Questions with short answers, closed-book or with a search tool: Bamboogle, HotpotQA, 2Wiki, MuSiQue.

The headline is exact match. It is not the accuracy of ToolRL's and CAHL's tables, which a GPT-4o judge
gave to answers found by live Google search; `about` says so wherever the numbers are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cahl_core.environments.search import Limits, LocalBm25, SearchBackend, corpus_recall
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.evaluation import qa_metrics as metrics
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record, Solver
from cahl_core.evaluation.judge import INSTRUCTION, Case, Judge
from cahl_core.evaluation.model_keys import reached_digest
from cahl_core.evaluation.outcomes import efficiency
from cahl_core.evaluation.qa_dialogue import answer_of, converse, results_of, runs_of, searches_of
from cahl_core.files import dump_json, read_jsonl, sha256
from cahl_core.records import ToolTask


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Where one set of questions lies: source and file below ``data/raw``, and its name."""

    source: str
    file: str
    title: str


SETS = {
    "bamboogle": QuestionSet("bamboogle", "test.jsonl", "Bamboogle"),
    "hotpotqa": QuestionSet("open_qa_eval", "eval_hotpotqa_500.jsonl", "HotpotQA (500)"),
    "2wiki": QuestionSet("open_qa_eval", "eval_2wiki_500.jsonl", "2WikiMultiHopQA (500)"),
    "musique": QuestionSet("open_qa_eval", "eval_musique_500.jsonl", "MuSiQue (500)"),
}
MEASURES = {
    "em_with_dates": metrics.exact_with_dates,
    "cover_em": metrics.covers,
    "f1": metrics.f1,
}
# the collected passages of source search_corpus; what its README measured on the collection's own files
COLLECTED = "9e31acfe076e08087fdb4b25dab6ff69e613d4b5ba1268939e7ef73bd0175f91"
PUBLISHED = {
    "bamboogle": "Not comparable with 72.0 (ToolRL) and 75.2 (CAHL): those are the share that a GPT-4o "
    "judge accepted, after live Google search, in a loop whose repeated runs skip what was solved. How "
    "much protocols differ: Qwen2.5-7B-Instruct has 69.6 in that one, 12.0 where it answers directly.",
}
SUBSET = (
    "500 questions that R1-Searcher took from the set, not all of it; published rows search other "
    "corpora, mostly Wikipedia of 2018, and many are a judge's."
)


class QuestionAnswering:
    """`core.Benchmark` of one of `SETS`.

    Args:
        name: key of `SETS`. folder: of its source, such as ``data/raw/bamboogle``.
        backend: what the tool searches; ``None`` is closed-book, without a tool.
        judge: gives the measure ``judge`` as well.

    Raises:
        ConfigError: there is no such set.
    """

    headline = "em"

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        backend: SearchBackend | None = None,
        limits: Limits | None = None,
        judge: Judge | None = None,
    ) -> None:
        if name not in SETS:
            raise ConfigError(f"no question set '{name}'", f"allowed: {', '.join(SETS)}")
        self.name = name
        self.title = SETS[name].title
        self.path = folder / SETS[name].file
        self.backend = backend
        self.limits = limits or Limits()
        self.judge = judge

    @cached_property
    def tasks(self) -> list[ToolTask]:
        """The questions in the order of the file."""
        if not self.path.is_file():
            source = SETS[self.name].source
            raise StageInputError(
                f"{self.path} does not exist", f"fetch source {source}: `cahl data show {source}`"
            )
        records = enumerate(read_jsonl(self.path), 1)
        tasks = [ToolTask.from_json(r, f"{self.path}:{n}") for n, r in records]
        for task in tasks:
            if not task.messages or not golds_of(task):
                raise DataError(
                    f"{self.path}: '{task.id}' has no question or no answer",
                    "a record needs a user message and meta.answer",
                )
        return tasks

    def items(self) -> Sequence[Item]:
        mode = self.mode
        return [
            Item(t.id, self.name, {"question": question_of(t), "search": mode}, t)
            for t in self.tasks
        ]

    @cached_property
    def mode(self) -> dict[str, Any] | None:
        """What answers searches and how much of it is shown; ``None`` is closed-book."""
        if self.backend is None:
            return None
        return {**self.backend.describe(), **self.limits.to_json()}

    def depends_on(self) -> Any:
        """Digest of the code that searches."""
        return None if self.backend is None else reached_digest(type(self.backend).__module__)

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        converse(
            solver,
            [(question_of(a.item.data), a.seed) for a in attempts],
            self.backend,
            self.limits,
            lambda i, record: emit(attempts[i], record),
        )

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        judged = self._judged(attempts, records)
        return [
            _score(attempt, record, verdict)
            for attempt, record, verdict in zip(attempts, records, judged, strict=True)
        ]

    def _judged(
        self, attempts: Sequence[Attempt], records: Sequence[Record]
    ) -> list[Mapping[str, float | None]]:
        """The judge's measure per record; what is an exact match or no answer is not asked about."""
        if self.judge is None:
            return [{} for _ in attempts]
        verdicts: list[bool | None] = []
        cases: dict[int, Case] = {}
        for number, (attempt, record) in enumerate(zip(attempts, records, strict=True)):
            task, answer = attempt.item.data, answer_of(record)
            golds = golds_of(task)
            verdicts.append(answer is not None and metrics.exact(answer, golds) == 1)
            if answer is not None and not verdicts[-1]:
                cases[number] = Case(question_of(task), golds, answer)
        for number, verdict in zip(cases, self.judge.verdicts(list(cases.values())), strict=True):
            verdicts[number] = verdict
        return [{"judge": None if v is None else float(v)} for v in verdicts]

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """EM and its relatives, searches per question, how many answered and, with a judge, what it
        said: ``judge`` is the share over readable verdicts, ``judge_unreadable`` the others' number.
        """
        if not scores:
            return {}
        names = [n for n in scores[0].scores if n != "judge"]
        table: dict[str, Any] = {"em": _mean([s.correct for s in scores])}
        table |= {name: _mean([float(s.scores[name] or 0) for s in scores]) for name in names}
        table["answered"] = _mean([float(s.outcome == "answered") for s in scores])
        if self.judge is not None:
            said = [v for s in scores if (v := s.scores.get("judge")) is not None]
            table |= {
                "judge": _mean(said) if said else None,
                "judge_unreadable": len(scores) - len(said),
            }
        return table

    def about(self) -> dict[str, Any]:
        data = {self.path.name: sha256(self.path)}
        if isinstance(self.backend, LocalBm25):
            data[self.backend.corpus.name] = self.backend.digest
        return {
            "protocol": protocol(self.mode, self.limits, self.judge),
            "notes": [PUBLISHED.get(self.name, SUBSET), *self._corpus_notes()],
            "data": data,
            "counts": {self.name: len(self.tasks)},
            "source": SETS[self.name].source,
            **({"recall": self.recall} if self.recall else {}),
        }

    @cached_property
    def recall(self) -> dict[str, int] | None:
        """`search.corpus_recall` of the local corpus on these questions; ``None`` without one."""
        if not isinstance(self.backend, LocalBm25):
            return None
        questions = [(question_of(t), golds_of(t)) for t in self.tasks]
        return corpus_recall(self.backend, questions, self.limits)

    def _corpus_notes(self) -> list[str]:
        if self.recall is None or not isinstance(self.backend, LocalBm25):
            return []
        n, found = self.recall["n"], self.recall["retrieved"]
        notes = [
            f"Recall of the corpus: a gold answer's text stands somewhere in its "
            f"{len(self.backend.passages)} passages for {self.recall['somewhere']}/{n} questions, in what "
            f"a search for the question itself shows for {found}/{n}; short answers match by chance."
        ]
        if self.backend.digest == COLLECTED:
            notes.append(
                "The corpus is a closed pool with passages that other models' searches found for the "
                "Bamboogle questions (an answer among those of its own question in 81/125): an upper "
                "bound of what search can give, not the open web."
            )
        return notes

    def example(self, attempt: Attempt, record: Record) -> str:
        task: ToolTask = attempt.item.data
        lines = [f"question: {question_of(task)}"]
        for result, _ in runs_of(record):
            lines += [f"plan: {result.plan_text}"] if result.plan_text is not None else []
            for step in result.steps:
                lines += [
                    f"text: {step.text}",
                    *(f"found: {dump_json(r)}" for r in results_of(step)),
                ]
        return "\n".join(
            [*lines, f"answer: {answer_of(record)}", f"gold: {' | '.join(golds_of(task))}"]
        )


def question_of(task: ToolTask) -> str:
    """The question's words."""
    return task.messages[-1].content


def golds_of(task: ToolTask) -> tuple[str, ...]:
    """All accepted answers."""
    answers = [task.meta.get("answer"), *(task.meta.get("answer_aliases") or [])]
    return tuple(a for a in answers if isinstance(a, str) and a.strip())


def protocol(mode: Mapping[str, Any] | None, limits: Limits, judge: Judge | None) -> dict[str, str]:
    """How the answers came about and what they are measured by, name → text."""
    searching = mode and (
        f"{dump_json(mode)}; one tool Search(query); at most {limits.max_calls} calls per question, only "
        "the first of a step is carried out, others are refused in words; each passage is shown with "
        f"title and at most {limits.passage_chars} characters of text, {limits.top_k} per search"
    )
    texts = {
        "search": searching or "closed-book: no tool is offered",
        "hierarchical": "a plan, its sub-tasks with results as feedback; if no text is an answer in "
        "words, one more executor text for the sub-task 'Answer the question in a few words: …'",
        "flat": "text, search, text, … until a text answers; the last one is offered no tool",
        "answer": "the last <response>; whatever is outside the grammar is no answer",
        "em": "accuracy is exact match after lower case, without punctuation, articles, extra spaces",
        "em_with_dates": "em, or the same date in another form",
        "cover_em": "the gold answer stands in the answer; golds of up to "
        f"{metrics.SHORT} characters and numbers as whole words",
        "f1": "of words, as SQuAD; where several answers are accepted, the best counts",
    }
    if judge is not None:
        texts["judge"] = (
            f"{judge.model} at {judge.url}, temperature 0: {INSTRUCTION} Exact matches are right and "
            "missing answers wrong without asking; unreadable verdicts are counted apart"
        )
    return texts


def _score(attempt: Attempt, record: Record, judged: Mapping[str, float | None]) -> ItemScore:
    task: ToolTask = attempt.item.data
    answer, golds, runs = answer_of(record), golds_of(task), runs_of(record)
    correct = metrics.exact(answer or "", golds)
    scores: dict[str, float | None] = {n: m(answer or "", golds) for n, m in MEASURES.items()}
    outcome = "answered" if answer is not None else _why_silent(runs[-1][0].outcome)
    return ItemScore(
        task.id,
        attempt.item.category,
        correct,
        outcome,
        scores={**scores, "searches": float(searches_of(record)), **judged},
        error_type=None if correct else ("wrong_answer" if answer is not None else outcome),
        error="" if correct else f"answer {answer!r}, due {' | '.join(golds)!r}",
        sample=attempt.sample,
        **efficiency([r for r, _ in runs], [tools for _, tools in runs]),
    )


def _why_silent(outcome: str) -> str:
    return "no_answer" if outcome in ("calls", "abstained") else outcome


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
