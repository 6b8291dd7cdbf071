"""Repair tool calls at both borders: those that a model makes, and those that go back to one."""

import re
from collections.abc import Callable, Iterable

import msgspec

from ai_agent_service.core.errors import ToolError
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import Message, ToolCall
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.tools.toolset import parse_arguments

_RANDOM_ID = re.compile(r"[A-Za-z0-9]{9,}$")
"""An id that is unique among all clients, such as `call_` and 24 characters. Mistral's have nine,
and it accepts no others."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAME_OF_NONE = "unnamed"


class CallIds:
    """Gives a call a new id where the provider uses one twice in a conversation, for clients and
    providers match results by it.

    So it does with a call that is sent out under an id that others may have been given: some
    providers count from 0 in every answer, and a result that comes back must name one call of one
    user.
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        self._taken = {call.id for message in messages for call in message.tool_calls}

    def ensure_unique(
        self, calls: Iterable[ToolCall], *, sent_out: Callable[[ToolCall], bool]
    ) -> tuple[ToolCall, ...]:
        """Return `calls`, one answer's, under ids that are unique; `sent_out` says which go to the
        client."""
        found = []
        for call in calls:
            usable = (
                call.id
                and call.id not in self._taken
                and call.id == replace_unstorable(call.id)
                and (_RANDOM_ID.search(call.id) or not sent_out(call))
            )
            kept = call if usable else msgspec.structs.replace(call, id=generate_id("call_"))
            self._taken.add(kept.id)
            found.append(kept)
        return tuple(found)


def repair_text(call: ToolCall) -> ToolCall:
    """Return `call` with a name and arguments that can be stored."""
    name, arguments = replace_unstorable(call.name), replace_unstorable(call.arguments)
    return msgspec.structs.replace(call, name=name, arguments=arguments)


def make_sendable(message: Message) -> Message:
    """Return `message` with calls that every provider accepts.

    A name that no tool can have loses its other characters, and arguments that are not a JSON
    object become an empty one: the call's result says what was wrong with it. Many servers refuse
    a conversation with such a call, and so each of its later turns.
    """
    if all(map(_is_sendable, message.tool_calls)):
        return message
    calls = tuple(
        msgspec.structs.replace(
            call,
            name=re.sub(r"[^A-Za-z0-9_-]+", "_", call.name)[:64] or _NAME_OF_NONE,
            arguments=call.arguments if _has_object(call) else "{}",
        )
        for call in message.tool_calls
    )
    return msgspec.structs.replace(message, tool_calls=calls)


def _is_sendable(call: ToolCall) -> bool:
    return _NAME.fullmatch(call.name) is not None and _has_object(call)


def _has_object(call: ToolCall) -> bool:
    try:
        parse_arguments(call.arguments)
    except ToolError:
        return False
    return bool(call.arguments.strip())
