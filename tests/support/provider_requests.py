"""Requests to providers, and their answers."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from ai_agent_service.config.settings import Settings
from ai_agent_service.core.errors import (
    ServiceError,
)
from ai_agent_service.core.events import TextDelta
from ai_agent_service.core.messages import Message, ToolChoice, ToolSpec
from ai_agent_service.providers.base import (
    ModelEvent,
    ModelFinished,
    ModelRequest,
    Provider,
    ProviderSetup,
)
from ai_agent_service.providers.http import HttpClient, Timeouts
from ai_agent_service.providers.openai_compatible import OpenAICompatible
from tests.support.fake_upstream import (
    Action,
    Upstream,
    reply,
)

KEY = "sk-Zx81QqLm0042canary"
HTML = b"<html><body><h1>502 Bad Gateway</h1>nginx at 10.1.2.3</body></html>"
WEATHER = ToolSpec(
    "weather",
    "The weather in a city.",
    {"type": "object", "properties": {"city": {"type": "string"}}},
)


def question(
    *messages: Message,
    model: str = "some-model",
    seconds: float = 5.0,
    tools: tuple[ToolSpec, ...] = (),
    tool_choice: ToolChoice | None = None,
    **settings: Any,
) -> ModelRequest:
    """Build a request of `messages`, by default a greeting, whose deadline is `seconds` away."""
    return ModelRequest(
        model=model,
        messages=messages or (Message("user", "Hello"),),
        tools=tools,
        tool_choice=tool_choice,
        settings=settings,
        deadline=time.monotonic() + seconds,
        request_id="req-1",
    )


def setup(http: HttpClient | None = None, **settings: object) -> ProviderSetup:
    """Build the setup of providers with only `settings` set."""
    return ProviderSetup(
        settings=Settings.model_validate(settings), environment={}, http=http or HttpClient()
    )


async def collect_events(events: AsyncGenerator[ModelEvent, None]) -> list[ModelEvent]:
    """Return all events of an answer; the last and no other must be a ModelFinished."""
    found = [event async for event in events]
    assert [isinstance(event, ModelFinished) for event in found] == [False] * (len(found) - 1) + [
        True
    ]
    return found


async def finish(events: AsyncGenerator[ModelEvent, None]) -> ModelFinished:
    """Return the end of an answer."""
    last = (await collect_events(events))[-1]
    assert isinstance(last, ModelFinished)
    return last


async def text(provider: Provider, request: ModelRequest | None = None) -> str:
    """Return the text that `provider` answers."""
    return "".join(
        event.text
        for event in await collect_events(provider.stream(request or question()))
        if isinstance(event, TextDelta)
    )


@asynccontextmanager
async def served(
    *answers: Iterable[Action],
    timeouts: Timeouts | None = None,
    max_retries: int = 2,
    first_delay: float = 0.001,
) -> AsyncGenerator[tuple[Upstream, OpenAICompatible], None]:
    """Open a scripted server and a provider that asks it."""
    async with (
        Upstream(*answers) as upstream,
        HttpClient(timeouts, max_retries=max_retries, first_delay=first_delay) as http,
    ):
        yield upstream, OpenAICompatible(http, base_url=f"{upstream.url}/v1", api_key=KEY)


async def failure(provider: OpenAICompatible, *, seconds: float = 5.0) -> ServiceError:
    """Return the error that a question ends with."""
    with pytest.raises(ServiceError) as caught:
        await collect_events(provider.stream(question(seconds=seconds)))
    return caught.value


def refusal(status: int, message: str = "No.", **headers: str) -> list[Action]:
    """Build an answer that refuses with OpenAI's error object."""
    return reply(status, {"error": {"message": message, "code": None}}, **headers)


class PiecesClient:
    """In place of an HttpClient: every answer is `pieces`, for tests that read very many."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    @asynccontextmanager
    async def post(self, *_: object, **__: object) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """Yield the pieces."""

        async def read() -> AsyncGenerator[bytes, None]:
            for piece in self._pieces:
                yield piece

        async with aclosing(read()) as pieces:
            yield pieces


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return `stream` in pieces that are cut at `places`, modulo its length."""
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    return [stream[start:end] for start, end in pairwise(edges)]


def is_passable(event: ModelEvent) -> bool:
    """Return whether no text in `event` has NUL or half of a surrogate pair."""
    text = repr(msgspec.to_builtins(event))
    return "\\x00" not in text and "\\ud8" not in text and "\\udc" not in text
