"""What a run says and does: the one collector of its events, for every reader of them."""

import asyncio
from collections.abc import AsyncGenerator

import msgspec

from ai_agent_service.core.events import (
    MemorySkipped,
    ReasoningDelta,
    RefusalDelta,
    RunEvent,
    RunFailed,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolsMissing,
    ToolStarted,
)
from ai_agent_service.core.messages import ToolCall, ToolResult
from ai_agent_service.memory.base import Step, TurnAnswer


class RunRecord:
    """The events of a run in their order, and what they add up to.

    `add` is all that a chunk costs; everything else is put together when somebody asks for it.
    """

    def __init__(self) -> None:
        self.events: list[RunEvent] = []
        self.end: RunFinished | RunFailed | None = None
        """The last event, once it is there."""

        self.is_started = False
        """Whether the run had its slot."""

        self._is_closed = False
        self.waiting: asyncio.Event | None = None
        """What those who follow the run wait for."""

    def add(self, event: RunEvent) -> None:
        """Take the next event."""
        self.events.append(event)
        if self.waiting is not None:
            self.wake()

    def close(self) -> None:
        """Let those who follow the run know that no event comes any more."""
        self._is_closed = True
        self.wake()

    async def follow(self) -> AsyncGenerator[RunEvent, None]:
        """Yield all events from the first one on; they end early if the run is stopped."""
        position = 0
        while True:
            while position < len(self.events):
                yield self.events[position]
                position += 1
            if self._is_closed:
                return
            self.waiting = self.waiting or asyncio.Event()
            await self.waiting.wait()

    def wake(self) -> None:
        """Let those who follow the run look for new events."""
        if self.waiting is not None:
            waiting, self.waiting = self.waiting, None
            waiting.set()

    def join_text(self) -> str:
        """Return the answer's text."""
        return "".join([event.text for event in self.events if isinstance(event, TextDelta)])

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.join_text()

    @property
    def said(self) -> str:
        """The answer's text with its refusals, in their order."""
        texts = (TextDelta, RefusalDelta)
        return "".join([event.text for event in self.events if isinstance(event, texts)])

    @property
    def reasoning(self) -> str:
        """What the model thought."""
        return "".join([event.text for event in self.events if isinstance(event, ReasoningDelta)])

    @property
    def refusal(self) -> str:
        """The refusal that the provider sent separately from the text."""
        return "".join([event.text for event in self.events if isinstance(event, RefusalDelta)])

    @property
    def characters(self) -> int:
        """How many characters the model said, with reasoning and refusals."""
        texts = (TextDelta, ReasoningDelta, RefusalDelta)
        return sum(len(event.text) for event in self.events if isinstance(event, texts))

    @property
    def calls(self) -> list[ToolCall]:
        """The calls of our tools, in the order of their starts."""
        return [event.call for event in self.events if isinstance(event, ToolStarted)]

    @property
    def results(self) -> list[ToolResult]:
        """The results of our tools, in the order of their ends."""
        return [event.result for event in self.events if isinstance(event, ToolFinished)]

    @property
    def started_steps(self) -> int:
        """How many steps were started, with one that broke off; 0 without a slot."""
        if not self.is_started:
            return 0
        steps = [event.step for event in self.events if isinstance(event, ToolStarted)]
        return steps[-1] + 1 if steps else 1

    @property
    def is_without_memory(self) -> bool:
        """Whether the run did without the agent's memory, which its first event says."""
        return bool(self.events) and isinstance(self.events[0], MemorySkipped)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the run had to do without, a sentence each."""
        notes: list[str] = []
        for event in self.events:
            if isinstance(event, ToolsMissing):
                notes += event.reasons
            elif isinstance(event, MemorySkipped):
                notes.append(f"without memory: {event.reason}")
        return tuple(notes)


def build_final_answer(record: RunRecord, end: RunFinished | RunFailed) -> TurnAnswer:
    """Return what memory keeps of a run that ends with `end`.

    An answer that waits for the client's tools is not complete, and its last step has their calls
    too.
    """
    partial = build_partial_answer(record)
    if isinstance(end, RunFailed):
        return msgspec.structs.replace(partial, usage=end.usage, error=end.error.code)
    if not end.tool_calls:
        return msgspec.structs.replace(
            partial, status="complete", reason=end.reason, usage=end.usage
        )
    calls = end.steps[-1].tool_calls if end.steps else end.tool_calls
    numbers = [event.step for event in record.events if isinstance(event, ToolStarted)]
    if numbers and numbers[-1] == len(end.steps):
        *earlier, last = partial.steps
        steps = (*earlier, msgspec.structs.replace(last, calls=calls))
        return msgspec.structs.replace(partial, steps=steps, reason=end.reason, usage=end.usage)
    steps = (*partial.steps, Step(partial.last, calls))
    return msgspec.structs.replace(
        partial, steps=steps, last="", reason=end.reason, usage=end.usage
    )


def build_partial_answer(record: RunRecord) -> TurnAnswer:
    """Return what memory keeps of a run that did not come to its end.

    A result without a call, which only an agent type of a plug-in can send, belongs to no step and
    is left out.
    """
    steps: list[Step] = []
    number: int | None = None
    text: list[str] = []
    said: list[str] = []
    for event in record.events:
        match event:
            case TextDelta(text=piece) | RefusalDelta(text=piece):
                text.append(piece)
                said.append(piece)
            case ToolStarted(call=call, step=step):
                if step != number:
                    steps.append(Step("".join(said)))
                    number = step
                    said.clear()
                steps[-1] = msgspec.structs.replace(steps[-1], calls=(*steps[-1].calls, call))
            case ToolFinished(result=result) if steps:
                steps[-1] = msgspec.structs.replace(steps[-1], results=(*steps[-1].results, result))
            case _:
                pass
    return TurnAnswer(
        text="".join(text), steps=tuple(steps), last="".join(said), status="incomplete"
    )
