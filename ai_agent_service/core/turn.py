"""A turn: what a caller asks of an agent, whichever surface it comes through."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec

from ai_agent_service.core.messages import Message, ToolChoice, ToolSpec

History = Literal["client", "server"]

IDEMPOTENCY_PREFIX = "idempotency:"
"""What a turn's id begins with that is an Idempotency-Key: another question under it is refused."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """The conversation so far, the caller's own tools, and settings for this turn.

    `messages` are the caller's, system messages among them. `settings` are OpenAI's request fields
    by name and override the agent's; `model` replaces the agent's own. `session` names the
    conversation (None: nothing is stored). With `history` "server", `messages` holds only the new
    messages; otherwise it is the whole conversation. `is_retry` says that the caller may have asked
    this before, `message_id` is the caller's own id of the turn, and `idempotency_key` its
    Idempotency-Key. `compact` returns the messages with less of the older conversation, about as
    many tokens as it is given, for a model that rejects them as too long, or None if it cannot.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    settings: Mapping[str, Any] = {}
    model: str | None = None
    session: str | None = None
    history: History | None = None
    is_retry: bool = False
    message_id: str | None = None
    idempotency_key: str | None = None
    compact: Callable[[int], Awaitable[tuple[Message, ...] | None]] | None = None
