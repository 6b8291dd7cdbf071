"""Providers that fail, seen through the whole service."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from fastapi import FastAPI

from ai_agent_service.providers.breaker import BreakerStatus
from ai_agent_service.providers.fallback import FallbackProvider
from ai_agent_service.runtime.opening import open_service
from ai_agent_service.runtime.service import Service
from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, asking, read_chunks, read_completion
from tests.support.fake_upstream import (
    END,
    Action,
    Upstream,
    delta,
    event,
    events,
    head,
    reply,
    says,
)
from tests.support.service import AGENT, configuration, open_client

AGENTS: dict[str, Any] = {
    **AGENT,
    "provider": "openai",
    "model": "big",
    "fallback": [{"provider": "openrouter", "model": "small"}],
}
OH = reply(500, {"error": {"message": "Oh."}})


class Opened(msgspec.Struct):
    """A service whose agent has the provider `first` (openai) and falls back to `second`
    (openrouter)."""

    client: httpx2.AsyncClient
    first: Upstream
    second: Upstream
    app: FastAPI

    @property
    def service(self) -> Service:
        service: Service = self.app.state.service
        return service

    async def ask(self, **fields: Any) -> httpx2.Response:
        return await self.client.post(CHAT, json=asking(**fields))

    @property
    def states(self) -> dict[str, str]:
        return {
            f"{status.provider}/{status.model}": status.state
            for status in self.service.breakers.list_statuses()
        }


@asynccontextmanager
async def opened(
    folder: Path,
    first: Iterable[Action],
    second: Iterable[Action],
    *more: Iterable[Action],
    agent: dict[str, Any] = AGENTS,
    **settings: Any,
) -> AsyncGenerator[Opened, None]:
    async with Upstream(first, *more) as one, Upstream(second) as two:
        defaults: dict[str, Any] = {
            "openai_base_url": f"{one.url}/v1",
            "openrouter_api_key": "k",
            "openrouter_base_url": two.url,
            "provider_max_retries": 0,
            "provider_first_byte_timeout": 0.5,
            "provider_idle_timeout": 0.5,
        }
        app = create_app(configuration(folder, agents=[agent], **{**defaults, **settings}))
        async with open_client(app) as client:
            yield Opened(client, one, two, app)


FAILURES: dict[str, Any] = {
    "refused": {"openai_base_url": "http://127.0.0.1:1"},
    "500": OH,
    "429": reply(429, {"error": {"message": "Slow down."}}, retry_after="60"),
    "401": reply(401, {"error": {"message": "No."}}),
    "stall": [30.0],
    "stall after the head": [head(), 30.0],
    "cut": ["reset"],
    "nonsense": [head(), event([1]), END],
    "no credentials": {"openai_base_url": None},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", FAILURES)
async def test_the_fallback_answers_when_the_agents_own_provider_does_not_begin(
    tmp_path: Path, fault: str, stream: bool
) -> None:
    found = FAILURES[fault]
    settings = found if isinstance(found, dict) else {}
    answer: list[Action] = OH if settings else found
    async with opened(tmp_path, answer, says("I am ", "here."), **settings) as service:
        response = await service.ask(stream=stream)
        if stream:
            assert (
                "".join(
                    chunk["choices"][0]["delta"].get("content", "")
                    for chunk in read_chunks(response)
                )
                == "I am here."
            )
        else:
            completion = read_completion(response)
            assert (completion["choices"][0]["message"]["content"], completion["model"]) == (
                "I am here.",
                "helper",
            )
        [request] = service.second.requests
        assert (request.json["model"], request.headers["authorization"]) == ("small", "Bearer k")


async def test_nobody_begins_an_answer_again(tmp_path: Path) -> None:
    broken: list[Action] = [head(), event(delta(content="It")), "reset"]
    async with opened(tmp_path, broken, says("Again.")) as service:
        body = (await service.ask(stream=True)).text
        assert '"content":"It"' in body
        assert '"code":"provider_protocol_error"' in body
        assert "Again." not in body
        response = await service.ask()
        assert (response.status_code, response.json()["error"]["code"]) == (
            502,
            "provider_protocol_error",
        )
        assert service.second.requests == []


async def test_if_all_fail_the_caller_is_told_why_the_agents_own_does(tmp_path: Path) -> None:
    slow = reply(429, {"error": {"message": "Slow down."}}, retry_after="60")
    async with opened(tmp_path, slow, OH) as service:
        response = await service.ask()
        assert (response.status_code, response.headers["retry-after"]) == (429, "60")
        assert response.json()["error"]["message"] == "openai: Slow down."


async def test_each_step_of_a_run_may_be_answered_by_another(tmp_path: Path) -> None:
    call = {
        "index": 0,
        "id": "call_abcdefghi",
        "type": "function",
        "function": {"name": "calculate", "arguments": '{"expression": "6*7"}'},
    }
    asks = events(delta(tool_calls=[call]), delta("tool_calls"))
    async with opened(tmp_path, asks, says("It is 42."), OH) as service:
        answer = (
            await service.client.post("/agents/helper/chat", json={"message": "What is 6*7?"})
        ).json()
        assert (answer["response"], answer["steps"], answer["model_used"]) == (
            "It is 42.",
            2,
            "small",
        )
        assert service.second.requests[0].json["messages"][-1]["content"] == "42"


async def test_a_caller_is_told_which_model_answered(tmp_path: Path) -> None:
    async with opened(tmp_path, says("Own."), says("Other."), OH) as service:
        used = [
            (await service.client.post("/agents/helper/chat", json={"message": "Hi"})).json()[
                "model_used"
            ]
            for _ in range(2)
        ]
        assert used == ["big", "small"]


async def test_an_agent_whose_fallback_is_configured_can_answer(tmp_path: Path) -> None:
    async with opened(tmp_path, OH, says("Other."), openai_base_url=None) as service:
        [shown] = (await service.client.get("/agents")).json()
        assert (shown["available"], shown["problem"], shown["provider"], shown["model"]) == (
            True,
            None,
            "openai",
            "big",
        )


async def test_an_agent_without_a_configured_provider_cannot(tmp_path: Path) -> None:
    async with opened(
        tmp_path, OH, says("Other."), openai_base_url=None, openrouter_api_key=None
    ) as service:
        [shown] = (await service.client.get("/agents")).json()
        assert (shown["available"], shown["problem"]) == (
            False,
            "OPENAI_API_KEY must be set for openai.",
        )
        assert (await service.ask()).json()["error"]["code"] == "provider_not_configured"


async def test_a_provider_that_is_down_is_not_asked_until_it_may_be_back(tmp_path: Path) -> None:
    alone = {**AGENTS, "fallback": []}
    settings = {"provider_breaker_failures": 3, "provider_breaker_seconds": 20}
    async with opened(
        tmp_path, OH, says("x"), OH, OH, says("Back."), agent=alone, **settings
    ) as service:
        now = time.monotonic()
        service.service.breakers.clock = lambda: now
        assert [(await service.ask()).status_code for _ in range(3)] == [502] * 3
        for stream in (False, True):
            began = time.monotonic()
            response = await service.ask(stream=stream)
            assert time.monotonic() - began < 0.5
            assert (response.status_code, response.headers["retry-after"]) == (503, "20")
            assert response.json()["error"]["type"] == "upstream_error"
            assert response.json()["error"]["code"] == "provider_circuit_open"
        assert len(service.first.requests) == 3
        assert service.service.breakers.list_statuses() == [
            BreakerStatus("openai", "big", "open", 3, "provider_unavailable", 20.0, 1, True)
        ]
        now += 20
        assert read_completion(await service.ask())["choices"][0]["message"]["content"] == "Back."
        assert service.states == {"openai/big": "closed"}


async def test_a_provider_that_is_down_costs_callers_no_wait_where_there_is_a_fallback(
    tmp_path: Path,
) -> None:
    async with opened(
        tmp_path, [asyncio.Event()], says("Other."), provider_breaker_failures=2
    ) as service:
        for _ in range(4):
            read_completion(await service.ask())
        assert (len(service.first.requests), len(service.second.requests)) == (2, 4)
        assert service.states == {"openai/big": "open", "openrouter/small": "closed"}
        counts = service.service.http.counts
        assert counts["openai"].errors == {"provider_timeout": 2, "provider_circuit_open": 2}
        assert (counts["openrouter"].requests, counts["openrouter"].errors) == (4, {})


async def test_a_storm_of_refusals_is_no_outage(tmp_path: Path) -> None:
    slow = reply(429, {"error": {"message": "Slow down."}})
    patient: dict[str, Any] = {
        "provider_max_retries": 2,
        "provider_first_byte_timeout": 20,
        "max_concurrent_requests": 200,
    }
    async with opened(tmp_path, slow, slow, **patient) as service:
        responses = await asyncio.gather(*(service.ask() for _ in range(200)))
        assert {response.status_code for response in responses} == {429}
        for upstream in (service.first, service.second):
            assert 200 <= len(upstream.requests) <= 240
        assert set(service.states.values()) == {"closed"}


async def test_a_client_that_leaves_does_not_reach_the_fallback(tmp_path: Path) -> None:
    async with opened(
        tmp_path, [asyncio.Event()], says("Other."), provider_first_byte_timeout=5
    ) as service:
        leaving = asyncio.create_task(service.ask())
        await service.first.until(lambda: len(service.first.requests) == 1)
        leaving.cancel()
        await service.first.until(lambda: service.first.disconnects == 1, timeout=1)
        await asyncio.gather(leaving, return_exceptions=True)
        assert service.second.requests == []
        assert service.service.breakers.list_statuses()[0].failures == 0


@pytest.mark.parametrize("default", ["openai", "openrouter"])
async def test_auto_may_be_a_fallback_and_what_comes_twice_is_left_out(
    tmp_path: Path, default: str
) -> None:
    agent = {
        **AGENT,
        "provider": "openai",
        "fallback": [{"provider": "auto"}, {"provider": "openrouter"}, {"provider": "demo"}],
    }
    found = configuration(
        tmp_path, agents=[agent], default_provider=default, openai_default_model="m"
    )
    async with open_service(found) as service:
        provider = service.catalog.get("helper").parts.provider
        assert isinstance(provider, FallbackProvider)
        assert [other.provider.name for other in provider.others] == ["openrouter", "demo"]


async def test_a_fallback_that_is_the_agents_own_is_none(tmp_path: Path) -> None:
    agent = {**AGENT, "provider": "auto", "fallback": [{"provider": "demo"}]}
    async with open_service(configuration(tmp_path, agents=[agent])) as service:
        assert not isinstance(service.catalog.get("helper").parts.provider, FallbackProvider)
