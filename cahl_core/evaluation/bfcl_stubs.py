"""Stand-ins for what the BFCL package imports and our workers do not need, or need little of.

Loaded by both workers, in processes that see the standard library and one unzipped wheel only. Vendor
clients, file locks, retries and parsers of other languages take no part in running or judging calls;
`mpmath` (logarithms in the MathAPI) is let in as the one real dependency; BM25+, which the key-value
memory searches with, is written out here.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import sys
import types
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ABSENT = (
    "tenacity",
    "tqdm",
    "bfcl_eval.constants.model_config",
    "bfcl_eval.model_handler.parser.java_parser",
    "bfcl_eval.model_handler.parser.js_parser",
)


class Absent(types.ModuleType):
    """A module whose names are imported by the package and never used here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class NoLock:
    """In place of ``filelock.FileLock``: the process is alone with read-only data."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


class BM25Plus:
    """BM25+ (Lv and Zhai, 2011) with k1 1.5, b 0.75, delta 1, over lists of words (at least one).

    ``get_scores(query)`` gives one number per text of the corpus. Equal to version 0.2.2 of the package
    rank-bm25 bit by bit, which also refuses an empty corpus with a `ZeroDivisionError`.
    """

    def __init__(
        self, corpus: Sequence[Sequence[str]], k1: float = 1.5, b: float = 0.75, delta: float = 1
    ) -> None:
        self.counts = [Counter(text) for text in corpus]
        mean = sum(map(len, corpus)) / len(corpus)
        known = Counter(word for count in self.counts for word in count)
        self.idf = {word: math.log((len(corpus) + 1) / n) for word, n in known.items()}
        self.k1, self.delta = k1, delta
        self.norms = [k1 * (1 - b + b * len(text) / mean) for text in corpus] if mean else []

    def get_scores(self, query: Sequence[str]) -> list[float]:
        scores = [0.0] * len(self.counts)
        for word in query:
            idf = self.idf.get(word, 0.0)
            if not idf:  # adds nothing, also where every text is empty
                continue
            for i, count in enumerate(self.counts):
                gain = count[word] * (self.k1 + 1) / (self.norms[i] + count[word])
                scores[i] += idf * (self.delta + gain)
        return scores


class OneMore:
    """Lets one package outside the search path be imported, and nothing that lies beside it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(
            name, self.folder / "__init__.py", submodule_search_locations=[str(self.folder)]
        )


def install_common() -> None:
    """What every part of the package imports and no part of ours needs."""
    for name in ABSENT:
        sys.modules[name] = Absent(name)
    _module("filelock", FileLock=NoLock)


def install(mpmath: Path) -> None:
    """Makes the package's simulators, loaders and checkers importable.

    Args:
        mpmath: folder of that package.
    """
    install_common()
    _module("overrides", final=lambda method: method)
    _module("rank_bm25", BM25Plus=BM25Plus)
    finder: Any = OneMore("mpmath", mpmath)
    sys.meta_path.append(finder)


def _module(name: str, **names: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(names)
    sys.modules[name] = module
