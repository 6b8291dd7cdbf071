"""Runs the cases of a dataset through the service's own agents, several at once."""

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from ai_agent_service.agents.base import BaseAgent, Turn
from ai_agent_service.auth.principal import LOCAL, Principal
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import InternalError, RunTimeoutError, ServiceError
from ai_agent_service.core.events import (
    MemorySkipped,
    RefusalDelta,
    RunFailed,
    RunFinished,
    TextDelta,
    ToolFinished,
    ToolsMissing,
    ToolStarted,
)
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import Message, ToolCall, ToolResult
from ai_agent_service.evaluation.dataset import Case
from ai_agent_service.evaluation.metrics import METRICS, Metric
from ai_agent_service.evaluation.replay import Replay, Replays
from ai_agent_service.evaluation.results import (
    Check,
    Options,
    Result,
    Summary,
    TurnAnswer,
    UsedTool,
)
from ai_agent_service.evaluation.scoring import compute_score, score_attempts, score_metrics
from ai_agent_service.runtime.service import Service

logger = logging.getLogger(__name__)

TIMEOUT_GRACE_SECONDS = 1.0
"""How much longer than REQUEST_TIMEOUT a run may take that does not end by itself."""


class Runner:
    """Gives each attempt at a case a user and a session of its own, so that none remembers what
    another was told."""

    def __init__(
        self,
        service: Service,
        replays: Replays,
        options: Options,
        metrics: Sequence[Metric] = METRICS,
    ) -> None:
        self._service = service
        self._replays = replays
        self._options = options
        self._metrics = metrics

    async def run(
        self, wanted: Iterable[tuple[Case, int]], parallel: int, done: Callable[[Result], None]
    ) -> None:
        """Makes each attempt of `wanted`, `parallel` at once, and gives its result to `done` as
        soon as it is there."""
        waiting = iter(wanted)

        async def work() -> None:
            for case, attempt in waiting:
                done(await self.run_attempt(case, attempt))

        async with asyncio.TaskGroup() as group:
            for _ in range(parallel):
                group.create_task(work())

    async def run_attempt(self, case: Case, attempt: int) -> Result:
        """Holds the case's conversation and judges each answer; the first turn that breaks ends it,
        and the case has failed."""
        assert case.agent is not None
        agent = self._service.catalog.get(case.agent)
        user = session = generate_id("evaluation_")
        replay = (
            None if case.tool_results is None or self._options.record else Replay(case.tool_results)
        )
        if replay is not None:
            self._replays[user] = replay
        answers: list[TurnAnswer] = []
        checks: list[Check] = []
        try:
            said: list[Message] = []
            for number, turn in enumerate(case.session_turns, 1):
                said.append(Message(role="user", content=turn.input))
                answer = await self._run_turn(agent, user, session, turn.input, tuple(said))
                if replay is not None:
                    answer = msgspec.structs.replace(answer, notes=(*answer.notes, *replay.notes))
                    replay.notes.clear()
                answers.append(answer)
                if answer.error is not None:
                    break
                said.append(Message(role="assistant", content=answer.text))
                for metric in self._metrics:
                    found = await metric.evaluate(turn.expect, answer)
                    checks += (msgspec.structs.replace(check, turn=number) for check in found)
        finally:
            self._replays.pop(user, None)
        broken = answers[-1].error is not None
        score = (
            0.0 if broken else statistics.fmean(check.score for check in checks) if checks else 1.0
        )
        return Result(
            id=case.id,
            agent=case.agent,
            attempt=attempt,
            weight=case.weight,
            tags=case.tags,
            score=score,
            checks=tuple(checks),
            answers=tuple(answers),
        )

    async def _run_turn(
        self, agent: BaseAgent, user: str, session: str, asked: str, said: tuple[Message, ...]
    ) -> TurnAnswer:
        """What comes of one turn, whatever it is."""
        context = self._service.create_context(
            agent.agent_id,
            Principal(LOCAL),
            user=user,
            session=session,
            agent_version=agent.version,
        )
        remembers = agent.definition.memory is not None
        messages = said[-1:] if remembers else said
        turn = Turn(
            messages=messages,
            model=self._options.model,
            history="server" if remembers else "client",
        )
        record = _RunRecorder(asked)
        started = time.monotonic()
        error: ServiceError | None = None
        try:
            async with asyncio.timeout(max(0.0, context.seconds_left) + TIMEOUT_GRACE_SECONDS):
                await record.follow(agent, turn, context)
        except TimeoutError:
            error = RunTimeoutError(
                "The run took longer than REQUEST_TIMEOUT allows and was stopped."
            )
        except ServiceError as raised:
            error = raised
        except Exception:
            # An agent type may be a plug-in and raise anything: that is a failed case, and not the
            # end of the others.
            logger.exception(
                "evaluation.failed", extra={"agent_id": agent.agent_id, "run_id": context.run_id}
            )
            error = InternalError("The agent failed unexpectedly; the log says more.")
        return record.build_answer(error, time.monotonic() - started)


class _RunRecorder:
    """What is told of one run."""

    def __init__(self, asked: str) -> None:
        self._asked = asked
        self._text: list[str] = []
        self._refused = False
        self._calls: dict[str, ToolCall] = {}
        self._results: dict[str, ToolResult] = {}
        self._notes: list[str] = []
        self._end: RunFinished | RunFailed | None = None

    async def follow(self, agent: BaseAgent, turn: Turn, context: RunContext) -> None:
        """Reads the events of the run to their end."""
        async with aclosing(agent.run(turn, context)) as events:
            async for event in events:
                match event:
                    case TextDelta(text=text):
                        self._text.append(text)
                    case RefusalDelta(text=text):
                        self._text.append(text)
                        self._refused = True
                    case ToolStarted(call=call):
                        self._calls[call.id] = call
                    case ToolFinished(result=result):
                        self._results[result.call_id] = result
                    case ToolsMissing(reasons=reasons):
                        self._notes += reasons
                    case MemorySkipped(reason=reason):
                        self._notes.append(f"without memory: {reason}")
                    case RunFinished() | RunFailed():
                        self._end = event
                    case _:
                        pass

    def build_answer(self, error: ServiceError | None, seconds: float) -> TurnAnswer:
        """The answer, which `error` or one that was told broke."""
        end = self._end
        if isinstance(end, RunFailed):
            error = end.error
        elif end is None and error is None:
            error = InternalError("The agent ended without telling that it did.")
        usage = end.usage if end is not None else None
        return TurnAnswer(
            input=self._asked,
            text="".join(self._text),
            tools=tuple(
                _to_used_tool(call, self._results[call.id])
                for call in self._calls.values()
                if call.id in self._results
            ),
            refused=self._refused
            or (isinstance(end, RunFinished) and end.reason == "content_filter"),
            steps=len(end.steps) if end is not None else 0,
            seconds=round(seconds, 4),
            tokens=usage.total_tokens if usage is not None else None,
            cost=usage.cost if usage is not None else None,
            error=error.code if error is not None else None,
            problem=error.message if error is not None else "",
            notes=tuple(self._notes),
        )


def _to_used_tool(call: ToolCall, result: ToolResult) -> UsedTool:
    try:
        arguments = msgspec.json.decode(call.arguments or "{}", type=dict)
    except (msgspec.DecodeError, RecursionError):
        arguments = None
    return UsedTool(
        call.name,
        arguments,
        result.content,
        result.is_error,
        result.outcome,
        round(result.seconds, 4),
    )


def summarize_results(summary: Summary, results: Sequence[Result]) -> Summary:
    """`summary` of a run that has come to its end with `results`."""
    attempts = score_attempts(results)
    return msgspec.structs.replace(
        summary,
        finished=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        cases=len({result.id for result in results}),
        errors=sum(result.error is not None for result in results),
        score=compute_score(results),
        attempts=attempts,
        deviation=statistics.stdev(attempts) if len(attempts) > 1 else 0.0,
        minimum=min(attempts, default=0.0),
        maximum=max(attempts, default=0.0),
        metrics=score_metrics(results),
        steps=sum(result.steps for result in results),
        seconds=sum(result.seconds for result in results),
        tokens=sum(result.tokens for result in results),
        cost=sum(result.cost for result in results),
        not_judged=len({result.id for result in results if result.not_judged}),
        judge_tokens=sum(check.tokens for result in results for check in result.checks),
        judge_cost=sum(check.cost for result in results for check in result.checks),
    )
