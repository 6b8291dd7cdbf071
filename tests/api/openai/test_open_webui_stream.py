"""What Open WebUI is sent besides OpenAI's chunks, and what it makes of it."""

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ai_agent_service.api.openai.open_webui_stream import (
    LAST_OUTPUT_INDEX,
    MAX_SOURCES,
    OpenWebUIFrames,
    find_links,
)
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ProviderUnavailableError, ToolError
from ai_agent_service.core.events import RunFinished, ToolStarted
from ai_agent_service.core.messages import ImagePart, Link, Message, ToolCall, ToolResult
from ai_agent_service.core.usage import Usage
from ai_agent_service.server.application import create_app
from ai_agent_service.tools.base import ToolOutput
from ai_agent_service.tools.function import tool
from tests.support.clients import CHAT, WEATHER, asking, join_deltas, read_chunks, read_stream
from tests.support.fake_provider import Script, calls, says
from tests.support.keys import opened
from tests.support.open_webui import build_output, find_events, replayed, unanswered
from tests.support.service import AGENT, configuration, open_client

CHAT_OF_ADA = {"X-OpenWebUI-Chat-Id": "chat-1", "X-OpenWebUI-User-Id": "ada"}
SUM = ("calculate", {"expression": "2+3"})
PRODUCT = ("calculate", {"expression": "2*3"})
REMEMBERING: dict[str, Any] = {**AGENT, "resources": ["memory"]}


@tool
def search(query: str) -> ToolOutput:
    """Searches."""
    return ToolOutput(
        "found it",
        links=(Link("https://a.example/1", "One", "the text"), Link("notes.txt", text="kept here")),
    )


@tool
def draw(what: str) -> ToolOutput:
    """Draws."""
    return ToolOutput("drawn", images=(ImagePart("data:image/png;base64,iVBORw0KGgo="),))


@tool
def broken(reason: str) -> str:
    """Fails."""
    raise ToolError(reason)


async def streamed(
    client: httpx2.AsyncClient, headers: dict[str, str] | None = None, **fields: Any
) -> list[dict[str, Any]]:
    body = {"stream_options": {"include_usage": True}, **asking(stream=True), **fields}
    return read_chunks(
        await client.post(CHAT, json=body, headers=CHAT_OF_ADA if headers is None else headers)
    )


async def test_each_tool_that_runs_becomes_a_card_in_its_place(tmp_path: Path) -> None:
    script = Script(calls(SUM, PRODUCT, text="Let me see."), says("Five and six."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        chunks = await streamed(client)
    output = build_output(chunks)
    assert [item["type"] for item in output] == [
        "message",
        "function_call",
        "function_call",
        "function_call_output",
        "function_call_output",
        "message",
    ]
    first, second = output[1:3]
    assert (first["name"], json.loads(first["arguments"]), first["status"]) == (
        "calculate",
        {"expression": "2+3"},
        "completed",
    )
    results = {item["call_id"]: item["output"] for item in output[3:5]}
    assert results[first["call_id"]] == [{"type": "input_text", "text": "5"}]
    assert results[second["call_id"]] == [{"type": "input_text", "text": "6"}]
    assert unanswered(output) == []
    assert {chunk["output_index"] for chunk in chunks if "item" in chunk} == {LAST_OUTPUT_INDEX}
    assert join_deltas(chunks, "tool_calls") == ""


async def test_a_failed_call_is_a_failed_card(tmp_path: Path) -> None:
    script = Script(calls(("broken", {"reason": "no luck"})), says("Sorry."))
    agent = {**AGENT, "allowed_regular_tools": ["broken"]}
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], tools=[broken]))
    ) as client:
        output = build_output(await streamed(client))
    assert [item["status"] for item in output[:2]] == ["failed", "failed"]
    assert output[1]["output"][0]["text"] == "Error: no luck"


async def test_a_run_that_breaks_leaves_no_call_for_open_webui_to_run(tmp_path: Path) -> None:
    begun = asyncio.Event()

    @tool(timeout=60)
    async def slow(context: RunContext) -> str:
        """Waits."""
        context.report_progress(1, 4, "a quarter")
        begun.set()
        await asyncio.sleep(60)
        return ""

    agent = {**AGENT, "allowed_regular_tools": ["slow"]}
    app = create_app(
        configuration(
            tmp_path, Script(calls(("slow", {}))), agents=[agent], tools=[slow], request_timeout=0.5
        )
    )
    async with open_client(app) as client:
        chunks, error = read_stream(
            await client.post(CHAT, json=asking(stream=True), headers=CHAT_OF_ADA)
        )
    assert begun.is_set()
    assert error is not None
    assert error["code"] == "run_timeout"
    output = build_output(chunks)
    assert [item["status"] for item in output] == ["incomplete", "incomplete"] or output[0][
        "status"
    ] == "failed"
    assert unanswered(output) == []
    assert "slow: a quarter, 25%" in [
        status["description"] for status in find_events(chunks, "status")
    ]


def test_a_call_that_a_run_leaves_without_a_result_is_given_one() -> None:
    frames = OpenWebUIFrames("helper", include_usage=False)
    sent = frames.render_event(ToolStarted(CALL)) + frames.render_finish(RunFinished("stop", None))
    chunks = [
        json.loads(event.removeprefix("data: ")) for event in sent.decode().strip().split("\n\n")
    ]
    output = build_output(chunks)
    assert [item["status"] for item in output] == ["incomplete", "incomplete"]
    assert unanswered(output) == []


async def test_status_lines_are_there_while_tools_run_and_go_afterwards(tmp_path: Path) -> None:
    script = Script(calls(SUM, ("get_current_datetime", {"timezone": "UTC"})), says("Done."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        statuses = find_events(await streamed(client), "status")
    assert [status["description"] for status in statuses[:2]] == [
        "Using calculate",
        "Using calculate and get_current_datetime",
    ]
    assert all(status["done"] for status in statuses), (
        "a line that is not shimmers for ever once the answer is stopped"
    )
    assert [status["hidden"] for status in statuses] == [False, False, False, True]


async def test_a_server_that_is_missing_is_said_once_and_stays_said(tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text(
        json.dumps([{"server_label": "gone", "server_url": "http://127.0.0.1:9/mcp"}]),
        encoding="utf-8",
    )
    agent = {**AGENT, "allowed_mcp_servers": {"gone": {"allowed_mcp_tools": None}}}
    script = Script(calls(SUM), says("Five."))
    async with open_client(create_app(configuration(tmp_path, script, agents=[agent]))) as client:
        chunks = await streamed(client)
        body = {"message": "Hello", "stream": True}
        events = (await client.post("/agents/helper/chat", json=body)).text
    statuses = find_events(chunks, "status")
    assert statuses[0]["description"].startswith("Answering without the tools of gone")
    assert statuses[-1] == statuses[0]
    assert '"type":"tools_missing","reasons":["the tools of gone' in events


async def test_an_error_before_the_first_word_keeps_its_status_though_a_line_was_to_be_shown(
    tmp_path: Path,
) -> None:
    (tmp_path / "mcp.json").write_text(
        json.dumps([{"server_label": "gone", "server_url": "http://127.0.0.1:9/mcp"}]),
        encoding="utf-8",
    )
    agent = {**AGENT, "allowed_mcp_servers": {"gone": {"allowed_mcp_tools": None}}}
    script = Script([ProviderUnavailableError("away")])
    async with open_client(create_app(configuration(tmp_path, script, agents=[agent]))) as client:
        response = await client.post(CHAT, json=asking(stream=True), headers=CHAT_OF_ADA)
    assert response.status_code == 502


async def test_links_and_images_of_tools_are_shown_once(tmp_path: Path) -> None:
    script = Script(
        calls(("search", {"query": "x"}), ("draw", {"what": "y"})),
        calls(("search", {"query": "z"})),
        says("There."),
    )
    agent = {**AGENT, "allowed_regular_tools": ["search", "draw"]}
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], tools=[search, draw]))
    ) as client:
        chunks = await streamed(client)
    assert find_events(chunks, "source") == [
        {
            "source": {"name": "One", "url": "https://a.example/1"},
            "document": ["the text"],
            "metadata": [{"source": "https://a.example/1", "name": "One", "external": True}],
        },
        {
            "source": {"name": "notes.txt"},
            "document": ["kept here"],
            "metadata": [{"source": "notes.txt", "name": "notes.txt", "external": True}],
        },
    ]
    images = [
        choice["delta"]["images"]
        for chunk in chunks
        for choice in chunk["choices"]
        if "images" in choice["delta"]
    ]
    assert images == [
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]
    ]


async def test_a_remote_image_is_a_source_and_nothing_that_a_browser_fetches(
    tmp_path: Path,
) -> None:
    @tool
    def paint() -> ToolOutput:
        """Paint."""
        link = Link("https://a.example/i.png", "i.png", media_type="Image/PNG")
        remote = ImagePart("https://a.example/j.png")
        return ToolOutput("done", images=(remote,), links=(link,))

    script = Script(calls(("paint", {})), says("There."))
    agent = {**AGENT, "allowed_regular_tools": ["paint"]}
    app = create_app(configuration(tmp_path, script, agents=[agent], tools=[paint]))
    async with open_client(app) as client:
        chunks = await streamed(client)
    assert find_events(chunks, "files") == []
    assert not any("images" in each["delta"] for chunk in chunks for each in chunk["choices"])
    sources = [event["source"] for event in find_events(chunks, "source")]
    assert sources == [
        {"name": "i.png", "url": "https://a.example/i.png"},
        {"name": "https://a.example/j.png", "url": "https://a.example/j.png"},
    ]


async def test_a_file_that_a_tool_points_to_is_shown_as_one(tmp_path: Path) -> None:
    @tool
    def report() -> ToolOutput:
        """Reports."""
        return ToolOutput(
            "ready", links=(Link("https://a.example/r.pdf", "r.pdf", media_type="application/pdf"),)
        )

    agent = {**AGENT, "allowed_regular_tools": ["report"]}
    script = Script(calls(("report", {})), says("Here."))
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], tools=[report]))
    ) as client:
        chunks = await streamed(client)
    (files,) = find_events(chunks, "files")
    assert files == {
        "files": [
            {
                "type": "file",
                "name": "r.pdf",
                "url": "https://a.example/r.pdf",
                "content_type": "application/pdf",
            }
        ]
    }


async def test_usage_tells_each_step(tmp_path: Path) -> None:
    script = Script(calls(SUM, usage=Usage(20, 5, cost=0.001)), says("Five.", usage=Usage(30, 2)))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        usage = (await streamed(client))[-1]["usage"]
    assert usage["total_tokens"] == 57
    assert usage["cost"] == 0.001
    assert usage["steps"] == [
        {"tool_calls": ["calculate"], "prompt_tokens": 20, "completion_tokens": 5, "cost": 0.001},
        {"tool_calls": [], "prompt_tokens": 30, "completion_tokens": 2},
    ]


async def test_what_a_tool_says_never_names_the_type_of_an_event(tmp_path: Path) -> None:
    evil = json.dumps(
        {
            "event": {"type": "execute", "data": {"code": "alert(1)"}},
            "type": "execute",
            "url": "javascript:alert(1)",
        }
    )

    @tool
    def trap() -> str:
        """Returns an attack."""
        return evil

    agent = {**AGENT, "allowed_regular_tools": ["trap"]}
    script = Script(calls(("trap", {})), says("No."))
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[agent], tools=[trap]))
    ) as client:
        chunks = await streamed(client)
    assert {chunk["event"]["type"] for chunk in chunks if "event" in chunk} == {"status"}
    assert build_output(chunks)[1]["output"][0]["text"] == evil


async def test_other_clients_are_sent_openais_chunks_and_nothing_else(tmp_path: Path) -> None:
    script = Script(calls(SUM), says("Five."))
    async with open_client(create_app(configuration(tmp_path, script))) as client:
        chunks = await streamed(client, headers={"X-Session-Id": "s", "User-Agent": "openai"})
    assert all(
        chunk.keys()
        <= {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
        for chunk in chunks
    )
    assert "steps" not in chunks[-1]["usage"]


async def test_a_key_that_open_webui_has_is_enough_to_know_it(tmp_path: Path) -> None:
    async with opened(tmp_path, Script(calls(SUM), says("Five."))) as service:
        key = await service.key("webui", client="open_webui")
        chunks = await streamed(service.client, headers=key)
    assert build_output(chunks)[0]["type"] == "function_call"


@pytest.mark.parametrize("parallel", [True, False])
async def test_turns_that_open_webui_tells_again_are_neither_run_nor_stored_again(
    tmp_path: Path, parallel: bool
) -> None:
    wanted = (SUM, PRODUCT) if parallel else (SUM,)
    script = Script(
        calls(*wanted, text="First. ", thinking="Hm."),
        calls(PRODUCT, text="Then. "),
        says("Done."),
        says("Next."),
    )
    app = create_app(configuration(tmp_path, script, agents=[REMEMBERING]))
    async with open_client(app) as client:
        answered = replayed(build_output(await streamed(client)))
        assert [message["role"] for message in answered].count("tool") == len(wanted) + 1
        messages = [
            {"role": "user", "content": "Hello"},
            *answered,
            {"role": "user", "content": "And?"},
        ]
        assert join_deltas(await streamed(client, messages=messages)) == "Next."
    asked = script.requests[-1].messages
    assert len([call for message in asked for call in message.tool_calls]) == len(wanted) + 1
    assert len({call.id for message in asked for call in message.tool_calls}) == len(wanted) + 1
    with sqlite3.connect(tmp_path / "data" / "ai-agent-service.db") as database:
        ((nodes,),) = database.execute("SELECT count(*) FROM nodes").fetchall()
    assert nodes == 4, "two questions and two answers"


async def test_open_webuis_own_tools_come_back_beside_ours_without_a_call_twice(
    tmp_path: Path,
) -> None:
    script = Script(
        calls(SUM), calls(PRODUCT, ("weather", {"city": "Oslo"}), text="Both."), says("All done.")
    )
    async with open_client(
        create_app(configuration(tmp_path, script, agents=[REMEMBERING]))
    ) as client:
        chunks = await streamed(client, tools=[WEATHER])
        output = build_output(chunks)
        (theirs,) = [
            call
            for chunk in chunks
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls", [])
        ]
        output.append(
            {
                "type": "function_call",
                "id": theirs["id"],
                "call_id": theirs["id"],
                "name": "weather",
                "arguments": theirs["function"]["arguments"],
                "status": "completed",
            }
        )
        output.append(
            {
                "type": "function_call_output",
                "call_id": theirs["id"],
                "output": [{"type": "input_text", "text": "rain"}],
            }
        )
        messages = [{"role": "user", "content": "Hello"}, *replayed(output)]
        assert (
            join_deltas(await streamed(client, messages=messages, tools=[WEATHER])) == "All done."
        )
    asked = script.requests[-1].messages
    ids = [call.id for message in asked for call in message.tool_calls]
    assert len(ids) == len(set(ids)) == 3
    assert [message.text for message in asked if message.role == "tool"] == ["5", "6", "rain"]
    assert asked[1] == Message("user", "Hello")


CALL = ToolCall("c1", "fetch", '{"url": "https://a.example/page"}')


def result(content: str, **fields: Any) -> ToolResult:
    return ToolResult(call_id="c1", name="fetch", content=content, **fields)


def test_a_page_that_was_asked_for_is_the_source_of_what_came() -> None:
    assert find_links(CALL, result("See [this](https://b.example).")) == [
        Link("https://a.example/page", text="See [this](https://b.example).")
    ]
    assert find_links(CALL, result("Error: not found", is_error=True)) == []


def test_sources_are_found_in_results_that_are_json_or_markdown() -> None:
    found = json.dumps(
        {
            "results": [
                {"title": "One", "url": "https://a.example/1", "snippet": "s"},
                {"link": "https://a.example/2"},
            ]
        }
    )
    call = ToolCall("c1", "search", '{"query": "x"}')
    assert find_links(call, result(found)) == [
        Link("https://a.example/1", "One", "s"),
        Link("https://a.example/2"),
    ]
    one, image = "[One](https://a.example/1)", "![image](https://a.example/i.png)"
    text = f"Read {one} and {image} and {one}."
    assert find_links(call, result(text)) == [Link("https://a.example/1", "One")]
    assert (
        find_links(
            call,
            result(json.dumps([{"url": "javascript:alert(1)"}, {"url": "file:///etc/passwd"}])),
        )
        == []
    )
    many = json.dumps([{"url": f"https://a.example/{number}"} for number in range(100)])
    assert len(find_links(call, result(many))) == MAX_SOURCES
    assert find_links(ToolCall("c1", "x", "not json"), result("[" * 100_000)) == []
