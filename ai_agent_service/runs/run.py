"""One run: it owns slot, limits, memory turn, record, span, deadline and outcome, and drives the
agent's events once, into the surface that asked for it."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Protocol

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import RunTimeoutError, ServiceError
from ai_agent_service.core.events import RunEvent, RunFailed, RunFinished
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.core.turn import Turn
from ai_agent_service.memory.base import RememberedTurn, TurnAnswer
from ai_agent_service.observability.records import RunReport, ToolUse
from ai_agent_service.runs.admission import RunAdmission
from ai_agent_service.runs.lifecycle import Command, Finish, Lifecycle, Start, decide
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.record import RunRecord, build_final_answer, build_partial_answer
from ai_agent_service.runs.remembering import open_turn, store_answer

DEADLINE_GRACE_SECONDS = 1.0
"""Seconds past its deadline after which a run that does not end by itself is ended here."""

INTERRUPTED_WAIT_SECONDS = 10.0
"""How long storing an interrupted answer waits for a database that cannot be reached."""

Emit = Callable[[RunEvent], Awaitable[None]]
"""Takes each event of a run, the last one too: how a surface renders it."""

_LAST_EVENTS = (RunFinished, RunFailed)


class RunSpan(Protocol):
    """The span of a run."""

    def end(self, event: RunFinished | RunFailed, text: Callable[[], str]) -> None:
        """End the span with the last event; `text` returns the answer's text."""
        ...


class RunTracer(Protocol):
    """Opens a span for each run."""

    def trace(
        self, agent: BaseAgent, turn: Turn, context: RunContext
    ) -> AbstractContextManager[RunSpan]:
        """Return a context manager within which the run's span is the current one."""
        ...


class RunServices(msgspec.Struct, frozen=True):
    """What all runs of a process share; `tasks` finish storing answers whose callers left."""

    live: LiveRuns
    tasks: Tasks
    tracer: RunTracer | None = None


async def ignore_event(event: RunEvent) -> None:
    """Emit nothing: for a caller that reads the record once the run is over."""


class Run:
    """A turn that an agent takes, from its admission to its outcome.

    The order of calls is `admit`, `drive`, `apply`, `settle`. Without an `admission`, as in the
    terminal and in evaluation, nothing limits the run and no audit line is written.
    """

    def __init__(
        self,
        agent: BaseAgent,
        turn: Turn,
        context: RunContext,
        services: RunServices,
        admission: RunAdmission | None = None,
    ) -> None:
        self.agent = agent
        self.turn = turn
        self.context = context
        self.record = RunRecord()
        self.lifecycle = Lifecycle()
        self._services = services
        self._admission = admission
        self._began_at = time.monotonic()

    async def admit(self) -> None:
        """Count the run against its caller's limits; raises RateLimitError."""
        if self._admission is not None:
            await self._admission.admit(self.agent, self.turn, self.context)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers about limits for the response."""
        return [] if self._admission is None else self._admission.headers

    async def drive(self, emit: Emit = ignore_event) -> RunFinished | RunFailed:
        """Run the turn to its end, and return the last event.

        Raises ServerBusyError when no slot is free, RunTimeoutError past the deadline, and what an
        agent type of a plug-in raises. A cancelled run still stores what there is of its answer.
        """
        limit = asyncio.timeout(self.context.seconds_left + DEADLINE_GRACE_SECONDS)
        slot = nullcontext() if self._admission is None else self._admission.hold_slot()
        try:
            with slot:
                self.apply(Start())
                self.record.is_started = True
                async with limit:
                    with self._trace() as span:
                        end = await self._drive(emit, span)
        except TimeoutError as error:
            if limit.expired():
                raise RunTimeoutError from error
            raise
        return end

    def apply(self, command: Command) -> None:
        """Give the run its outcome by `command`, unless it has one."""
        self.lifecycle = decide(self.lifecycle, command)

    async def settle(self) -> None:
        """Account for what the run used; call it once, after the outcome is set."""
        if self._admission is not None:
            await self._admission.settle(self.context, self.record, self.lifecycle.outcome)

    def report(self, *, is_streamed: bool) -> RunReport:
        """Return the facts of the run for the access log and metrics."""
        context, record, end = self.context, self.record, self.record.end
        steps = () if end is None else end.steps
        return RunReport(
            agent_id=context.agent_id,
            agent_version=context.agent_version,
            key_id=context.key_id,
            tenant=context.tenant,
            user=context.user,
            session=context.session,
            run_id=context.run_id,
            task=context.task,
            outcome=self.lifecycle.outcome,
            is_streamed=is_streamed,
            is_repeated=isinstance(end, RunFinished) and end.is_repeated,
            is_without_memory=record.is_without_memory,
            provider=steps[-1].provider if steps else self.agent.parts.provider.name,
            steps=steps,
            step_count=len(steps) if isinstance(end, RunFinished) else record.started_steps,
            tools=tuple(ToolUse(each.name, each.outcome, each.seconds) for each in record.results),
            usage=None if end is None else end.usage,
            seconds=time.monotonic() - self._began_at,
        )

    def _trace(self) -> AbstractContextManager[RunSpan | None]:
        tracer = self._services.tracer
        if tracer is None:
            return nullcontext()
        return tracer.trace(self.agent, self.turn, self.context)

    async def _drive(self, emit: Emit, span: RunSpan | None) -> RunFinished | RunFailed:
        memory = self.agent.parts.memory if self.context.session is not None else None
        live, run_id, record = self._services.live, self.context.run_id, self.record
        append = record.events.append
        if memory is not None:
            # Before the question is stored, so that a request that repeats it joins at once.
            live.begin(run_id, record)
        try:
            opening = await open_turn(self.agent, self.turn, self.context, memory, live)
            if opening.first is not None:
                record.add(opening.first)
                await emit(opening.first)
            remembered, is_stored = opening.remembered, opening.remembered is None
            try:
                async with aclosing(opening.events) as events:
                    async for event in events:
                        if isinstance(event, _LAST_EVENTS):
                            if remembered is not None:
                                answer = build_final_answer(record, event)
                                is_stored = True
                                event = await self._store(remembered, answer, event)
                            return await self._finish(event, emit, span)
                        append(event)
                        if record.waiting is not None:
                            record.wake()
                        await emit(event)
            finally:
                if remembered is not None and not is_stored:
                    partial = build_partial_answer(record)
                    await self._keep(remembered, partial, INTERRUPTED_WAIT_SECONDS)
        finally:
            if memory is not None:
                live.end(run_id)
        raise RuntimeError("the agent's events ended without RunFinished or RunFailed")

    async def _finish(
        self, event: RunFinished | RunFailed, emit: Emit, span: RunSpan | None
    ) -> RunFinished | RunFailed:
        """Hand out the last event; a run that finished has its outcome once that is delivered."""
        self.record.end = event
        if span is not None:
            span.end(event, self.record.join_text)
        self.record.add(event)
        await emit(event)
        if isinstance(event, RunFinished):
            self.apply(Finish(event.reason))
        return event

    async def _store(
        self, remembered: RememberedTurn, answer: TurnAnswer, event: RunFinished | RunFailed
    ) -> RunFinished | RunFailed:
        """Store the whole answer; return `event`, or a failure if it must be stored and cannot."""
        error = await self._keep(remembered, answer, max(1.0, self.context.seconds_left))
        memory = self.agent.parts.memory
        if error is None or isinstance(event, RunFailed) or (memory and not memory.required):
            return event
        return RunFailed(error, event.usage, event.steps)

    async def _keep(
        self, remembered: RememberedTurn, answer: TurnAnswer, wait: float
    ) -> ServiceError | None:
        """Store `answer` in a task that goes on if the caller leaves."""
        storing = store_answer(remembered, answer, self.agent.agent_id, wait=wait)
        return await asyncio.shield(self._services.tasks.start(storing))
