"""Sends requests as clients do, and checks the form of every answer."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ai_agent_service.providers.base import ModelEvent, ModelRequest
from tests.support.fake_provider import Action, Script
from tests.support.openai_schema import checked_stream, validate

CHAT = "/v1/chat/completions"
ASK = "/agents/helper/chat"
USAGE = {
    "prompt_tokens": 30,
    "completion_tokens": 7,
    "total_tokens": 37,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
"""The usage of a run of two scripted answers, of which the first calls a tool."""

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
"""A tool of the client's."""

IMAGE = "data:image/png;base64,iVBORw0KGgo="
IMAGE_MESSAGE: dict[str, Any] = {
    "role": "user",
    "content": [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
    ],
}


class Watched(Script):
    """Script that reports the end of an answer, whether it was read to its end or abandoned."""

    def __init__(self, *answers: list[Action]) -> None:
        super().__init__(*answers)
        self.ended = asyncio.Event()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the next answer."""
        try:
            async with aclosing(super().stream(request)) as events:
                async for event in events:
                    yield event
        finally:
            self.ended.set()


def asking(text: str = "Hello", /, **fields: Any) -> dict[str, Any]:
    """Build a request to the agent `helper`."""
    return {"model": "helper", "messages": [{"role": "user", "content": text}], **fields}


def read_completion(response: httpx2.Response) -> dict[str, Any]:
    """Return the chat completion in `response`, which must be valid."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    completion: dict[str, Any] = response.json()
    validate("CreateChatCompletionResponse", completion)
    return completion


def read_chunks(response: httpx2.Response) -> list[dict[str, Any]]:
    """Return the chunks of a streamed `response`, which must be valid and end without an error."""
    chunks, error = read_stream(response)
    assert error is None
    return chunks


def read_stream(response: httpx2.Response) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the chunks of a streamed `response` and the error that ended it, if any."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-request-id"]
    return checked_stream(response.text)


def join_deltas(chunks: list[dict[str, Any]], field: str = "content") -> str:
    """Join `field` of the chunks' deltas."""
    return "".join(
        choice["delta"].get(field) or "" for chunk in chunks for choice in chunk["choices"]
    )


def read_error(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Return the error in `response`, which must have this status and OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    validate("ErrorResponse", body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


async def connected(
    address: str, body: dict[str, Any], path: str = CHAT
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and post `body` over it; closing the writer is a client that leaves."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: service\r\ncontent-type:"
        f" application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return await connected_raw(address, head.encode() + content)


async def connected_raw(
    address: str, sent: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection and send the bytes `sent` over it."""
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(sent)
    await writer.drain()
    return reader, writer
