"""The agents API: GET /agents, GET /agents/{id}, POST /agents/{id}/chat."""

import asyncio
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dirty_equals import IsFloat, IsNow, IsStr

from ai_agent_service.core.errors import ProviderRateLimitError
from ai_agent_service.core.events import RefusalDelta, TextDelta
from ai_agent_service.core.messages import Message
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.server.application import create_app
from tests.support.agents import CLIMBER, climb, climbing
from tests.support.clients import ASK, USAGE, read_error
from tests.support.fake_provider import Action, Script, calls, says
from tests.support.openai_schema import validate
from tests.support.service import AGENT, configuration, open_client


async def chat(folder: Path, body: dict[str, Any], *answers: list[Action]) -> dict[str, Any]:
    """The agent's answer to `body`."""
    async with open_client(create_app(configuration(folder, Script(*answers)))) as client:
        response = await client.post(ASK, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


# What agents there are


async def test_an_agent_is_shown_with_its_model_and_its_tools(tmp_path: Path) -> None:
    agent = {**AGENT, "description": "Helps.", "max_steps": 5}
    async with open_client(create_app(configuration(tmp_path, agents=[agent]))) as client:
        response = await client.get("/agents/helper")
    assert response.status_code == 200
    assert response.json() == {
        "agent_id": "helper",
        "description": "Helps.",
        "type": "agent",
        "provider": "scripted",
        "model": "scripted-model",
        "api": None,
        "tools_available": ["calculate", "get_current_datetime"],
        "mcp_servers": [],
        "resources": [],
        "max_steps": 5,
        "available": True,
        "problem": None,
        "unavailable": [],
        "version": IsStr(regex="[0-9a-f]{12}"),
    }


async def test_the_agents_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    agents = [{**AGENT, "agent_id": name} for name in ("writer", "helper")]
    async with open_client(create_app(configuration(tmp_path, agents=agents))) as client:
        listed = (await client.get("/agents")).json()
        shown = [(await client.get(f"/agents/{name}")).json() for name in ("writer", "helper")]
    assert listed == shown


async def test_an_unknown_agent_is_a_404(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        shown = read_error(await client.get("/agents/nobody"), 404)
        asked = read_error(await client.post("/agents/nobody/chat", json={"message": "Hello"}), 404)
    assert shown == asked
    assert shown["code"] == "model_not_found"


async def test_an_agent_without_its_key_says_what_is_missing(tmp_path: Path) -> None:
    agents = [
        {**AGENT, "agent_id": "one", "provider": "azure_openai", "model": "deployed"},
        {**AGENT, "agent_id": "two", "provider": "openrouter"},
        {**AGENT, "agent_id": "three", "provider": "openai"},
    ]
    async with open_client(
        create_app(configuration(tmp_path, agents=agents, openai_api_key="k"))
    ) as client:
        azure, openrouter, openai = (await client.get("/agents")).json()
    keys = "AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT"
    assert (azure["available"], azure["model"], azure["problem"]) == (
        False,
        "deployed",
        f"{keys} must be set for azure_openai.",
    )
    assert azure["api"] is None, "which address it has, and so which API, is not known"
    assert (openrouter["available"], openrouter["problem"]) == (
        False,
        "OPENROUTER_API_KEY must be set for openrouter.",
    )
    assert (openai["available"], openai["model"]) == (False, None)
    assert "OPENAI_DEFAULT_MODEL" in openai["problem"]


async def test_an_agent_whose_provider_cannot_be_reached_does_not_hide_the_others(
    tmp_path: Path,
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}"
        agents = [{**AGENT, "agent_id": "local", "provider": "ollama"}, AGENT]
        app = create_app(
            configuration(tmp_path, agents=agents, ollama_base_url=address, provider_max_retries=0)
        )
        async with open_client(app) as client:
            response = await client.get("/agents")
    assert response.status_code == 200, response.text
    assert [
        (agent["agent_id"], agent["available"], agent["model"]) for agent in response.json()
    ] == [
        ("local", False, None),
        ("helper", True, "scripted-model"),
    ]


async def test_an_agent_tells_which_servers_it_answers_without(tmp_path: Path) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/mcp"
        servers = [
            {"server_label": "dead", "server_url": url},
            {"server_label": "wiki", "server_url": "https://${NO_SUCH_HOST}/mcp"},
        ]
        (tmp_path / "mcp.json").write_text(json.dumps(servers), encoding="utf-8")
        agents = [
            {**AGENT, "allowed_mcp_servers": {"wiki": {}, "dead": {}}},
            {**AGENT, "agent_id": "other"},
        ]
        script = Script(says("Without."))
        async with open_client(
            create_app(configuration(tmp_path, script, agents=agents))
        ) as client:
            shown: dict[str, Any] = {}
            async with asyncio.timeout(30):
                while shown.get("unavailable") != ["the tools of dead"]:
                    await asyncio.sleep(0.02)
                    shown = (await client.get("/agents/helper")).json()
            other = (await client.get("/agents/other")).json()
            answer = (await client.post(ASK, json={"message": "Hello"})).json()
    assert (shown["available"], shown["problem"], shown["mcp_servers"]) == (
        True,
        None,
        ["wiki", "dead"],
    )
    assert shown["tools_available"] == ["calculate", "get_current_datetime"]
    assert (other["unavailable"], other["mcp_servers"]) == ([], [])
    assert answer["response"] == "Without."
    assert "cannot be used at the moment" in script.requests[0].messages[0].text
    assert script.requests[0].messages[0].text.endswith("\n- the tools of dead")
    assert "wiki" not in script.requests[0].messages[0].text


# A chat


async def test_an_answer_shows_the_tools_at_work(tmp_path: Path) -> None:
    steps = calls(("calculate", {"expression": "6*7"}), thinking="Hm. "), says("It is ", "42.")
    answer = await chat(tmp_path, {"message": "6*7?", "user_id": "ada", "session_id": "s1"}, *steps)
    assert datetime.fromisoformat(answer.pop("timestamp")) == IsNow(
        tz=UTC, delta=timedelta(minutes=1)
    )
    assert answer == {
        "response": "It is 42.",
        "agent_id": "helper",
        "user_id": "ada",
        "session_id": "s1",
        "run_id": IsStr(regex="run_[0-9a-f]{24}"),
        "model_used": "scripted-model",
        "finish_reason": "stop",
        "tools_available": 2,
        "tool_calls": [
            {
                "id": "call_000000001",
                "name": "calculate",
                "arguments": '{"expression":"6*7"}',
                "result": "42",
                "is_error": False,
                "seconds": IsFloat(ge=0, lt=10),
            }
        ],
        "steps": 2,
        "reasoning": "Hm. ",
        "usage": USAGE,
    }
    validate("CompletionUsage", answer["usage"])


async def test_a_plain_answer_names_nobody_and_no_tools(tmp_path: Path) -> None:
    answer = await chat(tmp_path, {"message": "Hello"}, [TextDelta("Hi"), ModelFinished("length")])
    assert {
        name: answer.get(name)
        for name in ("user_id", "session_id", "reasoning", "tool_calls", "steps", "finish_reason")
    } == {
        "user_id": "anonymous",
        "session_id": None,
        "reasoning": None,
        "tool_calls": [],
        "steps": 1,
        "finish_reason": "length",
    }
    assert "usage" not in answer


async def test_a_tool_that_failed_is_shown_as_failed(tmp_path: Path) -> None:
    answer = await chat(
        tmp_path, {"message": "?"}, calls(("calculate", {"expression": "1/0"})), says("Sorry.")
    )
    (run,) = answer["tool_calls"]
    assert run["is_error"]
    assert run["result"].startswith("Error: ")


async def test_a_refusal_is_the_response(tmp_path: Path) -> None:
    answer = await chat(
        tmp_path,
        {"message": "?"},
        [RefusalDelta("I will "), RefusalDelta("not."), ModelFinished("stop")],
    )
    assert answer["response"] == "I will not."


async def test_a_whole_conversation_may_be_sent(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        assert (await client.post(ASK, json={"messages": messages})).status_code == 200
    assert [(message.role, message.text) for message in script.requests[0].messages] == [
        ("system", "You help.\n\nBe brief."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]


async def test_one_message_is_what_the_user_says(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        assert (await client.post(ASK, json={"message": "Hello"})).status_code == 200
    assert script.requests[0].messages == (Message("system", "You help."), Message("user", "Hello"))


async def test_a_model_of_the_list_and_settings_may_be_chosen(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    settings = {"temperature": 0.5, "max_tokens": 7}
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        response = await client.post(
            ASK, json={"message": "Hello", "model": "other-model", "model_settings": settings}
        )
    assert response.json()["model_used"] == "other-model"
    assert (script.requests[0].model, script.requests[0].settings) == ("other-model", settings)


async def test_the_agents_own_model_may_be_named(tmp_path: Path) -> None:
    script = Script(says("Hi"))
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[{**AGENT, "model": "big"}]))
    ) as client:
        response = await client.post(ASK, json={"message": "Hello", "model": "big"})
    assert response.json()["model_used"] == script.requests[0].model == "big"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "message"),
        ({"message": "Hello", "messages": [{"role": "user", "content": "Hello"}]}, "message"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "SECRET", "content": "a"}]}, "messages[0].role"),
        ({"message": ["SECRET"]}, "message"),
        ({"message": "a", "model": "SECRET"}, "model"),
        ({"message": "a", "model": ""}, "model"),
        ({"message": "a", "model_settings": {"messages": ["SECRET"]}}, "model_settings"),
        ({"message": "a", "model_settings": {"tools": []}}, "model_settings"),
        ({"message": "a", "model_settings": "SECRET"}, "model_settings"),
        ({"message": "a", "stream": "SECRET"}, "stream"),
        ({"message": "a", "user_id": 5}, "user_id"),
    ],
    ids=json.dumps,
)
async def test_what_is_wrong_is_named_and_not_repeated(
    tmp_path: Path, body: dict[str, Any], param: str
) -> None:
    script = Script(says("Hi"))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        error = read_error(await client.post(ASK, json=body), 400)
    assert error["param"] == param
    assert "SECRET" not in error["message"]
    assert script.requests == []


async def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    async with open_client(create_app(configuration(tmp_path, max_request_bytes=1024))) as client:
        read_error(await client.post(ASK, json={"message": "a" * 1024}), 413)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_error_before_the_first_event_is_answered_with_its_status(
    tmp_path: Path, stream: bool
) -> None:
    async with open_client(
        create_app(
            configuration(tmp_path, Script([ProviderRateLimitError("Slow down.", retry_after=7)]))
        )
    ) as client:
        response = await client.post(ASK, json={"message": "Hello", "stream": stream})
    assert read_error(response, 429)["code"] == "provider_rate_limited"
    assert response.headers["retry-after"] == "7"


async def test_the_usage_of_a_run_is_the_sum_over_its_steps(tmp_path: Path) -> None:
    steps = (
        calls(("calculate", {"expression": "6*7"}), usage=Usage(20, 5)),
        says("42", usage=Usage(10, 2)),
    )
    assert (await chat(tmp_path, {"message": "?"}, *steps))["usage"] == USAGE


@pytest.mark.parametrize(
    "name",
    [
        "n",
        "logprobs",
        "tool_choice",
        "messages",
        "models",
        "provider",
        "plugins",
        "route",
        "data_sources",
        "extra_body",
        "num_ctx",
    ],
)
async def test_a_setting_that_is_not_the_callers_is_refused(tmp_path: Path, name: str) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.post(
            "/agents/helper/chat", json={"message": "x", "model_settings": {name: 1}}
        )
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model_settings")


@pytest.mark.parametrize("name", ["user_id", "session_id"])
async def test_nul_in_an_identifier_is_refused(tmp_path: Path, name: str) -> None:
    async with open_client(create_app(configuration(tmp_path))) as client:
        response = await client.post("/agents/helper/chat", json={"message": "x", name: "a\x00b"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, name)


async def test_a_whole_answer_has_the_tool_that_told_of_its_progress_once(tmp_path: Path) -> None:
    async with open_client(
        create_app(configuration(tmp_path, climbing(), agents=[CLIMBER], tools=[climb]))
    ) as client:
        answer = (await client.post(ASK, json={"message": "?"})).json()
    assert [(run["name"], run["result"]) for run in answer["tool_calls"]] == [
        ("climb", "at the top")
    ]
