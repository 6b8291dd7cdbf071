"""Work that outlives the request that asked for it."""

import asyncio
import logging

import pytest

from app.core.tasks import Tasks


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
