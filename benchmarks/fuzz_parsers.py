"""A million mutated texts through the parsers and their span functions: no exception.

    python benchmarks/fuzz_parsers.py --texts 1000000

Prints texts per second (of the parsers alone, without making the texts) and what became of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/unit"))

from text_mutations import mutated

from cahl_core.protocol.parsing import ParseFailure, parse_execution, parse_plan, parse_single
from cahl_core.protocol.spans import execution_spans, plan_spans, single_spans

READERS = {
    "plan": (parse_plan, plan_spans),
    "execution": (parse_execution, execution_spans),
    "single": (parse_single, single_spans),
}


def main() -> None:
    """Runs until done or until a parser raises; the text that did it is printed."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--texts", type=int, default=1_000_000)
    arguments.add_argument("--seed", type=int, default=1)
    asked = arguments.parse_args()
    outcomes: Counter[str] = Counter()
    seconds, longest, characters = 0.0, 0, 0
    for text in islice(mutated(asked.seed), asked.texts):
        characters += len(text)
        longest = max(longest, len(text))
        began = time.perf_counter()
        try:
            for name, (parse, spans) in READERS.items():
                value = parse(text)
                spans(text)
                failed = isinstance(value, ParseFailure)
                outcomes[f"{name}: {kind(value.reason) if failed else 'parsed'}"] += 1
        except Exception:
            print(f"raised by {text!r}", file=sys.stderr)
            raise
        seconds += time.perf_counter() - began
    report = {
        "texts": asked.texts,
        "seed": asked.seed,
        "exceptions": 0,
        "texts_per_second": round(asked.texts / seconds),
        "mean_characters": round(characters / asked.texts),
        "longest_text": longest,
        "outcomes": dict(outcomes.most_common()),
    }
    print(json.dumps(report, indent=1))


def kind(reason: str) -> str:
    """A reason without its details."""
    return "".join(" " if c.isdigit() else c for c in reason.partition(":")[0]).strip()


if __name__ == "__main__":
    main()
