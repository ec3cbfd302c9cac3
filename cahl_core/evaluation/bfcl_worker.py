"""The official BFCL v3 checkers in a process of their own.

Run as ``python -I -S -B -X utf8 bfcl_worker.py WHEEL_DIR`` with BFCL_PROJECT_ROOT set: only the
standard library and the unzipped wheel are importable. One JSON request per line comes in on
standard input, one JSON reply per line goes out; what the package prints goes to standard error.

    {"op": "load", "categories": [...]}  →  {"items": [{"id", "category", "messages", "functions"}],
                                             "counts": {category: n}, "version": "BFCL_v3"}
    {"op": "score", "answers": [{"id", "category", "calls": [{"name", "arguments"}] | null}]}
                                         →  {"verdicts": [{"id", "valid", "error_type", "error"}]}

Prompts get the package's own language hints and string types; the checkers get the original
function documents. ``calls: null`` is an answer that could not be decoded. Calls are JSON values
and stay values: no text is evaluated.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

MODEL = "local"  # the checker maps "_" in a model's name to "/", so there is none
LANGUAGES = {"java": "Java", "javascript": "JavaScript"}


class _Absent(types.ModuleType):
    """Stands for a dependency whose names are imported by the package and never used here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _stub_modules() -> None:
    """Keeps vendor clients, tree_sitter and tenacity out: none takes part in checking."""
    config = types.ModuleType("bfcl_eval.constants.model_config")
    entry = types.SimpleNamespace(underscore_to_dot=False)
    config.MODEL_CONFIG_MAPPING = {MODEL: entry}  # type: ignore[attr-defined]
    sys.modules[config.__name__] = config
    for name in (
        "tenacity",
        "bfcl_eval.model_handler.parser.java_parser",
        "bfcl_eval.model_handler.parser.js_parser",
    ):
        sys.modules[name] = _Absent(name)


class Official:
    """The parts of the wheel that are used, and its data."""

    def __init__(self, wheel: Path) -> None:
        sys.path.insert(0, str(wheel))
        _stub_modules()
        mapping = importlib.import_module("bfcl_eval.constants.category_mapping")
        paths = importlib.import_module("bfcl_eval.constants.eval_config")
        checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
        handler = importlib.import_module("bfcl_eval.model_handler.utils")
        self.utils = importlib.import_module("bfcl_eval.utils")
        self.version: str = mapping.VERSION_PREFIX
        self.files: dict[str, str] = mapping.TEST_FILE_MAPPING
        self.questions: Path = paths.PROMPT_PATH
        self.answers: Path = paths.POSSIBLE_ANSWER_PATH
        self.check = checker.ast_checker
        self.add_hints = handler.func_doc_language_specific_pre_processing

    def entries(self, category: str) -> list[dict[str, Any]]:
        """The category's records as shipped, in the package's order."""
        loaded = self.utils.load_file(self.questions / self.files[category], sort_by_id=True)
        return list(loaded)

    def gold(self, category: str) -> dict[str, Any]:
        """Accepted answers by id; empty for categories judged by the presence of a call."""
        path = self.answers / self.files[category]
        if not path.exists():
            return {}
        return {r["id"]: r["ground_truth"] for r in self.utils.load_file(path)}


def load(official: Official, request: dict[str, Any]) -> dict[str, Any]:
    """The items of single-turn categories as a model sees them, and the size of every category."""
    items = []
    for category in request["categories"]:
        for entry in official.entries(category):
            (turn,) = entry["question"]
            functions = official.add_hints(entry["function"], category)
            items.append(
                {
                    "id": entry["id"],
                    "category": category,
                    "messages": turn,
                    "functions": functions,
                }
            )
    counts = {name: len(official.entries(name)) for name in official.files}
    return {"items": items, "counts": counts, "version": official.version}


def score(official: Official, request: dict[str, Any]) -> dict[str, Any]:
    """One verdict per answer, in order."""
    documents: dict[str, dict[str, Any]] = {}
    gold: dict[str, dict[str, Any]] = {}
    verdicts = []
    for answer in request["answers"]:
        category = answer["category"]
        if category not in documents:
            documents[category] = {e["id"]: e["function"] for e in official.entries(category)}
            gold[category] = official.gold(category)
        functions = documents[category][answer["id"]]
        try:
            verdict = _verdict(official, answer, functions, gold[category])
        except Exception as error:
            raise RuntimeError(f"the checker failed on item {answer['id']}: {error!r}") from error
        verdicts.append({"id": answer["id"], **verdict})
    return {"verdicts": verdicts}


def _verdict(
    official: Official, answer: dict[str, Any], functions: Any, gold: dict[str, Any]
) -> dict[str, Any]:
    category, calls = answer["category"], answer["calls"]
    decoded = None if calls is None else [{c["name"]: c["arguments"]} for c in calls]
    if "relevance" in category:
        called = not official.utils.is_empty_output(decoded)
        wanted = "irrelevance" not in category
        kind = "relevance_error:no_call" if wanted else "irrelevance_error:call"
        return {"valid": called is wanted, "error_type": None if called is wanted else kind,
                "error": ""}  # fmt: skip
    if decoded is None:
        return {"valid": False, "error_type": "ast_decoder:decoder_failed", "error": ""}
    language = LANGUAGES.get(category, "Python")
    result = official.check(functions, decoded, gold[answer["id"]], language, category, MODEL)
    if result["valid"]:
        return {"valid": True, "error_type": None, "error": ""}
    error = "; ".join(
        e if isinstance(e, str) else json.dumps(e, default=str) for e in result["error"]
    )
    return {"valid": False, "error_type": result["error_type"], "error": error[:600]}


def main() -> int:
    """Serves requests until standard input ends; any failure ends the process with a traceback."""
    replies, sys.stdout = sys.stdout, sys.stderr
    official = Official(Path(sys.argv[1]))
    operations = {"load": load, "score": score}
    for line in sys.stdin:
        request = json.loads(line)
        replies.write(json.dumps(operations[request["op"]](official, request)) + "\n")
        replies.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
