"""BFCL v3 and v4: benchmarks on the official checkers, and the official averages."""

from cahl_core.evaluation.bfcl.former import (
    AST,
    IRRELEVANCE,
    LIVE_AST,
    NON_LIVE_AST,
    RELEVANCE,
    SINGLE_TURN,
    UNANSWERABLE,
    VERSION,
    BfclItem,
    Scored,
    by_category,
    load_items,
    official,
    proportion,
    stratum,
    summary,
)
from cahl_core.evaluation.bfcl.schemas import json_schema

__all__ = [
    "AST", "IRRELEVANCE", "LIVE_AST", "NON_LIVE_AST", "RELEVANCE", "SINGLE_TURN", "UNANSWERABLE",
    "VERSION", "BfclItem", "Scored", "by_category", "json_schema", "load_items", "official",
    "proportion", "stratum", "summary",
]  # fmt: skip
