"""Steps that wait for the client, and conversations made whole."""

import time

import pytest

from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import InvalidRequestError
from ai_agent_service.core.messages import UNKNOWN_RESULT, Message, ToolCall, ToolResult

THEIRS, OURS = ToolCall("t1", "theirs", "{}"), ToolCall("o1", "ours", "{}")
STEP = Message(role="assistant", content="Both.", tool_calls=(OURS, THEIRS))
OUR_RESULT = ToolResult(call_id="o1", name="ours", content="our result")
FOLLOW_UP = (
    Message(role="user", content="Go."),
    Message(role="assistant", content="Both.", tool_calls=(THEIRS,)),
    Message(role="tool", content="their result", tool_call_id="t1"),
)


def context(*, user: str = "ada", tenant: str = "local", agent: str = "helper") -> RunContext:
    return RunContext(
        run_id="r", agent_id=agent, deadline=time.monotonic() + 10, user=user, tenant=tenant
    )


def kept(pending: PendingSteps) -> PendingSteps:
    pending.keep(context(), STEP, [OUR_RESULT], ["t1"])
    return pending


def test_a_kept_step_is_restored_in_the_models_order() -> None:
    whole = kept(PendingSteps()).restore(FOLLOW_UP, context())
    assert whole == (
        FOLLOW_UP[0],
        STEP,
        Message(role="tool", content="our result", tool_call_id="o1"),
        Message(role="tool", content="their result", tool_call_id="t1"),
    )


def test_a_client_that_tells_our_calls_itself_is_left_to_its_word() -> None:
    first = Message(role="assistant", content="First.", tool_calls=(ToolCall("o0", "ours", "{}"),))
    pending = PendingSteps()
    pending.keep(
        context(),
        STEP,
        [OUR_RESULT],
        ["t1"],
        earlier=(first, Message(role="tool", content="0", tool_call_id="o0")),
    )
    shown = (
        Message(role="user", content="Go."),
        first,
        Message(role="tool", content="0", tool_call_id="o0"),
        Message(role="assistant", content="Both.", tool_calls=(OURS,)),
        Message(role="tool", content="our result", tool_call_id="o1"),
        Message(role="assistant", tool_calls=(THEIRS,)),
        Message(role="tool", content="their result", tool_call_id="t1"),
    )
    assert pending.restore(shown, context()) == shown


def test_a_step_is_restored_each_time_the_client_sends_it_again() -> None:
    pending = kept(PendingSteps())
    assert pending.restore(FOLLOW_UP, context()) == pending.restore(FOLLOW_UP, context())


@pytest.mark.parametrize(
    "other", [context(user="eve"), context(tenant="other"), context(agent="other")]
)
def test_a_step_is_restored_only_to_the_one_who_made_it(other: RunContext) -> None:
    assert kept(PendingSteps()).restore(FOLLOW_UP, other) == FOLLOW_UP


def test_a_step_that_is_not_kept_any_more_leaves_the_clients_part_alone() -> None:
    assert kept(PendingSteps(kept_seconds=-1)).restore(FOLLOW_UP, context()) == FOLLOW_UP


def test_the_oldest_steps_go_when_there_are_too_many() -> None:
    pending = kept(PendingSteps(max_kept=2))
    for number in range(2):
        pending.keep(context(), STEP, [OUR_RESULT], [f"later-{number}"])
    assert pending.restore(FOLLOW_UP, context()) == FOLLOW_UP


def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    messages = (*FOLLOW_UP[:2], Message(role="user", content="And?"))
    assert PendingSteps().restore(messages, context()) == (
        *FOLLOW_UP[:2],
        Message(role="tool", content=UNKNOWN_RESULT, tool_call_id="t1"),
        Message(role="user", content="And?"),
    )


def test_results_are_put_into_the_order_of_their_calls() -> None:
    results = [
        Message(role="tool", content="b", tool_call_id="t1"),
        Message(role="tool", content="a", tool_call_id="o1"),
    ]
    assert [message.content for message in PendingSteps().restore((STEP, *results), context())] == [
        "Both.",
        "a",
        "b",
    ]


def test_a_result_of_no_call_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        PendingSteps().restore((FOLLOW_UP[0], FOLLOW_UP[2]), context())
    assert caught.value.param == "messages[1].tool_call_id"
    with pytest.raises(InvalidRequestError) as caught:
        PendingSteps().restore(
            (*FOLLOW_UP, Message(role="tool", content="x", tool_call_id="zz")), context()
        )
    assert caught.value.param == "messages[3].tool_call_id"
