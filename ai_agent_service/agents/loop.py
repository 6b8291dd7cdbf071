"""THE loop: ask the model, stream what it says, run the tools it calls, ask again."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import msgspec

from ai_agent_service.agents.calls import CallIds, make_sendable, repair_text
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.agents.repetition import RepetitionCounter
from ai_agent_service.agents.shortening import CompactMessages, Shortener
from ai_agent_service.core.bounds import MAX_ANSWER_CHARACTERS, MAX_CALLS_PER_STEP
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    ContextTooLongError,
    ProviderProtocolError,
    RunTimeoutError,
    ServiceError,
)
from ai_agent_service.core.events import (
    FinishReason,
    RunEvent,
    RunFailed,
    RunFinished,
    StepRecord,
    TextDelta,
    ToolFinished,
    ToolProgress,
    ToolStarted,
)
from ai_agent_service.core.messages import (
    Message,
    NamedTool,
    ToolCall,
    ToolChoice,
    ToolResult,
    ToolSpec,
    build_tool_message,
)
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.core.usage import Usage, sum_usage
from ai_agent_service.memory.windows import ContextWindows
from ai_agent_service.providers.base import ModelEvent, ModelFinished, ModelRequest, Provider
from ai_agent_service.providers.debug_log import stream_logged
from ai_agent_service.tools.toolset import Toolset

logger = logging.getLogger(__name__)


PROGRESS_SECONDS = 0.1
"""At least this long between two reports of progress of one call; those in between are left out."""

MAX_PROGRESS_MESSAGE = 500
"""Characters of a progress message that are passed on."""

REPEATED_CALL_RESULT = (
    "Not run again: this call was just made with the same arguments, and its earlier result stands."
    " Go on with that result."
)


class LoopOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a run of the loop is limited, and what it shares with other runs.

    `client_tools` are the names in `request.tools` that the client runs itself. `max_characters`
    bounds the text and reasoning of all steps. `compact` gives shorter messages for a model that
    finds them too long, or is known in `windows` to do so.
    """

    max_steps: int
    pending: PendingSteps
    client_tools: frozenset[str] = frozenset()
    max_characters: int = MAX_ANSWER_CHARACTERS
    compact: CompactMessages | None = None
    windows: ContextWindows = msgspec.field(default_factory=ContextWindows)


async def run_loop(
    provider: Provider,
    request: ModelRequest,
    toolset: Toolset,
    context: RunContext,
    options: LoopOptions,
) -> AsyncGenerator[RunEvent, None]:
    """Take steps until one has no calls of our tools, or a limit of `options` or the deadline is
    reached, or an error occurs that the model cannot repair.

    A name that the client and `toolset` have is ours. The events end with one RunFinished or
    RunFailed. Closing the generator stops the provider and the tools.
    """
    loop = _LoopState(provider, request, toolset, context, options)
    try:
        while True:
            said = await loop.begin_step()
            left = loop.characters_left
            try:
                async with aclosing(loop.ask()) as events:
                    async for event in events:
                        if isinstance(event, ModelFinished):
                            loop.finished = event
                            continue
                        text = event.text
                        # Wires send clean text; a plug-in's provider may not.
                        if not text.isascii() or "\0" in text:
                            event = type(event)(replace_unstorable(text))
                        said.append(event)
                        yield event
                        left -= len(text)
                        if left < 0:
                            loop.finished = loop.cut_answer()
                            break
            except ContextTooLongError as error:
                await loop.shorten(error)
                continue
            loop.characters_left = left
            ours, theirs = loop.take_answer()
            if (end := loop.find_end(ours, theirs)) is not None:
                for last in end:
                    yield last
                return
            async with aclosing(loop.run_tools(ours)) as updates:
                async for update in updates:
                    if isinstance(update, ToolFinished):
                        loop.results[update.result.call_id] = update.result
                    yield update
            if theirs:
                yield loop.hand_over(ours, theirs)
                return
            loop.add_results()
    except ServiceError as error:
        fields = {**context.log_fields, "code": error.code, "steps": len(loop.steps)}
        logger.info("run.failed", extra=fields)
        yield RunFailed(error, _sum_steps(loop.steps), tuple(loop.steps))


class _LoopState:
    """What a run of the loop knows: the conversation with its steps, and the results of the step
    that it is in."""

    def __init__(
        self,
        provider: Provider,
        request: ModelRequest,
        toolset: Toolset,
        context: RunContext,
        options: LoopOptions,
    ) -> None:
        self.steps: list[StepRecord] = []
        self.results: dict[str, ToolResult] = {}
        self.finished: ModelFinished | None = None
        self.characters_left = options.max_characters
        self._provider = provider
        self._request = request
        self._toolset = toolset
        self._context = context
        self._options = options
        self._client_tools = frozenset(name for name in options.client_tools if name not in toolset)
        self._messages = list(map(make_sendable, request.messages))
        self._said: list[ModelEvent] = []
        self._asked_at = 0.0
        self._answer = Message(role="assistant")
        self._logged_count = 0
        self._ids = CallIds(self._messages)
        self._repetitions = RepetitionCounter()
        self._shortener = Shortener(options.compact, options.windows, provider.name)

    @property
    def begun(self) -> int:
        """How many of the messages were there before the first step."""
        return len(self._request.messages)

    @property
    def question(self) -> ModelRequest:
        """What the model is asked for the next step."""
        tools, choice = self._select_tools()
        return msgspec.structs.replace(
            self._request, messages=tuple(self._messages), tools=tools, tool_choice=choice
        )

    async def begin_step(self) -> list[ModelEvent]:
        """Prepare the next step, and return the list that takes what the model says in it; raises
        RunTimeoutError past the deadline."""
        if self._context.seconds_left <= 0:
            raise RunTimeoutError
        self.finished = None
        self._said = []
        self._asked_at = time.monotonic()
        fewer = await self._shortener.fit(self.question, self.begun)
        if fewer is not None:
            self.replace_conversation(fewer)
        return self._said

    def ask(self) -> AsyncGenerator[ModelEvent, None]:
        """Ask the model for the next step."""
        return stream_logged(
            self._provider,
            self.question,
            logged_count=self._logged_count,
            run_id=self._context.run_id,
            agent_id=self._context.agent_id,
            step=len(self.steps) + 1,
        )

    def cut_answer(self) -> ModelFinished:
        """Return the end of an answer that is longer than a run may have."""
        fields = {**self._context.log_fields, "characters": self._options.max_characters}
        logger.warning("run.answer_cut", extra=fields)
        return ModelFinished("length")

    async def shorten(self, error: ContextTooLongError) -> None:
        """Make the conversation shorter after `error`; raises it if that cannot be done."""
        fewer = None
        if not self._said:
            fewer = await self._shortener.handle_refusal(self.question, self.begun, error)
        if fewer is None:
            raise error
        run = {"run_id": self._context.run_id, "agent_id": self._context.agent_id}
        logger.info("run.shortened", extra=run)
        self.replace_conversation(fewer)

    def replace_conversation(self, messages: tuple[Message, ...]) -> None:
        """Take shorter messages for those that the run began with."""
        self._messages[: len(self._request.messages)] = map(make_sendable, messages)
        self._request = msgspec.structs.replace(self._request, messages=messages)
        self._logged_count = 0

    def take_answer(self) -> tuple[tuple[ToolCall, ...], tuple[ToolCall, ...]]:
        """Record the model's answer as a step, and return its calls of our tools and of the
        client's, under unique ids."""
        finished = self.finished
        if finished is None:
            raise ProviderProtocolError(
                f"The answer of {self._provider.name} ended without a finish reason."
            )
        self._shortener.note_answer(self.question)
        calls = self._ids.ensure_unique(
            map(repair_text, self._limit_calls(finished.tool_calls)),
            sent_out=lambda call: call.name in self._client_tools,
        )
        seconds = time.monotonic() - self._asked_at
        model = replace_unstorable(finished.model) or self._request.model
        answered_by = finished.provider or self._provider.name
        self.steps.append(StepRecord(calls, finished.usage, model, answered_by, seconds))
        self._logged_count = len(self._messages)
        text = "".join([event.text for event in self._said if isinstance(event, TextDelta)])
        self._answer = Message(role="assistant", content=text, tool_calls=calls)
        self.results = {}
        ours = tuple(call for call in calls if call.name not in self._client_tools)
        return ours, tuple(call for call in calls if call.name in self._client_tools)

    def _limit_calls(self, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        """Return the first of `calls`; the model sees from its history that it made no more."""
        if len(calls) > MAX_CALLS_PER_STEP:
            fields = {**self._context.log_fields, "calls": len(calls)}
            logger.warning("run.calls_dropped", extra=fields)
        return calls[:MAX_CALLS_PER_STEP]

    def find_end(
        self, ours: tuple[ToolCall, ...], theirs: tuple[ToolCall, ...]
    ) -> list[RunEvent] | None:
        """Return the last events of the run if this step is its last and calls no tool."""
        if not ours and not theirs:
            assert self.finished is not None
            reason = self.finished.reason
            return [_build_finished("stop" if reason == "tool_calls" else reason, self.steps)]
        if len(self.steps) >= self._options.max_steps and not theirs:
            notice = _build_stop_notice(
                self._options.max_steps, has_text=bool(self._answer.content)
            )
            return [TextDelta(notice), _build_finished("stop", self.steps)]
        return None

    def run_tools(
        self, calls: tuple[ToolCall, ...]
    ) -> AsyncGenerator[ToolStarted | ToolProgress | ToolFinished, None]:
        """Run `calls`, one step's of our tools."""
        repeated = self._repetitions.find_repeated(calls)
        return _run_tools(calls, len(self.steps), self._toolset, self._context, repeated)

    def hand_over(self, ours: tuple[ToolCall, ...], theirs: tuple[ToolCall, ...]) -> RunFinished:
        """Return the end of a run that waits for the results of the client's tools, and keep what
        the client does not know of the step."""
        has_data = any(call.provider_data for call in self._answer.tool_calls)
        if ours or has_data or len(self.steps) > 1:
            earlier = self._messages[len(self._request.messages) :]
            ids = [call.id for call in theirs]
            self._options.pending.keep(
                self._context, self._answer, self.results.values(), ids, earlier=earlier
            )
        return _build_finished("tool_calls", self.steps, theirs)

    def add_results(self) -> None:
        """Add the step and the results of its calls to the conversation."""
        self._messages.append(make_sendable(self._answer))
        self._messages += (
            build_tool_message(self.results[call.id]) for call in self._answer.tool_calls
        )

    def _select_tools(self) -> tuple[tuple[ToolSpec, ...], ToolChoice | None]:
        """Return the tools to offer in the next step, and the choice among them.

        A choice that forces a call of the client's tools stands until one is called: ours may run
        before that, up to the last step or until the model only repeats itself. One that forces a
        call of ours holds for the first step, since a run with a call in each step never ends.
        """
        tools, choice = self._request.tools, self._request.tool_choice
        if choice != "required" and not isinstance(choice, NamedTool):
            return tools, choice
        theirs = tuple(
            spec
            for spec in tools
            if spec.name in self._client_tools and choice in ("required", NamedTool(spec.name))
        )
        if not theirs:
            return tools, "auto" if self.steps else choice
        is_last = len(self.steps) + 1 >= self._options.max_steps
        repeats_itself = bool(self.results) and all(
            result.content == REPEATED_CALL_RESULT for result in self.results.values()
        )
        if is_last or repeats_itself or isinstance(choice, NamedTool):
            return theirs, choice
        return tools, choice


async def _run_tools(
    calls: tuple[ToolCall, ...],
    step: int,
    toolset: Toolset,
    context: RunContext,
    repeated: frozenset[str],
) -> AsyncGenerator[ToolStarted | ToolProgress | ToolFinished, None]:
    """Run `calls` but those in `repeated`, adjacent parallel ones together, and yield their starts,
    progress and ends."""
    for batch in _group_batches(calls, toolset):
        for call in batch:
            yield ToolStarted(call, step)
            if call.id in repeated:
                yield ToolFinished(
                    ToolResult(
                        call_id=call.id,
                        name=call.name,
                        content=REPEATED_CALL_RESULT,
                        is_error=True,
                        outcome="refused",
                    )
                )
        wanted = [call for call in batch if call.id not in repeated]
        updates: asyncio.Queue[ToolProgress | asyncio.Task[ToolResult]] = asyncio.Queue()
        running = {_start_tool(call, toolset, context, updates) for call in wanted}
        try:
            while running:
                update = await updates.get()
                if isinstance(update, ToolProgress):
                    yield update
                    continue
                running.remove(update)
                yield ToolFinished(update.result())
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _start_tool(
    call: ToolCall,
    toolset: Toolset,
    context: RunContext,
    updates: asyncio.Queue[ToolProgress | asyncio.Task[ToolResult]],
) -> asyncio.Task[ToolResult]:
    """The task that carries out `call`; what it reports, not more often than anyone can read, and
    then itself come through `updates`."""
    loop = asyncio.get_running_loop()
    reported_at = -PROGRESS_SECONDS

    def report(progress: ToolProgress) -> None:
        nonlocal reported_at
        if (now := loop.time()) - reported_at >= PROGRESS_SECONDS and not task.done():
            reported_at = now
            updates.put_nowait(progress)

    def handle_progress(progress: float, total: float | None, message: str) -> None:
        loop.call_soon_threadsafe(
            report,
            ToolProgress(call, progress, total, replace_unstorable(message)[:MAX_PROGRESS_MESSAGE]),
        )

    task = loop.create_task(
        toolset.execute(call, msgspec.structs.replace(context, on_progress=handle_progress))
    )
    task.add_done_callback(updates.put_nowait)
    return task


def _group_batches(calls: Iterable[ToolCall], toolset: Toolset) -> list[list[ToolCall]]:
    """`calls` in order, those that may run beside each other in one batch, every other one
    alone."""
    batches: list[list[ToolCall]] = []
    open_batch = False
    for call in calls:
        parallel = toolset.is_parallel(call.name)
        if parallel and open_batch:
            batches[-1].append(call)
        else:
            batches.append([call])
        open_batch = parallel
    return batches


def _build_finished(
    reason: FinishReason, steps: list[StepRecord], tool_calls: tuple[ToolCall, ...] = ()
) -> RunFinished:
    return RunFinished(reason, _sum_steps(steps), tuple(steps), tool_calls)


def _sum_steps(steps: list[StepRecord]) -> Usage | None:
    return sum_usage([step.usage for step in steps])


def _build_stop_notice(max_steps: int, *, has_text: bool) -> str:
    lead = "\n\n" if has_text else ""
    return (
        f"{lead}I stopped here: this needs more than the {max_steps} steps that I may take. Ask me"
        " to go on, or ask for less at once."
    )
