"""What detailed health says of the parts, within its deadline whatever hangs; and when the service
is ready."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from dirty_equals import IsFloat, IsInt, IsPositive, IsStr

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.migrate import HEAD_REVISION
from tests.support.clients import asking
from tests.support.events import until
from tests.support.fake_provider import Script, says
from tests.support.fake_upstream import Upstream, head, reply
from tests.support.postgres import PostgresServer, binaries_18
from tests.support.service import AGENT, configuration, open_client

DETAILED = "/health?detailed=true"
OPENAI = {**AGENT, "provider": "openai", "model": "gpt"}
KEY = "sk-a-key-that-nobody-may-see"
MOST_SECONDS = 2.0


@asynccontextmanager
async def served(
    folder: Path,
    *,
    script: Script | None = None,
    agents: Sequence[dict[str, Any]] = (AGENT,),
    **settings: Any,
) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """A client of the service."""
    async with open_client(
        create_app(configuration(folder, script, agents=agents, **settings))
    ) as client:
        yield client


async def detailed(client: httpx2.AsyncClient) -> dict[str, Any]:
    """Detailed health, which has to come in time."""
    began = time.monotonic()
    response = await client.get(DETAILED)
    assert time.monotonic() - began < MOST_SECONDS
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


async def ready(client: httpx2.AsyncClient) -> tuple[int, list[str]]:
    """The status of readiness, and its problems."""
    response = await client.get("/health/ready")
    assert (response.headers.get("retry-after") == "2") == (response.status_code == 503)
    return response.status_code, response.json()["problems"]


# Probes


# Parts


async def test_a_service_that_is_well_says_so_of_each_part(tmp_path: Path) -> None:
    async with served(
        tmp_path, agents=[{**AGENT, "provider": "demo", "resources": ["memory"]}]
    ) as client:
        health = await detailed(client)
        assert await ready(client) == (200, [])
    assert (health["status"], health["reasons"]) == ("healthy", [])
    assert health["agents"] == {"helper": {"state": "ready", "problem": None, "api": None}}
    assert health["providers"] == {
        "demo": {"state": "ready", "error": None, "round_trip_ms": IsFloat(), "breakers": []}
    }
    assert health["database"] == {
        "state": "ready",
        "kind": "sqlite",
        "error": None,
        "round_trip_ms": IsPositive(),
        "connections": 3,
        "connections_in_use": IsInt(),
        "revision": HEAD_REVISION,
        "expected_revision": HEAD_REVISION,
        "replica": "none",
        "replica_error": None,
        "replica_lag_seconds": None,
        "cleaned_up_sessions": 0,
        "cleaned_up_messages": 0,
        "ended_runs": 0,
    }
    assert health["identity"] == {
        "mode": "none",
        "state": "ready",
        "keys": None,
        "keys_age_seconds": None,
        "error": None,
    }
    assert health["disk"] == {
        str(tmp_path / "data"): {
            "state": "ready",
            "free_bytes": IsPositive(),
            "total_bytes": IsPositive(),
            "error": None,
        }
    }


async def test_a_provider_is_asked_at_no_cost_and_not_by_each_who_looks(tmp_path: Path) -> None:
    async with Upstream(reply(200, {"data": []})) as upstream:
        settings: dict[str, Any] = {"openai_base_url": f"{upstream.url}/v1", "openai_api_key": KEY}
        async with served(tmp_path, agents=[OPENAI], **settings) as client:
            found = await asyncio.gather(*(detailed(client) for _ in range(10)))
        [request] = upstream.requests
    assert (request.method, request.path, request.headers["authorization"]) == (
        "GET",
        "/v1/models",
        f"Bearer {KEY}",
    )
    assert [each["providers"]["openai"]["state"] for each in found] == ["ready"] * 10


@pytest.mark.parametrize("status", [400, 401, 500])
async def test_a_provider_that_refuses_is_reported_without_the_key(
    tmp_path: Path, status: int
) -> None:
    said = "openai: Incorrect API key provided: [redacted]"
    async with Upstream(
        reply(status, {"error": {"message": f"Incorrect API key provided: {KEY}"}})
    ) as upstream:
        settings: dict[str, Any] = {"openai_base_url": f"{upstream.url}/v1", "openai_api_key": KEY}
        async with served(tmp_path, agents=[OPENAI], **settings) as client:
            health = await detailed(client)
            assert await ready(client) == (200, []), (
                "others' outages are no reason to send requests elsewhere"
            )
    openai = health["providers"]["openai"]
    assert (openai["state"], openai["error"], openai["round_trip_ms"]) == ("down", said, None)
    assert health["status"] == "degraded"
    assert health["reasons"] == [f"The provider openai cannot be used: {said}"]


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_without_a_list_of_models_is_not_down(tmp_path: Path, status: int) -> None:
    async with Upstream(reply(status, {"error": {"message": f"No such list: {KEY}"}})) as upstream:
        settings: dict[str, Any] = {"openai_base_url": f"{upstream.url}/v1", "openai_api_key": KEY}
        async with served(tmp_path, agents=[OPENAI], **settings) as client:
            health = await detailed(client)
    openai = health["providers"]["openai"]
    assert (openai["state"], openai["error"]) == ("unknown", "openai: No such list: [redacted]")
    assert (health["status"], health["reasons"]) == ("healthy", [])


async def test_a_provider_that_stalls_holds_nobody_up(tmp_path: Path) -> None:
    async with (
        Upstream([head(), asyncio.Event()], [asyncio.Event()]) as upstream,
        Upstream([asyncio.Event()]) as silent,
    ):
        settings: dict[str, Any] = {
            "openai_base_url": upstream.url,
            "ollama_base_url": silent.url,
            "openai_api_key": KEY,
        }
        agents = [OPENAI, {**AGENT, "agent_id": "local", "provider": "ollama"}]
        async with served(tmp_path, agents=agents, **settings) as client:
            health = await detailed(client)
    assert health["providers"]["ollama"]["state"] == "timeout"
    assert health["agents"]["local"]["state"] in ("timeout", "not_ready")
    assert health["status"] == "degraded"


async def test_what_is_not_configured_is_told_without_a_call(tmp_path: Path) -> None:
    agents = [AGENT, {**AGENT, "agent_id": "other", "provider": "azure_openai_cc"}]
    async with served(tmp_path, agents=agents) as client:
        health = await detailed(client)
        assert await ready(client) == (200, []), "one of the agents can answer"
    assert health["providers"]["scripted"]["state"] == "unknown"
    needed = "AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT must be set"
    assert (
        health["providers"]["azure_openai"]["state"],
        health["providers"]["azure_openai"]["error"],
    ) == ("not_configured", f"{needed}.")
    assert health["agents"]["other"] == {
        "state": "not_ready",
        "problem": f"{needed} for azure_openai.",
        "api": None,
    }
    assert health["status"] == "degraded"
    assert len(health["reasons"]) == 2


async def test_where_no_agent_can_answer_nothing_can_be_served(tmp_path: Path) -> None:
    async with served(tmp_path, agents=[{**AGENT, "provider": "openrouter"}]) as client:
        health = await detailed(client)
        assert await ready(client) == (503, ["No agent can answer."])
        assert (await client.head("/health/ready")).status_code == 503
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health/live")).json() == {"status": "alive"}
    assert (health["status"], health["reasons"][0]) == ("unavailable", "No agent can answer.")


async def test_a_ping_of_a_plug_in_that_breaks_is_told_of(tmp_path: Path) -> None:
    class Broken(Script):
        async def ping(self, *, timeout: float) -> None:
            raise KeyError(KEY)

    async with served(tmp_path, script=Broken([])) as client:
        health = await detailed(client)
    assert (
        health["providers"]["scripted"]["error"]
        == "The check failed with KeyError; the log says more."
    )


async def test_a_ping_that_hangs_is_told_of_in_time(tmp_path: Path) -> None:
    class Hanging(Script):
        async def ping(self, *, timeout: float) -> None:
            await asyncio.Event().wait()

    async with served(tmp_path, script=Hanging([])) as client:
        health = await detailed(client)
    assert health["providers"]["scripted"] == {
        "state": "timeout",
        "error": IsStr(),
        "round_trip_ms": None,
        "breakers": [],
    }


async def test_the_breaker_of_a_model_is_shown(tmp_path: Path) -> None:
    script = Script([ProviderUnavailableError("away")])
    async with served(
        tmp_path, script=script, provider_breaker_failures=1, provider_max_retries=0
    ) as client:
        await client.post("/v1/chat/completions", json=asking())
        health = await detailed(client)
    [breaker] = health["providers"]["scripted"]["breakers"]
    assert (breaker["model"], breaker["state"], breaker["failures"], breaker["openings"]) == (
        "scripted-model",
        "open",
        1,
        1,
    )
    assert (
        "The model scripted-model of scripted failed 1 times in a row and is not asked for a time."
        in health["reasons"]
    )


async def test_threads_that_are_all_busy_hold_nobody_up(tmp_path: Path) -> None:
    release = threading.Event()
    async with served(tmp_path, agents=[{**AGENT, "resources": ["memory"]}]) as client:
        busy = [asyncio.create_task(asyncio.to_thread(release.wait, 20)) for _ in range(64)]
        try:
            await asyncio.sleep(0)
            health = await detailed(client)
        finally:
            release.set()
            await asyncio.gather(*busy)
    assert health["status"] == "healthy"


async def test_tables_of_another_version_are_told_of(tmp_path: Path) -> None:
    app = create_app(configuration(tmp_path, agents=[{**AGENT, "resources": ["memory"]}]))
    async with open_client(app) as client:
        database = app.state.checks.target_database
        await database.write(
            lambda connection: connection.exec_driver_sql(
                "UPDATE alembic_version SET version_num = '9999'"
            ).close()
        )
        health = await detailed(client)
    assert (health["status"], health["reasons"]) == (
        "degraded",
        [f"The tables have the revision 9999, and this version works with {HEAD_REVISION}."],
    )


# PostgreSQL


@pytest.mark.timeout(120)
async def test_a_frozen_database_holds_nobody_up(tmp_path: Path) -> None:
    server = await asyncio.to_thread(lambda: PostgresServer(binaries_18()).make().start())
    try:
        agents = [{**AGENT, "resources": ["memory"]}]
        settings = {
            "database_url": server.url(),
            "allow_unauthenticated": True,
            "database_timeout": 3,
        }
        async with served(tmp_path, script=Script(says("Hi")), agents=agents, **settings) as client:
            assert (await detailed(client))["database"]["state"] == "ready"
            server.freeze()
            try:
                states: list[str] = []

                async def is_down() -> bool:
                    states.append((await detailed(client))["database"]["state"])
                    return states[-1] == "down"

                await until(is_down)
                assert "timeout" in states
                health = await detailed(client)

                async def is_not_ready() -> bool:
                    return (await ready(client))[0] == 503

                await until(is_not_ready)
                assert (await client.get("/health/live")).status_code == 200
            finally:
                server.thaw()
            assert server.url().split(":")[2].split("@")[0] not in str(health)
    finally:
        await asyncio.to_thread(server.remove)


@pytest.mark.timeout(120)
async def test_a_replica_is_told_of_with_how_far_it_is_behind(tmp_path: Path) -> None:
    primary = await asyncio.to_thread(lambda: PostgresServer(binaries_18()).make().start())
    replica = await asyncio.to_thread(primary.replica)
    try:
        agents = [{**AGENT, "resources": ["memory"]}]
        urls: dict[str, Any] = {
            "database_url": primary.url(),
            "database_replica_url": replica.url(),
            "allow_unauthenticated": True,
        }
        async with served(tmp_path, agents=agents, **urls) as client:
            await asyncio.to_thread(replica.caught_up_with, primary)
            health = await detailed(client)
            assert (health["database"]["replica"], health["database"]["replica_lag_seconds"]) == (
                "ready",
                IsFloat(ge=0, lt=60),
            )
            await asyncio.to_thread(replica.sql, "SELECT pg_wal_replay_pause()")
            await asyncio.to_thread(primary.sql, "CREATE TABLE more (x int)")

            async def lags() -> bool:
                return bool((await detailed(client))["database"]["replica_lag_seconds"])

            await until(lags)
            await asyncio.to_thread(replica.kill)

            async def is_gone() -> bool:
                health = await detailed(client)
                return (health["status"], health["database"]["replica"]) == ("degraded", "down")

            await until(is_gone)
            assert await ready(client) == (200, [])
    finally:
        await asyncio.to_thread(replica.remove)
        await asyncio.to_thread(primary.remove)


async def test_a_secret_that_a_reload_brings_is_taken_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Telling(Script):
        async def ping(self, *, timeout: float) -> None:
            raise ProviderUnavailableError("It says brand-new-value-1234.")

    app = create_app(configuration(tmp_path, Telling(says("Hi"))))
    async with open_client(app) as client:
        monkeypatch.setenv("NEW_API_KEY", "brand-new-value-1234")
        assert (await client.post("/admin/reload")).status_code == 200
        found = await detailed(client)
    assert found["providers"]["scripted"]["error"] == "It says [redacted]."


async def test_a_rejected_reload_is_shown_until_a_good_one(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        file = tmp_path / "agent_config.json"
        good = file.read_text(encoding="utf-8")
        file.write_text('[{"agent_id": 1}]', encoding="utf-8")
        assert (await client.post("/admin/reload")).status_code == 409
        found = (await client.get("/health", params={"detailed": "true"})).json()
        assert found["status"] == "degraded"
        assert "agent_config.json" in found["rejected_reload"]["fault"]
        age = datetime.now(UTC) - datetime.fromisoformat(found["rejected_reload"]["at"])
        assert age < timedelta(minutes=1)
        file.write_text(good, encoding="utf-8")
        assert (await client.post("/admin/reload")).status_code == 200
        found = (await client.get("/health", params={"detailed": "true"})).json()
        assert (found["status"], "rejected_reload" in found) == ("healthy", False)
