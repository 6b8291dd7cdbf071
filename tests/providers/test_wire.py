"""Answers with the status 200 that are no stream."""

import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.core.errors import (
    ContextTooLongError,
    ProviderProtocolError,
    ProviderRefusedError,
    ProviderUnavailableError,
    ServiceError,
)
from ai_agent_service.providers.http import HttpClient
from ai_agent_service.providers.http_errors import HttpTarget
from ai_agent_service.providers.ollama import Ollama
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from ai_agent_service.providers.wire import read_start
from tests.support.fake_upstream import END, Upstream, chunk, head, lines, says
from tests.support.provider_requests import KEY, collect_events, question, text

CREDITS = {"error": {"message": f"No credits left for {KEY}.", "code": 402}}
TARGET = HttpTarget("openai", "http://h/v1")


def providers(http: HttpClient, url: str) -> list[OpenAICompatible | Ollama]:
    return [OpenAICompatible(http, base_url=url, api_key=KEY), Ollama(http, base_url=url)]


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream", "text/plain"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("lead", [b"", b"\xef\xbb\xbf", b"\r\n \n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_an_error_with_the_status_200_is_that_error(
    content_type: str, indent: int | None, lead: bytes, size: int
) -> None:
    body = lead + json.dumps(CREDITS, indent=indent).encode()
    pieces = [chunk(body[place : place + size]) for place in range(0, len(body), size)]
    answer = [head(content_type=content_type), *pieces, END]
    async with Upstream(answer) as upstream, HttpClient() as http:
        for provider in providers(http, upstream.url):
            with pytest.raises(ProviderRefusedError) as caught:
                await collect_events(provider.stream(question()))
            assert caught.value.code == "provider_payment_required"
            assert "No credits left for [redacted]" in caught.value.message


async def test_a_long_conversation_is_known_with_the_status_200_too() -> None:
    body = {"error": {"message": "The maximum context length is 10 tokens."}}
    answer = [head(content_type="application/json"), chunk(json.dumps(body).encode()), END]
    async with Upstream(answer) as upstream, HttpClient() as http:
        for provider in providers(http, upstream.url):
            with pytest.raises(ContextTooLongError) as caught:
                await collect_events(provider.stream(question()))
            assert caught.value.window == 10


@pytest.mark.parametrize("body", [b"", b" ", b"\r\n\r\n"])
async def test_an_empty_body_is_named(body: bytes) -> None:
    pieces = [chunk(body)] if body else []
    async with Upstream([head(), *pieces, END]) as upstream, HttpClient() as http:
        for provider in providers(http, upstream.url):
            with pytest.raises(ProviderProtocolError, match=r"answered 200 with an empty body\.$"):
                await collect_events(provider.stream(question()))


async def test_an_error_between_the_lines_of_ollama_is_that_error() -> None:
    answer = lines({"message": {"content": "So far"}, "done": False}, {"detail": "Overloaded"})
    async with Upstream(answer) as upstream, HttpClient() as http:
        with pytest.raises(ProviderUnavailableError, match=r"^ollama: Overloaded$"):
            await collect_events(Ollama(http, base_url=upstream.url).stream(question()))


async def test_streams_are_read_as_ever_however_they_are_cut() -> None:
    async with Upstream(says("Hi")) as upstream, HttpClient() as http:
        assert await text(OpenAICompatible(http, base_url=upstream.url)) == "Hi"
    first = json.dumps({"message": {"content": "H"}, "done": False}).encode() + b"\n"
    rest = lines({"message": {"content": "i"}, "done": True})[1:]
    cut = [head(content_type="application/json"), chunk(first[:5]), chunk(first[5:]), *rest]
    async with Upstream(cut) as upstream, HttpClient() as http:
        assert await text(Ollama(http, base_url=upstream.url)) == "Hi"


async def cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    for place in range(0, len(body), size):
        yield body[place : place + size]


@given(st.binary(max_size=60), st.integers(1, 9))
async def test_no_byte_of_a_stream_is_lost(body: bytes, size: int) -> None:
    pieces = cut(body, size)
    try:
        start = await read_start(pieces, TARGET)
    except ServiceError:
        return
    assert start + b"".join([piece async for piece in pieces]) == body
