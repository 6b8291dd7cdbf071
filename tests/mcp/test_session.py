"""Sessions with servers: what is passed on, what is refused, what is repaired, and what never comes
out."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import mcp_types
import pytest
from mcp.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.errors import ToolError
from ai_agent_service.mcp import connection as module
from ai_agent_service.mcp.connection import Connection
from tests.support.events import until
from tests.support.mcp_connections import (
    SECRET,
    Name,
    call,
    connected,
    executed,
    opened,
    run,
    with_secret,
)
from tests.support.mcp_rogue import define_rogue
from tests.support.mcp_rogue_http import HttpRogue
from tests.support.service import serving


@asynccontextmanager
async def served(server: MCPServer[Any] | Server[Any]) -> AsyncGenerator[Connection, None]:
    """A server of the library, connected to; it speaks the protocol of 2026."""
    async with (
        serving(server.streamable_http_app()) as address,
        connected(
            ServerDefinition(server_label="server", server_url=f"{address}/mcp")
        ) as connection,
    ):
        yield connection


# Tools


async def test_tools_that_appear_later_are_offered_once_the_server_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REFRESH_PAUSE", 0.01)
    server: MCPServer[Any] = MCPServer("server")

    @server.tool()
    async def learn(ctx: Context[Any, Any]) -> str:
        server.add_tool(lambda: "sung", name="sing", description="Sings.")
        await ctx.notify_tools_changed()
        return "learnt"

    async with served(server) as connection:
        assert (await run(connection, "learn")).content == "learnt"
        await until(lambda: [tool.remote.name for tool in connection.tools] == ["learn", "sing"])
        assert (await run(connection, "sing")).content == "sung"


async def test_a_change_before_the_subscription_is_acknowledged_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REFRESH_PAUSE", 0.01)
    names = ["one"]
    listed = asyncio.Event()
    handler = ListenHandler(InMemorySubscriptionBus())

    async def list_tools(_: Any, params: Any) -> mcp_types.ListToolsResult:
        found = [mcp_types.Tool(name=name, input_schema={"type": "object"}) for name in names]
        listed.set()
        return mcp_types.ListToolsResult(tools=found)

    async def subscribed(ctx: Any, params: Any) -> mcp_types.SubscriptionsListenResult:
        await listed.wait()
        if "two" not in names:
            names.append("two")  # nobody is subscribed yet, so nobody is told
        return await handler(ctx, params)

    server: Server[Any] = Server(
        "server", on_list_tools=list_tools, on_subscriptions_listen=subscribed
    )
    async with served(server) as connection:
        await until(lambda: [tool.remote.name for tool in connection.tools] == ["one", "two"])


async def test_schemas_are_completed_for_the_provider(rogue: HttpRogue) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {
            "a": {"anyOf": [{"$ref": "#/$defs/A"}, {"type": "null"}]},
            "b": {"enum": [1, "x", None]},
        },
        "$defs": {"A": {"type": "object", "additionalProperties": False}},
        "required": ["a"],
        "x-own": {"deep": [1.5]},
    }
    rogue.tools = [
        {"name": "a", "title": "T", "inputSchema": schema},
        {"name": "b", "description": "B", "inputSchema": {"type": "object"}},
    ]
    async with connected(rogue.definition) as connection:
        a, b = (tool.spec for tool in connection.tools)
        assert connection.tools[0].remote.parameters == schema
    assert (a.name, a.description) == ("rogue__a", "T")
    del schema["x-own"], schema["$defs"]
    schema["properties"]["a"]["anyOf"][0] = {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
    assert a.parameters == schema
    assert (b.description, b.parameters) == ("B", {"type": "object", "properties": {}})


async def test_a_tool_that_cannot_be_offered_costs_nothing_but_itself(
    rogue: HttpRogue, caplog: pytest.LogCaptureFixture
) -> None:
    rogue.tools = [
        {"name": "a", "inputSchema": {"type": "object"}},
        {"name": "b", "inputSchema": {}},
        {"name": "c", "inputSchema": {"type": "string"}},
        {"name": "d", "execution": {"taskSupport": "required"}},
        {"name": 5},
    ]
    async with connected(rogue.definition) as connection:
        status = connection.status
    assert (status.tools, status.state) == (("a", "b"), "ready")
    assert sorted(status.problems) == [
        "an entry of its list has no name",
        "the tool 'c' is left out: the schema of its arguments does not accept an object",
        "the tool 'd' runs only as a task, which is not supported",
    ]
    assert [record.message for record in caplog.records].count("mcp.left_out") == 3


async def test_a_tool_that_breaks_its_own_schema_still_gives_its_result(rogue: HttpRogue) -> None:
    output = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    rogue.tools = [{"name": "echo", "inputSchema": {"type": "object"}, "outputSchema": output}]
    rogue.result = (
        '{"content": [{"type": "text", "text": "hi"}], "structuredContent": {"n": "none"}}'
    )
    async with connected(rogue.definition) as connection:
        assert await call(connection, "echo") == 'hi\n\n{"n": "none"}'


async def test_an_odd_result_reaches_the_model_as_it_is(rogue: HttpRogue) -> None:
    async with connected(rogue.definition) as connection:
        for rogue.result in ('{"content": 5}', '"5"', '[{"text": 5, "type": "text"}]'):
            assert await call(connection, "echo") == "5"
        rogue.result = ""
        assert await call(connection, "echo", "hi") == "hi"
        assert connection.status.restarts == 0


async def test_numbers_reach_the_server_as_numbers(rogue: HttpRogue) -> None:
    async with connected(rogue.definition) as connection:
        arguments = (
            '{"a": 0.1, "b": 12345678901234567890123, "c": [0.1234567890123456789012], "d": {"e":'
            " 1e22}}"
        )
        await executed(connection, "rogue__echo", arguments)
        sent = json.loads(rogue.arguments[-1])["params"]["arguments"]
        assert sent == {
            "a": 0.1,
            "b": 12345678901234567890123,
            "c": [0.12345678901234568],
            "d": {"e": 1e22},
        }
        assert isinstance(sent["b"], int)
        too_large = await executed(connection, "rogue__echo", '{"a": 1e400}')
    assert (too_large.is_error, len(rogue.calls)) == (True, 1)


# Large and broken text


async def test_a_result_of_megabytes_in_one_event_arrives(rogue: HttpRogue) -> None:
    rogue.as_event = True
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3_000_001)).decode()
    image = {"type": "image", "mimeType": "image/png", "data": picture}
    rogue.result = json.dumps({"content": [image, {"type": "text", "text": "b" * 3_000_000}]})
    async with connected(rogue.definition) as connection:
        result = await executed(connection, "rogue__echo", "{}")
    assert result.images[0].url == f"data:image/png;base64,{picture}"
    assert result.content.endswith("[cut here: 65536 of 3000000 bytes are shown]")


@pytest.mark.parametrize("as_event", [True, False], ids=["as an event", "as a body"])
async def test_nul_and_halves_of_surrogate_pairs_are_replaced(
    rogue: HttpRogue, as_event: bool
) -> None:
    rogue.as_event = as_event
    rogue.result = r'{"content": [{"type": "text", "text": "a\u0000b\ud800c\udc00d\ud83d\ude00"}]}'
    async with connected(rogue.definition) as connection:
        result = await executed(connection, "rogue__echo", "{}")
    assert (result.is_error, result.content) == (False, "a\ufffdb\ufffdc\ufffdd\U0001f600")


async def test_halves_of_surrogate_pairs_that_a_command_writes_are_replaced(tmp_path: Path) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        result = await executed(connection, "rogue__echo", r'{"text": "a\u0000"}')
        assert result.content == "a\ufffd"
        result = await executed(connection, "rogue__half", "{}")
        assert (result.is_error, result.content) == (False, "a\ufffdb")


# A session that is gone


@pytest.mark.parametrize(
    "forgotten",
    [
        ("404 Not Found", ""),
        (
            "400 Bad Request",
            '{"jsonrpc": "2.0", "error": {"code": -32000, "message": "Bad Request"}}',
        ),
    ],
)
async def test_a_session_that_the_server_forgot_is_renewed_and_the_call_made_once(
    rogue: HttpRogue, forgotten: tuple[str, str]
) -> None:
    rogue.forgotten = forgotten
    async with connected(rogue.definition) as connection:
        await call(connection, "echo", "one")
        rogue.forget_sessions()
        assert await call(connection, "echo", "two") == "two"
        assert (connection.state, connection.status.restarts) == ("ready", 1)
    assert rogue.calls == ["one", "two"]


async def test_a_session_that_was_forgotten_is_renewed_before_anyone_needs_it(
    rogue: HttpRogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.05)
    async with connected(rogue.definition) as connection:
        rogue.forget_sessions()
        await until(lambda: connection.status.restarts == 1 and connection.status.state == "ready")
    assert rogue.calls == []


async def test_a_call_that_was_sent_is_not_made_again_because_another_found_nobody(
    rogue: HttpRogue,
) -> None:
    async with connected(rogue.definition) as connection:
        arrived = asyncio.Event()

        async def wait(text: str) -> None:
            if text == "sent":
                arrived.set()
                await asyncio.sleep(600)

        rogue.on_call = wait
        sent = asyncio.ensure_future(call(connection, "echo", "sent"))
        await arrived.wait()
        rogue.stop_listening()
        results = await asyncio.gather(
            sent,
            *(call(connection, "echo", str(number)) for number in range(5)),
            return_exceptions=True,
        )
        await rogue.start()
        rogue.on_call = None
        await until(lambda: connection.state == "ready", 30)
        assert await call(connection, "echo", "after") == "after"
    assert isinstance(results[0], ToolError)
    assert rogue.calls.count("sent") == 1


@pytest.mark.parametrize("stays", [True, False], ids=["the server stays", "the server is gone"])
@pytest.mark.parametrize(
    "event",
    ["event: message\nid: 7\ndata: \n\n", ": nothing yet\n\n"],
    ids=["to be resumed", "not to be resumed"],
)
async def test_an_answer_that_breaks_off_fails_the_call_which_is_not_made_again(
    rogue: HttpRogue, event: str, stays: bool
) -> None:
    async with connected(rogue.definition) as connection:
        rogue.cuts_off = event
        failed = asyncio.ensure_future(call(connection, "echo"))
        await until(lambda: len(rogue.calls) == 1)
        if not stays:
            rogue.stop_listening()
        with pytest.raises(ToolError, match="not known whether"):
            await failed
        rogue.cuts_off = ""
        if not stays:
            await rogue.start()
            await until(lambda: connection.state == "ready", 30)
        assert await call(connection, "echo", "after") == "after"
        assert connection.status.restarts == 0 or not stays
    assert rogue.calls == [event, "after"]


async def test_a_call_that_is_forbidden_leaves_the_server_to_others(rogue: HttpRogue) -> None:
    async with connected(rogue.definition) as connection:
        rogue.refuses = "403 Forbidden"
        with pytest.raises(ToolError, match="HTTP 403 Forbidden"):
            await call(connection, "echo")
        rogue.refuses = ""
        assert await call(connection, "echo", "after") == "after"
        assert connection.status.restarts == 0


# Secrets


async def test_the_header_goes_with_every_request_and_into_no_message(
    tmp_path: Path,
    rogue: HttpRogue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with connected(with_secret(tmp_path, rogue, monkeypatch)) as connection:
        assert await call(connection, "echo", "hi") == "hi"
        assert all(
            f"authorization: bearer {SECRET}" in head.lower() and f"key={SECRET}" in head
            for head in rogue.heads
        )
        rogue.refuses = "401 Unauthorized"  # and its body has all that it was sent
        with pytest.raises(ToolError) as refused:
            await call(connection, "echo", "hi")
        await until(lambda: connection.state == "down")
        assert (
            connection.error
            == "HTTP 401 Unauthorized; check the header and the variables in its definition"
        )
        assert SECRET not in f"{refused.value} {connection.status}"
        rogue.refuses = "500 Internal Server Error"
        await until(lambda: connection.error == "HTTP 500 Internal Server Error")
        assert SECRET not in str(connection.status)
    assert {record.message for record in caplog.records} >= {"mcp.ready", "mcp.down"}
    assert SECRET not in " ".join(str(vars(record)) for record in caplog.records)


async def test_a_refusal_in_the_servers_own_words_is_told_without_secrets(
    tmp_path: Path, rogue: HttpRogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(with_secret(tmp_path, rogue, monkeypatch)) as connection:
        rogue.error = {"code": -32602, "message": f"the key {SECRET} may not do that"}
        with pytest.raises(ToolError, match=r"^the key \[redacted\] may not do that$"):
            await call(connection, "echo")


async def test_a_redirect_elsewhere_takes_no_key_along(
    tmp_path: Path, rogue: HttpRogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = HttpRogue()
    await elsewhere.start()
    rogue.redirects_to = f"http://127.0.0.1:{elsewhere.port}/mcp"
    async with opened(with_secret(tmp_path, rogue, monkeypatch)) as servers:
        await until(lambda: servers["rogue"].state == "down")
        assert servers["rogue"].error is not None
    await elsewhere.stop()
    assert elsewhere.heads == []


# What a server asks of its host


async def test_questions_of_a_server_are_refused_and_the_call_ends() -> None:
    server: MCPServer[Any] = MCPServer("server")

    @server.tool()
    async def ask_the_user(ctx: Context[Any, Any]) -> str:
        return str(await ctx.elicit("Who are you?", Name))

    @server.tool()
    async def ask_the_model(ctx: Context[Any, Any]) -> str:
        message = mcp_types.SamplingMessage(
            role="user", content=mcp_types.TextContent(text="Who are you?")
        )
        return str(await ctx.session.create_message([message], max_tokens=5))

    @server.tool()
    async def fine() -> str:
        return "fine"

    async with served(server) as connection:
        for name in ("ask_the_user", "ask_the_model"):
            with pytest.raises(ToolError) as refused:
                await run(connection, name)
            assert str(refused.value)
        assert (await run(connection, "fine")).content == "fine"
        assert connection.status.restarts == 0


@pytest.mark.parametrize("endless", [False, True], ids=["a question", "only a state, for ever"])
async def test_a_tool_that_answers_with_a_question_ends_with_a_refusal(endless: bool) -> None:
    async def list_tools(_: Any, params: Any) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(
            tools=[mcp_types.Tool(name="ask", input_schema={"type": "object"})]
        )

    async def call_tool(_: Any, params: Any) -> mcp_types.InputRequiredResult:
        if endless:
            return mcp_types.InputRequiredResult(request_state="again")
        schema: Any = {"type": "object", "properties": {"name": {"type": "string"}}}
        form = mcp_types.ElicitRequest(
            params=mcp_types.ElicitRequestFormParams(message="Who?", requested_schema=schema)
        )
        return mcp_types.InputRequiredResult(input_requests={"q": form})

    async with served(
        Server("server", on_list_tools=list_tools, on_call_tool=call_tool)
    ) as connection:
        with pytest.raises(ToolError, match="more and more input" if endless else "not supported"):
            await run(connection, "ask")
        assert connection.status.restarts == 0


@pytest.mark.parametrize("method", ["elicitation/create", "sampling/createMessage", "roots/list"])
async def test_questions_of_a_command_are_refused_as_the_protocol_says(
    tmp_path: Path, method: str
) -> None:
    async with connected(define_rogue("well", tmp_path)) as connection:
        answer = json.loads(await call(connection, "ask", method))
    assert answer["error"]["message"]
    assert "result" not in answer


async def test_a_cancelled_call_is_cancelled_at_the_server_and_others_go_on() -> None:
    server: MCPServer[Any] = MCPServer("server")
    cancelled = asyncio.Event()

    @server.tool()
    async def wait() -> str:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    @server.tool()
    async def fine() -> str:
        return "fine"

    async with served(server) as connection:
        result = await executed(connection, "server__wait", "{}", timeout=0.3)
        assert result.is_error
        async with asyncio.timeout(10):
            await cancelled.wait()
        assert (await run(connection, "fine")).content == "fine"
