"""Describe the routes that read and write msgspec structs, which FastAPI cannot do."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from ai_agent_service.api.http.access import is_public
from ai_agent_service.api.http.errors import ErrorResponse

_REFERENCE = "#/components/schemas/{name}"
_KEYS = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key; without one where the service needs none.",
    },
    "x-api-key": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "The same, in a header of its own.",
    },
}
_components: dict[str, Any] = {}


def describe_route(
    request: type[Any] | None,
    response: type[Any] | str,
    *,
    stream: str = "",
    lines: str = "",
    flag: str = "",
    flag_help: str = "",
    query: Mapping[str, tuple[str, dict[str, Any]]] | None = None,
    header: Mapping[str, tuple[str, dict[str, Any]]] | None = None,
    one_of: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Return the `openapi_extra` of a route: its request body, its answer and its errors.

    A `response` that is a str describes an answer of text. `stream` describes the events of a
    streamed answer, `lines` those of JSON Lines. `query` and `header` are further parameters, a
    description and a schema by name; `flag` is one more in the query that is true or false.
    `one_of` are fields of the request of which exactly one has to be given.
    """
    content: dict[str, Any]
    if isinstance(response, str):
        content = {"text/plain": {"schema": {"type": "string"}}}
        about = f"The answer: {response}"
    else:
        media_type = "application/jsonl" if lines else "application/json"
        content = {media_type: {"schema": _register_schema(response)}}
        about = f"The answer: {lines}" if lines else "The answer"
    if stream:
        content["text/event-stream"] = {}
        about = f"The answer; with `stream`, server-sent events: {stream}"
    error = {"application/json": {"schema": _register_schema(ErrorResponse)}}
    extra: dict[str, Any] = {
        "responses": {
            "200": {"description": about, "content": content},
            "default": {"description": "An error", "content": error},
        }
    }
    if flag:
        query = {**(query or {}), flag: (flag_help, {"type": "boolean", "default": False})}
    parameters = [
        {"name": name, "in": place, "description": text, "schema": schema}
        for place, named in (("query", query), ("header", header))
        for name, (text, schema) in (named or {}).items()
    ]
    if parameters:
        extra["parameters"] = parameters
    if request is not None:
        schema = _register_schema(request)
        if one_of:
            schema = {"allOf": [schema, _require_one(one_of)]}
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return extra


def _require_one(fields: tuple[str, ...]) -> dict[str, Any]:
    """Return the schema of an object with exactly one of `fields`."""
    absent = {"type": "null"}
    alternatives = [
        {
            "required": [field],
            "properties": {each: {"not": absent} if each == field else absent for each in fields},
        }
        for field in fields
    ]
    return {"oneOf": alternatives}


def install_openapi(app: FastAPI) -> None:
    """Add the schemas of all documented structs to the app's OpenAPI description."""
    original = app.openapi

    def build_openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            description = original()
            components = description.setdefault("components", {})
            components.setdefault("schemas", {}).update(_components)
            components["securitySchemes"] = _KEYS
            description["security"] = [{name: []} for name in _KEYS]
            for path, method in _list_public_routes(app):
                description["paths"][path][method]["security"] = []
            app.openapi_schema = description
        return app.openapi_schema

    # the way that FastAPI documents for extending the description
    app.openapi = build_openapi  # type: ignore[method-assign]


def _list_public_routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Yield path and method of each route that needs no key."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute) and route.include_in_schema and is_public(route):
            yield from (
                (route.path_format, method.lower())
                for method in route.methods or ()
                if method != "HEAD"
            )


def _register_schema(kind: type[Any]) -> dict[str, Any]:
    """Return a reference to the schema of a struct, or of a list of them, and register it."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    _components.update(components)
    return schema
