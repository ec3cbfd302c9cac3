"""The exact prompts of a benchmark for the report: the first item, asked of a writer that has no model.

What a model would be sent is made by the same code (`serving.agent`, `protocol.prompts`); only the texts
that would come back are made up, so that an executor's prompt can be shown too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cahl_core.evaluation.core import Attempt, Benchmark, Item, KeepsNotes
from cahl_core.protocol.prompts import Chat
from cahl_core.protocol.rendering import Rendering
from cahl_core.protocol.texts import execution_text, plan_text
from cahl_core.records import Message, Plan, SubTask
from cahl_core.roles import Role
from cahl_core.serving.agent import WritingAgent
from cahl_core.serving.writers import Ask, Written, chat_of
from cahl_core.train_config import Form

MADE_UP = "(a sub-task that the planner would write)"


class Probe(WritingAgent):
    """A solver that notes the first prompt of each role."""

    def __init__(self, form: Form, rendering: Rendering) -> None:
        super().__init__(self, form, plan_tokens=1, call_tokens=1)
        self.rendering = rendering
        self.seen: dict[str, str] = {}

    def write(self, asks: Sequence[Ask], role: Role, max_tokens: int) -> list[Written]:
        """Declines everything, after one made-up sub-task."""
        for ask in asks:
            self.seen.setdefault(role, shown(chat_of(ask, self.form, self.rendering)))
        return [Written(self._text(ask, role)) for ask in asks]

    def complete(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, seeds: Sequence[str]
    ) -> list[str | None]:
        """Nothing; notes the conversation."""
        for messages in conversations:
            text = "\n\n".join(f"[{m.role}]\n{m.content}" for m in messages)
            self.seen.setdefault("conversation", text)
        return ["" for _ in conversations]

    def _text(self, ask: Ask, role: Role) -> str:
        if role == "executor":
            return execution_text(())
        tools = ask.request.tools
        return plan_text(Plan((SubTask(MADE_UP, tools[0].name if tools else None, {}),)))


def shown(chat: Chat) -> str:
    """A conversation as text, before a chat template."""
    turns = [f"[{turn['role']}]\n{turn['content']}" for turn in chat.turns]
    return "\n\n".join([f"[system]\n{chat.system}", *turns])


def prompts_of(
    benchmark: Benchmark, item: Item, form: Form, rendering: Rendering
) -> list[dict[str, str]]:
    """The first prompt of each role on ``item``: ``title`` and ``text``."""
    probe = Probe(form, rendering)
    with TemporaryDirectory() as folder:
        if isinstance(benchmark, KeepsNotes):  # not what some model left there
            benchmark.keep_notes(Path(folder))
        benchmark.solve(probe, [Attempt(item)], lambda *_: None)
    return [{"title": f"{role}, {item.id}", "text": text} for role, text in probe.seen.items()]
