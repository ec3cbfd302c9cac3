"""What `make ui` checks before it starts anything."""

from __future__ import annotations

import socket

import pytest

from cahl_core.errors import ConfigError
from pipelines.ui import port


def test_a_port_in_use_is_named_with_the_variable_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        monkeypatch.setenv("MLFLOW_PORT", str(number))
        with pytest.raises(ConfigError, match=f"port {number}.*") as caught:
            port("MLFLOW_PORT", 5000)
    assert f"MLFLOW_PORT={number + 1}" in caught.value.hint
    assert port("MLFLOW_PORT", 5000) == number


@pytest.mark.parametrize("text", ["http", "0", "70000", "-1"])
def test_what_is_no_port_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_PORT", text)
    with pytest.raises(ConfigError, match="is not a port"):
        port("DAGSTER_PORT", 3000)
