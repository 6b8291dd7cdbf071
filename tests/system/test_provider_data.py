"""What a provider wants back of its calls reaches it in every later request, and no other one."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ai_agent_service.server.application import create_app
from tests.support.clients import CHAT, WEATHER, read_completion
from tests.support.fake_upstream import Action, Upstream, delta, events, reply
from tests.support.service import AGENT, configuration, open_client

GEMINI = {**AGENT, "provider": "openai", "model": "gemini", "client_tools": "accept"}
SESSION = {"X-Session-Id": "s"}
REFUSED = {
    "error": {
        "code": 400,
        "message": "Function call is missing a thought_signature in functionCall parts.",
        "status": "INVALID_ARGUMENT",
    }
}


class StrictAnswers:
    """An answer that calls a tool for each new question and then says what came of it.

    As Gemini does, it refuses a request with a call that lacks the signature it came with.
    """

    def __init__(self, *tools: tuple[str, str]) -> None:
        self.upstream: Upstream
        self._tools = list(tools)
        self._signed = 0

    def __iter__(self) -> Generator[Action, None, None]:
        messages = self.upstream.requests[-1].json["messages"]
        calls = [call for message in messages for call in message.get("tool_calls") or ()]
        if not all(_is_signed(call) for call in calls):
            yield from reply(400, [REFUSED])
        elif messages[-1]["role"] == "tool":
            yield from events(delta("stop", content=f"It is {messages[-1]['content']}."))
        else:
            name, arguments = self._tools.pop(0)
            self._signed += 1
            call = {
                "index": 0,
                "id": "",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
                "extra_content": {"google": {"thought_signature": f"sig-{name}-{self._signed}"}},
            }
            yield from events(delta("stop", tool_calls=[call]))


def _is_signed(call: dict[str, Any]) -> bool:
    signature = call.get("extra_content", {}).get("google", {}).get("thought_signature", "")
    return bool(signature.startswith(f"sig-{call['function']['name']}-"))


async def complete(
    client: httpx2.AsyncClient, messages: list[dict[str, Any]], **fields: Any
) -> dict[str, Any]:
    """Ask with `messages`, and add what was answered to them."""
    body = {"model": "helper", "messages": messages, **fields}
    answer = read_completion(await client.post(CHAT, json=body, headers=SESSION))
    message: dict[str, Any] = answer["choices"][0]["message"]
    messages.append(message)
    return message


@pytest.mark.parametrize("resources", [["memory"], []], ids=["memory", "no-memory"])
async def test_a_signature_goes_back_with_its_call_in_later_turns_and_after_a_restart(
    tmp_path: Path, resources: list[str]
) -> None:
    strict = StrictAnswers(*[("calculate", '{"expression": "1+1"}')] * 3)
    messages: list[dict[str, Any]] = []
    async with Upstream(strict) as upstream:
        strict.upstream = upstream
        settings: dict[str, Any] = {"openai_base_url": f"{upstream.url}/v1"}
        for questions in (["One?", "Two?"], ["Three?"]):
            found = configuration(tmp_path, agents=[{**GEMINI, "resources": resources}], **settings)
            async with open_client(create_app(found)) as client:
                for text in questions:
                    messages.append({"role": "user", "content": text})
                    answer = await complete(client, messages)
                    assert answer["content"] == "It is 2."
    asked = upstream.requests[-1].json["messages"]
    calls = [call for message in asked for call in message.get("tool_calls") or ()]
    signatures = [call["extra_content"]["google"]["thought_signature"] for call in calls]
    expected = ["sig-calculate-1", "sig-calculate-2", "sig-calculate-3"]
    assert signatures == (expected if resources else expected[2:])


@pytest.mark.parametrize("is_restarted", [False, True], ids=["running", "restarted"])
async def test_a_signature_goes_back_with_a_call_of_the_clients_own_tool(
    tmp_path: Path, is_restarted: bool
) -> None:
    strict = StrictAnswers(("weather", "{}"), ("calculate", '{"expression": "1+1"}'))
    messages: list[dict[str, Any]] = [{"role": "user", "content": "How is it in Rome?"}]
    async with Upstream(strict) as upstream:
        strict.upstream = upstream
        settings: dict[str, Any] = {"openai_base_url": f"{upstream.url}/v1"}
        agents = [{**GEMINI, "resources": ["memory"]}]
        result = {"role": "tool", "content": "sunny"}
        turns = [[], [result], [{"role": "user", "content": "And 1+1?"}]]
        for served in [turns[:1], turns[1:]] if is_restarted else [turns]:
            found = configuration(tmp_path, agents=agents, **settings)
            async with open_client(create_app(found)) as client:
                for turn in served:
                    messages += turn
                    answer = await complete(client, messages, tools=[WEATHER])
                    if turn is turns[0]:
                        (call,) = answer["tool_calls"]
                        assert "extra_content" not in call
                        result["tool_call_id"] = call["id"]
    assert [message["content"] for message in messages if message["role"] == "assistant"][1:] == [
        "It is sunny.",
        "It is 2.",
    ]


async def test_no_other_provider_is_sent_a_signature(tmp_path: Path) -> None:
    strict = StrictAnswers(("calculate", '{"expression": "1+1"}'))
    ordinary = events(delta("stop", content="Yes."))
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 1+1?"}]
    async with Upstream(strict) as google, Upstream(ordinary) as other:
        strict.upstream = google
        settings: dict[str, Any] = {
            "openai_base_url": f"{google.url}/v1",
            "openrouter_base_url": f"{other.url}/v1",
            "openrouter_api_key": "sk-or-1",
        }
        for provider in ("openai", "openrouter"):
            agent = {**GEMINI, "provider": provider, "resources": ["memory"]}
            found = configuration(tmp_path, agents=[agent], **settings)
            async with open_client(create_app(found)) as client:
                await complete(client, messages)
                messages.append({"role": "user", "content": "Sure?"})
    asked = other.requests[0].json["messages"]
    (call,) = (call for message in asked for call in message.get("tool_calls") or ())
    assert call.keys() == {"id", "type", "function"}
