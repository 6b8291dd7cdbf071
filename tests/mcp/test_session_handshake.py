"""Sessions with servers that begin with a handshake, lists on several pages, and what else may go
wrong between servers or calls."""

import asyncio
import json
import warnings
from pathlib import Path
from typing import Any

import mcp_types
import pytest
from mcp.server import Server
from mcp.server.mcpserver import Context, MCPServer

from ai_agent_service.config.read_servers import read_servers
from ai_agent_service.core.errors import ToolError
from ai_agent_service.mcp import connection as module
from tests.support.events import until
from tests.support.mcp_connections import SECRET, Name, call, connected, executed, run, with_secret
from tests.support.mcp_in_process import HandshakeOnly, connected_to
from tests.support.mcp_rogue_http import HttpRogue

# Servers that know only the protocol of 2025, whose sessions begin with a handshake


async def test_a_server_with_a_handshake_tells_of_changed_tools_in_the_stream_that_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REFRESH_PAUSE", 0.01)
    server: MCPServer[Any] = MCPServer("server")

    @server.tool()
    async def learn(ctx: Context[Any, Any]) -> str:
        server.add_tool(lambda: "sung", name="sing", description="Sings.")
        await ctx.session.send_tool_list_changed()
        return "learnt"

    app = HandshakeOnly(server.streamable_http_app())
    async with connected_to(app) as connection:
        await until(lambda: any(request.method == "GET" for request in app.requests))
        assert (await run(connection, "learn")).content == "learnt"
        await until(lambda: [tool.remote.name for tool in connection.tools] == ["learn", "sing"])
    assert app.asked("initialize")


async def test_questions_of_a_server_with_a_handshake_are_refused_and_the_call_ends() -> None:
    server: MCPServer[Any] = MCPServer("server")

    @server.tool()
    async def elicitation(ctx: Context[Any, Any]) -> str:
        return str(await ctx.elicit("Who are you?", Name))

    @server.tool()
    async def sampling(ctx: Context[Any, Any]) -> str:
        message = mcp_types.SamplingMessage(
            role="user", content=mcp_types.TextContent(text="Who are you?")
        )
        with warnings.catch_warnings(action="ignore"):
            return str(await ctx.session.create_message([message], max_tokens=5))

    @server.tool()
    async def roots(ctx: Context[Any, Any]) -> str:
        with warnings.catch_warnings(action="ignore"):
            return str(await ctx.session.list_roots())

    app = HandshakeOnly(server.streamable_http_app())
    async with connected_to(app) as connection:
        for name in ("elicitation", "sampling", "roots"):
            with pytest.raises(ToolError, match="not supported"):
                await run(connection, name)
        assert connection.status.restarts == 0
    refusals = [
        request.message["error"]["code"] for request in app.requests if "error" in request.message
    ]
    assert refusals == [mcp_types.INVALID_REQUEST] * 3


async def test_a_server_with_a_handshake_is_told_which_call_is_cancelled() -> None:
    server: MCPServer[Any] = MCPServer("server")
    cancelled = asyncio.Event()

    @server.tool()
    async def wait() -> str:
        try:
            await asyncio.sleep(600)
        finally:
            cancelled.set()
        return "never"

    app = HandshakeOnly(server.streamable_http_app())
    async with connected_to(app) as connection:
        assert (await executed(connection, "server__wait", "{}", timeout=1)).is_error
        async with asyncio.timeout(10):
            await cancelled.wait()
        assert (connection.state, connection.status.restarts) == ("ready", 0)
    [asked], [told] = app.asked("tools/call"), app.asked("notifications/cancelled")
    assert told["params"]["requestId"] == asked["id"]


async def test_the_header_goes_with_the_stream_and_the_goodbye_too() -> None:
    server: MCPServer[Any] = MCPServer("server")
    app = HandshakeOnly(server.streamable_http_app())
    async with connected_to(app, header={"X-Key": "opens"}):
        await until(lambda: any(request.method == "GET" for request in app.requests))
    assert {request.method for request in app.requests} == {"POST", "GET", "DELETE"}
    assert {request.headers.get("x-key") for request in app.requests} == {"opens"}


# Lists on several pages


def paged(*pages: tuple[list[str], str | None]) -> Server[Any]:
    """A server whose pages of tools each name the number of the next, or none."""

    async def page(
        _: Any, params: mcp_types.PaginatedRequestParams | None
    ) -> mcp_types.ListToolsResult:
        names, following = pages[int((params and params.cursor) or 0)]
        tools = [mcp_types.Tool(name=name, input_schema={"type": "object"}) for name in names]
        return mcp_types.ListToolsResult(tools=tools, next_cursor=following)

    return Server("server", on_list_tools=page)


async def test_tools_on_all_pages_are_offered() -> None:
    server = paged((["a", "b"], "1"), ([], "2"), (["c"], None))
    async with connected_to(server.streamable_http_app()) as connection:
        assert [tool.remote.name for tool in connection.tools] == ["a", "b", "c"]


# What else may go wrong between two servers, or between two calls


async def test_a_redirect_of_a_call_takes_no_key_along_and_fails_only_the_call(
    tmp_path: Path, rogue: HttpRogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = HttpRogue()
    await elsewhere.start()
    async with connected(with_secret(tmp_path, rogue, monkeypatch)) as connection:
        rogue.redirects_to = f"http://127.0.0.1:{elsewhere.port}/mcp?key={SECRET}"
        with pytest.raises(ToolError) as refused:
            await call(connection, "echo")
        rogue.redirects_to = ""
        assert await call(connection, "echo", "hi") == "hi"
    await elsewhere.stop()
    assert elsewhere.heads == []
    assert SECRET not in str(refused.value)


class Leaving(HttpRogue):
    """A server that may take no new connections and yet answer on those that are open."""

    def take_no_more(self) -> None:
        """Closes the socket that it listens at, and nothing else."""
        assert self._server is not None
        self._server.close()


async def test_a_call_in_flight_is_not_made_again_while_others_find_nobody() -> None:
    server = Leaving()
    await server.start()
    arrived, dropped = asyncio.Event(), asyncio.Event()

    async def hold(text: str) -> None:
        if text == "sent":
            arrived.set()
            await dropped.wait()

    server.on_call = hold
    async with connected(server.definition) as connection:
        sent = asyncio.ensure_future(call(connection, "echo", "sent"))
        async with asyncio.timeout(10):
            await arrived.wait()
        server.take_no_more()
        others = await asyncio.gather(
            *(call(connection, "echo", str(number)) for number in range(5)), return_exceptions=True
        )
        assert not any(
            isinstance(other, BaseException) and not isinstance(other, ToolError)
            for other in others
        )
        assert any(isinstance(other, ToolError) for other in others), "somebody was found after all"
        server.stop_listening()
        dropped.set()
        with pytest.raises(ToolError, match="not known whether it was carried out"):
            await sent
        await server.start()
        await until(lambda: connection.state == "ready", 30)
        assert await call(connection, "echo", "after") == "after"
    await server.stop()
    assert server.calls.count("sent") == 1


@pytest.mark.parametrize(
    "secret", [SECRET, "canary  77", "canary/77 %x"], ids=["plain", "with two spaces", "with signs"]
)
@pytest.mark.parametrize("how", ["as an error", "as a result that is an error"])
async def test_a_server_that_repeats_the_key_in_a_refusal_does_not_tell_it_to_the_model(
    tmp_path: Path, rogue: HttpRogue, secret: str, how: str
) -> None:
    entry = {
        "server_label": "rogue",
        "server_url": f"http://127.0.0.1:{rogue.port}/mcp",
        "header": {"X-Key": "${KEY}"},
    }
    (tmp_path / "mcp.json").write_text(json.dumps([entry]), encoding="utf-8")
    servers, faults = read_servers(tmp_path / "mcp.json", {"KEY": secret})
    assert faults == []
    words = f"the key {secret} may not do that"
    rogue.error = {"code": -32602, "message": words} if how == "as an error" else None
    rogue.result = json.dumps({"isError": True, "content": [{"type": "text", "text": words}]})
    async with connected(servers.definitions[0]) as connection:
        result = await executed(connection, "rogue__echo", "{}")
    assert result.content == "Error: the key [redacted] may not do that"
