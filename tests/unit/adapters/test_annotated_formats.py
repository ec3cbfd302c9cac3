"""Annotated sources: SGD, Taskmaster, API-Bank's samples, nested calls; what parity does not reach."""

import csv
import json

import pytest

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.errors import DataError

API = {"api_name": "find", "api_description": "Finds.", "parameters": {"q": {"type": "str"}},
       "required": ["q"], "responses": {"id": {"type": "str"}, "n": {"type": "int"}}}  # fmt: skip


def read(format_, folder):
    return list(READERS[format_](folder, "src", ReadLimits()))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) if path.suffix == ".json" else value, encoding="utf-8")


def nested(*arguments):
    calls, count = [], 0
    for given in arguments:
        names = [f"API_call_{count}", f"API_call_{count + 1}"]
        calls.append({"api_name": "find", "parameters": given, "responses": names})
        count += 2
    return [{"test_id": 3, "api": [API], "task": "t", "call": calls}]


def test_nested_calls_refer_at_any_depth_and_by_the_place_of_the_field(tmp_path):
    given = {"q": ["API_call_1", {"in": "API_call_0"}], "text": "see API_call_0."}
    write(tmp_path / "a.json", nested({"q": "x"}, given))
    [found] = read("nestools", tmp_path)
    assert found["answers"][1][0]["arguments"] == {
        "q": ["$var1.n$", {"in": "$var1.id$"}],
        "text": "see $var1.id$.",
    }
    assert found["id"] == "src-3" and found["meta"]["levels"] == [0, 1]


def test_the_response_of_no_call_is_malformed(tmp_path):
    write(tmp_path / "a.json", nested({"q": "API_call_7"}))
    [found] = read("nestools", tmp_path)
    assert "API_call_7 is the response of no call" in found["malformed"]


def turn(speaker, text, **frame):
    frames = [{"service": "Cafes_1", **frame}] if frame else []
    return {"speaker": speaker, "utterance": text, "frames": frames}


def sgd_files(folder):
    slots = [{"name": "city", "description": "Where", "is_categorical": False, "possible_values": []},
             {"name": "wifi", "description": "Wifi?", "is_categorical": True,
              "possible_values": ["True", "False"]}]  # fmt: skip
    intents = [{"name": n, "description": f"{n} a cafe", "required_slots": ["city"],
                "optional_slots": {"wifi": "dontcare"}, "result_slots": ["city", "name"]}
               for n in ("Find", "Book")]  # fmt: skip
    rows = [{"name": f"Cafe {n}", "city": "Rom"} for n in range(6)]
    call = {"method": "Find", "parameters": {"city": "Rom"}}
    booking = {"method": "Book", "parameters": {"city": "Rom", "name": "Cafe 2"}}
    write(folder / "schema.json", [{"service_name": "Cafes_1", "description": "Cafes",
                                    "slots": slots, "intents": intents}])  # fmt: skip
    write(folder / "dialogues_001.json", [{"dialogue_id": "1_1", "services": ["Cafes_1"], "turns": [
        turn("USER", "A cafe in Rom", state={"active_intent": "Find"}),
        turn("SYSTEM", "Cafe 0?", service_call=call, service_results=rows),
        turn("USER", "Another?", state={"active_intent": "Find"}),
        turn("SYSTEM", "The third one?"),
        turn("USER", "Yes, hm", state={"active_intent": "NONE"}),
        turn("USER", "Book it", state={"active_intent": "Book"}),
        turn("SYSTEM", "Done", service_call=booking, service_results=[rows[2]]),
    ]}])  # fmt: skip


def test_sgd_rows_are_cut_intents_follow_each_other_and_choices_are_dependencies(tmp_path):
    sgd_files(tmp_path)
    [found] = read("sgd", tmp_path)
    meta = found["meta"]
    assert len(json.loads(found["messages"][3]["content"])) == 4
    assert meta["tool_results_truncated"] == 1 and meta["file"] == "dialogues_001.json"
    assert meta["plan_texts"] == [
        {"service": "Cafes_1", "intent": "Find", "text": "Find a cafe"},
        {"service": "Cafes_1", "intent": "Book", "text": "Book a cafe"},
    ]
    assert meta["answer_at"] == [2, 9]
    assert meta["deps"] == [{"call": 2, "arg": "name", "from": 1, "path": "[2].name"}]
    assert meta["levels"] == [0, 1]
    assert found["messages"][0]["content"].startswith("Today is")
    schema = found["tools"][0]["function"]["parameters"]
    assert schema["properties"]["wifi"] == {
        "type": "string", "description": "Wifi?", "enum": ["True", "False", "dontcare"],
        "default": "dontcare",
    }  # fmt: skip
    assert schema["required"] == ["city"]


def test_sgd_without_its_schema_says_what_to_add(tmp_path):
    sgd_files(tmp_path)
    (tmp_path / "schema.json").unlink()
    with pytest.raises(DataError, match=r"no schema\.json"):
        read("sgd", tmp_path)


def annotated(number, name, request, response):
    call, result = f"api_call_{number}", f"api_response_{number}"
    return [{"name": "api_call", "value": name, "context": call},
            {"name": "request", "value": json.dumps(request), "context": call},
            {"name": "api_response", "value": name, "context": result},
            {"name": "response", "value": json.dumps(response), "context": result}]  # fmt: skip


def test_taskmaster_schemas_come_from_the_calls_of_all_files(tmp_path):
    requests = [{"id": "a1", "n": 1}, {"id": "b2", "n": "two", "tags": ["x"]}]
    for number, request in enumerate(requests):
        notes = annotated(0, "add_item", request, {"item_id": "i-771"})
        notes += annotated(1, "finish_order", {"item_id": "i-771"}, {"ok": True})
        write(tmp_path / f"data_0{number}.json", [{"conversation_id": f"dlg-{number}", "utterances": [
            {"speaker": "user", "text": "One, please", "annotations": notes}]}])  # fmt: skip
    first, second = read("taskmaster", tmp_path)
    assert (first["id"], second["id"]) == ("src-dlg-0", "src-dlg-1")
    assert first["tools"] == second["tools"]
    add = first["tools"][0]["function"]
    assert add["description"] == "add item"
    assert add["parameters"]["required"] == ["id", "n"]
    assert add["parameters"]["properties"]["n"] == {"type": ["integer", "string"]}
    assert add["parameters"]["properties"]["tags"] == {"type": "array"}
    assert first["meta"]["form"] == "dialogue" and first["meta"]["answer_at"] == [1, 3]
    assert first["meta"]["deps"] == [{"call": 2, "arg": "item_id", "from": 1, "path": "item_id"}]
    assert first["meta"]["results"] == [{"item_id": "i-771"}, {"ok": True}]


def test_api_bank_prefers_the_schema_its_searcher_returned(tmp_path):
    samples = tmp_path / "lv1-lv2-samples" / "level-2-toolsearcher"
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "all_apis.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.DictWriter(stream, ["类名", "api_info"])
        rows.writeheader()
        for name in ("SetAlarm", "Dance"):
            info = "description = 'old'\ninput_parameters = {'when': {'type': 'str'}}"
            rows.writerow({"类名": name, "api_info": info})
        rows.writerow({"类名": "Broken", "api_info": "import os; os.abort("})
    tool = {"name": "SetAlarm", "description": "new", "input_parameters": {"time": {"type": "str"}},
            "output_parameters": {"status": {"type": "str"}}}  # fmt: skip
    turns = [
        {"role": "User", "text": "Wake me at 7"},
        {"role": "API", "api_name": "ToolSearcher", "param_dict": {"keywords": "alarm"},
         "result": {"output": tool, "exception": None}},
        {"role": "API", "api_name": "SetAlarm", "param_dict": {"time": "07:00"},
         "result": {"output": None, "exception": "no such time"}},
        {"role": "AI", "text": "That failed."},
    ]  # fmt: skip
    lines = "".join(json.dumps(entry) + "\n" for entry in turns)
    write(samples / "SetAlarm-Dance-level-3-1.jsonl", lines)
    [found] = read("api-bank-raw", tmp_path)
    tools = {t["function"]["name"]: t["function"] for t in found["tools"]}
    assert list(tools) == ["SetAlarm", "Dance", "ToolSearcher"]
    assert tools["SetAlarm"]["description"] == "new" and tools["Dance"]["description"] == "old"
    assert found["messages"][4]["content"] == '{"exception":"no such time"}'
    assert found["meta"]["level"] == 3 and found["meta"]["answer_at"] == [1, 3]
