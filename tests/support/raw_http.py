"""Speaks HTTP byte by byte to a real server, for requests that no client would send."""

import asyncio
import contextlib
import json
from typing import Any

from tests.support.clients import connected_raw
from tests.support.openai_schema import validate


async def sent(address: str, *pieces: bytes) -> bytes:
    """Send `pieces` and return everything that the server answers until it closes the
    connection."""
    reader, writer = await connected_raw(address, b"")

    async def send() -> None:
        with contextlib.suppress(OSError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()

    sending = asyncio.create_task(send())
    received = b""
    try:
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(65536):
                    received += piece
    finally:
        sending.cancel()
        writer.close()
    return received


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    length = int(headers.get("content-length", len(body)))
    return int(first.split(" ")[1]), headers, body[:length]


def read_refusal(answer: bytes, status: int) -> dict[str, Any]:
    """Return the error in `answer`, which must have this status, OpenAI's shape and a request
    id."""
    found, headers, body = parsed(answer)
    assert found == status, answer[:1000]
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    error = json.loads(body)
    validate("ErrorResponse", error)
    assert set(error) == {"error"}
    refusal: dict[str, Any] = error["error"]
    return refusal


async def refused(address: str, *pieces: bytes, status: int = 400) -> dict[str, Any]:
    """Send `pieces`, which must be answered with an error and a closed connection; return the
    error."""
    return read_refusal(await sent(address, *pieces), status)
