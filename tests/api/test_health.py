"""GET /health and GET /."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from dirty_equals import IsNow

from app import __version__
from app.server import create_app
from tests.service import AGENT, client_of, configuration

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


async def test_health_says_that_the_service_is_up(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path, service_name="Our agents"))) as client:
        response = await client.get("/health")
    body = response.json()
    assert response.status_code == 200
    assert datetime.fromisoformat(body.pop("timestamp")) == IsNow(tz=UTC, delta=timedelta(minutes=1))
    assert body == {"status": "healthy", "service": "Our agents", "version": __version__}


async def test_the_version_that_is_told_can_be_set(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path, service_version="9.8.7"))) as client:
        told = {path: (await client.get(path)).json()["version"] for path in ("/health", "/")}
    assert set(told.values()) == {"9.8.7"}


async def test_the_front_door_tells_programs_where_to_go(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path, agents=[AGENT, {**AGENT, "agent_id": "writer"}]))) as client:
        response = await client.get("/")
        body = response.json()
        places = {path: (await client.get(path)).status_code for path in body["links"]}
    assert response.headers["content-type"] == "application/json"
    assert body["agents"] == ["helper", "writer"]
    assert places.pop("/v1/chat/completions") == 405
    assert set(places.values()) == {200}


async def test_the_front_door_is_a_page_for_browsers(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path, service_name="<script>alert(1)</script>"))) as client:
        response = await client.get("/", headers=BROWSER)
    assert response.headers["content-type"].startswith("text/html")
    assert "<script>" not in response.text
    assert "&lt;script&gt;" in response.text
    assert "http://service/v1" in response.text
    assert "<code>helper</code>" in response.text
    assert 'href="/docs"' in response.text


async def test_the_host_that_a_browser_names_cannot_write_into_the_page(tmp_path: Path) -> None:
    async with client_of(create_app(configuration(tmp_path))) as client:
        response = await client.get("/", headers={**BROWSER, "host": "a<b>c"})
    assert "a<b>c" not in response.text
