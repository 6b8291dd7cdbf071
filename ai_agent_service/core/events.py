"""What a run tells while it goes on: one stream of events that every surface renders."""

from typing import Literal

import msgspec

from ai_agent_service.core.errors import ServiceError
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.core.usage import Usage

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """The next piece of the answer's text."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True, gc=False):
    """The next piece of what a thinking model thinks; never part of the answer."""

    text: str


class RefusalDelta(msgspec.Struct, frozen=True, gc=False):
    """The next piece of a refusal that the provider keeps apart from the answer's text."""

    text: str


class ToolStarted(msgspec.Struct, frozen=True):
    """One of our tools begins; always followed by a ToolFinished with the same call id, unless the
    run fails.

    `step` counts the run's steps from 1; calls of one step were asked for together.
    """

    call: ToolCall
    step: int = 1


class ToolProgress(msgspec.Struct, frozen=True):
    """How far one of our tools says that it is, between its start and its end; `total` is None
    where it is not known."""

    call: ToolCall
    progress: float
    total: float | None = None
    message: str = ""


class ToolFinished(msgspec.Struct, frozen=True):
    """One of our tools came to an end, well or not (`result.is_error`)."""

    result: ToolResult


class ToolsMissing(msgspec.Struct, frozen=True):
    """Told before the first step of a run that has to do without some of the agent's tools;
    `reasons` names them, each with why."""

    reasons: tuple[str, ...]


class MemorySkipped(msgspec.Struct, frozen=True):
    """The first event of a run that goes on without the agent's memory, which cannot be used now;
    `reason` is a sentence."""

    reason: str


class StepRecord(msgspec.Struct, frozen=True):
    """One step of a run: what the model asked for and what it took; `usage` is None where the
    provider reports none.

    `model` and `provider` name what answered. `seconds` is from the question to the answer's end,
    with the time that whoever reads the events took for them.
    """

    tool_calls: tuple[ToolCall, ...]
    usage: Usage | None
    model: str = ""
    provider: str = ""
    seconds: float = 0.0


class RunFinished(msgspec.Struct, frozen=True):
    """The last event of a run that came to its end.

    `tool_calls` are the client's own, named only with the reason `tool_calls`. `usage` is the sum
    over `steps`. `is_repeated` says that this is told of a run that was another request's.
    """

    reason: FinishReason
    usage: Usage | None
    steps: tuple[StepRecord, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    is_repeated: bool = False


class RunFailed(msgspec.Struct, frozen=True):
    """The last event of a run that broke; what was told before it stands."""

    error: ServiceError
    usage: Usage | None = None
    steps: tuple[StepRecord, ...] = ()


RunEvent = (
    TextDelta
    | ReasoningDelta
    | RefusalDelta
    | ToolStarted
    | ToolProgress
    | ToolFinished
    | ToolsMissing
    | MemorySkipped
    | RunFinished
    | RunFailed
)
