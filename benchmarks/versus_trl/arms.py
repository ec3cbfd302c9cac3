"""The arms as the driver sees them: processes that do a step when asked and answer with what it took."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from workload import Point

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OURS = ROOT / ".venv/bin/python"
THEIRS = ROOT / ".venv-trl/bin/python"
ARMS = ("ours", "trl_generate", "trl_continuous")


@dataclass(frozen=True)
class TrlSettings:
    """How GRPOTrainer is set; the fields are what the tuning varies.

    Attributes:
        weights: bf16 or fp32, of the frozen backbone where the processor multiplies in bf16.
        autocast: TRL's ``bf16=True``.
        micro_batch: rows per forward and backward (their greatest common divisor with the step's rows).
        generation: passed on to transformers' GenerationConfig.
        continuous: transformers' ContinuousBatchingConfig; left empty it is sized for the batch (its
            own defaults take half of the memory on a CPU), ``{"page_size": 256}`` and the like
            change single fields of that.
    """

    weights: str = "bf16"
    autocast: bool = True
    micro_batch: int = 8
    attention: str = "sdpa"
    compile: bool = False
    checkpointing: bool = False
    generation: dict[str, Any] = field(default_factory=dict)
    continuous: dict[str, Any] = field(default_factory=dict)


class Worker:
    """One process of an arm."""

    def __init__(self, python: Path, script: str, spec: dict[str, Any], threads: int) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT) if python == OURS else "",
        }
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  as long as the process
        self._process = subprocess.Popen(
            [str(python), str(HERE / script), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        try:
            self.ready = self._answer()
        except BaseException:
            self.end()
            raise

    def ask(self, **command: Any) -> dict[str, Any]:
        """One command and its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        """Ends the process; repeating it is harmless."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()  # read as `quit`
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._log.seek(0)
            tail = "".join(self._log.readlines()[-25:])
            raise RuntimeError(f"a worker ended with {self._process.returncode}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Arm:
    """One or, for TRL with two roles, two workers that take turns."""

    def __init__(
        self,
        name: str,
        point: Point,
        common: dict[str, Any],
        threads: int,
        settings: TrlSettings | None = None,
    ) -> None:
        spec = {**common, "arm": name, "point": asdict(point)}
        self.workers: list[Worker] = []
        try:
            if name == "ours":
                self.workers = [Worker(OURS, "ours.py", spec, threads)]
            else:
                chosen = asdict(settings or TrlSettings())
                for role in point.roles:
                    own = {**spec, "role": role, "settings": chosen}
                    self.workers.append(Worker(THEIRS, "theirs.py", own, threads))
        except BaseException:
            self.end()
            raise

    @property
    def facts(self) -> dict[str, Any]:
        return {k: v for k, v in self.workers[0].ready.items() if k != "ready"}

    def step(self, index: int) -> dict[str, Any]:
        """One step of all roles; seconds and tokens add up, peaks of workers that take turns do not."""
        answers = [worker.ask(do="step", index=index) for worker in self.workers]
        total = answers[0]
        for answer in answers[1:]:
            for key in ("seconds", "cpu_seconds", "fed"):
                for phase, value in answer[key].items():
                    total[key][phase] = total[key].get(phase, 0) + value
            for phase, value in answer["peak"].items():
                total["peak"][phase] = max(total["peak"].get(phase, 0), value)
            for key in ("total", "sampled", "trained"):
                total[key] += answer[key]
            total["norms"] |= answer["norms"]
        return total

    def end(self) -> None:
        for worker in self.workers:
            worker.end()


def make_adapter(backbone: Path, folder: Path) -> None:
    """Writes the adapter that all arms start from, in a process of its own."""
    spec = {"make_adapter": True, "backbone": str(backbone), "adapter": str(folder)}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [str(OURS), str(HERE / "ours.py"), json.dumps(spec)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
