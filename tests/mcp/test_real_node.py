"""Servers that others wrote for node: the reference server over every transport, and two that keep
something."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from ai_agent_service.config.server_definition import ServerDefinition
from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.mcp.connection import Connection
from ai_agent_service.tools.toolset import Toolset
from tests.support.events import until
from tests.support.mcp_connections import connected, context, run

pytestmark = [pytest.mark.xdist_group("npm-mcp"), pytest.mark.timeout(180)]


def node_server(servers: Path, name: str, *arguments: str, **changes: object) -> ServerDefinition:
    """The package `name`, run as a command."""
    entry = {
        "server_label": "server",
        "command": "node",
        "args": [str(servers / name / "dist" / "index.js"), *arguments],
        **changes,
    }
    return ServerDefinition.model_validate(entry)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@asynccontextmanager
async def everything_at(servers: Path, kind: str, port: int) -> AsyncGenerator[None, None]:
    """The reference server at `port`, over `streamableHttp` or `sse`."""
    script = str(servers / "server-everything" / "dist" / "index.js")
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        "node", script, kind, env={**os.environ, "PORT": str(port)}, stdout=quiet, stderr=quiet
    )
    try:
        async with asyncio.timeout(30):
            # a process of its own tells nobody that it listens
            while not await _answers(port):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield
    finally:
        process.kill()
        await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@asynccontextmanager
async def everything(servers: Path, transport: str) -> AsyncGenerator[Connection, None]:
    """The reference server, connected to over `transport`."""
    if transport == "stdio":
        async with connected(node_server(servers, "server-everything", "stdio")) as server:
            yield server
        return
    port = free_port()
    kind, path = ("sse", "sse") if transport == "sse" else ("streamableHttp", "mcp")
    definition = ServerDefinition.model_validate(
        {"server_label": "server", "server_url": f"http://127.0.0.1:{port}/{path}"}
    )
    async with everything_at(servers, kind, port), connected(definition) as server:
        yield server


@pytest.mark.parametrize("transport", ["stdio", "http", "sse"])
async def test_the_reference_server_works_over_every_transport(
    node_servers: Path, transport: str
) -> None:
    async with everything(node_servers, transport) as server:
        assert server.status.transport == transport
        assert (await run(server, "echo", message="hi")).content == "Echo: hi"
        assert (await run(server, "get-sum", a=1, b=2)).content == "The sum of 1 and 2 is 3."
        image = await run(server, "get-tiny-image")
        assert [image.url[:22] for image in image.images] == ["data:image/png;base64,"]
        structured = (await run(server, "get-structured-content", location="Chicago")).content
        assert json.loads(structured).keys() == {"temperature", "conditions", "humidity"}
        assert (await run(server, "get-resource-links", count=3)).content.count(
            "](demo://resource/dynamic/"
        ) == 3
        reference = (
            await run(server, "get-resource-reference", resourceType="Text", resourceId=1)
        ).content
        assert (
            "demo://resource/dynamic/text/1:\nResource 1: This is a plaintext resource" in reference
        )
        with pytest.raises(ToolError, match="message"):
            await run(server, "echo")
        answers = await asyncio.gather(
            *(run(server, "echo", message=str(number)) for number in range(20))
        )
        assert [answer.content for answer in answers] == [f"Echo: {number}" for number in range(20)]


@pytest.mark.parametrize("transport", ["stdio", "http", "sse"])
async def test_a_long_operation_tells_its_progress_and_can_be_cancelled(
    node_servers: Path, transport: str
) -> None:
    told: list[tuple[float, float | None]] = []
    around = msgspec.structs.replace(
        context(), on_progress=lambda progress, total, _: told.append((progress, total))
    )
    async with everything(node_servers, transport) as server:
        await run(server, "trigger-long-running-operation", around, duration=0.4, steps=2)
        await until(lambda: len(told) == 2)
        assert told == [(1, 2), (2, 2)]
        toolset = Toolset(server.tools, default_timeout=0.3)
        long = ToolCall(
            "c", "server__trigger-long-running-operation", '{"duration": 60, "steps": 1}'
        )
        result = await toolset.execute(long, context())
        assert result.content == "Error: the tool did not answer within 0.3 seconds and was stopped"
        assert (await run(server, "echo", message="after")).content == "Echo: after"
        assert server.status.restarts == 0


async def test_a_command_has_the_variables_of_its_definition_and_few_of_ours(
    node_servers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary")
    async with connected(
        node_server(node_servers, "server-everything", "stdio", env={"GREETING": "hello"})
    ) as server:
        variables = json.loads((await run(server, "get-env")).content)
    assert variables["GREETING"] == "hello"
    # LC_CTYPE is what Python gives its children where no locale is set, and a guard is a Python
    # program.
    assert variables.keys() <= {
        "GREETING",
        "HOME",
        "LOGNAME",
        "PATH",
        "SHELL",
        "TERM",
        "USER",
        "LC_CTYPE",
    }


async def test_the_reference_server_restarted_between_calls_serves_the_next(
    node_servers: Path,
) -> None:
    port = free_port()
    definition = ServerDefinition.model_validate(
        {"server_label": "server", "server_url": f"http://127.0.0.1:{port}/mcp"}
    )
    async with AsyncExitStack() as stack:
        async with everything_at(node_servers, "streamableHttp", port):
            server = await stack.enter_async_context(connected(definition))
            assert (await run(server, "echo", message="one")).content == "Echo: one"
        await stack.enter_async_context(everything_at(node_servers, "streamableHttp", port))
        # It may have been noticed that the server was gone, and then it is tried again after a
        # pause.
        await until(lambda: server.state == "ready", 30)
        assert (await run(server, "echo", message="two")).content == "Echo: two"


async def test_server_filesystem_keeps_to_its_folder(node_servers: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "other.txt").write_text("secret", encoding="utf-8")
    async with connected(
        node_server(node_servers, "server-filesystem", str(tmp_path / "mine"))
    ) as server:
        await run(server, "write_file", path=str(tmp_path / "mine" / "a.txt"), content="häuser")
        assert (tmp_path / "mine" / "a.txt").read_text(encoding="utf-8") == "häuser"
        assert (
            await run(server, "read_text_file", path=str(tmp_path / "mine" / "a.txt"))
        ).content == "häuser"
        assert "a.txt" in (await run(server, "list_directory", path=str(tmp_path / "mine"))).content
        with pytest.raises(ToolError, match="outside allowed directories"):
            await run(server, "read_text_file", path=str(tmp_path / "other.txt"))


async def test_server_memory_remembers(node_servers: Path, tmp_path: Path) -> None:
    definition = node_server(
        node_servers, "server-memory", env={"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")}
    )
    async with connected(definition) as server:
        await run(
            server,
            "create_entities",
            entities=[{"name": "Ada", "entityType": "person", "observations": ["counts"]}],
        )
    async with connected(definition) as server:
        graph = json.loads((await run(server, "read_graph")).content)
    assert [entity["name"] for entity in graph["entities"]] == ["Ada"]


async def test_an_image_that_server_filesystem_sends_twice_is_shown_once_and_not_as_text(
    node_servers: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 3000)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + b"x" * 3000)
    async with connected(node_server(node_servers, "server-filesystem", str(tmp_path))) as server:
        image = await run(server, "read_media_file", path=str(tmp_path / "a.png"))
        sound = await run(server, "read_media_file", path=str(tmp_path / "a.wav"))
    assert (len(image.images), image.content) == (1, "")
    assert sound.content == "[a sound (audio/wav, 3004 bytes), which cannot be shown]"
