"""The agent of agent_config.json: what it makes of a turn."""

import asyncio
import time
from typing import Any

import pytest

from ai_agent_service.agents.agent import Agent
from ai_agent_service.agents.base import AgentParts
from ai_agent_service.agents.catalog import Catalog
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import (
    InvalidRequestError,
    NotFoundError,
    ProviderNotConfiguredError,
    ServiceError,
)
from ai_agent_service.core.events import RunEvent, RunFailed, RunFinished, ToolFinished
from ai_agent_service.core.messages import Message, NamedTool, ToolCall, ToolSpec
from ai_agent_service.core.tasks import Tasks
from ai_agent_service.core.turn import Turn
from ai_agent_service.providers.base import ModelRequest
from ai_agent_service.runs.live import LiveRuns
from ai_agent_service.runs.run import Run, RunServices
from ai_agent_service.tools.builtin import calculate
from ai_agent_service.tools.dynamic import AvailableTools
from tests.support.fake_provider import Script, calls, says
from tests.support.tools import Counting, Source

QUESTION = Message(role="user", content="Go.")


def agent(script: Script, *sources: Source, **definition: Any) -> Agent:
    defined = AgentDefinition.model_validate(
        {"agent_id": "helper", "system_prompt": "You help.", **definition}
    )
    return Agent(
        defined,
        AgentParts(script, AvailableTools([calculate], sources, default_timeout=5), PendingSteps()),
    )


def context() -> RunContext:
    return RunContext(
        run_id="run_1", agent_id="helper", deadline=time.monotonic() + 10, request_id="req_1"
    )


async def collect_events(agent: Agent, turn: Turn) -> list[RunEvent]:
    async with Tasks() as tasks:
        run = Run(agent, turn, context(), RunServices(LiveRuns(), tasks))
        await run.drive()
        return run.record.events


async def asked(turn: Turn, **definition: Any) -> ModelRequest:
    """What the provider is asked for `turn`."""
    script = Script(says("ok"))
    events = await collect_events(agent(script, **definition), turn)
    assert isinstance(events[-1], RunFinished), events
    return script.requests[0]


async def refused(turn: Turn, script: Script | None = None, **definition: Any) -> ServiceError:
    events = await collect_events(agent(script or Script(says("ok")), **definition), turn)
    assert isinstance(events[-1], RunFailed)
    return events[-1].error


async def test_the_clients_system_messages_are_added_to_the_agents_prompt() -> None:
    turn = Turn(
        messages=(
            Message(role="system", content="Be brief."),
            QUESTION,
            Message(role="system", content="In French."),
        )
    )
    request = await asked(turn)
    assert request.messages == (
        Message(role="system", content="You help.\n\nBe brief.\n\nIn French."),
        QUESTION,
    )


async def test_the_turns_settings_win_over_the_agents() -> None:
    turn = Turn(messages=(QUESTION,), settings={"temperature": 0.9, "max_completion_tokens": 5})
    request = await asked(
        turn, model_settings={"temperature": 0.1, "top_p": 0.5, "max_tokens": 100}
    )
    assert request.settings == {"temperature": 0.9, "top_p": 0.5, "max_completion_tokens": 5}


async def test_the_model_is_the_turns_else_the_agents_else_the_providers() -> None:
    assert (await asked(Turn(messages=(QUESTION,), model="asked"), model="own")).model == "asked"
    assert (await asked(Turn(messages=(QUESTION,)), model="own")).model == "own"
    assert (await asked(Turn(messages=(QUESTION,)))).model == "scripted-model"


@pytest.mark.parametrize(
    ("policy", "admitted"), [("accept", ["a", "b"]), ("ignore", []), (["b", "calculate"], ["b"])]
)
async def test_the_policy_says_which_tools_of_the_client_are_admitted(
    policy: object, admitted: list[str]
) -> None:
    tools = tuple(ToolSpec(name, "", {}) for name in ("a", "b", "calculate"))
    request = await asked(Turn(messages=(QUESTION,), tools=tools), client_tools=policy)
    assert [spec.name for spec in request.tools] == ["calculate", *admitted]
    assert request.tools[0] == calculate.spec


async def test_a_tool_choice_that_names_no_tool_is_refused() -> None:
    error = await refused(Turn(messages=(QUESTION,), tool_choice=NamedTool("nothing")))
    assert isinstance(error, InvalidRequestError)
    assert error.param == "tool_choice"


async def test_a_call_of_a_client_tool_that_is_not_admitted_is_refused_to_the_model() -> None:
    script = Script(calls(("theirs", {})), says("sorry"))
    turn = Turn(messages=(QUESTION,), tools=(ToolSpec("theirs", "", {}),))
    events = await collect_events(agent(script, client_tools="ignore"), turn)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "stop"
    assert script.requests[1].messages[-1].text.startswith("Error: There is no tool 'theirs'")


async def test_a_provider_without_credentials_is_named_with_its_variables() -> None:
    script = Script(says("never"))
    script.missing = ("SOME_KEY", "SOME_ENDPOINT")
    error = await refused(Turn(messages=(QUESTION,)), script)
    assert isinstance(error, ProviderNotConfiguredError)
    assert (error.status, script.requests) == (424, [])
    assert "SOME_KEY and SOME_ENDPOINT" in error.message


async def test_the_place_of_a_bad_message_counts_system_messages() -> None:
    turn = Turn(
        messages=(
            Message(role="system", content="x"),
            Message(role="tool", content="y", tool_call_id="z"),
        )
    )
    assert (await refused(turn)).param == "messages[1].tool_call_id"


async def test_a_mixed_step_is_resumed_with_our_result() -> None:
    script = Script(calls(("theirs", {}), ("calculate", {"expression": "6*7"})), says("done"))
    helper = agent(script)
    tools = (ToolSpec("theirs", "", {}),)
    events = await collect_events(helper, Turn(messages=(QUESTION,), tools=tools))
    assert isinstance(events[-1], RunFinished)
    assert events[-1].tool_calls == (ToolCall("call_000000001", "theirs", "{}"),)
    answer = Message(role="assistant", tool_calls=events[-1].tool_calls)
    theirs = Message(role="tool", content="their result", tool_call_id="call_000000001")
    await collect_events(helper, Turn(messages=(QUESTION, answer, theirs), tools=tools))
    assert [message.content for message in script.requests[1].messages[2:]] == [
        "",
        "their result",
        "42",
    ]


def test_the_catalog_finds_agents_and_says_what_openai_says_of_others() -> None:
    helper = agent(Script([]))
    catalog = Catalog([helper], created=1)
    assert (catalog.get("helper"), len(catalog), list(catalog)) == (helper, 1, [helper])
    with pytest.raises(NotFoundError) as caught:
        catalog.get("nobody")
    assert (caught.value.code, caught.value.status) == ("model_not_found", 404)


async def test_the_model_is_told_which_tools_cannot_be_used_after_all_that_it_was_told_before() -> (
    None
):
    script = Script(says("ok"))
    eyes, ears = (
        Source(unavailable="the tools of eyes"),
        Source(unavailable="the tools of ears (it is just starting)"),
    )
    await collect_events(
        agent(script, eyes, Source(), ears),
        Turn(messages=(Message(role="system", content="Be brief."), QUESTION)),
    )
    assert (
        script.requests[0].messages[0].content
        == "You help.\n\nBe brief.\n\nSome of your tools cannot be used at the moment. Answer"
        " without them as well as you can, and say so where it matters:\n- the tools of eyes\n-"
        " the tools of ears (it is just starting)"
    )


async def test_the_model_is_told_nothing_of_tools_that_are_back() -> None:
    script = Script(says("ok"))
    eyes = Source(unavailable="the tools of eyes")
    helper = agent(script, eyes)
    await collect_events(helper, Turn(messages=(QUESTION,)))
    eyes.unavailable = ""
    await collect_events(helper, Turn(messages=(QUESTION,)))
    assert script.requests[1].messages[0].content == "You help."


async def test_a_run_keeps_to_the_tools_that_it_began_with_and_the_next_has_the_new_ones() -> None:
    changed = asyncio.Event()
    script = Script([changed, *calls(("look", {}))], says("seen"), says("new"))
    eyes = Source(Counting("look"))
    helper = agent(script, eyes)
    run = asyncio.ensure_future(collect_events(helper, Turn(messages=(QUESTION,))))
    await asyncio.wait_for(script.waiting.wait(), 15)
    eyes.tools, eyes.unavailable = (Counting("listen"),), "the tools of ears"
    changed.set()
    events = await asyncio.wait_for(run, 15)
    await collect_events(helper, Turn(messages=(QUESTION,)))
    assert [event.result.content for event in events if isinstance(event, ToolFinished)] == ["1"]
    assert [[spec.name for spec in request.tools] for request in script.requests] == [
        ["calculate", "look"]
    ] * 2 + [["calculate", "listen"]]
    assert ["the tools of ears" in request.messages[0].text for request in script.requests] == [
        False,
        False,
        True,
    ]
