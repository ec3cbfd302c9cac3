"""Chat formats: what becomes a gold call, a result, a dialogue, an answer."""

import json

import pytest

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.records import ToolTask

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}},
                       "required": ["city"]},
    },
}  # fmt: skip


def convert(tmp_path, format_, value, **limits):
    (tmp_path / "x.jsonl").write_text(json.dumps(value) + "\n", encoding="utf-8")
    [record] = READERS[format_](tmp_path, "mine", ReadLimits(**limits))
    if "malformed" not in record:
        task = ToolTask.from_json(record)
        assert ToolTask.from_json(task.to_json()) == task
    return record


def call(name, arguments, number=None):
    found = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return found if number is None else {"id": f"c{number}", **found}


def openai(*messages, **keys):
    return {"messages": list(messages), "tools": [WEATHER], **keys}


USER = {"role": "user", "content": "Weather in Oslo?"}
OSLO = {"name": "get_weather", "arguments": {"city": "Oslo"}}
LIMA = {"name": "get_weather", "arguments": {"city": "Lima"}}


def test_one_request_ends_before_its_calls(tmp_path):
    found = convert(tmp_path, "openai-messages", openai(
        {"role": "developer", "content": [{"type": "text", "text": "Be"},
                                          {"type": "text", "text": "brief"}]},
        USER,
        {"role": "assistant", "content": "One moment.",
         "tool_calls": [call("get_weather", '{"city": "Oslo"}', 1)]},
        {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "clear"}'},
        {"role": "assistant", "content": "It is clear."},
        id="w-1", lang="en",
    ))  # fmt: skip
    assert found["id"] == "w-1"
    assert found["messages"] == [
        {"role": "system", "content": "Be\nbrief", "original_role": "developer"}, USER,
    ]  # fmt: skip
    assert found["answers"] == [[OSLO]]
    meta = found["meta"]
    assert meta["results"] == [{"sky": "clear"}] and meta["answer"] == "It is clear."
    assert meta["step_texts"] == ["One moment."] and meta["lang"] == "en"
    assert meta["resolved"] == [{"city": "Oslo"}] and meta["levels"] == [0]
    assert "form" not in meta


def test_parallel_calls_get_their_results_by_id(tmp_path):
    found = convert(tmp_path, "openai-messages", openai(
        USER,
        {"role": "assistant", "content": None, "tool_calls": [
            call("get_weather", '{"city": "Oslo"}', 1), call("get_weather", '{"city": "Lima"}', 2)]},
        {"role": "tool", "tool_call_id": "c2", "content": "fog"},
        {"role": "tool", "tool_call_id": "c1", "content": "clear"},
    ))  # fmt: skip
    assert found["answers"] == [[OSLO, LIMA]]
    assert found["meta"]["results"] == ["clear", "fog"]


def test_values_that_only_a_result_can_give_become_references(tmp_path):
    found = convert(tmp_path, "openai-messages", openai(
        USER,
        {"role": "assistant",
         "tool_calls": [call("find", '{"q": "Oslo"}'), call("find", '{"q": "x-7733"}')]},
        {"role": "tool", "content": '{"id": "x-7733"}'},
        {"role": "tool", "content": '{"id": "y-1"}'},
        {"role": "assistant", "tool_calls": [call("book", '{"id": "x-7733", "day": "today"}')]},
    ))  # fmt: skip
    # the second call was made beside the first, so nothing it was given can be the first's result
    assert found["answers"][0][1]["arguments"] == {"q": "x-7733"}
    assert found["answers"][1] == [
        {"name": "book", "arguments": {"id": "$var1.id$", "day": "today"}}
    ]
    assert found["meta"]["levels"] == [0, 0, 1]
    assert found["meta"]["resolved"][2] == {"id": "x-7733", "day": "today"}


def test_requests_between_calls_make_a_dialogue(tmp_path):
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [OSLO]},
        {"role": "tool", "content": "clear"},
        {"role": "assistant", "content": "Clear."},
        {"role": "user", "content": "And in Lima?"},
        {"role": "assistant", "content": "", "tool_calls": [LIMA]},
        {"role": "tool", "content": "fog"},
    ]
    given = [
        {**m, "tool_calls": [call(c["name"], json.dumps(c["arguments"])) for c in m["tool_calls"]]}
        if "tool_calls" in m else m for m in messages
    ]  # fmt: skip
    found = convert(tmp_path, "openai-messages", openai(*given))
    assert found["messages"] == messages
    assert found["answers"] == [[OSLO], [LIMA]]
    assert found["meta"]["form"] == "dialogue" and found["meta"]["answer_at"] == [1, 5]
    assert found["meta"]["results"] == ["clear", "fog"]


def test_no_calls_means_that_none_was_right(tmp_path):
    found = convert(
        tmp_path, "openai-messages", openai(USER, {"role": "assistant", "content": "No."})
    )
    assert found["answers"] == [] and found["messages"] == [USER]
    assert found["meta"] == {"answer": "No."}
    talk = {"messages": [USER, {"role": "assistant", "content": "No."}]}
    assert convert(tmp_path, "openai-messages", talk)["meta"]["derivation"] == "qa"


def test_the_deprecated_function_fields_are_read(tmp_path):
    found = convert(tmp_path, "openai-messages", {
        "functions": [WEATHER["function"]],
        "messages": [
            USER,
            {"role": "assistant", "content": None,
             "function_call": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
            {"role": "function", "name": "get_weather", "content": "clear"},
        ],
    })  # fmt: skip
    assert found["answers"] == [[OSLO]] and found["meta"]["results"] == ["clear"]
    assert found["tools"] == [WEATHER]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": "no list"}, "neither JSON nor a literal"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [call("f", "{broken")]}]},
            "broken",
        ),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [call("f", "[1]")]}]}, "list"),
        ({"tools": [{"type": "function", "function": {}}]}, "no name"),
        ({"tools": [{"name": "f", "parameters": 5}]}, "parameters are int"),
    ],
)
def test_a_record_without_the_form_is_malformed_with_its_reason(tmp_path, change, reason):
    found = convert(tmp_path, "openai-messages", openai(USER) | change)
    assert found["rule"] == "malformed" and reason in found["malformed"]
    assert found["malformed"].startswith("x.jsonl:1: ")


def test_long_results_are_cut_but_what_is_referred_to_stays(tmp_path):
    rows = [{"text": "z" * 200, "n": n} for n in range(50)]
    found = convert(tmp_path, "openai-messages", openai(
        USER,
        {"role": "assistant", "tool_calls": [call("find", "{}")]},
        {"role": "tool", "content": json.dumps({"rows": rows, "token": "t-" + "9" * 90})},
        {"role": "assistant", "tool_calls": [call("use", json.dumps({"token": "t-" + "9" * 90}))]},
        {"role": "tool", "content": "y" * 900},
    ), result_chars=200)  # fmt: skip
    first, second = found["meta"]["results"]
    assert first["token"] == "t-" + "9" * 90 and len(json.dumps(first)) < 400
    assert len(json.dumps(second, ensure_ascii=False)) <= 200 and second.startswith("yyy")
    assert found["meta"]["resolved"][1] == {"token": "t-" + "9" * 90}


def test_sharegpt_calls_and_observations(tmp_path):
    for format_ in ("sharegpt", "apigen-mt"):
        found = convert(tmp_path, format_, {
            "system": "You sell tickets.",
            "tools": json.dumps([{"name": "get_weather", "description": "The weather in a city.",
                                  "parameters": {"city": {"type": "str", "required": True}}}]),
            "conversations": [
                {"from": "human", "value": "Weather in Oslo?"},
                {"from": "function_call", "value": json.dumps([OSLO, LIMA])},
                {"from": "observation", "value": '["clear", "fog"]'},
                {"from": "gpt", "value": "Clear and fog."},
            ],
        })  # fmt: skip
        assert found["messages"] == [{"role": "system", "content": "You sell tickets."}, USER]
        assert found["tools"] == [WEATHER]
        assert found["answers"] == [[OSLO, LIMA]]
        assert found["meta"]["results"] == ["clear", "fog"]
        assert found["meta"]["answer"] == "Clear and fog."


def test_toolace_text_holds_tools_and_calls(tmp_path):
    tool = {"name": "Today's News (v2)", "description": "News.", "parameters": {
        "type": "dict", "properties": {"topic": {"type": "string"}, "n": {"type": "int"}},
        "required": ["topic"]}, "required": None}  # fmt: skip
    tool["name"] = "Today's News"
    found = convert(tmp_path, "toolace", {
        "system": "You compose calls. Today is 2025-03-01, Saturday.\nHere are functions [in JSON]:\n"
                  + json.dumps([tool]) + "\nPut calls in the format [f(a=b)]",
        "conversations": [
            {"from": "user", "value": "News on chess and go?"},
            {"from": "assistant",
             "value": "[Today's News(topic=\"chess, (live)\", n=2), Today's News(topic='go')]"},
            {"from": "tool", "value": '[{"name": "Today\'s News"}, {"name": "Today\'s News", "n": 1}]'},
            {"from": "assistant", "value": "Here they are."},
            {"from": "user", "value": "Tell a joke."},
            {"from": "assistant", "value": "None of my functions can."},
        ],
    })  # fmt: skip
    assert found["messages"][0] == {"role": "system", "content": "Today is 2025-03-01, Saturday."}
    assert found["answers"] == [[
        {"name": "Today's News", "arguments": {"topic": "chess, (live)", "n": 2}},
        {"name": "Today's News", "arguments": {"topic": "go"}},
    ]]  # fmt: skip
    schema = found["tools"][0]["function"]["parameters"]
    assert schema["type"] == "object" and schema["properties"]["n"] == {"type": "integer"}
    assert found["meta"]["form"] == "dialogue" and found["meta"]["answer_at"] == [2]
    assert found["meta"]["results"][1] == {"name": "Today's News", "n": 1}
    assert "Put calls in the format" in found["meta"]["system_text"]


def test_toolace_call_that_cannot_be_read_is_malformed(tmp_path):
    found = convert(tmp_path, "toolace", {"system": "", "conversations": [
        {"from": "user", "value": "x"}, {"from": "assistant", "value": "[f(a=b c)]"}]})  # fmt: skip
    assert "neither JSON nor a literal" in found["malformed"]


def test_glaive_chat_text(tmp_path):
    system = ("SYSTEM: You are a helpful assistant with access to the following functions. Use them if "
              "required -\n" + json.dumps(WEATHER["function"], indent=4) + "\n")  # fmt: skip
    quoted = '{"name": "get_weather", "arguments": \'{"city": "Oslo"}\'}'
    chat = ("USER: Weather in Oslo?\n\n\nASSISTANT: <functioncall> " + quoted + " <|endoftext|>\n\n\n"
            'FUNCTION RESPONSE: {"sky": "clear"}\n\n\nASSISTANT: Clear. <|endoftext|>\n\n\n')  # fmt: skip
    found = convert(tmp_path, "glaive", {"system": system, "chat": chat})
    assert found["messages"] == [USER] and found["tools"] == [WEATHER]
    assert found["answers"] == [[OSLO]]
    assert found["meta"]["results"] == [{"sky": "clear"}] and found["meta"]["answer"] == "Clear."
    declined = "USER: Book a flight.\n\n\nASSISTANT: I cannot. <|endoftext|>"
    found = convert(tmp_path, "glaive", {"system": system, "chat": declined})
    assert found["answers"] == [] and found["meta"]["answer"] == "I cannot."


@pytest.mark.parametrize(
    "arguments",
    ['\'{"city": "Oslo"}\'', '{"city": "Oslo"}',
     '"{\\"city\\": \\"Oslo\\"}"', "'{\\'city\\': \\'Oslo\\'}'"],
)  # fmt: skip
def test_glaive_arguments_in_every_quoting(tmp_path, arguments):
    chat = f'USER: x\n\n\nASSISTANT: <functioncall> {{"name": "get_weather", "arguments": {arguments}}}'
    found = convert(tmp_path, "glaive", {"system": "", "chat": chat})
    assert found.get("answers") == [[OSLO]], found


def test_xlam_and_the_irrelevance_set(tmp_path):
    tools = json.dumps([{"name": "rates", "description": "Rates.", "parameters": {
        "base": {"description": "b", "type": "str"},
        "days": {"description": "d", "type": "List[int], optional"},
        "kind": {"description": "k", "type": "str", "default": "spot"}}}])  # fmt: skip
    answers = json.dumps([{"name": "rates", "arguments": {"base": "EUR"}},
                          {"name": "rates", "arguments": {"base": "USD"}}])  # fmt: skip
    found = convert(
        tmp_path, "xlam", {"id": 12, "query": "Rates?", "tools": tools, "answers": answers}
    )
    assert found["id"] == "mine-12"
    assert [[c["arguments"]["base"] for c in step] for step in found["answers"]] == [["EUR", "USD"]]
    schema = found["tools"][0]["function"]["parameters"]
    assert schema["required"] == ["base"]
    assert schema["properties"]["days"] == {
        "description": "d", "type": "array", "items": {"type": "integer"}, "x-optional": True,
    }  # fmt: skip
    found = convert(tmp_path, "xlam", {"id": 13, "query": "Joke?", "tools": tools, "answers": "[]"})
    assert found["answers"] == [] and len(found["tools"]) == 1


def test_questions_keep_further_answers_and_their_other_fields(tmp_path):
    found = convert(tmp_path, "qa", {"_id": "5a", "question": "Who?", "answer": ["Ann", "Anna"],
                                     "type": "bridge", "results": 3})  # fmt: skip
    assert found["messages"] == [{"role": "user", "content": "Who?"}]
    assert found["meta"] == {"answer": "Ann", "answer_aliases": ["Anna"], "derivation": "qa",
                             "_id": "5a", "type": "bridge", "source_results": 3}  # fmt: skip
    assert "malformed" in convert(tmp_path, "qa", {"question": "Who?"})
