"""Formats that keep tools and dialogue in one prompt text: MTU-Bench's and ToolRL's ways to write it."""

import json

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.records import ToolTask

PREAMBLE = "\nPlease reply.\n7. Today is Monday, January 4, 2024.\nAPIs that you can use:"


def convert(tmp_path, format_, value, file="x.jsonl"):
    (tmp_path / file).write_text(json.dumps(value) + "\n", encoding="utf-8")
    [record] = READERS[format_](tmp_path, "mine", ReadLimits())
    assert "malformed" not in record, record
    task = ToolTask.from_json(record)
    assert ToolTask.from_json(task.to_json()) == task
    return record


def test_mtu_tools_as_python_text_with_bare_names_and_defaults(tmp_path):
    tools = ("[{'name': 'Find.', 'description': \"A user's [find]\", 'required_parameters': ['city'], "
             "'optional_parameters': {'stars': '3'}, 'result_parameters': ['hotel_name']}, "
             "{'name': 'Book', 'description': 'b', 'required_parameters': [{'name': 'hotel', "
             "'type': 'str'}], 'optional_parameters': [{'name': 'kinds', 'type': 'array', "
             "'default': ['all']}], 'result_parameters': []}]")  # fmt: skip
    answer = {
        "Find": {"city": "Rome"},
        " Book": {"hotel": "Find.hotel_name", "kinds": ["Find.x y.z"]},
    }
    question = f"{PREAMBLE}\n{tools}\nUser: A hotel in Rome: book it."
    found = convert(tmp_path, "mtu-bench", {"id": "S-S_4", "question": question, "answer": answer})
    assert found["id"] == "mine-S-S-S-S_4" and found["meta"]["split"] == "S-S"
    assert found["messages"] == [
        {"role": "system", "content": "Today is Monday, January 4, 2024."},
        {"role": "user", "content": "A hotel in Rome: book it."},
    ]
    find, book = (tool["function"] for tool in found["tools"])
    assert find["name"] == "Find" and find["parameters"]["required"] == ["city"]
    assert find["parameters"]["properties"] == {"city": {}, "stars": {"default": "3"}}
    assert find["returns"]["properties"] == {"hotel_name": {}}
    assert book["parameters"]["properties"]["kinds"] == {"type": "array", "default": ["all"]}
    assert found["answers"][1] == [
        {"name": "Book", "arguments": {"hotel": "$var1.hotel_name$", "kinds": ["Find.x y.z"]}}
    ]
    assert found["meta"]["levels"] == [0, 1] and found["meta"]["resolved"] == [
        {"city": "Rome"},
        None,
    ]


def test_mtu_history_with_actions_observations_and_shared_parameters(tmp_path):
    listed = {"apis": [{"name": "order", "description": "o"}],
              "available_parameters": [{"name": "size", "description": "s"}]}  # fmt: skip
    question = (PREAMBLE + json.dumps(listed) + "\nHistory Dialog: \nUser:  Hi\nAction: {}\nAssistant:  "
                "Yes?\n\nUser:  A pizza\nThought: They want pizza.\nAction: order\nAction Input: "
                '{"size": "M"}\nObservation: {"id": 4}\nAction: call my mother\nUser: Larger!')  # fmt: skip
    value = {"id": "OOD_1_2", "question": question, "answer": {"order": '{"size": "L"}'}}
    found = convert(tmp_path, "mtu-bench", value)
    assert found["messages"][1:] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "A pizza"},
        {"role": "assistant", "content": "", "reasoning": "They want pizza."},
        {"role": "assistant", "content": "",
         "tool_calls": [{"name": "order", "arguments": {"size": "M"}}]},
        {"role": "tool", "content": '{"id": 4}'},
        {"role": "assistant", "content": "", "tool_call_text": "call my mother"},
        {"role": "user", "content": "Larger!"},
    ]  # fmt: skip
    assert found["answers"] == [[{"name": "order", "arguments": {"size": "L"}}]]
    assert list(found["tools"][0]["function"]["parameters"]["properties"]) == ["size"]


def test_toolrl_prompt_with_python_schemas_and_tags_on_their_own_lines(tmp_path):
    system = ("You are a helper.\n\n**Available Tools**\nIn your response, you can use the following "
              "tools:\n1. Name: Set Alarm\nDescription: Sets one.\nTwo lines.\nParameters: {'time': "
              "{'type': 'str', 'description': \"The alarm's time\", 'default': ''}}\n2. Name: stop\n"
              "Description: \nParameters: {}\n\n**Steps for Each Turn**\n1. Name: no tool")  # fmt: skip
    user = ("**Dialogue Records History**\n\n<user>\nWake me.\n</user>\n\n<think>\nWhen?\n</think>\n"
            "<response>\nWhen?\n</response>\n\nnoise\n<user>\nAt 7.\n</user>\n")  # fmt: skip
    gold = ('<think> Clear. </think>\n<tool_call>\n{"name": "Set Alarm", "parameters": {"time": "7"}}\n'
            '{\n  "name": "stop",\n  "parameters": {}\n}\n</tool_call>')  # fmt: skip
    values = [{"instruction": system, "input": user, "output": gold}]
    (tmp_path / "rlla_sft.json").write_text(json.dumps(values), encoding="utf-8")
    [found] = READERS["toolrl"](tmp_path, "rlla", ReadLimits())
    assert found["id"] == "rlla-sft-0"
    alarm, stop = (tool["function"] for tool in found["tools"])
    assert alarm["description"] == "Sets one.\nTwo lines."
    assert alarm["parameters"]["properties"] == {
        "time": {"type": "string", "description": "The alarm's time"}
    }
    assert stop["name"] == "stop" and stop["parameters"]["properties"] == {}
    assert found["messages"] == [
        {"role": "user", "content": "Wake me."},
        {"role": "assistant", "content": "When?", "reasoning": "When?"},
        {"role": "user", "content": "At 7."},
    ]
    assert [[c["name"] for c in step] for step in found["answers"]] == [["Set Alarm", "stop"]]
    assert found["meta"]["residual_text"] == "noise"
    assert found["meta"]["reference_think"] == "Clear."
