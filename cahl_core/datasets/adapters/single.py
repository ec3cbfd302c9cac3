"""Adapters: one request per record. xLAM (and Hammer's irrelevance set), ToolRL, questions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from cahl_core.datasets.adapters.build import Record, extras, own_id, tools_of
from cahl_core.datasets.adapters.conversation import Messages
from cahl_core.datasets.adapters.text import call_of, json_values, literal
from cahl_core.files import dump_json

TAGGED = re.compile(r"<(user|think|tool_call|obs|response)>(.*?)</\1>", re.DOTALL)
HISTORY = "**Dialogue Records History**"
TOOL = re.compile(
    r"^\d+\. Name: (.*?)\nDescription: ?(.*?)\nParameters: ?(.*?)"
    r"(?=\n\d+\. Name: |\n\s*\n|\n\*\*|\Z)",
    re.DOTALL | re.MULTILINE,
)
SYSTEM_KEYS, USER_KEYS = ("system", "instruction"), ("user", "input")
GOLD_KEYS = ("answer", "output", "response")
QUESTION_KEYS = ("question", "Question", "query", "problem")
ANSWER_KEYS = ("answer", "Answer", "answers", "golden_answers", "final_answer")
TOOLRL_IDS = {
    "rlla_sft.json": "rlla-sft", "test.parquet": "rlla-test", "train.parquet": "rlla-train",
    "rlla_rl.json": "rlla-train", "level-1-api_processed.json": "api_bank-l1",
    "level-2-api_processed.json": "api_bank-l2", "level-3-api_processed.json": "api_bank-l3",
    "data.json": "bamboogle",
}  # fmt: skip
SEARCHER_FILE = re.compile(r"(?:stage_(\d)|(\w+_500))\.jsonl")


def xlam(value: Any, source: str, record_id: str) -> Record:
    """``{"query", "tools", "answers"}``, the last two JSON texts; calls of a record are parallel.

    A parameter without "optional" in its type and without a default is required: the set has no
    other flag.
    """
    tools, meta = tools_of(value["tools"])
    for tool in tools:
        parameters = tool["function"]["parameters"]
        if not parameters["required"]:
            parameters["required"] = list(_needed(parameters["properties"]))
    answers = value["answers"]
    answers = literal(answers) if isinstance(answers, str) else answers
    calls = [call_of(answer) for answer in answers]
    return {
        "id": own_id(value, source, record_id),
        "source": source,
        "messages": [{"role": "user", "content": value["query"]}],
        "tools": tools,
        "answers": [calls] if calls else [],
        "meta": meta | extras(value, ("id", "query", "tools", "answers")),
    }


def _needed(properties: Mapping[str, Record]) -> Iterator[str]:
    for name, schema in properties.items():
        if not schema.get("x-optional") and "default" not in schema:
            yield name


def toolrl(value: Any, source: str, record_id: str) -> Record:
    """ToolRL's prompt and gold texts (rlla, its API-Bank and Bamboogle files).

    ``rlla_sft.json``: instruction, input, output. Parquet: ``prompt`` messages and
    ``reward_model.ground_truth``. API-Bank: system, user, answer (a list of calls), other.
    """
    if "Question" in value:
        return qa(value, source, record_id)
    system, user, gold = _toolrl_texts(value)
    messages, rest = _tagged_messages(user)
    tools, meta = _listed_tools(system)
    steps, facts = _gold(gold)
    used = (*SYSTEM_KEYS, *USER_KEYS, *GOLD_KEYS, "prompt", "reward_model", "other", "id")
    meta |= {"required_known": False} | facts | extras(value, used)
    if rest:
        meta["residual_text"] = rest
    if value.get("other") is not None:
        meta["origin"] = value["other"]
    if level := re.fullmatch(r"api_bank-l(\d)-\d+", record_id):
        meta["level"] = int(level[1])
    return {
        "id": record_id,
        "source": source,
        "messages": messages,
        "tools": tools,
        "answers": steps,
        "meta": meta,
    }


def _toolrl_texts(value: Mapping[str, Any]) -> tuple[str, str, Any]:
    if "prompt" in value:
        texts = {m["role"]: m["content"] for m in value["prompt"]}
        return texts["system"], texts["user"], value["reward_model"]["ground_truth"]
    found = [next(k for k in keys if k in value) for keys in (SYSTEM_KEYS, USER_KEYS, GOLD_KEYS)
             if any(k in value for k in keys)]  # fmt: skip
    if len(found) != 3:
        raise KeyError(f"a prompt and its gold; fields present: {sorted(value)}")
    return value[found[0]], value[found[1]], value[found[2]]


def _tagged_messages(text: str) -> tuple[Messages, str]:
    """The dialogue in tags as messages, and what stands outside of the tags."""
    messages: Messages = []
    thought = ""
    for kind, inner in TAGGED.findall(text):
        content = inner.strip()
        if kind == "think":
            thought = content
            continue
        message: Record = {"role": "user", "content": content}
        if kind == "obs":
            message["role"] = "tool"
        elif kind in ("tool_call", "response"):
            message["role"] = "assistant"
            if thought:
                message["reasoning"] = thought
            thought = ""
        if kind == "tool_call":
            message |= {"content": "", "tool_calls": _block(content)}
        messages.append(message)
    return messages, TAGGED.sub("", text.replace(HISTORY, "")).strip()


def _block(text: str) -> list[Record]:
    """The calls of one ``<tool_call>`` block: JSON objects one after the other."""
    calls = []
    for value, _, _ in json_values(text):
        calls += [call_of(v) for v in (value if isinstance(value, list) else [value])]
    if not calls:
        raise ValueError(f"a <tool_call> block holds no JSON call: {text[:60]!r}")
    return calls


def _listed_tools(system: str) -> tuple[list[Record], Record]:
    """Tools listed as ``1. Name: … Description: … Parameters: …``; "" means that no default is."""
    entries = [
        {"name": name.strip(), "description": description.strip(), "parameters": literal(schema)}
        for name, description, schema in TOOL.findall(system)
    ]
    tools, meta = tools_of(entries)
    for tool in tools:
        for schema in tool["function"]["parameters"]["properties"].values():
            if schema.get("default") == "":
                del schema["default"]
    return tools, meta


def _gold(gold: Any) -> tuple[list[list[Record]], Record]:
    """Gold steps and the reference's own words, from a text with tags or a list of calls."""
    if not isinstance(gold, str):
        calls = [call_of(call) for call in gold]
        return ([calls] if calls else []), {}
    parts = {kind: inner.strip() for kind, inner in TAGGED.findall(gold)}
    calls = _block(parts["tool_call"]) if parts.get("tool_call") else []
    response = parts.get("response", "")
    facts: Record = {"reference_think": parts.get("think", ""), "reference_response": response}
    if not calls and response:
        facts["answer"] = response
    return ([calls] if calls else []), facts


def toolrl_id(file: str, index: int) -> str | None:
    """The id that ../shared/data gives the record; None for a file it does not know."""
    prefix = TOOLRL_IDS.get(file)
    return f"{prefix}-{index}" if prefix else None


def qa(value: Any, source: str, record_id: str) -> Record:
    """A question with its final answer in words; further accepted answers go to meta."""
    question = next(key for key in (*QUESTION_KEYS, "") if key in value or not key)
    answer = next(key for key in (*ANSWER_KEYS, "") if key in value or not key)
    if not question or not answer:
        raise KeyError(f"a question and an answer; fields present: {sorted(value)}")
    given = value[answer]
    accepted = given if isinstance(given, list) else [given]
    texts = [a if isinstance(a, str) else dump_json(a) for a in accepted if a is not None]
    if not texts:
        raise ValueError("the answer is empty")
    meta: Record = {"answer": texts[0], "derivation": "qa"}
    if texts[1:]:
        meta["answer_aliases"] = texts[1:]
    return {
        "id": record_id if not isinstance(value.get("id"), str) else value["id"],
        "source": source,
        "messages": [{"role": "user", "content": str(value[question])}],
        "tools": [],
        "answers": [],
        "meta": meta | extras(value, (question, answer, "id")),
    }


def qa_id(file: str, index: int) -> str | None:
    """The id that ../shared/data gives a record of R1-Searcher's files; None for other files."""
    match = SEARCHER_FILE.fullmatch(file)
    return f"r1s-{f'stage{match[1]}' if match[1] else match[2]}-{index}" if match else None
