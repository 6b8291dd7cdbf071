"""A probe is shared by those who ask at once, and answers in time."""

import asyncio

from ai_agent_service.core.tasks import Tasks
from ai_agent_service.health.probes import Probe


async def test_those_who_ask_at_once_share_one_answer_which_is_kept_for_a_while() -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return asked

    async with Tasks() as tasks:
        probe = Probe(ask, tasks, kept_seconds=60)
        assert await asyncio.gather(*(probe.wait_for_answer(5) for _ in range(100))) == [1] * 100
        assert await probe.wait_for_answer(5) == 1
        fleeting = Probe(ask, tasks, kept_seconds=0)
        assert [await fleeting.wait_for_answer(5), await fleeting.wait_for_answer(5)] == [2, 3]


async def test_a_part_that_hangs_is_not_asked_ever_more() -> None:
    asked = 0
    answers = asyncio.Event()

    async def ask() -> str:
        nonlocal asked
        asked += 1
        await answers.wait()
        return "here"

    async with Tasks() as tasks:
        probe = Probe(ask, tasks, kept_seconds=0)
        assert [await probe.wait_for_answer(0.01) for _ in range(5)] == [None] * 5
        answers.set()
        assert (await probe.wait_for_answer(5), asked) == ("here", 1)
