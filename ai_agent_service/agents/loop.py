"""THE loop: ask the model, stream what it says, run the tools it calls, ask again."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import msgspec

from ai_agent_service.agents.calls import CallIds, make_sendable, repair_text
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.agents.shortening import CompactMessages, Shortener
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    ContextTooLongError,
    ProviderProtocolError,
    RunTimeoutError,
    ServiceError,
    ToolError,
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
from ai_agent_service.tools.toolset import Toolset, parse_arguments

logger = logging.getLogger(__name__)

MAX_REPETITIONS = 2
"""How often the same call runs in a row; after that the model gets a note that its result
stands."""

PROGRESS_SECONDS = 0.1
"""At least this long between two reports of progress of one call; those in between are left out."""

MAX_PROGRESS_MESSAGE = 500
"""Characters of a progress message that are passed on."""

REPEATED_CALL_RESULT = (
    "Not run again: this call was just made with the same arguments, and its earlier result stands."
    " Go on with that result."
)


async def run_loop(
    provider: Provider,
    request: ModelRequest,
    toolset: Toolset,
    context: RunContext,
    *,
    client_tools: frozenset[str] = frozenset(),
    max_steps: int,
    pending: PendingSteps,
    compact: CompactMessages | None = None,
    windows: ContextWindows | None = None,
) -> AsyncGenerator[RunEvent, None]:
    """Takes steps until one has no calls of our tools, or `max_steps` is reached, or the deadline,
    or an error the model cannot repair.

    `client_tools` are the names in `request.tools` that the client runs itself; a name that
    `toolset` has too is ours. The events end with one RunFinished or RunFailed. Closing the
    generator stops the provider and the tools. A model that finds the messages too long, or is
    known in `windows` to do so, is asked with those that `compact` gives.
    """
    client_tools = frozenset(name for name in client_tools if name not in toolset)
    loop = _LoopState(request, client_tools, max_steps)
    repetitions = _RepetitionCounter()
    shortener = Shortener(compact, windows or ContextWindows(), provider.name)
    try:
        while True:
            if context.seconds_left <= 0:
                raise RunTimeoutError
            said: list[str] = []
            has_output = False
            finished: ModelFinished | None = None
            asked_at = time.monotonic()
            fewer = await shortener.fit(loop.question, loop.begun)
            if fewer is not None:
                loop.replace_conversation(fewer)
            try:
                async with aclosing(loop.ask(provider, context)) as events:
                    async for event in events:
                        if isinstance(event, ModelFinished):
                            finished = event
                            continue
                        if (text := replace_unstorable(event.text)) is not event.text:
                            event = type(event)(text)
                        if isinstance(event, TextDelta):
                            said.append(event.text)
                        has_output = True
                        yield event
            except ContextTooLongError as error:
                if has_output:
                    raise
                fewer = await shortener.handle_refusal(loop.question, loop.begun, error)
                if fewer is None:
                    raise
                logger.info(
                    "run.shortened", extra={"run_id": context.run_id, "agent_id": context.agent_id}
                )
                loop.replace_conversation(fewer)
                continue
            if finished is None:
                raise ProviderProtocolError(
                    f"The answer of {provider.name} ended without a finish reason."
                )
            shortener.note_answer(loop.question)
            calls = loop.take_answer(finished, said, provider.name, asked_at)
            theirs = tuple(call for call in calls if call.name in client_tools)
            ours = tuple(call for call in calls if call.name not in client_tools)
            if not calls:
                reason = "stop" if finished.reason == "tool_calls" else finished.reason
                yield _build_finished(reason, loop.steps)
                return
            if len(loop.steps) >= max_steps and not theirs:
                yield TextDelta(_build_stop_notice(max_steps, said))
                yield _build_finished("stop", loop.steps)
                return
            running = _run_tools(ours, len(loop.steps), toolset, context, repetitions)
            async with aclosing(running) as progress:
                async for update in progress:
                    if isinstance(update, ToolFinished):
                        loop.results[update.result.call_id] = update.result
                    yield update
            if theirs:
                if ours or len(loop.steps) > 1 or any(call.provider_data for call in calls):
                    loop.keep_pending(pending, context, theirs)
                yield _build_finished("tool_calls", loop.steps, theirs)
                return
            loop.add_results()
    except ServiceError as error:
        fields = {**context.log_fields, "code": error.code, "steps": len(loop.steps)}
        logger.info("run.failed", extra=fields)
        yield RunFailed(error, _sum_steps(loop.steps), tuple(loop.steps))


class _LoopState:
    """What a run of the loop knows: the conversation with its steps, and the results of the step
    that it is in."""

    def __init__(self, request: ModelRequest, client_tools: frozenset[str], max_steps: int) -> None:
        self.steps: list[StepRecord] = []
        self.results: dict[str, ToolResult] = {}
        self._request = request
        self._client_tools = client_tools
        self._max_steps = max_steps
        self._messages = list(map(make_sendable, request.messages))
        self._answer = Message(role="assistant")
        self._logged_count = 0
        self._ids = CallIds(self._messages)

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

    def ask(self, provider: Provider, context: RunContext) -> AsyncGenerator[ModelEvent, None]:
        """Ask the model for the next step."""
        return stream_logged(
            provider,
            self.question,
            logged_count=self._logged_count,
            run_id=context.run_id,
            agent_id=context.agent_id,
            step=len(self.steps) + 1,
        )

    def replace_conversation(self, messages: tuple[Message, ...]) -> None:
        """Take shorter messages for those that the run began with."""
        self._messages[: len(self._request.messages)] = map(make_sendable, messages)
        self._request = msgspec.structs.replace(self._request, messages=messages)
        self._logged_count = 0

    def take_answer(
        self,
        finished: ModelFinished,
        said: list[str],
        provider: str,
        asked_at: float,
    ) -> tuple[ToolCall, ...]:
        """Record the model's answer as a step, and return its calls under unique ids."""
        calls = self._ids.ensure_unique(
            map(repair_text, finished.tool_calls),
            sent_out=lambda call: call.name in self._client_tools,
        )
        seconds = time.monotonic() - asked_at
        model = replace_unstorable(finished.model) or self._request.model
        answered_by = finished.provider or provider
        self.steps.append(StepRecord(calls, finished.usage, model, answered_by, seconds))
        self._logged_count = len(self._messages)
        self._answer = Message(
            role="assistant",
            content="".join(said),
            tool_calls=calls,
        )
        self.results = {}
        return calls

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
        is_last = len(self.steps) + 1 >= self._max_steps
        repeats_itself = bool(self.results) and all(
            result.content == REPEATED_CALL_RESULT for result in self.results.values()
        )
        if is_last or repeats_itself or isinstance(choice, NamedTool):
            return theirs, choice
        return tools, choice

    def keep_pending(
        self, pending: PendingSteps, context: RunContext, theirs: tuple[ToolCall, ...]
    ) -> None:
        """Keep the step until the client brings the results of its own calls."""
        earlier = self._messages[len(self._request.messages) :]
        ids = (call.id for call in theirs)
        pending.keep(context, self._answer, self.results.values(), ids, earlier=earlier)


async def _run_tools(
    calls: tuple[ToolCall, ...],
    step: int,
    toolset: Toolset,
    context: RunContext,
    repetitions: "_RepetitionCounter",
) -> AsyncGenerator[ToolStarted | ToolProgress | ToolFinished, None]:
    """Run `calls`, adjacent parallel ones together, and yield their starts, progress and ends."""
    repeated = repetitions.find_repeated(calls)
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


def _build_stop_notice(max_steps: int, said: list[str]) -> str:
    lead = "\n\n" if said else ""
    return (
        f"{lead}I stopped here: this needs more than the {max_steps} steps that I may take. Ask me"
        " to go on, or ask for less at once."
    )


class _RepetitionCounter:
    """Counts how often in a row each call was made with the same arguments."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, bytes], int] = {}

    def find_repeated(self, calls: tuple[ToolCall, ...]) -> frozenset[str]:
        """The ids of those `calls`, one step's, that are repeated too often to run; all of them are
        counted."""
        counts: dict[tuple[str, bytes], int] = {}
        repeated = set()
        for call in calls:
            key = (call.name, _canonicalize(call.arguments))
            counts[key] = counts.get(key, self._counts.get(key, 0)) + 1
            if counts[key] > MAX_REPETITIONS:
                repeated.add(call.id)
        self._counts = counts
        return frozenset(repeated)


def _canonicalize(arguments: str) -> bytes:
    try:
        return msgspec.json.encode(parse_arguments(arguments), order="sorted")
    except ToolError:
        return arguments.encode(errors="replace")
