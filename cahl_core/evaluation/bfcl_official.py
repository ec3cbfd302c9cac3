"""The parts of an official BFCL package that run and judge conversations, and its data by item.

Loaded by `bfcl_simulator_worker`, in a process that sees the standard library and one unzipped wheel.
Questions, documents and answers come from the package's own loaders.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Official:
    """The parts of the wheel that are used, and its data by item."""

    def __init__(self, wheel: Path) -> None:
        sys.path.insert(0, str(wheel))
        self.checker = part("eval_checker.multi_turn_eval.multi_turn_checker")
        self.executor = part("eval_checker.multi_turn_eval.multi_turn_utils")
        self.prompts = part("constants.default_prompts")
        self.paths = part("constants.eval_config")
        self.utils = part("utils")
        self.mapping = part("constants.category_mapping")
        self.version: str = self.mapping.VERSION_PREFIX
        self.entries: dict[str, dict[str, Any]] = {}
        self.gold: dict[str, Any] = {}
        self.loaded: dict[str, list[str]] = {}
        self.methods: dict[str, dict[str, Any]] = {}

    def category(self, name: str) -> list[dict[str, Any]]:
        """The items of a category in the package's order, documents filled in by its own loader."""
        if name not in self.loaded:
            entries, gold = self._v3(name) if self.version == "BFCL_v3" else self._v4(name)
            self.loaded[name] = [e["id"] for e in entries]
            self.entries |= {e["id"]: e for e in entries}
            self.gold |= gold
        return [self.entries[i] for i in self.loaded[name]]

    def _v4(self, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        entries = self.utils.load_dataset_entry(name)
        answers = self.utils.load_ground_truth_entry(name)
        prefix = "memory" if name.startswith("memory") else name
        gold = {name + a["id"].removeprefix(prefix): a["ground_truth"] for a in answers}
        return entries, gold

    def _v3(self, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        sys.modules.setdefault(
            "bfcl_eval.eval_checker.eval_runner_helper", _holder(load_file=self.utils.load_file)
        )
        file = self.mapping.TEST_FILE_MAPPING[name]
        entries = self.utils.load_file(self.paths.PROMPT_PATH / file, sort_by_id=True)
        entries = part("_llm_response_generation").process_multi_turn_test_case(entries)
        hints = part("model_handler.utils").func_doc_language_specific_pre_processing
        for entry in entries:
            hints(entry["function"], name)
        answers = self.utils.load_file(self.paths.POSSIBLE_ANSWER_PATH / file)
        return entries, {a["id"]: a["ground_truth"] for a in answers}

    def entry(self, item: str) -> dict[str, Any]:
        """One item, whether or not its category was asked for before."""
        if item not in self.entries:
            self.category(item.rsplit("_", 1)[0].removesuffix("_prereq"))
        return self.entries[item]

    def simulator(self, class_name: str) -> Any:
        """The class of that name."""
        module = importlib.import_module(self.executor.CLASS_FILE_PATH_MAPPING[class_name])
        return getattr(module, class_name)

    def functions(self, entry: dict[str, Any]) -> dict[str, Any]:
        """The public methods of an item's classes, as functions of the instance."""
        found: dict[str, Any] = {}
        for class_name in entry["involved_classes"]:
            if class_name not in self.methods:
                self.methods[class_name] = dict(public(self.simulator(class_name)))
            found |= self.methods[class_name]
        return found


def item(
    entry: dict[str, Any], category: str, official: Official, documents: dict[str, int]
) -> dict[str, Any]:
    def numbers(functions: list[dict[str, Any]]) -> list[int]:
        return [documents.setdefault(json.dumps(f), len(documents)) for f in functions]

    gold: Any = official.gold.get(entry["id"])
    calls = None
    if "multi_turn" in category:
        calls = [[_parsed(text, official.functions(entry)) for text in turn] for turn in gold]
    return {
        "id": entry["id"],
        "category": category,
        "scenario": entry.get("scenario"),
        "depends_on": entry.get("depends_on"),
        "question": entry["question"],
        "functions": numbers(entry["function"]),
        "held_back": {t: numbers(f) for t, f in entry.get("missed_function", {}).items()},
        "seed": hashlib.sha256(json.dumps(entry.get("initial_config")).encode()).hexdigest(),
        "gold": gold,
        "gold_calls": calls,
    }


def _parsed(text: str, owners: dict[str, Any]) -> dict[str, Any]:
    """A gold call as JSON: positional arguments get the names they have in the method."""
    call: Any = ast.parse(text, mode="eval").body
    name = call.func.id
    values = [ast.literal_eval(a) for a in call.args]
    named = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    bound = inspect.signature(owners[name]).bind(None, *values, **named).arguments
    return {"name": name, "arguments": dict(list(bound.items())[1:])}


def public(owner: Any) -> Iterator[tuple[str, Any]]:
    kind = inspect.isfunction if inspect.isclass(owner) else inspect.ismethod
    return ((n, m) for n, m in inspect.getmembers(owner, kind) if not n.startswith("_"))


def part(name: str) -> Any:
    return importlib.import_module(f"bfcl_eval.{name}")


def _holder(**names: Any) -> Any:
    module = type(sys)("holder")
    vars(module).update(names)
    return module
