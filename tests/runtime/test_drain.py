"""What is under way, counted by the period in which it began."""

import asyncio

from ai_agent_service.runtime.drain import DrainTracker


async def is_over(period: DrainTracker) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await period.wait_until_drained()
    except TimeoutError:
        return False
    return True


async def test_a_period_is_over_once_all_has_ended_that_began_in_it() -> None:
    period = DrainTracker()
    period.begin()
    period.begin()
    assert not await is_over(period)
    period.end()
    assert not await is_over(period)
    waiting = asyncio.create_task(period.wait_until_drained())
    await asyncio.sleep(0)
    period.end()
    await asyncio.wait_for(waiting, 5)
    assert await is_over(period)


async def test_what_began_before_counts_and_what_began_later_does_not() -> None:
    first = DrainTracker()
    first.begin()
    second = first.start_next()
    third = second.start_next()
    third.begin()
    assert not await is_over(second)
    first.end()
    assert await is_over(second)
    assert not await is_over(third)


async def test_a_long_row_of_periods_is_no_burden() -> None:
    period = DrainTracker()
    period.begin()
    first = period
    for _ in range(5000):
        period = period.start_next()
    assert not await is_over(period)
    first.end()
    assert await is_over(period)
