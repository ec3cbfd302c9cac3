"""The Dagster instance of this project: ``.dagster/`` with the settings of dagster.yaml."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cahl_core.files import storage_errors


def dagster_home(root: Path) -> Path:
    """``DAGSTER_HOME`` if set, else ``root/.dagster`` with the current ``dagster.yaml`` in it."""
    if named := os.environ.get("DAGSTER_HOME"):
        home = Path(named)
        home.mkdir(parents=True, exist_ok=True)
        return home
    home = root / ".dagster"
    with storage_errors(home):
        home.mkdir(exist_ok=True)
        shutil.copyfile(root / "dagster.yaml", home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    return home
