"""The project's models, Hugging Face folders and registered models are the same weights to the harness."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from small_project import SMALL, make_project, random_start, small_task

from cahl_core.config import Settings, validate
from cahl_core.errors import (
    CahlError,
    ConfigError,
    ModelError,
    RegistryError,
    StageInputError,
)
from cahl_core.evaluation.core import Solver
from cahl_core.evaluation.local_models import LocalModel
from cahl_core.evaluation.models import TextSolver, open_model, parse_model
from cahl_core.protocol.prompts import EXECUTOR_SYSTEM, LOW_ONLY_SYSTEM, PLANNER_SYSTEM
from cahl_core.records import Message
from cahl_core.serving.results import Request
from cahl_core.stage import StageRun

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _settings(model: dict[str, Any] | None = None, **evaluate: Any) -> Settings:
    bounds = {"plan_tokens": 12, "call_tokens": 6, "temperature": 1.0}
    values = {**SMALL, "model": {**SMALL["model"], **(model or {})}}
    return validate(values | {"evaluate": bounds | evaluate})


@pytest.fixture(scope="module")
def root(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with adapters that do change the texts, and its agent really registered."""
    from cahl_core.serving.register import run

    root = make_project(tmp_path_factory.mktemp("models") / "project", tiny_backbone)
    shutil.copytree(random_start(root, _settings()), root / "models/cahl")
    (root / "metrics").mkdir()
    (root / "metrics/evaluate.json").write_text('{"cahl": {"bfcl_accuracy": 0.5}}')
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run(StageRun("register", root, _settings()))
    return root


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _open(text: str, root: Path, settings: Settings | None = None) -> LocalModel:
    model = open_model(parse_model(text), settings or _settings(), root)
    assert isinstance(model, LocalModel)
    return model


def _texts(model: LocalModel) -> list[Any]:
    """What the model writes: records of requests, and what each role says without a grammar."""
    tasks = [small_task(n) for n in range(6)]
    requests = [Request(t.messages, t.tools, seed=t.id) for t in tasks]
    requests += [Request(t.messages, t.tools, seed=t.id, plan=t.plan) for t in tasks]
    solver = model.solver()
    records = [r.to_json() for r in solver.run(requests)]
    prompt = solver.tokenizer("Once upon a time")["input_ids"]
    roles = ("planner", "executor") if solver.form == "hierarchical" else ("executor",)
    free = [solver.generate([prompt], role, max_tokens=24)[0][0].text for role in roles]
    return [records, free]


def test_one_model_is_the_same_however_it_is_named(root: Path) -> None:
    folder = "hf:data/backbone"
    base = _texts(_open("base", root))
    assert _texts(_open(f"{folder}?form=hierarchical", root)) == base
    cahl = _texts(_open("cahl", root))
    assert cahl != base
    assert _texts(_open(f"{folder}?adapters=models/cahl", root)) == cahl
    assert _texts(_open(f"hf:{root}/data/backbone?adapters={root}/models/cahl", root)) == cahl
    assert _texts(_open("models:/cahl-agent@champion", root)) == cahl
    assert _texts(_open("models:/cahl-agent/1", root)) == cahl
    assert len({str(record) for record in cahl[0]}) > 6  # the comparison sees different texts


def test_temperature_and_seeds_reach_the_sampler(root: Path) -> None:
    task = small_task(0)

    def drawn(seeds: str, **evaluate: Any) -> list[str | None]:
        model = _open("base", root, _settings(**evaluate))
        asked = [task.messages] * len(seeds)
        return model.solver().complete(asked, 12, list(seeds))

    warm = drawn("aab")
    assert warm[0] == warm[1] != warm[2]
    assert len(set(drawn("ab", temperature=0.0))) == 1


def test_a_flat_model_gets_the_flat_prompt_and_the_room_of_both_texts(root: Path) -> None:
    model = _open("hf:data/backbone", root)
    assert (model.form, model.solver().form) == ("low_only", "low_only")
    assert model.facts()["prompts"] == {"executor": LOW_ONLY_SYSTEM}
    (result,) = model.solver().run([Request(small_task(0).messages, small_task(0).tools)])
    assert result.plan is None and len(result.steps) == 1
    single = _open("hf:data/backbone?form=single_level", root)
    assert single.solver().form == "single_level"


def test_plain_conversations_are_answered_in_the_models_own_template(root: Path) -> None:
    model = _open("base", root, _settings(temperature=0.0))
    solver = model.solver()
    assert isinstance(solver, TextSolver)
    talk = (Message("system", "Use <tool_call>."), Message("user", "Hi"))
    text, long, again = solver.complete([talk, [Message("user", "x" * 2000)], talk], 20, "abc")
    assert long is None
    assert text == again
    prompt = (
        "<|im_start|>system\nUse <tool_call>.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = solver.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert text == solver.generate([ids], "planner", max_tokens=20)[0][0].text != ""


def test_a_planner_with_an_executor_answers_no_plain_conversation(root: Path) -> None:
    model = _open("cahl", root)
    assert not model.completes
    with pytest.raises(ConfigError, match="neither was trained to answer"):
        model.solver().complete([[Message("user", "Hi")]], 4, ["a"])


def test_usage_goes_on_counting_after_the_weights_are_freed(root: Path) -> None:
    model = _open("base", root)
    assert set(model.usage().values()) == {0.0}
    solver: Solver = model.solver()
    solver.run([Request(small_task(0).messages, small_task(0).tools)])
    before = model.usage()
    assert all(n is not None and n > 0 for n in before.values())
    model.close()
    assert model.usage() == before
    model.solver().run([Request(small_task(0).messages, small_task(0).tools)])
    assert model.usage()["prefilled_tokens"] == 2 * (before["prefilled_tokens"] or 0)


# --- keys and facts ------------------------------------------------------------------------------


def test_the_key_changes_with_everything_that_texts_depend_on(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "data/backbone"  # another model of the same name
    shutil.copytree(root / "data/backbone", other)
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    folder = "hf:data/backbone"
    keys = [
        _open(text, where, settings).key()
        for text, where, settings in [
            ("base", root, None),
            ("cahl", root, None),
            (folder, root, None),
            (folder, tmp_path, None),
            (f"{folder}?form=hierarchical", root, None),
            (f"{folder}?adapters=models/cahl", root, None),
            (f"{folder}?max_context=700", root, None),
            (f"{folder}?tool_rendering=json", root, None),
            (f"{folder}?dtype=bfloat16", root, None),
            ("models:/cahl-agent@champion", root, None),
            ("base", root, _settings(temperature=0.5)),
            ("base", root, _settings(plan_tokens=13)),
            ("base", root, _settings(call_tokens=7)),
            ("base", root, _settings({"max_context": 900})),
        ]
    ]
    assert len(set(keys)) == len(keys)
    assert _open("named=base", root).key() == keys[0]  # a name is no part of it
    assert _open("models:/cahl-agent/1", root).key() == keys[9]
    assert _open(f"hf:{root}/data/backbone", root).key() == keys[2]


def test_facts_are_json_and_know_no_path_of_this_machine(root: Path) -> None:
    facts = {
        text: json.loads(json.dumps(_open(text, root).facts()))
        for text in ("cahl", f"hf:{root}/data/backbone", "models:/cahl-agent@champion")
    }
    found = {text: facts[text] for text in facts if str(root) in json.dumps(facts[text])}
    assert not found
    assert facts["cahl"]["prompts"] == {"planner": PLANNER_SYSTEM, "executor": EXECUTOR_SYSTEM}
    assert facts["cahl"]["decoding"]["stop"]["planner"] == ["</plan>"]
    assert facts["models:/cahl-agent@champion"]["revision"] == "cahl-agent version 1"
    hf = facts[f"hf:{root}/data/backbone"]
    assert (hf["backbone"], hf["form"], hf["dtype"]) == ("backbone", "low_only", "float32")


def test_the_context_is_bounded_by_the_models_own(root: Path) -> None:
    settings = _settings({"max_context": 100_000})
    assert _open("hf:data/backbone", root, settings).facts()["max_context"] == 4096
    assert _open("hf:data/backbone?max_context=99", root).facts()["max_context"] == 99
    with pytest.raises(ConfigError, match="max_context=5000, but backbone has 4096"):
        _open("hf:data/backbone?max_context=5000", root).key()


# --- what is not there ---------------------------------------------------------------------------


def test_missing_weights_are_found_before_anything_is_loaded(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "data/backbone", tmp_path / "data/backbone")
    with pytest.raises(StageInputError, match=r"no planner and no executor(?s:.*)run: cahl sft"):
        _open("sft", tmp_path).key()
    with pytest.raises(ModelError, match="adapters=models/none is not a folder"):
        _open("hf:data/backbone?adapters=models/none", root).key()
    with pytest.raises(ModelError, match=r"holds no executor(?s:.*)form low_only"):
        _open("hf:data/backbone?adapters=data", root).key()
    (tmp_path / "data/backbone/model.safetensors").unlink()
    for text in ("base", "hf:data/backbone"):
        with pytest.raises(ModelError, match=r"no \*\.safetensors in"):
            _open(text, tmp_path).key()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        _open("hf:data", tmp_path).key()
    with pytest.raises(ConfigError, match="has no revision 'main'"):
        _open("hf:data/backbone@main", root).key()


def test_adapters_of_another_backbone_are_refused(root: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(root / "data/backbone", tmp_path / "other")
    weights = tmp_path / "other/model.safetensors"
    changed = {name: tensor + 0.5 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    model = _open(f"hf:{tmp_path}/other?adapters={root}/models/cahl", root)
    with pytest.raises(ModelError, match=r"trained on other weights(?s:.*)name its URL"):
        model.solver()


def test_what_the_registry_does_not_hold_is_said(root: Path) -> None:
    for text in ("models:/cahl-agent@none", "models:/cahl-agent/9", "models:/other/1"):
        with pytest.raises(RegistryError, match=r"versions: 1;|there: cahl-agent"):
            _open(text, root).key()


def test_a_registered_model_of_another_kind_is_no_agent(root: Path) -> None:
    import mlflow

    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[str]) -> list[str]:
            return model_input

    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    mlflow.pyfunc.log_model(
        name="echo", python_model=Echo(), registered_model_name="echo", pip_requirements=[]
    )
    with pytest.raises(RegistryError, match="not an agent that `cahl register` made"):
        _open("models:/echo/1", root).key()


# --- the hub -------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What the hub answers: one model, one that is gated."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "o/gated" in path:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif "o/model" not in path:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path in (f"/api/models/o/model/revision/{r}" for r in ("main", COMMIT)):
            info = {
                "id": "o/model",
                "sha": COMMIT,
                "siblings": [{"rfilename": n} for n in self.files],
            }
            self._send(200, json.dumps(info).encode())
        elif path == f"/api/models/o/model/tree/{COMMIT}":
            tree = [
                {"type": "file", "oid": "a" * 40, "size": len(c), "path": n}
                for n, c in self.files.items()
            ]
            self._send(200, json.dumps(tree).encode())
        elif path.startswith(f"/o/model/resolve/{COMMIT}/"):
            name = path.rpartition("/")[2]
            etag = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self._send(200, self.files[name], etag)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(root: Path) -> Iterator[str]:
    Hub.files = {p.name: p.read_bytes() for p in (root / "data/backbone").iterdir()}
    Hub.files |= {"pytorch_model.bin": b"a pickle", "modeling.py": b"raise SystemExit"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PROGRAM = """
import sys
from pathlib import Path
from cahl_core.errors import CahlError
from cahl_core.evaluation.weights import hub_folder
for text in sys.argv[1:]:
    name, _, revision = text.partition("@")
    try:
        folder = hub_folder(name, revision or None)
        print(folder.name, sorted(p.name for p in folder.iterdir()))
    except CahlError as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


def _from_hub(url: str, cache: Path, *names: str, offline: str = "0") -> list[str]:
    """What a process with the real hub client says; the client takes its address when imported."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": offline,
                   "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                   "PYTHONPATH": str(ROOT)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_model_of_the_hub_comes_without_code_and_pickles_or_says_why_not(
    hub: str, tmp_path: Path
) -> None:
    offline = _from_hub(hub, tmp_path, "o/model", offline="1")
    assert offline[0].startswith(
        "SourceError o/model: not in the cache, and the hub cannot be reached"
    )
    found, wrong, none, gated, bad = _from_hub(
        hub, tmp_path, "o/model", "o/model@v9", "o/none", "o/gated", "a/b/c"
    )
    assert found.startswith(COMMIT)
    assert "model.safetensors" in found and "tokenizer.json" in found
    assert "modeling.py" not in found and "pytorch_model.bin" not in found
    assert "SourceError o/model@v9: the hub has no such revision" in wrong
    assert "SourceError o/none: the hub has no such model, or it is private" in none
    assert "terms accepted" in gated and "HF_TOKEN" in gated
    assert "'a/b/c' is neither a folder nor the id of a model" in bad
    # a revision found once is there without a network
    assert _from_hub(hub, tmp_path, "o/model", offline="1") == [found]


def test_every_error_of_a_model_is_one_of_ours(root: Path) -> None:
    with pytest.raises(CahlError, match="neither a folder nor the id"):
        _open("hf:not/a/model", root).key()
