"""Describes the routes that read and write msgspec structs, so that /docs shows them as it shows all others."""

from typing import Any

import msgspec
from fastapi import FastAPI

from app.api.errors import ErrorResponse

_REFERENCE = "#/components/schemas/{name}"
_documented: set[type[msgspec.Struct]] = {ErrorResponse}


def documented(request: type[msgspec.Struct] | None, response: type[msgspec.Struct], *, stream: str = "") -> dict[str, Any]:
    """The `openapi_extra` of a route: its request body, its answer, `stream` as what it streams, and its errors."""
    content: dict[str, Any] = {"application/json": {"schema": _reference(response)}}
    if stream:
        content["text/event-stream"] = {"schema": {"type": "string", "description": f"With `stream`: {stream}"}}
    extra: dict[str, Any] = {
        "responses": {
            "200": {"description": "The answer", "content": content},
            "default": {"description": "An error", "content": {"application/json": {"schema": _reference(ErrorResponse)}}},
        }
    }
    if request is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(request)}}}
    return extra


def describe(app: FastAPI) -> None:
    """Makes the app's OpenAPI description hold the schemas of all documented structs."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = original()
            types = sorted(_documented, key=lambda struct: struct.__name__)
            _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
            description.setdefault("components", {}).setdefault("schemas", {}).update(components)
            app.openapi_schema = description
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents for extending the description


def _reference(struct: type[msgspec.Struct]) -> dict[str, str]:
    _documented.add(struct)
    return {"$ref": _REFERENCE.format(name=struct.__name__)}
