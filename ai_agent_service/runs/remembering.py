"""An agent with a memory: gives any agent the conversation that its memory knows, and has the
memory keep what it answers."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import ClassVar

import msgspec

from ai_agent_service.agents.base import BaseAgent, Turn
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
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.memory.base import Memory, RememberedTurn, TurnAnswer, TurnQuestion
from ai_agent_service.observability.debug_log import debug_log, drop_empty, is_debug_enabled
from ai_agent_service.runs.live import LiveRuns, _LiveRun
from ai_agent_service.runs.record import AnswerRecorder

logger = logging.getLogger(__name__)

INTERRUPTED_WAIT_SECONDS = 10.0
"""How long a database that is away is waited for to store what there is of an interrupted
answer."""


class MemoryAgent(BaseAgent):
    """`agent`, with the turns of its sessions kept by `memory`. A run without a session is the
    agent's own."""

    type: ClassVar[str] = ""

    def __init__(self, agent: BaseAgent, memory: Memory, live: LiveRuns, tasks: Tasks) -> None:
        super().__init__(agent.definition, agent.parts)
        self._agent = agent
        self._memory = memory
        self._live = live
        self._tasks = tasks

    async def model(self) -> str:
        """The agent's."""
        return await self._agent.model()

    async def problem(self) -> str | None:
        """The agent's, or the memory's if the agent does not answer without."""
        problem = await self._agent.problem()
        return problem or (self._memory.problem if self._memory.required else None)

    def run(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        """Takes the turn; see BaseAgent. The last event comes when the answer is stored."""
        return (
            self._agent.run(turn, context)
            if context.session is None
            else self._run_live(turn, context)
        )

    async def _run_live(self, turn: Turn, context: RunContext) -> AsyncGenerator[RunEvent, None]:
        # Known to be under way before its question is stored, so that a request that repeats it
        # joins it at once.
        live = self._live.begin(context.run_id)
        try:
            async with aclosing(await self._start_turn(turn, context, live)) as events:
                async for event in events:
                    yield event
        finally:
            self._live.end(context.run_id)

    async def _start_turn(
        self, turn: Turn, context: RunContext, live: "_LiveRun"
    ) -> AsyncGenerator[RunEvent, None]:
        """The events of the turn, whose question is stored now unless it cannot be."""
        try:
            messages = self.parts.pending.restore(turn.messages, context)
            asked = TurnQuestion(
                messages=messages,
                history=turn.history,
                is_retry=turn.is_retry,
                message_id=turn.message_id,
            )
            remembered = await self._memory.begin(context, asked)
        except MemoryUnavailableError as error:
            return (
                _emit_events((RunFailed(error),))
                if self._memory.required
                else self._run_without_memory(turn, context, error)
            )
        except ServiceError as error:
            return _emit_events((RunFailed(error),))
        if is_debug_enabled():
            debug_log.debug("memory.begun", extra=_describe_turn_start(asked, remembered, context))
        if remembered.answer is not None:
            await remembered.keep(remembered.answer, wait=0)
            return _emit_events(_build_replay(remembered.answer))
        if remembered.in_progress is not None:
            await remembered.keep(TurnAnswer(text=""), wait=0)
            return self._follow_run(remembered.in_progress)
        return self._run_with_memory(turn, context, remembered, live)

    async def _run_without_memory(
        self, turn: Turn, context: RunContext, error: MemoryUnavailableError
    ) -> AsyncGenerator[RunEvent, None]:
        yield MemorySkipped(error.message)
        async with aclosing(self._agent.run(turn, context)) as events:
            async for event in events:
                yield event

    async def _run_with_memory(
        self, turn: Turn, context: RunContext, remembered: RememberedTurn, live: "_LiveRun"
    ) -> AsyncGenerator[RunEvent, None]:
        record = AnswerRecorder()
        kept = False
        try:
            whole = msgspec.structs.replace(
                turn, messages=remembered.messages, compact=remembered.compact
            )
            async with aclosing(self._agent.run(whole, context)) as events:
                async for event in events:
                    if isinstance(event, RunFinished | RunFailed):
                        kept = True
                        event = await self._store_final_answer(
                            remembered, record.build_final_answer(event), event, context
                        )
                    else:
                        record.add(event)
                    live.publish(event)
                    yield event
        finally:
            if not kept:
                keeping = self._tasks.start(
                    self._store_answer(
                        remembered, record.build_partial_answer(), INTERRUPTED_WAIT_SECONDS
                    )
                )
                await asyncio.shield(keeping)

    async def _store_final_answer(
        self,
        remembered: RememberedTurn,
        answer: TurnAnswer,
        event: RunFinished | RunFailed,
        context: RunContext,
    ) -> RunFinished | RunFailed:
        """`event` once the answer is stored, which goes on if the caller leaves; an error if it
        cannot be and has to be."""
        keeping = self._tasks.start(
            self._store_answer(remembered, answer, max(1.0, context.seconds_left))
        )
        error = await asyncio.shield(keeping)
        if error is None or isinstance(event, RunFailed) or not self._memory.required:
            return event
        return RunFailed(error, event.usage, event.steps)

    async def _store_answer(
        self, remembered: RememberedTurn, answer: TurnAnswer, wait: float
    ) -> ServiceError | None:
        try:
            await remembered.keep(answer, wait=wait)
        except ServiceError as error:
            logger.warning(
                "memory.not_stored", extra={"agent_id": self.agent_id, "code": error.code}
            )
            return error
        if is_debug_enabled():
            kept = drop_empty(
                status=answer.status, steps=len(answer.steps), error=answer.error, text=answer.text
            )
            debug_log.debug("memory.kept", extra={"agent_id": self.agent_id, **kept})
        return None

    async def _follow_run(self, run_id: str) -> AsyncGenerator[RunEvent, None]:
        """The events of the run that this request repeats."""
        live = self._live.find(run_id)
        last: RunEvent | None = None
        if live is not None:
            async for event in live.follow():
                last = (
                    msgspec.structs.replace(event, is_repeated=True)
                    if isinstance(event, RunFinished)
                    else event
                )
                yield last
        if not isinstance(last, RunFinished | RunFailed):
            yield RunFailed(
                SessionBusyError(
                    "The request that this one repeats was interrupted. Try again.", retry_after=1
                )
            )


def _describe_turn_start(
    asked: TurnQuestion, remembered: RememberedTurn, context: RunContext
) -> dict[str, object]:
    if remembered.answer is not None:
        what = "answered before"
    else:
        what = "new" if remembered.in_progress is None else f"under way as {remembered.in_progress}"
    return {
        "run_id": context.run_id,
        "agent_id": context.agent_id,
        "session": context.session,
        "history": asked.history,
        "turn": what,
        "messages_sent": len(asked.messages),
        "messages_known": len(remembered.messages),
    }


async def _emit_events(events: Iterable[RunEvent]) -> AsyncGenerator[RunEvent, None]:
    for event in events:
        yield event


def _build_replay(answer: TurnAnswer) -> list[RunEvent]:
    """The events of a run that gave `answer`."""
    events: list[RunEvent] = []
    for number, step in enumerate(answer.steps, 1):
        if step.text:
            events.append(TextDelta(step.text))
        events += (ToolStarted(call, number) for call in step.calls)
        events += (ToolFinished(result) for result in step.results)
    if last := answer.last if answer.steps else answer.text:
        events.append(TextDelta(last))
    return [*events, RunFinished(answer.reason, answer.usage, is_repeated=True)]
