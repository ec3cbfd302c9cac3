"""The engine behind `cahl serve-rollouts`: one thread samples, adapters come and go between batches.

Requests that wait together and ask for the same kind of sampling are generated together; the queue is
bounded, and who finds it full is told to come back later.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahl_core.config import ModelSettings
from cahl_core.errors import CahlError, ModelError
from cahl_core.files import tree_digest
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Completion, Engine

BACKBONE_ONLY = "_backbone"  # a fresh adapter, which adds nothing
GATHER = 0.005  # seconds for which a batch waits for company


class QueueFullError(Exception):
    """There is no room for another request at the moment."""


class UnknownModelError(Exception):
    """No adapter of this name is loaded."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What requests must have in common to be generated together."""

    adapter: str
    samples: int
    max_tokens: int
    temperature: float
    stop: tuple[str, ...]


@dataclass(slots=True)
class _Task:
    kind: Kind | None
    prompt: Sequence[int]
    seed: str
    run: Callable[[], Any] | None
    future: Future[Any] = field(default_factory=Future)


class Host:
    """Generates for many clients with one `Policy`; every method may be called from any thread.

    Args:
        backbone: its directory. adapters: directory below which adapters may be loaded from.
        most_waiting: requests that may wait or be under way; one more is `QueueFullError`.
        batch: prompts that are generated together at most; with 1 nothing depends on who else asks.
    """

    def __init__(
        self,
        backbone: Path,
        settings: ModelSettings,
        *,
        adapters: Path,
        most_waiting: int = 256,
        batch: int = 32,
    ) -> None:
        self.settings = settings
        self.root = adapters.absolute()
        self.fingerprint = tree_digest(backbone)
        self.policy = Policy.load(backbone, None, settings)
        self.policy.new_adapter(BACKBONE_ONLY, 0)
        self.loaded: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self._engine = Engine(self.policy)
        self._layers = self._adapted()
        self._most, self._batch = most_waiting, batch
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._waiting, self._lock = 0, threading.Lock()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def complete(self, prompt: Sequence[int], seed: str, kind: Kind) -> list[Completion]:
        """The samples of one prompt; sample ``i`` draws from ``seed/i``, as `Engine.generate` has it.

        Raises:
            QueueFullError, UnknownModelError, PromptTooLongError.
        """
        with self._lock:
            if self._waiting >= self._most:
                self.counts["turned_away"] += 1
                raise QueueFullError
            self._waiting += 1
            self.counts["most_waiting"] = max(self.counts["most_waiting"], self._waiting)
        task = _Task(kind, prompt, seed, None)
        self._queue.put(task)
        try:
            found: list[Completion] = task.future.result()
            return found
        finally:
            with self._lock:
                self._waiting -= 1

    def load(self, name: str, path: Path) -> None:
        """Loads an adapter between two batches.

        Raises:
            ModelError: it lies outside the directory, is not there, or is of another backbone.
        """
        if not path.absolute().resolve().is_relative_to(self.root.resolve()):
            raise ModelError(
                f"{path} is not below {self.root}", "give --adapters-dir when starting the server"
            )
        self._between(lambda: self._load(name, path))

    def unload(self, name: str) -> None:
        """Removes an adapter; requests for it that still wait are `UnknownModelError`."""
        self._between(lambda: self._unload(name))

    def close(self) -> None:
        """Ends the engine's thread after its batch."""
        self._queue.put(None)
        self._thread.join(timeout=10)

    # --- the engine's thread ----------------------------------------------------------------------

    def _work(self) -> None:
        held: list[_Task] = []
        while True:
            task = held.pop(0) if held else self._queue.get()
            if task is None:
                return
            if task.run is not None:
                _answer(task, task.run)
                continue
            together = [task, *self._company(task, held)]
            self._generate(together)

    def _company(self, first: _Task, held: list[_Task]) -> list[_Task]:
        """Waiting tasks of the same kind; what else is found on the way goes to ``held``.

        A change of adapters is an order between requests: nothing overtakes it.
        """
        found: list[_Task] = []
        for other in list(held):
            if other.run is not None:
                return found
            if len(found) + 1 < self._batch and other.kind == first.kind:
                found.append(other)
                held.remove(other)
        while len(found) + 1 < self._batch:
            try:
                other_task = self._queue.get(timeout=GATHER)
            except queue.Empty:
                return found
            if other_task is None:
                self._queue.put(None)
                return found
            if other_task.run is None and other_task.kind == first.kind:
                found.append(other_task)
                continue
            held.append(other_task)
            if other_task.run is not None:
                return found
        return found

    def _generate(self, tasks: list[_Task]) -> None:
        kind = tasks[0].kind
        assert kind is not None
        if kind.adapter != BACKBONE_ONLY and kind.adapter not in self.loaded:
            for task in tasks:
                task.future.set_exception(UnknownModelError(kind.adapter))
            return
        try:
            results = self._engine.generate(
                [t.prompt for t in tasks],
                kind.adapter,
                samples=kind.samples,
                max_tokens=kind.max_tokens,
                temperature=kind.temperature,
                seeds=[t.seed for t in tasks],
                stop=kind.stop,
            )
        except Exception as error:
            if len(tasks) > 1:  # one that does not fit must not take the others with it
                for task in tasks:
                    self._generate([task])
            else:
                tasks[0].future.set_exception(error)
            return
        self.counts["batches"] += 1
        self.counts["prompts"] += len(tasks)
        for task, samples in zip(tasks, results, strict=True):
            task.future.set_result(samples)

    def _between(self, run: Callable[[], None]) -> None:
        task = _Task(None, (), "", run)
        self._queue.put(task)
        task.future.result()

    def _load(self, name: str, path: Path) -> None:
        if name in self.loaded or name == BACKBONE_ONLY:
            raise ModelError(f"the adapter '{name}' has already been loaded")
        try:
            self.policy.add_adapter(name, path)
        except CahlError:
            if name in self.policy.model.peft_config:  # half of it may be there
                self.policy.activate(BACKBONE_ONLY)
                self.policy.remove_adapter(name)
            raise
        if self._adapted() != self._layers:  # it adapts matrices that none did before
            self._engine, self._layers = Engine(self.policy), self._adapted()
        self._engine.weights_changed()
        self.loaded[name] = str(path)

    def _unload(self, name: str) -> None:
        if name not in self.loaded:
            raise UnknownModelError(name)
        del self.loaded[name]
        self.policy.activate(BACKBONE_ONLY)
        self.policy.remove_adapter(name)
        self._engine.weights_changed()

    def _adapted(self) -> int:
        return sum(hasattr(m, "base_layer") for m in self.policy.causal.modules())


def _answer(task: _Task, run: Callable[[], Any]) -> None:
    try:
        task.future.set_result(run())
    except Exception as error:
        task.future.set_exception(error)
