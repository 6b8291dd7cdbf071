"""GET /metrics: what is counted of everything that a request can come to."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ai_agent_service.auth.principal import Limits
from ai_agent_service.core.errors import ProviderUnavailableError, ToolError
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.server.application import create_app
from ai_agent_service.tools.function import tool
from tests.support.clients import CHAT, Watched, asking, connected
from tests.support.fake_provider import Script, calls, says
from tests.support.keys import opened
from tests.support.metrics import Scrape, read_metrics
from tests.support.service import AGENT, configuration, open_client, serving

REMEMBERING = {**AGENT, "resources": ["memory"]}
TITLE = (
    '### Task:\nGive a title, as JSON: {"title": "..."}\n<chat_history>\nUSER:'
    " Hello\n</chat_history>"
)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_answer_is_counted(tmp_path: Path, stream: bool) -> None:
    script = Script(says("Hi", usage=Usage(7, 3, 2, 1, cost=0.25)))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        for _ in range(2):
            assert (await client.post(CHAT, json=asking(stream=stream))).status_code == 200
        found = await read_metrics(client)
    assert found.value("aas_requests_total", route=CHAT, method="POST", status="200") == 2
    assert found.value("aas_runs_total", agent="helper", task="chat", outcome="answered") == 2
    assert found.value("aas_run_steps_total", agent="helper") == 2
    tokens = [
        found.value("aas_tokens_total", type=kind)
        for kind in ("prompt", "completion", "cached", "reasoning")
    ]
    assert tokens == [14, 6, 4, 2]
    assert found.labels("aas_cost_dollars_total") == [
        {"agent": "helper", "provider": "scripted", "model": "scripted-model"}
    ]
    assert found.value("aas_cost_dollars_total") == 0.5
    assert found.value("aas_run_first_byte_seconds_count", agent="helper") == (2 if stream else 0)
    assert found.value("aas_provider_requests_total", provider="scripted") == 2
    assert found.value("aas_requests_in_flight") == 1
    assert found.value("aas_runs_in_flight") == 0
    assert found.value("aas_errors_total") == 0
    assert found.value("aas_build_info") == 1
    assert found.value("aas_agent_info", agent="helper") == 1
    assert found.value("process_resident_memory_bytes") > 0


async def test_tools_are_counted_by_what_they_came_to(tmp_path: Path) -> None:
    @tool
    async def fail() -> str:
        """Fails."""
        raise ToolError("no")

    @tool(timeout=0.01)
    async def hang() -> str:
        """Hangs."""
        await asyncio.Event().wait()
        return ""

    wanted = calls(
        ("calculate", {"expression": "6*7"}),
        ("fail", {}),
        ("hang", {}),
        ("secret_made_up_name", {}),
    )
    agent = {**AGENT, "allowed_regular_tools": ["calculate", "fail", "hang"]}
    app = create_app(
        configuration(tmp_path, Script(wanted, says("Done")), agents=[agent], tools=[fail, hang])
    )
    async with open_client(app) as client:
        await client.post(CHAT, json=asking())
        found = await read_metrics(client)
    outcomes = {
        (labels["tool"], labels["outcome"]) for labels in found.labels("aas_tool_calls_total")
    }
    assert outcomes == {
        ("calculate", "success"),
        ("fail", "error"),
        ("hang", "timeout"),
        ("other", "refused"),
    }
    assert found.value("aas_tool_call_duration_seconds_sum", tool="hang") >= 0.01
    assert found.labels("aas_tool_call_duration_seconds_count") == [
        {"tool": name} for name in ("calculate", "fail", "hang")
    ]
    assert found.value("aas_run_steps_total") == 2
    assert "secret_made_up_name" not in found.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_error_of_the_provider_is_counted(tmp_path: Path, stream: bool) -> None:
    script = Script([TextDelta("Half"), ProviderUnavailableError("down")])
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        response = await client.post(CHAT, json=asking(stream=stream))
        found = await read_metrics(client)
    status = 200 if stream else 502
    assert response.status_code == status
    assert found.value("aas_requests_total", route=CHAT, status=str(status)) == 1
    assert found.value("aas_runs_total", agent="helper", outcome="provider_unavailable") == 1
    assert found.value("aas_errors_total", code="provider_unavailable") == 1
    assert (
        found.value("aas_provider_errors_total", provider="scripted", code="provider_unavailable")
        == 1
    )
    assert found.value("aas_run_steps_total") == 1
    assert (
        found.value("aas_provider_breaker_state", provider="scripted", model="scripted-model") == 0
    )


async def test_a_breaker_that_opens_is_told(tmp_path: Path) -> None:
    script = Script([ProviderUnavailableError("down")])
    async with open_client(
        create_app(configuration(tmp_path, script, provider_breaker_failures=1))
    ) as client:
        for _ in range(2):
            await client.post(CHAT, json=asking())
        found = await read_metrics(client)
    assert (
        found.value("aas_provider_breaker_state", provider="scripted", model="scripted-model") == 2
    )
    assert found.value("aas_provider_breaker_openings_total", provider="scripted") == 1
    assert found.value("aas_runs_total", outcome="provider_circuit_open") == 1


async def test_a_caller_who_leaves_is_counted_once_they_have_left(tmp_path: Path) -> None:
    script = Watched([TextDelta("Half"), asyncio.Event()])
    app = create_app(configuration(tmp_path, script, allowed_hosts=("service", "127.0.0.1")))
    async with (
        asyncio.timeout(30),
        serving(app) as address,
        httpx2.AsyncClient(base_url=address) as client,
    ):
        for stream in (True, False):
            script.waiting.clear()
            _, writer = await connected(address, asking(stream=stream))
            await script.waiting.wait()
            assert (await read_metrics(client)).value("aas_runs_in_flight") == 1
            script.ended.clear()
            writer.close()
            await script.ended.wait()
        found = await read_metrics(client)
        while found.value("aas_runs_total") < 2:
            found = await read_metrics(client)
    assert found.value("aas_runs_total", outcome="left") == 2
    assert found.value("aas_requests_total", route=CHAT, status="200") == 1
    assert found.value("aas_requests_total", route=CHAT, status="499") == 1
    assert (
        found.value("aas_errors_total"),
        found.value("aas_runs_in_flight"),
        found.value("aas_requests_in_flight"),
    ) == (0, 0, 1)


async def test_what_a_limit_refuses_is_counted_as_shed(tmp_path: Path) -> None:
    async with opened(tmp_path) as service:
        limited = await service.key("limited", limits=Limits(requests=1))
        admin = await service.key("admin", scopes=["admin"])
        statuses = [
            (await service.client.post(CHAT, json=asking(), headers=limited)).status_code
            for _ in range(2)
        ]
        service.client.headers.update(admin)
        found = await read_metrics(service.client)
    assert statuses == [200, 429]
    assert found.value("aas_requests_shed_total", code="rate_limit_exceeded") == 1
    assert found.value("aas_runs_total", agent="helper", outcome="rate_limit_exceeded") == 0
    assert found.value("aas_run_steps_total") == 1


async def test_a_server_that_is_busy_sheds_requests(tmp_path: Path) -> None:
    script = Watched([asyncio.Event()])
    app = create_app(configuration(tmp_path, script, max_concurrent_requests=1))
    async with open_client(app) as client, asyncio.timeout(30):
        first = asyncio.create_task(client.post(CHAT, json=asking()))
        await script.waiting.wait()
        assert (await client.post(CHAT, json=asking())).status_code == 429
        found = await read_metrics(client)
        first.cancel()
        await asyncio.wait((first,))
    assert found.value("aas_requests_shed_total", code="server_busy") == 1
    assert found.value("aas_runs_total", outcome="server_busy") == 1
    assert found.value("aas_requests_total", route=CHAT, status="429") == 1


async def test_a_task_beside_a_chat_is_counted_apart(tmp_path: Path) -> None:
    script = Script(says('{"title": "Hi"}', usage=Usage(9, 4)))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        assert (
            await client.post(CHAT, json=asking(TITLE), headers={"X-AAS-Task": "title_generation"})
        ).status_code == 200
        found = await read_metrics(client)
    assert found.labels("aas_runs_total") == [
        {"agent": "helper", "task": "title_generation", "outcome": "answered"}
    ]
    assert (
        found.value("aas_tokens_total", provider="scripted", model="scripted-model", type="prompt")
        == 9
    )


async def test_what_is_refused_and_what_is_not_there_is_counted_without_its_address(
    tmp_path: Path,
) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        for method, path in (
            ("GET", "/secret-address"),
            ("POST", "/health"),
            ("GET", "/agents/secret-agent"),
            ("GET", "/v1/models/secret"),
        ):
            await client.request(method, path)
        await client.post(CHAT, content=b"{")
        found = await read_metrics(client)
    assert found.value("aas_requests_total", route="unknown", status="404") == 1
    assert found.value("aas_requests_total", route="/health", method="POST", status="405") == 1
    assert found.value("aas_requests_total", route="/agents/{agent_id}", status="404") == 1
    codes = {labels["code"] for labels in found.labels("aas_errors_total")}
    assert codes == {"not_found", "method_not_allowed", "model_not_found", "invalid_json"}
    assert "secret" not in found.text


async def test_the_memory_is_counted(tmp_path: Path) -> None:
    script = Script(says("One", usage=Usage(5, 1)), says("Two", usage=Usage(5, 1)))
    conversation = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "One"},
        {"role": "user", "content": "b"},
    ]
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[REMEMBERING]))
    ) as client:
        headers = {"X-Session-Id": "s"}
        await client.post(CHAT, json=asking("a"), headers=headers)
        for _ in range(2):  # the second is told the answer again
            await client.post(
                CHAT,
                json=asking(messages=conversation),
                headers={**headers, "Idempotency-Key": "k"},
            )
        found = await read_metrics(client)
    assert found.value("aas_memory_messages_stored_total") == 4
    assert found.value("aas_memory_conversations_begun_total") == 1
    assert found.value("aas_database_up", role="primary") == 1
    assert found.value("aas_tokens_total", type="prompt") == 10


async def test_a_conversation_of_the_server_is_counted(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, Script(says("Hi")), agents=[REMEMBERING]))
    ) as client:
        for text in ("a", "b", "c"):
            asked = {"message": text, "session_id": "s"}
            assert (await client.post("/agents/helper/chat", json=asked)).status_code == 200
        found = await read_metrics(client)
    assert found.value("aas_memory_messages_stored_total") == 6
    assert found.value("aas_memory_conversations_begun_total") == 1


async def test_summaries_are_counted_with_what_they_took_and_saved(tmp_path: Path) -> None:
    agent = {
        **REMEMBERING,
        "resource_config": {
            "memory": {"compression": {"threshold_tokens": 100, "recent_messages_to_keep": 1}}
        },
    }
    script = Script(says("First " * 200), says("Second"), says("In short.", usage=Usage(300, 8)))
    async with (
        open_client(create_app(configuration(tmp_path, script, agents=[agent]))) as client,
        asyncio.timeout(30),
    ):
        for text in ("a" * 400, "b"):
            await client.post("/agents/helper/chat", json={"message": text, "session_id": "s"})
        found = await read_metrics(client)
        while not found.value("aas_memory_summaries_total", outcome="made"):
            found = await read_metrics(client)
    assert found.value("aas_memory_tokens_saved_total") > 200
    assert found.value("aas_memory_summary_tokens_total", type="prompt") > 0


async def test_runs_without_their_memory_are_counted(tmp_path: Path) -> None:
    lenient = {**REMEMBERING, "resource_config": {"memory": {"required": False}}}
    away: dict[str, Any] = {
        "database_url": "postgresql://nobody@127.0.0.1:1/d",
        "database_timeout": 0.2,
        "api_keys": "a-key-of-the-environment",
    }
    app = create_app(configuration(tmp_path, Script(says("Hi")), agents=[lenient], **away))
    async with open_client(app) as client:
        client.headers["authorization"] = "Bearer a-key-of-the-environment"
        response = await client.post(CHAT, json=asking(), headers={"X-Session-Id": "s"})
        found = await read_metrics(client)
    assert response.headers["x-memory"] == "unavailable"
    assert found.value("aas_runs_without_memory_total", agent="helper") == 1
    assert found.labels("aas_database_up") == [{"role": "primary"}]
    assert found.value("aas_database_up", role="primary") == 0


async def test_nothing_of_what_is_said_and_of_who_says_it_is_told(tmp_path: Path) -> None:
    script = Script(calls(("calculate", {"expression": "1 + canary"})), says("canary"))
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[REMEMBERING]))
    ) as client:
        headers = {"X-Session-Id": "canary", "x-request-id": "canary"}
        await client.post(CHAT, json=asking("canary", user="canary"), headers=headers)
        await client.get("/agents/helper/conversations/canary", params={"user_id": "canary"})
        found: Scrape = await read_metrics(client)
    assert found.value("aas_runs_total") == 1
    assert "canary" not in found.text


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=abc",
        "text/plain;version=x",
        "text/plain;version=1..0",
    ],
)
async def test_who_accepts_what_there_is_not_gets_the_older_form(
    tmp_path: Path, accept: str
) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.get("/metrics", headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
