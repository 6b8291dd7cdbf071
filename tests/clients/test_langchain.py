"""LangChain's ChatOpenAI against a real server."""

import asyncio
import functools
import operator
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import NotFoundError
from pydantic import BaseModel

from ai_agent_service.server.application import create_app
from tests.support.fake_provider import Script, calls, says
from tests.support.openai_schema import Recorded
from tests.support.service import configuration, serving


class Person(BaseModel):
    """A person."""

    name: str
    age: int


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@asynccontextmanager
async def model(folder: Path, script: Script, **options: Any) -> AsyncGenerator[ChatOpenAI, None]:
    """The agent as LangChain's model; what it was answered is checked at the end."""
    recorded = Recorded(create_app(configuration(folder, script)))
    async with asyncio.timeout(30), serving(recorded) as address:
        settings = {
            "model": "helper",
            "base_url": f"{address}/v1",
            "api_key": "any",
            "max_retries": 0,
            **options,
        }
        yield ChatOpenAI(**settings)
    recorded.check()


async def test_it_is_answered_and_told_the_usage(tmp_path: Path) -> None:
    script = Script(says("Good ", "day."))
    async with model(tmp_path, script, temperature=0.5) as chat:
        answer = await chat.ainvoke([SystemMessage("Be brief."), HumanMessage("Hello")])
    assert answer.content == "Good day."
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 12
    assert answer.response_metadata["finish_reason"] == "stop"
    assert [message.text for message in script.requests[0].messages] == [
        "You help.\n\nBe brief.",
        "Hello",
    ]
    assert script.requests[0].settings["temperature"] == 0.5


async def test_it_streams(tmp_path: Path) -> None:
    async with model(tmp_path, Script(says("Good ", "day.")), stream_usage=True) as chat:
        pieces = [piece async for piece in chat.astream("Hello")]
    assert [piece.content for piece in pieces if piece.content] == ["Good ", "day."]
    whole = functools.reduce(operator.add, pieces)
    assert isinstance(whole, AIMessageChunk)
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["total_tokens"] == 12


async def test_its_own_tools_make_a_round_trip(tmp_path: Path) -> None:
    script = Script(
        calls(("calculate", {"expression": "6*7"}), ("weather", {"city": "Oslo"})),
        says("42, and sunny."),
    )
    async with model(tmp_path, script) as chat:
        bound = chat.bind_tools([weather])
        asked: list[BaseMessage] = [HumanMessage("6*7, and the weather?")]
        first = await bound.ainvoke(asked)
        assert isinstance(first, AIMessage)
        assert [(call["name"], call["args"]) for call in first.tool_calls] == [
            ("weather", {"city": "Oslo"})
        ]
        result = await weather.ainvoke(first.tool_calls[0])
        assert isinstance(result, ToolMessage)
        second = await bound.ainvoke([*asked, first, result])
    assert second.content == "42, and sunny."
    assert [message.text for message in script.requests[1].messages[-2:]] == ["42", "sunny in Oslo"]


async def test_its_own_tools_are_called_in_a_stream(tmp_path: Path) -> None:
    async with model(
        tmp_path, Script(calls(("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})))
    ) as chat:
        pieces = [piece async for piece in chat.bind_tools([weather]).astream("The weather?")]
    whole = functools.reduce(operator.add, pieces)
    assert isinstance(whole, AIMessageChunk)
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Oslo"}, {"city": "Rome"}]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("json_schema", says('{"name": "Ada", "age": 36}')),
        ("function_calling", calls(("Person", {"name": "Ada", "age": 36}))),
    ],
    ids=["json_schema", "function_calling"],
)
async def test_structured_output_is_read(tmp_path: Path, method: Any, answer: list[Any]) -> None:
    async with model(tmp_path, Script(answer)) as chat:
        person = await chat.with_structured_output(Person, method=method).ainvoke("Who?")
    assert person == Person(name="Ada", age=36)


async def test_an_unknown_model_raises(tmp_path: Path) -> None:
    async with model(tmp_path, Script([]), model="nobody") as chat:
        with pytest.raises(NotFoundError):
            await chat.ainvoke("Hello")
