"""What the harness does when the worker misbehaves: an error that says so, never a score."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cahl_core.errors import EvaluationError, StageInputError
from cahl_core.evaluation.checker import WORKER, Answer, BfclChecker

SERVING = WORKER.with_name("worker_serving.py")
ANSWERS = [Answer("simple_0", "simple", ())]
VERDICT = {"id": "simple_0", "valid": True, "error_type": None, "error": ""}
ANSWERING = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    {body}
    print(json.dumps({{"verdicts": [{verdict}], "request": request["request"]}}), flush=True)
"""


def _checker(tmp_path: Path, script: str, timeout: float = 20) -> BfclChecker:
    (tmp_path / "bfcl_eval").mkdir()
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    return BfclChecker(tmp_path, timeout, worker)


def _answering(body: str = "", verdict: str = repr(VERDICT)) -> str:
    return ANSWERING.format(body=body, verdict=verdict)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_crash_is_an_error_with_the_end_of_what_was_printed(tmp_path: Path) -> None:
    checker = _checker(tmp_path, "raise KeyError('gone')")
    with pytest.raises(EvaluationError, match=r"code 1(?s:.*)KeyError: 'gone'"):
        checker.score(ANSWERS)


def test_a_kill_is_an_error(tmp_path: Path) -> None:
    checker = _checker(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EvaluationError, match="code -9"):
        checker.score(ANSWERS)


def test_a_hang_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    script = "import sys, time; print('busy', file=sys.stderr, flush=True); time.sleep(60)"
    started = time.perf_counter()
    with pytest.raises(EvaluationError, match=r"2 s(?s:.*)busy(?s:.*)checker_timeout"):
        _checker(tmp_path, script, timeout=2).score(ANSWERS)
    assert time.perf_counter() - started < 20


def test_a_request_that_nobody_reads_is_given_up_too(tmp_path: Path) -> None:
    long = [Answer("simple_0" * 200_000, "simple", ())]  # more than a pipe holds
    with pytest.raises(EvaluationError, match="did not answer"):
        _checker(tmp_path, "import time; time.sleep(60)", timeout=1).score(long)


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("", "not one JSON line"),
        ("done", "not one JSON line"),
        ("[]", "lacks verdicts"),
        ('{"request": 1}', "lacks verdicts"),
        ('{"verdicts": []}', "lacks verdicts"),
        ('{"verdicts": [], "request": 7}', "answered request 7"),
        ('{"verdicts": [], "request": 1}', "not those of the answers sent"),
        (
            json.dumps({"verdicts": [{**VERDICT, "id": "simple_9"}], "request": 1}),
            "not those of the answers sent",
        ),
    ],
)
def test_a_wrong_reply_is_an_error(tmp_path: Path, printed: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        _checker(tmp_path, f"print({printed!r})").score(ANSWERS)


def test_half_a_line_is_a_crash(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="ended with code 0"):
        _checker(tmp_path, "print('{\"verdicts\": []', end='')").score(ANSWERS)


def test_after_a_failure_a_fresh_process_answers(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    body = f"""
    from pathlib import Path
    if not Path({str(mark)!r}).exists():
        Path({str(mark)!r}).touch()
        raise SystemExit(3)
"""
    checker = _checker(tmp_path, _answering(body))
    with pytest.raises(EvaluationError, match="code 3"):
        checker.score(ANSWERS)
    assert checker.score(ANSWERS)[0].valid


def test_one_process_answers_all_requests_until_it_is_closed_or_forgotten(tmp_path: Path) -> None:
    checker = _checker(tmp_path, _answering())
    pids = []
    for _ in range(3):
        checker.score(ANSWERS)
        pids.append(checker._process.pid)
    assert len(set(pids)) == 1 and pids[0] is not None
    checker.close()
    assert not _alive(pids[0])
    checker.score(ANSWERS)
    again = checker._process.pid
    assert again is not None and _alive(again)
    del checker
    gc.collect()
    assert not _alive(again)


BUSY = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("serving", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
# holds the interpreter: no thread runs meanwhile
worker.serve({"op": lambda request: 9 ** (10 ** 9)}, sys.stdout)
"""
PARENT = """
import sys, threading, time
from pathlib import Path
from cahl_core.evaluation.worker_process import WorkerProcess
worker = WorkerProcess(Path(sys.argv[1]), [sys.argv[2]], 60)
threading.Thread(target=worker.ask, args=({"op": "op"},), daemon=True).start()
while worker.pid is None:
    time.sleep(0.01)
print(worker.pid, flush=True)
time.sleep(60)
"""


def test_a_busy_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    command = [sys.executable, "-c", PARENT, str(script), str(SERVING)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(1)  # it is at work by now
        assert _alive(pid)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not _alive(pid) or _is_zombie(pid):
            return
        time.sleep(0.1)
    raise AssertionError("the worker outlived its parent")


def _is_zombie(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_worker_sees_neither_our_packages_nor_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    verdict = """{"id": "simple_0", "error_type": None, "error": "", "valid": "SECRET" not in os.environ
        and all(importlib.util.find_spec(m) is None for m in ("torch", "yaml", "cahl_core", "pip"))}"""
    script = "import importlib.util, os\n" + _answering(verdict=verdict)
    assert _checker(tmp_path, script).score(ANSWERS)[0].valid


def test_without_the_package_the_command_that_fetches_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageInputError, match="cahl fetch"):
        BfclChecker(tmp_path, 1)
