"""One adapter per upstream format: files of a source to records in the form of `ToolTask`.

An adapter is a `Reader`. It yields, for every source record, the JSON form of a `ToolTask`, or
``{"id", "source", "malformed": reason, "rule": name}`` for one that cannot be one (``rule`` may be left
out). It judges nothing else: the rules of `cahl_core.datasets.checks` come after it.
"""

from __future__ import annotations

from cahl_core.datasets.adapters.base import Reader, ReadLimits, Record, malformed, per_record
from cahl_core.datasets.adapters.benchmarks import read_api_bank, read_tau_bench
from cahl_core.datasets.adapters.chat import glaive, openai_messages, sharegpt, toolace
from cahl_core.datasets.adapters.dialogues import read_sgd, read_taskmaster
from cahl_core.datasets.adapters.nested import mtu_bench, nestools, read_seal_tools
from cahl_core.datasets.adapters.nestful import read_complexfuncbench, read_nestful
from cahl_core.datasets.adapters.single import qa, qa_id, toolrl, toolrl_id, xlam
from cahl_core.datasets.adapters.tasks import convert as convert_task

READERS: dict[str, Reader] = {
    "openai-messages": per_record(openai_messages),
    "sharegpt": per_record(sharegpt),
    "toolace": per_record(toolace),
    "xlam": per_record(xlam),
    "glaive": per_record(glaive),
    "apigen-mt": per_record(sharegpt),
    "toolrl": per_record(toolrl, identify=toolrl_id),
    "sgd": read_sgd,
    "taskmaster": read_taskmaster,
    "api-bank-raw": read_api_bank,
    "qa": per_record(qa, identify=qa_id),
    "nestools": per_record(nestools),
    "seal-tools": read_seal_tools,
    "mtu-bench": per_record(mtu_bench),
    "tau-bench": read_tau_bench,
    "complexfuncbench": read_complexfuncbench,
    "nestful": read_nestful,
    "tool-tasks": per_record(convert_task),
}

__all__ = ["READERS", "ReadLimits", "Reader", "Record", "malformed", "per_record"]
