"""The official v4 evaluation as the package runs it (`eval_runner`), for comparison with our worker.

``python -I -S bfcl_runner_worker.py WHEEL`` reads one JSON list of ``[id, category, text]`` and writes one
of booleans. It shares nothing with `cahl_core.evaluation.bfcl_worker`. Texts are our own: the package's
decoder evaluates arithmetic in them.
"""

from __future__ import annotations

import json
import sys
import types
from typing import Any


class _Anything(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_: None,
                               "__enter__": lambda self: None,
                               "__exit__": lambda self, *_: None})  # fmt: skip


def main() -> None:
    replies, sys.stdout = sys.stdout, sys.stderr
    sys.path.insert(0, sys.argv[1])
    for name in ("filelock", "tenacity", "tqdm", "dotenv", "numpy", "pandas", "overrides",
                 "bfcl_eval.constants.model_config", "bfcl_eval.model_handler.base_handler",
                 "bfcl_eval.model_handler.parser.java_parser",
                 "bfcl_eval.model_handler.parser.js_parser"):  # fmt: skip
        sys.modules[name] = _Anything(name)
    entry = types.SimpleNamespace(underscore_to_dot=False)
    sys.modules["bfcl_eval.constants.model_config"].MODEL_CONFIG_MAPPING = {"local": entry}  # type: ignore[attr-defined]
    from bfcl_eval import utils
    from bfcl_eval.constants.enums import Language, ReturnFormat
    from bfcl_eval.eval_checker import eval_runner
    from bfcl_eval.model_handler.utils import (
        default_decode_ast_prompting,
        parse_prompt_variation_params,
    )

    handler = types.SimpleNamespace(
        decode_ast=lambda result, language, has_tool_call_tag: default_decode_ast_prompting(
            result, language, has_tool_call_tag
        )
    )
    texts = json.loads(sys.stdin.read())
    entries: dict[str, Any] = {}
    gold: dict[str, Any] = {}
    for category in {category for _, category, _ in texts}:
        loaded = utils.load_dataset_entry(category, False, False)
        entries |= {e["id"]: e for e in loaded}
        if "relevance" not in category:
            answers = utils.load_ground_truth_entry(category)
            pairs = zip(loaded, answers, strict=True)
            gold |= {e["id"]: a["ground_truth"] for e, a in pairs}
    verdicts = []
    for name, category, text in texts:
        if "relevance" in category:
            result = eval_runner._evaluate_single_relevance_entry(
                handler, name, text, entries[name], "local", category
            )
        else:
            form, tagged = ReturnFormat.PYTHON, False
            if category == "format_sensitivity":
                value, tagged, *_ = parse_prompt_variation_params(name.split(":")[1])
                form = ReturnFormat(value)
            result = eval_runner._evaluate_single_ast_entry(
                handler, name, text, gold[name], entries[name], "local", category,
                Language.PYTHON, form, tagged,
            )  # fmt: skip
        verdicts.append(result["valid"])
    replies.write(json.dumps(verdicts))


if __name__ == "__main__":
    main()
