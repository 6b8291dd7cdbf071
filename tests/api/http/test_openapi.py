"""/openapi.json, /docs and /redoc: the description fits what is answered."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, IMAGE_MESSAGE, WEATHER, asking
from tests.support.fake_provider import Script, calls, says
from tests.support.openai_schema import build_validator
from tests.support.service import AGENT, configuration, open_client

ROUTES = {
    ("get", "/"),
    ("get", "/agents"),
    ("get", "/agents/{agent_id}"),
    ("get", "/agents/{agent_id}/conversations"),
    ("get", "/agents/{agent_id}/conversations/{session_id}"),
    ("get", "/health"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
    ("get", "/memory"),
    ("get", "/metrics"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{model}"),
    ("delete", "/agents/{agent_id}/conversations/{session_id}"),
    ("delete", "/memory"),
    ("post", "/admin/reload"),
    ("post", "/agents/{agent_id}/chat"),
    ("post", "/v1/chat/completions"),
}


async def description(folder: Path) -> dict[str, Any]:
    """What /openapi.json holds."""
    async with open_client(create_app(configuration(folder))) as client:
        response = await client.get("/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


def references(value: object) -> Iterator[str]:
    """All references within `value`."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


async def test_every_route_is_described_with_its_answer_and_its_errors(tmp_path: Path) -> None:
    document = await description(tmp_path)
    assert document["openapi"].startswith("3.1.")
    routes = {
        (method, path): route
        for path, methods in document["paths"].items()
        for method, route in methods.items()
    }
    assert set(routes) == ROUTES
    for route in routes.values():
        assert route["summary"]
        assert route["description"]
        kinds = {
            kind: content.get("schema")
            for kind, content in route["responses"]["200"]["content"].items()
        }
        assert all(schema for kind, schema in kinds.items() if kind != "text/event-stream")
        assert route["responses"]["default"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/ErrorResponse"
        }


async def test_every_schema_is_one_and_every_reference_leads_somewhere(tmp_path: Path) -> None:
    document = await description(tmp_path)
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    found = set(references(document))
    assert found
    assert {reference.removeprefix("#/components/schemas/") for reference in found} <= set(schemas)


@pytest.mark.parametrize(
    ("path", "name"),
    [(CHAT, "ChatCompletionRequest"), ("/agents/{agent_id}/chat", "AgentChatRequest")],
    ids=["chat", "agents"],
)
async def test_the_requests_are_described(tmp_path: Path, path: str, name: str) -> None:
    document = await description(tmp_path)
    body = document["paths"][path]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert body == {"required": True, "content": {"application/json": {"schema": schema}}}
    assert (schema["allOf"][0] if "allOf" in schema else schema) == {
        "$ref": f"#/components/schemas/{name}"
    }
    assert "messages" in document["components"]["schemas"][name]["properties"]


async def test_the_description_of_a_chat_request_takes_what_the_service_takes(
    tmp_path: Path,
) -> None:
    request = build_validator(
        await description(tmp_path), "urn:ours", ("components", "schemas", "ChatCompletionRequest")
    )
    request.validate(
        asking(
            tools=[WEATHER],
            temperature=0.5,
            stop=["a"],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    request.validate(
        asking(
            messages=[IMAGE_MESSAGE],
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )
    )
    faults: tuple[dict[str, Any], ...] = ({"messages": []}, {"temperature": 3}, {"tools": "all"})
    for wrong in faults:
        with pytest.raises(ValidationError):
            request.validate(asking(**wrong))


async def test_a_chat_with_an_agent_is_described_as_one_message_or_a_conversation(
    tmp_path: Path,
) -> None:
    document = await description(tmp_path)
    request = build_validator(
        document,
        "urn:ours",
        (
            "paths",
            "/agents/{agent_id}/chat".replace("/", "~1"),
            "post",
            "requestBody",
            "content",
            "application~1json",
            "schema",
        ),
    )
    messages = [{"role": "user", "content": "Hi"}]
    for right in ({"message": "Hi"}, {"message": "Hi", "messages": None}, {"messages": messages}):
        request.validate(right)
    for wrong in (
        {},
        {"message": None},
        {"message": "Hi", "messages": messages},
        {"messages": None},
    ):
        with pytest.raises(ValidationError):
            request.validate(wrong)


async def test_every_answer_is_as_it_is_described(tmp_path: Path) -> None:
    script = Script(calls(("calculate", {"expression": "6*7"})), says("42"))
    remembering = {**AGENT, "resources": ["memory"]}
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[remembering]))
    ) as client:
        document = (await client.get("/openapi.json")).json()
        answers = {("post", CHAT): await client.post(CHAT, json=asking())}
        for session in ("helper", "other"):
            asked = {"message": "Hello", "session_id": session}
            answers["post", "/agents/{agent_id}/chat"] = await client.post(
                "/agents/helper/chat", json=asked
            )
        names = {"agent_id": "helper", "model": "helper", "session_id": "helper"}
        for method, path in sorted(
            ROUTES - set(answers), key=lambda route: (route[0] == "delete", route[1])
        ):
            answers[method, path] = await client.request(
                method.upper(), path.format(**names), params={"user_id": "anonymous"}
            )
    assert set(answers) == ROUTES
    for (method, path), response in answers.items():
        assert response.status_code == 200
        kind = response.headers["content-type"].partition(";")[0]
        place = (
            "paths",
            path.replace("/", "~1"),
            method,
            "responses",
            "200",
            "content",
            kind.replace("/", "~1"),
            "schema",
        )
        bodies = (
            [response.text]
            if kind == "text/plain"
            else [json.loads(line) for line in response.text.splitlines()]
        )
        for body in bodies:
            build_validator(document, "urn:ours", place).validate(body)


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_the_description_can_be_read_in_a_browser(tmp_path: Path, path: str) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    [nonce] = set(re.findall(r'<script nonce="([^"]+)"', response.text))
    assert f"script-src 'nonce-{nonce}'" in policy
    for loaded in re.findall(r"<(?:script|link)\b[^>]*https://[^>]*>", response.text):
        assert "@" in loaded, "a version is named"
        assert 'integrity="sha384-' in loaded
