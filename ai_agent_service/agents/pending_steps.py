"""Keeps the steps that wait for results from the client, and makes a client's conversation whole
again."""

import time
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from ai_agent_service.core.bounds import MAX_PENDING_STEPS
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.messages import (
    UNKNOWN_RESULT,
    Message,
    ToolResult,
    build_tool_message,
    restore_provider_data,
)

PENDING_STEP_SECONDS = 3600.0


class _PendingStep(msgspec.Struct, frozen=True):
    earlier: tuple[Message, ...]
    answer: Message
    results: tuple[ToolResult, ...]
    expires: float


class PendingSteps:
    """Steps that called the client's tools in a turn that called ours too, under the client's call
    ids, for an hour.

    The client sees its own calls only, so its follow-up lacks ours; `restore` puts the full turn
    back. Steps are found only by the tenant, user and agent that made them.
    """

    def __init__(
        self, *, kept_seconds: float = PENDING_STEP_SECONDS, max_kept: int = MAX_PENDING_STEPS
    ) -> None:
        self._kept_seconds = kept_seconds
        self._max_kept = max_kept
        self._steps: OrderedDict[tuple[str, str, str, str], _PendingStep] = OrderedDict()

    def keep(
        self,
        context: RunContext,
        answer: Message,
        results: Iterable[ToolResult],
        client_call_ids: Iterable[str],
        *,
        earlier: Iterable[Message] = (),
    ) -> None:
        """Keeps `answer`, with all its calls and the results of ours, and the messages of the
        turn's `earlier` steps.

        The ids must be ones that nobody else can have been given.
        """
        now = time.monotonic()
        step = _PendingStep(tuple(earlier), answer, tuple(results), now + self._kept_seconds)
        for call_id in client_call_ids:
            key = self._build_key(context, call_id)
            self._steps[key] = step
            self._steps.move_to_end(key)
        while self._steps and (
            len(self._steps) > self._max_kept or next(iter(self._steps.values())).expires < now
        ):
            self._steps.popitem(last=False)

    def restore(self, messages: tuple[Message, ...], context: RunContext) -> tuple[Message, ...]:
        """`messages` with kept steps restored, in the model's order, and exactly one result after
        each call.

        A call whose result the client does not give gets one that says so, for a provider refuses a
        conversation without. Raises InvalidRequestError for a result of no call.
        """
        if not [message for message in messages if message.tool_calls or message.role == "tool"]:
            return messages
        found: list[Message] = []
        position = 0
        while position < len(messages):
            message = messages[position]
            position += 1
            if message.role == "tool":
                raise InvalidRequestError(
                    "A message with the role 'tool' must follow the assistant message whose"
                    " tool_calls has its tool_call_id.",
                    param=f"messages[{position - 1}].tool_call_id",
                )
            if not message.tool_calls:
                found.append(message)
                continue
            given: dict[str, Message] = {}
            theirs = {call.id for call in message.tool_calls}
            while position < len(messages) and messages[position].role == "tool":
                result = messages[position]
                if result.tool_call_id not in theirs:
                    raise InvalidRequestError(
                        "This tool_call_id stands in no call before it.",
                        param=f"messages[{position}].tool_call_id",
                    )
                given[result.tool_call_id] = result
                position += 1
            found += self._restore_step(message, given, context, before=found)
        return tuple(found)

    def forget(self, tenant: str, user: str) -> None:
        """Forgets the steps of a user whose conversations are erased."""
        for key in [key for key in self._steps if key[:2] == (tenant, user)]:
            del self._steps[key]

    def _restore_step(
        self,
        message: Message,
        given: dict[str, Message],
        context: RunContext,
        *,
        before: list[Message],
    ) -> list[Message]:
        kept = next(
            (step for call in message.tool_calls if (step := self._find(context, call.id))), None
        )
        known = {call.id for earlier in before for call in earlier.tool_calls} if kept else set()
        if kept:
            message = restore_provider_data(message, kept.answer.tool_calls)
        if kept and any(result.call_id in known for result in kept.results):
            kept = None  # a client that shows our calls sends them itself, in a separate message
        answer = kept.answer if kept else message
        ours = (
            {result.call_id: build_tool_message(result) for result in kept.results} if kept else {}
        )
        results = []
        for call in answer.tool_calls:
            unknown = Message(role="tool", content=UNKNOWN_RESULT, tool_call_id=call.id)
            results.append(ours.get(call.id) or given.get(call.id) or unknown)
        earlier = kept.earlier if kept else ()
        if any(call.id in known for step in earlier for call in step.tool_calls):
            earlier = ()  # restored or told already
        return [*earlier, answer, *results]

    def _find(self, context: RunContext, call_id: str) -> _PendingStep | None:
        step = self._steps.get(self._build_key(context, call_id))
        return step if step is not None and step.expires >= time.monotonic() else None

    @staticmethod
    def _build_key(context: RunContext, call_id: str) -> tuple[str, str, str, str]:
        return (context.tenant, context.user, context.agent_id, call_id)
