"""A run with what belongs to its caller: it counts against what they may ask, stands in the audit
log, and is reported."""

import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager

from ai_agent_service.agents.base import BaseAgent, Turn
from ai_agent_service.auth.principal import Principal
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import RateLimitError
from ai_agent_service.core.events import (
    MemorySkipped,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from ai_agent_service.limits.limiter import NOT_LIMITED, Limiter
from ai_agent_service.memory.tokens import estimate
from ai_agent_service.observability.audit import audit
from ai_agent_service.observability.records import RunReport, ToolUse
from ai_agent_service.runtime.service import Service

ASSUMED_ANSWER_TOKENS = 1024
"""How long an answer is taken to become, where neither the request nor the agent says."""

CHARACTERS_PER_TOKEN = 4

_TOKEN_LIMIT_SETTINGS = ("max_completion_tokens", "max_tokens", "num_predict")


class CountedRun:
    """A run as its caller asked for it: `begin` counts it against what the caller may ask, and
    `ended` has to be called once it is over, whatever came of it. `events` are those of the run
    once `begin` has returned; `noticed` is to be told each of them but texts."""

    def __init__(
        self,
        service: Service,
        limiter: Limiter,
        agent: BaseAgent,
        turn: Turn,
        context: RunContext,
        caller: Principal,
    ) -> None:
        self._service = service
        self._limiter = limiter
        self._agent = agent
        self._caller = caller
        self._admission = NOT_LIMITED
        self._began_at = time.monotonic()
        self._prompt_tokens = 0
        self._said = 0
        """Characters that the model has said, if its caller's key has limits."""

        self._steps = 0
        self._tools: list[ToolUse] = []
        self._last: RunFinished | RunFailed | None = None
        self._is_without_memory = False
        self.turn = turn
        self.context = context
        self.events = agent.run(turn, context)

    async def begin(self) -> None:
        """Counts the run; raises RateLimitError where the caller, or their key, has used up what
        they may ask."""
        key, context = self._caller.key, self.context
        if not (key.limits or key.user_limits):
            return
        self._prompt_tokens = sum(estimate(message.text) for message in self.turn.messages)
        tokens = self._prompt_tokens + _estimate_answer_tokens(self._agent, self.turn)
        try:
            self._admission = await self._limiter.admit(
                self._caller,
                context.user,
                run_id=context.run_id,
                tokens=tokens,
                seconds=context.seconds_left,
            )
        except RateLimitError as error:
            audit.info("agent.refused", extra={**context.audit_fields, "outcome": error.code})
            raise
        self.events = self._count_output(self.events)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer tells of limits."""
        return [(name.encode(), value.encode()) for name, value in self._admission.headers.items()]

    @contextmanager
    def hold_slot(self) -> Generator[None, None, None]:
        """See Service.run_slot."""
        with self._service.acquire_run_slot():
            self._steps = 1
            yield

    def observe(self, event: RunEvent) -> None:
        """Takes note of an event that is no text."""
        if isinstance(event, ToolFinished):
            result = event.result
            self._tools.append(ToolUse(result.name, result.outcome, result.seconds))
        elif isinstance(event, ToolStarted):
            self._steps = event.step + 1
        elif isinstance(event, RunFinished | RunFailed):
            self._last = event
        elif isinstance(event, MemorySkipped):
            self._is_without_memory = True

    async def finish(self, outcome: str) -> None:
        """Counts what was used, and tells the audit log. The usage of a run that is not whole lacks
        the step that broke off: what it read and said is estimated, so that nobody gets answers for
        nothing by leaving before their end."""
        audit.info("agent.called", extra={**self.context.audit_fields, "outcome": outcome})
        told = (
            self._last.usage.total_tokens
            if self._last is not None and self._last.usage is not None
            else None
        )
        if not isinstance(self._last, RunFinished):
            told = max(
                told or 0, self._steps * self._prompt_tokens + self._said // CHARACTERS_PER_TOKEN
            )
        await self._admission.settle(told)

    def report(self, outcome: str, *, is_streamed: bool) -> RunReport:
        """What there is to tell of the run, which came to `outcome`."""
        context, last = self.context, self._last
        steps = () if last is None else last.steps
        return RunReport(
            agent_id=context.agent_id,
            agent_version=context.agent_version,
            key_id=context.key_id,
            tenant=context.tenant,
            user=context.user,
            session=context.session,
            run_id=context.run_id,
            task=context.task,
            outcome=outcome,
            is_streamed=is_streamed,
            is_repeated=isinstance(last, RunFinished) and last.is_repeated,
            is_without_memory=self._is_without_memory,
            provider=steps[-1].provider if steps else self._agent.parts.provider.name,
            steps=steps,
            step_count=len(steps) if isinstance(last, RunFinished) else self._steps,
            tools=tuple(self._tools),
            usage=None if last is None else last.usage,
            seconds=time.monotonic() - self._began_at,
        )

    async def _count_output(
        self, events: AsyncGenerator[RunEvent, None]
    ) -> AsyncGenerator[RunEvent, None]:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, TextDelta | ReasoningDelta | RefusalDelta):
                    self._said += len(event.text)
                yield event


def _estimate_answer_tokens(agent: BaseAgent, turn: Turn) -> int:
    """How many tokens the model may answer with, as far as that is said."""
    for settings in (turn.settings, agent.definition.model_settings):
        given = [
            value
            for name in _TOKEN_LIMIT_SETTINGS
            if isinstance(value := settings.get(name), int) and value > 0
        ]
        if given:
            return max(given)
    return ASSUMED_ANSWER_TOKENS
