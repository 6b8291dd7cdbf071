"""HTTP within bounds: heads, trailers and waits, over a real socket."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from ai_agent_service.core.bounds import MAX_HEAD_BYTES, MAX_HEADERS
from ai_agent_service.core.events import TextDelta
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.server.application import create_app
from ai_agent_service.server.http1 import BoundedProtocol
from tests.support.clients import Watched, asking, connected, connected_raw
from tests.support.fake_provider import Script, says
from tests.support.processes import serving as process_serving
from tests.support.raw_http import parsed, read_refusal, refused, sent
from tests.support.service import configuration, serving

GET = b"GET /health HTTP/1.1\r\nhost: service\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: service\r\ncontent-type: application/json\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nhost: service\r\nconnection: close\r\n\r\n"
CANARY = b"CANARY-7d1e"


class Hasty(BoundedProtocol):
    """The protocol with little patience."""

    HEAD_SECONDS = 0.4
    BODY_SECONDS = 0.4


@asynccontextmanager
async def served(
    folder: Path, script: Script | None = None, *, protocol: type[BoundedProtocol] = BoundedProtocol
) -> AsyncGenerator[str, None]:
    """The service over a socket; gives its address."""
    async with (
        serving(
            create_app(configuration(folder, script or Script(says("Hi")))), protocol
        ) as address,
        asyncio.timeout(20),
    ):
        yield address


def chunked(body: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(body), extension, body)


BODY = json.dumps(asking()).encode()

# The head


@pytest.mark.parametrize(
    "pieces",
    [
        (GET, b"a: " + CANARY + b"x" * MAX_HEAD_BYTES, b"\r\n\r\n"),
        (GET, b"a: ", *[CANARY * 6000] * 400),
        (GET, b"a" * 100_000_000),
        (b"GET /" + CANARY + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",),
        (GET, *[b"a: " + b"x" * 1000 + b"\r\n"] * 70, b"\r\n"),
        (GET, *[b"a: b\r\n"] * MAX_HEADERS, b"\r\n"),
        (GET, *[b"a:\r\n"] * 100_000),
    ],
    ids=[
        "one value",
        "an endless value",
        "an endless name",
        "the address",
        "in all",
        "too many",
        "endlessly many",
    ],
)
async def test_a_head_without_measure_is_a_431(tmp_path: Path, pieces: tuple[bytes, ...]) -> None:
    began = time.perf_counter()
    async with served(tmp_path) as address:
        error = await refused(address, *pieces, status=431)
    assert error["code"] == "headers_too_large"
    assert CANARY.decode() not in str(error)
    assert time.perf_counter() - began < 5


async def test_a_head_just_within_measure_is_answered(tmp_path: Path) -> None:
    size = MAX_HEAD_BYTES - len("/healthhostserviceconnectionclosea")
    rest = b"connection: close\r\na: " + b"x" * size + b"\r\n"
    async with served(tmp_path) as address:
        assert parsed(await sent(address, GET + rest, b"\r\n"))[0] == 200
        many = b"connection: close\r\n" + b"a: b\r\n" * (MAX_HEADERS - 2)
        assert parsed(await sent(address, GET + many + b"\r\n"))[0] == 200


async def test_a_large_body_in_one_piece_with_its_head_is_no_large_head(tmp_path: Path) -> None:
    body = json.dumps(asking("x" * 200_000)).encode()
    head = POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with served(tmp_path) as address:
        assert parsed(await sent(address, head + body))[0] == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + CANARY + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + CANARY + "ä".encode("latin-1") + b" HTTP/1.1\r\n\r\n",
        GET + CANARY + b"\r\n\r\n",
        GET + b"a: " + CANARY + b"\x00\r\n\r\n",
        POST + b"content-length: " + CANARY + b"\r\n\r\n",
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        CHUNKED + CANARY + b"\r\n",
        b"CONNECT " + CANARY + b":443 HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_a_400_in_openais_shape(tmp_path: Path, garbage: bytes) -> None:
    async with served(tmp_path) as address:
        error = await refused(address, garbage)
    assert error["code"] == "invalid_http"
    assert CANARY.decode() not in str(error)


@pytest.mark.parametrize(
    ("request_bytes", "method", "status", "code"),
    [
        (b"nonsense\r\n\r\n", "", 400, "invalid_http"),
        (GET + b"a: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n", "GET", 431, "headers_too_large"),
    ],
)
async def test_what_the_protocol_refuses_is_counted_and_has_a_line_in_the_access_log(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    request_bytes: bytes,
    method: str,
    status: int,
    code: str,
) -> None:
    caplog.set_level("INFO", "access")
    async with served(tmp_path) as address:
        await refused(address, request_bytes, status=status)
        counted = parsed(await sent(address, METRICS))[2].decode()
    [line] = [vars(each) for each in caplog.records if vars(each).get("error") == code]
    assert (line["msg"], line["method"], line["status"]) == ("request", method, status)
    assert line["client"] == "127.0.0.1"
    label = method or "other"
    series = f'aas_requests_total{{method="{label}",route="unknown",status="{status}"}} 1.0'
    assert series in counted
    assert f'aas_errors_total{{code="{code}"}} 1.0' in counted


UPGRADE = (
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
)
"""What Java's client offers with its first request."""


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("split", [False, True], ids=["one piece", "split"])
async def test_the_body_of_a_request_that_offers_an_upgrade_is_its_body(
    tmp_path: Path, framing: str, split: bool
) -> None:
    chunks = b"transfer-encoding: chunked\r\n\r\n%b0\r\n\r\n" % chunked(BODY)
    request = (
        POST
        + UPGRADE
        + (chunks if framing == "chunks" else b"content-length: %d\r\n\r\n%b" % (len(BODY), BODY))
    )
    following = GET + b"connection: close\r\n\r\n"
    pieces = (request[:-60], request[-60:], following) if split else (request + following,)
    async with served(tmp_path) as address:
        answer = await sent(address, *pieces)
    status, _, first = parsed(answer)
    assert (status, json.loads(first)["object"]) == (200, "chat.completion")
    assert parsed(answer.partition(first)[2])[0] == 200
    assert answer.count(b"HTTP/1.1 ") == 2


async def test_nothing_is_smuggled_behind_an_upgrade(tmp_path: Path) -> None:
    inner = GET + b"\r\n"
    head = (
        b"POST /nothing HTTP/1.1\r\nhost: service\r\nconnection: upgrade, close\r\nupgrade: x\r\n"
    )
    head += b"content-length: %d\r\n\r\n" % len(inner)
    async with served(tmp_path) as address:
        for pieces in ((head + inner,), (head, inner)):
            answer = await sent(address, *pieces)
            assert answer.count(b"HTTP/1.1 ") == 1
            assert parsed(answer)[0] == 404


@pytest.mark.parametrize("length", [b"", b"content-length: 0\r\n", b"content-length: 00\r\n"])
async def test_a_request_behind_an_upgrade_without_a_body_is_answered(
    tmp_path: Path, length: bytes
) -> None:
    async with served(tmp_path) as address:
        answer = await sent(
            address, GET + UPGRADE + length + b"\r\n" + GET + b"connection: close\r\n\r\n"
        )
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_requests_that_wait_for_others_are_few(tmp_path: Path) -> None:
    flood = (GET + b"\r\n") * 2000
    async with served(tmp_path) as address:
        answer = await sent(address, *[flood] * 50)
        assert answer.count(b"HTTP/1.1 200") <= 20
        assert parsed(await sent(address, GET + b"connection: close\r\n\r\n"))[0] == 200
        few = await sent(address, (GET + b"\r\n") * 8 + GET + b"connection: close\r\n\r\n")
    assert few.count(b"HTTP/1.1 200") == 9


async def test_the_watch_over_a_connection_that_was_refused_fails_at_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, protocol=Hasty) as address:
        reader, writer = await connected_raw(
            address, b"GET http://x HTTP/1.1\r\nhost: service\r\n\r\n"
        )
        await asyncio.sleep(2 * Hasty.HEAD_SECONDS)
        writer.close()
        assert parsed(await reader.read())[0] == 400
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_upgrade_that_is_not_offered_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = (
        GET + b"connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-version:"
        b" 13\r\nsec-websocket-key: x\r\n\r\n"
    )
    async with served(tmp_path) as address:
        reader, writer = await connected_raw(address, head)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert "WebSocket" not in caplog.text


# What a body is framed with


@pytest.mark.parametrize(
    "pieces",
    [
        (chunked(BODY), b"0\r\na: ", *[b"x" * 65536] * 400),
        (chunked(BODY), b"0\r\n", *[b"a: " + b"x" * 1000 + b"\r\n"] * 20_000),
        (b"5;", *[b"x" * 65536] * 400),
        (b"5;a=", *[b"x" * 65536] * 400),
    ],
    ids=["one trailer", "many trailers", "an extension", "an extension's value"],
)
async def test_trailers_and_extensions_without_measure_are_refused(
    tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    script = Script(says("Hi"))
    async with served(tmp_path, script) as address:
        assert (await refused(address, CHUNKED, *pieces))["code"] == "invalid_http"
    assert script.requests == []


async def test_chunks_with_extensions_and_trailers_are_taken(tmp_path: Path) -> None:
    pieces = [chunked(BODY[place : place + 1], b";a=b") for place in range(len(BODY))]
    async with served(tmp_path) as address:
        assert (
            parsed(await sent(address, CHUNKED, b"".join(pieces), b"0\r\na: b\r\nc: d\r\n\r\n"))[0]
            == 200
        )


async def test_trailers_are_no_headers(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for done in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{done}.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(app) as address:
        await sent(
            address,
            CHUNKED + chunked(BODY) + b"0\r\nauthorization: Bearer x\r\nhost: other\r\n\r\n",
        )
    assert [name for name, _ in seen] == [
        b"host",
        b"content-type",
        b"transfer-encoding",
        b"connection",
    ]
    assert (b"host", b"service") in seen


# Waits


@pytest.mark.parametrize(
    "head",
    [b"", b"GET", GET, b"\r\n" * 3],
    ids=["nothing", "a method", "half a head", "empty lines"],
)
async def test_a_head_that_does_not_come_ends_the_connection(tmp_path: Path, head: bytes) -> None:
    async with served(tmp_path, protocol=Hasty) as address:
        assert await sent(address, head) == b""


async def test_the_first_request_of_a_connection_may_be_refused_in_peace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path, protocol=Hasty) as address:
        reader, writer = await connected_raw(address, b"CONNECT nowhere:443 HTTP/1.1\r\n\r\n")
        read_refusal(await reader.read(), 400)
        await asyncio.sleep(0.6)
        writer.close()
    assert "Exception in callback" not in caplog.text


async def test_a_head_that_drips_ends_the_connection(tmp_path: Path) -> None:
    async with served(tmp_path, protocol=Hasty) as address:
        reader, writer = await connected_raw(address, GET)

        async def drip() -> None:
            while True:
                writer.write(b"a: b\r\n")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            pass
        finally:
            dripping.cancel()
            writer.close()


async def test_the_next_head_has_its_time_too(tmp_path: Path) -> None:
    async with served(tmp_path, protocol=Hasty) as address:
        reader, writer = await connected_raw(address, GET + b"\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        await asyncio.sleep(0.5)  # a connection at rest is kept
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        writer.write(GET)
        assert await reader.read() == b""
        writer.close()


async def test_empty_lines_do_not_keep_a_connection(tmp_path: Path) -> None:
    async with served(tmp_path, protocol=Hasty) as address:
        reader, writer = await connected_raw(address, GET + b"\r\n")
        await reader.readuntil(b"}")
        writer.write(b"\r\n")
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize("drip", [False, True], ids=["it stalls", "it drips"])
async def test_a_body_that_does_not_come_ends_the_connection(tmp_path: Path, drip: bool) -> None:
    script = Script(says("Hi"))
    async with served(tmp_path, script, protocol=Hasty) as address:
        reader, writer = await connected_raw(address, POST + b"content-length: 1000\r\n\r\n{")
        reading = asyncio.create_task(reader.read())
        while drip and not reading.done():
            writer.write(b" ")
            await asyncio.sleep(0.05)
        assert await reading == b""
        writer.close()
    assert script.requests == []


async def test_a_slow_answer_is_waited_for_though_the_next_head_has_begun(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with served(
        tmp_path, Script([TextDelta("a"), gate, ModelFinished("stop")]), protocol=Hasty
    ) as address:
        reader, writer = await connected(address, asking(stream=True))
        await reader.readuntil(b"\n\n")
        writer.write(b"\r\nGET")
        await asyncio.sleep(1)
        gate.set()
        await reader.readuntil(b"[DONE]")
        writer.close()


async def test_a_body_that_nobody_waits_for_ends_the_connection(tmp_path: Path) -> None:
    app = create_app(configuration(tmp_path, max_request_bytes=2048))
    async with serving(app, Hasty) as address, asyncio.timeout(20):
        reader, writer = await connected_raw(address, POST + b"transfer-encoding: chunked\r\n\r\n")
        answer = bytearray()

        async def read() -> None:
            with contextlib.suppress(ConnectionError):  # what is sent after the end resets it
                while piece := await reader.read(65536):
                    answer.extend(piece)

        reading = asyncio.create_task(read())
        while not reading.done():  # for ever, if it were taken for ever
            writer.write(chunked(b"[" * 4096))
            await asyncio.sleep(0.02)
        writer.close()
    assert read_refusal(bytes(answer), 413)["code"] == "request_too_large"


# Several requests in one connection


async def test_requests_that_are_sent_at_once_are_answered_in_order(tmp_path: Path) -> None:
    async with served(tmp_path) as address:
        answer = await sent(
            address,
            GET + b"\r\n" + b"GET /nothing HTTP/1.1\r\nhost: s\r\nconnection: close\r\n\r\n",
        )
    assert [part.split(b" ")[0] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404"]


async def test_rubbish_after_a_request_does_not_get_into_its_answer(tmp_path: Path) -> None:
    script = Watched([TextDelta("a"), asyncio.Event()])
    async with served(tmp_path, script) as address:
        reader, writer = await connected(address, asking(stream=True))
        first = await reader.readuntil(b"\n\n")
        writer.write(b"rubbish\r\n\r\n")
        rest = await reader.read()
        assert b"HTTP/1.1" not in rest
        assert first.startswith(b"HTTP/1.1 200")
        writer.close()
        async with asyncio.timeout(5):
            await script.ended.wait()


async def test_callers_cannot_say_where_they_are(tmp_path: Path) -> None:
    clients: list[Any] = []
    inner = create_app(configuration(tmp_path))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clients.append(scope.get("client"))
        await inner(scope, receive, send)

    async with serving(app) as address:
        await sent(
            address,
            GET
            + b"x-forwarded-for: 6.6.6.6\r\nx-forwarded-proto: https\r\nconnection: close\r\n\r\n",
        )
    assert clients[-1][0] == "127.0.0.1"


def test_no_answer_lets_a_browser_guess_its_type(tmp_path: Path) -> None:
    with process_serving(tmp_path) as (url, _):
        answers = [httpx2.get(url + path).headers for path in ("/", "/health", "/docs", "/absent")]
        answers.append(httpx2.Headers(parsed(asyncio.run(sent(url, b"nonsense\r\n\r\n")))[1]))
    assert [each["x-content-type-options"] for each in answers] == ["nosniff"] * 5
