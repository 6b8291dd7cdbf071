"""The stand-in for a model."""

import json
import re
import time

import pytest

from ai_agent_service.config.settings import Settings
from ai_agent_service.core.messages import Message, ToolCall, ToolSpec
from ai_agent_service.core.usage import Usage
from ai_agent_service.providers.base import ModelRequest
from ai_agent_service.providers.demo import HELP, Demo
from tests.support.provider_requests import collect_events, finish, question, setup, text

CALCULATE = ToolSpec("calculate", "Arithmetic.", {"type": "object"})
CLOCK = ToolSpec("get_current_datetime", "The time.", {"type": "object"})
DEMO = Demo(pause=0)


def asked(*said: str, tools: tuple[ToolSpec, ...] = (CALCULATE, CLOCK)) -> ModelRequest:
    """A conversation of a user who said each of `said`, answered in between."""
    messages = [
        each for line in said for each in (Message("user", line), Message("assistant", "I see."))
    ]
    return question(*messages[:-1], tools=tools)


def after(call: ToolCall, result: str) -> ModelRequest:
    """A conversation that ends with the result of `call`."""
    messages = (
        Message("user", "?"),
        Message("assistant", "", (call,)),
        Message("tool", result, tool_call_id=call.id),
    )
    return question(*messages, tools=(CALCULATE, CLOCK))


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        ("What is (17 + 4) * 2?", "(17 + 4) * 2"),
        ("6*7=", "6*7"),
        ("how much is 2 ** 10", "2 ** 10"),
        ("sqrt(16) please", "sqrt(16)"),
        ("What is -3 + 5?", "-3 + 5"),
    ],
)
async def test_arithmetic_calls_the_calculator(said: str, expression: str) -> None:
    finished = await finish(DEMO.stream(asked(said)))
    assert finished.reason == "tool_calls"
    assert [(call.name, json.loads(call.arguments)) for call in finished.tool_calls] == [
        ("calculate", {"expression": expression})
    ]


@pytest.mark.parametrize(
    ("said", "timezone"),
    [
        ("What time is it in Tokyo?", "Tokyo"),
        ("Which day is it in New York", "New York"),
        ("the date, please", "UTC"),
    ],
)
async def test_a_question_of_time_calls_the_clock(said: str, timezone: str) -> None:
    finished = await finish(DEMO.stream(asked(said)))
    assert [(call.name, json.loads(call.arguments)) for call in finished.tool_calls] == [
        ("get_current_datetime", {"timezone": timezone})
    ]


async def test_tools_that_are_not_offered_or_not_allowed_are_not_called() -> None:
    for request in (
        asked("6*7?", tools=()),
        question(Message("user", "6*7?"), tools=(CALCULATE,), tool_choice="none"),
    ):
        assert await text(DEMO, request) == HELP


async def test_the_results_of_tools_are_told() -> None:
    assert (
        await text(DEMO, after(ToolCall("a", "calculate", '{"expression": "6*7"}'), "42"))
        == "6*7 = **42**"
    )
    now = '{"datetime": "2026-11-22T15:40:00+09:00", "weekday": "Sunday", "timezone": "Asia/Tokyo"}'
    told_time = await text(DEMO, after(ToolCall("a", "get_current_datetime", "{}"), now))
    assert told_time == "In Asia/Tokyo it is **15:40** on Sunday, 2026-11-22."
    assert (
        await text(DEMO, after(ToolCall("a", "weather", "{}"), "Sunny"))
        == "The tool answered: Sunny"
    )


async def test_the_error_of_a_tool_is_told() -> None:
    request = after(ToolCall("a", "calculate", '{"expression": "1/0"}'), "Error: division by zero")
    assert await text(DEMO, request) == "The tool could not do that: division by zero"


@pytest.mark.parametrize("arguments", ["", "oops", "[]", "{}", '{"expression": 7}', "[" * 5000])
async def test_calls_and_results_that_a_client_made_up_are_borne(arguments: str) -> None:
    assert (
        await text(DEMO, after(ToolCall("a", "calculate", arguments), "42"))
        == "The tool answered: 42"
    )
    assert (
        await text(DEMO, after(ToolCall("a", "get_current_datetime", "{}"), arguments))
        == f"The tool answered: {arguments}"
    )
    orphan = question(Message("user", "?"), Message("tool", "42", tool_call_id="b"))
    assert await text(DEMO, orphan) == "The tool answered: 42"


async def test_a_name_is_remembered_within_the_conversation() -> None:
    assert await text(DEMO, asked("My name is Ada.", "What is my name?")) == "Your name is Ada."
    assert (
        await text(DEMO, asked("my name is Ada", "Call me Bob, please", "Who am I?"))
        == "Your name is Bob."
    )
    assert (
        await text(DEMO, asked("Hi", "what's my name"))
        == "You have not told me your name in this conversation."
    )
    assert (
        await text(DEMO, asked("My name is Ada."))
        == "Nice to meet you, Ada. Ask me for your name later on."
    )


async def test_all_else_is_answered_with_how_to_connect_a_model() -> None:
    assert await text(DEMO, asked("Write a poem.")) == HELP
    assert await text(DEMO, asked("Hello there")) == f"Hello! {HELP}"


def test_the_help_names_variables_that_there_are() -> None:
    named = re.findall(r"`([A-Z][A-Z_]+)`", HELP)
    assert "OPENAI_API_KEY" in named
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


@pytest.mark.parametrize("said", ["Hello", "6*7?", "What is my name?"])
async def test_the_same_question_is_answered_the_same(said: str) -> None:
    first, second = (
        await collect_events(DEMO.stream(asked(said))),
        await collect_events(DEMO.stream(asked(said))),
    )
    assert first == second


async def test_words_are_told_one_by_one_and_counted() -> None:
    events = await collect_events(DEMO.stream(asked("My name is Ada.")))
    assert len(events) > 5
    assert (await finish(DEMO.stream(asked("My name is Ada.")))).usage == Usage(4, len(events) - 1)


@pytest.mark.parametrize(
    "said",
    [
        "-" * 200_000,
        "(" * 200_000 + "1+1",
        "in " * 50_000 + "time",
        "my name is " * 20_000,
        "1+" * 100_000,
    ],
)
async def test_a_long_message_does_not_hold_up_the_others(said: str) -> None:
    began = time.monotonic()
    await collect_events(DEMO.stream(asked(said)))
    assert time.monotonic() - began < 1.0


async def test_a_demo_needs_nothing() -> None:
    demo = Demo.from_setup(setup())
    assert (demo.missing, demo.model_list, await demo.default_model()) == ((), (), "demo")
