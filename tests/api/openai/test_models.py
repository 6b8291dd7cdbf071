"""GET /v1/models and /v1/models/{model}."""

import base64
from pathlib import Path

from ai_agent_service.server.application import create_app
from tests.support.clients import read_error
from tests.support.openai_schema import validate
from tests.support.service import AGENT, configuration, open_client

PNG = b"\x89PNG\r\n\x1a\n" + bytes(16)


async def test_every_agent_is_listed_as_a_model_in_the_order_of_the_file(tmp_path: Path) -> None:
    agents = [{**AGENT, "agent_id": name} for name in ("writer", "helper", "a.b:c@d-1")]
    app = create_app(configuration(tmp_path, agents=agents, service_name="Our agents"))
    async with open_client(app) as client:
        response = await client.get("/v1/models")
    assert response.status_code == 200
    body = response.json()
    validate("ListModelsResponse", body)
    created = int((tmp_path / "agent_config.json").stat().st_mtime)
    info = {"meta": {"capabilities": {"builtin_tools": False, "usage": True}}}
    assert body["data"] == [
        {"id": name, "object": "model", "created": created, "owned_by": "Our agents", "info": info}
        for name in ("writer", "helper", "a.b:c@d-1")
    ]


async def test_a_model_carries_how_its_agent_is_to_be_shown(tmp_path: Path) -> None:
    (tmp_path / "face.png").write_bytes(PNG)
    display = {
        "name": "Research",
        "description": "Finds out.",
        "capabilities": {"vision": False, "builtin_tools": True},
        "suggestion_prompts": [
            "What is new?",
            {"title": "Compare", "subtitle": "two things", "content": "Compare A and B."},
        ],
        "tags": ["work"],
        "avatar": "face.png",
    }
    agents = [
        {**AGENT, "description": "For the operator.", "display": display},
        {**AGENT, "agent_id": "plain", "description": "Plain."},
    ]
    async with open_client(create_app(configuration(tmp_path, agents=agents))) as client:
        body = (await client.get("/v1/models")).json()
    validate("ListModelsResponse", body)
    shown, plain = body["data"]
    assert shown["name"] == "Research"
    assert shown["info"]["meta"] == {
        "capabilities": {"builtin_tools": True, "usage": True, "vision": False},
        "description": "Finds out.",
        "suggestion_prompts": [
            {"title": ["What is new?", ""], "content": "What is new?"},
            {"title": ["Compare", "two things"], "content": "Compare A and B."},
        ],
        "tags": [{"name": "work"}],
        "profile_image_url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
    }
    assert "name" not in plain
    assert plain["info"]["meta"]["description"] == "Plain."


async def test_an_agent_is_shown_as_a_model(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.get("/v1/models/helper")
        listed = (await client.get("/v1/models")).json()["data"]
    assert response.status_code == 200
    validate("Model", response.json())
    assert [response.json()] == listed


async def test_an_id_with_signs_is_found_when_it_is_escaped_in_the_address(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, agents=[{**AGENT, "agent_id": "a.b:c@d"}]))
    ) as client:
        response = await client.get("/v1/models/a.b%3Ac%40d")
    validate("Model", response.json())
    assert response.json()["id"] == "a.b:c@d"


async def test_an_unknown_model_is_a_404_in_openais_words(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        error = read_error(await client.get("/v1/models/SECRET"), 404)
    assert error["code"] == "model_not_found"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "model"
    assert "SECRET" not in error["message"]
