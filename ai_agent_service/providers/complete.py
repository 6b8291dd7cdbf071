"""Collects a model's streamed answer, for callers that need all of it at once."""

import asyncio
import time
from contextlib import aclosing
from typing import Any

import msgspec

from ai_agent_service.core.errors import RunTimeoutError
from ai_agent_service.core.events import RefusalDelta, TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelFinished, ModelRequest, Provider
from ai_agent_service.providers.debug_log import stream_logged

GRACE_SECONDS = 1.0
"""Seconds past its deadline after which a provider that does not end by itself is stopped."""


class Completion(msgspec.Struct, frozen=True):
    """A whole answer. `finish` is None where the stream ended without one, or was cut."""

    text: str = ""
    refusal: str = ""
    finish: ModelFinished | None = None

    @property
    def usage(self) -> Usage | None:
        """The tokens of the answer; None if the provider reported none."""
        return self.finish.usage if self.finish is not None else None


async def complete(
    provider: Provider, request: ModelRequest, *, max_characters: int | None = None, **named: Any
) -> Completion:
    """Return the provider's whole answer to `request`.

    Stops reading once the answer is longer than `max_characters`. `named` are further fields of
    the debug log. Raises what `Provider.stream` raises, and RunTimeoutError when the provider
    ignores the deadline.
    """
    text: list[str] = []
    refusal: list[str] = []
    finish: ModelFinished | None = None
    length = 0
    seconds = max(0.0, request.deadline - time.monotonic()) + GRACE_SECONDS
    try:
        async with (
            asyncio.timeout(seconds),
            aclosing(stream_logged(provider, request, **named)) as events,
        ):
            async for event in events:
                if isinstance(event, ModelFinished):
                    finish = event
                elif isinstance(event, TextDelta | RefusalDelta):
                    (text if isinstance(event, TextDelta) else refusal).append(event.text)
                    length += len(event.text)
                    if max_characters is not None and length > max_characters:
                        break
    except TimeoutError as error:
        raise RunTimeoutError(f"{provider.name} did not end its answer in time.") from error
    return Completion("".join(text), "".join(refusal), finish)
