"""Normalised schemas: one set of type names, valid JSON Schema, twice = once."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from cahl_core.datasets.schemas import (
    MAX_DEPTH,
    normalise,
    normalise_parameters,
    normalise_type,
)

NAMES = st.sampled_from(
    ["str", "String", "int", "float", "double", "bool", "dict", "map", "list", "tuple", "set",
     "List[str]", "list(int)", "Dict[str, int]", "Union[int, List[str]]", "Optional[bool]",
     "str, optional", "int or float", "a | b", "Callable", "any", "", "List[", "x" * 40]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
KEYWORDS = st.sampled_from(
    ["type", "description", "enum", "default", "items", "properties", "required", "anyOf", "$ref",
     "$defs", "minimum", "pattern", "format", "optional", "additionalProperties", "minItems",
     "title", "examples", "const", "prefixItems", "x-optional", "$id", "not", "example"]
)  # fmt: skip


def schemas(inner):
    return (
        st.dictionaries(KEYWORDS, inner | VALUES | NAMES, max_size=4)
        | st.fixed_dictionaries(
            {"type": NAMES | st.lists(NAMES, max_size=2)},
            optional={
                "properties": st.dictionaries(st.text(max_size=3), inner, max_size=3),
                "required": VALUES | st.booleans(),
                "items": inner | VALUES,
                "anyOf": st.lists(inner, max_size=2),
            },
        )
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    )


SCHEMAS = st.recursive(st.dictionaries(KEYWORDS, VALUES | NAMES, max_size=3), schemas, max_leaves=8)


@settings(max_examples=400)
@given(SCHEMAS)
def test_parameters_are_valid_and_normalising_twice_is_once(schema):
    try:
        once = normalise_parameters(schema)
    except ValueError:
        return
    Draft202012Validator.check_schema(once)
    assert normalise_parameters(once) == once
    assert isinstance(once["properties"], dict)


@settings(max_examples=200)
@given(st.text(alphabet="intsrlopa[](),| UnioLt", max_size=20) | NAMES)
def test_any_type_name_gives_a_valid_schema(name):
    found = normalise_type(name)
    Draft202012Validator.check_schema(found)
    assert normalise(found) == found


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("String", {"type": "string"}),
        ("double", {"type": "number"}),
        ("set", {"type": "array"}),
        ("list(float)", {"type": "array", "items": {"type": "number"}}),
        (
            "Tuple[int, str]",
            {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "string"}]}},
        ),
        ("Optional[str]", {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        ("List[Union[int, float]], optional",
         {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "number"}]},
          "x-optional": True}),
        ("Callable[[float], float]", {"x-original-type": "Callable[[float], float]"}),
    ],
)  # fmt: skip
def test_type_names(name, schema):
    assert normalise_type(name) == schema


def test_a_bare_map_becomes_an_object_with_required_names_from_flags():
    found = normalise_parameters(
        {
            "city": {"type": "str", "required": True, "description": "where"},
            "filter": {"type": "dict", "properties": {"stars": {"type": "int", "required": True}}},
            "type": {"type": "str, optional"},
        }
    )
    assert found == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "where"},
            "filter": {
                "type": "object",
                "properties": {"stars": {"type": "integer"}},
                "required": ["stars"],
            },
            "type": {"type": "string", "x-optional": True},
        },
        "required": ["city"],
    }


def test_recursive_references_stay_and_what_is_not_valid_gets_another_key():
    schema = {
        "type": "object",
        "properties": {"tree": {"$ref": "#/$defs/node", "enum": None, "minimum": "low"}},
        "$defs": {"node": {"type": "dict", "properties": {"next": {"$ref": "#/$defs/node"}}}},
    }
    found = normalise_parameters(schema)
    assert found["properties"]["tree"] == {
        "$ref": "#/$defs/node",
        "x-enum": None,
        "x-minimum": "low",
    }
    assert found["$defs"]["node"]["type"] == "object"
    assert found["$defs"]["node"]["properties"]["next"] == {"$ref": "#/$defs/node"}


def test_a_schema_that_is_too_deep_is_an_error_and_the_deepest_allowed_is_checked():
    def nested(levels):
        return {"type": "list", "items": nested(levels - 1)} if levels else {"type": "str"}

    Draft202012Validator.check_schema(normalise(nested(MAX_DEPTH)))
    with pytest.raises(ValueError, match="nested more than"):
        normalise(nested(MAX_DEPTH + 1))
    with pytest.raises(ValueError, match="nested more than"):
        normalise(nested(900))
