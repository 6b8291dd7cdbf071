"""No text that the service sends out is refused when it comes back, whatever the model wrote."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai_agent_service.core.events import ReasoningDelta, RefusalDelta, TextDelta
from ai_agent_service.core.messages import Link, ToolCall
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.runtime.plugin_loader import load_plugins
from ai_agent_service.server.application import create_app
from ai_agent_service.tools.base import ToolOutput
from ai_agent_service.tools.function import tool
from tests.support.clients import CHAT, WEATHER, asking, read_chunks, read_completion
from tests.support.fake_provider import Action, Script, says
from tests.support.service import AGENT, configuration, open_client

PIECES = st.text(
    st.sampled_from('a\x00\ud800\udc00é{}":, \n\\') | st.characters(exclude_categories=()),
    max_size=8,
)
KINDS = st.sampled_from([TextDelta, ReasoningDelta, RefusalDelta])
EVENTS = st.lists(st.builds(lambda kind, text: kind(text), KINDS, PIECES), max_size=5)
JSON = st.dictionaries(st.sampled_from(["url", "text", "name"]), PIECES).map(json.dumps)
CALLS = st.lists(
    st.builds(ToolCall, PIECES, st.sampled_from(["weather", "echo"]) | PIECES, JSON | PIECES),
    max_size=3,
).map(tuple)
OPEN_WEBUI = {"X-OpenWebUI-Chat-Id": "chat", "X-OpenWebUI-User-Id": "ada"}
AGENTS = (
    {**AGENT, "allowed_regular_tools": ["echo"]},
    {
        **AGENT,
        "agent_id": "remembering",
        "resources": ["memory"],
        "allowed_regular_tools": ["echo"],
    },
)


@tool
async def echo(url: str = "", text: str = "", name: str = "") -> ToolOutput:
    """Return what it is given, also as a link."""
    return ToolOutput(
        json.dumps([{"url": url, "title": name, "text": text}]), links=(Link(url, name, text),)
    )


async def converse(client: httpx2.AsyncClient, script: Script, agent: str, stream: bool) -> None:
    """Ask, give the answer back as the history with results for its calls, and ask again."""
    headers = OPEN_WEBUI if stream else {"X-Session-Id": "s"}
    asked = asking(model=agent, tools=[WEATHER], stream=stream)
    seen = await client.post(
        f"/agents/{agent}/chat", json={"messages": asked["messages"], "stream": stream}
    )
    assert seen.status_code == 200, seen.text
    earlier, script.requests = script.requests, []
    response = await client.post(CHAT, json=asked, headers=headers)
    message = read_answer(response, stream)
    history = [*asked["messages"], message]
    history += (
        {"role": "tool", "tool_call_id": call["id"], "content": message.get("content") or ""}
        for call in message.get("tool_calls") or ()
    )
    question = {"role": "user", "content": f"You said: {message.get('content')}"}
    script.answers = [list(says("done"))]
    again = asking(model=agent, messages=[*history, question])
    done = read_completion(await client.post(CHAT, json=again, headers=headers))
    assert done["choices"][0]["message"]["content"] == "done"
    for request in (*earlier, *script.requests):
        text = repr(msgspec.json.encode(request.messages).decode())
        assert "\\u0000" not in text.replace("\\\\", "")


def read_answer(response: httpx2.Response, stream: bool) -> dict[str, Any]:
    if not stream:
        message: dict[str, Any] = read_completion(response)["choices"][0]["message"]
        return message
    message = {"role": "assistant"}
    for chunk in read_chunks(response):
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for field in ("content", "reasoning_content", "refusal"):
                if delta.get(field):
                    message[field] = message.get(field, "") + delta[field]
            if delta.get("tool_calls"):
                message["tool_calls"] = delta["tool_calls"]
    return message


def test_what_is_sent_out_is_taken_back(tmp_path: Path) -> None:
    plugins = load_plugins()[0]
    plugins.tools["echo"] = echo
    script = Script()
    app: FastAPI = create_app(configuration(tmp_path, script, agents=AGENTS, plugins=plugins))

    with asyncio.Runner() as runner:
        opened = open_client(app)
        client = runner.run(opened.__aenter__())

        @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=20)
        @given(EVENTS, CALLS, st.sampled_from(["helper", "remembering"]), st.booleans())
        def check(
            events: list[Action], calls: tuple[ToolCall, ...], agent: str, stream: bool
        ) -> None:
            first = [*events, ModelFinished("tool_calls", calls, model="m\ud800")]
            script.answers, script.requests = [first, list(says("Well."))], []
            runner.run(converse(client, script, agent, stream))

        try:
            check()
            memory = runner.run(client.get("/memory", params={"user_id": "anonymous"}))
            for line in filter(None, memory.text.split("\n")):
                for message in json.loads(line)["messages"]:
                    assert message["content"] == replace_unstorable(message["content"])
        finally:
            runner.run(opened.__aexit__(None, None, None))
