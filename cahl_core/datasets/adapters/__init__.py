"""One adapter per upstream format: files of a source to records in the form of `ToolTask`.

An adapter is a `Reader`. It yields, for every source record, the JSON form of a `ToolTask`, or
``{"id", "source", "malformed": reason, "rule": name}`` for one that cannot be one (``rule`` may be left
out). It judges nothing else: the rules of `cahl_core.datasets.checks` come after it.
"""

from __future__ import annotations

from cahl_core.datasets.adapters.base import Reader, ReadLimits, Record, malformed, per_record
from cahl_core.datasets.adapters.nestful import read_complexfuncbench, read_nestful
from cahl_core.datasets.adapters.tasks import convert as convert_task

READERS: dict[str, Reader] = {
    "complexfuncbench": read_complexfuncbench,
    "nestful": read_nestful,
    "tool-tasks": per_record(convert_task),
}

__all__ = ["READERS", "ReadLimits", "Reader", "Record", "malformed", "per_record"]
