"""The lag of the event loop."""

import asyncio

from ai_agent_service.observability.loop_lag import measure_loop_lag


async def test_the_lag_of_the_event_loop_is_told() -> None:
    late: asyncio.Queue[float] = asyncio.Queue()
    with measure_loop_lag(late.put_nowait):
        async with asyncio.timeout(20):
            assert await late.get() >= 0
            assert await late.get() >= 0
    assert late.empty()
