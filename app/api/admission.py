"""A run with what belongs to its caller: it counts against what they may ask, and stands in the audit log."""

from collections.abc import Generator
from contextlib import contextmanager

from app.agents.base import BaseAgent, Turn
from app.auth.limits import NOT_LIMITED, Limiter
from app.auth.principal import Principal
from app.core.context import RunContext
from app.core.usage import Usage
from app.memory.tokens import estimate
from app.observability.audit import audit
from app.service import Service

ASSUMED_ANSWER_TOKENS = 1024
"""How long an answer is taken to become, where neither the request nor the agent says."""

_MOST_TOKENS = ("max_completion_tokens", "max_tokens", "num_predict")


class CountedRun:
    """A run as its caller asked for it: `begin` counts it against what the caller may ask, and `ended` has to be called once it is over,
    whatever came of it."""

    def __init__(self, service: Service, limiter: Limiter, agent: BaseAgent, turn: Turn, context: RunContext, caller: Principal) -> None:
        self._service = service
        self._limiter = limiter
        self._agent = agent
        self._turn = turn
        self._caller = caller
        self._admission = NOT_LIMITED
        self._began = False
        self.context = context
        self.events = agent.run(turn, context)

    async def begin(self) -> None:
        """Counts the run; raises RateLimited where the caller, or their key, has used up what they may ask."""
        key, context = self._caller.key, self.context
        if key.limits or key.user_limits:
            tokens = sum(estimate(message.text) for message in self._turn.messages) + _answer_tokens(self._agent, self._turn)
            self._admission = await self._limiter.admit(
                self._caller, context.user, run_id=context.run_id, tokens=tokens, seconds=context.seconds_left
            )

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


def _answer_tokens(agent: BaseAgent, turn: Turn) -> int:
    """How many tokens the model may answer with, as far as that is said."""
    given = (settings.get(name) for settings in (turn.settings, agent.definition.model_settings) for name in _MOST_TOKENS)
    return next((tokens for tokens in given if isinstance(tokens, int) and tokens > 0), ASSUMED_ANSWER_TOKENS)
