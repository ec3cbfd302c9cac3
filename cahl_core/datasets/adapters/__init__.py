"""One adapter per upstream format: files of a source to records in the form of `ToolTask`.

An adapter is a `Reader`. It yields, for every source record, the JSON form of a `ToolTask`, or
``{"id", "source", "malformed": reason, "rule": name}`` for one that cannot be one (``rule`` may be left
out). It judges nothing else: the rules of `cahl_core.datasets.checks` come after it.
"""

from __future__ import annotations

from cahl_core.datasets.adapters.base import (
    Convert,
    Reader,
    ReadLimits,
    Record,
    malformed,
    per_record,
)
from cahl_core.datasets.adapters.benchmarks import read_api_bank, read_tau_bench
from cahl_core.datasets.adapters.chat import glaive, openai_messages, sharegpt, toolace
from cahl_core.datasets.adapters.dialogues import read_sgd, read_taskmaster
from cahl_core.datasets.adapters.nested import mtu_bench, nestools, read_seal_tools
from cahl_core.datasets.adapters.nestful import read_complexfuncbench, read_nestful
from cahl_core.datasets.adapters.single import qa, qa_id, toolrl, toolrl_id, xlam
from cahl_core.datasets.adapters.tasks import convert as convert_task

# Formats with one record per line or value, which can be read from any file.
CONVERTERS: dict[str, Convert] = {
    "openai-messages": openai_messages,
    "sharegpt": sharegpt,
    "toolace": toolace,
    "xlam": xlam,
    "glaive": glaive,
    "apigen-mt": sharegpt,
    "toolrl": toolrl,
    "qa": qa,
    "nestools": nestools,
    "mtu-bench": mtu_bench,
    "tool-tasks": convert_task,
}
_IDENTIFIED = {"toolrl": toolrl_id, "qa": qa_id}
READERS: dict[str, Reader] = {
    **{
        name: per_record(convert, identify=_IDENTIFIED.get(name))
        for name, convert in CONVERTERS.items()
    },
    "sgd": read_sgd,
    "taskmaster": read_taskmaster,
    "api-bank-raw": read_api_bank,
    "seal-tools": read_seal_tools,
    "tau-bench": read_tau_bench,
    "complexfuncbench": read_complexfuncbench,
    "nestful": read_nestful,
}

__all__ = [
    "CONVERTERS",
    "READERS",
    "Convert",
    "ReadLimits",
    "Reader",
    "Record",
    "malformed",
    "per_record",
]
