"""Trains in a process of its own and, if asked to, kills itself in the middle of an update.

python served_training_worker.py ROOT TRAIN_SETTINGS_AS_JSON KILL_AT_STEP
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from small_project import pay_for_even_tokens, small_settings

from cahl_core.stage import StageRun
from cahl_core.training import joint
from cahl_core.training.places import Places
from cahl_core.training.trainer import Trainer

root, settings, step = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
learn = Trainer._learn


def dies(self: Trainer, trees: Any, number: int, row: Any) -> None:
    if number == step:
        os.kill(os.getpid(), signal.SIGKILL)
    learn(self, trees, number, row)


patch = pytest.MonkeyPatch()
pay_for_even_tokens(patch)
patch.setattr(Trainer, "_learn", dies)
joint.train(StageRun("train", root, small_settings(**settings)), Places.of_project(root))
