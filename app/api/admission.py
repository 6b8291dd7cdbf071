"""Admits runs: counts them against what their callers may ask, and tells the audit log when they are over."""

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager

from starlette.requests import Request

from app.agents.base import BaseAgent, Turn
from app.api.dependencies import access_of
from app.auth.limits import NOT_LIMITED, Admission
from app.auth.principal import Principal
from app.core.context import RunContext
from app.core.events import RunEvent
from app.core.usage import Usage
from app.memory.tokens import estimate
from app.observability.audit import audit
from app.service import Service

ASSUMED_ANSWER_TOKENS = 1024
"""How long an answer is taken to become, where neither the request nor the agent says."""

_MOST_TOKENS = ("max_completion_tokens", "max_tokens", "num_predict")


class AdmittedRun:
    """A run that may be taken: its circumstances and its events. `ended` has to be called once it is over, whatever came of it."""

    def __init__(self, service: Service, context: RunContext, events: AsyncGenerator[RunEvent, None], admission: Admission) -> None:
        self._service = service
        self._admission = admission
        self._began = False
        self.context = context
        self.events = events

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """What the answer tells of limits."""
        return [(name.encode(), value.encode()) for name, value in self._admission.headers.items()]

    @contextmanager
    def slot(self) -> Generator[None, None, None]:
        """See Service.run_slot."""
        with self._service.run_slot():
            self._began = True
            yield

    async def ended(self, usage: Usage | None, outcome: str) -> None:
        """Counts what was used, and tells the audit log."""
        audit.info("agent.called", extra={**self.context.named, "outcome": outcome})
        unknown = None if self._began else 0
        await self._admission.settle(unknown if usage is None else usage.total_tokens)


async def admit(request: Request, service: Service, agent: BaseAgent, turn: Turn, context: RunContext, caller: Principal) -> AdmittedRun:
    """The run of `turn`, to be taken; raises RateLimited where the caller, or their key, has used up what they may ask."""
    admission = NOT_LIMITED
    if caller.key.limits or caller.key.user_limits:
        tokens = sum(estimate(message.text) for message in turn.messages) + _answer_tokens(agent, turn)
        limiter = (await access_of(request)).limiter
        admission = await limiter.admit(caller, context.user, run_id=context.run_id, tokens=tokens, seconds=context.seconds_left)
    return AdmittedRun(service, context, agent.run(turn, context), admission)


def _answer_tokens(agent: BaseAgent, turn: Turn) -> int:
    """How many tokens the model may answer with, as far as that is said."""
    given = (settings.get(name) for settings in (turn.settings, agent.definition.model_settings) for name in _MOST_TOKENS)
    return next((tokens for tokens in given if isinstance(tokens, int) and tokens > 0), ASSUMED_ANSWER_TOKENS)
