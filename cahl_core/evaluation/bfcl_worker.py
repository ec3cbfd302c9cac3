"""The official BFCL single-turn checkers, decoders and prompts, v3 or v4, in a process of their own.

Run as ``python -I -S -B -X utf8 bfcl_worker.py WHEEL_DIR`` with BFCL_PROJECT_ROOT set: only the standard
library and the unzipped wheel are importable. One JSON request per line comes in on standard input, one
JSON reply per line goes out; what the package prints goes to standard error. A reply repeats the number
``request`` of its request.

    {"op": "load", "categories": […], "official_prompt": false}
        → {"version": "BFCL_v4", "counts": {category: n}, "files": [path, …],
           "items": [{"id", "category", "messages", "functions", "gold"}]}
    {"op": "format_items"}                                                    (v4 only)
        → {"version", "files", "items": [{"id", "category", "messages", "functions", "gold"}]}
    {"op": "score", "answers": [{"id", "category", "calls": [{"name", "arguments"}] | null}]}
        → {"verdicts": [{"id", "valid", "error_type", "error"}]}
    {"op": "score_texts", "answers": [{"id", "category", "text"}]}
        → {"verdicts": [{"id", "valid", "error_type", "error", "calls": […] | null}]}

A model is shown the package's language hints and string types; the checkers get the original function
documents. ``calls: null`` is an answer that could not be decoded. Answers stay values: the package's
decoder would run arithmetic in a text by ``eval``, which `bfcl_literals.arithmetic` replaces.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
MODEL = "local"  # the checker maps "_" in a model's name to "/", so there is none
ERROR_LENGTH = 600


def _beside(name: str) -> Any:
    """A file of this folder, which is not, and must not be, on the search path."""
    spec: Any = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stubs, literals = _beside("bfcl_stubs"), _beside("bfcl_literals")


def stub_modules() -> None:
    """Keeps vendor clients, tree_sitter, tenacity and filelock out: none takes part in checking."""
    stubs.install_common()
    entry = types.SimpleNamespace(underscore_to_dot=False)
    sys.modules["bfcl_eval.constants.model_config"].MODEL_CONFIG_MAPPING = {MODEL: entry}  # type: ignore[attr-defined]


class Official:
    """The parts of one wheel that are used, and its data."""

    def __init__(self, wheel: Path) -> None:
        sys.path.insert(0, str(wheel))
        stub_modules()
        self.categories = importlib.import_module("bfcl_eval.constants.category_mapping")
        self.handler = importlib.import_module("bfcl_eval.model_handler.utils")
        self.handler.eval = literals.arithmetic  # type: ignore[attr-defined]  # hides the built-in one there
        self.utils = importlib.import_module("bfcl_eval.utils")
        paths = importlib.import_module("bfcl_eval.constants.eval_config")
        checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
        self.check = checker.ast_checker
        self.questions: Path = paths.PROMPT_PATH
        self.answers: Path = paths.POSSIBLE_ANSWER_PATH
        self.version: str = self.categories.VERSION_PREFIX
        self.newer = self.version != "BFCL_v3"
        self._kept: dict[Any, Any] = {}

    def file(self, category: str) -> Path:
        return self.questions / f"{self.version}_{category}.json"

    def collection(self, name: str) -> list[str]:
        """The official categories of a group: single_turn, multi_turn, python, …"""
        return list(self.categories.TEST_COLLECTION_MAPPING[name])

    def entries(self, category: str) -> list[dict[str, Any]]:
        """The category's records as shipped, in the package's order; not to be changed."""
        return self._once(
            ("entries", category), lambda: list(self.utils.load_file(self.file(category), True))
        )

    def shown(self, category: str) -> list[dict[str, Any]]:
        """The same records with the documents as models see them."""
        entries = copy.deepcopy(self.entries(category))
        if self.newer:
            return list(self.utils.add_language_specific_hint_to_function_doc(entries))
        for entry in entries:
            hinted = self.handler.func_doc_language_specific_pre_processing
            entry["function"] = hinted(entry["function"], category)
        return entries

    def documents(self, category: str) -> dict[str, Any]:
        return self._once(
            ("documents", category),
            lambda: {e["id"]: e["function"] for e in self.entries(category)},
        )

    def gold(self, category: str) -> dict[str, Any]:
        """Accepted answers by id; empty for categories judged by the presence of a call."""
        path = self.answers / self.file(category).name
        if not path.exists():
            return {}
        return self._once(
            ("gold", category),
            lambda: {r["id"]: r["ground_truth"] for r in self.utils.load_file(path)},
        )

    def language(self, category: str) -> Any:
        """What the checker calls the category's language."""
        name = "javascript" if "javascript" in category else "java" if "java" in category else ""
        if self.newer:
            return importlib.import_module("bfcl_eval.constants.enums").Language(name or "python")
        return {"java": "Java", "javascript": "JavaScript"}.get(name, "Python")

    def prompted(self, entry: dict[str, Any]) -> list[dict[str, Any]]:
        """The official messages for a model that is prompted with text; changes ``entry``."""
        (turn,) = entry["question"]
        built = self.handler.system_prompt_pre_processing_chat_model(
            turn, entry["function"], entry["id"]
        )
        return list(built)

    def decode(self, answer: dict[str, Any]) -> Any:
        """What the official decoder reads out of a text; raises whatever it raises."""
        text = answer["text"]
        if not self.newer:
            return self.handler.default_decode_ast_prompting(text, "Python")
        form, tagged = "python", False
        if ":" in answer["id"]:
            configuration = answer["id"].split(":")[1]
            form, tagged, *_ = self.handler.parse_prompt_variation_params(configuration)
        formats = importlib.import_module("bfcl_eval.constants.enums").ReturnFormat
        return self.handler.default_decode_ast_prompting(text, formats(form), tagged)

    def _once(self, key: tuple[str, str], load: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = load()
        kept: T = self._kept[key]
        return kept


def load(official: Official, request: dict[str, Any]) -> dict[str, Any]:
    """The items of single-turn categories as a model sees them."""
    items = []
    for category in request["categories"]:
        gold = official.gold(category)
        for entry in official.shown(category):
            (turn,) = entry["question"]
            if request.get("official_prompt"):
                turn = official.prompted(entry)
            items.append(_item(entry["id"], category, turn, entry, gold.get(entry["id"])))
    return {**_provenance(official), "items": items}


def format_items(official: Official, _: dict[str, Any]) -> dict[str, Any]:
    """Every item of format_sensitivity with the prompt of its configuration, its category."""
    items = []
    for entry in official.utils.load_dataset_entry("format_sensitivity"):
        _, configuration, source = entry["id"].split(":")
        gold = official.gold(source.rsplit("_", 1)[0])[source]
        messages = official.prompted(entry)
        items.append(_item(entry["id"], configuration, messages, entry, gold))
    return {**_provenance(official), "items": items}


def _item(name: str, category: str, messages: Any, entry: Any, gold: Any) -> dict[str, Any]:
    return {
        "id": name,
        "category": category,
        "messages": messages,
        "functions": entry["function"],
        "gold": gold,
    }


def _provenance(official: Official) -> dict[str, Any]:
    """The version, and what of the package a score depends on, as paths within the wheel."""
    wheel = official.questions.parents[1]
    code = ["eval_checker/ast_eval/ast_checker.py", "model_handler/utils.py", "utils.py"]
    files = [wheel / "bfcl_eval" / name for name in code]
    for category in official.collection("single_turn"):
        answers = official.answers / official.file(category).name
        files += [p for p in (official.file(category), answers) if p.exists()]
    return {"version": official.version, "files": [str(f.relative_to(wheel)) for f in files]}


def score(official: Official, request: dict[str, Any]) -> dict[str, Any]:
    """One verdict per answer, in order."""
    verdicts = []
    for answer in request["answers"]:
        calls = answer["calls"]
        decoded = None if calls is None else [{c["name"]: c["arguments"]} for c in calls]
        verdicts.append({"id": answer["id"], **_verdict(official, answer, decoded)})
    return {"verdicts": verdicts}


def score_texts(official: Official, request: dict[str, Any]) -> dict[str, Any]:
    """One verdict per text and what was read out of it, in order."""
    verdicts = []
    for answer in request["answers"]:
        try:
            decoded, why = official.decode(answer), ""
            repr(decoded)  # an integer of thousands of digits can be neither judged nor written
        except Exception as error:  # of the text: no call, by the official rule
            decoded, why = None, repr(error)
        verdict = _verdict(official, answer, decoded, why)
        well_formed = official.utils.is_function_calling_format_output(decoded)
        calls = [{"name": n, "arguments": a} for c in decoded for n, a in c.items()] \
            if well_formed else None  # fmt: skip
        verdicts.append({"id": answer["id"], **verdict, "calls": literals.plain(calls)})
    return {"verdicts": verdicts}


def _verdict(
    official: Official, answer: dict[str, Any], decoded: Any, why: str = ""
) -> dict[str, Any]:
    category, name = answer["category"], answer["id"]
    if "relevance" in category:
        return _relevance(category, not official.utils.is_empty_output(decoded), why)
    if decoded is None:
        return _wrong("ast_decoder:decoder_failed", why)
    if not official.utils.is_function_calling_format_output(decoded):
        return _wrong("ast_decoder:decoder_wrong_output_format", "")
    if ":" in name:  # format_sensitivity: the original item's name also says what kind it is
        name = category = name.split(":")[2]
    source = name.rsplit("_", 1)[0]
    try:
        result = official.check(
            official.documents(source)[name],
            decoded,
            official.gold(source)[name],
            official.language(source),
            category,
            MODEL,
        )
    except Exception as error:
        raise RuntimeError(f"the checker failed on item {name}: {error!r}") from error
    if result["valid"]:
        return {"valid": True, "error_type": None, "error": ""}
    said = [e if isinstance(e, str) else json.dumps(e, default=str) for e in result["error"]]
    return _wrong(result["error_type"], "; ".join(said))


def _relevance(category: str, called: bool, why: str) -> dict[str, Any]:
    if called == ("irrelevance" not in category):
        return {"valid": True, "error_type": None, "error": ""}
    if called:
        return _wrong("irrelevance_error:decoder_success", "a call where no function fits")
    return _wrong("relevance_error:decoder_failed", why or "no call")


def _wrong(kind: str, error: str) -> dict[str, Any]:
    return {"valid": False, "error_type": kind, "error": error[:ERROR_LENGTH]}


def main() -> int:
    replies, sys.stdout = sys.stdout, sys.stderr
    official = Official(Path(sys.argv[1]))
    _beside("worker_serving").serve(
        {
            "load": lambda request: load(official, request),
            "format_items": lambda request: format_items(official, request),
            "score": lambda request: score(official, request),
            "score_texts": lambda request: score_texts(official, request),
        },
        replies,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
