"""Record a request and its run at their end, for the access log and the metrics."""

import msgspec

from ai_agent_service.core.events import StepRecord
from ai_agent_service.core.messages import ToolOutcome
from ai_agent_service.core.usage import Usage

UNKNOWN_ROUTE = "unknown"
"""The route of a request that matches none."""


class ToolUse(msgspec.Struct, frozen=True, gc=False):
    """One call of a tool; `seconds` is wall time."""

    name: str
    outcome: ToolOutcome
    seconds: float


class RunReport(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has ended.

    `outcome` is `answered`, `left` (by the caller), `stopped` (with the service) or an error's
    code. `steps` are the complete ones, `step_count` includes one that broke off. `usage` is None
    if no provider reported any. `is_repeated` marks an answer from an earlier or a parallel
    request, for which no model was asked. `tenant`, `user` and `session` are the caller's names,
    which must not be shown. `seconds` is wall time.
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
        """The sum of the times of the model's answers."""
        return sum(step.seconds for step in self.steps)

    @property
    def tool_seconds(self) -> float:
        """The sum of the times of tool calls, of which those of one step run in parallel."""
        return sum(use.seconds for use in self.tools)


class RequestReport(msgspec.Struct, frozen=True):
    """A request that has ended.

    `route` is the template of its address or `unknown`. `status` is that of the answer, or 499 if
    the caller left before. `first_byte_seconds` is when the answer began; None if it did not.
    `error` is the code of the error in the answer, or of the one that ended it.
    """

    method: str
    route: str
    status: int
    seconds: float
    first_byte_seconds: float | None
    client: str
    error: str
    run: RunReport | None
