"""Runs in progress: who follows one gets all of it."""

import asyncio

from ai_agent_service.core.events import RunEvent, RunFinished, StepRecord, TextDelta
from ai_agent_service.core.usage import Usage
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.record import RunRecord

ANSWERED = (
    TextDelta("It is "),
    TextDelta("42."),
    RunFinished("stop", Usage(10, 2), (StepRecord((), Usage(10, 2)),)),
)


async def test_all_who_follow_a_run_are_told_everything() -> None:
    live, run = LiveRuns(), RunRecord()
    live.begin("run_1", run)
    run.add(ANSWERED[0])

    async def follow() -> list[RunEvent]:
        return [event async for event in run.follow()]

    async with asyncio.timeout(20):
        followers = [asyncio.create_task(follow()) for _ in range(3)]
        await asyncio.sleep(0)
        run.add(ANSWERED[1])
        await asyncio.sleep(0)
        run.add(ANSWERED[2])
        live.end("run_1")
        assert [await follower for follower in followers] == [list(ANSWERED)] * 3
    assert live.find("run_1") is None


async def test_who_follows_a_run_that_is_stopped_is_told_what_there_is() -> None:
    live, run = LiveRuns(), RunRecord()
    live.begin("run_1", run)
    run.add(ANSWERED[0])
    live.end("run_1")
    async with asyncio.timeout(20):
        assert [event async for event in run.follow()] == [ANSWERED[0]]
