"""Adapters give the records of ../shared/data from the upstream form of the same records.

The upstream form is rebuilt from the mirror's records here, field by field as upstream writes it, so
that ids, messages and gold calls of thousands of real records can be compared without a download.
"""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from cahl_core.datasets.adapters import READERS, ReadLimits

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
NAMES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "object": "dict",
         "array": "list"}  # fmt: skip


def records(path):
    file = SHARED / path
    if not file.exists():
        pytest.skip(f"{file} is not here: parity is checked where the mirror of the data is")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read(format_, folder, source):
    found = list(READERS[format_](folder, source, ReadLimits()))
    assert not [r for r in found if "malformed" in r]
    return found


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(values), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(v) + "\n" for v in values), encoding="utf-8")


def assert_same(found, wanted, *keys):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        for key in ("id", "messages", "answers", *keys):
            assert ours[key] == theirs[key], (theirs["id"], key)


def assert_same_dependencies(found, mirror):
    """The mirror names the top-level argument, and counts references inside a longer text too."""
    for ours, theirs in zip(found, mirror, strict=True):
        texts = json.dumps(theirs["answers"])
        if texts.count("$var") != len(re.findall(r'"\$var[^$"]+\$"', texts)):
            continue
        deps = [{**d, "arg": re.split(r"[.\[]", d["arg"])[0]} for d in ours["meta"]["deps"]]
        assert deps == theirs["meta"]["deps"], theirs["id"]
        assert ours["meta"]["levels"] == theirs["meta"]["levels"], theirs["id"]


def upstream_tools(tools):
    """The ``api_name`` form of NesTools and Seal-Tools."""

    def typed(properties):
        return {n: {**s, "type": NAMES[s["type"]]} if "type" in s else s
                for n, s in properties.items()}  # fmt: skip

    return [
        {
            "api_name": f["name"],
            "api_description": f["description"],
            "parameters": typed(f["parameters"]["properties"]),
            "required": f["parameters"]["required"],
            "responses": typed(f["returns"]["properties"]),
        }
        for f in (tool["function"] for tool in tools)
    ]


def upstream_calls(record, name_key):
    """Gold with ``API_call_k`` for references."""
    fields = {t["function"]["name"]: list(t["function"]["returns"]["properties"])
              for t in record["tools"]}  # fmt: skip
    calls = [call for step in record["answers"] for call in step]
    places, built, count = {}, [], 0
    for number, call in enumerate(calls, 1):
        names = [f"API_call_{count + i}" for i in range(len(fields[call["name"]]))]
        count += len(names)
        places |= {
            f"$var{number}.{f}$": n for f, n in zip(fields[call["name"]], names, strict=True)
        }
        text = json.dumps(call["arguments"])
        for reference, name in places.items():
            text = text.replace(reference, name)
        built.append({name_key: call["name"], "parameters": json.loads(text), "responses": names})
    return built


def test_nestools(tmp_path):
    mirror = records("nestools/train.jsonl")
    write(tmp_path / "test_data.jsonl", [
        {"test_id": int(r["id"].removeprefix("nestools-")), "api": upstream_tools(r["tools"]),
         "task": r["messages"][0]["content"], "call": upstream_calls(r, "api_name"),
         "field": r["meta"]["field"]}
        for r in mirror
    ])  # fmt: skip
    found = read("nestools", tmp_path, "nestools")
    assert_same(found, mirror, "tools")
    assert_same_dependencies(found, mirror)
    assert [r["meta"]["field"] for r in found] == [r["meta"]["field"] for r in mirror]


def test_seal_tools(tmp_path):
    mirror = [r for r in records("seal_tools/train.jsonl")
              if "gold_tool_added_to_candidates" not in r["meta"]]  # fmt: skip
    values = [
        {"id": r["id"].removeprefix("seal_tools-"), "conversations": [
            {"from": "human", "value": "Choose the apis.\n\nInput:\napi_list = "
             f"{upstream_tools(r['tools'])!r}\ntask_instruction = \""
             f"{r['messages'][0]['content']}\"\nOutput:\n"},
            {"from": "gpt", "value": repr(upstream_calls(r, "api"))}]}
        for r in mirror
    ]  # fmt: skip
    write(tmp_path / "dataset_for_finetune" / "dev.json", values)
    found = read("seal-tools", tmp_path, "seal_tools")
    assert_same(found, mirror)
    assert_same_dependencies(found, mirror)
    same = 0
    for ours, theirs in zip(found, mirror, strict=True):
        assert ours["meta"]["split"] == theirs["meta"]["split"]
        marked = [f"{call}.{name}" for call, name in theirs["meta"].get("ungrounded_args", [])]
        same += marked == ours["meta"].get("ungrounded", [])
    assert same / len(mirror) > 0.95  # a string test each: how words are cut differs in a few


def test_seal_tools_without_candidates_takes_tools_from_the_tool_file(tmp_path):
    record = records("seal_tools/train.jsonl")[0]
    write(tmp_path / "dev.jsonl", [{"id": "dev-easy-0", "query": "q",
                                    "calling": upstream_calls(record, "api")}])  # fmt: skip
    write(tmp_path / "tool.jsonl", upstream_tools(record["tools"]))
    [found] = read("seal-tools", tmp_path, "seal_tools")
    assert found["id"] == record["id"] and found["answers"] == record["answers"]
    assert [t["function"]["name"] for t in found["tools"]] == [record["answers"][0][0]["name"]]


def sgd_services(mirror):
    """schema.json rebuilt from the tools of all records."""
    services = {}
    for record in mirror:
        texts = {(p["service"], p["intent"]): p["text"] for p in record["plan"]}
        for function in (tool["function"] for tool in record["tools"]):
            service = "_".join(function["name"].split("_")[:2])
            intent = function["name"].removeprefix(f"{service}_")
            about = function["description"].partition(" (")[2][:-1]
            known = services.setdefault(
                service,
                {"service_name": service, "description": about, "intents": {}, "slots": {}},
            )
            schema = function["parameters"]
            known["intents"][intent] = {
                "name": intent,
                "description": texts.get((service, intent), function["description"].split(" (")[0]),
                "required_slots": schema["required"],
                "optional_slots": {
                    n: s["default"] for n, s in schema["properties"].items()
                    if n not in schema["required"]
                },
                "result_slots": list(function["returns"]["properties"]),
            }  # fmt: skip
            for name, slot in schema["properties"].items():
                values = [v for v in slot.get("enum", []) if v != "dontcare"]
                known["slots"][name] = {
                    "name": name, "description": slot["description"],
                    "is_categorical": bool(values), "possible_values": values,
                }  # fmt: skip
    for service in services.values():
        service["intents"] = list(service["intents"].values())
        service["slots"] = list(service["slots"].values())
    return list(services.values())


def sgd_dialogue(record):
    turns, frames = [], []
    for message, following in pairwise([*record["messages"][1:], None]):
        if message.get("tool_calls"):
            [call] = message["tool_calls"]
            service = "_".join(call["name"].split("_")[:2])
            method = call["name"].removeprefix(f"{service}_")
            frames.append({
                "service": service,
                "service_call": {"method": method, "parameters": call["arguments"]},
                "service_results": json.loads(following["content"]),
            })  # fmt: skip
        elif message["role"] != "tool":
            speaker = "USER" if message["role"] == "user" else "SYSTEM"
            turns.append({"speaker": speaker, "utterance": message["content"], "frames": frames})
            frames = []
    user = [turn for turn in turns if turn["speaker"] == "USER"]
    for index, intent in enumerate(record["plan"]):
        state = {"active_intent": intent["intent"]}
        turn = user[min(index, len(user) - 1)]
        turn["frames"] = [*turn["frames"], {"service": intent["service"], "state": state}]
    return {"dialogue_id": record["id"].removeprefix("sgd-"),
            "services": record["meta"]["services"], "turns": turns}  # fmt: skip


def test_sgd(tmp_path):
    mirror = records("sgd/train.jsonl")
    write(tmp_path / "train" / "schema.json", sgd_services(mirror))
    write(tmp_path / "train" / "dialogues_100.json", [sgd_dialogue(r) for r in mirror])
    found = read("sgd", tmp_path, "sgd")
    assert_same(found, mirror)
    same = 0
    for ours, theirs in zip(found, mirror, strict=True):
        for key in ("form", "answer_at", "services"):
            assert ours["meta"][key] == theirs["meta"][key]
        assert ours["meta"]["plan_texts"] == theirs["plan"]
        names = [[t["function"][k] for k in ("name", "returns")] for t in ours["tools"]]
        assert names == [[t["function"][k] for k in ("name", "returns")] for t in theirs["tools"]]
        same += ours["meta"]["deps"] == theirs["meta"]["deps"]
    assert same / len(mirror) > 0.75  # both are string matches; see conversation.string_matches


def test_taskmaster(tmp_path):
    mirror = records("taskmaster4/train.jsonl")
    write(tmp_path / "data_00.json", [taskmaster_conversation(r) for r in mirror])
    found = read("taskmaster", tmp_path, "taskmaster4")
    assert_same(found, mirror)
    for ours, theirs in zip(found, mirror, strict=True):
        for key in ("form", "answer_at", "scenario", "instructions", "tool_schema_derived"):
            assert ours["meta"].get(key) == theirs["meta"].get(key)
    tools = {t["function"]["name"]: t["function"]["parameters"]["properties"]
             for t in found[0]["tools"]}  # fmt: skip
    theirs = {t["function"]["name"]: t["function"]["parameters"]["properties"]
              for t in mirror[0]["tools"]}  # fmt: skip
    assert theirs == {name: theirs[name] | tools.get(name, {}) for name in theirs}
    assert tools.keys() <= theirs.keys()


def taskmaster_conversation(record):
    utterances, number = [], 0
    for message, following in pairwise([*record["messages"], None]):
        if message.get("tool_calls"):
            [call] = message["tool_calls"]
            for kind, other, name, value in (
                ("api_call", "api_call", "request", json.dumps(call["arguments"])),
                ("api_response", "api_response", "response", following["content"]),
            ):
                context = f"{kind}_{number}"
                utterances[-1]["annotations"] += [
                    {"name": other, "value": call["name"], "context": context},
                    {"name": name, "value": value, "context": context},
                ]
            number += 1
        elif message["role"] != "tool":
            utterances.append({"index": len(utterances), "speaker": message["role"],
                               "text": message["content"], "segments": [], "annotations": []})  # fmt: skip
    meta = record["meta"]
    return {"conversation_id": record["id"].removeprefix("taskmaster4-"), "vertical": "Coffee",
            "scenario": meta["scenario"], "instructions": meta["instructions"],
            "utterances": utterances}  # fmt: skip


def toolrl_tags(messages):
    """ToolRL's dialogue in tags; a thought stands before what the assistant did."""
    parts = []
    for message in messages:
        thought = message.get("reasoning")
        if thought:
            parts.append(f"<think> {thought} </think>")
        if calls := message.get("tool_calls"):
            lines = [json.dumps({"name": c["name"], "parameters": c["arguments"]}) for c in calls]
            parts.append("<tool_call>\n" + "\n".join(lines) + "\n</tool_call>")
        else:
            tag = {"user": "user", "tool": "obs", "assistant": "response"}[message["role"]]
            parts.append(f"<{tag}> {message['content']} </{tag}>")
    return "**Dialogue Records History**\n" + "\n\n".join(parts)


def toolrl_system(tools, write_schema):
    lines = [
        f"{n}. Name: {f['name']}\nDescription: {f['description']}\n"
        f"Parameters: {write_schema(f['parameters']['properties'])}"
        for n, f in enumerate((t["function"] for t in tools), 1)
    ]
    return ("You are a dialogue assistant.\n\n**Available Tools**\nIn your response, you can use the "
            "following tools:\n" + "\n".join(lines) + "\n\n**Steps**\n1. x")  # fmt: skip


def toolrl_gold(record):
    meta = record["meta"]
    calls = [call for step in record["answers"] for call in step]
    lines = [json.dumps({"name": c["name"], "parameters": c["arguments"]}) for c in calls]
    block = "<tool_call>\n" + "\n".join(lines) + "\n</tool_call>\n" if lines else ""
    response = meta["reference_response"]
    told = f"<response> {response} </response>" if response else ""
    return f"<think> {meta['reference_think']} </think>\n{block}{told}"


@pytest.mark.parametrize(("file", "name"), [("sft", "rlla_sft.json"), ("test", "test.json")])
def test_toolrl(tmp_path, file, name):
    mirror = records(f"rlla/{file}.jsonl")
    prompts = [(toolrl_system(r["tools"], json.dumps), toolrl_tags(r["messages"]), toolrl_gold(r))
               for r in mirror]  # fmt: skip
    if file == "sft":
        values = [{"instruction": s, "input": u, "output": g} for s, u, g in prompts]
        write(tmp_path / name, values)
    else:
        import pandas

        rows = [{"data_source": "rlla",
                 "prompt": [{"role": "system", "content": s}, {"role": "user", "content": u}],
                 "reward_model": {"style": "rule", "ground_truth": g}} for s, u, g in prompts]  # fmt: skip
        pandas.DataFrame(rows).to_parquet(tmp_path / "test.parquet")
    found = read("toolrl", tmp_path, "rlla")
    assert_same(found, mirror, "tools")
    for ours, theirs in zip(found, mirror, strict=True):
        theirs["meta"].pop("issues", None)
        assert {k: ours["meta"][k] for k in theirs["meta"]} == theirs["meta"]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_toolrl_api_bank(tmp_path, level):
    mirror = records(f"api_bank/level-{level}.jsonl")
    write(tmp_path / f"level-{level}-api_processed.json", [
        {"system": toolrl_system(r["tools"], repr), "user": toolrl_tags(r["messages"]),
         "answer": [{"name": c["name"], "parameters": c["arguments"]} for c in r["answers"][0]],
         "other": r["meta"]["origin"]}
        for r in mirror
    ])  # fmt: skip
    found = read("toolrl", tmp_path, "api_bank")
    assert_same(found, mirror, "tools")
    for ours, theirs in zip(found, mirror, strict=True):
        assert ours["meta"]["origin"] == theirs["meta"]["origin"]
        assert ours["meta"]["level"] == level and ours["meta"]["required_known"] is False


def test_questions(tmp_path):
    stage, bamboogle = records("open_qa/eval_2wiki_500.jsonl"), records("bamboogle/test.jsonl")
    asked = [(r["messages"][0]["content"], r["meta"]) for r in stage]
    write(tmp_path / "searcher" / "2wiki_500.jsonl",
          [{"question": q, "answer": m["answer"], "idx": m["idx"]} for q, m in asked])  # fmt: skip
    assert_same(read("qa", tmp_path / "searcher", "r1_searcher"), stage)
    values = [{"Question": r["messages"][0]["content"], "Answer": r["meta"]["answer"]}
              for r in bamboogle]  # fmt: skip
    write(tmp_path / "bamboogle" / "data.json", values)
    assert_same(read("qa", tmp_path / "bamboogle", "bamboogle"), bamboogle)
    assert_same(read("toolrl", tmp_path / "bamboogle", "bamboogle"), bamboogle)


def test_tau_bench(tmp_path):
    mirror = records("tau_bench_retail/train.jsonl")
    retail = tmp_path / "tau_bench" / "envs" / "retail"
    (retail / "tools").mkdir(parents=True)
    for tool in mirror[0]["tools"]:
        name = tool["function"]["name"]
        body = f"class T(Tool):\n    @staticmethod\n    def get_info():\n        return {tool!r}\n"
        (retail / "tools" / f"{name}.py").write_text("import json\n" + body)
    tasks = []
    for r in mirror:
        actions = [f"Action(name={c['name']!r}, kwargs={c['arguments']!r})"
                   for step in r["answers"] for c in step]  # fmt: skip
        tasks.append(f"    Task(annotator='x', user_id={r['meta']['user_id']!r}, instruction="
                     f"{r['messages'][0]['content']!r}, actions=[{', '.join(actions)}], "
                     f"outputs={r['meta']['outputs']!r}),\n")  # fmt: skip
    text = "from tau_bench.types import Task, Action\n\nTASKS_TRAIN = [\n" + "".join(tasks) + "]\n"
    (retail / "tasks_train.py").write_text(text)
    found = read("tau-bench", tmp_path, "tau_bench_retail_train")
    assert_same(found, mirror, "tools")
    for ours, theirs in zip(found, mirror, strict=True):
        assert ours["meta"]["user_id"] == theirs["meta"]["user_id"]


def test_api_bank_samples_hold_the_gold_calls_of_the_processed_levels():
    mirror = [r for level in (1, 2) for r in records(f"api_bank/level-{level}.jsonl")]
    found = read("api-bank-raw", SHARED / "api_bank" / "raw", "api_bank")
    assert len(found) == 264
    calls = {r["meta"]["origin"]["file"]: [c for s in r["answers"] for c in s] for r in found}
    files = [r["meta"]["origin"]["file"] for r in mirror]
    missing = [r["id"] for r, file in zip(mirror, files, strict=True)
               if r["answers"][0][0] not in calls[file]]  # fmt: skip
    # the processed copy cuts five calls of BookHotel short; the samples have them whole
    assert len(missing) == 5 and set(missing) <= {
        r["id"] for r in mirror if r["answers"][0][0]["name"] == "BookHotel"
    }
    for record in found:
        for step, at in zip(record["answers"], record["meta"].get("answer_at", []), strict=True):
            assert record["messages"][at]["tool_calls"] == step


def mtu_question(record):
    listed = []
    for f in (tool["function"] for tool in record["tools"]):
        properties, required = f["parameters"]["properties"], f["parameters"]["required"]
        fields = {n: [{"name": k, **s} for k, s in properties.items() if (k in required) == n]
                  for n in (True, False)}  # fmt: skip
        results = [{"name": k, **s} for k, s in f["returns"]["properties"].items()]
        listed.append({"name": f["name"], "description": f["description"],
                       "required_parameters": fields[True], "optional_parameters": fields[False],
                       "result_parameters": results})  # fmt: skip
    system = [m["content"] for m in record["messages"] if m["role"] == "system"]
    text = "\n".join(["Please reply to the user.", *system]) + "\nAPIs that you can use:"
    text += json.dumps(listed) + "\nHistory Dialog: "
    for message in record["messages"]:
        if calls := message.get("tool_calls"):
            text += "\nAction: " + json.dumps({c["name"]: c["arguments"] for c in calls})
        elif message["role"] != "system":
            text += f"\n{message['role'].title()}:  {message['content']}"
    return text


def test_mtu_bench(tmp_path):
    mirror = [r for r in records("mtu_bench/train.jsonl")
              if not any("tool_call_text" in m for m in r["messages"])]  # fmt: skip
    values = []
    for r in mirror:
        split, calls = r["meta"]["split"], [c for step in r["answers"] for c in step]
        answer = json.dumps({c["name"]: c["arguments"] for c in calls})
        for number, call in enumerate(calls, 1):
            answer = re.sub(rf"\$var{number}\.([^$]*)\$", rf"{call['name']}.\1", answer)
        upstream_id = r["id"].removeprefix(f"mtu_bench-{split}-")
        values.append(
            {"id": upstream_id, "question": mtu_question(r), "answer": json.loads(answer)}
        )
    write(tmp_path / "eval.jsonl", values)
    found = read("mtu-bench", tmp_path, "mtu_bench")
    assert_same(found, mirror)
    for ours, theirs in zip(found, mirror, strict=True):
        assert ours["meta"]["split"] == theirs["meta"]["split"]
        names = [t["function"]["name"] for t in ours["tools"]]
        assert names == [t["function"]["name"] for t in theirs["tools"]]
