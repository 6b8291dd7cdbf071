"""Provider that follows a script, for tests of everything above the providers."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Any, Self

import msgspec

from ai_agent_service.core.events import FinishReason, ReasoningDelta, TextDelta
from ai_agent_service.core.messages import ToolCall
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest, ProviderSetup

Action = ModelEvent | Exception | asyncio.Event | float
"""An event is yielded, an exception raised, an asyncio.Event awaited, a float slept (seconds)."""


class Script:
    """Answers to come, in order, and the requests received; the last answer is repeated."""

    name = "scripted"
    missing: tuple[str, ...] = ()
    model_list: tuple[str, ...] = ("other-model",)

    def __init__(self, *answers: Iterable[Action]) -> None:
        self.answers = [list(answer) for answer in answers]
        self.requests: list[ModelRequest] = []
        self.closed = 0
        """How many answers were ended, by reading them to their end or by leaving."""
        self.waiting = asyncio.Event()
        """Set once an answer waits for an asyncio.Event."""

    def from_setup(self, setup: ProviderSetup) -> Self:
        """Return itself: a script is its own provider."""
        return self

    async def default_model(self) -> str:
        """Return `scripted-model`."""
        return "scripted-model"

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent, None]:
        """Yield the next answer."""
        number = min(len(self.requests), len(self.answers) - 1)
        self.requests.append(request)
        try:
            for action in self.answers[number]:
                if isinstance(action, Exception):
                    raise action
                if isinstance(action, asyncio.Event):
                    self.waiting.set()
                    await action.wait()
                elif isinstance(action, float):
                    await asyncio.sleep(action)
                else:
                    yield action
        finally:
            self.closed += 1


def says(*pieces: str, reason: FinishReason = "stop", usage: Usage | None = None) -> list[Action]:
    """Build an answer of text."""
    return [
        *(TextDelta(piece) for piece in pieces),
        ModelFinished(reason, (), usage or Usage(10, len(pieces))),
    ]


def calls(
    *wanted: tuple[str, Any], text: str = "", thinking: str = "", usage: Usage | None = None
) -> list[Action]:
    """Build an answer that calls tools: each a name and its arguments, a dict or the model's text.

    Ids count from call_000000001.
    """
    found = tuple(
        ToolCall(
            f"call_{number:09}",
            name,
            arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode(),
        )
        for number, (name, arguments) in enumerate(wanted, 1)
    )
    lead: list[Action] = [ReasoningDelta(thinking)] if thinking else []
    lead += [TextDelta(text)] if text else []
    return [*lead, ModelFinished("tool_calls", found, usage or Usage(20, 5))]
