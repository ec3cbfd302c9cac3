"""Kills training at random points and starts it again, until it is done; compares with a straight run.

    python tests/kill/kill_harness.py --kills 200 --work /tmp/kill --report kills.json

The process imports everything once, on one thread and without a parallel region, and forks a child for
every attempt. A campaign is one run from nothing to its end; it ends when an attempt does. Attempts are
stopped by SIGKILL after a random time, by SIGKILL at a random file operation (which finds the short
moments in which files are half-written), or by SIGTERM after a random time. Between attempts the newest
checkpoint may be damaged.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402

torch.set_num_threads(1)

from toy import runs  # noqa: E402

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
STATEFUL: dict[str, Any] = {
    "steps": 8, "tasks_per_step": 2, "plans_per_task": 6, "executions_per_plan": 2,
    "checkpoint_every": 1, "keep_checkpoints": 3, "snapshot_every": 3, "evaluate_every": 3,
    "evaluate_tasks": 2, "inner_epochs": 2, "max_refills": 2, "max_bad_steps": 3,
    "curriculum": {"kind": "capability", "low": 0.2, "high": 0.9},
    "trace": {"every": 1, "trees": 1000},
}  # fmt: skip
_ROLE = {
    "learning_rate": 4e-3, "kl_weight": 0.03, "max_tokens": 10, "warmup_steps": 2,
    "schedule": "cosine", "dynamic_sampling": True,
}  # fmt: skip
COUNTS = "counts: "
VARIANTS: dict[str, dict[str, Any]] = {
    "joint": {},
    "alternate_k": {"arm": "alternate_k", "alternate_every": 2, "history": "free_running"},
    "shared_adapter": {"weights": "shared_adapter", "loss_type": "gspo"},
    "two_models": {"weights": "two_models", "steps": 5},
    "sigterm": {"checkpoint_every": 1000},  # only what SIGTERM makes it save lets it get on
}
KINDS = ("clock", "clock", "file event", "file event", "term")
MOST_ATTEMPTS = 200


def variant_settings(name: str) -> Any:
    """Everything that holds state is on."""
    own = dict(VARIANTS[name])
    model = {"weights": own.pop("weights", "two_adapters")}
    dynamic = {**_ROLE, "dynamic_sampling": True}
    train = {**STATEFUL, "planner": dynamic, "executor": _ROLE, **own}
    return runs.settings(train.pop("arm", "joint"), 7, model=model, **train)


# --- children ------------------------------------------------------------------------------------


def child(work: Path, name: str, out: Path, log: Path, stop_at: int | None) -> int:
    """Forks a process that trains; returns its id. ``stop_at``: it kills itself at that event."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        signal.signal(signal.SIGTERM, _terminate)  # as the command line does
        seen = _watch_files(str(out), stop_at)
        rows = runs.train(work / "start", out, variant_settings(name))
        counts = {
            "file_events": seen(),
            "refills": sum(r["refills"] for r in rows),
            "refused_by_the_curriculum": rows[-1]["sampler/refused"],
        }
        print(COUNTS + json.dumps(counts), flush=True)
        code = 0
    except SystemExit:
        code = 143
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(143)


def _watch_files(folder: str, stop_at: int | None) -> Callable[[], int]:
    """Counts operations on files below ``folder``; before number ``stop_at`` the process is killed."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in EVENTS or not isinstance(args[0], str | os.PathLike):
            return
        if os.fspath(args[0]).startswith(folder):
            count += 1
            if count == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def wait(pid: int, seconds: float | None) -> int | None:
    """The exit code (negative: the signal), or ``None`` after ``seconds``."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, 0 if deadline is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(0.002)


# --- campaigns -----------------------------------------------------------------------------------


@dataclass
class Straight:
    """What the uninterrupted run of a variant left, how long it took, how many file operations."""

    files: dict[str, str]
    tasks: Counter[str]
    seconds: float
    counts: dict[str, float]


@dataclass
class Report:
    """What happened in all campaigns."""

    stops: Counter[str] = field(default_factory=Counter)
    where: Counter[str] = field(default_factory=Counter)
    damage: Counter[str] = field(default_factory=Counter)
    campaigns: Counter[str] = field(default_factory=Counter)
    passed_over: int = 0
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}


class Harness:
    """Runs campaigns below ``work`` until enough SIGKILLs have hit."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work = work
        self.random = random.Random(seed)
        self.report = Report()
        self.straight: dict[str, Straight] = {}

    def prepare(self) -> None:
        """A warm start, made by a child so that this process stays as it is."""
        pid = os.fork()
        if not pid:
            code = 1
            try:
                runs.warm_start(self.work / "start", "hierarchical", steps=40)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        assert wait(pid, None) == 0, "the warm start failed"
        _import_everything(self.work / "start")

    def run_straight(self, name: str) -> Straight:
        """The run that nobody stops."""
        if name not in self.straight:
            out, log = self.work / f"{name}-straight", self.work / f"{name}-straight.log"
            started = time.monotonic()
            code = wait(child(self.work, name, out, log, None), None)
            seconds = time.monotonic() - started
            text = log.read_text()
            assert code == 0, f"the straight run of {name} failed:\n{text[-3000:]}"
            counts = json.loads(text.splitlines()[-1].removeprefix(COUNTS))
            self.straight[name] = Straight(digests(out), trained_tasks(out), seconds, counts)
        return self.straight[name]

    def kills(self) -> int:
        """SIGKILLs so far."""
        return self.report.stops["clock"] + self.report.stops["file event"]

    def done(self, kills: int) -> bool:
        """Enough SIGKILLs, and every kind of trouble was met; or something differed."""
        met = self.report.passed_over and all(self.report.stops[kind] for kind in KINDS)
        return bool(self.report.problems) or (self.kills() >= kills and bool(met))

    def campaign(self, name: str) -> None:
        """One run, stopped again and again until an attempt reaches its end."""
        straight = self.run_straight(name)
        out, log = self.work / f"{name}-killed", self.work / f"{name}-killed.log"
        shutil.rmtree(out, ignore_errors=True)
        for _ in range(MOST_ATTEMPTS):
            expected, damaged = whole_checkpoints(out)
            kind = "term" if name == "sigterm" else self.random.choice(KINDS)
            finished = self._attempt(name, kind, straight, out, log)
            self._check_resume(name, log.read_text(), expected, damaged)
            if finished:
                break
            self.report.stops[kind] += 1
            self.report.where[_where(out)] += 1
            if self.random.random() < 0.4:
                self._damage(out)
        else:
            self.report.problems.append(f"{name}: {MOST_ATTEMPTS} attempts were not enough")
        self.report.campaigns[name] += 1
        self._compare(name, straight, out)

    def _attempt(self, name: str, kind: str, straight: Straight, out: Path, log: Path) -> bool:
        """Whether the run reached its end before it was stopped."""
        stop_at = (
            self.random.randint(1, int(0.6 * straight.counts["file_events"]))
            if kind == "file event"
            else None
        )
        log.write_text("")  # the child may not live to open it
        pid = child(self.work, name, out, log, stop_at)
        delay = None if stop_at else self.random.uniform(0.0, 0.6 * straight.seconds)
        code = wait(pid, delay)
        if code is None:
            os.kill(pid, signal.SIGKILL if kind == "clock" else signal.SIGTERM)
            code = wait(pid, None)
        if code not in (0, -signal.SIGKILL, 143, -signal.SIGTERM):
            self.report.problems.append(f"{name}: exit code {code}:\n{log.read_text()[-3000:]}")
        return code == 0

    def _check_resume(self, name: str, text: str, expected: int, damaged: list[str]) -> None:
        """It went on from the newest whole checkpoint and named those it passed over."""
        resumed = re.findall(r"resumed after step (\d+)", text)
        if not resumed:
            return
        if int(resumed[0]) != expected:
            self.report.problems.append(f"{name}: resumed after {resumed[0]}, not {expected}")
        for folder in damaged:
            self.report.passed_over += 1
            if f"checkpoint {folder} is not whole and is skipped" not in text:
                self.report.problems.append(f"{name}: no warning about {folder}:\n{text[-2000:]}")

    def _damage(self, out: Path) -> None:
        """Spoils the newest checkpoint, where there is another one to go back to."""
        folders = checkpoint_folders(out)
        if len(folders) < 2:
            return
        kind = self.random.choice(("truncated", "flipped byte", "no manifest", "half a manifest"))
        if kind == "no manifest":
            (folders[-1] / "manifest.json").unlink(missing_ok=True)
        else:
            files = [f for f in sorted(folders[-1].iterdir()) if f.name != "manifest.json"]
            file = (
                folders[-1] / "manifest.json"
                if kind == "half a manifest"
                else self.random.choice(files)
            )
            if file.exists() and file.stat().st_size:
                data = bytearray(file.read_bytes())
                position = self.random.randrange(len(data))
                if kind == "flipped byte":
                    data[position] ^= 1 << self.random.randrange(8)
                else:
                    del data[position:]
                file.write_bytes(data)
        self.report.damage[kind] += 1

    def _compare(self, name: str, straight: Straight, out: Path) -> None:
        found = digests(out)
        different = sorted(
            k for k in {*found, *straight.files} if found.get(k) != straight.files.get(k)
        )
        if different:
            self.report.problems.append(f"{name}: other bytes in {', '.join(different)}")
            shutil.copytree(out, self.work / f"{name}-other-{len(self.report.problems)}")
        if trained_tasks(out) != straight.tasks:
            self.report.problems.append(f"{name}: other tasks were trained on")
        if checkpoint_folders(out):
            self.report.problems.append(f"{name}: checkpoints of a finished run are left")


# --- what a run left -----------------------------------------------------------------------------


def digests(out: Path) -> dict[str, str]:
    """sha256 of everything a run leaves: weights, metrics, plots, traces, report, snapshots.

    How long its steps took is not among them.
    """
    files = (p.relative_to(out) for p in sorted(out.rglob("*")) if p.is_file())
    files = (p for p in files if p.name != "train_steps.jsonl")
    visible = [p for p in files if not any(part.startswith(".") for part in p.parts)]
    return {str(p): hashlib.sha256((out / p).read_bytes()).hexdigest() for p in visible}


def trained_tasks(out: Path) -> Counter[str]:
    """How often each task was rolled out, by its id."""
    lines = (line for file in sorted((out / "traces").glob("*.jsonl")) for line in file.open())
    return Counter(json.loads(line)["task"]["id"] for line in lines)


def checkpoint_folders(out: Path) -> list[Path]:
    """From the oldest to the newest."""
    return sorted(out.glob(".cahl/train/*/checkpoints/step-*"))


def whole_checkpoints(out: Path) -> tuple[int, list[str]]:
    """The newest whole checkpoint's step (0: none), and the names of later ones that are not."""
    damaged: list[str] = []
    for folder in reversed(checkpoint_folders(out)):
        try:
            sums = json.loads((folder / "manifest.json").read_bytes())["sha256"]
            whole = all(
                hashlib.sha256((folder / n).read_bytes()).hexdigest() == sums[n]
                for n in ("state.safetensors", "extra.json")
            )
        except (OSError, ValueError, KeyError, TypeError):
            whole = False
        if whole:
            return int(folder.name.removeprefix("step-")), damaged
        damaged.append(folder.name)
    return 0, damaged


def _where(out: Path) -> str:
    """What the process was at when it was stopped, as far as its files show."""
    if (out / "models/cahl").exists():
        return "finishing"
    if list(out.glob(".cahl/train/*/checkpoints/.step-*")):
        return "writing a checkpoint"
    return "elsewhere" if checkpoint_folders(out) else "before the first checkpoint"


def _import_everything(start: Path) -> None:
    """Loads what the children need, so that each need not; runs no model."""
    from cahl_core.policy.team import load_trainable

    chosen = variant_settings("joint")
    load_trainable(start / "data/backbone", start / "models/sft", chosen.model, torch.device("cpu"))


def main() -> None:
    """Runs campaigns, prints the report, and fails if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--report", type=Path, help="JSON file of what happened")
    options = parser.parse_args()
    started = time.monotonic()
    harness = Harness(options.work.absolute(), options.seed)
    harness.prepare()
    number = 0
    while not harness.done(options.kills):
        harness.campaign(options.variants[number % len(options.variants)])
        number += 1
    result = {
        "kills": harness.kills(),
        "seconds": round(time.monotonic() - started, 1),
        "straight": {
            n: {
                "seconds": round(s.seconds, 2), "files": len(s.files),
                "tasks": sum(s.tasks.values()), **s.counts,
            }
            for n, s in harness.straight.items()
        },
        **harness.report.to_json(),
    }  # fmt: skip
    text = json.dumps(result, indent=2)
    print(text)
    if options.report:
        options.report.write_text(text + "\n")
    sys.exit(bool(harness.report.problems))


if __name__ == "__main__":
    main()
