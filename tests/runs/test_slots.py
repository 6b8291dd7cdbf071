"""Slots: how many runs are in progress at once."""

import pytest

from ai_agent_service.core.errors import ServerBusyError
from ai_agent_service.runs.slots import RunSlots


def test_as_many_runs_as_allowed_go_on_at_once() -> None:
    slots = RunSlots(1)
    with slots.hold(), pytest.raises(ServerBusyError) as caught, slots.hold():
        pass
    assert caught.value.retry_after == 1
    with slots.hold():
        assert slots.in_use == 1
    assert slots.in_use == 0
