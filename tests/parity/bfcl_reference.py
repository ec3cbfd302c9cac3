"""The official multi-turn code used as its package uses it, text evaluated and all, on gold answers.

Run as ``python -I -S -B bfcl_reference.py WHEEL STUBS MPMATH VERSION`` (see `bfcl_multi_turn` tests);
prints one JSON object. Only what the answer files hold is evaluated.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
CODE = "bfcl_eval.eval_checker.multi_turn_eval."


def entries(wheel: Path, version: str, category: str) -> list[tuple[dict[str, Any], Any]]:
    data = wheel / "bfcl_eval" / "data"
    name = f"BFCL_{version}_multi_turn_{category}.json"
    gold = {r["id"]: r["ground_truth"] for r in lines(data / "possible_answer" / name)}
    return [(e, gold[e["id"]]) for e in lines(data / name)]


def lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def one_name(wheel: Path, version: str) -> dict[str, int]:
    """Gold answers of the base category found right after another answer under the same name."""
    check = importlib.import_module(f"{CODE}multi_turn_checker").multi_turn_checker
    found = {}
    for before in ("first", "nothing"):  # names that are no identifiers would make all answers pass
        right = 0
        for entry, gold in entries(wheel, version, "base"):
            full = [[turn] if turn else [] for turn in gold]
            poor = [[turn[:1]] if turn and before != "nothing" else [] for turn in gold]
            check(poor, gold, entry, "multi_turn_base", before)
            right += check(full, gold, entry, "multi_turn_base", before)["valid"]
        found[before] = right
    return found


def results(wheel: Path, version: str) -> dict[str, list[str]]:
    """What the official executor shows for the gold calls of every twentieth item, by item."""
    run = importlib.import_module(f"{CODE}multi_turn_utils").execute_multi_turn_func_call
    found = {}
    for category in CATEGORIES:
        for entry, gold in entries(wheel, version, category)[::20]:
            place = (entry["initial_config"], entry["involved_classes"], "reference", entry["id"])
            turns = [run(turn, *place, long_context=category == "long_context") for turn in gold]
            found[entry["id"]] = [text for shown, _ in turns for text in shown]
    return found


def main() -> None:
    wheel, stubs, mpmath, version = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
    spec: Any = importlib.util.spec_from_file_location("bfcl_stubs", stubs)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install(mpmath)
    sys.path.insert(0, str(wheel))
    out, sys.stdout = sys.stdout, sys.stderr
    found = {"one_name": one_name(wheel, version), "results": results(wheel, version)}
    print(json.dumps(found), file=out)


if __name__ == "__main__":
    main()
