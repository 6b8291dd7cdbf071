"""What is under way, counted by the period in which it began."""

import asyncio

from ai_agent_service.runtime.drain import Period


async def is_over(period: Period) -> bool:
    try:
        async with asyncio.timeout(0.02):
            await period.over()
    except TimeoutError:
        return False
    return True


async def test_a_period_is_over_once_all_has_ended_that_began_in_it() -> None:
    period = Period()
    period.begin()
    period.begin()
    assert not await is_over(period)
    period.end()
    assert not await is_over(period)
    waiting = asyncio.create_task(period.over())
    await asyncio.sleep(0)
    period.end()
    await asyncio.wait_for(waiting, 5)
    assert await is_over(period)


async def test_what_began_before_counts_and_what_began_later_does_not() -> None:
    first = Period()
    first.begin()
    second = first.next()
    third = second.next()
    third.begin()
    assert not await is_over(second)
    first.end()
    assert await is_over(second)
    assert not await is_over(third)


async def test_a_long_row_of_periods_is_no_burden() -> None:
    period = Period()
    period.begin()
    first = period
    for _ in range(5000):
        period = period.next()
    assert not await is_over(period)
    first.end()
    assert await is_over(period)
