"""Admits the runs of callers: their rate limits, a slot, and the audit log."""

from contextlib import AbstractContextManager

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.auth.principal import Principal
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import AuditUnavailableError, RateLimitError
from ai_agent_service.core.events import RunFinished
from ai_agent_service.core.turn import Turn
from ai_agent_service.limits.limiter import NOT_LIMITED, Limiter
from ai_agent_service.memory.tokens import estimate
from ai_agent_service.observability.audit import audit, record_start
from ai_agent_service.runs.record import RunRecord
from ai_agent_service.runs.slots import RunSlots

ASSUMED_ANSWER_TOKENS = 1024
"""How long an answer is taken to become, where neither the request nor the agent says."""

CHARACTERS_PER_TOKEN = 4

_TOKEN_LIMIT_SETTINGS = ("max_completion_tokens", "max_tokens", "num_predict")


class RunAdmission:
    """What a run counts against: its caller's limits and the slots of the process."""

    def __init__(self, caller: Principal, limiter: Limiter, slots: RunSlots) -> None:
        self._caller = caller
        self._limiter = limiter
        self._slots = slots
        self._granted = NOT_LIMITED
        self._prompt_tokens = 0

    async def admit(self, agent: BaseAgent, turn: Turn, context: RunContext) -> None:
        """Reserve what the run may use, and write the audit line of its start if that is required.

        Raises RateLimitError when a limit is reached, and AuditUnavailableError.
        """
        await self._reserve(agent, turn, context)
        try:
            await record_start(context.audit_fields)
        except BaseException as error:
            code = error.code if isinstance(error, AuditUnavailableError) else "stopped"
            audit.info("agent.refused", extra={**context.audit_fields, "outcome": code})
            await self._granted.settle(0)
            raise

    async def _reserve(self, agent: BaseAgent, turn: Turn, context: RunContext) -> None:
        key = self._caller.key
        if not (key.limits or key.user_limits):
            return
        self._prompt_tokens = sum(estimate(message.text) for message in turn.messages)
        tokens = self._prompt_tokens + _estimate_answer_tokens(agent, turn)
        try:
            self._granted = await self._limiter.admit(
                self._caller,
                context.user,
                run_id=context.run_id,
                tokens=tokens,
                seconds=context.seconds_left,
            )
        except RateLimitError as error:
            audit.info("agent.refused", extra={**context.audit_fields, "outcome": error.code})
            raise

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers about limits for the response."""
        return [(name.encode(), value.encode()) for name, value in self._granted.headers.items()]

    def hold_slot(self) -> AbstractContextManager[None]:
        """Return a context manager that holds a slot; see RunSlots.hold."""
        return self._slots.hold()

    async def settle(self, context: RunContext, record: RunRecord, outcome: str) -> None:
        """Write the audit line, and replace what was reserved by what was used.

        The reported usage of a run that did not come to its end lacks the step that broke off. What
        that step read and said is estimated, so that leaving early does not make answers free.
        """
        audit.info("agent.called", extra={**context.audit_fields, "outcome": outcome})
        end = record.end
        used = end.usage.total_tokens if end is not None and end.usage is not None else None
        if not isinstance(end, RunFinished):
            estimated = (
                record.started_steps * self._prompt_tokens
                + record.characters // CHARACTERS_PER_TOKEN
            )
            used = max(used or 0, estimated)
        await self._granted.settle(used)


def _estimate_answer_tokens(agent: BaseAgent, turn: Turn) -> int:
    """Return how many tokens the model may answer with, as far as settings limit it."""
    for settings in (turn.settings, agent.definition.model_settings):
        given = [
            value
            for name in _TOKEN_LIMIT_SETTINGS
            if isinstance(value := settings.get(name), int) and value > 0
        ]
        if given:
            return max(given)
    return ASSUMED_ANSWER_TOKENS
