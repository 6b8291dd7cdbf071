"""Speaks HTTP byte by byte to a real server, for requests that no client would send."""

import asyncio
import contextlib
import json
from typing import Any

from tests.support.clients import connected_raw
from tests.support.openai_schema import validate


async def sent(address: str, *pieces: bytes) -> bytes:
    """All that the server answers to `pieces`, until it ends the connection; how it takes them
    shows in the answer alone."""
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
    """Status, headers and body of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    length = int(headers.get("content-length", len(body)))
    return int(first.split(" ")[1]), headers, body[:length]


def read_refusal(answer: bytes, status: int) -> dict[str, Any]:
    """The error that `answer` is, which has to have this status, OpenAI's shape and a request
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
    """The error that `pieces` are answered with, and that ends the connection."""
    return read_refusal(await sent(address, *pieces), status)
