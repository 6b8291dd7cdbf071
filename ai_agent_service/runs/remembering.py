"""The memory's part in a run: what its turn starts with, and storing what it answered."""

import logging
from collections.abc import AsyncGenerator, Iterable

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import MemoryUnavailableError, ServiceError, SessionBusyError
from ai_agent_service.core.events import (
    MemorySkipped,
    RunEvent,
    RunFailed,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from ai_agent_service.core.turn import Turn
from ai_agent_service.memory.base import Memory, RememberedTurn, TurnAnswer
from ai_agent_service.observability.debug_log import debug_log, drop_empty, is_debug_enabled
from ai_agent_service.runs.live import LiveRuns

logger = logging.getLogger(__name__)


class Opening(msgspec.Struct, frozen=True):
    """How a run starts: an event that comes before all others, the events that follow, and the
    turn whose answer is to be stored at its end."""

    events: AsyncGenerator[RunEvent, None]
    first: RunEvent | None = None
    remembered: RememberedTurn | None = None


async def open_turn(
    agent: BaseAgent, turn: Turn, context: RunContext, memory: Memory | None, live: LiveRuns
) -> Opening:
    """Store the question of the turn, unless there is no `memory` for it, and return its events.

    An answer that an equal turn was given is replayed, and a run of an equal turn that is in
    progress is joined; in both cases nothing is run.
    """
    try:
        if context.task is None:
            messages = agent.parts.pending.restore(turn.messages, context)
            turn = msgspec.structs.replace(turn, messages=messages)
        if memory is None:
            return Opening(agent.run(turn, context))
        remembered = await memory.begin(context, turn)
    except MemoryUnavailableError as error:
        if memory is None or memory.required:
            return Opening(_emit_events((RunFailed(error),)))
        return Opening(agent.run(turn, context), first=MemorySkipped(error.message))
    except ServiceError as error:
        return Opening(_emit_events((RunFailed(error),)))
    if is_debug_enabled():
        debug_log.debug("memory.begun", extra=_describe_turn_start(turn, remembered, context))
    if remembered.answer is not None:
        await remembered.keep(remembered.answer, wait=0)
        return Opening(_emit_events(_build_replay(remembered.answer)))
    if remembered.in_progress is not None:
        await remembered.keep(TurnAnswer(text=""), wait=0)
        return Opening(_follow_run(live, remembered.in_progress))
    known = msgspec.structs.replace(turn, messages=remembered.messages, compact=remembered.compact)
    return Opening(agent.run(known, context), remembered=remembered)


async def store_answer(
    remembered: RememberedTurn, answer: TurnAnswer, agent_id: str, *, wait: float
) -> ServiceError | None:
    """Store `answer`; return the error that prevented it, which is logged."""
    try:
        await remembered.keep(answer, wait=wait)
    except ServiceError as error:
        logger.warning("memory.not_stored", extra={"agent_id": agent_id, "code": error.code})
        return error
    if is_debug_enabled():
        kept = drop_empty(
            status=answer.status, steps=len(answer.steps), error=answer.error, text=answer.text
        )
        debug_log.debug("memory.kept", extra={"agent_id": agent_id, **kept})
    return None


async def _follow_run(live: LiveRuns, run_id: str) -> AsyncGenerator[RunEvent, None]:
    """Yield the events of the run that this request repeats."""
    record = live.find(run_id)
    last: RunEvent | None = None
    if record is not None:
        async for event in record.follow():
            last = event
            if isinstance(event, RunFinished):
                last = msgspec.structs.replace(event, is_repeated=True)
            yield last
    if not isinstance(last, RunFinished | RunFailed):
        interrupted = "The request that this one repeats was interrupted. Try again."
        yield RunFailed(SessionBusyError(interrupted, retry_after=1))


def _describe_turn_start(
    turn: Turn, remembered: RememberedTurn, context: RunContext
) -> dict[str, object]:
    if remembered.answer is not None:
        what = "answered before"
    elif remembered.in_progress is not None:
        what = f"under way as {remembered.in_progress}"
    else:
        what = "new"
    return {
        "run_id": context.run_id,
        "agent_id": context.agent_id,
        "session": context.session,
        "history": turn.history,
        "turn": what,
        "messages_sent": len(turn.messages),
        "messages_known": len(remembered.messages),
    }


async def _emit_events(events: Iterable[RunEvent]) -> AsyncGenerator[RunEvent, None]:
    for event in events:
        yield event


def _build_replay(answer: TurnAnswer) -> list[RunEvent]:
    """Return the events of a run that gave `answer`."""
    events: list[RunEvent] = []
    for number, step in enumerate(answer.steps, 1):
        if step.text:
            events.append(TextDelta(step.text))
        events += (ToolStarted(call, number) for call in step.calls)
        events += (ToolFinished(result) for result in step.results)
    if last := answer.last if answer.steps else answer.text:
        events.append(TextDelta(last))
    return [*events, RunFinished(answer.reason, answer.usage, is_repeated=True)]
