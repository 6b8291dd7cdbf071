"""Runs the cases of a dataset through the service's own agents, several at once."""

import asyncio
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

import msgspec

from ai_agent_service.agents.base import BaseAgent
from ai_agent_service.auth.principal import LOCAL, Principal
from ai_agent_service.core.errors import InternalError, ServiceError
from ai_agent_service.core.events import RunFailed, RunFinished
from ai_agent_service.core.ids import generate_id
from ai_agent_service.core.messages import Message, ToolCall, ToolResult
from ai_agent_service.core.turn import Turn
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
from ai_agent_service.runs.record import RunRecord
from ai_agent_service.runtime.service import Service

logger = logging.getLogger(__name__)


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
        remembers = agent.definition.memory is not None
        turn = Turn(
            messages=said[-1:] if remembers else said,
            model=self._options.model,
            session=session,
            history="server" if remembers else "client",
        )
        run = self._service.create_run(agent, turn, Principal(LOCAL), user=user)
        started = time.monotonic()
        error: ServiceError | None = None
        try:
            await run.drive()
        except ServiceError as raised:
            error = raised
        except Exception:
            # An agent type may be a plug-in and raise anything: that is a failed case, and not the
            # end of the others.
            logger.exception(
                "evaluation.failed",
                extra={"agent_id": agent.agent_id, "run_id": run.context.run_id},
            )
            error = InternalError("The agent failed unexpectedly; the log says more.")
        return _build_answer(asked, run.record, error, time.monotonic() - started)


def _build_answer(
    asked: str, record: RunRecord, error: ServiceError | None, seconds: float
) -> TurnAnswer:
    """Return the answer of a run, which `error` or its last event may have broken."""
    end = record.end
    if isinstance(end, RunFailed):
        error = end.error
    usage = end.usage if end is not None else None
    results = {result.call_id: result for result in record.results}
    is_filtered = isinstance(end, RunFinished) and end.reason == "content_filter"
    return TurnAnswer(
        input=asked,
        text=record.said,
        tools=tuple(
            _to_used_tool(call, results[call.id]) for call in record.calls if call.id in results
        ),
        refused=bool(record.refusal) or is_filtered,
        steps=len(end.steps) if end is not None else 0,
        seconds=round(seconds, 4),
        tokens=usage.total_tokens if usage is not None else None,
        cost=usage.cost if usage is not None else None,
        error=error.code if error is not None else None,
        problem=error.message if error is not None else "",
        notes=record.notes,
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
