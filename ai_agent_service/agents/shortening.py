"""Shorten the conversation of a run for a model that cannot take all of it."""

from collections.abc import Awaitable, Callable

from ai_agent_service.core.errors import ContextTooLongError
from ai_agent_service.core.messages import Message
from ai_agent_service.memory.windows import ContextWindows, estimate_request
from ai_agent_service.providers.base import ModelRequest

CompactMessages = Callable[[int], Awaitable[tuple[Message, ...] | None]]
"""Return the run's first messages with less of the older conversation, about this many tokens at
most; None if that cannot be done."""

MAX_ATTEMPTS = 4
"""How often a run is shortened after a refusal."""


class Shortener:
    """Gives one run shorter messages, before the model is asked if it is known to refuse them, and
    after each refusal."""

    def __init__(
        self, compact: CompactMessages | None, windows: ContextWindows, provider: str
    ) -> None:
        self._compact = compact
        self._windows = windows
        self._provider = provider
        self._attempts = 0
        self._is_fitted = False

    async def fit(self, request: ModelRequest, begun: int) -> tuple[Message, ...] | None:
        """Return what to send in place of the `begun` messages that the run began with, if
        `request` is known not to fit. A run asks for this once."""
        limit = self._windows.find_limit(self._provider, request.model)
        if self._is_fitted or limit is None:
            return None
        self._is_fitted = True
        if estimate_request(request.messages, request.tools) <= limit:
            return None
        return await self._shorten(request, begun, limit)

    async def handle_refusal(
        self, request: ModelRequest, begun: int, error: ContextTooLongError
    ) -> tuple[Message, ...] | None:
        """Return what to send in place of the `begun` messages that the run began with; None if
        the model has to be given up."""
        variable = estimate_request(request.messages[:begun])
        fixed = estimate_request(request.messages[begun:], request.tools)
        limit = self._windows.learn_refusal(
            (self._provider, request.model),
            fixed=fixed,
            variable=variable,
            window=error.window,
            is_repeated=self._attempts > 0,
        )
        self._attempts += 1
        if self._attempts > MAX_ATTEMPTS:
            return None
        return await self._shorten(request, begun, limit)

    def note_answer(self, request: ModelRequest) -> None:
        """Take note that the model answered `request`."""
        if self._windows.find_limit(self._provider, request.model) is not None:
            size = estimate_request(request.messages, request.tools)
            self._windows.learn_answer(self._provider, request.model, size)

    async def _shorten(
        self, request: ModelRequest, begun: int, limit: int
    ) -> tuple[Message, ...] | None:
        if self._compact is None:
            return None
        before = estimate_request(request.messages[:begun])
        rest = estimate_request(request.messages[begun:], request.tools)
        fewer = await self._compact(max(0, limit - rest))
        return fewer if fewer is not None and estimate_request(fewer) < before else None
