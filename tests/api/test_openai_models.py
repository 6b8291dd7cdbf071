"""GET /v1/models and /v1/models/{model}."""

from pathlib import Path

from app.server import create_app
from tests.api.asking import error_of
from tests.openai_schema import validate
from tests.service import AGENT, client_of, configuration


async def test_every_agent_is_listed_as_a_model_in_the_order_of_the_file(tmp_path: Path) -> None:
    agents = [{**AGENT, "agent_id": name} for name in ("writer", "helper", "a.b:c@d-1")]
    app = create_app(configuration(tmp_path, agents=agents, service_name="Our agents"))
    async with client_of(app) as client:
        response = await client.get("/v1/models")
    assert response.status_code == 200
    body = response.json()
    validate("ListModelsResponse", body)
    created = int((tmp_path / "agent_config.json").stat().st_mtime)
    assert body["data"] == [
        {"id": name, "object": "model", "created": created, "owned_by": "Our agents"} for name in ("writer", "helper", "a.b:c@d-1")
    ]


async def test_an_agent_is_shown_as_a_model(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path))) as client:
        response = await client.get("/v1/models/helper")
        listed = (await client.get("/v1/models")).json()["data"]
    assert response.status_code == 200
    validate("Model", response.json())
    assert [response.json()] == listed


async def test_an_id_with_signs_is_found_when_it_is_escaped_in_the_address(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path, agents=[{**AGENT, "agent_id": "a.b:c@d"}]))) as client:
        response = await client.get("/v1/models/a.b%3Ac%40d")
    validate("Model", response.json())
    assert response.json()["id"] == "a.b:c@d"


async def test_an_unknown_model_is_a_404_in_openais_words(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path))) as client:
        error = error_of(await client.get("/v1/models/SECRET"), 404)
    assert error["code"] == "model_not_found"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == "model"
    assert "SECRET" not in error["message"]
