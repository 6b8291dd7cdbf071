"""Describes the routes that read and write msgspec structs, so that /docs shows them as it shows
all others."""

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
    """The `openapi_extra` of a route: its request body, its answer, `stream` as what it streams,
    `lines` as what its JSON Lines are, its errors, a `flag` that its query may set, and what else
    its `query` and its `header` may say: a description and a schema by name. `one_of` are fields of
    the request of which one has to be given, and no more. A `response` that is a str says what text
    is answered."""
    if isinstance(response, str):
        content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
        about = f"The answer: {response}"
    else:
        content = {
            "application/jsonl" if lines else "application/json": {
                "schema": _register_schema(response)
            }
        }
        about = f"The answer: {lines}" if lines else "The answer"
    if stream:
        content["text/event-stream"] = {}
        about = f"The answer; with `stream`, server-sent events: {stream}"
    extra: dict[str, Any] = {
        "responses": {
            "200": {"description": about, "content": content},
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": _register_schema(ErrorResponse)}},
            },
        }
    }
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": place, "description": text, "schema": schema}
        for place, told in (("query", query), ("header", header))
        for name, (text, schema) in (told or {}).items()
    ]
    if flag:
        parameters.append(
            {
                "name": flag,
                "in": "query",
                "description": flag_help,
                "schema": {"type": "boolean", "default": False},
            }
        )
    if parameters:
        extra["parameters"] = parameters
    if request is not None:
        schema = _register_schema(request)
        if one_of:
            ways = (
                {
                    other: {"not": {"type": "null"}} if other == field else {"type": "null"}
                    for other in one_of
                }
                for field in one_of
            )
            alternatives = [
                {"required": [field], "properties": properties}
                for field, properties in zip(one_of, ways, strict=True)
            ]
            schema = {"allOf": [schema, {"oneOf": alternatives}]}
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return extra


def install_openapi(app: FastAPI) -> None:
    """Makes the app's OpenAPI description hold the schemas of all documented structs."""
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
    """Path and method of each route that asks for no key."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, APIRoute) and route.include_in_schema and is_public(route):
            yield from (
                (route.path_format, method.lower())
                for method in route.methods or ()
                if method != "HEAD"
            )


def _register_schema(kind: type[Any]) -> dict[str, Any]:
    """The schema of a struct, or of a list of them, by reference to what the description holds."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template=_REFERENCE)
    _components.update(components)
    return schema
