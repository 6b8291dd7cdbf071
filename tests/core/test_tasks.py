"""Work that outlives the request that asked for it."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from ai_agent_service.core.tasks import ContextHolder, Tasks


async def test_work_goes_on_when_the_one_who_asked_is_gone() -> None:
    gate = asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        await gate.wait()
        done.append("work")

    async def asks(tasks: Tasks) -> None:
        await asyncio.shield(tasks.start(work()))

    async with Tasks() as tasks:
        asking = asyncio.create_task(asks(tasks))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait((asking,), timeout=5)
        assert asking.cancelled()
        gate.set()
    assert done == ["work"]


async def test_the_end_waits_for_what_is_under_way() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append("work")

    async with Tasks() as tasks:
        tasks.run(work())
        assert len(tasks) == 1
    assert done == ["work"]
    assert len(tasks) == 0


async def test_what_does_not_end_in_time_is_cancelled() -> None:
    async with asyncio.timeout(10):
        async with Tasks(grace=0.05) as tasks:
            hanging = tasks.start(asyncio.Event().wait())
    assert hanging.cancelled()


async def test_the_result_of_work_can_be_waited_for() -> None:
    async with Tasks() as tasks:
        assert await tasks.start(asyncio.sleep(0, "result")) == "result"


async def test_an_error_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        raise ValueError("a fault")

    with caplog.at_level(logging.ERROR):
        async with Tasks() as tasks:
            tasks.run(work())
    (record,) = caplog.records
    assert record.message == "background.failed"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a fault"


async def test_what_is_held_is_opened_and_closed_by_one_task() -> None:
    tasks: list[object] = []

    @asynccontextmanager
    async def context() -> AsyncGenerator[str, None]:
        tasks.append(asyncio.current_task())
        yield "value"
        tasks.append(asyncio.current_task())

    held = ContextHolder(context())
    assert await held.wait_until_open() == "value"
    await asyncio.create_task(held.close())
    assert len(tasks) == 2
    assert tasks[0] is tasks[1] is not asyncio.current_task()


async def test_what_cannot_be_held_raises_what_keeps_it_from_being() -> None:
    @asynccontextmanager
    async def context() -> AsyncGenerator[None, None]:
        raise ValueError("no")
        yield

    held = ContextHolder(context())
    with pytest.raises(ValueError, match="no"):
        await held.wait_until_open()
    await held.close()


async def test_what_cancels_itself_while_it_is_opened_is_not_waited_for() -> None:
    @asynccontextmanager
    async def context() -> AsyncGenerator[None, None]:
        raise asyncio.CancelledError("a library's own")
        yield

    held = ContextHolder(context())
    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="cancelled by itself"):
            await held.wait_until_open()
        await held.close()


async def test_who_leaves_while_it_is_opened_leaves_nothing_open() -> None:
    ended = asyncio.Event()

    @asynccontextmanager
    async def context() -> AsyncGenerator[None, None]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            ended.set()

    opening = asyncio.create_task(ContextHolder(context()).wait_until_open())
    for _ in range(3):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait((opening,), timeout=5)
    assert (opening.cancelled(), ended.is_set()) == (True, True)


async def test_what_cannot_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @asynccontextmanager
    async def context() -> AsyncGenerator[None, None]:
        yield
        raise ValueError("no")

    held = ContextHolder(context())
    await held.wait_until_open()
    await held.close()
    assert "background.not_closed" in caplog.text
