"""THE loop: ask the model, stream what it says, run the tools it calls, ask again."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing

import msgspec

from ai_agent_service.agents.pending_steps import PendingSteps
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
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import (
    Message,
    NamedTool,
    ToolCall,
    ToolResult,
    build_tool_message,
)
from ai_agent_service.core.text import replace_unstorable
from ai_agent_service.core.usage import Usage, sum_usage
from ai_agent_service.providers.base import ModelFinished, ModelRequest, Provider
from ai_agent_service.providers.debug_log import stream_logged
from ai_agent_service.tools.toolset import Toolset, parse_arguments

logger = logging.getLogger(__name__)

MAX_REPETITIONS = 2
"""How often the same call runs in a row; after that the model is told that its result stands."""

PROGRESS_SECONDS = 0.1
"""At least this long between two reports of progress of one call; those in between are left out."""

MAX_PROGRESS_MESSAGE = 500
"""Characters of a report's message that are told."""

CompactMessages = Callable[[], Awaitable[tuple[Message, ...] | None]]
"""Gives the request's messages with less of the older conversation; None if that cannot be done."""

_RANDOM_ID = re.compile(r"[A-Za-z0-9]{9,}$")
"""An id that nobody else is given, such as `call_` and 24 characters; Mistral's have nine, and it
takes no others."""

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
) -> AsyncGenerator[RunEvent, None]:
    """Takes steps until one has no calls of our tools, or `max_steps` is reached, or the deadline,
    or an error the model cannot repair.

    `client_tools` are the names in `request.tools` that the client runs itself; a name that
    `toolset` has too is ours. The events end with one RunFinished or RunFailed. Closing the
    generator stops the provider and the tools. A model that finds the messages too long is asked
    once more, with those that `compact` gives.
    """
    messages = list(request.messages)
    traced = 0
    steps: list[StepRecord] = []
    calls_before = _RepetitionCounter()
    ids = _CallIds(messages)
    try:
        while True:
            if context.seconds_left <= 0:
                raise RunTimeoutError
            said: list[str] = []
            told = False
            finished: ModelFinished | None = None
            asked_at = time.monotonic()
            question = msgspec.structs.replace(
                request,
                messages=tuple(messages),
                tool_choice=_select_tool_choice(request, len(steps)),
            )
            try:
                answering = stream_logged(
                    provider,
                    question,
                    told=traced,
                    run_id=context.run_id,
                    agent_id=context.agent_id,
                    step=len(steps) + 1,
                )
                async with aclosing(answering) as events:
                    async for event in events:
                        if isinstance(event, ModelFinished):
                            finished = event
                            continue
                        if isinstance(event, TextDelta):
                            said.append(event.text)
                        told = True
                        yield event
            except ContextTooLongError:
                fewer = await compact() if compact is not None and not told else None
                if fewer is None:
                    raise
                compact = None
                logger.info(
                    "run.shortened", extra={"run_id": context.run_id, "agent_id": context.agent_id}
                )
                messages[: len(request.messages)] = fewer
                request = msgspec.structs.replace(request, messages=fewer)
                traced = 0
                continue
            if finished is None:
                raise ProviderProtocolError(
                    f"The answer of {provider.name} ended without a finish reason."
                )
            calls = ids.ensure_unique(
                finished.tool_calls,
                sent_out=lambda call: call.name in client_tools and call.name not in toolset,
            )
            seconds = time.monotonic() - asked_at
            model, answered_by = finished.model or request.model, finished.provider or provider.name
            steps.append(StepRecord(calls, finished.usage, model, answered_by, seconds))
            traced = len(messages)
            theirs = tuple(
                call for call in calls if call.name in client_tools and call.name not in toolset
            )
            ours = tuple(call for call in calls if call not in theirs)
            if not calls:
                yield _build_finished(
                    "stop" if finished.reason == "tool_calls" else finished.reason, steps
                )
                return
            if len(steps) >= max_steps and not theirs:
                yield TextDelta(_build_stop_notice(max_steps, said))
                yield _build_finished("stop", steps)
                return
            answer = Message(
                role="assistant",
                content="".join(said),
                tool_calls=calls,
                reasoning=finished.reasoning,
            )
            results: dict[str, ToolResult] = {}
            async with aclosing(
                _run_tools(ours, len(steps), toolset, context, calls_before)
            ) as progress:
                async for update in progress:
                    if isinstance(update, ToolFinished):
                        results[update.result.call_id] = update.result
                    yield update
            if theirs:
                if ours or len(steps) > 1:
                    earlier = messages[len(request.messages) :]
                    pending.keep(
                        context,
                        answer,
                        results.values(),
                        (call.id for call in theirs),
                        earlier=earlier,
                    )
                yield _build_finished("tool_calls", steps, theirs)
                return
            messages.append(answer)
            messages += (build_tool_message(results[call.id]) for call in calls)
    except ServiceError as error:
        logger.info(
            "run.failed",
            extra={
                "run_id": context.run_id,
                "agent_id": context.agent_id,
                "agent_version": context.agent_version,
                "code": error.code,
                "steps": len(steps),
            },
        )
        yield RunFailed(error, _sum_steps(steps), tuple(steps))


async def _run_tools(
    calls: tuple[ToolCall, ...],
    step: int,
    toolset: Toolset,
    context: RunContext,
    repetitions: "_RepetitionCounter",
) -> AsyncGenerator[ToolStarted | ToolProgress | ToolFinished, None]:
    """Runs `calls`, neighbours that may run in parallel together; tells of each as it starts, goes
    on and ends."""
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
    told = -PROGRESS_SECONDS

    def report(progress: ToolProgress) -> None:
        nonlocal told
        if (now := loop.time()) - told >= PROGRESS_SECONDS and not task.done():
            told = now
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


def _select_tool_choice(request: ModelRequest, steps_done: int) -> object:
    """The caller's choice in the first step; a call that is forced each time would never end."""
    forced = request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)
    return "auto" if forced and steps_done else request.tool_choice


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


class _CallIds:
    """Gives a call a new id where the provider uses one twice in a conversation, for clients and
    providers match results by it.

    So it does with a call that is sent out under an id that others may have been given: some
    providers count from 0 in every answer, and a result that comes back must name one call of one
    user.
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        self._taken = {call.id for message in messages for call in message.tool_calls}

    def ensure_unique(
        self, calls: tuple[ToolCall, ...], *, sent_out: Callable[[ToolCall], bool]
    ) -> tuple[ToolCall, ...]:
        found = []
        for call in calls:
            usable = (
                call.id
                and call.id not in self._taken
                and (_RANDOM_ID.search(call.id) or not sent_out(call))
            )
            kept = call if usable else msgspec.structs.replace(call, id=generate_id("call_"))
            self._taken.add(kept.id)
            found.append(kept)
        return tuple(found)


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
