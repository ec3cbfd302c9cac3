"""BFCL's simulators and multi-turn checkers in a process of their own.

Run as ``python -I -S -B -X utf8 bfcl_simulator_worker.py WHEEL_DIR MPMATH_DIR`` in an empty folder
with BFCL_PROJECT_ROOT set to it. One JSON request per line comes in on standard input, one JSON reply
per line goes out, with the request's number; what the package prints goes to standard error.

    load    {"categories"}            → {"version", "steps", "added", "documents", "items"}
    open    {"key", "id", "memory"}   → {"messages", "visible", "state"}
    call    {"key", "name", "arguments"} → {"text", "value", "state"}
    close   {"key"}                   → {"memory"}        what a prerequisite conversation left
    score   {"answers": [{"id", "turns"}]} → {"verdicts"} turns → steps → calls; a call ``null`` fails
    judge   {"answers": [{"id", "text"}]}  → {"verdicts"} memory questions
    status  {}                        → {"open", "instances"}

``call`` runs the bound method with keyword arguments: no text is evaluated. The official multi-turn
checker evaluates call strings; ``score`` builds these from known method names, identifiers and the
literals of JSON values, under a name for the instances that is used once, and takes the instances out
of the package's globals again.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import keyword
import re
import resource
import shutil
import sys
from pathlib import Path
from typing import Any


def _beside(name: str) -> Any:
    """A file of this folder, which is not, and must not be, on the search path."""
    spec: Any = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parts = _beside("bfcl_official")

MEMORY_BYTES = 4 << 30
FAILS = "call_of_no_tool()"  # a name the checker does not know: the call counts, and fails
UNSEEN = ("_random", "_api_description", "_last_modified")  # not what a call is said to change


class Sample:
    """The simulators of one sample, and the methods that its calls may name.

    As in the official executor, all public methods can be called, also those whose documents are held
    back, and of two methods with one name the later class's counts.
    """

    def __init__(self, official: Any, item: str, memory: Any, folder: Path) -> None:
        self.entry, self.folder = official.entry(item), folder
        self.instances: dict[str, Any] = {}
        self.methods: dict[str, Any] = {}
        for class_name in self.entry["involved_classes"]:
            instance = official.simulator(class_name)()
            if class_name not in official.executor.STATELESS_CLASSES:
                instance._load_scenario(
                    self._seed(class_name, memory), long_context="long_context" in item
                )
            self.instances[class_name] = instance
            self.methods |= dict(parts.public(instance))

    def _seed(self, class_name: str, memory: Any) -> Any:
        if not class_name.startswith("MemoryAPI"):
            return copy.deepcopy(self.entry["initial_config"].get(class_name, {}))
        kind = class_name.removeprefix("MemoryAPI_")
        scenario, item = self.entry["scenario"], self.entry["id"]
        self.snapshot = self.folder / f"agentic/memory/{kind}/memory_snapshot/{scenario}_final.json"
        if memory is not None:
            self.snapshot.parent.mkdir(parents=True)
            self.snapshot.write_text(json.dumps(memory), encoding="utf-8")
        return {"model_result_dir": self.folder, "scenario": scenario, "test_id": item}

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """What the method returns; raises what it raises."""
        if name not in self.methods:
            raise NameError(f"name '{name}' is not defined")
        if not all(map(_identifier, arguments)):
            raise SyntaxError("invalid syntax")
        return self.methods[name](**arguments)

    def state(self) -> str:
        """Digest of all that a call can change."""
        seen = [(name, vars(i)) for name, i in self.instances.items()]
        return hashlib.sha256(_json(seen).encode()).hexdigest()[:16]


class Worker:
    """The operations."""

    def __init__(self, official: Any) -> None:
        self.official = official
        self.samples: dict[str, Sample] = {}
        self.used = 0

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        documents: dict[str, int] = {}
        items, official = [], self.official
        for category in request["categories"]:
            items += [
                parts.item(e, category, official, documents) for e in official.category(category)
            ]
        return {
            "version": official.version,
            "steps": official.prompts.MAXIMUM_STEP_LIMIT,
            "added": official.prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC,
            "documents": [json.loads(d) for d in documents],
            "items": items,
        }

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        self.used += 1
        folder = Path.cwd() / f"sample-{self.used}"
        sample = Sample(self.official, request["id"], request.get("memory"), folder)
        self.samples[request["key"]] = sample
        if "memory" not in request["id"]:
            return {"messages": None, "visible": None, "state": sample.state()}
        (instance,) = sample.instances.values()
        kind, question = request["id"].rsplit("_", 1)[0], copy.deepcopy(sample.entry["question"])
        instruct = parts.part("model_handler.utils").add_memory_instruction_system_prompt
        shown = instruct(question, kind, sample.entry["scenario"], instance)
        visible = instance._dump_core_memory_to_context()
        return {"messages": shown, "visible": visible, "state": sample.state()}

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        sample = self.samples[request["key"]]
        try:
            result = sample.call(request["name"], request["arguments"])
            text = _text(result)
        except Exception as error:  # a tool's own failure is what the model reads
            result, text = None, f"Error during execution: {error!s}"
        return {"text": text, "value": _value(result), "state": sample.state()}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        sample, memory = self.samples.pop(request["key"]), None
        if "prereq" in sample.entry["id"]:
            (instance,) = sample.instances.values()
            instance._flush_memory_to_local_file()
            memory = json.loads(sample.snapshot.read_text(encoding="utf-8"))
        shutil.rmtree(sample.folder, ignore_errors=True)
        return {"memory": memory}

    def score(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"verdicts": [self._verdict(a["id"], a["turns"]) for a in request["answers"]]}

    def _verdict(self, item: str, turns: list[list[list[Any]]]) -> dict[str, Any]:
        entry, gold = self.official.entry(item), self.official.gold[item]
        if len(turns) > len(gold):
            raise ValueError(f"{item} has {len(gold)} turns, its answer {len(turns)}")
        known = self.official.functions(entry)
        written = [[[_written(c, known) for c in step] for step in turn if step] for turn in turns]
        self.used += 1
        name = f"sample{self.used}"
        try:
            found = self.official.checker.multi_turn_checker(
                written, gold[: len(turns)], entry, item.rsplit("_", 1)[0], name
            )
        finally:
            for key in self._instances(f"{name}_"):
                del vars(self.official.executor)[key]
        if not found["valid"]:
            return _judged(item, False, found["error_type"], _reason(found), _turn(found))
        if len(turns) < len(gold):  # the official runner asks for this before it checks
            error = f"{len(turns)} of {len(gold)} turns"
            return _judged(item, False, "multi_turn:force_terminated", error, len(turns))
        return _judged(item, True, None, "", len(gold))

    def _instances(self, start: str = "") -> list[str]:
        names = vars(self.official.executor)
        return [n for n in names if n.startswith(start) and n.lower().endswith("_instance")]

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        check = parts.part("eval_checker.agentic_eval.agentic_checker").agentic_checker
        verdicts = []
        for answer in request["answers"]:
            self.official.entry(answer["id"])
            found = check(answer["text"], self.official.gold[answer["id"]])
            error = None if found["valid"] else found["error_type"]
            verdicts.append(_judged(answer["id"], found["valid"], error, "", 0))
        return {"verdicts": verdicts}

    def status(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"open": len(self.samples), "instances": len(self._instances())}


def _written(call: Any, known: dict[str, Any]) -> str:
    """The call as the checker's executor reads it; nothing of it but literals is a model's text."""
    if call is None or call["name"] not in known or not all(map(_identifier, call["arguments"])):
        return FAILS
    arguments = ", ".join(f"{k}={v!r}" for k, v in call["arguments"].items())
    return f"{call['name']}({arguments})"


def _identifier(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


def _text(result: Any) -> str:
    """How the official executor shows a result."""
    if isinstance(result, str):
        return result
    if type(result) is not dict:
        return str(result)
    try:
        return json.dumps(result)
    except Exception:
        return str(result)


def _value(result: Any) -> Any:
    """The result as a JSON object or list, where it is one: references walk into it."""
    try:
        return (
            json.loads(json.dumps(result, allow_nan=False))
            if isinstance(result, dict | list)
            else None
        )
    except (TypeError, ValueError):
        return None


def _json(value: Any) -> str:
    try:
        return json.dumps(value, default=_plain)
    except (TypeError, ValueError):
        return repr(value)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if hasattr(value, "__dict__") and type(value).__module__.startswith("bfcl_eval"):
        kept = {k: v for k, v in vars(value).items() if k not in UNSEEN}
        if "parent" in kept:  # the way up would never end
            kept["parent"] = getattr(kept["parent"], "name", None)
        return kept
    return repr(value)


def _judged(item: str, valid: bool, kind: str | None, error: str, turn: int) -> dict[str, Any]:
    return {"id": item, "valid": valid, "error_type": kind, "error": error[:600], "turn": turn}


def _turn(found: dict[str, Any]) -> int:
    """The turn, from 0, in which an answer was found wrong: those before are right."""
    named = re.search(r"for turn (\d+)", found["error_message"])
    return int(named[1]) if named else len(found["execution_result"]) - 1


def _reason(found: dict[str, Any]) -> str:
    details = found.get("details", {})
    shown = details.get("differences") or details.get("missing_items")
    return str(found["error_message"]) + (f" {shown}" if shown else "")


def main() -> int:
    """Serves requests until standard input ends; any failure ends the process with a traceback."""
    replies, sys.stdout = sys.stdout, sys.stderr
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    _beside("bfcl_stubs").install(Path(sys.argv[2]))
    worker = Worker(parts.Official(Path(sys.argv[1])))
    names = ("load", "open", "call", "close", "score", "judge", "status")
    _beside("worker_serving").serve({name: getattr(worker, name) for name in names}, replies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
