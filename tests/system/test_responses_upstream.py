"""A model that is asked through the Responses API, by the whole service."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.server.application import create_app
from tests.support.fake_provider import Script
from tests.support.responses_server import Answer, ResponsesServer, answers
from tests.support.service import configuration, open_client, parse_chunks, serving

ADD = ("call", "add_two_numbers", '{"a": 1, "b": 2}')
SCRIPT = (
    answers(("reasoning", "I add."), ADD),
    answers(("reasoning", ""), ("text", "It is 3.")),
    answers(("reasoning", "Again."), ("text", "Let me add."), ADD, ADD),
    answers(("text", "Still 3.")),
    answers(("text", "Bye.")),
)


@asynccontextmanager
async def open_service(
    folder: Path, server: str, provider: str, script: Script | None = None, **agent: Any
) -> AsyncGenerator[httpx2.AsyncClient, None]:
    definition = {
        "agent_id": "helper",
        "system_prompt": "You help.",
        "provider": provider,
        "api": "responses",
        "model": "gpt-6",
        "model_settings": {"reasoning_effort": "low"},
        "allowed_regular_tools": ["add_two_numbers"],
        "resources": ["memory"],
        **agent,
    }
    made = configuration(
        folder,
        script,
        agents=[definition],
        openai_base_url=f"{server}/v1",
        azure_openai_endpoint=server,
        azure_openai_api_key="k",
    )
    async with open_client(create_app(made)) as client:
        yield client


async def chat(client: httpx2.AsyncClient, words: str) -> str:
    """Return the streamed answer to a message of the session."""
    response = await client.post(
        "/v1/chat/completions",
        json={
            "model": "helper",
            "stream": True,
            "messages": [{"role": "user", "content": words}],
        },
        headers={"X-Session-Id": "monday", "X-Session-History": "server"},
    )
    assert response.status_code == 200, response.text
    chunks = parse_chunks(response.text)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop", response.text
    return "".join(
        chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]
    )


@pytest.mark.parametrize("provider", ["openai", "azure_openai"])
async def test_reasoning_goes_back_in_a_run_in_remembered_turns_and_after_a_restart(
    tmp_path: Path, provider: str
) -> None:
    server = ResponsesServer(*SCRIPT)
    async with serving(server.app) as address:
        async with open_service(tmp_path, address, provider) as client:
            assert await chat(client, "1 + 2?") == "It is 3."
            assert await chat(client, "Sure?") == "Let me add.Still 3."
        async with open_service(tmp_path, address, provider) as client:
            assert await chat(client, "Bye") == "Bye."
    server.check()
    assert server.refusals == []
    assert set(server.paths) == {
        "/v1/responses" if provider == "openai" else "/openai/v1/responses"
    }
    kinds = [item["type"] for item in server.requests[-1]["input"]]
    assert kinds == [
        *("message", "reasoning", "function_call", "function_call_output", "message"),
        *("message", "reasoning", "message", "function_call", "function_call"),
        *("function_call_output", "function_call_output", "message", "message"),
    ]
    assert all(tool["strict"] is False for tool in server.requests[0]["tools"])


async def test_stale_reasoning_is_dropped_once_and_the_conversation_goes_on(tmp_path: Path) -> None:
    server = ResponsesServer(*SCRIPT)
    async with serving(server.app) as address, open_service(tmp_path, address, "openai") as client:
        await chat(client, "1 + 2?")
        server.forget_encryption()
        assert await chat(client, "Sure?") == "Let me add.Still 3."
    assert len(server.refusals) == 1
    last = [item["type"] for item in server.requests[-1]["input"]]
    assert last.count("reasoning") == 1, "the reasoning of the second turn is still sent"


async def test_a_model_that_does_not_reason_and_an_unverified_organization_are_answered(
    tmp_path: Path,
) -> None:
    for number, server in enumerate(
        (ResponsesServer(*SCRIPT, is_verified=False), ResponsesServer(*SCRIPT, reasons=False))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        settings = {"reasoning_effort": "low"} if server.reasons else {}
        async with (
            serving(server.app) as address,
            open_service(folder, address, "openai", model_settings=settings) as client,
        ):
            assert await chat(client, "1 + 2?") == "It is 3."
        assert len(server.refusals) == 1


async def test_the_api_of_each_agent_is_shown(tmp_path: Path) -> None:
    async with open_service(tmp_path, "http://127.0.0.1:9", "openai") as client:
        [agent] = (await client.get("/agents")).json()
        health = (await client.get("/health?detailed=true")).json()
    assert agent["api"] == health["agents"]["helper"]["api"] == "responses"


async def test_a_switch_of_the_api_is_kept_over_a_reload(tmp_path: Path) -> None:
    server = ResponsesServer(answers(("text", "Hi")))
    async with (
        serving(server.app) as address,
        open_service(tmp_path, address, "openai", api="auto") as client,
    ):
        assert await chat(client, "Hi") == "Hi"
        definition = json.loads((tmp_path / "agent_config.json").read_text())
        definition[0]["system_prompt"] = "You help more."
        (tmp_path / "agent_config.json").write_text(json.dumps(definition))
        assert (await client.post("/admin/reload")).status_code == 200
        [agent] = (await client.get("/agents")).json()
        assert agent["api"] == "auto: responses"
        await chat(client, "Hi")
    assert server.paths == ["/v1/chat/completions", "/v1/responses", "/v1/responses"]
    assert server.requests[-1]["instructions"] == "You help more."


async def test_a_fallback_is_asked_through_the_api_that_it_names(tmp_path: Path) -> None:
    server = ResponsesServer(answers(("text", "Hi")))
    fallback = [{"provider": "openai", "model": "gpt-6", "api": "responses"}]
    script = Script([ProviderUnavailableError("down")])
    async with (
        serving(server.app) as address,
        open_service(
            tmp_path, address, "scripted", script, api="auto", fallback=fallback
        ) as client,
    ):
        assert await chat(client, "Hi") == "Hi"
    assert server.paths == ["/v1/responses"]


async def test_the_tokens_of_an_answer_are_reported(tmp_path: Path) -> None:
    server = ResponsesServer(answers(("text", "Hi")))
    async with serving(server.app) as address, open_service(tmp_path, address, "openai") as client:
        body = {"model": "helper", "messages": [{"role": "user", "content": "Hi"}]}
        usage = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (20, 10)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 8


async def test_an_incomplete_answer_ends_with_length(tmp_path: Path) -> None:
    server = ResponsesServer(Answer((("text", "Half"),), "incomplete", "max_output_tokens"))
    async with serving(server.app) as address, open_service(tmp_path, address, "openai") as client:
        body = {"model": "helper", "messages": [{"role": "user", "content": "Hi"}]}
        [choice] = (await client.post("/v1/chat/completions", json=body)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Half", "length")


async def test_openais_own_client_can_talk_to_the_scripted_server() -> None:
    server = ResponsesServer(answers(("reasoning", "Hm."), ADD))
    async with serving(server.app) as address:
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="k")
        stream = await client.responses.create(
            model="gpt-6",
            input="1 + 2?",
            stream=True,
            store=False,
            include=["reasoning.encrypted_content"],
            reasoning={"summary": "auto"},
        )
        kinds = [event.type async for event in stream]
        await client.close()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.function_call_arguments.done" in kinds
    server.check()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"unknown": 1}, "Unknown parameter"),
        ({"max_output_tokens": 5}, "max_output_tokens"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
            "No tool call found",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]},
            "No tool output found",
        ),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "name": "f",
                        "parameters": {"type": "object", "properties": {"a": {}}},
                    }
                ]
            },
            "Invalid schema for function 'f'",
        ),
    ],
)
async def test_the_scripted_server_refuses_what_openai_refuses(
    body: dict[str, Any], words: str
) -> None:
    server = ResponsesServer(answers(("text", "Hi")))
    async with serving(server.app) as address, httpx2.AsyncClient() as client:
        sent = {"model": "m", "input": "Hi", **body}
        response = await client.post(f"{address}/v1/responses", json=sent)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
