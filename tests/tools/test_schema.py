"""The schema that a provider gets of a tool's arguments."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator
from jsonschema.exceptions import SchemaError as InvalidSchema
from jsonschema.exceptions import UnknownType
from referencing.exceptions import Unresolvable

from ai_agent_service.tools.schema import SchemaError, complete_schema

NAMES = st.sampled_from(["a", "b", "c"])
PLAIN: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, 2.5, "", "a", [], [0], [0, "a"], {}]
)
VALUES = PLAIN | st.dictionaries(NAMES, PLAIN, max_size=2)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
TYPES = st.sampled_from(
    ["object", "array", "string", "integer", "number", "null", ["string", "null"]]
)
REFERENCES = st.sampled_from(
    ["#", "#/$defs/one", "#/$defs/two", "#/definitions/one", "#/properties/a", "#/nowhere"]
)


@st.composite
def schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """Draw a valid schema with subschemas of so many levels."""
    inner = st.booleans() | (schemas(depth - 1) if depth else st.just({}))
    entries = st.dictionaries(NAMES, inner, max_size=3)
    group = st.lists(inner, min_size=1, max_size=3)
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "type": TYPES,
        "properties": entries,
        "required": st.lists(NAMES, max_size=2, unique=True),
        "additionalProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "b|c"]), inner, max_size=2),
        "items": inner,
        "prefixItems": group,
        "anyOf": group,
        "oneOf": group,
        "allOf": group,
        "not": inner,
        "if": inner,
        "then": inner,
        "const": VALUES,
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "contains": inner,
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(0, 3),
        "minProperties": st.integers(0, 2),
        "propertyNames": inner,
        "nullable": st.booleans(),
        "format": st.sampled_from(["email", "date-time", "uri"]),
        "$ref": REFERENCES,
        "description": st.text(max_size=3),
        "exclusiveMinimum": st.integers(0, 2),
        "unevaluatedProperties": st.booleans(),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(keywords)), max_size=4))
    return {name: draw(keywords[name]) for name in sorted(chosen)}


@st.composite
def roots(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a schema with definitions."""
    definitions = {name: draw(schemas(1)) for name in ("one", "two")}
    return {**draw(schemas()), "$defs": definitions, "definitions": definitions}


ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)


def find_subschemas(schema: Any) -> list[dict[str, Any]]:
    """Return a clean schema and all schemas in it."""
    if not isinstance(schema, dict):
        return []
    found = [schema]
    for name in ("properties", "patternProperties", "$defs"):
        for entry in schema.get(name, {}).values():
            found += find_subschemas(entry)
    for name in ("anyOf", "allOf"):
        for entry in schema.get(name, []):
            found += find_subschemas(entry)
    for name in ("items", "additionalProperties", "contains", "propertyNames"):
        found += find_subschemas(schema.get(name))
    return found


def check_completed(schema: dict[str, Any]) -> None:
    """Assert that providers accept `schema`."""
    json.dumps(schema).encode()
    Draft202012Validator.check_schema(schema)
    assert schema["type"] == "object"
    assert not {"oneOf", "anyOf", "allOf", "enum", "not", "$ref", "const"} & set(schema)
    for each in find_subschemas(schema):
        types = each.get("type", [])
        types = types if isinstance(types, list) else [types]
        assert "items" in each or "array" not in types
        assert "properties" in each or "object" not in types
        assert isinstance(each.get("properties", {}), dict)
        assert isinstance(each.get("items", {}), dict)
        assert not {"const", "oneOf", "nullable", "$schema", "id", "definitions"} & set(each)
        if "properties" in each:
            assert set(each.get("required", [])) <= set(each["properties"])
        if "$ref" in each:
            assert each["$ref"].removeprefix("#/$defs/") in schema["$defs"]


@given(roots())
@settings(max_examples=100, deadline=None)
def test_a_completed_schema_is_one_that_providers_accept(schema: dict[str, Any]) -> None:
    try:
        completed = complete_schema(schema)
    except SchemaError:
        return
    check_completed(completed)
    check_completed(complete_schema(completed))


@given(roots(), st.sampled_from([Draft202012Validator, Draft7Validator]), st.data())
@settings(max_examples=200, deadline=None)
def test_a_completed_schema_accepts_what_the_original_accepts(
    schema: dict[str, Any], draft: Any, data: st.DataObject
) -> None:
    arguments = data.draw(ARGUMENTS)
    assume('"#"' not in json.dumps(schema))  # no validator ends with it
    try:
        assume(draft(schema).is_valid(arguments))
    except (Unresolvable, RecursionError, UnknownType, InvalidSchema):
        assume(False)
    completed = complete_schema(schema)
    errors = list(Draft202012Validator(completed).iter_errors(arguments))
    assert not errors, (completed, arguments)


def put_in(schema: Any, place: list[str], junk: Any) -> Any:
    """Return `schema` with `junk` at `place`."""
    if not place:
        return junk
    return {**schema, place[0]: put_in(schema.get(place[0], {}), place[1:], junk)}


KNOWN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "a": {"type": "array", "items": {"type": "string"}, "description": "letters"},
        "b": {"type": "integer", "minimum": 1, "enum": [1, 2]},
        "kept": {"type": "string", "description": "stays"},
    },
    "required": ["kept"],
}
PLACES = st.sampled_from(
    [[key] for key in ("required", "$defs", "description", "anyOf", "additionalProperties", "x")]
    + [["properties", "a"], ["properties", "b"]]
    + [["properties", "a", key] for key in ("type", "items", "minItems", "pattern", "default")]
    + [["properties", "b", key] for key in ("enum", "minimum", "oneOf", "$ref", "format", "id")]
)


@given(PLACES, JUNK)
@settings(max_examples=200, deadline=None)
def test_an_odd_member_costs_nothing_but_itself(place: list[str], junk: Any) -> None:
    schema = put_in(KNOWN, place, junk)
    try:
        completed = complete_schema(schema)
    except SchemaError:
        assert place == ["anyOf"]  # no branch accepts an object
        return
    check_completed(completed)
    assert completed["properties"]["kept"] == {"type": "string", "description": "stays"}
    assert "a" in completed["properties"] or place == ["properties", "a"]


@given(JUNK)
@settings(max_examples=100, deadline=None)
def test_anything_is_completed_or_refused_with_a_reason(junk: Any) -> None:
    with suppress(SchemaError):
        check_completed(complete_schema(junk))


def props(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "completed"),
    [
        (None, props()),
        (True, props()),
        ({}, props()),
        ({"type": "object", "properties": []}, props()),
        ({"properties": {"a": STRING}, "required": None}, props(a=STRING)),
        (props(a={"type": "array"}), props(a={"type": "array", "items": {}})),
        (
            props(a={"type": "array", "items": [STRING, STRING], "additionalItems": False}),
            props(a={"type": "array", "items": STRING, "maxItems": 2}),
        ),
        (props(a={"const": "x"}), props(a={"enum": ["x"], "type": "string"})),
        (props(a={"type": "STRING"}), props(a=STRING)),
        (props(a={"type": "string", "nullable": True}), props(a={"type": ["string", "null"]})),
        (
            props(a={"type": "string", "format": "email", "description": "Whose?"}),
            props(a={"type": "string", "description": "Whose? Format: email."}),
        ),
        (
            props(a={"type": "number", "minimum": 1, "exclusiveMinimum": True}),
            props(a={"type": "number", "exclusiveMinimum": 1}),
        ),
        (
            {**props(a={"$ref": "#/definitions/x"}), "definitions": {"x": STRING}, "$schema": "y"},
            props(a=STRING),
        ),
        (
            {**props(a=STRING), "oneOf": [{"required": ["a"]}]},
            {**props(a=STRING), "required": ["a"]},
        ),
        (
            {"anyOf": [props(a=STRING), {"type": "null"}]},
            props(a=STRING),
        ),
        (
            {"allOf": [{**props(a=STRING), "required": ["a"]}, props(b=STRING)]},
            {**props(a=STRING, b=STRING), "required": ["a"]},
        ),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": props(a={"$ref": "#/$defs/x"})}},
            {
                **props(a={"$ref": "#/$defs/x"}),
                "$defs": {"x": props(a={"$ref": "#/$defs/x"})},
            },
        ),
        (
            props(**{"a\0": {"description": "b\ud800"}}),
            props(**{"a\ufffd": {"description": "b\ufffd"}}),
        ),
    ],
)
def test_a_schema_is_completed(schema: Any, completed: dict[str, Any]) -> None:
    assert complete_schema(schema) == completed


@pytest.mark.parametrize("schema", ["x", [], False, 3, {"type": "string"}, {"anyOf": [STRING]}])
def test_a_schema_that_accepts_no_object_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError, match="the schema of its arguments"):
        complete_schema(schema)


def test_the_limit_of_draft_4_still_refuses_what_it_refused() -> None:
    schema = props(a={"minimum": 1, "exclusiveMinimum": True})
    completed = complete_schema(schema)
    for number in (0, 1, 2):
        is_valid = Draft4Validator(schema).is_valid({"a": number})
        assert Draft202012Validator(completed).is_valid({"a": number}) == is_valid


def test_a_definition_that_would_make_a_schema_huge_stays_a_reference() -> None:
    definitions = {
        f"d{number}": props(
            **{f"p{each}": {"$ref": f"#/$defs/d{number + 1}"} for each in range(10)}
        )
        for number in range(9)
    }
    schema = {"$defs": {**definitions, "d9": STRING}, **props(a={"$ref": "#/$defs/d0"})}
    completed = complete_schema(schema)
    check_completed(completed)
    assert len(json.dumps(completed)) < 300_000


MANY = 10_000
REFERRED = {f"d{n}": {"x": {"properties": {"n": {"$ref": f"#/$defs/d{n}/x"}}}} for n in range(MANY)}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"prefixItems": [{"const": n} for n in range(MANY)]}}},
        {"anyOf": [{"properties": {"a": {"const": n}}} for n in range(MANY)]},
        {"properties": {k: {"$ref": f"#/$defs/{k}/x"} for k in REFERRED}, "$defs": REFERRED},
        {"properties": {"a": {"pattern": "[\x01-\uffff]" * MANY}}},
        {"properties": {f"a{n}": {"pattern": "(?i)[^\uffff]{n}"} for n in range(MANY)}},
        {"patternProperties": {f"[\x01-\uffff]{n}": {} for n in range(MANY)}},
    ],
    ids=["tuple", "branches", "references", "classes", "patterns", "names"],
)
def test_a_wide_schema_is_completed_at_once(schema: dict[str, Any]) -> None:
    began = time.process_time()
    complete_schema(schema)
    assert time.process_time() - began < 5, "half a second on a machine at rest"


@pytest.mark.parametrize(
    "node",
    [
        {"description": "d" * 100_000},
        {"enum": ["e" * 100_000]},
        {"properties": {"p" * 100_000: {}}},
    ],
)
def test_what_is_referred_to_often_does_not_make_a_schema_huge(node: dict[str, Any]) -> None:
    references = {f"a{n}": {"$ref": "#/$defs/node"} for n in range(1_000)}
    completed = complete_schema({"properties": references, "$defs": {"node": node}})
    assert len(json.dumps(completed)) < 3_000_000


@pytest.mark.parametrize(
    "entry",
    [
        {"minimum": 10**400},
        {"maxLength": -(10**400)},
        {"$ref": "#/allOf/" + "1" * 5_000},
        {"pattern": "[[a]||b]"},
    ],
)
def test_a_value_without_measure_costs_nothing_but_itself(entry: dict[str, Any]) -> None:
    completed = complete_schema({"properties": {"a": entry, "b": {"type": "null"}}, "allOf": [{}]})
    assert completed["properties"]["b"] == {"type": "null"}
