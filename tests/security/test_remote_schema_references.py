"""A tool's schema comes from data or users: checking a call against it must reach nobody."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from cahl_core.records import ToolCall, ToolSpec
from cahl_core.rewards import fits_schema


@pytest.mark.parametrize(
    "reference", ["http://127.0.0.1:9/schema.json", "file:///etc/passwd", "#/nowhere"]
)
def test_references_are_not_followed(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[Any] = []

    def connect(self: socket.socket, address: Any) -> None:
        reached.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    schema = {"type": "object", "properties": {"a": {"$ref": reference}}}
    assert not fits_schema(ToolCall("f", {"a": 1}), [ToolSpec("f", "", schema)])
    assert reached == []
