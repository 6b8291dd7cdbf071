"""What is told of a request and of its run once they are over, for the access log and the metrics
alike."""

import msgspec

from ai_agent_service.core.events import StepRecord
from ai_agent_service.core.messages import ToolOutcome
from ai_agent_service.core.usage import Usage


class ToolUse(msgspec.Struct, frozen=True, gc=False):
    """One call of a tool; `seconds` is wall time."""

    name: str
    outcome: ToolOutcome
    seconds: float


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is over, whatever came of it.

    `outcome` is `answered`, `left` (the caller did), `stopped` (with the service) or an error's
    code. `steps` are those that came to their end, `step_count` also has one that broke off.
    `usage` is None where no provider reported any. `is_repeated` says that the answer was one given
    before, or another request's, so that nothing was asked of a model. `tenant`, `user` and
    `session` are as the caller named them, and are not to be shown. `seconds` is wall time.
    """

    agent_id: str
    agent_version: str = ""
    key_id: str
    tenant: str
    user: str
    session: str | None
    run_id: str
    task: str | None
    outcome: str
    is_streamed: bool
    is_repeated: bool = False
    is_without_memory: bool = False
    provider: str
    steps: tuple[StepRecord, ...] = ()
    step_count: int = 0
    tools: tuple[ToolUse, ...] = ()
    usage: Usage | None = None
    seconds: float

    @property
    def provider_seconds(self) -> float:
        """How long the answers of the model took, all of them together."""
        return sum(step.seconds for step in self.steps)

    @property
    def tool_seconds(self) -> float:
        """How long the calls of tools took, all of them together; those of one step run beside each
        other."""
        return sum(use.seconds for use in self.tools)


class RequestReport(msgspec.Struct, frozen=True):
    """A request that is over, whatever came of it.

    `route` is the template of its address, `unknown` where there is none. `status` is what the
    caller was told, 499 if they left before. `first_byte_seconds` is when the answer began; None if
    it did not. `error` is the code of the error that it was answered with, or that ended it.
    """

    method: str
    route: str
    status: int
    seconds: float
    first_byte_seconds: float | None
    client: str
    error: str
    run: RunReport | None
