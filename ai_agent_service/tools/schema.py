"""Complete the JSON Schema of a tool's arguments so that every provider accepts it.

The result accepts whatever the original accepts, sometimes more: a model may be shown less than a
server checks. What providers refuse, and where that was seen:

- OpenAI and Azure: another type than `object`, or `oneOf`, `anyOf`, `allOf`, `enum`, `not` at the
  top, an array without `items`, an object without `properties`, whatever the metaschema of draft
  2020-12 refuses (langchain-ai/langchainjs#9804, nspady/google-calendar-mcp#39).
- Gemini: a `$ref`, an array without `items`, a required name that is not a property, formats other
  than `date-time`, `const` (DEEIX-AI/DEEIX-Chat#546, google-gemini/gemini-cli#4400).
- Ollama: `properties` that are not an object, `required` that is not a list of texts
  (ollama/ollama#10328, #18051).
"""

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from ai_agent_service.core.text import replace_unstorable

MAX_DEPTH = 40
"""Levels of a schema; what is nested more deeply is not described."""

MAX_INLINE_NODES = 2_000
"""Subschemas after which a `$ref` is kept as a reference, not replaced by what it refers to."""

MAX_NODES = 10_000
"""Subschemas of a tool that are described at all."""

NODE_CHARACTERS = 500
"""A subschema counts once more for each so many characters that it has."""

MAX_PATTERN_COST = 10_000
"""What the regular expressions of a tool may cost to check, in characters; the others are left
out."""

CLASS_COST = 1_000
"""What a character class costs that may span all of Unicode."""

Schema = dict[str, Any]

_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_FORMATS = frozenset({"date-time", "int32", "int64", "float", "double"})
_WIDE = re.compile(r"[^ -~]|\\[uUN]|\(\?[a-zA-Z]")
"""In a regular expression whose character classes take long to compile."""


class SchemaError(ValueError):
    """A schema that no object of arguments can match; the message says why."""


def complete_schema(schema: object) -> Schema:
    """Return `schema` as a schema of draft 2020-12 whose top is an object with properties; raises
    SchemaError.

    References are replaced by what they refer to, unless they are recursive.
    """
    if schema is None or schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise SchemaError("the schema of its arguments is not an object")
    try:
        completed: Schema = _replace_characters(_Completer(schema).complete())
    except RecursionError:
        raise SchemaError("the schema of its arguments is nested too deeply") from None
    return completed


class _Completer:
    """Completes the schema `root`."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._nodes = 0
        self._pattern_cost = 0
        self._open: list[str] = []
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}
        self._waiting: list[str] = []
        self._definitions: dict[str, Schema] = {}

    def complete(self) -> Schema:
        top, seen = self._root, {"#"}
        while isinstance(reference := top.get("$ref"), str) and reference not in seen:
            seen.add(reference)
            target = self._find(reference)
            top = target if isinstance(target, dict) else {}
        self._open = list(seen)
        shape = _Shape.build(self._clean(top, 0))
        if shape is None:
            raise SchemaError("the schema of its arguments does not accept an object")
        while self._waiting:
            if (reference := self._waiting.pop(0)) not in self._definitions:
                self._define(reference)
        result = shape.to_schema()
        if self._definitions:
            result["$defs"] = {self._names[each]: body for each, body in self._definitions.items()}
        return result

    def _clean(self, value: object, depth: int) -> Schema:
        """Return a subschema with the keywords that providers know, well-formed."""
        if not isinstance(value, dict) or depth > MAX_DEPTH or self._nodes >= MAX_NODES:
            return {}
        self._nodes += 1
        if isinstance(value.get("$ref"), str):
            return self._resolve(value, depth)
        found: Schema = {
            name: read for name in _PLAIN if (read := _PLAIN[name](value.get(name))) is not None
        }
        self._nodes += _count_characters(value, found) // NODE_CHARACTERS
        if pattern := self._read_pattern(value.get("pattern")):
            found["pattern"] = pattern
        _convert_exclusive_limits(value, found)
        self._clean_alternatives(value, found, depth)
        self._clean_object(value, found, depth)
        self._clean_array(value, found, depth)
        for name in ("contains", "propertyNames"):
            if isinstance(value.get(name), dict):
                found[name] = self._clean(value[name], depth + 1)
        if "contains" not in found:
            found.pop("minContains", None)
        _convert_values(value, found)
        _describe_format(value, found)
        if len(found.get("allOf", ())) == 1 and set(found) <= {"allOf", *_NOTES}:
            found = {**found.pop("allOf")[0], **found}
        return found

    def _clean_list(self, values: object, depth: int) -> list[Schema]:
        entries = values if isinstance(values, list) else []
        return [self._clean(entry, depth + 1) for entry in entries if entry is not False]

    def _clean_alternatives(self, value: Schema, found: Schema, depth: int) -> None:
        """`oneOf` becomes `anyOf`, since a loosened branch may match beside another."""
        every = self._clean_list(value.get("allOf"), depth)
        groups = [self._clean_list(value.get(name), depth) for name in ("anyOf", "oneOf")]
        any_of, *more = [group for group in groups if group] or [[]]
        every += [{"anyOf": group} for group in more]
        if every := [entry for entry in every if entry]:
            found["allOf"] = every
        if any_of:
            found["anyOf"] = any_of

    def _clean_object(self, value: Schema, found: Schema, depth: int) -> None:
        for name in ("properties", "patternProperties"):
            if isinstance(entries := value.get(name), dict):
                found[name] = {
                    key: self._clean(entry, depth + 1)
                    for key, entry in entries.items()
                    if entry is not False and (name == "properties" or self._read_pattern(key))
                }
        extra = value.get("additionalProperties")
        if isinstance(extra, dict):
            found["additionalProperties"] = self._clean(extra, depth + 1)
        elif isinstance(extra, bool):
            found["additionalProperties"] = extra
        if len(found.get("patternProperties", ())) != len(_as_dict(value.get("patternProperties"))):
            found.pop("additionalProperties", None)  # it would refuse what a lost pattern allows
        if "object" in _list_types(found):
            found.setdefault("properties", {})
        if "required" in found and "properties" in found:
            for name in found["required"]:
                found["properties"].setdefault(name, {})

    def _clean_array(self, value: Schema, found: Schema, depth: int) -> None:
        items, extra = value.get("items"), value.get("additionalItems", True)
        tuple_of = items if isinstance(items, list) else value.get("prefixItems")
        if not isinstance(items, list):
            extra = value.get("items", True)
        if isinstance(tuple_of, list):
            options = self._clean_list(tuple_of, depth)
            if extra is False:
                found["maxItems"] = min(found.get("maxItems", len(tuple_of)), len(tuple_of))
            if found.get("maxItems", math.inf) > len(tuple_of):
                options.append(self._clean(extra, depth + 1))
            found["items"] = _build_union(options)
        elif items is not None or "array" in _list_types(found):
            found["items"] = self._clean(items, depth + 1)

    def _resolve(self, value: Schema, depth: int) -> Schema:
        """Return what `$ref` refers to, under the description that stands beside it."""
        reference = value["$ref"]
        if reference in self._open or reference in self._definitions:
            return self._refer(reference)
        target = self._find(reference)
        if target is None:
            return {}
        if self._nodes > MAX_INLINE_NODES:
            self._refer(reference)
        self._open.append(reference)
        body = self._clean(target, depth + 1)
        self._open.pop()
        if reference in self._names:
            return self._keep(reference, body)
        beside = {name: read for name in _NOTES if (read := _PLAIN[name](value.get(name)))}
        return {**body, **beside}

    def _define(self, reference: str) -> None:
        self._open = [reference]
        self._keep(reference, self._clean(self._find(reference), 0))

    def _keep(self, reference: str, body: Schema) -> Schema:
        itself = self._refer(reference)
        self._definitions[reference] = {} if body == itself else body
        return itself

    def _refer(self, reference: str) -> Schema:
        """Return a reference to a definition of the result."""
        if reference not in self._names:
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", reference.rpartition("/")[2].strip("#")) or "root"
            name = stem
            while name in self._taken:
                self._counts[stem] = self._counts.get(stem, 1) + 1
                name = f"{stem}_{self._counts[stem]}"
            self._taken.add(name)
            self._names[reference] = name
            self._waiting.append(reference)
        return {"$ref": f"#/$defs/{self._names[reference]}"}

    def _read_pattern(self, value: object) -> str | None:
        """Return a regular expression; None if it is invalid or costs too much to check."""
        text = _read_text(value) or ""
        cost = len(text) + (CLASS_COST * text.count("[") if _WIDE.search(text) else 0)
        if self._pattern_cost + cost > MAX_PATTERN_COST:
            return None
        self._pattern_cost += cost
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of what may be a set in a set
                re.compile(text)
        except (re.error, OverflowError, RecursionError):
            return None
        return text or None

    def _find(self, reference: str) -> object:
        """Return the part of the schema that `reference` points to; None if it is elsewhere."""
        found: object = self._root
        path = unquote(reference)
        if path != "#" and not path.startswith("#/"):
            return None
        for step in path.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and key in found:
                found = found[key]
            elif isinstance(found, list) and re.fullmatch("[0-9]{1,9}", key):
                found = found[int(key)] if int(key) < len(found) else None
            else:
                return None
        return found


class _Shape:
    """What is known of the objects that a schema accepts, without alternatives at its top."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.properties: dict[str, Schema] = dict(schema.get("properties", {}))
        self.required: dict[str, None] = dict.fromkeys(schema.get("required", ()))
        self.is_closed = (
            schema.get("additionalProperties") is False and "patternProperties" not in schema
        )

    @classmethod
    def build(cls, schema: Schema) -> "_Shape | None":
        """Return the shape of a clean schema; None if it accepts no object."""
        types = _list_types(schema)
        if (types and "object" not in types) or not any(
            isinstance(value, dict) for value in schema.get("enum", [{}])
        ):
            return None
        shape = cls(schema)
        for branch in schema.get("allOf", ()):
            if (part := cls.build(branch)) is None:
                return None
            shape.restrict(part)
        if branches := schema.get("anyOf", ()):
            parts = [part for branch in branches if (part := cls.build(branch)) is not None]
            if not parts:
                return None
            shape.restrict(cls.unite(parts))
        return shape

    @classmethod
    def unite(cls, parts: "list[_Shape]") -> "_Shape":
        """Return a shape that accepts what any of `parts` accepts."""
        shape = cls({})
        for name in dict.fromkeys(name for part in parts for name in part.properties):
            options = [part.properties[name] for part in parts if name in part.properties]
            if any(name not in part.properties and not part.is_closed for part in parts):
                options.append({})
            shape.properties[name] = _build_union(options)
        first, *others = parts
        shape.required = {
            name: None for name in first.required if all(name in each.required for each in others)
        }
        shape.is_closed = all(part.is_closed for part in parts)
        return shape

    def restrict(self, other: "_Shape") -> None:
        """Accept only what `other` accepts too, as far as it can be said without alternatives."""
        for name, schema in other.properties.items():
            before = self.properties.get(name) or schema
            same = schema in ({}, before)
            self.properties[name] = before if same else {"allOf": [before, schema]}
        self.required |= other.required
        self.is_closed |= other.is_closed

    def to_schema(self) -> Schema:
        result: Schema = {name: self.schema[name] for name in _AT_TOP if name in self.schema}
        result["type"] = "object"
        result["properties"] = {**self.properties}
        for name in self.required:
            result["properties"].setdefault(name, {})
        if self.required:
            result["required"] = list(self.required)
        if self.is_closed:
            result["additionalProperties"] = False
        return result


def _build_union(options: Iterable[Schema]) -> Schema:
    """Return a schema that accepts what any of `options` accepts."""
    # In Python, 1 equals True.
    distinct = list({repr(option): option for option in options}.values())
    if len(distinct) > 1:
        return {"anyOf": distinct}
    return distinct[0] if distinct else {}


def _count_characters(value: Schema, found: Schema) -> int:
    """Return the length of the plain keywords in `found`, and of the property names in `value`."""
    names = (_as_dict(value.get(name)) for name in ("properties", "patternProperties"))
    return len(repr(found)) + sum(len(key) for entries in names for key in entries)


def _list_types(schema: Schema) -> list[str]:
    types = schema.get("type", [])
    return types if isinstance(types, list) else [types]


def _convert_exclusive_limits(value: Schema, found: Schema) -> None:
    """Convert the `exclusiveMinimum: true` of draft 4, and its opposite."""
    for name, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if value.get(name) is True and limit in found:
            found[name] = found.pop(limit)


def _convert_values(value: Schema, found: Schema) -> None:
    """Convert `const` and `nullable`, and complete the type of an `enum`."""
    if "const" in value:
        found["enum"] = [value["const"]]
    if value.get("nullable") is True:
        if types := _list_types(found):
            found["type"] = list(dict.fromkeys([*types, "null"]))
        if None not in found.get("enum", [None]):
            found["enum"] = [*found["enum"], None]
        if "anyOf" in found:
            found["anyOf"] = [*found["anyOf"], {"type": "null"}]
    if "enum" in found and "type" not in found:
        kinds = list(
            dict.fromkeys(_NAMES_OF_TYPES.get(type(each), "object") for each in found["enum"])
        )
        if len(kinds) == 1 and kinds[0] not in ("array", "object"):
            found["type"] = kinds[0]


def _describe_format(value: Schema, found: Schema) -> None:
    """Put a format that some provider refuses into the description."""
    name = value.get("format")
    if isinstance(name, str) and name and "format" not in found:
        described = found.get("description", "")
        words = f"Format: {name}."
        if words not in described:
            found["description"] = f"{described} {words}".lstrip()


def _as_dict(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _read_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _read_number(value: object) -> int | float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None


def _read_positive(value: object) -> int | float | None:
    return number if (number := _read_number(value)) is not None and number > 0 else None


def _read_count(value: object) -> int | None:
    number = _read_number(value)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def _read_type(value: object) -> object:
    """Return the type or types, in lower case; None if one is unknown."""
    types = [each.lower() for each in _as_list(value) if isinstance(each, str)]
    if not types or len(types) != len(_as_list(value)) or not set(types) <= set(_TYPES):
        return None
    distinct = list(dict.fromkeys(types))
    return distinct if len(distinct) > 1 else distinct[0]


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _read_required(value: object) -> list[str] | None:
    names = [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
    return list(dict.fromkeys(names)) or None


def _read_enum(value: object) -> list[object] | None:
    return (value or None) if isinstance(value, list) else None


def _read_list(value: object) -> list[object] | None:
    return value if isinstance(value, list) else None


def _read_flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _read_format(value: object) -> str | None:
    return value if isinstance(value, str) and value in _FORMATS else None


_PLAIN: Mapping[str, Callable[[object], object]] = {
    "type": _read_type,
    "title": _read_text,
    "description": _read_text,
    "default": lambda value: value,
    "examples": _read_list,
    "enum": _read_enum,
    "format": _read_format,
    "minimum": _read_number,
    "maximum": _read_number,
    "exclusiveMinimum": _read_number,
    "exclusiveMaximum": _read_number,
    "multipleOf": _read_positive,
    "minLength": _read_count,
    "maxLength": _read_count,
    "minItems": _read_count,
    "maxItems": _read_count,
    "minContains": _read_count,
    "minProperties": _read_count,
    "maxProperties": _read_count,
    "uniqueItems": _read_flag,
    "required": _read_required,
}
"""Keywords without subschemas, and how each is read; an ill-typed one is left out."""

_NOTES = ("title", "description", "default", "examples")

_AT_TOP = (
    *("title", "description", "additionalProperties", "patternProperties"),
    *("minProperties", "maxProperties", "propertyNames"),
)

_NAMES_OF_TYPES: Mapping[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _replace_characters(value: Any) -> Any:
    """Return `value` without NUL and lone surrogates in its texts and names."""
    match value:
        case str():
            return replace_unstorable(value)
        case dict():
            return {
                replace_unstorable(key): _replace_characters(item) for key, item in value.items()
            }
        case list():
            return [_replace_characters(item) for item in value]
        case _:
            return value
