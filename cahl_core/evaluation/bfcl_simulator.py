"""The harness's side of `bfcl_simulator_worker`: simulators by sample, and the official checkers.

The worker lives as long as the client. A call that takes too long ends the worker; a new one is
started, the open samples are brought back to where they were by repeating their calls, and the model
reads that its call failed. Anything else that goes wrong is an `EvaluationError` with the end of what
the worker printed: never a score, never shown to a model.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.errors import EvaluationError, StageInputError
from cahl_core.evaluation.worker_process import WorkerProcess
from cahl_core.files import digest, sha256
from cahl_core.records import ToolCall

WORKER = Path(__file__).with_name("bfcl_simulator_worker.py")
CHUNK = 100  # answers per request for scores: ``timeout`` is meant for as many

# turns → steps → calls; ``None`` is a call that fails, whatever it was
Turns = Sequence[Sequence[Sequence[ToolCall | None]]]


@dataclass(frozen=True, slots=True)
class CallResult:
    """What one call returned.

    Attributes:
        text: as the official executor shows it to a model, errors of the tool included.
        value: the same as a JSON object or list, or ``text`` where it is neither.
        changed: whether anything in the sample's simulators is different after the call.
        timed_out: the call was given up; it changed nothing.
    """

    text: str
    value: Any
    changed: bool = False
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class TurnVerdict:
    """The official judgement of one sample; the turns before ``turn`` (from 0) are right."""

    id: str
    valid: bool
    error_type: str | None
    error: str
    turn: int


@dataclass(frozen=True, slots=True)
class Opened:
    """How a memory conversation begins: its turns with the system message, and what that shows of
    the memory; both ``None`` in the other categories."""

    messages: list[list[dict[str, Any]]] | None = None
    visible: str | None = None


@dataclass(slots=True)
class _Sample:
    opening: dict[str, Any]
    calls: list[dict[str, Any]]
    state: str


class BfclSimulator:
    """The simulators and multi-turn checkers of one official BFCL package.

    Args:
        wheel: directory that holds ``bfcl_eval/``.
        timeout: seconds for loading, for opening a sample, and for judging `CHUNK` answers.
        call_timeout: seconds one call may take.
        worker: the script to run; tests put others here.
    """

    def __init__(
        self, wheel: Path, timeout: float, call_timeout: float = 10, worker: Path = WORKER
    ) -> None:
        if not (wheel / "bfcl_eval").is_dir():
            raise StageInputError(f"{wheel} holds no BFCL package", "run: cahl fetch")
        self.wheel = wheel.absolute()
        self.timeout = timeout
        self.call_timeout = call_timeout
        arguments = [str(self.wheel), str(_mpmath())]
        self._process = WorkerProcess(worker, arguments, timeout, "BFCL simulator")
        self._samples: dict[str, _Sample] = {}

    def sources(self) -> str:
        """Digest of the package's simulators and prompts: what answers calls."""
        package = self.wheel / "bfcl_eval"
        files = [*package.glob("constants/*.py"), *package.rglob("multi_turn_eval/**/*.py")]
        return digest([[str(f.relative_to(package)), sha256(f)] for f in sorted(files)])

    def load(self, categories: Sequence[str]) -> dict[str, Any]:
        """The items of multi-turn or memory categories, with the tool documents they index."""
        keys = ("version", "steps", "added", "documents", "items")
        return self._ask({"op": "load", "categories": list(categories)}, self.timeout, *keys)

    def open(self, key: str, item: str, memory: Any = None) -> Opened:
        """Fresh simulators for one sample, seeded by its item and, for memory, by what was kept."""
        if key in self._samples:
            raise EvaluationError(f"BFCL sample {key} is open already")
        opening = {"op": "open", "key": key, "id": item, "memory": memory}
        reply = self._ask(opening, self.timeout, "messages", "visible", "state")
        self._samples[key] = _Sample(opening, [], reply["state"])
        return Opened(reply["messages"], reply["visible"])

    @contextmanager
    def opened(self, samples: Mapping[str, str]) -> Iterator[None]:
        """Samples (key → item) that are open inside the block and freed after it."""
        try:
            for key, item in samples.items():
                self.open(key, item)
            yield
        except BaseException:
            self.end()  # whatever state the worker is in, the next block has a fresh one
            raise
        for key in samples:
            self.close(key)

    def call(self, key: str, call: ToolCall) -> CallResult:
        """Executes one call on the sample's simulators."""
        sample = self._samples[key]
        request = {"op": "call", "key": key, **call.to_json()}
        begun = time.monotonic()
        try:
            reply = self._ask(request, self.call_timeout, "text", "value", "state")
        except EvaluationError:
            if time.monotonic() - begun < self.call_timeout:  # it crashed
                raise
            self._restore()
            text = f"Error during execution: no result within {self.call_timeout:g} seconds"
            return CallResult(text, text, timed_out=True)
        changed = reply["state"] != sample.state
        sample.calls.append(request)
        sample.state = reply["state"]
        value = reply["text"] if reply["value"] is None else reply["value"]
        return CallResult(reply["text"], value, changed)

    def close(self, key: str) -> Any:
        """Frees the sample; what its memory holds after a prerequisite conversation."""
        reply = self._ask({"op": "close", "key": key}, self.timeout, "memory")
        del self._samples[key]
        return reply["memory"]

    def score(self, answers: Sequence[tuple[str, Turns]]) -> list[TurnVerdict]:
        """The official multi-turn verdict of every (item, turns), in order.

        Every answer is judged on instances of its own: the same item may come as often as one likes.
        """
        sent = [
            {"id": item, "turns": [[[c and c.to_json() for c in s] for s in t] for t in turns]}
            for item, turns in answers
        ]
        return self._judge("score", sent)

    def judge(self, answers: Sequence[tuple[str, str]]) -> list[TurnVerdict]:
        """The official verdict of every (memory item, last message), in order."""
        return self._judge("judge", [{"id": item, "text": text} for item, text in answers])

    def status(self) -> dict[str, int]:
        """``open`` samples in the worker, and ``instances`` left in the package's globals."""
        reply = self._ask({"op": "status"}, self.timeout, "open", "instances")
        return {key: int(reply[key]) for key in ("open", "instances")}

    def end(self) -> None:
        """Ends the worker; the next request starts another, without open samples."""
        self._samples.clear()
        self._process.close()

    def _judge(self, operation: str, answers: list[dict[str, Any]]) -> list[TurnVerdict]:
        verdicts: list[TurnVerdict] = []
        for start in range(0, len(answers), CHUNK):
            request = {"op": operation, "answers": answers[start : start + CHUNK]}
            reply = self._ask(request, self.timeout, "verdicts")
            verdicts += [TurnVerdict(**v) for v in reply["verdicts"]]
        if [v.id for v in verdicts] != [a["id"] for a in answers]:
            raise EvaluationError("the BFCL worker's verdicts are not those of the answers sent")
        return verdicts

    def _restore(self) -> None:
        """A new worker in which the open samples are where they were."""
        for sample in self._samples.values():
            # what the state was before the call that was given up is what it is again
            for request in (sample.opening, *sample.calls):
                self._ask(request, self.timeout)

    def _ask(self, request: dict[str, Any], seconds: float, *keys: str) -> dict[str, Any]:
        self._process.timeout = seconds
        return self._process.ask(request, *keys)


def _mpmath() -> Path:
    """Folder of the one package that the MathAPI needs; it is torch's dependency too."""
    spec = importlib.util.find_spec("mpmath")
    if spec is None or spec.origin is None:
        raise EvaluationError("BFCL's MathAPI needs mpmath", "pip install mpmath==1.3.0")
    return Path(spec.origin).parent
