"""What a run says and does, collected for memory."""

import msgspec

from ai_agent_service.core.events import (
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolStarted,
)
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.memory.base import Step, TurnAnswer


class AnswerRecorder:
    """What is said and done in a run, put together for the memory."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._said: list[str] = []
        self._steps: list[tuple[int, str, list[ToolCall], list[ToolResult]]] = []

    def add(self, event: RunEvent) -> None:
        """Takes one event that is not the last."""
        match event:
            case TextDelta(text=text) | RefusalDelta(text=text):
                self._text.append(text)
                self._said.append(text)
            case ToolStarted(call=call, step=step):
                if not self._steps or self._steps[-1][0] != step:
                    self._begin_step(step)
                self._steps[-1][2].append(call)
            case ToolFinished(result=result):
                self._steps[-1][3].append(result)
            case _:
                pass

    def build_final_answer(self, event: RunFinished | RunFailed) -> TurnAnswer:
        """The answer of a run that ended with `event`. One that waits for the client's tools is not
        complete."""
        if isinstance(event, RunFailed):
            return msgspec.structs.replace(
                self.build_partial_answer(), usage=event.usage, error=event.error.code
            )
        if event.tool_calls:
            if not self._steps or self._steps[-1][0] != len(event.steps):
                self._begin_step(len(event.steps))
            asked = event.steps[-1].tool_calls if event.steps else event.tool_calls
            self._steps[-1][2][:] = asked
        status = self.build_partial_answer() if event.tool_calls else self._build_answer()
        return msgspec.structs.replace(status, reason=event.reason, usage=event.usage)

    def build_partial_answer(self) -> TurnAnswer:
        """What there is of an answer that was not ended."""
        return msgspec.structs.replace(self._build_answer(), status="incomplete")

    def _begin_step(self, step: int) -> None:
        self._steps.append((step, "".join(self._said), [], []))
        self._said.clear()

    def _build_answer(self) -> TurnAnswer:
        steps = tuple(
            Step(text, tuple(calls), tuple(results)) for _, text, calls, results in self._steps
        )
        return TurnAnswer(text="".join(self._text), steps=steps, last="".join(self._said))
