"""Describes the routes that read and write msgspec structs, so that /docs shows them as it shows all others."""

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI

from app.api.errors import ErrorResponse

_REFERENCE = "#/components/schemas/{name}"
_components: dict[str, Any] = {}


def documented(
    request: type[Any] | None,
    response: type[Any],
    *,
    stream: str = "",
    lines: str = "",
    flag: str = "",
    flag_help: str = "",
    query: Mapping[str, str] | None = None,
    header: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The `openapi_extra` of a route: its request body, its answer, `stream` as what it streams, `lines` as what its JSON Lines are, its
    errors, a `flag` that its query may set, and what else its `query` and its `header` may say."""
    content: dict[str, Any] = {"application/jsonl" if lines else "application/json": {"schema": _schema(response)}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string", "description": f"With `stream`: {stream}"}}
    extra: dict[str, Any] = {
        "responses": {
            "200": {"description": f"The answer: {lines}" if lines else "The answer", "content": content},
            "default": {"description": "An error", "content": {"application/json": {"schema": _schema(ErrorResponse)}}},
        }
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": place, "description": text, "schema": {"type": "string"}}
        for place, told in (("query", query), ("header", header))
        for name, text in (told or {}).items()
    ]
    if flag:
        parameters.append({"name": flag, "in": "query", "description": flag_help, "schema": {"type": "boolean", "default": False}})
    if parameters:
        extra["parameters"] = parameters
    if request is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _schema(request)}}}
    return extra


def describe(app: FastAPI) -> None:
    """Makes the app's OpenAPI description hold the schemas of all documented structs."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = original()
            description.setdefault("components", {}).setdefault("schemas", {}).update(_components)
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents for extending the description


def _schema(kind: type[Any]) -> dict[str, Any]:
    """The schema of a struct, or of a list of them, by reference to what the description holds."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    _components.update(components)
    return schema
