"""Background tasks, answered by a model or by rule."""

import json
import time
from typing import Any

import pytest

from ai_agent_service.agents.agent import Agent
from ai_agent_service.agents.base import AgentParts
from ai_agent_service.agents.chat_tasks import (
    TASK_SECONDS,
    TASKS,
    ChatTaskAgent,
    Task,
    answer_by_rule,
)
from ai_agent_service.agents.pending_steps import PendingSteps
from ai_agent_service.config.agent_definition import AgentDefinition
from ai_agent_service.core.context import RunContext
from ai_agent_service.core.errors import ProviderUnavailableError
from ai_agent_service.core.events import RunEvent, RunFailed, RunFinished, TextDelta
from ai_agent_service.core.messages import Message
from ai_agent_service.core.turn import Turn
from ai_agent_service.providers.base import ModelFinished
from ai_agent_service.tools.dynamic import AvailableTools
from tests.support.fake_provider import Action, Script, says

ASKED = (
    "<chat_history>\nUSER: What's new?\nASSISTANT: Much.\nUSER: **Tell** me more, please, about all"
    " of it!\nReally.\n</chat_history>"
)


def context() -> RunContext:
    return RunContext(run_id="r", agent_id="helper", deadline=time.monotonic() + 100)


async def done(
    task: Task, *answer: Action, text: str = ASKED, settings: dict[str, Any] | None = None
) -> tuple[list[RunEvent], Script]:
    """The events of a task for which the model answers so."""
    script = Script(answer)
    definition = AgentDefinition(agent_id="helper", system_prompt="You help.")
    agent = Agent(
        definition, AgentParts(script, AvailableTools((), default_timeout=1), PendingSteps())
    )
    turn = Turn(messages=(Message("user", text),), settings=settings or {})
    return [
        event async for event in ChatTaskAgent(agent, task, script, None).run(turn, context())
    ], script


def join_text(events: list[RunEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ('{"title": "News"}', "News"),
        (
            (
                '<think>{"title": 1} or {}</think> Here: {"title": "News", "why": {"a": 1}} as you'
                " wished."
            ),
            "News",
        ),
        ('{ "title": "your concise title here" }\n{ "title": "News" }', "News"),
        ("News", "Tell me more, please, about all"),
        ('{"title": ["News"]}', "Tell me more, please, about all"),
        ("", "Tell me more, please, about all"),
        ("{" * 50_000, "Tell me more, please, about all"),
    ],
)
async def test_a_title_is_what_the_model_means_or_else_the_question(said: str, title: str) -> None:
    events, _ = await done("title_generation", *says(said))
    assert json.loads(join_text(events)) == {"title": title}
    assert isinstance(events[-1], RunFinished)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("<chat_history>{}", "New chat"),
        ("<chat_history>USER: Hi{}there</chat_history>", "Hi there"),
    ],
)
def test_many_spaces_in_a_history_take_no_time(text: str, title: str) -> None:
    answer = answer_by_rule("title_generation", (Message("user", text.format(" " * 500_000)),))
    assert json.loads(answer or "") == {"title": title}


async def test_an_answer_without_end_is_not_waited_for() -> None:
    events, script = await done("title_generation", *says("x" * 70_000, '{"title": "News"}'))
    assert json.loads(join_text(events)) == {"title": "Tell me more, please, about all"}
    assert script.closed == 1


async def test_a_provider_that_fails_is_no_failure_of_a_task() -> None:
    events, _ = await done("tags_generation", ProviderUnavailableError("away"))
    assert json.loads(join_text(events)) == {"tags": ["General"]}
    assert isinstance(events[-1], RunFinished)


async def test_a_provider_of_a_plug_in_that_crashes_is_none_either() -> None:
    events, _ = await done("title_generation", KeyError("x"))
    assert json.loads(join_text(events)) == {"title": "Tell me more, please, about all"}
    events, _ = await done("other", KeyError("x"))
    assert isinstance(events[-1], RunFailed)
    assert events[-1].error.code == "internal_error"


async def test_what_has_no_answer_by_rule_fails_as_the_provider_did() -> None:
    events, _ = await done("other", ProviderUnavailableError("away"))
    assert [type(event) for event in events] == [RunFailed]
    events, _ = await done("other", *says())
    assert isinstance(events[-1], RunFailed)


async def test_free_text_that_breaks_off_is_not_taken_for_whole() -> None:
    events, _ = await done(
        "moa_response_generation", TextDelta("The "), ProviderUnavailableError("away")
    )
    assert [type(event) for event in events] == [TextDelta, RunFailed]


async def test_an_emoji_is_not_cut_off_and_nothing_longer_than_one() -> None:
    events, script = await done("emoji_generation", *says(" :) "), settings={"max_tokens": 4})
    assert join_text(events) == ":)"
    assert script.requests[0].settings == {}
    events, _ = await done("emoji_generation", *says("The speaker is happy, so I would say"))
    assert join_text(events) == "\N{SPEECH BALLOON}"


async def test_a_task_has_little_time() -> None:
    _, script = await done("title_generation", *says("{}"))
    assert script.requests[0].deadline - time.monotonic() <= TASK_SECONDS


async def test_a_model_that_stops_for_length_is_said_to() -> None:
    events, _ = await done("other", TextDelta("a"), ModelFinished("length"))
    assert isinstance(events[-1], RunFinished)
    assert events[-1].reason == "length"


def test_every_task_is_answered_by_rule_or_not_at_all_the_same_each_time() -> None:
    for task in TASKS:
        for text in (ASKED, "", "<chat_history></chat_history>", "USER: x"):
            messages = (Message("user", text),)
            assert answer_by_rule(task, messages) == answer_by_rule(task, messages)
    assert answer_by_rule("other", ()) is None


def test_of_several_responses_the_first_is_taken() -> None:
    asked = 'Your task ... Responses from models: """First."""\n\n"""Second."""'
    assert answer_by_rule("moa_response_generation", (Message("user", asked),)) == "First."
    assert answer_by_rule("moa_response_generation", (Message("user", "nothing"),)) is None


def test_suggestions_that_were_asked_already_are_not_made_again() -> None:
    answer = answer_by_rule(
        "follow_up_generation",
        (Message("user", ASKED),),
        ("What's new?", "Why?", "How?", "Where?", "When?"),
    )
    assert json.loads(answer or "") == {"follow_ups": ["Why?", "How?", "Where?"]}
