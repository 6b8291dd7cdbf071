"""The lifecycle of a run: which command leads where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_agent_service.runs.lifecycle import (
    Cancel,
    Command,
    Fail,
    Finish,
    Lifecycle,
    Start,
    State,
    decide,
)

COMMANDS = st.one_of(
    st.just(Start()),
    st.sampled_from([Finish("stop"), Finish("length"), Finish("tool_calls")]),
    st.just(Finish("content_filter")),
    st.sampled_from([Fail("run_timeout"), Fail("provider_unavailable")]),
    st.sampled_from([Cancel("left"), Cancel("stopped")]),
)


@pytest.mark.parametrize(
    ("command", "state", "outcome"),
    [
        (Finish("stop"), "completed", "answered"),
        (Finish("tool_calls"), "completed", "answered"),
        (Finish("length"), "incomplete", "answered"),
        (Finish("content_filter"), "incomplete", "answered"),
        (Fail("run_timeout"), "failed", "run_timeout"),
        (Cancel("left"), "cancelled", "left"),
        (Cancel("stopped"), "cancelled", "stopped"),
    ],
)
def test_a_running_run_ends_as_the_command_says(
    command: Command, state: State, outcome: str
) -> None:
    assert decide(Lifecycle("running"), command) == Lifecycle(state, outcome)


def test_a_queued_run_starts_fails_and_is_cancelled_but_cannot_finish() -> None:
    queued = Lifecycle()
    assert decide(queued, Start()) == Lifecycle("running")
    assert decide(queued, Fail("server_busy")).state == "failed"
    assert decide(queued, Cancel("left")).state == "cancelled"
    assert decide(queued, Finish("stop")) is queued


@given(st.lists(COMMANDS))
def test_a_run_has_one_outcome_whatever_comes_after_it(commands: list[Command]) -> None:
    now, outcomes = Lifecycle(), []
    for command in commands:
        after = decide(now, command)
        if after.outcome != now.outcome:
            outcomes.append(after.outcome)
        assert now.is_final <= (after is now)
        now = after
    assert len(outcomes) <= 1
    assert now.is_final == (now.state not in ("queued", "running"))
