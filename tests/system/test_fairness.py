"""What one caller does to the service costs other callers little: neither errors nor time."""

import asyncio
import re
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2
import msgspec
import pytest

from ai_agent_service.auth.keys.store import DEFAULT_RIGHTS, KeyStore
from ai_agent_service.auth.principal import Limits
from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest
from ai_agent_service.server.application import create_app
from ai_agent_service.storage.encryption import Cipher
from tests.support.clients import CHAT, asking, connected_raw
from tests.support.events import until
from tests.support.fake_provider import Script, says
from tests.support.keys import bearer
from tests.support.mcp_rogue import ROGUE
from tests.support.service import AGENT, configuration, serving

REQUESTS = 150
PAUSE = 0.01
"""Requests of the ordinary caller for one median, and the seconds between them."""

ALLOWANCE = 0.02
"""Seconds for which the median may differ besides: the machine is shared, and callers and service
share a thread here."""

ENDLESS_LINE = "(b'x' * 65536 for _ in iter(int, 1))"
WIDE_BODY = b'{"model": "helper", "metadata": [%b0], "messages": []}' % (b"0," * 2_000_000)
SLOTS = 4
SHARE = 2
"""Runs at once of the service and of the hostile caller's key."""


class Moody(Script):
    """Provider that does to each request what its message names."""

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield an answer."""
        text = request.messages[-1].text
        if text == "fails":
            raise ProviderUnavailableError("The provider answered 500.")
        if text == "waits":
            self.requests.append(request)
            await asyncio.Event().wait()
        while text == "endless":
            yield TextDelta("x" * 1000)
            await asyncio.sleep(0)
        if text == "many calls":
            wanted = [ToolCall(f"c{n}", "calculate", '{"expression": "1"}') for n in range(20_000)]
            yield ModelFinished("tool_calls", tuple(wanted), Usage(1, 1))
        elif text == "writes a huge line":
            assert "rogue__write" in [tool.name for tool in request.tools]
            arguments = msgspec.json.encode({"text": ENDLESS_LINE}).decode()
            yield ModelFinished("tool_calls", (ToolCall("c", "rogue__write", arguments),))
        else:
            for event in says("Hi"):
                assert not isinstance(event, Exception | asyncio.Event | float)
                yield event


def build_request(key: dict[str, str], message: str, *, stream: bool = False) -> bytes:
    """Return a request as the bytes that are sent."""
    body = msgspec.json.encode(asking(message, stream=stream))
    head = b"POST %b HTTP/1.1\r\nhost: service\r\nauthorization: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (CHAT.encode(), key["Authorization"].encode(), len(body)) + body


class Served:
    """The service, with the headers of a hostile and of an ordinary caller."""

    def __init__(self, address: str, client: httpx2.AsyncClient, script: Moody) -> None:
        self.address = address
        self.client = client
        self.script = script
        self.hostile: dict[str, str] = {}
        self.ordinary: dict[str, str] = {}

    async def measure(self) -> float:
        """Return the median of the ordinary caller's times in seconds; each request must be
        answered."""
        reader, writer = await connected_raw(self.address, b"")
        request = build_request(self.ordinary, "Hello")
        times = []
        for _ in range(REQUESTS):
            began = time.perf_counter()
            writer.write(request)  # in one piece, so that no delayed acknowledgement is measured
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            [length] = re.findall(rb"content-length: (\d+)", head)
            assert b'"Hi"' in await reader.readexactly(int(length))
            times.append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE)
        writer.close()
        return statistics.median(times)

    async def attack(self, message: str, *, stream: bool = False) -> int:
        """Send a hostile request and return the status of its answer."""
        body = asking(message, stream=stream)
        return (await self.client.post(CHAT, json=body, headers=self.hostile)).status_code


@asynccontextmanager
async def served(folder: Path) -> AsyncGenerator[Served, None]:
    """Serve over a socket, with a key for each of both callers."""
    rogue = {"server_label": "rogue", "command": sys.executable, "args": [ROGUE, "well"]}
    (folder / "mcp.json").write_text(msgspec.json.encode([rogue]).decode(), encoding="utf-8")
    agents = [{**AGENT, "resources": ["memory"], "allowed_mcp_servers": {"rogue": {}}}]
    script = Moody([])
    app = create_app(configuration(folder, script, agents=agents, max_concurrent_requests=SLOTS))
    async with (
        serving(app) as address,
        httpx2.AsyncClient(base_url=address, timeout=60) as client,
    ):
        service = Served(address, client, script)
        keys = KeyStore(app.state.service.memories.database, pepper=None, cipher=Cipher(()))
        limited = msgspec.structs.replace(DEFAULT_RIGHTS, limits=Limits(parallel=SHARE))
        service.hostile = bearer((await keys.create("hostile", limited)).text)
        service.ordinary = bearer((await keys.create("ordinary", DEFAULT_RIGHTS)).text)
        yield service


async def make_the_provider_fail(service: Served) -> None:
    """Have the provider answer 500 more often than opens a breaker."""
    for _ in range(7):
        assert await service.attack("fails") in (502, 503)
    assert await service.attack("Hello") == 503, "the hostile caller's breaker is open"


async def send_wide_bodies(service: Served) -> None:
    """Send a body of two million values."""
    answer = await service.client.post(CHAT, content=WIDE_BODY, headers=service.hostile)
    assert answer.status_code in (400, 429)


async def call_much(service: Served) -> None:
    """Have the model call tools 20,000 times in one step."""
    assert await service.attack("many calls") == 200


async def hear_an_endless_answer(service: Served) -> None:
    """Have the model answer without end."""
    assert await service.attack("endless") == 200


async def write_a_huge_line(service: Served) -> None:
    """Have an MCP server write a line without end."""
    assert await service.attack("writes a huge line") == 200


async def read_nothing(service: Served) -> None:
    """Ask for an endless stream and never read."""
    request = build_request(service.hostile, "endless", stream=True)
    async with AsyncExitStack() as held:
        for _ in range(SHARE + 1):
            reader, writer = await connected_raw(service.address, request)
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # as one that never reads
            held.callback(writer.close)
        await asyncio.Event().wait()


async def open_connections(service: Served) -> None:
    """Open connections and send half a head over each."""
    async with AsyncExitStack() as held:
        for _ in range(200):
            _, writer = await connected_raw(service.address, b"GET /health HTTP/1.1\r\nhost: se")
            held.callback(writer.close)
        await asyncio.Event().wait()


async def take_all_slots(service: Served) -> None:
    """Ask for more runs at once than the service has."""
    runs = [asyncio.create_task(service.attack("waits")) for _ in range(2 * SLOTS)]
    try:
        await until(lambda: sum(run.done() for run in runs) == len(runs) - SHARE)
        assert {run.result() for run in runs if run.done()} == {429}
        await asyncio.Event().wait()
    finally:
        for run in runs:
            run.cancel()


async def repeat(attack: Callable[[Served], Awaitable[None]], service: Served) -> None:
    """Attack again and again."""
    while True:
        await attack(service)


@pytest.mark.parametrize(
    "attack",
    [
        make_the_provider_fail,
        send_wide_bodies,
        call_much,
        hear_an_endless_answer,
        write_a_huge_line,
        read_nothing,
        open_connections,
        take_all_slots,
    ],
)
async def test_a_hostile_caller_costs_an_ordinary_one_little(
    tmp_path: Path, attack: Callable[[Served], Awaitable[None]]
) -> None:
    async with asyncio.timeout(120), served(tmp_path) as service:
        await service.measure()  # warms up
        quiet = await service.measure()
        attacking = asyncio.create_task(repeat(attack, service))
        try:
            await asyncio.sleep(0.2)
            disturbed = await service.measure()
            if attacking.done():
                attacking.result()
        finally:
            attacking.cancel()
            with suppress(asyncio.CancelledError):
                await attacking
        assert disturbed < 2 * quiet + ALLOWANCE
